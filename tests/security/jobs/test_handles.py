"""A handle that a user fills in (``dag_run.conf``) leads to another connection, or another job table."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.exceptions import DblinkJobError
from airflow_dblink.operators.jobs import (
    DblinkCancelQueryOperator,
    DblinkGetResultOperator,
    DblinkSendQueryOperator,
)
from airflow_dblink.sensors.job import DblinkJobSensor
from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.jobs.client import SLEEP, Client
from tests.integration.tasks import context

REFUSED = (AirflowFailException, DblinkJobError)
TEMPLATE = "{{ dag_run.conf['handle'] }}"
KINDS: dict[str, dict[str, Any]] = {
    "get": {"kind": DblinkGetResultOperator, "max_xcom_rows": 5},
    "cancel": {"kind": DblinkCancelQueryOperator},
    "wait": {"kind": DblinkJobSensor, "timeout": 60},
}


def _run(kind: str, handle: Any, conf: Any = None, **arguments: Any) -> Any:
    """Render the task's templates with *conf* as the run's, and execute it."""
    options = dict(KINDS[kind])
    with DAG("dag", schedule=None):
        task: BaseOperator = options.pop("kind")(task_id="task", handle=handle, **options, **arguments)
    values: Any = {"dag_run": {"conf": {"handle": conf}}}
    task.render_template_fields(values)
    return task.execute(context())


@pytest.fixture
def handle(client: Client) -> dict[str, str]:
    """Return the handle of a job that has kept rows, and is in the usual schema."""
    job = client.run("SELECT 1 AS a", keep_result=True)
    return {"conn_id": "source", "job_id": str(job.id), "schema": "airflow_dblink"}


@pytest.fixture
def secret_db(source: Database, add_connection: AddConnection) -> str:
    """Give a second connection, which the author of the Dag hasn't meant."""
    return add_connection("secret_db", source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_picks_no_connection(kind: str, handle: dict[str, str], secret_db: str) -> None:
    filled_in = {**handle, "conn_id": secret_db}

    with pytest.raises(REFUSED, match="conn_id has to name"):
        _run(kind, TEMPLATE, filled_in)
    with pytest.raises(REFUSED, match="connection 'secret_db', but conn_id is 'source'"):
        _run(kind, TEMPLATE, filled_in, conn_id="source")
    with pytest.raises(REFUSED, match="connection 'secret_db', but conn_id is 'source'"):
        _run(kind, filled_in, conn_id="source")


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_picks_no_schema(kind: str, handle: dict[str, str]) -> None:
    filled_in = {**handle, "schema": "theirs"}

    with pytest.raises(REFUSED, match="schema 'theirs', but the connection's job_schema is 'airflow_dblink'"):
        _run(kind, TEMPLATE, filled_in, conn_id="source")
    with pytest.raises(REFUSED, match="schema 'theirs', but job_schema is 'airflow_dblink'"):
        _run(kind, filled_in, job_schema="airflow_dblink")


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_mapping_are_templates_too(kind: str, handle: dict[str, str]) -> None:
    written = {**handle, "conn_id": "{{ dag_run.conf['handle']['conn_id'] }}"}

    with pytest.raises(REFUSED, match="conn_id has to name"):
        _run(kind, written, handle)


def test_nor_does_one_in_a_list(handle: dict[str, str], client: Client) -> None:
    running = client.send(SLEEP)
    mine = {**handle, "job_id": str(running)}

    with pytest.raises(REFUSED, match="conn_id has to name"):
        _run("cancel", [mine, TEMPLATE], handle)
    assert client.jobs.get(running).state == "running"
    client.jobs.cancel(running)


@pytest.mark.parametrize("kind", KINDS)
def test_what_agrees_is_taken(kind: str, handle: dict[str, str]) -> None:
    for arguments in ({"conn_id": "source"}, {"conn_id": "source", "job_schema": "airflow_dblink"}):
        assert _run(kind, TEMPLATE, handle, **arguments)
        assert _run(kind, TEMPLATE, handle["job_id"], **arguments)
        assert _run(kind, handle["job_id"], **arguments)
    assert _run(kind, handle)


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_is_of_the_connections_schema(
    kind: str, handle: dict[str, str], source: Database, add_connection: AddConnection
) -> None:
    elsewhere = add_connection("elsewhere", source, conn_type="dblink", extra={"job_schema": "my_jobs"})
    with DAG("dag", schedule=None):
        send = DblinkSendQueryOperator(
            task_id="send", conn_id=elsewhere, sql="SELECT 1 AS a", keep_result=True
        )
    sent = send.execute(context())
    assert sent["schema"] == "my_jobs"

    if kind == "wait":
        _run("get", sent)  # waits for its end
    assert _run(kind, sent["job_id"], conn_id=elsewhere)
    assert _run(kind, TEMPLATE, sent, conn_id=elsewhere)
    with pytest.raises(
        REFUSED, match="schema 'my_jobs', but the connection's job_schema is 'airflow_dblink'"
    ):
        _run(kind, TEMPLATE, {**sent, "conn_id": "source"}, conn_id="source")


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_of_a_task_needs_no_conn_id(kind: str, handle: dict[str, str]) -> None:
    """Rendering replaces it by the output of a task that the author has chosen."""
    options = dict(KINDS[kind])
    with DAG("dag", schedule=None):
        send = DblinkSendQueryOperator(task_id="send", conn_id="source", sql="SELECT 1")
        task = options.pop("kind")(task_id="task", handle=send.output, **options)
    task.handle = handle

    assert task.execute(context())
