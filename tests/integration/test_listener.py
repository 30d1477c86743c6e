"""Several subjects over one session: each hears of its own channel, and one that fails fails alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.errors import DblinkError, RemoteError, TransientError
from airflow_dblink.core.listen.listener import Listener, Session
from airflow_dblink.core.server.target import Target
from tests.databases import Database
from tests.integration.jobs.client import until

NAME = "the listener"


class Payloads:
    """Waits for the payloads of a channel, and looks at them with a query; the simplest subject there is."""

    poll_s = 600.0

    def __init__(self, listener: Listener, channel: str, query: bytes = b"SELECT 1") -> None:
        self.channel = channel
        self.query = query
        self.heard: list[str] = []
        self.looks = 0
        self.wants_a_look = False
        self.future: asyncio.Future[list[str]] | None = None
        self.listener = listener
        listener.subjects.append(self)

    def __str__(self) -> str:
        return self.channel

    async def wait(self) -> list[str]:
        """Wait until something was heard, or it fails."""
        self.future = asyncio.get_running_loop().create_future()
        self.listener.wake()
        try:
            return await self.future
        finally:
            self.future = None
            self.listener.wake()

    @property
    def is_waited_for(self) -> bool:
        return self.future is not None and not self.future.done()

    def told(self, payload: str) -> None:
        self.heard.append(payload)
        self.wants_a_look = True
        self.listener.wake()

    def look_at_all(self, *, is_new: bool) -> None:
        self.wants_a_look = True

    async def look(self, session: Session) -> None:
        self.wants_a_look = False
        try:
            await session.connection.execute(self.query)
        except psycopg.DataError as error:
            raise RemoteError(str(error), session.target.conn_id) from None
        except psycopg.OperationalError as error:
            raise TransientError(str(error), session.target.conn_id) from None
        self.looks += 1
        if self.heard and self.future is not None and not self.future.done():
            self.future.set_result(self.heard)

    def fail(self, error: Exception) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)

    def standby(self, conn_id: str) -> DblinkError:
        return DblinkError("a standby", conn_id)


def _listener(database: Database) -> Listener:
    async def get_target() -> Target:
        return database.target

    return Listener(get_target, NAME)


def _sessions(database: Database) -> list[Any]:
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    return database.admin(query, NAME)


async def _until(what: Callable[[], object]) -> None:
    await asyncio.to_thread(until, what)


def _run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def _notify(database: Database, channel: str, payload: str) -> None:
    database.execute("SELECT pg_notify(%s, %s)", channel, payload)


def test_subjects_share_a_session_and_hear_of_their_own_channel(source: Database) -> None:
    async def test() -> None:
        listener = _listener(source)
        first, second = Payloads(listener, "one"), Payloads(listener, 'two "quoted"')
        waiting = [asyncio.create_task(subject.wait()) for subject in (first, second)]
        await _until(lambda: first.looks and second.looks)
        assert len(_sessions(source)) == 1
        await asyncio.to_thread(_notify, source, 'two "quoted"', "for the second")
        assert await waiting[1] == ["for the second"]
        assert (first.heard, first.looks) == ([], 1)
        await asyncio.to_thread(_notify, source, "one", "for the first")
        assert await waiting[0] == ["for the first"]
        await _until(lambda: not _sessions(source))

    _run(test)


def test_one_that_comes_later_is_looked_at_at_once(source: Database) -> None:
    async def test() -> None:
        listener = _listener(source)
        first, second = Payloads(listener, "one"), Payloads(listener, "two")
        waiting = [asyncio.create_task(first.wait())]
        await _until(lambda: first.looks)
        waiting.append(asyncio.create_task(second.wait()))
        await _until(lambda: second.looks)
        for channel in ("one", "two"):
            await asyncio.to_thread(_notify, source, channel, channel)
        assert await asyncio.gather(*waiting) == [["one"], ["two"]]

    _run(test)


def test_one_that_fails_leaves_the_others_waiting(source: Database) -> None:
    async def test() -> None:
        listener = _listener(source)
        fails, stays = Payloads(listener, "one", b"SELECT 1/0"), Payloads(listener, "two")
        staying = asyncio.create_task(stays.wait())
        with pytest.raises(RemoteError, match="division by zero"):
            await fails.wait()
        await _until(lambda: stays.looks)
        await asyncio.to_thread(_notify, source, "two", "still here")
        assert await staying == ["still here"]

    _run(test)


def test_after_a_lost_session_all_are_looked_at_again(source: Database) -> None:
    async def test() -> None:
        listener = _listener(source)
        first, second = Payloads(listener, "one"), Payloads(listener, "two")
        waiting = [asyncio.create_task(subject.wait()) for subject in (first, second)]
        await _until(lambda: first.looks and second.looks)
        ((pid,),) = _sessions(source)
        await asyncio.to_thread(source.admin, "SELECT pg_terminate_backend(%s, 5000)", pid)
        await _until(lambda: first.looks == second.looks == 2)
        for channel in ("one", "two"):
            await asyncio.to_thread(_notify, source, channel, channel)
        assert await asyncio.gather(*waiting) == [["one"], ["two"]]

    _run(test)


def test_one_that_loses_the_session_each_time_lets_the_others_look(source: Database) -> None:
    async def test() -> None:
        listener = _listener(source)
        loses = Payloads(listener, "one", b"SELECT pg_terminate_backend(pg_backend_pid())")
        stays = Payloads(listener, "two")
        waiting = [asyncio.create_task(subject.wait()) for subject in (loses, stays)]
        await _until(lambda: stays.looks)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    _run(test)
