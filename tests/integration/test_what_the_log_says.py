"""The lines of a task's log, and the lines that it must not have, for people who read nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.jobs.job import JobHandle
from airflow_dblink.links.job import job_url
from airflow_dblink.operators.common.progress import Progress
from airflow_dblink.operators.jobs import DblinkGetResultOperator, DblinkJobOperator, DblinkSendQueryOperator
from airflow_dblink.sensors.job import DblinkJobSensor
from tests.databases import Database
from tests.integration.jobs.client import held, until
from tests.integration.tasks import context
from tests.syncs import sync
from tests.transfers import transfer

FILL = "INSERT INTO item SELECT i, 'v' || i FROM generate_series(1, {}) AS i"


@pytest.fixture
def both(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases with the same table, without rows."""
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, v text)")
    return source, warehouse


@pytest.mark.parametrize("rows", [0, 8_000])
@pytest.mark.parametrize("form", ["binary", "text"])
def test_progress_counts_rows(
    both: tuple[Database, Database],
    rows: int,
    form: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both[0].execute(FILL.format(rows))
    if form == "text":
        for database in both:
            database.execute("CREATE TYPE mood AS ENUM ('ok'); ALTER TABLE item ADD m mood")
    monkeypatch.setattr(Progress, "every_s", 0.0)
    result = transfer()
    said = [
        int(found.replace(",", "")) for found in re.findall(r"So far: ([\d,]+) rows", capsys.readouterr().out)
    ]
    assert (said[-1], max(said), result["format"]) == (rows, rows, form)


@pytest.mark.parametrize("method", ["auto", "reload", "replace"])
def test_a_sync_without_groups_speaks_of_none(
    both: tuple[Database, Database], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    both[0].execute(FILL.format(3))
    sync(method=method, max_delete_fraction=None)
    said = capsys.readouterr().out
    assert "Compared 3 rows of the source with 0 of the destination." in said
    assert "groups" not in said
    sync()
    assert " groups differ." in capsys.readouterr().out


def test_a_sync_from_an_empty_source_fetches_nothing(
    both: tuple[Database, Database], caplog: pytest.LogCaptureFixture
) -> None:
    both[1].execute(FILL.format(100))
    with caplog.at_level("INFO"), pytest.raises(AirflowFailException, match="the source is empty"):
        sync()
    assert "all rows are fetched" not in caplog.text
    both[0].execute(FILL.format(1))
    with caplog.at_level("INFO"):
        sync(max_delete_fraction=None)
    assert "all rows are fetched" in caplog.text


def test_the_address_of_a_jobs_page_is_there(source: Database, capsys: pytest.CaptureFixture[str]) -> None:
    def said(operator: Any, handle: Any = None) -> bool:
        result = operator.execute(context())
        return job_url(operator.dag_id, JobHandle.read(handle or result)) in capsys.readouterr().out

    job: dict[str, Any] = {"task_id": "task", "conn_id": "source", "sql": "SELECT 1 AS one"}
    assert said(DblinkJobOperator(**job))
    send = DblinkSendQueryOperator(**job, keep_result=True)
    handle = send.execute(context())
    assert job_url(send.dag_id, JobHandle.read(handle)) in capsys.readouterr().out
    assert said(DblinkGetResultOperator(task_id="get", handle=handle, max_xcom_rows=1), handle)
    with held(source):
        sql = "SELECT pg_advisory_xact_lock_shared(1)"
        handle = DblinkSendQueryOperator(task_id="send", conn_id="source", sql=sql).execute(context())
        capsys.readouterr()
        sensor = DblinkJobSensor(task_id="wait", handle=handle)
        assert not sensor.poke(context())
        assert job_url(sensor.dag_id, JobHandle.read(handle)) in capsys.readouterr().out
    until(lambda: sensor.poke(context()))
