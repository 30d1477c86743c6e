"""A load in parts under a real scheduler and LocalExecutor: a part is killed, a part is cleared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import AirflowEnv, execute, rows
from tests.oracle import wait_until

DAG_ID = "dying_parts"
TABLE = "CREATE TABLE dying_part (id int PRIMARY KEY, name text)"
FILL = "INSERT INTO dying_part SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 3000) AS i"
ALL = "SELECT * FROM dying_part ORDER BY id"
LEFT = "SELECT relname FROM pg_class WHERE relname LIKE 'dblink_load%'"
KEEPERS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'dblink_keeper%'"


@pytest.fixture
def env(airflow_env: AirflowEnv) -> Iterator[AirflowEnv]:
    """Give an Airflow that has the Dag, and the table in both databases: filled, and with one row."""
    if not (airflow_env.dags / "dying_parts.py").exists():  # else it would be empty for a moment
        shutil.copy(Path(__file__).parent / "dags/dying_parts.py", airflow_env.dags)
    execute(airflow_env.source, f"DROP TABLE IF EXISTS dying_part; {TABLE}; {FILL}")
    execute(airflow_env.warehouse, f"DROP TABLE IF EXISTS dying_part; {TABLE}")
    execute(airflow_env.warehouse, "INSERT INTO dying_part VALUES (0, 'before')")
    yield airflow_env
    for (name,) in rows(
        airflow_env.warehouse, LEFT.replace("relname LIKE", "relkind = 'r' AND relname LIKE")
    ):
        execute(airflow_env.warehouse, f'DROP TABLE "{name}"')


def parts(env: AirflowEnv, run: str) -> dict[int, dict[str, Any]]:
    """Return the instances of the task that copies parts, by the number of the part."""
    found = env.airflow.task_instances(DAG_ID, run)
    return {ti["map_index"] + 1: ti for ti in found if ti["task_id"] == "load.load"}


def demand_all_is_there(env: AirflowEnv) -> None:
    assert rows(env.warehouse, ALL) == rows(env.source, ALL)
    assert rows(env.warehouse, LEFT) == []
    wait_until(lambda: rows(env.source, KEEPERS) == [])


def test_a_part_that_is_killed_is_copied_again_alone(env: AirflowEnv) -> None:
    run = env.run(DAG_ID)

    tries = {part: ti["try_number"] for part, ti in parts(env, run).items()}
    assert tries == {**dict.fromkeys(tries, 1), 2: 2}
    assert len(tries) > 3
    result = env.airflow.xcom(DAG_ID, run, "load.swap")
    assert (result["rows"], result["parts"], result["retries"]) == (3000, len(tries), 1)
    demand_all_is_there(env)


def test_a_part_that_failed_is_cleared_alone_and_the_table_is_untouched_before(env: AirflowEnv) -> None:
    run = env.airflow.trigger(DAG_ID, {"fails": True})
    assert env.airflow.wait(DAG_ID, run, timeout_s=240) == "failed"
    assert {part for part, ti in parts(env, run).items() if ti["state"] == "failed"} == {3}
    assert rows(env.warehouse, ALL) == [(0, "before")]

    body = {"dry_run": False, "dag_run_id": run, "task_ids": [["load.load", 2]]}
    options = {"only_failed": False, "include_downstream": True}
    env.airflow.api("POST", f"/dags/{DAG_ID}/clearTaskInstances", json=body | options)

    assert env.airflow.wait(DAG_ID, run, timeout_s=240) == "success"
    tries = {part: ti["try_number"] for part, ti in parts(env, run).items()}
    assert tries == {**dict.fromkeys(tries, 1), 2: 2, 3: 3}
    demand_all_is_there(env)


def test_the_plan_of_a_run_that_has_ended_is_cleared_and_all_is_loaded_anew(env: AirflowEnv) -> None:
    run = env.run(DAG_ID)
    execute(env.source, "DELETE FROM dying_part WHERE id > 100")

    env.airflow.clear_task(DAG_ID, run, "load.plan")

    assert env.airflow.wait(DAG_ID, run, timeout_s=240) == "success"
    assert env.airflow.xcom(DAG_ID, run, "load.swap")["rows"] == 100
    demand_all_is_there(env)


def test_a_load_that_fails_for_good_is_dropped_if_that_is_wanted(env: AirflowEnv) -> None:
    run = env.airflow.trigger("dropped_parts", {"fails": True})
    assert env.airflow.wait("dropped_parts", run, timeout_s=240) == "failed"

    states = {ti["task_id"]: ti["state"] for ti in env.airflow.task_instances("dropped_parts", run)}
    assert (states["load.swap"], states["load.drop"]) == ("upstream_failed", "success")
    assert env.airflow.xcom("dropped_parts", run, "load.drop") == {"dropped": 1}
    assert rows(env.warehouse, ALL) == [(0, "before")]
    assert rows(env.warehouse, LEFT) == []
    wait_until(lambda: rows(env.source, KEEPERS) == [])

    again = env.run("dropped_parts")
    assert env.airflow.xcom("dropped_parts", again, "load.drop") == {"dropped": 0}
    demand_all_is_there(env)
