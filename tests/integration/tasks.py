"""Running an operator as a task does, without a scheduler: a small context, and kills in time."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

from airflow.sdk import BaseOperator

from tests.databases import Database
from tests.stores import MemoryStore


class TaskInstance(SimpleNamespace):
    """The part of a task instance that our operators use.

    :ivar wanted: the try's state in the API: ``running``, or the state that a user set.
    """

    def __init__(self, **fields: Any) -> None:
        defaults = {"dag_id": "dag", "task_id": "task", "run_id": "run", "map_index": -1}
        super().__init__(**{**defaults, "try_number": 1, "max_tries": 0, "wanted": "running", **fields})
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def get_task_states(self, **_: Any) -> dict[str, dict[str, str]]:
        return {self.run_id: {self.task_id: self.wanted}}


#: The name of :func:`context`'s task in its tickets.
TASK = {"dag_id": "dag", "task_id": "task", "run_id": "run", "map_index": -1}

#: The log line of a try that finds a statement of an earlier try still running.
WAITS = "waiting for its end"


def context(store: MemoryStore | None = None, **fields: Any) -> Any:
    """Return a task's context; *fields* are those of the task instance."""
    return {"ti": TaskInstance(**fields), "task_state_store": store or MemoryStore()}


def kill_when_active(
    operator: BaseOperator,
    database: Database,
    which: str = "(query LIKE '%%pg_sleep%%' OR query LIKE 'FETCH%%')",
) -> threading.Thread:
    """Call ``on_kill`` once a statement of the job role that *which* describes runs in *database*."""
    active = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"
    active += f" AND state = 'active' AND {which}"

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not database.admin(active, database.server.role) and time.monotonic() < deadline:
            time.sleep(0.02)
        operator.on_kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread
