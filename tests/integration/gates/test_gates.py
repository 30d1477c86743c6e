"""Many questions in one event loop: one session, each asked once, and nobody delays the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg import sql

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.core.gates.gates import Gates
from airflow_dblink.core.gates.question import Question, deserialized, serialized
from airflow_dblink.core.listen.listener import Listener
from airflow_dblink.core.server.target import Target
from airflow_dblink.embedded.server import servers
from airflow_dblink.triggers.sql import DblinkSqlTrigger
from tests.databases import Database
from tests.integration.jobs.client import until
from tests.loops import run_alone
from tests.pooler import pooler
from tests.standby import standby_of

T = TypeVar("T")
NAME = "the gates"
RARELY = 600.0


@pytest.fixture(autouse=True)
def flags(source: Database) -> None:
    """Make the table whose rows open the gates."""
    source.execute("CREATE TABLE flag (name text PRIMARY KEY)")


def _is_up(name: str) -> Question:
    return Question(sql.SQL("SELECT true FROM flag WHERE name = {}").format(name).as_string())


def _raise(database: Database, name: str) -> None:
    database.execute("INSERT INTO flag VALUES (%s)", name)


def _listener(target: Target) -> Listener:
    async def get_target() -> Target:
        return target

    return Listener(get_target, NAME)


def _run(act: Callable[[], Awaitable[T]], timeout_s: float = 90.0) -> T:
    return run_alone(act, timeout_s)


async def _until(what: Callable[[], object]) -> None:
    await asyncio.to_thread(until, what)


def _sessions(database: Database, condition: str = "true") -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    return int(database.admin(f"{query} AND {condition}", NAME)[0][0])


async def _waits(database: Database) -> None:
    """Return once the session has asked, and waits."""
    await _until(lambda: _sessions(database, "state = 'idle' AND query LIKE '%%pg_advisory_unlock_all%%'"))


def test_a_poll_opens_the_gate(source: Database) -> None:
    async def act() -> None:
        gates = Gates.of(_listener(source.target), None)
        waiting = asyncio.create_task(gates.wait(_is_up("a"), 0.05))
        await _waits(source)
        await asyncio.to_thread(_raise, source, "a")
        await waiting

    _run(act)


def test_a_notification_opens_it_at_once_and_only_on_its_channel(source: Database) -> None:
    async def act() -> bool:
        listener = _listener(source.target)
        waiting = asyncio.create_task(Gates.of(listener, "it's ready").wait(_is_up("a"), RARELY))
        other = asyncio.create_task(Gates.of(listener, "other").wait(_is_up("a"), RARELY))
        await _waits(source)
        await _until(lambda: listener.has_looked.is_set())
        await asyncio.to_thread(_raise, source, "a")
        await asyncio.to_thread(source.execute, """NOTIFY "it's ready", 'any payload'""")
        await waiting
        has_waited = not other.done()
        await asyncio.to_thread(source.execute, "NOTIFY other")
        await other
        return has_waited

    assert _run(act)


def test_a_payload_wakes_its_own_questions_and_an_empty_one_wakes_all(source: Database) -> None:
    async def act() -> bool:
        listener = _listener(source.target)
        one, other = (
            asyncio.create_task(Gates.of(listener, "go", payload).wait(_is_up("a"), RARELY))
            for payload in ("one", "other")
        )
        await _waits(source)
        await _until(lambda: listener.has_looked.is_set())
        await asyncio.to_thread(source.execute, "INSERT INTO flag VALUES ('a'); NOTIFY go, 'one'")
        await one
        has_waited = not other.done()
        await asyncio.to_thread(source.execute, "NOTIFY go")
        await other
        return has_waited

    assert _run(act)


def test_a_notification_while_the_question_is_asked_is_not_lost(source: Database) -> None:
    # Its snapshot is from before the row.
    slow = Question("SELECT EXISTS (SELECT FROM flag) FROM (SELECT pg_sleep(1)) AS s", timeout_s=30)

    async def act() -> None:
        waiting = asyncio.create_task(Gates.of(_listener(source.target), "go").wait(slow, RARELY))
        await _until(lambda: _sessions(source, "state = 'active' AND query LIKE '%%pg_sleep(1)%%'"))
        await asyncio.to_thread(source.execute, "INSERT INTO flag VALUES ('a'); NOTIFY go")
        await waiting

    _run(act)


def test_a_server_that_crashes_is_waited_for() -> None:
    with servers("gates") as (server,):
        here = Database("gates", server, server.dbname)
        here.execute("CREATE TABLE flag (name text PRIMARY KEY)")

        async def act() -> None:
            waiting = asyncio.create_task(Gates.of(_listener(here.target), "go").wait(_is_up("a"), RARELY))
            await _waits(here)
            await asyncio.to_thread(server.crash)
            await asyncio.to_thread(server.start)
            await asyncio.to_thread(here.execute, "INSERT INTO flag VALUES ('a')")
            await waiting

        _run(act)


def test_what_was_notified_before_is_seen_at_the_first_look(source: Database) -> None:
    _raise(source, "a")
    _run(lambda: Gates.of(_listener(source.target), "done").wait(_is_up("a"), RARELY))


def test_a_thousand_share_one_session_and_equal_questions_are_asked_once(source: Database) -> None:
    source.execute("CREATE TABLE big (n int); INSERT INTO big SELECT generate_series(1, 500)")

    async def act() -> int:
        gates = Gates.of(_listener(source.target), "go")
        query = sql.SQL("SELECT count(*) > 500 FROM big WHERE n > {}")
        questions = [Question(query.format(-(i % 500)).as_string()) for i in range(1_000)]
        waiting = [asyncio.create_task(gates.wait(question, RARELY)) for question in questions]
        await _until(lambda: _asked(source, "big") >= 500)
        sessions = await asyncio.to_thread(_sessions, source)
        asked = await asyncio.to_thread(_asked, source, "big")
        await asyncio.to_thread(source.execute, "INSERT INTO big VALUES (501); NOTIFY go")
        await asyncio.gather(*waiting)
        return sessions if asked == 500 else -asked

    assert _run(act) == 1


def _asked(database: Database, table: str) -> int:
    """Return how often *table* was read in whole: sessions report it when they are idle."""
    query = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = %s"
    return int(database.admin(query, table)[0][0])


def test_hanging_failing_and_locked_ones_delay_no_other(source: Database) -> None:
    source.execute("CREATE TABLE locked (n int)")
    hanging = [Question(f"SELECT pg_sleep(60 + {i})", timeout_s=0.2) for i in range(3)]
    locked = Question("SELECT count(*) > 0 FROM locked", timeout_s=0.5)
    failing = Question("SELECT 1/0")

    async def act() -> list[Any]:
        gates = Gates.of(_listener(source.target), None)
        others = [asyncio.create_task(gates.wait(each, 0.1)) for each in (*hanging, locked)]
        fails = asyncio.create_task(gates.wait(failing, 0.1))
        waiting = [asyncio.create_task(gates.wait(_is_up(f"n{i}"), 0.1)) for i in range(50)]
        await asyncio.wait([fails])
        for i in range(50):
            await asyncio.to_thread(_raise, source, f"n{i}")
        await asyncio.gather(*waiting)
        assert not any(task.done() for task in others)
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        return [fails.exception()]

    with psycopg.connect(source.conninfo) as other:
        other.execute("LOCK TABLE locked")
        (error,) = _run(act)
    assert isinstance(error, RemoteError)
    assert error.sqlstate == "22012"


def test_a_question_that_took_too_long_is_still_answered(
    source: Database, caplog: pytest.LogCaptureFixture
) -> None:
    slow = "SELECT true FROM flag WHERE pg_sleep(CASE WHEN name = 'slow' THEN 60 ELSE 0 END) IS NOT NULL"
    _raise(source, "slow")

    async def act() -> None:
        gates = Gates.of(_listener(source.target), None)
        waiting = asyncio.create_task(gates.wait(Question(slow, timeout_s=0.2), 0.05))
        await _until(lambda: "is asked more rarely" in caplog.text)
        await asyncio.to_thread(source.execute, "UPDATE flag SET name = 'quick'")
        await waiting

    _run(act)
    assert caplog.text.count("is asked more rarely") == 1
    assert "statement timeout" in caplog.text


def test_an_error_ends_the_waiting_of_its_own_question(source: Database) -> None:
    async def act() -> list[Any]:
        gates = Gates.of(_listener(source.target), None)
        waiting = asyncio.create_task(gates.wait(_is_up("a"), 0.05))
        wrong = [
            Question("SELECT true FROM missing"),
            Question("SELECT true", settings=(("work_mem", "much"),)),
            Question("INSERT INTO flag VALUES ('b') RETURNING true"),
            Question("SELECT set_config('transaction_read_only', 'off', true)"),
            Question("SELECT pg_terminate_backend(0)", failure="SELECT 1/0"),
        ]
        found = await asyncio.gather(*(gates.wait(each, 0.05) for each in wrong), return_exceptions=True)
        await asyncio.to_thread(_raise, source, "a")
        await waiting
        return found

    assert [getattr(error, "sqlstate", error) for error in _run(act)] == [
        "42P01",
        "22023",
        None,  # no query
        "25001",
        "22012",
    ]


def test_what_only_python_takes_for_equal_are_two_questions(source: Database) -> None:
    async def act() -> bool:
        gates = Gates.of(_listener(source.target), None)
        right = asyncio.create_task(gates.wait(Question("SELECT 1", equals=1), 0.05))
        wrong = asyncio.create_task(gates.wait(Question("SELECT 1", equals=True), 0.05))
        await right
        await _waits(source)
        has_waited = not wrong.done()
        wrong.cancel()
        await asyncio.wait([wrong])
        return has_waited

    assert _run(act)


def test_a_text_that_no_server_takes_fails_its_own_question_alone(source: Database) -> None:
    async def act() -> list[Any]:
        gates = Gates.of(_listener(source.target), None)
        waiting = asyncio.create_task(gates.wait(_is_up("a"), 0.05))
        wrong = [Question("SELECT '\ud800'"), Question("SELECT '\0'")]
        found = await asyncio.gather(*(gates.wait(each, 0.05) for each in wrong), return_exceptions=True)
        await asyncio.to_thread(_raise, source, "a")
        await waiting
        return found

    assert [type(error).__name__ for error in _run(act)] == ["UsageError", "UsageError"]


def test_the_first_look_can_wait_and_a_notification_does_not(source: Database) -> None:
    _raise(source, "a")

    async def act() -> bool:
        listener = _listener(source.target)
        waiting = asyncio.create_task(Gates.of(listener, "go").wait(_is_up("a"), RARELY, RARELY))
        await asyncio.wait_for(Gates.of(listener, None).wait(Question("SELECT true"), RARELY), 60)
        has_waited = not waiting.done()
        await asyncio.to_thread(source.execute, "NOTIFY go")
        await waiting
        return has_waited

    assert _run(act)


def test_a_lock_of_a_query_does_not_stay_in_the_shared_session(source: Database) -> None:
    query = "SELECT pg_try_advisory_lock(1) AND EXISTS (SELECT FROM flag)"

    async def act() -> None:
        gates = Gates.of(_listener(source.target), None)
        waiting = asyncio.create_task(gates.wait(Question(query), 0.05))
        await _waits(source)
        await _until(lambda: not source.admin("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"))
        await asyncio.to_thread(_raise, source, "a")
        await waiting

    _run(act)


def test_channels_that_nobody_waits_on_are_left(source: Database) -> None:
    async def act() -> list[int]:
        listener = _listener(source.target)
        staying = asyncio.create_task(Gates.of(listener, "stays").wait(_is_up("a"), 0.05))
        counts = []
        for i in range(5):
            await Gates.of(listener, f"run_{i}").wait(Question("SELECT true"), RARELY)
            counts.append(len(listener.subjects))
        await asyncio.to_thread(_raise, source, "a")
        await staying
        return counts

    assert max(_run(act)) <= 2


def test_failure_and_no_row_end_the_waiting(source: Database) -> None:
    async def act() -> None:
        gates = Gates.of(_listener(source.target), None)
        await gates.wait(Question("SELECT false", failure="SELECT true"), RARELY)
        await gates.wait(Question("SELECT true WHERE false", fail_on_empty=True), RARELY)
        await gates.wait(Question("SELECT 1 FROM generate_series(1, 3)", min_rows=3), RARELY)

    _run(act)


def test_the_session_after_a_killed_one_asks_all_without_a_notification(source: Database) -> None:
    terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"

    async def act() -> None:
        waiting = asyncio.create_task(Gates.of(_listener(source.target), "go").wait(_is_up("a"), RARELY))
        await _waits(source)
        await asyncio.to_thread(_raise, source, "a")
        await asyncio.to_thread(source.admin, terminate, NAME)
        await waiting

    _run(act)


def test_a_query_that_ends_its_own_session_ends_no_other_waiting(source: Database) -> None:
    async def act() -> None:
        gates = Gates.of(_listener(source.target), None)
        fatal = asyncio.create_task(
            gates.wait(Question("SELECT pg_terminate_backend(pg_backend_pid())"), 0.1)
        )
        waiting = asyncio.create_task(gates.wait(_is_up("a"), 0.1))
        await asyncio.to_thread(_raise, source, "a")
        await waiting
        fatal.cancel()
        await asyncio.wait([fatal])

    _run(act)


def test_only_polling_through_a_pooler_and_on_a_standby(
    source: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(target: Target) -> None:
        gates = Gates.of(_listener(target), "go")
        waiting = asyncio.create_task(gates.wait(_is_up("a"), 0.05))
        await _until(lambda: "only polling" in caplog.text)
        await waiting

    _raise(source, "a")
    with pooler(source.server, "transaction") as port:
        params = {**source.target.params, "port": str(port)}
        _run(lambda: act(replace(source.target, params=params, pooling_mode="transaction")))
    assert "nobody hears channel 'go', as LISTEN does not survive its pooler: only polling" in caplog.text
    caplog.clear()
    with standby_of(source.server) as standby:
        params = {**source.target.params, "port": str(standby.port)}
        _run(lambda: act(replace(source.target, params=params)))
    assert caplog.text.count("a standby takes no LISTEN: only polling") == 1


def test_nothing_is_told_of_values(source: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    source.execute("INSERT INTO flag VALUES ('hidden-value')")
    trigger = DblinkSqlTrigger("source", serialized(Question("SELECT name FROM flag")))
    failing = DblinkSqlTrigger("source", serialized(Question("SELECT name::int FROM flag")))

    async def act() -> list[Any]:
        return [event.payload for one in (trigger, failing) async for event in one.run()]

    answered, failed = _run(act)
    assert answered == {"state": "answered"}
    assert failed["state"] == "error"
    assert "invalid input syntax for type integer" in failed["message"]
    assert "hidden-value" not in f"{failed}{caplog.text}"


def test_a_question_survives_its_way_through_airflows_database() -> None:
    question = Question(
        "SELECT 1", failure="SELECT 2", min_rows=3, fail_on_empty=True, timeout_s=4.0, settings=(("a", "b"),)
    )
    trigger = DblinkSqlTrigger("source", serialized(question), 5.0, "channel")
    path, arguments = trigger.serialize()
    assert path.endswith("DblinkSqlTrigger")
    assert deserialized(DblinkSqlTrigger(**arguments).question) == question
