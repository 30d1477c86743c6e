"""What a try of a task leaves for the next one: one JSON value under each key, kept by others.

A value holds what its writer needs, and two facts that all writers share. ``life`` is the task's life that
left it. ``ended`` says that the task came to its end: then a user who clears the task has seen the result,
and the work is done anew. Only this module reads and writes the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Store(Protocol):
    """Where a task keeps what its next try should know; Airflow's ``task_state_store``."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or *default*."""

    def set(self, key: str, value: Any) -> None:
        """Keep the JSON-able *value*; must raise if this try has been superseded."""


@dataclass(frozen=True)
class Left:
    """What an earlier try left under a key; others may have changed it.

    :ivar facts: all that it left; empty if that is no JSON object.
    :ivar ended: how the task ended, as its writer says it; ``None`` if it did not.
    :ivar is_cleared: whether the user has cleared the task since.
    """

    facts: Mapping[str, Any]
    ended: str | None
    is_cleared: bool


@dataclass(frozen=True)
class Tries:
    """What the tries of one task leave, under any number of keys.

    :ivar store: survives the process; refuses a superseded try, which makes it the fence.
    :ivar life: of this try: grows when the user clears the task, and not with a retry.
    """

    store: Store
    life: int = 0

    def left(self, key: str) -> Left | None:
        """Return what an earlier try, or this one, left under *key*; ``None`` if nothing."""
        value = self.store.get(key)
        return None if value is None else self._read(value)

    def leave(self, key: str, facts: Mapping[str, Any], *, ended: str | bool | None = None) -> Left:
        """Keep *facts* under *key*, as left by this life; returns what is kept.

        :param ended: how the task ends, if it does.
        :raises Exception: what the store raises for a superseded try.
        """
        own = {name: fact for name, fact in facts.items() if name != "ended"}
        return self._keep(key, {**own, "life": self.life, **({"ended": ended} if ended else {})})

    def amend(self, key: str, left: Left, **facts: Any) -> Left:
        """Keep *left* with other *facts*, its life and its end as they are; returns what is kept.

        :raises Exception: what the store raises for a superseded try.
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
