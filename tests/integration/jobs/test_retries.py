"""A retry or a cleared task takes over, cancels or replaces the job of an earlier try."""

from __future__ import annotations

import pytest

from airflow_dblink.core.errors import OutcomeUnknownError, TransientError
from airflow_dblink.core.jobs.draft import draft
from airflow_dblink.core.jobs.send import KEY
from tests.databases import Database
from tests.integration.jobs.client import EFFECT, SLEEP, SLOW_EFFECT, Client, effects, held
from tests.odd import always
from tests.stores import MemoryStore


def test_a_retry_waits_for_the_job_that_still_runs(client: Client, source: Database) -> None:
    store = MemoryStore()
    with held(source) as sql:
        first = client.send(sql, store=store)

        again = client.submit(sql, store=store)

    assert again.call is None
    assert again.job is not None
    assert (again.job_id, again.job.state) == (first, "running")
    assert client.wait(first).state == "succeeded"
    assert effects(source) == 1


def test_a_retry_takes_what_has_succeeded_whatever_its_own_statement(
    client: Client, source: Database
) -> None:
    store = MemoryStore()
    first = client.send(EFFECT, store=store)
    client.wait(first)

    again = client.submit("SELECT no such thing", store=store)

    assert again.job_id == first
    assert effects(source) == 1


def test_a_retry_of_what_failed_is_a_new_job_that_names_the_old_one(client: Client) -> None:
    store = MemoryStore()
    failed = client.run("SELECT 1/0", store=store)
    assert failed.state == "failed"

    again = client.run(EFFECT, store=store)

    assert again.id != failed.id
    assert again.replaces == failed.id
    assert again.state == "succeeded"


def test_a_retry_of_what_was_cancelled_is_a_new_job(client: Client) -> None:
    store = MemoryStore()
    cancelled = client.jobs.cancel(client.send(SLEEP, store=store))
    assert cancelled.state == "cancelled"

    assert client.run(EFFECT, store=store).replaces == cancelled.id


def test_a_retry_of_what_is_lost_is_a_new_job(client: Client, source: Database) -> None:
    store = MemoryStore()
    lost = client.send(f"{EFFECT}; {SLEEP}", store=store)
    source.admin("SELECT pg_terminate_backend(%s, 5000)", client.jobs.get(lost).pid)

    assert client.run(EFFECT, store=store).replaces == lost
    assert client.jobs.get(lost).state == "lost"
    assert effects(source) == 1


def test_a_retry_calls_what_nobody_has_called(client: Client, source: Database) -> None:
    job_id = client.insert(EFFECT)
    store = MemoryStore()
    server = dict(client.jobs.installation().server)
    store.set(KEY, {"job_id": str(job_id), "server": server, "sent": True, "life": 0})

    assert client.run("SELECT 'not this'", store=store).id == job_id
    assert effects(source) == 1


def test_a_retry_does_not_take_a_job_that_is_being_cancelled(client: Client) -> None:
    store = MemoryStore()
    job_id = client.send(SLEEP, store=store)
    client.jobs.connection.execute(b"UPDATE airflow_dblink.job SET cancel_requested_at = now()")

    again = client.run(EFFECT, store=store)

    assert again.replaces == job_id
    assert client.jobs.get(job_id).state == "cancelled"


# -- clearing


def test_a_cleared_success_sends_a_new_job_and_a_retry_of_it_takes_that(
    client: Client, source: Database
) -> None:
    store = MemoryStore()
    submission = client.submission(store)
    first = submission.submit(lambda connection: draft(connection, "source", EFFECT))
    assert first.call is not None
    first.call.leave()
    client.wait(first.job_id)
    submission.finish()

    assert client.send(EFFECT, store=store) == first.job_id  # a retry of the same life
    second = client.run(EFFECT, store=store, life=1)
    assert second.id != first.job_id
    assert second.replaces is None
    assert client.send(EFFECT, store=store, life=1) == second.id
    assert effects(source) == 2


def test_clearing_a_task_that_did_not_see_the_end_takes_what_has_succeeded(
    client: Client, source: Database
) -> None:
    store = MemoryStore()
    first = client.send(SLOW_EFFECT, store=store)
    assert client.wait(first).state == "succeeded"

    assert client.run(SLOW_EFFECT, store=store, life=1).id == first
    assert effects(source) == 1


def test_clearing_while_the_job_runs_cancels_it_first(client: Client, source: Database) -> None:
    store = MemoryStore()
    first = client.send(f"{SLEEP}; {EFFECT}", store=store)

    second = client.run(EFFECT, store=store, life=1)

    assert (second.state, second.replaces) == ("succeeded", first)
    assert client.jobs.get(first).state == "cancelled"
    assert effects(source) == 1


def test_a_cleared_task_asks_once_what_is_installed(client: Client, source: Database) -> None:
    store = MemoryStore()
    first = client.send(EFFECT, store=store)
    client.wait(first)
    always(source, log_statement="'all'")

    def asked() -> int:
        return source.server.log.read_text(errors="replace").count("AS has_schema")

    before = asked()
    assert client.submit(EFFECT, store=store, life=1).job_id == first
    assert asked() - before == 1


# -- outcomes that the server doesn't know


def _unknown(client: Client, store: MemoryStore, why: str) -> None:
    for _ in range(2):  # a retry doesn't run it either
        with pytest.raises(OutcomeUnknownError, match=why) as caught:
            client.submit(EFFECT, store=store)
        assert "mark the task as success" in str(caught.value)


@pytest.mark.parametrize("fact", ["system_identifier", "database"])
def test_another_server_cannot_tell(client: Client, source: Database, fact: str) -> None:
    store = MemoryStore()
    client.run(EFFECT, store=store)
    state = store.get(KEY)
    state["server"][fact] = "1"
    store.set(KEY, state)

    _unknown(client, store, "another server or database answers now")

    assert effects(source) == 1
    assert client.run(EFFECT, store=store, life=1).state == "succeeded"  # cleared by a user
    assert effects(source) == 2


@pytest.mark.parametrize(
    "away", ["DELETE FROM airflow_dblink.job", "DROP SCHEMA airflow_dblink CASCADE"], ids=["row", "schema"]
)
def test_a_job_that_was_sent_and_is_not_there_any_more_may_have_run(
    client: Client, source: Database, away: str
) -> None:
    store = MemoryStore()
    client.run(EFFECT, store=store)
    source.execute(away)

    _unknown(client, store, "no longer knows it")

    assert effects(source) == 1
    assert client.run(EFFECT, store=store, life=1).state == "succeeded"


@pytest.mark.parametrize(
    "stored", ["text", 5, [], {}, {"job_id": "x"}, {"job_id": 5, "server": {}, "sent": True}]
)
def test_what_cannot_be_read_may_have_been_sent(client: Client, source: Database, stored: object) -> None:
    store = MemoryStore()
    store.set(KEY, stored)

    _unknown(client, store, "can't be read")

    assert effects(source) == 0
    assert client.run(EFFECT, store=store, life=1).state == "succeeded"  # cleared by a user


def test_a_connection_that_is_lost_before_the_statement_is_read_is_named(
    client: Client, source: Database
) -> None:
    connection = client.open()
    source.admin("SELECT pg_terminate_backend(%s, 5000)", connection.info.backend_pid)

    for keep_result in (False, True):
        with pytest.raises(TransientError, match="connection 'source'"):
            draft(connection, "source", "SELECT 1 AS a", None, keep_result=keep_result)
