"""Where the guarantees end: what PostgreSQL doesn't undo, settings that end sessions, and superusers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import UUID

import psycopg
import pytest

from airflow_dblink.core.jobs.job import Job
from airflow_dblink.core.jobs.watch import Watcher
from airflow_dblink.core.listen.listener import Listener
from airflow_dblink.core.server.target import Target
from tests.databases import Database
from tests.integration.jobs.client import EFFECT, SLEEP, Client, effects, held, until
from tests.odd import always

_LISTENER = "the listener"
_FROM_17 = 17_00_00


def _version(database: Database) -> int:
    return int(database.rows("SHOW server_version_num")[0][0])


# -- what leaves the transaction


def test_a_sequence_and_what_dblink_exec_did_are_not_undone(client: Client, source: Database) -> None:
    source.admin("CREATE EXTENSION dblink")
    source.execute("CREATE SEQUENCE number; CREATE TABLE elsewhere (a int)")

    elsewhere = "SELECT dblink_exec(%s, 'INSERT INTO elsewhere VALUES (1)')"

    job = client.run(f"{EFFECT}; SELECT nextval('number'); {elsewhere}; SELECT 1/0", [source.conninfo])

    assert (job.state, job.sqlstate) == ("failed", "22012")
    assert effects(source) == 0
    assert source.rows("SELECT a FROM elsewhere") == [(1,)]
    assert source.rows("SELECT nextval('number')") == [(2,)]


# -- settings of the role that end sessions


def test_a_transaction_timeout_of_the_role_loses_the_job(client: Client, source: Database) -> None:
    """PostgreSQL has it from 17 on; before that nobody can set it."""
    if _version(source) < _FROM_17:
        with pytest.raises(psycopg.errors.UndefinedObject, match="transaction_timeout"):
            always(source, transaction_timeout="'1s'")
        return
    client.jobs.ready()  # the installation has no such limit
    always(source, transaction_timeout="'5s'")

    job = client.run(f"{EFFECT}; SELECT pg_sleep(60)")

    assert job.state == "lost"
    assert effects(source) == 0


def _watch(target: Target, job_id: UUID) -> Job | None:
    """Wait as a triggerer does, with a look once a minute."""

    async def get_target() -> Target:
        return target

    async def watch() -> Job | None:
        return await Watcher(Listener(get_target, _LISTENER), target.job_schema).wait(job_id, 60)

    return asyncio.run(asyncio.wait_for(watch(), 50))


def _wait(target: Target, job_id: UUID) -> Job:
    """Wait as a worker does, with a look once a minute."""
    params = {**target.params, "application_name": _LISTENER}
    with closing(Client(Target(target.conn_id, params))) as client:
        return client.wait(job_id, poll_s=60)


@pytest.mark.parametrize("wait", [_watch, _wait], ids=["triggerer", "worker"])
def test_an_idle_session_timeout_of_the_role_ends_no_waiting(
    client: Client, source: Database, wait: Callable[[Target, UUID], Job | None]
) -> None:
    listening: set[int] = set()

    def ended_twice() -> bool:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = %s"
        listening.update(pid for (pid,) in source.admin(query, _LISTENER, source.name))
        return len(listening) > 2

    with ThreadPoolExecutor() as pool:
        with held(source) as sql:
            job_id = client.send(sql)
            always(source, idle_session_timeout="'300ms'")  # not of the session that sends
            waiting: Future[Job | None] = pool.submit(wait, source.target, job_id)
            until(ended_twice)
            assert not waiting.done()
        job = waiting.result(30)  # a look alone would take a minute

    assert job is not None
    assert job.state == "succeeded"
    assert source.admin("SELECT count(*) FROM effect") == [(1,)]  # a session of the role may not pause


# -- a full queue of notifications


@pytest.fixture(scope="module")
def small_queue(fragile: Database) -> Database:
    """Give a server whose queue of notifications is as small as it lets itself be made."""
    if _version(fragile) >= _FROM_17:
        fragile.admin("ALTER SYSTEM SET max_notify_queue_pages = 64")
        fragile.server.restart()
    return fragile


@pytest.fixture
def stuck_queue(small_queue: Database) -> Iterator[Database]:
    """Put 80 pages into the queue, and keep them there: somebody who listens has gone to lunch."""
    small_queue.execute("TRUNCATE effect")
    with psycopg.connect(small_queue.conninfo) as listener:
        listener.execute("LISTEN lunch")
        listener.commit()
        listener.execute("SELECT 1")
        with psycopg.connect(small_queue.conninfo, autocommit=True) as connection:
            for page in range(80):
                try:
                    connection.execute("SELECT pg_notify('lunch', rpad(%s, 7900))", [str(page)])
                except psycopg.errors.ProgramLimitExceeded:
                    break
        yield small_queue


def test_a_full_queue_of_notifications_loses_a_job_that_notifies(stuck_queue: Database) -> None:
    """A job that doesn't notify succeeds, though nobody can be told.

    From PostgreSQL 17 on; before that no setting makes the queue smaller than 8 GB: 80 pages are nothing.
    """
    full = _version(stuck_queue) >= _FROM_17
    usage = float(stuck_queue.rows("SELECT pg_notification_queue_usage()")[0][0])
    assert usage == 1 if full else usage < 0.001
    with closing(Client(stuck_queue.target)) as client:
        silent = client.run(EFFECT)
        notifying = client.run(f"{EFFECT}; SELECT pg_notify('anything', '')")

    assert silent.state == "succeeded"
    assert notifying.state == ("lost" if full else "succeeded")
    assert effects(stuck_queue) == (1 if full else 2)


# -- rows changed by hand


@pytest.mark.parametrize("who", ["superuser", "role"])
def test_a_row_that_was_changed_by_hand_is_believed(client: Client, source: Database, who: str) -> None:
    run: Callable[..., Any] = source.admin if who == "superuser" else source.execute
    with ThreadPoolExecutor() as pool, held(source) as sql:
        job_id = client.send(sql)
        pid = client.jobs.get(job_id).pid
        waiting = pool.submit(client.wait, job_id)
        run("UPDATE airflow_dblink.job SET state = 'succeeded', row_count = 7 WHERE id = %s", job_id)
        job = waiting.result(60)

    assert (job.state, job.row_count) == ("succeeded", 7)
    until(lambda: not source.admin("SELECT FROM pg_stat_activity WHERE pid = %s", pid))
    assert effects(source) == 0


def test_a_full_queue_of_notifications_keeps_nothing_from_being_cancelled(stuck_queue: Database) -> None:
    with closing(Client(stuck_queue.target)) as client:
        running, waiting = client.send(SLEEP), client.insert(EFFECT)

        assert client.jobs.cancel(running).state == "cancelled"
        assert client.jobs.cancel(waiting).state == "cancelled"
