"""Where a task keeps its state between tries, for tests: what Airflow's ``task_state_store`` does."""

from __future__ import annotations

import json
from typing import Any


class StaleTryError(RuntimeError):
    """What ``set`` raises for a superseded try; Airflow's API answers 404 then."""


class MemoryStore:
    """A dict that keeps JSON text, as Airflow does, so that only JSON-able values pass.

    :ivar refuse_at: the number of the ``set`` (from 1) that raises :class:`StaleTryError`, and all after
        it; ``None`` refuses nothing.
    :ivar history: each value that was set, in order.
    """

    def __init__(self, *, refuse_at: int | None = None) -> None:
        self.refuse_at = refuse_at
        self.history: list[Any] = []
        self._texts: dict[str, str] = {}
        self._sets = 0

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or *default*; answers a superseded try too, as Airflow does."""
        return json.loads(self._texts[key]) if key in self._texts else default

    def set(self, key: str, value: Any) -> None:
        """Keep *value*."""
        self._sets += 1
        if self.refuse_at is not None and self._sets >= self.refuse_at:
            raise StaleTryError(f"set number {self._sets}: 404, not the running try")
        self._texts[key] = json.dumps(value)
        self.history.append(json.loads(self._texts[key]))
