"""The keeper: a session on the source that keeps one snapshot for all parts of a load.

A snapshot lives as long as the transaction that exported it, and no task lives as long as a load. So the
transaction is one ``DO`` block, which sleeps and looks. Its client sends it, hears of the snapshot, and
leaves: the server goes on with it. It ends by itself after a deadline, or when no part has needed it for some
time; :func:`release` ends it at once.

It is found again by its key: it holds an advisory lock, and its ``application_name`` tells the snapshot. A
part that uses the snapshot holds another lock of the same key (:func:`use`), in sight of the keeper.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event

import psycopg
from psycopg import pq, sql
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import send
from psycopg.waiting import Wait

from airflow_dblink.core.errors import LoadLostError, RemoteError, TransientError, UsageError, from_psycopg
from airflow_dblink.core.parts.key import ANEW, LoadKey
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements

log = logging.getLogger(__name__)

_SQL = statements("parts_keeper.sql")
_ACTION = "keeping a snapshot"
_TOLD = "airflow_dblink: a keeper has this snapshot"
_NAME = re.compile(r"dblink_keeper ([0-9a-f]{16}) ([0-9A-F]+-[0-9A-F]+-[0-9]+) ([0-9a-f]{1,8})")
_LOOK_S = 1.0
_ENDS_S = 0.1
# What a server says of a snapshot that isn't there: by version, and of one whose session has just gone.
_GONE = ("22023", "42704", "55000")


@dataclass(frozen=True)
class Keeper:
    """A keeper as its server shows it.

    :ivar pid: its backend.
    :ivar snapshot: what SET TRANSACTION SNAPSHOT takes.
    :ivar taken_at: when the snapshot was taken, in seconds since 1970, by the server's clock.
    """

    pid: int
    snapshot: str
    taken_at: int

    @property
    def taken(self) -> str:
        """When the snapshot was taken, as ISO text in UTC."""
        return datetime.fromtimestamp(self.taken_at, UTC).isoformat()


def begin(
    connection: LinkConnection,
    conn_id: str,
    key: LoadKey,
    tables: list[sql.Identifier],
    *,
    deadline_s: float,
    idle_s: float,
) -> None:
    """Begin a keeper on *connection*, and leave it there; the connection is closed in the end.

    If a keeper of this key is there already, nothing is begun. :func:`find` tells which one it is.

    :param connection: in autocommit mode, idle; it is the keeper's from now on.
    :param tables: locked in ACCESS SHARE mode before the snapshot is taken, so that nobody rewrites them.
    :param deadline_s: the most that the snapshot is kept, in seconds.
    :param idle_s: how long it is kept while no part uses it, in seconds.
    :raises RemoteError: what the server says: of a lock that isn't given in time, or privileges.
    """
    told = Event()

    def hear(diag: psycopg.errors.Diagnostic) -> None:
        if diag.message_primary == _TOLD:
            told.set()

    connection.add_notice_handler(hear)
    text = _message(key, tables, deadline_s, idle_s)
    try:
        connection.pgconn.send_query(text.as_string(connection).encode())
        connection.wait(_until_told(connection.pgconn, told))
    except psycopg.Error as error:
        raise from_psycopg(error, conn_id, _ACTION) from None
    except BaseException:
        connection.abort()  # told to stop while it waits for the lock
        raise
    finally:
        connection.close()  # and no cancel: the server goes on


def _message(key: LoadKey, tables: list[sql.Identifier], deadline_s: float, idle_s: float) -> sql.Composed:
    body = sql.SQL(_SQL["keep"]).format(
        key=sql.Literal(key.number),
        high=sql.SQL(str(key.high)),
        low=sql.SQL(str(key.low)),
        name=sql.SQL(f"dblink_keeper {key.text}"),
        told=sql.SQL(_TOLD),
        deadline_s=sql.SQL(repr(float(deadline_s))),
        idle_s=sql.SQL(repr(float(idle_s))),
        look_s=sql.SQL(repr(min(_LOOK_S, idle_s / 4))),
    )
    lock = sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(", ").join(tables))
    keep = sql.SQL("DO {}").format(sql.Literal(body.as_string()))
    statements_ = [sql.SQL(_SQL["begin"]), *([lock] if tables else []), keep, sql.SQL("COMMIT")]
    return sql.SQL(";\n").join(statements_)


def _until_told(pgconn: pq.abc.PGconn, told: Event) -> PQGen[None]:
    """Send, and read until the server tells of the snapshot."""
    yield from send(pgconn)
    while not told.is_set():
        if pgconn.is_busy():  # which also parses: a notice is handed on by it
            if not told.is_set() and (yield Wait.R):
                pgconn.consume_input()
        elif (result := pgconn.get_result()) is None:
            raise psycopg.OperationalError("the keeper's statement ended before it told of a snapshot")
        elif result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(result, encoding="utf-8")


def find(source: Side, key: LoadKey) -> Keeper | None:
    """Return the keeper of this *key*, ``None`` if there is none.

    :raises UsageError: if another role's session holds the lock.
    """
    for is_last in (False, True):
        rows = source.ask(_SQL["keeper"], key.params, "looking for the keeper")
        if not rows:
            return None
        found = keeper_of(rows[0]["pid"], rows[0]["name"]) if rows[0]["is_ours"] else None
        if found is not None and found[0] == key:
            return found[1]
        if not is_last:  # a keeper that ends: its lock may be seen, and a moment later it has lost its name
            time.sleep(_ENDS_S)
    raise UsageError(
        f"session {rows[0]['pid']} holds the advisory lock {key.number}, and is no keeper of this load",
        source.conn_id,
        hint="another role, or another program, uses this lock: end that session",
    )


def keeper_of(pid: int, name: str | None) -> tuple[LoadKey, Keeper] | None:
    """Return the keeper that a session's ``application_name`` tells, and its key; ``None`` if it is none."""
    match = _NAME.fullmatch(name or "")
    return None if match is None else (LoadKey(match[1]), Keeper(pid, match[2], int(match[3], 16)))


def release(source: Side, key: LoadKey, *, if_unused: bool = False) -> bool:
    """End the keeper of this *key*; returns whether it was there.

    :param if_unused: not while a part uses its snapshot.
    """
    params = {**key.params, "name": f"dblink_keeper {key.text}", "if_unused": if_unused}
    return any(row["ended"] for row in source.ask(_SQL["release"], params, "ending the keeper"))


def use(source: Side, key: LoadKey, snapshot: str) -> None:
    """Give the transaction that is open on *source* the snapshot, and let the keeper see that it is used.

    :param source: in a transaction of REPEATABLE READ that has not run a query yet.
    :param snapshot: the one that is expected.
    :raises LoadLostError: if the keeper is gone, or keeps another snapshot.
    """
    try:
        statement = sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot))
        source.run(statement, "taking over the snapshot")
    except RemoteError as error:
        if error.sqlstate not in _GONE:
            raise
        raise _lost(source, key) from None
    joined = source.ask(_SQL["join"], key.params, "joining the keeper")
    # Asked after the snapshot was taken: a server that was restarted may give its name to another one.
    keeper = find(source, key)
    if keeper is None or keeper.snapshot != snapshot:
        raise _lost(source, key)
    if not joined[0]["has_joined"]:
        raise TransientError("another session holds the lock of this load's parts", source.conn_id, "55P03")


def _lost(source: Side, key: LoadKey) -> LoadLostError:
    return LoadLostError(
        f"the snapshot of load {key.text} is gone: its keeper was ended, or has come to its deadline",
        source.conn_id,
        hint=f"the destination is as it was: {ANEW}",
    )


def warn_of_standby(source: Side) -> None:
    """Warn of a standby that doesn't tell its primary which rows are still needed."""
    (facts,) = source.ask(_SQL["standby"])
    if facts["is_standby"] and not facts["gives_feedback"]:
        log.warning(
            "%s is a standby without hot_standby_feedback: its primary may remove rows that the snapshot"
            " needs, and the standby then ends the load",
            source.conn_id,
        )
