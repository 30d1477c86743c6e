"""A server, or a full pooler, that lets us in and then never answers holds nobody."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from airflow_dblink.core.errors import StoppedError, TransientError
from airflow_dblink.core.jobs.watch import Watcher, acancel
from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.listen.listener import Listener
from airflow_dblink.core.server.login import aconnect, connect
from airflow_dblink.core.server.target import Target
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database
from tests.hostile_server import HostileServer, hostile_server
from tests.pooler import pooler

T = TypeVar("T")
SETTINGS = {"work_mem": "1MB"}


@pytest.fixture
def silent() -> Iterator[HostileServer]:
    with hostile_server() as server:
        yield server


@pytest.fixture
def full(source: Database) -> Iterator[Target]:
    """Give the target of a pooler without a free session: it logs clients in by itself."""
    with pooler(source.server, "session", pool_size=1) as port:
        target = replace(source.target, params={**source.params, "port": port}, session_settings=SETTINGS)
        with psycopg.connect(source.conninfo, port=port, autocommit=True) as holder:
            holder.execute("SELECT 1")
            yield target


def _ends(call: Callable[[], T], within_s: float = 60.0) -> T:
    """Return what *call* returns or raises; one that hangs fails, and holds no other test."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:  # noqa: BLE001 - whatever it is, the test wants it
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(within_s)


def _impatient(target: Target, **settings: str) -> Target:
    return replace(
        target, params={**target.params, "connect_timeout": 5}, session_settings=settings or SETTINGS
    )


def test_connect_timeout_holds_for_the_session_settings_too(silent: HostileServer) -> None:
    with pytest.raises(TransientError, match="did not answer within 5 s") as caught:
        _ends(lambda: connect(_impatient(silent.target())))

    assert caught.value.sqlstate == "08001"
    assert "session_settings" in (caught.value.context or "")
    assert any(b"work_mem" in query for query in silent.queries)
    silent.wait_until(lambda: silent.at_once == 0)


def test_it_does_for_a_full_pooler(full: Target) -> None:
    with pytest.raises(TransientError, match="did not answer within 5 s"):
        _ends(lambda: connect(_impatient(full)))


def test_it_does_in_an_event_loop(silent: HostileServer, full: Target) -> None:
    async def connecting() -> None:
        for target in (silent.target(), full):
            with pytest.raises(TransientError, match="did not answer within 5 s"):
                await aconnect(_impatient(target))

    _ends(lambda: asyncio.run(connecting()))
    silent.wait_until(lambda: silent.at_once == 0)


def test_who_is_told_to_stop_stops_while_the_settings_are_awaited(silent: HostileServer) -> None:
    stop = threading.Event()
    silent_target = replace(silent.target(), session_settings=SETTINGS)

    def check() -> None:
        if silent.queries:
            stop.set()
            raise StoppedError("stop")

    with Links(check=check) as links, pytest.raises(StoppedError):
        _ends(lambda: links.connect("x", silent_target))
    assert stop.is_set()
    silent.wait_until(lambda: silent.at_once == 0)


def test_who_is_told_to_stop_stops_while_the_login_is_awaited() -> None:
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise StoppedError("stop")

    with socket.create_server(("127.0.0.1", 0)) as nobody_accepts, pytest.raises(StoppedError):
        _ends(lambda: connect(HostileServer(nobody_accepts.getsockname()[1]).target(), check=check))


def test_a_cancelled_connect_in_an_event_loop_ends(silent: HostileServer) -> None:
    target = replace(silent.target(), session_settings=SETTINGS)

    async def cancelled() -> None:
        task = asyncio.create_task(aconnect(target))
        await asyncio.to_thread(silent.wait_until, lambda: bool(silent.queries))
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    _ends(lambda: asyncio.run(cancelled()))
    silent.wait_until(lambda: silent.at_once == 0)


def test_a_watcher_leaves_a_server_that_is_silent_and_comes_back(silent: HostileServer) -> None:
    async def target() -> Target:
        return silent.target()

    async def watch() -> None:
        watcher = Watcher(Listener(target, "the watcher", answer_s=0.5), "airflow_dblink")
        waiting = asyncio.create_task(watcher.wait(uuid4(), 60))
        await asyncio.to_thread(silent.wait_until, lambda: len(silent.queries) >= 2)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting

    _ends(lambda: asyncio.run(watch()))
    silent.wait_until(lambda: silent.at_once == 0)


def test_cancelling_a_job_of_a_silent_server_ends(silent: HostileServer) -> None:
    with pytest.raises(TransientError, match="did not answer within 1 s"):
        _ends(lambda: asyncio.run(acancel(silent.target(), "x", "airflow_dblink", uuid4(), answer_s=1.0)))
    silent.wait_until(lambda: silent.at_once == 0)


def _add_silent(silent: HostileServer, add_connection: AddConnection) -> str:
    return add_connection(
        "silent",
        conn_type="dblink",
        host="127.0.0.1",
        port=silent.port,
        login="u",
        password="p",
        schema="d",
        extra={"sslmode": "disable", "connect_timeout": 5, "session_settings": SETTINGS},
    )


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_an_engine_gives_up(silent: HostileServer, add_connection: AddConnection, driver: str) -> None:
    hook = DblinkHook(_add_silent(silent, add_connection), sqlalchemy_scheme=f"postgresql+{driver}")

    with pytest.raises(OperationalError, match=r"'silent': the server let us in, .* within 5 s"):
        _ends(hook.get_sqlalchemy_engine().connect)

    silent.wait_until(lambda: silent.at_once == 0)


def test_the_connection_test_ends(silent: HostileServer, add_connection: AddConnection) -> None:
    ok, message = _ends(DblinkHook(_add_silent(silent, add_connection)).test_connection)

    assert not ok
    assert "did not answer within 5 s" in message
