"""The example Dags of syncs on a real Airflow, and a person who answers their questions."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import AirflowEnv, execute, not_over_midnight, rows


def unpause(env: AirflowEnv, dag_id: str) -> None:
    for _ in range(600):
        with suppress(httpx.HTTPError):
            env.airflow.api("PATCH", f"/dags/{dag_id}", json={"is_paused": False})
            return
        time.sleep(0.5)
    pytest.fail(f"{dag_id} is not there")


def assert_equal(env: AirflowEnv, *tables: str) -> None:
    for table in tables:
        everything = f"SELECT t::text FROM {table} AS t ORDER BY 1"  # noqa: S608
        assert rows(env.source, everything) == rows(env.warehouse, everything), table


def counts(result: dict[str, Any]) -> tuple[int, int, int]:
    return result["inserted"], result["updated"], result["deleted"]


def test_sync(airflow_env: AirflowEnv) -> None:
    def sync(**more: Any) -> dict[str, Any]:
        run = airflow_env.run("dblink_sync", {"rows": 5_000, "changes": 7, **more})
        result: dict[str, Any] = airflow_env.airflow.xcom("dblink_sync", run, "sync")
        return result

    assert counts(sync()) == (5_000, 0, 0)
    assert_equal(airflow_env, "product")
    second = sync()
    assert (second["method"], *counts(second)) == ("difference", 7, 7, 7)
    assert_equal(airflow_env, "product")
    before = rows(airflow_env.warehouse, "SELECT t::text FROM product AS t ORDER BY 1")
    dry = sync(plan_only=True)
    assert (dry["missing"], dry["changed"], dry["extra"]) == (7, 7, 7)
    assert rows(airflow_env.warehouse, "SELECT t::text FROM product AS t ORDER BY 1") == before


def test_sync_of_tables_with_foreign_keys(airflow_env: AirflowEnv) -> None:
    unpause(airflow_env, "dblink_sync_tables")
    for inserted, deleted in ((100, 0), (1, 1), (1, 1)):
        run = airflow_env.run("dblink_sync_tables")
        assert_equal(airflow_env, "author", "publisher", "book")
        books = airflow_env.airflow.xcom("dblink_sync_tables", run, "sync_children", map_index=0)
        assert counts(books) == (inserted, 0, deleted)
        gone = airflow_env.airflow.xcom("dblink_sync_tables", run, "delete_parents", map_index=0)
        assert counts(gone) == (0, 0, deleted)
    names = {
        (ti["task_id"], ti["rendered_map_index"])
        for ti in airflow_env.airflow.task_instances("dblink_sync_tables", run)
    }
    assert {("add_parents", "author"), ("add_parents", "publisher"), ("sync_children", "book")} <= names

    # Rows that are younger than minutes_behind stay as they are on both sides.
    execute(airflow_env.source, "INSERT INTO publisher VALUES (100, 'young')")
    execute(airflow_env.warehouse, "INSERT INTO publisher VALUES (101, 'young')")
    airflow_env.run("dblink_sync_tables")
    young = "SELECT id FROM publisher WHERE id >= 100"
    assert rows(airflow_env.warehouse, young) == [(101,)]
    airflow_env.run("dblink_sync_tables", {"minutes_behind": 0})
    assert rows(airflow_env.warehouse, young) == [(100,)]
    assert_equal(airflow_env, "author", "publisher", "book")


def test_sync_after_sensor(airflow_env: AirflowEnv) -> None:
    not_over_midnight()
    airflow_env.run("dblink_sync_after_sensor", {"seconds": 0})
    assert_equal(airflow_env, "sale")
    execute(
        airflow_env.warehouse,
        "INSERT INTO sale SELECT DISTINCT day - n, -1, 0 FROM sale, generate_series(0, 1) AS n",
    )
    run = airflow_env.run("dblink_sync_after_sensor", {"seconds": 4})
    result = airflow_env.airflow.xcom("dblink_sync_after_sensor", run, "sync_day")
    assert (result["source_rows"], result["inserted"], result["deleted"]) == (1_000, 0, 1)
    ended = {ti["task_id"]: ti for ti in airflow_env.airflow.task_instances("dblink_sync_after_sensor", run)}
    assert ended["sync_day"]["start_date"] > ended["other_system"]["start_date"]
    day_before = "SELECT day - (SELECT max(day) FROM sale) FROM sale WHERE id = -1"
    assert rows(airflow_env.warehouse, day_before) == [(-1,)]


def wait_for_question(env: AirflowEnv, run: str) -> dict[str, Any]:
    ends = {"awaiting_input", "failed", "upstream_failed", "skipped"}
    asks = env.airflow.wait_for_task("dblink_sync_approval", run, "approve", ends, timeout_s=120)
    assert asks["state"] == "awaiting_input", env.failed_logs("dblink_sync_approval", run)
    found: dict[str, Any] = env.airflow.api("GET", question(run))
    # Airflow 3.3.2 fails a task whose question is answered, and which is queued again, before its scheduler
    # knows of the first process's end. A person is never that quick.
    heard = re.compile(
        rf"Received executor event with state success .*task_id='approve', run_id='{re.escape(run)}'"
    )
    scheduler = env.airflow.home / "components" / "scheduler.log"
    deadline = time.monotonic() + 60
    while not heard.search(scheduler.read_text(errors="replace")):
        assert time.monotonic() < deadline, "the scheduler has not heard of the end of the task's process"
        time.sleep(0.2)
    return found


def question(run: str) -> str:
    return f"/dags/dblink_sync_approval/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"


@pytest.mark.parametrize(
    ("answer", "moved", "states"),
    [
        ("Approve", None, ("success", "success")),
        ("Reject", None, ("success", "skipped")),
        ("Approve", "source", ("success", "failed")),
        ("Approve", "warehouse", ("success", "failed")),
    ],
)
def test_sync_that_a_person_approves(
    airflow_env: AirflowEnv,
    answer: str,
    moved: str | None,
    states: tuple[str, str],
) -> None:
    env = airflow_env
    for server in (env.source, env.warehouse):
        execute(
            server,
            "DROP TABLE IF EXISTS price; CREATE TABLE price (article text PRIMARY KEY, euro numeric(10, 2))",
        )
    execute(env.source, "INSERT INTO price SELECT 'B-' || n, n FROM generate_series(1, 500) AS n")
    execute(env.warehouse, "INSERT INTO price SELECT 'B-' || n, n FROM generate_series(1, 500) AS n")
    run = env.airflow.trigger("dblink_sync_approval", {"changes": 3})
    asked = wait_for_question(env, run)
    planned = env.airflow.xcom("dblink_sync_approval", run, "plan")
    assert (planned["missing"], planned["changed"], planned["extra"]) == (3, 3, 3)
    for what, kind in (("insert", "missing"), ("update", "changed"), ("delete", "extra")):
        keys = "; ".join(key for (key,) in planned["first_keys"][kind])
        assert f"| {what} | 3 | {keys} |" in asked["body"]
    file = Path(asked["body"].split("All statements: `file://")[1].rstrip("`"))
    statements = [line.split(" ")[0] for line in file.read_text().splitlines()]
    assert statements == 3 * ["DELETE"] + 3 * ["UPDATE"] + 3 * ["INSERT"]
    assert rows(env.warehouse, "SELECT count(*) FROM price WHERE article LIKE 'A-%'") == [(0,)]

    if moved:
        article = planned["first_keys"]["changed"][0][0]
        execute(getattr(env, moved), f"UPDATE price SET euro = 0 WHERE article = '{article}'")  # noqa: S608
    before = rows(env.warehouse, "SELECT p::text FROM price AS p ORDER BY 1")
    env.airflow.api("PATCH", question(run), json={"chosen_options": [answer]})

    assert env.airflow.wait("dblink_sync_approval", run, timeout_s=120) == (
        "failed" if "failed" in states else "success"
    )
    ended = {ti["task_id"]: ti for ti in env.airflow.task_instances("dblink_sync_approval", run)}
    logs = env.failed_logs("dblink_sync_approval", run)
    assert (ended["approve"]["state"], ended["apply"]["state"]) == states, logs
    if states[1] == "success":
        assert counts(env.airflow.xcom("dblink_sync_approval", run, "apply")) == (3, 3, 3)
        assert_equal(env, "price")
    else:
        assert rows(env.warehouse, "SELECT p::text FROM price AS p ORDER BY 1") == before
    if states[1] == "failed":
        assert ended["apply"]["try_number"] == 1
        assert "the data moved on" in logs


def test_sync_asks_nobody_if_there_is_nothing_to_do(airflow_env: AirflowEnv) -> None:
    for server in (airflow_env.source, airflow_env.warehouse):
        execute(server, "CREATE TABLE IF NOT EXISTS price (article text PRIMARY KEY, euro numeric(10, 2))")
        execute(
            server, "TRUNCATE price; INSERT INTO price SELECT n::text, n FROM generate_series(1, 500) AS n"
        )
    run = airflow_env.run("dblink_sync_approval", {"changes": 0})
    ended = {
        ti["task_id"]: ti["state"] for ti in airflow_env.airflow.task_instances("dblink_sync_approval", run)
    }
    assert (ended["anything_to_do"], ended["approve"], ended["apply"]) == ("success", "skipped", "skipped")


def test_incremental_sync_and_the_daily_one_that_finds_the_rest(airflow_env: AirflowEnv) -> None:
    env = airflow_env
    for dag_id in ("dblink_sync_incremental", "dblink_sync_incremental_full"):
        unpause(env, dag_id)

    def hourly(**conf: Any) -> dict[str, Any]:
        run = env.run("dblink_sync_incremental", conf=conf)
        result: dict[str, Any] = env.airflow.xcom("dblink_sync_incremental", run, "sync_new")
        return result

    first = hourly()
    assert counts(first) == (1_000, 0, 0)
    highest = f"SELECT max(changed_at) = '{first['watermark']}' FROM reading"  # noqa: S608
    assert rows(env.source, highest) == [(True,)]

    second = hourly()
    assert second["source_rows"] < 100  # only new rows, and the overlap
    assert (second["inserted"], second["deleted"]) == (10, 0)
    assert 0 < second["updated"] <= 10
    gone = "SELECT count(*) FROM reading"
    assert (rows(env.source, gone), rows(env.warehouse, gone)) == ([(1_000,)], [(1_010,)])

    # Committed late: with a changed_at below the watermark, once within the overlap and once not.
    execute(
        env.source,
        "INSERT INTO reading VALUES (8, 1, 1, now() - interval '5 minutes'),"
        " (8, 2, 2, now() - interval '2 hours')",
    )
    hourly(changes=0)  # the devices change random rows, and might take these
    assert rows(env.warehouse, "SELECT number FROM reading WHERE device = 8") == [(1,)]

    run = env.run("dblink_sync_incremental_full")
    full = env.airflow.xcom("dblink_sync_incremental_full", run, "sync_all")
    assert (full["inserted"], full["updated"], full["deleted"]) == (1, 0, 10)
    assert_equal(env, "reading")
