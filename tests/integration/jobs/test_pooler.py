"""Jobs through a real pgbouncer, whose sessions with the server serve one client after another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from airflow_dblink.core.jobs.job import Job
from airflow_dblink.core.jobs.watch import Watcher, acancel
from airflow_dblink.core.listen.listener import Listener
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.target import PoolingMode, Target
from tests.databases import Database
from tests.integration.jobs.client import (
    EFFECT,
    GATE,
    SLEEP,
    Client,
    backend,
    effects,
    end_with_fin,
    end_with_rst,
    held,
    start,
    until,
)
from tests.odd import always
from tests.pooler import pooler
from tests.stores import MemoryStore

MODES: list[PoolingMode] = ["session", "transaction"]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> PoolingMode:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def pooled(source: Database, mode: PoolingMode) -> Iterator[Client]:
    """Give a client that knows only the pooler's address."""
    source.execute("CREATE TABLE effect (a int)")
    with pooler(source.server, mode) as port:
        client = Client(replace(source.target, params={**source.params, "port": port}, pooling_mode=mode))
        yield client
        client.close()


def _direct(pooled: Client, source: Database) -> Client:
    return Client(replace(pooled.target, direct_port=source.server.port))


async def _watch(target: Target, job_id: UUID, poll_s: float) -> Job | None:
    async def get_target() -> Target:
        return target

    return await asyncio.wait_for(
        Watcher(Listener(get_target, "watcher"), target.job_schema).wait(job_id, poll_s), 30
    )


def test_one_session_serves_one_client_after_another(pooled: Client) -> None:
    pids: set[int] = set()
    for _ in range(3):
        connection = pooled.open()
        pids |= {row[0] for row in connection.execute("SELECT pg_backend_pid()")}
        connection.close()

    assert len(pids) == 1


def test_sending_and_waiting(pooled: Client, source: Database) -> None:
    done = pooled.run(EFFECT)
    failed = pooled.run("SELECT 1/0 WHERE %s", [True])

    assert (done.state, done.command_tag) == ("succeeded", "INSERT 0 1")
    assert (failed.state, failed.sqlstate) == ("failed", "22012")
    assert effects(source) == 1


def test_a_kept_result(pooled: Client) -> None:
    job = pooled.run("SELECT generate_series(1, 3) AS a", keep_result=True)

    assert pooled.kept(job) == [(1,), (2,), (3,)]
    pooled.jobs.drop_result(job)
    assert pooled.jobs.get(job.id).result_table is None


def test_cancelling(pooled: Client, source: Database) -> None:
    job = pooled.jobs.cancel(pooled.send(f"{EFFECT}; {SLEEP}"))
    again = asyncio.run(acancel(pooled.target, "cancels", pooled.schema, pooled.send(f"{EFFECT}; {SLEEP}")))

    assert again is not None
    assert (job.state, again.state) == ("cancelled", "cancelled")
    assert effects(source) == 0


def test_a_lost_job_is_found_and_sent_anew(pooled: Client, source: Database) -> None:
    store = MemoryStore()
    lost = pooled.send(SLEEP, store=store)
    source.admin("SELECT pg_terminate_backend(%s, 5000)", pooled.jobs.get(lost).pid)

    assert pooled.wait(lost).state == "lost"
    assert pooled.run(EFFECT, store=store).replaces == lost


def test_the_job_goes_on_when_its_client_has_left(pooled: Client, source: Database) -> None:
    with held(source) as sql:
        job_id = pooled.send(sql)
        pooled.close()

        assert pooled.jobs.get(job_id).state == "running"
    assert pooled.wait(job_id).state == "succeeded"
    assert effects(source) == 1


def test_a_job_that_warns_much_goes_on_when_its_client_has_left(pooled: Client, source: Database) -> None:
    flood = "DO $$BEGIN FOR i IN 1..20000 LOOP RAISE WARNING 'w%', i; END LOOP; END$$"
    with held(source):
        job_id = pooled.send(f"{GATE}; {flood}; {EFFECT}")

    assert pooled.wait(job_id).state == "succeeded"
    assert effects(source) == 1


@pytest.mark.parametrize("die", [end_with_fin, end_with_rst], ids=["FIN", "RST"])
def test_a_call_that_the_pooler_lost_is_made_again(
    pooled: Client, source: Database, die: Callable[[LinkConnection], None]
) -> None:
    for round_ in range(1, 6):
        job_id = pooled.insert(EFFECT, sent_s_ago=11)
        connection = pooled.open()
        start(connection, pooled.call_text(job_id))
        die(connection)

        job = pooled.wait(job_id)

        # A job is lost if the server wrote to a client that was gone; it has changed nothing.
        if job.state == "lost":
            pooled.run(EFFECT)
        else:
            assert job.state == "succeeded"
        assert effects(source) == round_


def _as_if_it_had_ended_without_a_word(source: Database, job: Job) -> None:
    source.admin("UPDATE airflow_dblink.job SET state = 'running', ended_at = NULL WHERE id = %s", job.id)


def test_a_session_that_idles_in_the_pool_is_not_the_job(pooled: Client, source: Database) -> None:
    job_id = pooled.insert(EFFECT)
    pooled.call(job_id)
    job = pooled.jobs.get(job_id)
    assert backend(source, job.pid)[0][0] == "idle"  # still there, and waits for the next client

    _as_if_it_had_ended_without_a_word(source, job)

    assert pooled.jobs.get(job_id).state == "lost"


def test_a_session_that_serves_another_client_is_neither_the_job_nor_cancelled(
    pooled: Client, source: Database
) -> None:
    job_id = pooled.insert(EFFECT)
    caller = pooled.open()
    caller.execute(pooled.call_text(job_id).encode())
    job = pooled.jobs.get(job_id)
    _as_if_it_had_ended_without_a_word(source, job)
    if pooled.target.pooling_mode == "session":
        other = caller
    else:  # whichever client gets the session
        caller.close()
        other = pooled.open()
    with held(source) as sql:
        start(other, sql)
        until(lambda: backend(source, job.pid) == [("active", sql)])

        assert pooled.jobs.cancel(job_id).state == "cancelled"
    until(lambda: effects(source) == 2)


def test_nothing_of_a_job_stays_in_the_pooled_session(pooled: Client, source: Database) -> None:
    settings = "search_path", "client_min_messages", "client_connection_check_interval", "enable_seqscan"
    query = "SELECT " + ", ".join(f"current_setting('{name}')" for name in (*settings, "role", "work_mem"))
    before = source.rows(query)
    for sql in ("SELECT 1", "SELECT 1/0"):
        job_id = pooled.insert(sql, settings=Jsonb({"work_mem": "9MB"}))
        connection = pooled.open()
        connection.execute(pooled.call_text(job_id).encode())
        (after,) = connection.execute(f"{query}, pg_backend_pid()".encode()).fetchall()
        assert [after[:-1]] == before
        assert after[-1] == pooled.jobs.get(job_id).pid
        connection.close()


@pytest.mark.parametrize("mode", ["session"], indirect=True)
def test_a_time_limit_in_session_mode(pooled: Client, source: Database) -> None:
    job = pooled.run(SLEEP, statement_timeout="5s")

    assert (job.state, job.sqlstate) == ("failed", "57014")
    pooled.run(EFFECT, statement_timeout="1min")
    for _ in range(3):  # no session kept it
        assert pooled.open().execute("SHOW statement_timeout").fetchall() == [("0",)]


@pytest.mark.parametrize("mode", ["transaction"], indirect=True)
def test_a_time_limit_in_transaction_mode_with_a_direct_address(pooled: Client, source: Database) -> None:
    direct = _direct(pooled, source)
    job = direct.run(SLEEP, statement_timeout="5s")
    direct.close()

    assert (job.state, job.sqlstate) == ("failed", "57014")


def _said(log: Path, source: Database) -> str:
    return "".join(
        line for line in log.read_text(errors="replace").splitlines(True) if f"@{source.name}/" in line
    )


@pytest.mark.parametrize("mode", ["transaction"], indirect=True)
def test_in_transaction_mode_nobody_listens_and_asking_is_enough(pooled: Client, source: Database) -> None:
    always(source, log_statement="'all'")

    async_job = asyncio.run(_watch(pooled.target, pooled.send("SELECT pg_sleep(0.7)"), 0.2))
    job = pooled.wait(pooled.send("SELECT pg_sleep(0.7)"), poll_s=0.2)

    assert async_job is not None
    assert (async_job.state, job.state) == ("succeeded", "succeeded")
    assert "statement: /* CALL run(" in _said(source.server.log, source)
    assert "LISTEN" not in _said(source.server.log, source)


@pytest.mark.parametrize("mode", ["transaction"], indirect=True)
def test_with_a_direct_address_an_end_is_heard_of_there(pooled: Client, source: Database) -> None:
    direct = _direct(pooled, source)
    began = time.monotonic()

    async_job = asyncio.run(_watch(direct.target, direct.send("SELECT pg_sleep(1)"), 60))
    job = direct.wait(direct.send("SELECT pg_sleep(1)"), poll_s=60)
    direct.close()

    assert async_job is not None
    assert (async_job.state, job.state) == ("succeeded", "succeeded")
    assert time.monotonic() - began < 50


@pytest.mark.parametrize("mode", ["session"], indirect=True)
def test_in_session_mode_an_end_is_heard_of_through_the_pooler(pooled: Client) -> None:
    began = time.monotonic()

    async_job = asyncio.run(_watch(pooled.target, pooled.send("SELECT pg_sleep(1)"), 60))
    job = pooled.wait(pooled.send("SELECT pg_sleep(1)"), poll_s=60)

    assert async_job is not None
    assert (async_job.state, job.state) == ("succeeded", "succeeded")
    assert time.monotonic() - began < 50


def test_a_pooler_that_goes_is_waited_for(source: Database, mode: PoolingMode) -> None:
    source.execute("CREATE TABLE effect (a int)")
    with held(source) as sql, pooler(source.server, mode) as port:
        target = replace(source.target, params={**source.params, "port": port}, pooling_mode=mode)
        sender = Client(target)
        job_id = sender.send(sql)
        sender.close()
    until(lambda: effects(source) == 1)  # the server goes on without the pooler

    with pooler(source.server, mode) as port:
        again = Client(replace(target, params={**source.params, "port": port}))
        assert again.wait(job_id).state == "succeeded"
        again.close()
    assert effects(source) == 1
