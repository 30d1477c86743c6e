"""Wrong arguments of the job operators that are found before a job is sent."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.operators.jobs import DblinkGetResultOperator, DblinkJobOperator, DblinkSendQueryOperator
from tests.databases import Database
from tests.integration.tasks import context

HANDLE = {"conn_id": "source", "job_id": "00000000-0000-0000-0000-000000000000", "schema": "public"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"path": "None"}, "path has no value"),
        ({"path": ""}, "path has no value"),
        ({"path": "file:///tmp"}, "path must be a file, got the directory"),
        ({"path": 5}, "path must be text, got int"),
        ({"handler": "print"}, "handler must be a function, got str"),
        ({"max_xcom_rows": "five"}, "max_xcom_rows must be an integer"),
        ({"max_xcom_rows": 5, "batch_rows": 0}, "batch_rows must be an integer"),
    ],
)
def test_where_the_rows_go_is_looked_at_before_a_job_is_sent(
    source: Database, arguments: dict[str, Any], why: str
) -> None:
    given: dict[str, Any] = {
        "task_id": "job",
        "conn_id": "source",
        "sql": "SELECT 1 AS a",
        "deferrable": False,
    }
    with pytest.raises(AirflowFailException, match=why):
        DblinkJobOperator(**given, **arguments).execute(context())
    with pytest.raises(AirflowFailException, match=why):
        DblinkGetResultOperator(task_id="result", handle=HANDLE, **arguments).execute(context())
    assert source.sessions() == []


@pytest.mark.parametrize("arguments", [{"sql": "None"}, {"conn_id": "None", "sql": "SELECT 1"}])
@pytest.mark.parametrize("kind", [DblinkJobOperator, DblinkSendQueryOperator])
def test_what_has_no_value_is_named(source: Database, kind: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException, match=r"(sql|conn_id) has no value \(None\)"):
        kind(**{"task_id": "job", "conn_id": "source", **arguments}).execute(context())


@pytest.mark.parametrize("lost", ["destination_table", "destination_conn_id"])
def test_a_lost_destination_is_named(source: Database, lost: str) -> None:
    given: dict[str, Any] = {"destination_table": "t", "destination_conn_id": "warehouse", lost: "None"}
    with pytest.raises(AirflowFailException, match=f"{lost} has no value"):
        DblinkGetResultOperator(task_id="result", handle=HANDLE, **given).execute(context())
    with pytest.raises(AirflowFailException, match="key must be a list of columns, got int"):
        DblinkGetResultOperator(task_id="result", handle=HANDLE, key=5).execute(context())  # type: ignore[arg-type]
