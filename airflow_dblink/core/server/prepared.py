"""Preparing repeated statements, as psycopg does, unless a pooler that shares sessions is in between.

If the connection's settings don't say whether there is one, the connection finds out before it first
prepares: a pooler gives clients process ids of its own making.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import pq
from psycopg.generators import execute

if TYPE_CHECKING:
    from airflow_dblink.core.server.connection import LinkConnection
    from airflow_dblink.core.server.target import Target

#: psycopg's default: a statement is prepared once it has run this often.
THRESHOLD = 5

# After one of these commands a question disturbs nothing: the transaction has begun to read or write.
_QUERIES = ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE")
# They may give the names in a prepared statement another meaning, or take it away.
# (CREATE TABLE AS says SELECT, without rows).
_CHANGES_NAMES = re.compile(rb"(?:SET|RESET|CREATE|SELECT)\b")
_DROPS_ALL = (b"DISCARD ALL", b"DEALLOCATE ALL")
_ASKABLE = (pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS)


class PreparingCursor(psycopg.Cursor[Any]):
    """psycopg's cursor that also finds out whether its connection may prepare, and for how long."""

    def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None, **kwargs: Any) -> Self:
        """Run a statement as psycopg does.

        If another session has changed a table, the prepared form may no longer fit. Then the statement
        has not run, and is run once more without it, if it was the first of its transaction.
        """
        connection: LinkConnection = self.connection  # type: ignore[assignment] # it makes no others
        if prepare:
            decide(connection)
        was_idle = connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        try:
            super().execute(query, params, prepare=prepare, **kwargs)
        except psycopg.Error as error:
            if not was_idle or not _is_stale(error):
                raise
            if connection.pgconn.transaction_status == pq.TransactionStatus.INERROR:
                connection.rollback()
            self._conn._prepared.clear()
            super().execute(query, params, prepare=False, **kwargs)
        if connection.undecided and (self.statusmessage or "").startswith(_QUERIES):
            self._count(connection)
            connection.queries += 1
            if connection.queries >= THRESHOLD:
                decide(connection)
        return self

    def _count(self, connection: LinkConnection) -> None:
        # psycopg counts only while it may prepare; earlier runs have to count, too.
        if self._query is not None and len(self._results) == 1:  # several in one text can't be prepared
            manager = connection._prepared
            key = manager.key(self._query)
            manager._counts[key] = manager._counts.get(key, 0) + 1

    def executemany(self, query: Any, params_seq: Any, *, returning: bool = False) -> None:
        """Run a statement many times, prepared if the connection may prepare."""
        decide(self.connection)  # type: ignore[arg-type] # as above
        super().executemany(query, params_seq, returning=returning)

    def _set_results(self, results: list[pq.abc.PGresult]) -> None:
        # psycopg overlooks these tags if it has seen the same statement before, or has prepared none yet.
        manager = self._conn._prepared
        for result in results:
            tag = result.command_status or b""
            if tag in _DROPS_ALL:
                manager.clear()
            elif manager._names and result.status == pq.ExecStatus.COMMAND_OK and _CHANGES_NAMES.match(tag):
                manager._to_flush.extend(manager._names.values())
                manager._names.clear()
                manager._counts.clear()
        super()._set_results(results)


def let_prepare(target: Target, connection: LinkConnection, *, direct: bool) -> None:
    """Let *connection* to *target* prepare repeated statements, if it may.

    :param direct: whether it leads around the pooler, if the target has an address for that.
    """
    if target.pooling_mode == "transaction" and not (direct and target.has_direct_address):
        return
    connection.cursor_factory = PreparingCursor
    if target.pooling_mode == "session":
        connection.prepare_threshold = THRESHOLD
    else:
        connection.undecided = True


def decide(connection: LinkConnection) -> None:
    """Let *connection* prepare, unless it leads to a pooler; the first call asks the server."""
    pgconn = connection.pgconn
    if (
        not connection.undecided
        or pgconn.transaction_status not in _ASKABLE
        or pgconn.pipeline_status != pq.PipelineStatus.OFF
    ):
        return
    connection.undecided = False
    with connection.lock:
        pgconn.send_query(b"SELECT pg_catalog.pg_backend_pid()")
        (result,) = connection.wait(execute(pgconn))
    if result.status == pq.ExecStatus.TUPLES_OK and result.get_value(0, 0) == b"%d" % pgconn.backend_pid:
        connection.prepare_threshold = THRESHOLD


def _is_stale(error: psycopg.Error) -> bool:
    if isinstance(error, psycopg.errors.InvalidSqlStatementName):
        return '"_pg3_' in str(error)
    return (
        isinstance(error, psycopg.errors.FeatureNotSupported)
        and error.diag.source_function == "RevalidateCachedQuery"
    )
