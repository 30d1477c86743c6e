"""Cancelling a job, and nothing else."""

from __future__ import annotations

import threading
import time
from uuid import UUID, uuid4

import pytest

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.jobs import steps
from airflow_dblink.core.jobs.job import Job
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
    lookers,
    sleeps,
    start,
    until,
)
from tests.odd import always

STUBBORN = f"""
DO $$
BEGIN
    {EFFECT};
    LOOP
        BEGIN
            PERFORM pg_sleep(1);
        EXCEPTION WHEN query_canceled THEN
            NULL;
        END;
    END LOOP;
END $$
"""


def _cancelled(job: Job) -> None:
    assert job.state == "cancelled"
    assert job.ended_at is not None
    assert job.cancel_requested_at is not None
    error = job.error("source")
    assert error is not None
    assert error.sqlstate == "57014"
    assert error.message == "canceling statement due to user request"


def test_a_job_that_has_not_begun_never_will(client: Client, source: Database) -> None:
    job_id = client.insert(EFFECT, bound_statement="with values")

    _cancelled(client.jobs.cancel(job_id))
    client.call(job_id)

    assert client.jobs.get(job_id).state == "cancelled"
    assert client.column(job_id, "bound_statement") is None
    assert effects(source) == 0


def test_a_running_job_is_cancelled_at_once(
    client: Client, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_CANCEL_GRACE_S", 60.0)  # so its session is not terminated
    job_id = client.send(f"{EFFECT}; {SLEEP}")
    pid = client.jobs.get(job_id).pid
    until(lambda: sleeps(source, pid))

    job = client.jobs.cancel(job_id)

    _cancelled(job)
    assert job.sqlstate == "57014"  # as its own session has noted: none was terminated after a grace
    assert effects(source) == 0


def test_whoever_waits_for_a_cancelled_job_hears_of_it(client: Client, source: Database) -> None:
    job_id = client.send(SLEEP)
    ended: list[Job] = []
    waiting = threading.Thread(target=lambda: ended.append(client.wait(job_id, poll_s=60)))
    waiting.start()
    until(lambda: lookers(source))

    client.jobs.cancel(job_id)
    waiting.join(20)

    _cancelled(ended[0])


def test_whoever_waits_for_a_job_that_has_not_begun_hears_of_its_cancellation(
    client: Client, source: Database
) -> None:
    job_id = client.insert(EFFECT)
    ended: list[Job] = []
    waiting = threading.Thread(target=lambda: ended.append(client.wait(job_id, poll_s=60)))
    waiting.start()
    until(lambda: lookers(source))

    client.jobs.cancel(job_id)
    waiting.join(20)

    _cancelled(ended[0])


def test_a_job_that_catches_its_cancellation_is_terminated(client: Client, source: Database) -> None:
    job_id = client.send(STUBBORN)
    pid = client.jobs.get(job_id).pid

    _cancelled(client.jobs.cancel(job_id))

    until(lambda: not backend(source, pid))
    assert effects(source) == 0


@pytest.mark.parametrize("sql", [EFFECT, "SELECT 1/0"], ids=["succeeded", "failed"])
def test_a_job_that_has_ended_stays_as_it_is(client: Client, sql: str) -> None:
    ended = client.run(sql)

    after = client.jobs.cancel(ended.id)

    assert after.state == ended.state
    assert after.cancel_requested_at is None
    assert after.ended_at == ended.ended_at


def test_cancelling_no_job_is_an_error(client: Client) -> None:
    client.jobs.ready()
    job_id = uuid4()

    with pytest.raises(UsageError, match=f"no job {job_id}"):
        client.jobs.cancel(job_id)


def test_cancelling_twice_and_at_once_is_harmless(client: Client) -> None:
    job_id = client.send(SLEEP)
    clients = [Client(client.target) for _ in range(4)]
    threads = [threading.Thread(target=other.jobs.cancel, args=[job_id]) for other in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in clients:
        other.close()

    _cancelled(client.jobs.cancel(job_id))


def test_a_job_that_ends_while_it_is_cancelled_is_either_whole_or_not_there(
    client: Client, source: Database
) -> None:
    succeeded = 0
    for i in range(15):
        job_id = client.send(f"SELECT pg_sleep(0.03); {EFFECT}")
        time.sleep(0.022 + 0.001 * i)
        job = client.jobs.cancel(job_id)
        assert job.state in ("succeeded", "cancelled")
        succeeded += job.state == "succeeded"

    assert effects(source) == succeeded


# -- leaves others alone


def _claim_by_hand(client: Client, pid: int) -> UUID:
    """Make a job that seems to run in the session *pid*, as if it had ended without a word there."""
    job_id = client.insert(EFFECT)
    client.jobs.connection.execute(
        b"UPDATE airflow_dblink.job SET (state, pid, backend_start) ="
        b" (SELECT 'running', pid, backend_start FROM pg_stat_activity WHERE pid = %s)",
        [pid],
    )
    return job_id


def test_a_session_that_runs_something_else_now_is_left_alone(client: Client, source: Database) -> None:
    pooled = client.open()  # as a pooler has it: the same session for one after another
    job_id = _claim_by_hand(client, pooled.info.backend_pid)
    with held(source) as sql:
        start(pooled, sql)
        until(lambda: gated(source))

        job = client.jobs.cancel(job_id)

    assert job.state == "cancelled"  # of which nothing was committed
    until(lambda: effects(source) == 1)


def test_a_session_that_runs_another_job_now_is_left_alone(client: Client, source: Database) -> None:
    pooled = client.open()
    gone = _claim_by_hand(client, pooled.info.backend_pid)
    with held(source) as sql:
        running = client.insert(sql)
        start(pooled, client.call_text(running))
        until(lambda: gated(source))

        assert client.jobs.cancel(gone).state == "cancelled"
    assert client.wait(running).state == "succeeded"
    assert effects(source) == 1


def test_other_jobs_are_left_alone(client: Client) -> None:
    job_ids = [client.send(SLEEP) for _ in range(3)]

    client.jobs.cancel(job_ids[1])

    assert [client.jobs.get(job_id).state for job_id in job_ids] == ["running", "cancelled", "running"]
    for job_id in job_ids:
        client.jobs.cancel(job_id)


def test_a_pid_that_is_used_again_is_left_alone(client: Client, source: Database) -> None:
    job_id = client.send(SLEEP)
    source.admin("SELECT pg_terminate_backend(%s, 5000)", client.jobs.get(job_id).pid)
    other = client.open()
    client.jobs.connection.execute(b"UPDATE airflow_dblink.job SET pid = %s", [other.info.backend_pid])
    with held(source):
        start(other, f"{GATE}, '{job_id}'; {EFFECT}")
        until(lambda: gated(source))

        assert client.jobs.cancel(job_id).state == "cancelled"
    until(lambda: effects(source) == 1)


# -- odd settings of the role


def test_track_activities_off(client: Client, source: Database) -> None:
    always(source, track_activities="off")
    job_id = client.send(SLEEP)
    assert client.jobs.get(job_id).state == "running"

    _cancelled(client.jobs.cancel(job_id))

    stubborn = client.send(STUBBORN)
    assert client.jobs.get(stubborn).state == "running"
    _cancelled(client.jobs.cancel(stubborn))
    assert effects(source) == 0


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_role_with_a_stricter_isolation_level(client: Client, source: Database, level: str) -> None:
    always(source, default_transaction_isolation=f"'{level}'")

    _cancelled(client.jobs.cancel(client.send(f"{EFFECT}; {SLEEP}")))
    _cancelled(client.jobs.cancel(client.send(STUBBORN)))
    assert effects(source) == 0


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_request_that_waits_for_the_end_of_the_job_is_no_error(
    client: Client, source: Database, level: str
) -> None:
    always(source, default_transaction_isolation=f"'{level}'")
    job_id = client.insert(EFFECT)
    holder = Client(client.target).open()
    holder.execute("BEGIN; UPDATE airflow_dblink.job SET dag_id = 'x'")
    ended: list[Job] = []
    cancelling = threading.Thread(target=lambda: ended.append(client.jobs.cancel(job_id)))
    cancelling.start()
    blocked = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
    until(lambda: source.admin(blocked, source.name))
    holder.execute("COMMIT")
    holder.close()
    cancelling.join(20)

    _cancelled(ended[0])


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
def test_a_job_that_survives_its_cancellation(
    client: Client, source: Database, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_CANCEL_GRACE_S", 60.0)  # so its session is not terminated
    always(source, default_transaction_isolation=f"'{level}'")
    once_stubborn = """
        DO $$ BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN
        INSERT INTO effect VALUES (1); END $$
    """

    job_id = client.send(once_stubborn)
    pid = client.jobs.get(job_id).pid
    until(lambda: sleeps(source, pid))

    job = client.jobs.cancel(job_id)

    # A stricter level lets nothing be committed after the row was marked.
    expected = "succeeded" if level == "read committed" else "cancelled"
    assert job.state == expected
    assert effects(source) == (1 if expected == "succeeded" else 0)
