"""A job whose session is gone is lost: nothing of it was committed, and nothing can be any more."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import UUID

import pytest

from airflow_dblink.core.errors import TransientError
from airflow_dblink.core.jobs.job import Job
from airflow_dblink.core.jobs.watch import Watcher
from airflow_dblink.core.listen.listener import Listener
from airflow_dblink.core.server.target import Target
from airflow_dblink.embedded.server import Server
from tests.databases import Database
from tests.integration.jobs.client import (
    EFFECT,
    GATE,
    SLEEP,
    Client,
    backend,
    effects,
    gated,
    held,
    start,
    until,
)
from tests.stores import MemoryStore

#: Has done its work, and would be committed in a moment.
NEARLY_DONE = f"{EFFECT}; {GATE}"


def _over(database: Database, job: Job) -> None:
    """Wait until the session of *job* is gone, or has nothing more to do."""
    until(lambda: all(state == "idle" for state, _ in backend(database, job.pid)))


# -- its session is ended


def test_a_job_whose_session_was_terminated_is_lost(client: Client, source: Database) -> None:
    job_id = client.send(f"{EFFECT}; SELECT pg_sleep(%s)", [600])
    assert client.column(job_id, "bound_statement") is not None
    source.admin("SELECT pg_terminate_backend(%s, 5000)", client.jobs.get(job_id).pid)

    job = client.wait(job_id)

    assert job.state == "lost"
    assert job.ended_at is not None
    assert client.column(job_id, "bound_statement") is None
    assert effects(source) == 0
    error = job.error("source")
    assert isinstance(error, TransientError)
    assert error.sqlstate == "08006"
    assert "nothing was changed" in error.message


def test_a_job_that_was_to_be_cancelled_when_its_session_ended_is_cancelled(
    client: Client, source: Database
) -> None:
    job_id = client.send(SLEEP)
    client.jobs.connection.execute(b"UPDATE airflow_dblink.job SET cancel_requested_at = now()")
    source.admin("SELECT pg_terminate_backend(%s, 5000)", client.jobs.get(job_id).pid)

    assert client.wait(job_id).state == "cancelled"


def test_a_pid_that_is_used_again_is_not_the_job(client: Client, source: Database) -> None:
    job_id = client.send(SLEEP)
    source.admin("SELECT pg_terminate_backend(%s, 5000)", client.jobs.get(job_id).pid)
    other = client.open()  # of the same role, busy, and its query even names the job
    source.admin("UPDATE airflow_dblink.job SET pid = %s", other.info.backend_pid)
    start(other, f"SELECT pg_sleep(600), '{job_id}'")
    until(lambda: backend(source, other.info.backend_pid)[0][0] == "active")

    assert client.jobs.get(job_id).state == "lost"
    other.abort()


def test_a_session_that_has_gone_on_to_something_else_is_not_the_job(
    client: Client, source: Database
) -> None:
    with client.open() as pooled:
        job_id = client.insert("SELECT 1")
        client.jobs.connection.execute(
            b"UPDATE airflow_dblink.job SET (state, pid, backend_start) ="
            b" (SELECT 'running', pid, backend_start FROM pg_stat_activity WHERE pid = %s)",
            [pooled.info.backend_pid],
        )
        pooled.execute(b"SELECT 1")
        assert client.jobs.get(job_id).state == "lost"


# -- the fence


def test_a_job_that_was_given_up_while_it_runs_cannot_commit(client: Client, source: Database) -> None:
    with held(source):
        job_id = client.send(NEARLY_DONE)
        job = client.jobs.get(job_id)
        until(lambda: gated(source))
        source.admin("UPDATE airflow_dblink.job SET state = 'lost'")

    _over(source, job)

    assert client.jobs.get(job_id).state == "lost"
    assert client.column(job_id, "sqlstate") is None
    assert effects(source) == 0


def test_a_job_that_stood_still_while_it_was_given_up_cannot_commit(client: Client, source: Database) -> None:
    store = MemoryStore()
    with held(source):
        job_id = client.send(NEARLY_DONE, store=store)
        job = client.jobs.get(job_id)
        assert job.pid is not None
        until(lambda: gated(source))
        os.kill(job.pid, signal.SIGSTOP)
        try:
            source.admin("UPDATE airflow_dblink.job SET backend_start = backend_start - interval '1 hour'")
            again = client.run(EFFECT, store=store)
            assert again.replaces == job_id
        finally:
            os.kill(job.pid, signal.SIGCONT)
    _over(source, job)

    assert client.jobs.get(job_id).state == "lost"
    assert effects(source) == 1


def test_giving_up_comes_too_late_for_a_job_that_is_being_committed(client: Client, source: Database) -> None:
    source.admin(
        """
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END'
        """
    )
    client.jobs.ready()
    source.admin(
        "CREATE TRIGGER dawdle AFTER UPDATE ON airflow_dblink.job FOR EACH ROW"
        " WHEN (NEW.state = 'succeeded') EXECUTE FUNCTION dawdle()"
    )
    give_up = "UPDATE airflow_dblink.job SET state = 'lost' WHERE state = 'running' RETURNING id"
    # The job's session seems gone to readers; its row is locked until the job has committed.
    blocked = "SELECT 1 FROM pg_stat_activity WHERE query = %s AND wait_event_type = 'Lock'"
    with ThreadPoolExecutor() as pool, held(source):
        job_id = client.send(EFFECT)
        until(lambda: gated(source))
        giving_up = pool.submit(source.admin, give_up)
        until(lambda: source.admin(blocked, give_up))

    assert giving_up.result() == []
    assert client.wait(job_id).state == "succeeded"
    assert effects(source) == 1


# -- nobody calls


def test_a_job_that_nobody_calls_is_called_by_who_waits(client: Client, source: Database) -> None:
    job_id = client.insert(EFFECT, sent_s_ago=11)

    assert client.wait(job_id).state == "succeeded"

    assert effects(source) == 1


def test_a_job_that_nobody_calls_is_called_by_the_watcher(client: Client, source: Database) -> None:
    job_ids = [client.insert(EFFECT, sent_s_ago=11) for _ in range(6)]

    async def target() -> Target:
        return source.target

    async def watch() -> list[Job | None]:
        watcher = Watcher(Listener(target, "watcher"), client.schema)
        return await asyncio.wait_for(asyncio.gather(*(watcher.wait(i, 0.5) for i in job_ids)), 60)

    ended = asyncio.run(watch())

    assert [job.state if job else None for job in ended] == 6 * ["succeeded"]
    assert effects(source) == 6


def test_a_late_call_has_the_time_limit_of_the_job(client: Client) -> None:
    job_id = client.insert(SLEEP, sent_s_ago=11, statement_timeout="2s")

    job = client.wait(job_id)

    assert (job.state, job.sqlstate) == ("failed", "57014")


def test_a_late_call_that_is_not_answered_is_made_again_and_leaves_no_session(
    client: Client, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_dblink.core.jobs.call.CLAIM_S", 0.3)
    job_id = client.insert(EFFECT, sent_s_ago=11)
    holder = client.open()
    holder.execute("BEGIN; SELECT FROM airflow_dblink.job FOR UPDATE")
    blocked = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '/* CALL run(%%' AND wait_event_type = 'Lock'"
    )
    opened_before = len(client.opened)
    ended: list[Job] = []
    waiting = threading.Thread(target=lambda: ended.append(client.wait(job_id)))
    waiting.start()
    until(lambda: source.admin(blocked)[0][0] > 1)
    holder.execute("ROLLBACK")
    waiting.join(30)

    assert ended[0].state == "succeeded"
    assert effects(source) == 1
    assert all(connection.closed for connection in client.opened[opened_before:])


# -- the server goes


@pytest.fixture
def fragile_client(fragile: Database) -> Iterator[Client]:
    fragile.execute("TRUNCATE effect")
    client = Client(replace(fragile.target))
    yield client
    client.close()


def _crash(server: Server) -> None:
    server.crash()
    server.start()


WAYS: dict[str, Callable[[Server], None]] = {
    "crash": _crash,
    "immediate": lambda server: server.restart(mode="immediate"),
    "fast": lambda server: server.restart(mode="fast"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_job_that_runs_when_the_server_goes_is_lost_and_a_retry_works(
    fragile_client: Client, fragile: Database, way: str
) -> None:
    store = MemoryStore()
    before = fragile_client.run(EFFECT)
    job_id = fragile_client.send(f"{EFFECT}; {SLEEP}", store=store)
    WAYS[way](fragile.server)

    assert fragile_client.jobs.get(job_id).state == "lost"
    assert fragile_client.jobs.get(before.id).state == "succeeded"
    assert effects(fragile) == 1

    again = fragile_client.run(EFFECT, store=store)

    assert again.state == "succeeded"
    assert again.replaces == job_id
    assert effects(fragile) == 2


def test_jobs_that_end_while_the_server_crashes_have_all_of_their_effects_or_none(
    fragile_client: Client, fragile: Database
) -> None:
    sent: list[UUID] = [fragile_client.send(f"SELECT pg_sleep(%s); {EFFECT}", [i * 0.02]) for i in range(20)]
    sent.append(fragile_client.send(f"{SLEEP}; {EFFECT}"))
    time.sleep(0.1)
    _crash(fragile.server)

    states = [fragile_client.jobs.get(job_id).state for job_id in sent]

    assert set(states) <= {"succeeded", "lost"}
    assert effects(fragile) == states.count("succeeded")
    assert "lost" in states
