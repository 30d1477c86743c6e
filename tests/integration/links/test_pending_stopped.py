"""The asynchronous query of a link, stopped: by a check, a cancel, an abort, a time-out."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from airflow_dblink.core.errors import RemoteError, TransientError
from airflow_dblink.core.link.link import Link
from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.server.login import connect
from tests.databases import Database
from tests.integration.sync.moments import GATE, closed_gate
from tests.oracle import state, wait_until


class StopNowError(Exception):
    """What a check raises in these tests."""


def test_a_stop_while_a_result_is_awaited_and_abort_ends_the_servers_statement(source: Database) -> None:
    wanted = [True]

    def check() -> None:
        if not wanted[0]:
            raise StopNowError

    link = Link("x", source.target, connect(source.target, check=check))
    link.pending.send("SELECT pg_sleep(120)")
    wanted[0] = False

    with pytest.raises(StopNowError):
        link.pending.result()

    wait_until(lambda: state(source) == "active")
    link.abort()
    assert source.wait_until_left() == []


def test_a_stop_keeps_the_pending_result(source: Database) -> None:
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise StopNowError

    link = Link("x", source.target, connect(source.target, check=check))
    with closed_gate(source):
        link.pending.send(f"SELECT 42 FROM {GATE}")  # noqa: S608 - ours
        stop.set()
        with pytest.raises(StopNowError):
            link.pending.result()
        stop.clear()

    assert link.pending.result() == [(42,)]
    assert link.pending.result() == []
    link.disconnect()


def test_abort_of_a_stream_ends_the_servers_statement(link: Link, links: Links, source: Database) -> None:
    link.pending.send("SELECT g, repeat('x', 1000) FROM generate_series(1, 10000000) g")
    next(link.pending.batches(5))
    links.abort_all()
    assert source.wait_until_left() == []


@contextmanager
def unread(link: Link) -> Iterator[None]:
    """Stop the backend of *link* and let it go on 0.3 s after the block began, as a slow server."""
    pid = link.connection.info.backend_pid
    os.kill(pid, signal.SIGSTOP)
    goes_on = threading.Timer(0.3, os.kill, (pid, signal.SIGCONT))
    goes_on.start()
    try:
        yield
    finally:
        goes_on.join()


def test_abort_of_what_the_server_has_not_read_yet_ends_it(link: Link, source: Database) -> None:
    with unread(link):
        link.pending.send("SELECT pg_sleep(120)")
        link.abort()
    assert source.wait_until_left() == []


def test_a_copy_that_the_server_has_not_read_yet_ends_by_abort(source: Database) -> None:
    connection = connect(source.target)
    with unread(Link("x", source.target, connection)):
        connection.pgconn.send_query(b"COPY (SELECT 1, pg_sleep(120)) TO STDOUT")
        connection.abort()
    assert source.wait_until_left() == []


def test_a_stop_before_the_server_has_read_the_statement_ends_it_and_keeps_the_link(source: Database) -> None:
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            stop.clear()
            raise StopNowError

    link = Link("x", source.target, connect(source.target, check=check))
    with unread(link):
        stop.set()
        with pytest.raises(StopNowError):
            link.query("SELECT pg_sleep(120)")
    assert link.query("SELECT 1") == [(1,)]
    link.disconnect()


def test_abort_with_finished_but_unread_results_closes(link: Link, links: Links, source: Database) -> None:
    link.pending.send("SELECT 1")
    wait_until(lambda: link.pending.is_busy() == 0)
    links.abort_all()
    assert source.wait_until_left() == []


def test_a_cancelled_stream_tells_it_and_leaves_the_link_usable(link: Link) -> None:
    link.pending.send("SELECT g, repeat('x', 1000) FROM generate_series(1, 10000000) g")
    batches = link.pending.batches(100)
    next(batches)
    assert link.pending.cancel() == "OK"
    with pytest.raises(RemoteError) as caught:
        list(batches)
    assert caught.value.sqlstate == "57014"
    assert not isinstance(caught.value, TransientError)
    assert link.pending.result() == []
    assert link.query("SELECT 1") == [(1,)]


def test_cancel_from_another_thread_ends_the_wait(link: Link, source: Database) -> None:
    link.pending.send("SELECT pg_sleep(120)")
    wait_until(lambda: state(source) == "active")
    said: list[str] = []
    canceller = threading.Thread(target=lambda: said.append(link.pending.cancel()))
    canceller.start()
    with pytest.raises(RemoteError, match="canceling statement due to user request"):
        link.pending.result()
    canceller.join()
    assert said == ["OK"]
    assert link.pending.result() == []


def test_a_statement_timeout_is_told_when_its_result_is_read(link: Link, source: Database) -> None:
    link.exec("SET statement_timeout = '1s'")
    link.pending.send("SELECT pg_sleep(60)")
    wait_until(lambda: [told[2:] for told in source.sessions()] == [("idle", "SELECT pg_sleep(60)")])
    with pytest.raises(RemoteError, match="statement timeout"):
        link.pending.result()
    assert link.pending.result() == []
    assert link.query("SELECT 1") == [(1,)]
