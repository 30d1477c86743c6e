"""The page of a remote job: what needs neither Airflow's api-server nor a database."""

from __future__ import annotations

import asyncio
import importlib.metadata
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from airflow_dblink.core.jobs.job import Job, JobHandle
from airflow_dblink.links.job import job_url
from airflow_dblink.provider_info import get_provider_info
from airflow_dblink.ui.facts import duration_text, facts, task_path
from airflow_dblink.ui.plugin import DblinkPlugin

ID = UUID("11111111-2222-3333-4444-555555555555")
EARLIER = UUID("99999999-2222-3333-4444-555555555555")
HANDLE = JobHandle("warehouse_db", str(ID))
SENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
JOB = Job(
    id=ID,
    state="succeeded",
    owner="loader",
    dag_id="nightly",
    task_id="load",
    run_id="manual__2026-01-02T03:04:00+00:00",
    map_index=-1,
    try_number=2,
    replaces=None,
    is_query=False,
    keep_result=False,
    command="INSERT 0",
    statement_timeout=None,
    sent_at=SENT,
    started_at=SENT + timedelta(seconds=1),
    ended_at=SENT + timedelta(seconds=66),
    cancel_requested_at=None,
    pid=4711,
    row_count=5,
    result_table=None,
    result_schema=None,
    sqlstate=None,
    message=None,
    detail=None,
    hint=None,
    context=None,
    age_s=100,
)


def _lines(job: Job, handle: JobHandle = HANDLE) -> dict[str, tuple[str, str | None]]:
    return {fact.label: (fact.text, fact.href) for fact in facts(job, handle, "/team/")}


@pytest.mark.parametrize(
    ("base_url", "begins"),
    [
        ("https://airflow.example", "https://airflow.example/dblink/jobs/"),
        ("https://airflow.example/", "https://airflow.example/dblink/jobs/"),
        ("https://airflow.example/team/a/", "https://airflow.example/team/a/dblink/jobs/"),
        ("", "/dblink/jobs/"),
        (None, "/dblink/jobs/"),
    ],
)
def test_the_link_leads_under_airflows_own_address(
    monkeypatch: pytest.MonkeyPatch, base_url: str | None, begins: str
) -> None:
    monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)
    if base_url is not None:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)

    assert job_url("nightly", HANDLE) == f"{begins}nightly/warehouse_db/{ID}"


def test_the_link_quotes_its_parts_and_names_a_schema_of_ones_own() -> None:
    url = job_url("ni ght", JobHandle("team/db?", str(ID), "jobs & more"))

    assert url.endswith(f"/dblink/jobs/ni%20ght/team%2Fdb%3F/{ID}?schema=jobs%20%26%20more")


def test_a_finished_job_has_its_times_and_its_task() -> None:
    lines = _lines(JOB)

    assert lines["Command"][0] == "INSERT 0 5"
    assert lines["Sent"][0] == "2026-01-02 03:04:05 UTC"
    assert lines["Ended"][0] == "2026-01-02 03:05:11 UTC"
    assert lines["Duration"][0] == "1 min 5 s"
    assert lines["Dag"] == ("nightly", "/team/dags/nightly")
    run = "/team/dags/nightly/runs/manual__2026-01-02T03%3A04%3A00%2B00%3A00"
    assert lines["Run"][1] == run
    assert lines["Task"] == ("load", f"{run}/tasks/load?try_number=2")
    assert lines["Server process"][0] == "4711"
    assert lines["Role"][0] == "loader"


def test_what_is_not_known_has_no_line() -> None:
    missing = replace(JOB, run_id=None, task_id=None, map_index=None, started_at=None, row_count=None)
    lines = _lines(replace(missing, ended_at=None, pid=None, state="sent"))

    assert not {"Run", "Task", "Map index", "Started", "Ended", "Duration", "Command"} & set(lines)
    assert not {"Server process", "Replaces", "Result table"} & set(lines)


def test_a_mapped_task_is_linked_by_its_index() -> None:
    job = replace(JOB, map_index=0)

    assert _lines(job)["Map index"][0] == "0"
    assert (task_path(job, "/") or "").endswith("/tasks/load/mapped/0?try_number=2")


def test_a_running_job_counts_by_the_servers_clock() -> None:
    assert _lines(replace(JOB, ended_at=None, age_s=3_601))["Duration"][0] == "1 h so far"


def test_times_are_said_in_utc() -> None:
    east = timezone(timedelta(hours=5, minutes=30))

    assert _lines(replace(JOB, sent_at=SENT.astimezone(east)))["Sent"][0] == "2026-01-02 03:04:05 UTC"


def test_the_job_that_it_replaces_is_linked_in_the_same_schema() -> None:
    handle = replace(HANDLE, schema="own")
    lines = _lines(replace(JOB, replaces=EARLIER, result_table="result_1"), handle)

    assert lines["Replaces"] == (
        str(EARLIER),
        f"/team/dblink/jobs/nightly/warehouse_db/{EARLIER}?schema=own",
    )
    assert lines["Result table"][0] == "own.result_1"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.001, "0 ms"),
        (0.0154, "15 ms"),
        (1, "1.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min"),
        (3_599.4, "59 min 59 s"),
        (3_600, "1 h"),
        (7_500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
        (864_000, "10 d"),
    ],
)
def test_durations_are_said_in_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_airflow_finds_the_plugin_once() -> None:
    (entry,) = importlib.metadata.distribution("airflow-dblink").entry_points.select(group="airflow.plugins")

    assert entry.load() is DblinkPlugin
    assert "plugins" not in get_provider_info()  # Airflow would report the second one as an error


def test_the_plugin_costs_a_task_nothing() -> None:
    code = (
        "import sys\nimport airflow_dblink.ui.plugin\n"
        "print(sorted({'fastapi', 'starlette', 'psycopg'} & set(sys.modules)))"
    )

    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert run.stdout.strip().splitlines()[-1] == "[]"


def test_a_setting_turns_the_page_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DBLINK__JOB_PAGE", "False")
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        raise AssertionError

    page = DblinkPlugin.fastapi_apps[0]["app"]
    asyncio.run(page({"type": "http", "path": f"/jobs/nightly/warehouse_db/{ID}"}, receive, send))

    assert said[0]["status"] == 404
    assert b"[dblink]" in said[1]["body"]
    assert job_url("nightly", HANDLE) == ""


def test_the_setting_is_one_of_airflows() -> None:
    assert get_provider_info()["config"]["dblink"]["options"]["job_page"]["default"] == "True"
