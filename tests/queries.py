"""Runs the query operator for tests as a task does; its home is the database ``warehouse``."""

from __future__ import annotations

from typing import Any

from airflow_dblink.core.remote_sets.remote import Remote
from airflow_dblink.operators.query import DblinkQueryOperator
from tests.integration.tasks import context
from tests.stores import MemoryStore


def operator(sql: str, remotes: Any = None, **arguments: Any) -> DblinkQueryOperator:
    """Return the operator."""
    return DblinkQueryOperator(task_id="task", conn_id="warehouse", sql=sql, remotes=remotes, **arguments)


def run(sql: str, remotes: Any = None, *, store: MemoryStore | None = None, **arguments: Any) -> Any:
    """Execute the operator as a task's first try."""
    return operator(sql, remotes, **arguments).execute(context(store))


def rows(sql: str, remotes: Any = None, **arguments: Any) -> list[list[Any]]:
    """Return the rows of *sql*, as XCom has them."""
    data: list[list[Any]] = run(sql, remotes, max_xcom_rows=1000, **arguments)["data"]
    return data


def source(sql: str, **arguments: Any) -> Remote:
    """Return a remote set of the database ``source``."""
    return Remote("source", sql, **arguments)
