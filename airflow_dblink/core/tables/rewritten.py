"""Detects tables that were rewritten after a snapshot was taken, which then has none of their rows."""

from __future__ import annotations

from airflow_dblink.core.errors import TransientError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements

_SQL = statements("catalog.sql")


def rewritten(side: Side) -> str | None:
    """Return a table that *side*'s transaction has read, and that was rewritten after its snapshot, if any.

    :raises RemoteError: what the server says.
    """
    found = side.ask(_SQL["rewritten"], action="looking for tables that were rewritten")
    return str(found[0]["name"]) if found else None


def demand_read(side: Side) -> None:
    """Raise if :func:`rewritten` finds a table: its rows were not read completely.

    :raises TransientError: 40001.
    """
    if name := rewritten(side):
        raise TransientError(
            f"{name} was truncated, rewritten or replaced after the snapshot was taken, which has neither its"
            " old rows nor its new ones; nothing is changed",
            side.conn_id,
            "40001",
            hint="a retry takes a new snapshot",
        )
