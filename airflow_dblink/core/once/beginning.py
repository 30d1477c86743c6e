"""The beginning of an exactly-once transaction: its id is on the server's disk before the ticket is stored.

A crashed server forgets ids that aren't in the log (WAL) on disk, and hands them out again. So a stored id
could be found committed by another transaction. PostgreSQL writes the log to disk at each COMMIT, but our id
must be there before the work. Since 17 a function can write it; before 17, another session's COMMIT does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.errors import InsufficientPrivilege, UndefinedFunction
from psycopg.rows import dict_row

from airflow_dblink.core.errors import DblinkError, StoppedError
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.connection import LinkConnection, time_limit
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.own_sql import PIN, UNPIN, ask
from airflow_dblink.core.server.settings import Settings, set_config
from airflow_dblink.core.sql.named import statements

log = logging.getLogger(__name__)

_SQL = statements("once.sql")
_FLUSHES_SINCE = 170000
_BESIDE_S = 3.0  # behind a pooler without a free session, the wait would be longer


@dataclass(frozen=True)
class Begun:
    """A transaction that has begun.

    :ivar ticket: the ticket for a later try; see :mod:`airflow_dblink.core.once.tickets`.
    :ivar ids: the transaction ids that were used: the transaction's own, and the other session's.
    """

    ticket: dict[str, Any]
    ids: tuple[int, ...]


def begun(connection: LinkConnection, begin: str, local: Settings) -> Begun:
    """Begin a transaction, and bring its id to the server's disk: one round trip.

    Before PostgreSQL 17 another session is opened for a moment. If that isn't possible, or the role may not
    write to the log, the ticket says that the id isn't known to be on disk.

    :param begin: the statement that begins the transaction.
    :param local: run-time parameters, local to the transaction.
    :raises psycopg.Error: the server's errors.
    """
    flushes = connection.info.server_version >= _FLUSHES_SINCE
    try:
        ticket, lsn = _begin(connection, begin, local, "log_id" if flushes else "log_id_before_17")
    except (InsufficientPrivilege, UndefinedFunction) as error:
        # Every role may call the function unless somebody revoked that. A pooler may report another version
        # than its server has.
        connection.execute("ROLLBACK")
        ticket, lsn = _begin(connection, begin, local, None)
        _say(connection, ticket, error)
    xid = int(ticket["xid"])
    if lsn is None or flushes:
        return Begun({**ticket, "flushed": lsn is not None}, (xid,))
    is_flushed, other = flush_beside(connection, ticket, lsn)
    return Begun({**ticket, "flushed": is_flushed}, (xid, *other))


def _begin(
    connection: LinkConnection, begin: str, local: Settings, log_id: str | None
) -> tuple[dict[str, Any], str | None]:
    """Begin the transaction; return its ticket and, if *log_id* names a statement, its id's log position."""
    names = ["ticket"] if log_id is None else ["ticket", log_id]
    message = sql.SQL("; ").join(
        [
            sql.SQL(begin),
            PIN,
            *(sql.SQL(_SQL[name]) for name in names),
            UNPIN,
            set_config(local.items(), local=True),
        ]
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(message)
        cursor.nextset()
        cursor.nextset()
        (ticket,) = cursor.fetchall()
        if log_id is None:
            return ticket, None
        cursor.nextset()
        (logged,) = cursor.fetchall()
    return ticket, str(logged["lsn"])


def flush_beside(
    connection: LinkConnection, ticket: Mapping[str, Any], lsn: str
) -> tuple[bool, tuple[int, ...]]:
    """Commit in another session, which writes the log to disk.

    :param ticket: the ticket of the transaction on *connection*.
    :param lsn: the log position (LSN) of its id.
    :returns: whether the log is on disk up to *lsn*, and the other transaction's id if it had one.
    :raises StoppedError: if the connection's own check raises it.
    """
    ids: tuple[int, ...] = ()
    # Without settings such as "role": another role may not see our session.
    target = replace(connection.target, session_settings={})
    limit = time_limit(target.conn_id, _BESIDE_S)

    name = connection.info.parameter_status("application_name")

    def check() -> None:
        if connection.check:
            connection.check()
        limit()

    try:
        with (
            closing(connect(target, application_name=name, check=check, direct=True)) as other,
            other.cursor(row_factory=dict_row) as cursor,
        ):
            cursor.execute(sql.SQL("BEGIN READ WRITE; {}; COMMIT").format(sql.SQL(_SQL["flush"])))
            cursor.nextset()
            ids = tuple(int(row["xid"]) for row in cursor.fetchall())
            rows = ask(other, _SQL["is_flushed"], {**ticket, "lsn": lsn})
    except StoppedError:
        raise
    except (psycopg.Error, DblinkError) as error:
        _say(connection, ticket, error)
        return False, ids
    is_flushed = bool(rows and rows[0]["is_flushed"])
    if not is_flushed:
        _say(connection, ticket, "another server answered the second session")
    return is_flushed, ids


def _say(connection: LinkConnection, ticket: Mapping[str, Any], why: Exception | str) -> None:
    log.info(
        "%s: the id of transaction %s may not survive a crash of the server: after one, a retry could not"
        " tell whether it was committed (%s). The role needs EXECUTE on pg_logical_emit_message and, before"
        " PostgreSQL 17, a second session (CONNECTION LIMIT of the role, direct_host of the connection).",
        connection.target.conn_id,
        ticket["xid"],
        without_credentials(str(why).strip()),
    )
