"""Exactly once across crashes of the server, also where it hands out transaction ids again."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from airflow_dblink.core.errors import OutcomeUnknownError, StoppedError
from airflow_dblink.core.once.beginning import flush_beside
from airflow_dblink.core.once.transaction import KEY, Once
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.login import connect
from airflow_dblink.embedded.server import Server, servers
from airflow_dblink.operators.execute import DblinkExecOperator
from tests.databases import Database, new_database
from tests.hostile_server import hostile_server
from tests.integration.tasks import context
from tests.queries import operator as query_operator
from tests.queries import source as remote
from tests.stores import MemoryStore
from tests.syncs import sync_operator
from tests.transfers import operator as transfer_operator

INSERT = "INSERT INTO item VALUES (1)"
_FLUSHES_SINCE = 17  # before, another session is needed
#: What a ticket held in the version that didn't bring ids to disk.
_OLD_TICKET = {
    *("xid", "pid", "backend_start", "system_identifier", "database", "timeline", "crash_epoch"),
}


@pytest.fixture(scope="module")
def crashing() -> Iterator[Server]:
    """Give a server of the module's own."""
    # So that nothing comes to the disk by accident.
    with servers("crashing", settings={"wal_writer_delay": "10s"}) as (server,):
        yield server


@pytest.fixture
def fragile(crashing: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Give a new database there, with a table; Airflow connection ``warehouse``."""
    with new_database(crashing, "warehouse") as database:
        database.execute("CREATE TABLE item (id int)")
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", database.uri)
        yield database


def _crash(database: Database, *, hand_out: str | None = None) -> None:
    """Crash the server and start it; others then use up all ids until *hand_out* has been in use."""
    database.server.crash()
    database.server.start()
    if hand_out is not None:
        with psycopg.connect(database.conninfo, autocommit=True) as other:
            while _xid(other) <= int(hand_out):
                pass


def _xid(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None
    return int(row[0])


def _next_id(database: Database) -> int:
    return int(database.rows("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")[0][0])


def _is_before_17(database: Database) -> bool:
    version = "SELECT current_setting('server_version_num')::int / 10000"
    return int(database.rows(version)[0][0]) < _FLUSHES_SINCE


def _count(database: Database) -> int:
    return int(database.rows("SELECT count(*) FROM item")[0][0])


def _once(connection: LinkConnection, store: MemoryStore) -> Once:
    return Once(connection, "warehouse", store)


def _recall(database: Database, store: MemoryStore) -> dict[str, Any] | None:
    with connect(database.target) as connection:
        return _once(connection, store).recall()


# -- a worker that dies at a write of its state, and the server with it


class DiedError(BaseException):
    """The worker is gone: nobody catches it."""


class _FatalStore(MemoryStore):
    """Crashes the server, and ends the worker, at its write number *at*."""

    def __init__(self, server: Server, at: int, when: str) -> None:
        super().__init__()
        self.server, self.at, self.when = server, at, when
        self.writes = 0

    def set(self, key: str, value: Any) -> None:
        self.writes += 1
        if self.writes == self.at and self.when == "before":
            self._die()
        super().set(key, value)
        if self.writes == self.at:
            self._die()

    def _die(self) -> None:
        self.server.crash()
        raise DiedError


def _exec() -> Any:
    return DblinkExecOperator(task_id="task", conn_id="warehouse", sql=INSERT)


def _transfer() -> Any:
    return transfer_operator(source_table="item", destination_table="item")


def _query() -> Any:
    sql = "INSERT INTO item SELECT id FROM remote"
    return query_operator(sql, {"remote": remote("SELECT id FROM item")})


def _sync() -> Any:
    return sync_operator(key=["id"])


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("make", "write"),
    [
        *((_exec, write) for write in (1, 2)),  # the ticket, the end
        *((make, write) for make in (_transfer, _query, _sync) for write in (1, 2, 3)),  # and the result
    ],
)
def test_death_and_a_crash_at_any_write_of_the_state_are_made_up_for_by_a_retry(
    source: Database, fragile: Database, make: Callable[[], Any], write: int, when: str
) -> None:
    source.execute("CREATE TABLE item (id int PRIMARY KEY)")
    source.execute(INSERT)
    if make is _sync:  # the others would do no harm twice, with a key
        fragile.execute("ALTER TABLE item ADD UNIQUE (id)")
    store = _FatalStore(fragile.server, write, when)
    with pytest.raises(DiedError):
        make().execute(context(store))
    state = store.get(KEY) or {"ticket": {"xid": "0"}}

    _crash(fragile, hand_out=str(int(state["ticket"]["xid"]) + 10))

    make().execute(context(store, try_number=2))
    assert fragile.rows("SELECT id FROM item") == [(1,)]
    assert store.writes > write or (write, when) == (2 + (make != _exec), "after")


# -- the transaction alone


@pytest.mark.parametrize("hands_out", [False, True])
@pytest.mark.parametrize("moment", ["begun", "working", "committed"])
def test_a_crash_at_any_moment_leaves_a_known_outcome(
    fragile: Database, store: MemoryStore, moment: str, hands_out: bool
) -> None:
    connection = connect(fragile.target)
    once = _once(connection, store)
    once.begin()
    if moment == "working":
        connection.execute(INSERT.encode())
    if moment == "committed":
        once.run(INSERT)

    _crash(fragile, hand_out=once.xid if hands_out else None)
    connection.close()

    assert _next_id(fragile) > int(once.xid)
    assert _recall(fragile, store) == ({} if moment == "committed" else None)
    assert _count(fragile) == (moment == "committed")


def test_a_restart_and_statistics_that_are_reset_are_no_crash(fragile: Database, store: MemoryStore) -> None:
    with connect(fragile.target) as connection:
        once = _once(connection, store)
        once.begin()
        once.run(INSERT)

    fragile.server.restart()
    assert _recall(fragile, store) == {}
    fragile.admin("SELECT pg_stat_reset_shared('bgwriter')")
    assert _recall(fragile, store) == {}


def test_an_id_that_was_not_reached_without_a_crash_is_nobodys_guess(
    fragile: Database, store: MemoryStore
) -> None:
    with connect(fragile.target) as connection:
        _once(connection, store).begin()
    state = store.get(KEY)
    store.set(KEY, {**state, "ticket": {**state["ticket"], "xid": str(2**40 + 1000)}})

    with pytest.raises(OutcomeUnknownError, match="has not reached"):
        _recall(fragile, store)


# -- an id that may be handed out again: what an earlier version stored, or a server that can't do better


@pytest.fixture
def forgetful(fragile: Database) -> Database:
    """Give a database where nobody may write to the log, so that a crash forgets the ids."""
    emit = "SELECT oid::regprocedure FROM pg_proc WHERE proname = 'pg_logical_emit_message'"
    fragile.admin(
        f"DO $$ DECLARE f regprocedure; BEGIN FOR f IN {emit} LOOP"
        " EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f); END LOOP; END $$"
    )
    return fragile


def test_a_role_that_may_not_write_to_the_log_works_all_the_same(
    forgetful: Database, store: MemoryStore
) -> None:
    with connect(forgetful.target) as connection:
        once = _once(connection, store)
        once.begin()
        once.run(INSERT)

    assert store.get(KEY)["ticket"]["flushed"] is False
    assert _recall(forgetful, store) == {}
    _crash(forgetful)
    with pytest.raises(OutcomeUnknownError, match="crashed"):
        _recall(forgetful, store)


@pytest.mark.parametrize("is_of_earlier_version", [False, True])
def test_an_id_that_a_crash_forgot_is_believed_until_it_is_handed_out_again(
    forgetful: Database, is_of_earlier_version: bool
) -> None:
    for _ in range(5):  # the server may have written its log just before
        store = MemoryStore()
        once = _crashed_at_work(forgetful, store, is_of_earlier_version=is_of_earlier_version)
        if _next_id(forgetful) <= int(once.xid):
            break
    else:
        pytest.fail("the server has always written its log before it crashed")

    assert _recall(forgetful, store) is None
    _crash(forgetful, hand_out=once.xid)
    with pytest.raises(OutcomeUnknownError, match="crashed"):
        _recall(forgetful, store)
    assert _count(forgetful) == 0


def _crashed_at_work(database: Database, store: MemoryStore, *, is_of_earlier_version: bool) -> Once:
    connection = connect(database.target)
    once = _once(connection, store)
    once.begin()
    connection.execute(INSERT.encode())
    if is_of_earlier_version:
        state = store.get(KEY)
        ticket = {name: value for name, value in state["ticket"].items() if name in _OLD_TICKET}
        store.set(KEY, {**state, "ticket": ticket})
    database.server.crash()
    database.server.start()
    connection.close()
    return once


def test_a_commit_that_an_earlier_version_made_is_not_believed_after_a_crash(
    fragile: Database, store: MemoryStore
) -> None:
    with connect(fragile.target) as connection:
        once = _once(connection, store)
        once.begin()
        once.run(INSERT)
    state = store.get(KEY)
    assert set(state["ticket"]) == {*_OLD_TICKET, "flushed"}
    del state["ticket"]["flushed"]
    store.set(KEY, state)

    assert _recall(fragile, store) == {}
    _crash(fragile)
    with pytest.raises(OutcomeUnknownError, match="crashed"):
        _recall(fragile, store)


# -- the other session, before PostgreSQL 17


def test_only_before_17_another_session_is_needed(fragile: Database, store: MemoryStore) -> None:
    role = fragile.server.role
    is_old = _is_before_17(fragile)
    fragile.admin(f"ALTER ROLE {role} CONNECTION LIMIT 1")
    assert fragile.wait_until_left() == []
    try:
        with connect(fragile.target) as connection:
            once = _once(connection, store)
            once.begin()
            assert store.get(KEY)["ticket"]["flushed"] is not is_old
            once.run(INSERT)
        assert fragile.wait_until_left() == []
        assert _recall(fragile, store) == {}
    finally:
        fragile.admin(f"ALTER ROLE {role} CONNECTION LIMIT -1")


_SESSION = """
SELECT pg_current_xact_id()::text AS xid, pid, extract(epoch FROM backend_start)::text AS backend_start,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       pg_logical_emit_message(false, 'test', 'test'::text)::text AS lsn
  FROM pg_stat_activity WHERE pid = pg_backend_pid()
"""


def _begin_as_before_17(connection: LinkConnection) -> dict[str, Any]:
    """Begin a transaction whose id is in the log, but not on disk; return its ticket."""
    connection.execute("BEGIN")
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_SESSION.encode()).fetchone()
    assert row is not None
    return row


def test_a_commit_in_another_session_brings_the_log_to_disk(fragile: Database) -> None:
    """Also where the role's commits are asynchronous, and its transactions read-only, by default."""
    for setting in ("synchronous_commit = off", "default_transaction_read_only = on"):
        fragile.admin(f"ALTER ROLE {fragile.server.role} IN DATABASE {fragile.name} SET {setting}")
    connection = connect(fragile.target)
    ticket = _begin_as_before_17(connection)

    is_flushed, ids = flush_beside(connection, ticket, ticket["lsn"])

    assert is_flushed
    assert len(ids) == 1
    _crash(fragile)
    connection.close()
    assert _next_id(fragile) > max(int(ticket["xid"]), *ids)


def test_another_servers_commit_proves_nothing(fragile: Database, source: Database) -> None:
    with connect(fragile.target) as connection:
        ticket = _begin_as_before_17(connection)
        connection.target = source.target
        assert flush_beside(connection, ticket, "0/1")[0] is False
        connection.target = replace(source.target, params={**source.params, "port": 1})
        assert flush_beside(connection, ticket, "0/1") == (False, ())
        connection.rollback()


def test_a_stop_ends_the_wait_for_the_other_session(fragile: Database) -> None:
    def stop() -> None:
        raise StoppedError("stop", "shop")

    with connect(fragile.target) as connection, hostile_server() as silent:
        ticket = _begin_as_before_17(connection)
        connection.target = silent.target()
        connection.check = stop
        with pytest.raises(StoppedError):
            flush_beside(connection, ticket, "0/1")
        connection.check = None
        connection.rollback()


def test_a_server_that_lets_no_other_session_in_holds_up_the_work_for_seconds_only(
    fragile: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Its main process is stopped, so it answers no new session; those that are open go on."""
    pid = fragile.server.pid
    assert pid is not None
    caplog.set_level(logging.INFO)
    with connect(fragile.target) as connection:
        ticket = _begin_as_before_17(connection)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert flush_beside(connection, ticket, ticket["lsn"]) == (False, ())
            connection.execute(INSERT.encode())
            connection.execute("COMMIT")
        finally:
            os.kill(pid, signal.SIGCONT)
    assert "no answer within 3 s" in caplog.text
    assert _count(fragile) == 1
