"""How tasks die at exactly named moments, for the Dags of the acceptance tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Store:
    """The task's real state store, with an event before or after its n-th write."""

    def __init__(self, store: Any, when: str, nth: int, event: Callable[[], None]) -> None:
        self._store, self._when, self._nth, self._event = store, when, nth, event
        self._writes = 0

    def get(self, key: str, default: Any = None) -> Any:
        return self._store.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self._writes += 1
        here = self._writes == self._nth
        if here and self._when == "before":
            self._event()
        self._store.set(key, value)
        if here and self._when == "after":
            self._event()
