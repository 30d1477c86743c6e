"""Exactly once: the outcome that a later try finds after each fate of the earlier one."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.errors import OutcomeUnknownError, RemoteError, TransientError, UsageError
from airflow_dblink.core.once.transaction import KEY, Ending, Once
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.sqltext.rules import demand_script
from tests.databases import Database
from tests.integration.sync.moments import GATE, closed_gate, waiting_at_gate
from tests.integration.tasks import WAITS
from tests.oracle import wait_until
from tests.own_process import last_line
from tests.stores import MemoryStore, StaleTryError
from tests.transfers import meanwhile, sleeping


@pytest.fixture
def sessions(source: Database) -> Iterator[Callable[..., LinkConnection]]:
    """Give a function that connects to ``source``; its connections are closed after the test."""
    source.execute("CREATE TABLE t (a int)")
    made: list[LinkConnection] = []

    def new(**options: Any) -> LinkConnection:
        made.append(connect(source.target, **options))
        return made[-1]

    yield new
    for connection in made:
        connection.close()


Sessions = Callable[..., LinkConnection]
INSERT = "INSERT INTO t VALUES (1)"


def _count(database: Database) -> int:
    return int(database.rows("SELECT count(*) FROM t")[0][0])


def _once(connection: LinkConnection, store: MemoryStore, **options: Any) -> Once:
    return Once(connection, "source", store, **options)


def _crash(connection: LinkConnection) -> None:
    """Close the connection as the death of a worker's process does: a FIN without a Terminate message."""
    sock = socket.socket(fileno=connection.pgconn.socket)
    sock.shutdown(socket.SHUT_RDWR)
    sock.detach()


def _reset(connection: LinkConnection) -> None:
    """Close the connection's socket with a RST, as the end of a worker's machine does."""
    sock = socket.socket(fileno=connection.pgconn.socket)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.detach()


def test_the_first_try_has_nothing_to_recall(sessions: Sessions, store: MemoryStore) -> None:
    assert _once(sessions(), store).recall() is None


def test_what_was_returned_is_not_run_again(sessions: Sessions, source: Database, store: MemoryStore) -> None:
    first = _once(sessions(), store)
    first.begin()
    tags = first.run("INSERT INTO t VALUES (1); UPDATE t SET a = 2")
    first.finish({"tags": tags})

    assert tags == ["INSERT 0 1", "UPDATE 1"]
    assert _once(sessions(), store).recall() == {"tags": tags}
    assert source.rows("SELECT a FROM t") == [(2,)]


def test_the_ticket_is_stored_before_the_work(sessions: Sessions, store: MemoryStore) -> None:
    once = _once(sessions(), store, life=3)
    with pytest.raises(UsageError, match="not begun"):
        _ = once.xid

    once.begin()

    (state,) = store.history
    assert state["ticket"]["xid"] == once.xid
    assert state["life"] == 3
    assert "ended" not in state


def _committed_in_silence(connection: LinkConnection, store: MemoryStore, life: int = 0) -> None:
    """Commit, and die before the outcome is stored."""
    once = _once(connection, store, life=life)
    once.begin()
    once.run(INSERT)


def test_a_commit_that_nobody_heard_of_is_found(
    sessions: Sessions, source: Database, store: MemoryStore
) -> None:
    _committed_in_silence(sessions(), store)

    assert _once(sessions(), store).recall() == {}
    assert _count(source) == 1


def test_a_result_stored_before_the_commit_is_returned(sessions: Sessions, store: MemoryStore) -> None:
    first = _once(sessions(), store)
    first.begin()
    first.commit({"rows": 5})

    assert _once(sessions(), store).recall() == {"rows": 5}


def test_what_was_rolled_back_is_run_again(sessions: Sessions, source: Database, store: MemoryStore) -> None:
    first = _once(sessions(), store)
    first.begin()
    with pytest.raises(RemoteError, match="division by zero"):
        first.run(f"{INSERT}; SELECT 1/0")

    again = _once(sessions(), store)
    assert again.recall() is None
    again.begin()
    again.run(INSERT)
    assert _count(source) == 1


# -- an orphan: the worker is gone, its transaction isn't


@pytest.mark.parametrize("die", [_crash, _reset], ids=["FIN", "RST"])
def test_the_server_finishes_and_commits_what_a_dead_worker_began(
    sessions: Sessions,
    source: Database,
    store: MemoryStore,
    caplog: pytest.LogCaptureFixture,
    die: Callable[[LinkConnection], None],
) -> None:
    caplog.set_level("INFO")
    worker = sessions()
    first = _once(worker, store)
    first.begin({"client_min_messages": "error"})
    # As Once.run sends it; there is no process here that could be killed in the midst of it.
    with closed_gate(source) as open_gate:
        worker.pgconn.send_query(f"SELECT {GATE}; {INSERT}\n; COMMIT".encode())
        while worker.pgconn.flush():
            pass
        wait_until(lambda: bool(waiting_at_gate(source)))
        die(worker)
        worker.close()

        assert _count(source) == 0
        with meanwhile(open_gate, lambda: WAITS in caplog.text):
            assert _once(sessions(), store).recall() == {}
    assert _count(source) == 1


RUN = """
import json, sys
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.once.transaction import Once

class Store:
    def get(self, key, default=None):
        return default
    def set(self, key, value):
        print(json.dumps(value), flush=True)

once = Once(connect(Target("source", json.loads(sys.argv[1]))), "source", Store())
once.begin()
once.run(sys.argv[2])
"""


def test_a_worker_killed_with_sigkill_leaves_its_effect_to_the_next_try(
    sessions: Sessions, source: Database, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    command = [sys.executable, "-c", RUN, json.dumps(source.params), f"SELECT {GATE}; {INSERT}"]
    with closed_gate(source) as open_gate:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            store.set(KEY, json.loads(worker.stdout.readline()))
            wait_until(lambda: bool(waiting_at_gate(source)))
            worker.kill()

        with meanwhile(open_gate, lambda: WAITS in caplog.text):
            assert _once(sessions(), store).recall() == {}
    assert _count(source) == 1


def test_an_orphan_that_waits_for_its_dead_client_is_ended(
    sessions: Sessions, source: Database, store: MemoryStore
) -> None:
    orphan = sessions()
    _once(orphan, store).begin()
    orphan.execute(INSERT.encode())

    started = time.monotonic()
    assert _once(sessions(), store).recall() is None

    assert 1.9 < time.monotonic() - started < 45
    with pytest.raises(psycopg.OperationalError):
        orphan.execute("COMMIT")
    assert _count(source) == 0


def test_orphan_timeout_cancels_what_still_runs(
    sessions: Sessions, source: Database, store: MemoryStore
) -> None:
    orphan = sessions()
    _once(orphan, store).begin()
    orphan.pgconn.send_query(f"{INSERT}; SELECT pg_sleep(60); COMMIT".encode())

    started = time.monotonic()
    assert _once(sessions(), store, orphan_timeout_s=1.0).recall() is None

    assert 0.9 < time.monotonic() - started < 45
    assert _count(source) == 0


def test_a_check_that_raises_ends_the_wait_for_an_orphan(
    sessions: Sessions, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    orphan = sessions()
    _once(orphan, store).begin()
    orphan.pgconn.send_query(b"SELECT pg_sleep(60)")
    stop = _Stop()

    later = _once(sessions(check=stop.check), store)
    with meanwhile(stop.arm, lambda: WAITS in caplog.text), pytest.raises(StopNowError):
        later.recall()

    assert time.monotonic() - stop.armed_at[0] < 45
    orphan.abort()


class StopNowError(Exception):
    """What a check raises in these tests."""


class _Stop:
    """A check that raises as soon as it is armed."""

    def __init__(self) -> None:
        self.armed_at: list[float] = []

    def arm(self) -> None:
        self.armed_at.append(time.monotonic())

    def check(self) -> None:
        if self.armed_at:
            raise StopNowError


# -- outcomes that the server doesn't know


def _tampered(store: MemoryStore, **facts: Any) -> None:
    state = store.get(KEY)
    state["ticket"].update(facts)
    store.set(KEY, state)


@pytest.mark.parametrize(
    "fact",
    [
        {"system_identifier": "1"},
        {"database": "1"},
        {"timeline": "000000FF"},
        {"crash_epoch": "1.0", "flushed": False},
        {"xid": str(2**40)},
        {"xid": str(2**40 + 1000)},
    ],
    ids=["system_identifier", "database", "timeline", "crash_epoch", "too_old", "not_reached"],
)
def test_an_outcome_that_the_server_cannot_know_is_never_guessed(
    sessions: Sessions, source: Database, store: MemoryStore, fact: dict[str, Any]
) -> None:
    _committed_in_silence(sessions(), store)
    _tampered(store, **fact)

    for _ in range(2):  # a retry doesn't run it either
        with pytest.raises(OutcomeUnknownError) as caught:
            _once(sessions(), store).recall()
        assert "'source'" in str(caught.value)
        assert "mark the task as success" in str(caught.value)
    assert _count(source) == 1
    assert _once(sessions(), store, life=1).recall() is None  # cleared by a user who has checked the effect


def test_another_database_is_another_server(
    sessions: Sessions, source: Database, warehouse: Database, store: MemoryStore
) -> None:
    _committed_in_silence(sessions(), store)

    with connect(warehouse.target) as other, pytest.raises(OutcomeUnknownError, match="another server"):
        _once(other, store).recall()


# -- clearing


def test_a_cleared_success_is_run_anew(sessions: Sessions, store: MemoryStore) -> None:
    first = _once(sessions(), store, life=0)
    first.begin()
    first.finish({"tags": first.run(INSERT)})

    assert _once(sessions(), store, life=0).recall() == {"tags": ["INSERT 0 1"]}
    assert _once(sessions(), store, life=1).recall() is None


def test_clearing_what_was_left_unfinished_still_looks_into_it(
    sessions: Sessions, store: MemoryStore
) -> None:
    _committed_in_silence(sessions(), store, life=0)

    assert _once(sessions(), store, life=1).recall() == {}


def test_fewer_retries_in_the_dag_are_no_clearing(sessions: Sessions, store: MemoryStore) -> None:
    first = _once(sessions(), store, life=3)
    first.begin()
    first.finish({"tags": first.run(INSERT)})

    assert _once(sessions(), store, life=2).recall() == {"tags": ["INSERT 0 1"]}


# -- the fence


def test_a_stale_try_does_nothing(sessions: Sessions, source: Database) -> None:
    store = MemoryStore(refuse_at=1)
    worker = sessions()
    with pytest.raises(StaleTryError):
        _once(worker, store).begin()

    worker.abort()
    assert _count(source) == 0
    assert store.history == []


def test_a_try_that_became_stale_does_not_commit(sessions: Sessions, source: Database) -> None:
    store = MemoryStore(refuse_at=2)
    worker = sessions()
    once = _once(worker, store)
    once.begin()
    worker.execute(INSERT.encode())

    with pytest.raises(StaleTryError):
        once.commit({})

    worker.abort()
    assert _count(source) == 0


# -- the one message


@pytest.mark.parametrize(
    "script",
    [
        f"{INSERT} -- done",
        f"{INSERT}; -- done",
        f"{INSERT};;",
        f"/* a */ {INSERT} /* b */",
        "SELECT 'x;COMMIT'; INSERT INTO t VALUES (1)",
        "DO $$BEGIN INSERT INTO t VALUES (1); END$$",
        f"SAVEPOINT s; {INSERT}; {INSERT}; ROLLBACK TO s; RELEASE s; {INSERT}",
    ],
)
def test_a_script_is_committed_as_it_stands(
    sessions: Sessions, source: Database, store: MemoryStore, script: str
) -> None:
    once = _once(sessions(), store)
    once.begin()
    once.run(script)

    assert _count(source) == 1


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("", "no statement"),
        ("-- nothing", "no statement"),
        (f"{INSERT}; COMMIT", "COMMIT"),
        (f"BEGIN; {INSERT}", "BEGIN"),
        (f"{INSERT}; ROLLBACK", "ROLLBACK"),
        (f"{INSERT};\nEND", r"END \(line 2\)"),
        (f"{INSERT}; PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
        (f"{INSERT}; COPY t FROM STDIN", "COPY"),
        ("VACUUM t", "VACUUM"),
        ("CREATE INDEX CONCURRENTLY i ON t (a)", "CONCURRENTLY"),
        (f"{INSERT}\0", "NUL"),
    ],
)
def test_a_script_that_would_break_the_promise_is_refused_before_sending(
    sessions: Sessions, source: Database, store: MemoryStore, script: str, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        demand_script(script, "source")
    once = _once(sessions(), store)
    once.begin()
    with pytest.raises(UsageError, match=why):
        once.run(script)
    once.connection.abort()
    assert _count(source) == 0


@pytest.mark.parametrize("as_one_message", [False, True])
def test_who_commits_is_handed_in(
    sessions: Sessions, source: Database, store: MemoryStore, as_one_message: bool
) -> None:
    once = _once(sessions(), store, ending=Ending("ROLLBACK", "ROLLBACK"))
    once.begin()
    if as_one_message:
        once.run(INSERT)
    else:
        once.execute(INSERT)
        once.commit({})

    assert _count(source) == 0
    assert _once(sessions(), store).recall() is None


def test_standard_strings_hold_whatever_the_settings_say(
    sessions: Sessions, source: Database, store: MemoryStore
) -> None:
    once = _once(sessions(), store)
    once.begin({"standard_conforming_strings": "off"})

    once.run(rf"{INSERT}; SELECT '\'' ; COMMIT; TRUNCATE t --'")

    assert _count(source) == 1


def test_a_deferred_constraint_fails_the_message_and_nothing_stays(
    sessions: Sessions, source: Database, store: MemoryStore
) -> None:
    source.execute("CREATE TABLE p (a int PRIMARY KEY)")
    source.execute("ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES p DEFERRABLE INITIALLY DEFERRED")
    once = _once(sessions(), store)
    once.begin()

    with pytest.raises(RemoteError) as caught:
        once.run(INSERT)

    assert caught.value.sqlstate == "23503"
    assert _count(source) == 0
    assert _once(sessions(), store).recall() is None


def test_a_connection_lost_midway_is_transient(
    sessions: Sessions, source: Database, store: MemoryStore
) -> None:
    worker = sessions()
    once = _once(worker, store)
    once.begin()
    source.admin("SELECT pg_terminate_backend(%s, 5000)", worker.info.backend_pid)

    with pytest.raises(TransientError):
        once.run(INSERT)

    assert _once(sessions(), store).recall() is None


MEMORY = """
import json, sys
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.once.transaction import Once
from tests.own_process import peak

class Store:
    get = set = lambda self, key, value=None: value

once = Once(connect(Target("source", json.loads(sys.argv[1]))), "source", Store())
once.begin()
once.run(f"SELECT repeat('x', 1000) FROM generate_series(1, {sys.argv[2]})")
print(peak())
"""


def test_a_big_select_is_thrown_away_in_constant_memory(source: Database) -> None:
    def peak_of(rows: int) -> int:
        return int(last_line(MEMORY, json.dumps(source.params), str(rows)))

    assert peak_of(100_000) - peak_of(1_000) < 20_000_000  # of 100 MB


def _round_trips(target_port: int, work: Callable[[int], None]) -> int:
    """Return how often the server was asked: changes of direction on the wire, after the login."""
    asked: list[str] = []
    with _proxy(target_port, asked) as port:
        work(port)
    flat = "".join(asked)
    return sum(1 for before, now in zip(" " + flat, flat, strict=False) if now == "c" != before)


@contextmanager
def _proxy(target_port: int, seen: list[str]) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(reader: socket.socket, writer: socket.socket, mark: str) -> None:
        try:
            while data := reader.recv(65536):
                seen.append(mark)
                writer.sendall(data)
            writer.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def serve() -> None:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", target_port))
        with client, server:
            ways = [
                threading.Thread(target=pump, args=(client, server, "c")),
                threading.Thread(target=pump, args=(server, client, "s")),
            ]
            for way in ways:
                way.start()
            for way in ways:
                way.join()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    thread.join(10)
    listener.close()


def test_exactly_once_costs_at_most_three_round_trips_more_on_its_own_connection(
    sessions: Sessions, source: Database, store: MemoryStore
) -> None:
    def plain(port: int) -> None:
        with psycopg.connect(source.conninfo, port=port) as connection:  # BEGIN, INSERT, COMMIT
            connection.execute(INSERT.encode())

    def ours(port: int) -> None:
        params = {**source.params, "port": port}
        # The session beside, which servers before 17 need, isn't counted.
        target = replace(source.target, params=params, direct_port=source.server.port)
        with connect(target) as connection:
            once = _once(connection, store)
            assert once.recall() is None
            once.begin()
            once.run(INSERT)

    port = source.server.port
    assert _round_trips(port, ours) - _round_trips(port, plain) <= 3
    assert _count(source) == 2


def test_a_stop_leaves_nothing_running(sessions: Sessions, source: Database, store: MemoryStore) -> None:
    stop = _Stop()
    worker = sessions(check=stop.check)
    once = _once(worker, store)
    once.begin()
    with meanwhile(stop.arm, lambda: sleeping(source)), pytest.raises(StopNowError):
        once.run(f"{INSERT}; SELECT pg_sleep(60)")
    worker.abort()

    assert source.wait_until_left() == []
    assert _count(source) == 0
