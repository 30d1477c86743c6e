"""Somebody writes the id of another task's job into a task's state: that job is not this task's."""

from __future__ import annotations

from uuid import UUID

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time.context import set_current_context

from airflow_dblink.core.errors import OutcomeUnknownError
from airflow_dblink.core.jobs.job import SCHEMA
from airflow_dblink.core.jobs.send import KEY
from airflow_dblink.operators.jobs import DblinkJobOperator
from tests.integration.jobs.client import EFFECT, SLEEP, TRY, Client
from tests.integration.tasks import context
from tests.stores import MemoryStore


@pytest.fixture(params=[{"dag_id": "x"}, {"task_id": "x"}, {"run_id": "x"}, {"map_index": 0}])
def forged(client: Client, request: pytest.FixtureRequest) -> MemoryStore:
    """Return the state of a task that names the running job of another."""
    store = MemoryStore()
    victim = client.submission(store, task={**TRY, **request.param})
    sent = victim.submit(lambda connection: client.draft(SLEEP))
    assert sent.call is not None
    sent.call.leave()
    return store


def _goes_on(client: Client, job_id: str) -> bool:
    """Return whether the job still runs, and cancel it."""
    state = client.jobs.get(UUID(job_id)).state
    client.jobs.cancel(UUID(job_id))
    return state == "running"


def test_a_retry_does_not_take_over_another_tasks_job(client: Client, forged: MemoryStore) -> None:
    for _ in range(2):
        with pytest.raises(OutcomeUnknownError, match="another task's job"):
            client.send(EFFECT, store=forged)
    assert _goes_on(client, forged.get(KEY)["job_id"])


def test_a_cleared_task_does_not_cancel_another_tasks_job(client: Client, forged: MemoryStore) -> None:
    with pytest.raises(OutcomeUnknownError, match="another task's job"):
        client.send(EFFECT, store=forged, life=1)
    job_id = forged.get(KEY)["job_id"]

    mine = client.run(EFFECT, store=forged, life=2)  # the user has seen the error, and cleared the task again

    assert (mine.state, mine.replaces) == ("succeeded", None)
    assert _goes_on(client, job_id)


def _times_out(job_id: str, store: MemoryStore) -> None:
    task = context(store)
    handle = {"conn_id": "source", "job_id": job_id, "schema": SCHEMA}
    operator = DblinkJobOperator(task_id="task", conn_id="source", sql="SELECT 1")
    with set_current_context(task), pytest.raises(AirflowTaskTimeout):
        operator.execute_complete(task, {"job_id": job_id, "state": "timeout"}, handle)


def test_a_task_that_is_ended_does_not_cancel_another_tasks_job(client: Client, forged: MemoryStore) -> None:
    job_id = forged.get(KEY)["job_id"]
    _times_out(job_id, forged)
    assert _goes_on(client, job_id)


def test_a_task_that_is_ended_cancels_its_own(client: Client) -> None:
    store = MemoryStore()
    job_id = str(client.send(SLEEP, store=store))
    _times_out(job_id, store)
    assert client.jobs.get(UUID(job_id)).state == "cancelled"
