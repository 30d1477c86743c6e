"""Copies all rows of the source straight into the table: a first load, or a replacement of all rows."""

from __future__ import annotations

from psycopg import sql

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.streams.pump import Pumped
from airflow_dblink.core.sync.staged import copy
from airflow_dblink.core.sync.work import Work, column, comma


def load(work: Work, *, truncate: bool) -> Pumped:
    """Copy all rows of the source's part straight into the table, which is empty or truncated first.

    :raises UsageError: if two source rows have the same value of a unique key.
    :raises RemoteError: a server's errors.
    """
    destination = work.destination.side
    if truncate:
        # The source may read this table, in a session that waits for us: no server sees that deadlock.
        # A lock_timeout that the user has set stays.
        destination.run(
            "SELECT pg_catalog.set_config('lock_timeout', '1min', true)"
            " WHERE pg_catalog.current_setting('lock_timeout') OPERATOR(pg_catalog.=) '0'",
            "setting up the transaction",
        )
        destination.run(sql.SQL("TRUNCATE {}").format(work.target.identifier), "truncating the table")
    values = work.source.select(comma([column(field.name) for field in work.fields]))
    into = sql.SQL("{} ({})").format(
        work.target.identifier, comma([sql.Identifier(field.name) for field in work.fields])
    )
    try:
        return copy(work, values, into, work.row_format, work.estimated_rows)
    except RemoteError as error:
        if error.sqlstate != "23505" or error.connname != destination.conn_id:
            raise
        outside = ", or one has that of a row outside of where" if work.destination.where else ""
        raise UsageError(
            f"several source rows have the same value of a unique key of {work.target}{outside}:"
            f" {error.message}",
            work.source.side.conn_id,
            "23505",
            hint="keep one row per key, e.g. with SELECT DISTINCT ON in source_sql",
        ) from None
