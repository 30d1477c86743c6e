"""Arguments that several operators share: they come from a Dag's defaults, and mapped tasks take them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.fetch import DblinkFetchOperator
from airflow_dblink.operators.jobs import (
    DblinkCancelQueryOperator,
    DblinkGetResultOperator,
    DblinkJobOperator,
    DblinkSendQueryOperator,
)
from airflow_dblink.operators.query import DblinkQueryOperator
from airflow_dblink.operators.sync import DblinkSyncOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator
from airflow_dblink.sensors.job import DblinkJobSensor

DEFAULTS: dict[str, Any] = {
    "conn_id": "home",
    "source_conn_id": "there",
    "destination_conn_id": "here",
    "job_schema": "jobs",
    "orphan_timeout": timedelta(minutes=5),
    "batch_rows": 7,
    "file_mode": "0640",
    "allow_empty_source": True,
    "watermark_column": "changed",
    "max_mb_per_s": 20,
    "password_required": False,
}
SQL: dict[str, Any] = {"sql": "SELECT 1"}
HANDLE: dict[str, Any] = {"handle": "id"}
TABLES: dict[str, Any] = {"destination_table": "t", "source_table": "t"}
TAKES: list[tuple[type[BaseOperator], dict[str, Any], set[str]]] = [
    (DblinkExecOperator, SQL, {"conn_id", "orphan_timeout", "job_schema"}),
    (DblinkFetchOperator, {**SQL, "path": "rows.csv"}, {"conn_id", "batch_rows", "file_mode"}),
    (DblinkQueryOperator, SQL, {"conn_id", "batch_rows", "file_mode", "orphan_timeout"}),
    (DblinkSendQueryOperator, SQL, {"conn_id", "job_schema"}),
    (DblinkJobOperator, SQL, {"conn_id", "job_schema", "batch_rows", "file_mode"}),
    (
        DblinkGetResultOperator,
        {**HANDLE, "destination_table": "t"},
        {"conn_id", "job_schema", "batch_rows", "file_mode", "orphan_timeout", "destination_conn_id"},
    ),
    (DblinkCancelQueryOperator, HANDLE, {"conn_id", "job_schema"}),
    (DblinkJobSensor, HANDLE, {"conn_id", "job_schema", "password_required"}),
    (
        DblinkTransferOperator,
        TABLES,
        {"source_conn_id", "destination_conn_id", "orphan_timeout", "allow_empty_source", "max_mb_per_s"},
    ),
    (
        DblinkSyncOperator,
        TABLES,
        {"source_conn_id", "destination_conn_id", "orphan_timeout", "file_mode", "watermark_column"},
    ),
]


@pytest.mark.parametrize(("kind", "arguments", "takes"), TAKES)
def test_a_dags_defaults_reach_the_arguments(
    kind: type[BaseOperator], arguments: dict[str, Any], takes: set[str]
) -> None:
    with DAG("d", schedule=None, default_args=DEFAULTS):
        task = kind(task_id="t", **arguments)
    assert {name: getattr(task, name) for name in takes} == {name: DEFAULTS[name] for name in takes}


@pytest.mark.parametrize(("kind", "arguments", "takes"), TAKES)
def test_a_mapped_task_takes_the_arguments(
    kind: type[BaseOperator], arguments: dict[str, Any], takes: set[str]
) -> None:
    ((name, value),) = [*arguments.items()][:1]
    rest = {each: arguments[each] for each in arguments if each != name}
    with DAG("d", schedule=None):
        given = {each: DEFAULTS[each] for each in takes}
        mapped = kind.partial(task_id="t", **rest, **given).expand(**{name: [value]})
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
            kind.partial(task_id="u", **rest, **given, nonsense=1).expand(**{name: [value]})
    assert {each: mapped.partial_kwargs[each] for each in takes} == given


def test_only_an_exec_that_is_a_job_links_to_one() -> None:
    def links(deferrable: bool) -> list[str]:
        task = DblinkExecOperator(task_id="t", conn_id="home", sql="SELECT 1", deferrable=deferrable)
        return [link.name for link in task.operator_extra_links]

    assert links(deferrable=False) == []
    assert len(links(deferrable=True)) == 1


@pytest.mark.parametrize("value", [60, None, "1 hour"])
def test_an_orphan_timeout_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(AirflowFailException, match="'t': orphan_timeout must be a timedelta"):
        DblinkExecOperator(task_id="t", conn_id="home", sql="SELECT 1", orphan_timeout=value)
