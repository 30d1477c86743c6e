"""Waiting in an event loop: many jobs over one session, through all events of a server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest

from airflow_dblink.core.errors import CredentialError, RemoteError, UsageError
from airflow_dblink.core.jobs import watch
from airflow_dblink.core.jobs.job import Job
from airflow_dblink.core.jobs.watch import Watcher, acall, acancel
from airflow_dblink.core.listen.listener import Listener
from airflow_dblink.core.server.target import Target
from tests.databases import Database
from tests.integration.jobs.client import (
    EFFECT,
    GATE,
    SLEEP,
    Client,
    effects,
    held,
    lookers,
    start,
    until,
)
from tests.loops import run_alone
from tests.odd import always

T = TypeVar("T")
NAME = "the watcher"


def _listener(target: Target) -> Listener:
    async def get_target() -> Target:
        return target

    return Listener(get_target, NAME)


def _watcher(target: Target) -> Watcher:
    return Watcher(_listener(target), target.job_schema)


def _watched(act: Callable[[], Awaitable[T]], timeout_s: float = 60.0) -> T:
    return run_alone(act, timeout_s)


def _states(jobs: Iterable[Job | None]) -> list[str | None]:
    return [job.state if job else None for job in jobs]


def _watchers_sessions(database: Database) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    return int(database.admin(query, NAME)[0][0])


async def _until(what: Callable[[], object], timeout_s: float = 20.0) -> None:
    await asyncio.to_thread(until, what, timeout_s)


# -- hearing of ends


def test_an_end_is_heard_of_at_once_though_polls_are_rare(client: Client, source: Database) -> None:
    async def watch() -> Job | None:
        with held(source):
            job_id = client.send(GATE)
            waiting = asyncio.create_task(_watcher(client.target).wait(job_id, 60))
            await _until(lambda: lookers(source))
        return await waiting

    assert _states([_watched(watch, 50)]) == ["succeeded"]  # a look alone would take a minute


@pytest.mark.parametrize(
    ("sql", "state"), [(EFFECT, "succeeded"), ("SELECT 1/0", "failed")], ids=["succeeded", "failed"]
)
def test_what_has_ended_before_is_seen_at_the_first_look(client: Client, sql: str, state: str) -> None:
    job_id = client.run(sql).id

    async def watch() -> Job | None:
        return await _watcher(client.target).wait(job_id, 60)

    assert _states([_watched(watch, 20)]) == [state]


def test_who_comes_while_a_look_fails_asks_again(
    client: Client, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = client.run(EFFECT).id
    source.execute(f"ALTER SCHEMA {client.schema} RENAME TO away")
    later: list[asyncio.Task[Job | None]] = []
    watcher, adrive = None, watch.adrive

    async def interrupted(*args: Any, **options: Any) -> Any:
        """Look, and if that fails let another one come before the error is told."""
        try:
            return await adrive(*args, **options)
        except RemoteError:
            await asyncio.to_thread(source.execute, f"ALTER SCHEMA away RENAME TO {client.schema}")
            assert watcher is not None
            later.append(asyncio.create_task(watcher.wait(job_id, 60)))
            await asyncio.sleep(0)
            raise

    async def wait() -> Job | None:
        nonlocal watcher
        watcher = _watcher(client.target)
        with pytest.raises(RemoteError, match="does not exist"):
            await watcher.wait(uuid4(), 60)
        return await later[0]

    monkeypatch.setattr(watch, "adrive", interrupted)
    assert _states([_watched(wait, 30)]) == ["succeeded"]


def test_several_wait_for_one_job(client: Client, source: Database) -> None:
    async def watch() -> list[Job | None]:
        watcher = _watcher(client.target)
        with held(source):
            job_id = client.send(GATE)
            waiting = asyncio.gather(*(watcher.wait(job_id, 60) for _ in range(5)))
            await _until(lambda: lookers(source))
        return await waiting

    assert _states(_watched(watch, 50)) == 5 * ["succeeded"]


def test_a_cancellation_and_a_lost_session_are_heard_of(client: Client, source: Database) -> None:
    cancelled, lost = client.send(SLEEP), client.send(SLEEP)

    async def watch() -> Iterable[Job | None]:
        watcher = _watcher(client.target)
        waiting = asyncio.gather(watcher.wait(cancelled, 60), watcher.wait(lost, 0.3))
        await _until(lambda: _watchers_sessions(source))
        await acancel(client.target, "cancels", client.schema, cancelled)
        source.admin("SELECT pg_terminate_backend(%s, 5000)", client.jobs.get(lost).pid)
        return await waiting

    assert _states(_watched(watch)) == ["cancelled", "lost"]


def test_two_hundred_jobs_wait_over_one_session(client: Client, source: Database) -> None:
    # Not so old that the watcher would call them, however long this takes.
    job_ids = [client.insert(EFFECT, sent_s_ago=-60) for _ in range(200)]

    async def watch() -> tuple[int, list[Job | None]]:
        def shared() -> Watcher:
            return Watcher.of(Listener.shared("test", lambda: _listener(client.target)), client.schema)

        waiting = [asyncio.create_task(shared().wait(job_id, 60)) for job_id in job_ids]
        await _until(lambda: _watchers_sessions(source))
        await asyncio.sleep(1)
        sessions = _watchers_sessions(source)
        await asyncio.to_thread(_call_all, client, job_ids)
        return sessions, await asyncio.gather(*waiting)

    sessions, ended = _watched(watch)

    assert sessions == 1
    assert _states(ended) == 200 * ["succeeded"]
    assert effects(source) == 200
    until(lambda: _watchers_sessions(source) == 0)


def _call_all(client: Client, job_ids: list[UUID]) -> None:
    connection = client.open()
    for job_id in job_ids:
        connection.execute(client.call_text(job_id).encode())


def test_through_a_pooler_in_transaction_mode_it_does_not_listen_but_asks(
    client: Client, source: Database
) -> None:
    target = replace(source.target, pooling_mode="transaction")
    job_ids: list[UUID] = []

    def said() -> list[str]:
        return source.server.log.read_text(errors="replace").split(f"@{source.name}/{NAME} ")[1:]

    def asked() -> list[int]:
        """For how many jobs each message asks that asks for any."""
        numbers = (sum(job_id.hex in message for job_id in job_ids) for message in said())
        return [number for number in numbers if number]

    async def watch() -> list[Job | None]:
        watcher = _watcher(target)
        with held(source):
            job_ids.extend(client.send(GATE) for _ in range(3))
            always(source, log_statement="'all'")
            began = time.monotonic()
            waiting = asyncio.gather(*(watcher.wait(job_id, 0.2) for job_id in job_ids))
            await _until(lambda: len(asked()) > 3)
            assert time.monotonic() - began > 0.5  # it has paused in between
            assert asked()[:3] == [3, 3, 3]  # one message asks for all
        return await waiting

    assert _states(_watched(watch)) == 3 * ["succeeded"]
    assert not any("LISTEN" in message for message in said())


def test_notifications_of_others_change_nothing(client: Client, source: Database) -> None:
    async def watch() -> Job | None:
        with held(source):
            job_id = client.send(GATE)
            waiting = asyncio.create_task(_watcher(client.target).wait(job_id, 60))
            await _until(lambda: lookers(source))
            for payload in ("", "no id", str(uuid4()), str(job_id), "ü" * 100):
                source.admin("SELECT pg_notify('airflow_dblink_job', %s)", payload)
        return await waiting

    assert _states([_watched(watch, 50)]) == ["succeeded"]


# -- waiters that come and go


def test_the_session_goes_with_the_last_who_waits_and_comes_again(client: Client, source: Database) -> None:
    async def watch() -> None:
        watcher = _watcher(client.target)
        for _ in range(2):
            first, second = (asyncio.create_task(watcher.wait(job_id, 60)) for job_id in (job_a, job_b))
            await _until(lambda: _watchers_sessions(source) == 1)
            first.cancel()
            await asyncio.sleep(0.3)
            assert _watchers_sessions(source) == 1
            assert not second.done()
            second.cancel()
            await _until(lambda: _watchers_sessions(source) == 0)

    job_a, job_b = client.send(SLEEP), client.send(SLEEP)
    _watched(watch)

    assert [client.jobs.get(job_id).state for job_id in (job_a, job_b)] == 2 * ["running"]
    for job_id in (job_a, job_b):
        client.jobs.cancel(job_id)


def test_one_who_leaves_leaves_the_others_waiting(client: Client, source: Database) -> None:
    async def watch() -> Job | None:
        watcher = _watcher(client.target)
        with held(source):
            job_id = client.send(GATE)
            leaves, stays = (asyncio.create_task(watcher.wait(job_id, 60)) for _ in range(2))
            await _until(lambda: lookers(source))
            leaves.cancel()
            await asyncio.wait([leaves])
        return await stays

    assert _states([_watched(watch, 50)]) == ["succeeded"]


def test_a_triggerer_that_stops_during_a_call_does_not_cancel_the_job(
    client: Client, source: Database
) -> None:
    job_id = client.insert(f"SELECT pg_sleep(1); {EFFECT}")
    holder = client.open()
    holder.execute("BEGIN; SELECT FROM airflow_dblink.job FOR UPDATE")
    blocked = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '/* CALL run(%%' AND wait_event_type = 'Lock'"

    async def stop() -> None:
        calling = asyncio.create_task(acall(client.target, NAME, client.schema, client.jobs.get(job_id)))
        await _until(lambda: source.admin(blocked))
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

    _watched(stop)
    holder.execute("ROLLBACK")

    assert client.wait(job_id).state == "succeeded"
    assert effects(source) == 1


# -- what no waiting mends


def test_a_job_that_is_not_there(client: Client) -> None:
    client.jobs.ready()
    job_id = client.send("SELECT pg_sleep(0.5)")

    async def watch() -> Iterable[Job | None]:
        watcher = _watcher(client.target)
        return await asyncio.gather(watcher.wait(uuid4(), 60), watcher.wait(job_id, 60))

    assert _states(_watched(watch, 20)) == [None, "succeeded"]


def _all_fail(target: Target, kind: type[Exception], match: str) -> None:
    async def watch() -> list[Job | BaseException | None]:
        watcher = _watcher(target)
        return await asyncio.gather(*(watcher.wait(uuid4(), 60) for _ in range(3)), return_exceptions=True)

    for error in _watched(watch, 20):
        assert isinstance(error, kind)
        assert match in str(error)


def test_a_missing_table_is_an_error_for_all(client: Client) -> None:
    _all_fail(client.target, RemoteError, "does not exist [SQLSTATE 42P01]")


def test_missing_rights_are_an_error_for_all(client: Client, new_role: Callable[[], Target]) -> None:
    client.jobs.ready()
    _all_fail(new_role(), RemoteError, "permission denied for schema airflow_dblink [SQLSTATE 42501]")


def test_a_connection_without_a_credential_is_an_error_at_once(client: Client) -> None:
    params = {name: value for name, value in client.target.params.items() if name != "password"}
    _all_fail(replace(client.target, params=params), CredentialError, "password or GSSAPI")


def test_a_watcher_works_again_after_an_error(client: Client) -> None:
    async def watch() -> Job | None:
        watcher = _watcher(client.target)
        with pytest.raises(RemoteError):
            await watcher.wait(uuid4(), 60)
        job_id = await asyncio.to_thread(client.send, "SELECT pg_sleep(0.3)")
        return await watcher.wait(job_id, 60)

    assert _states([_watched(watch)]) == ["succeeded"]


def test_a_wrong_password_is_tried_again_and_not_in_haste(client: Client, source: Database) -> None:
    job_id = client.run(EFFECT).id
    asked: list[float] = []

    async def get_target() -> Target:
        asked.append(time.monotonic())
        if len(asked) < 4:
            return replace(source.target, params={**source.params, "password": "wrong"})
        return source.target

    async def watch() -> Job | None:
        return await Watcher(Listener(get_target, NAME), client.schema).wait(job_id, 60)

    assert _states([_watched(watch, 30)]) == ["succeeded"]
    assert len(asked) == 4
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert all(pause > least for pause, least in zip(pauses, (0.24, 0.49, 0.99), strict=True))


# -- a server that goes


@pytest.fixture
def fragile_client(fragile: Database) -> Iterator[Client]:
    client = Client(fragile.target)
    client.jobs.ready()
    yield client
    client.close()


def _down_for_a_while(database: Database) -> None:
    database.server.stop()
    time.sleep(2)
    database.server.start()


def _crashed(database: Database) -> None:
    database.server.crash()
    database.server.start()


GOES: list[Callable[[Database], None]] = [
    lambda database: database.server.restart(),
    _crashed,
    _down_for_a_while,
]


@pytest.mark.parametrize("go", GOES, ids=["restart", "crash", "down"])
def test_a_server_that_goes_while_jobs_are_waited_for(
    fragile_client: Client, fragile: Database, go: Callable[[Database], None]
) -> None:
    running = fragile_client.send(SLEEP)
    waiting = fragile_client.insert("SELECT pg_sleep(0.5)")

    async def watch() -> Iterable[Job | None]:
        watcher = _watcher(fragile.target)
        both = asyncio.gather(watcher.wait(running, 60), watcher.wait(waiting, 60))
        await _until(lambda: _watchers_sessions(fragile))
        await asyncio.to_thread(go, fragile)
        caller = fragile_client.open()
        start(caller, fragile_client.call_text(waiting))
        return await both

    assert _states(_watched(watch)) == ["lost", "succeeded"]


@pytest.mark.parametrize("go", GOES, ids=["restart", "crash", "down"])
def test_a_worker_waits_through_it_as_well(
    fragile_client: Client, fragile: Database, go: Callable[[Database], None]
) -> None:
    running = fragile_client.send(SLEEP)
    ended: list[Job] = []
    waiting = threading.Thread(target=lambda: ended.append(fragile_client.wait(running, poll_s=60)))
    waiting.start()
    until(lambda: lookers(fragile))
    go(fragile)
    waiting.join(130)

    assert [job.state for job in ended] == ["lost"]


# -- the same in a worker


def test_a_worker_hears_of_an_end_at_once(client: Client, source: Database) -> None:
    with ThreadPoolExecutor() as pool:
        with held(source):
            job_id = client.send(GATE)
            waiting = pool.submit(client.wait, job_id, poll_s=60)
            until(lambda: lookers(source))
        job = waiting.result(30)  # a look alone would take a minute

    assert job.state == "succeeded"


def test_a_worker_asks_where_it_cannot_listen(client: Client, source: Database) -> None:
    polling = Client(replace(source.target, pooling_mode="transaction"))
    job_id = polling.send("SELECT pg_sleep(0.7)")

    assert polling.wait(job_id, poll_s=0.2).state == "succeeded"
    polling.close()


def test_a_worker_is_told_what_no_waiting_mends(client: Client) -> None:
    with pytest.raises(RemoteError, match="does not exist"):
        client.wait(uuid4())
    client.jobs.ready()
    with pytest.raises(UsageError, match="no job"):
        client.wait(uuid4())
