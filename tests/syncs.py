"""Runs the sync operator for tests as a task does, from database ``source`` to ``warehouse``."""

from __future__ import annotations

from typing import Any

from airflow_dblink.operators.sync import DblinkSyncOperator
from tests.integration.tasks import context
from tests.stores import MemoryStore


def sync_operator(table: str = "item", **arguments: Any) -> DblinkSyncOperator:
    """Return the operator: *table* on both sides unless *arguments* name others."""
    given = {"source_conn_id": "source", "destination_conn_id": "warehouse", "destination_table": table}
    if "source_sql" not in arguments:
        given["source_table"] = table
    return DblinkSyncOperator(task_id="sync", **{**given, **arguments})


def sync(
    table: str = "item",
    *,
    store: MemoryStore | None = None,
    task: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Execute the operator; *task* are fields of the task instance, *store* its state."""
    return sync_operator(table, **arguments).execute(context(store, **(task or {})))
