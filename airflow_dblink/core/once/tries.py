"""The values that a try of a task leaves for the next try, one JSON object under each key of a store.

A value holds the facts of its writer, and two facts that all writers share. ``life`` is the life that stored
it. ``ended`` says that the task has come to its end: a user who then clears the task has seen the result, so
the work is done anew. Only this module reads and writes these two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Store(Protocol):
    """The place where a task keeps values for its next try: Airflow's ``task_state_store``."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or *default*."""

    def set(self, key: str, value: Any) -> None:
        """Keep *value*, which JSON can hold; must raise if this try has been superseded."""


@dataclass(frozen=True)
class Left:
    """The value that a try left under a key; users may have changed it.

    :ivar facts: the whole value; empty if it is no JSON object.
    :ivar ended: how the task ended, as text; ``None`` if it has not ended.
    :ivar is_cleared: whether the user has cleared the task since.
    """

    facts: Mapping[str, Any]
    ended: str | None
    is_cleared: bool


@dataclass(frozen=True)
class Tries:
    """The values of one task's tries, under any number of keys.

    :ivar store: survives the process; refuses a superseded try, which makes it the fence.
    :ivar life: this try's life; it grows when the user clears the task, but not with a retry.
    """

    store: Store
    life: int = 0

    def left(self, key: str) -> Left | None:
        """Return the value that an earlier try, or this one, left under *key*; ``None`` if there is none."""
        value = self.store.get(key)
        return None if value is None else self._read(value)

    def leave(self, key: str, facts: Mapping[str, Any], *, ended: str | bool | None = None) -> Left:
        """Store *facts* and this life under *key*, and return the stored value.

        :param ended: how the task ends, if it does.
        :raises Exception: the store's error for a superseded try.
        """
        own = {name: fact for name, fact in facts.items() if name != "ended"}
        return self._keep(key, {**own, "life": self.life, **({"ended": ended} if ended else {})})

    def amend(self, key: str, left: Left, **facts: Any) -> Left:
        """Store *left* with *facts* in it replaced, and return the stored value; its life and end stay.

        :raises Exception: the store's error for a superseded try.
        """
        return self._keep(key, {**left.facts, **facts})

    def _keep(self, key: str, value: dict[str, Any]) -> Left:
        self.store.set(key, value)
        return self._read(value)

    def _read(self, value: Any) -> Left:
        facts = value if isinstance(value, Mapping) else {}
        life, ended = facts.get("life"), facts.get("ended")
        life = life if isinstance(life, int) else 0
        return Left(facts, str(ended) if ended else None, life < self.life)
