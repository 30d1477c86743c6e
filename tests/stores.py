"""A store of a task's state between tries, for tests: it behaves as Airflow's ``task_state_store``."""

from __future__ import annotations

import json
from typing import Any


class StaleTryError(RuntimeError):
    """The error of ``set`` for a superseded try; Airflow's API answers 404."""


class MemoryStore:
    """A dict that keeps JSON text, as Airflow does, so it takes only values for JSON.

    :ivar refuse_at: number (from 1) of the first ``set`` that raises :class:`StaleTryError`; all later ones
        do, too. ``None`` refuses nothing.
    :ivar history: each value that was set, in order.
    """

    def __init__(self, *, refuse_at: int | None = None) -> None:
        self.refuse_at = refuse_at
        self.history: list[Any] = []
        self._texts: dict[str, str] = {}
        self._sets = 0

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or *default*, also to a superseded try, as Airflow does."""
        return json.loads(self._texts[key]) if key in self._texts else default

    def set(self, key: str, value: Any) -> None:
        """Keep *value*."""
        self._sets += 1
        if self.refuse_at is not None and self._sets >= self.refuse_at:
            raise StaleTryError(f"set number {self._sets}: 404, not the running try")
        self._texts[key] = json.dumps(value)
        self.history.append(json.loads(self._texts[key]))
