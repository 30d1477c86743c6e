"""Every example Dag on a real Airflow, and ``make demo`` as its user runs it."""

from __future__ import annotations

import csv
import gzip
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_dblink.embedded.demo import DAGS_FOLDER
from tests.acceptance.conftest import AirflowEnv, execute, not_over_midnight, rows

TESTED = {
    *("dblink_async", "dblink_exec", "dblink_fetch", "dblink_flagship", "dblink_hook", "dblink_transfer"),
    "dblink_transfer_swap",
    *("dblink_parts", "dblink_set"),
    *("dblink_job", "dblink_job_teardown", "dblink_jobs_parallel"),
    *("dblink_join", "dblink_gate", "dblink_events", "dblink_work_items", "dblink_chain"),
    *("dblink_sync", "dblink_sync_tables", "dblink_sync_after_sensor"),
    *("dblink_sync_approval", "dblink_sync_incremental"),
}
DEMO = [sys.executable, "-m", "airflow_dblink.embedded.demo"]


def test_every_example_is_tested() -> None:
    assert {path.stem for path in DAGS_FOLDER.glob("*.py")} == TESTED


def test_flagship_can_run_every_day_and_twice_a_day(airflow_env: AirflowEnv) -> None:
    env = airflow_env
    not_over_midnight()
    conf = {"scale": 1, "transactions": 500}
    env.run("dblink_flagship", conf)
    execute(
        env.warehouse, "UPDATE account_history SET loaded_on = loaded_on - 1"
    )  # as if it were yesterday's
    run = env.run("dblink_flagship", conf)
    env.run("dblink_flagship", conf)

    assert rows(env.warehouse, "SELECT count(*) FROM account_history GROUP BY loaded_on") == [
        (1000,),
        (1000,),
    ]
    accounts = "SELECT count(*), sum(abalance), min(bid), max(length(filler)) FROM "
    assert rows(env.warehouse, accounts + "account") == rows(env.source, accounts + "pgbench_accounts")
    totals = env.airflow.xcom("dblink_flagship", run, "both_sides_agree")
    assert totals == {"accounts": 100_000, "history": 1000}
    moved = env.airflow.xcom("dblink_flagship", run, "summary")["rows_moved"]
    changed = env.airflow.xcom("dblink_flagship", run, "update_accounts")
    assert 0 < changed["rows"] <= 500
    assert changed["changed"] <= changed["rows"]
    assert moved == 500 + 100_000 + changed["rows"] + 1000
    (export,) = (env.files / "airflow_dblink").glob("history-*.csv.gz")
    with gzip.open(export, "rt", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["id", "aid", "delta", "mtime"]
    assert [int(line[0]) for line in lines[1:]] == list(range(1, 501))


def test_flagship_task_can_be_cleared_and_a_difference_is_noticed(airflow_env: AirflowEnv) -> None:
    env = airflow_env
    run = env.run("dblink_flagship", {"scale": 1, "transactions": 10})
    before = rows(env.warehouse, "SELECT count(*), sum(delta) FROM account_history")
    env.airflow.clear_task("dblink_flagship", run, "load_history")
    assert env.airflow.wait("dblink_flagship", run, timeout_s=240) == "success"
    assert rows(env.warehouse, "SELECT count(*), sum(delta) FROM account_history") == before

    execute(env.warehouse, "UPDATE account SET abalance = abalance + 1 WHERE aid = 4711")
    env.airflow.clear_task("dblink_flagship", run, "both_sides_agree")
    assert env.airflow.wait("dblink_flagship", run, timeout_s=240) == "failed"
    assert "accounts differ between 1 and 50000" in env.failed_logs("dblink_flagship", run)


def test_exec(airflow_env: AirflowEnv) -> None:
    runs = {airflow_env.run("dblink_exec"), airflow_env.run("dblink_exec")}
    assert sorted(rows(airflow_env.source, "SELECT run_id FROM visit")) == sorted((run,) for run in runs)


def test_fetch(airflow_env: AirflowEnv) -> None:
    run = airflow_env.run("dblink_fetch")

    def result(task_id: str) -> object:
        return airflow_env.airflow.xcom("dblink_fetch", run, task_id)

    path = airflow_env.files / "airflow_dblink" / "squares.csv.gz"
    assert result("to_function") == {"rows": 25_000, "batches": 3}
    assert result("to_file") == {"rows": 25_000, "path": path.as_uri()}
    assert result("to_xcom") == {"rows": 1, "batches": 1, "data": [[100, 5050]]}
    with gzip.open(path, "rt") as file:
        assert file.read().splitlines()[:3] == ["n,square", "1,1", "2,4"]
    told = "10000 rows, from (10001, "
    assert airflow_env.airflow.wait_for_log("dblink_fetch", run, "to_function", told)


def test_transfer_twice(airflow_env: AirflowEnv) -> None:
    offered = rows(airflow_env.source, "SELECT count(*) FROM pg_timezone_names")
    for _ in range(2):
        airflow_env.run("dblink_transfer")
        assert rows(airflow_env.warehouse, 'SELECT count(*) FROM "Time Zone"') == offered


def test_the_gate_opens_when_the_last_batch_is_there(airflow_env: AirflowEnv) -> None:
    env = airflow_env
    not_over_midnight()
    for _ in range(2):
        run = env.run("dblink_gate")
        assert env.airflow.xcom("dblink_gate", run, "wait") is True
        assert env.airflow.xcom("dblink_gate", run, "load")["rows"] == 3_000


def test_the_gate_fails_at_once_when_the_day_is_given_up(airflow_env: AirflowEnv) -> None:
    env = airflow_env
    not_over_midnight()
    run = env.airflow.trigger("dblink_gate", {"seconds": 600})
    env.airflow.wait_for_task("dblink_gate", run, "wait", ["deferred"], timeout_s=240)
    execute(env.source, "UPDATE order_day SET state = 'given up'; NOTIFY orders_loaded")
    env.airflow.wait_for_task("dblink_gate", run, "wait", ["failed"], timeout_s=240)
    assert env.airflow.wait_for_log("dblink_gate", run, "wait", "source_db: failure_sql is true")
    env.airflow.set_task_state("dblink_gate", run, "other_system_1")
    assert env.airflow.wait("dblink_gate", run, timeout_s=240) == "failed"


def test_events_bring_what_has_changed(airflow_env: AirflowEnv) -> None:
    env = airflow_env
    for _ in range(2):
        env.run("dblink_events_shop")
        run = env.run("dblink_events")  # its trigger's runs are tested in test_events.py
        assert len(env.airflow.xcom("dblink_events", run, "claim")) == 100 + len(_tens(env))
        orders = "SELECT id, amount FROM shop_order ORDER BY id"
        assert rows(env.warehouse, orders) == rows(env.source, orders)
        execute(env.source, "DELETE FROM airflow_dblink_events.event WHERE done_at IS NOT NULL")
    assert rows(env.source, "SELECT count(*) FROM airflow_dblink_events.event") == [(0,)]


def _tens(env: AirflowEnv) -> list[tuple[Any, ...]]:
    """Return the orders that the shop changes: its second run changes those of the first one, too."""
    return rows(env.source, "SELECT id FROM shop_order WHERE id % 10 = 0")


def test_work_items_are_a_run_each(airflow_env: AirflowEnv) -> None:
    env = airflow_env
    env.run("dblink_work_items_shop")
    run = env.run("dblink_work_items")
    for item in env.airflow.xcom("dblink_work_items", run, "claim"):
        assert env.airflow.wait("dblink_work_item", f"item_{item}", timeout_s=240) == "success"
    env.airflow.clear_task("dblink_work_items", run, "claim")
    assert env.airflow.wait("dblink_work_items", run, timeout_s=240) == "success"
    done = rows(env.source, "SELECT result, handed_on IS NOT NULL FROM work_item")
    assert done == [("done", True)] * 5


def test_an_asset_tells_what_has_changed(airflow_env: AirflowEnv) -> None:
    env = airflow_env
    for script in ("", "UPDATE price SET cents = 100 WHERE product = 'milk'", ""):
        if script:
            execute(env.source, script)
        env.run("dblink_chain")
    events = env.airflow.api("GET", "/assets/events?order_by=timestamp")["asset_events"]
    facts = [event["extra"] for event in events if event["source_dag_id"] == "dblink_chain"]
    assert [(fact["inserted"], fact["updated"], fact["deleted"]) for fact in facts] == [(2, 0, 0), (0, 1, 0)]


def test_parts_twice(airflow_env: AirflowEnv) -> None:
    for _ in range(2):
        run = airflow_env.run("dblink_parts")
        result = airflow_env.airflow.xcom("dblink_parts", run, "load_measurement.swap")
        assert (result["rows"], result["retries"]) == (100_000, 0)
        assert result["parts"] > 3
    measured = "SELECT count(*), min(at), max(value) FROM measurement"
    assert rows(airflow_env.warehouse, measured) == rows(airflow_env.source, measured)


def test_set_twice(airflow_env: AirflowEnv) -> None:
    env = airflow_env
    for _ in range(2):
        run = env.run("dblink_set")
        result = env.airflow.xcom("dblink_set", run, "load_shop.swap")
        assert (result["rows"], result["tables"], result["retries"]) == (21_000, 2, 0)
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'shop_copy' ORDER BY 1"
    assert rows(env.warehouse, tables) == [("customer",), ("orders",)]
    for table in ("customer", "orders"):
        everything = "SELECT * FROM {} ORDER BY id"
        assert rows(env.warehouse, everything.format(f"shop_copy.{table}")) == rows(
            env.source, everything.format(f"shop.{table}")
        )
    keys = (
        "SELECT count(*) FROM pg_constraint WHERE conrelid = 'shop_copy.orders'::regclass AND contype = 'f'"
    )
    assert rows(env.warehouse, keys) == [(1,)]


def test_swap_twice(airflow_env: AirflowEnv) -> None:
    offered = rows(airflow_env.source, "SELECT count(*) FROM pg_settings")
    tables = set()
    for _ in range(2):
        airflow_env.run("dblink_transfer_swap")
        assert rows(airflow_env.warehouse, "SELECT count(*) FROM setting") == offered
        indexes = (
            "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'setting'::regclass ORDER BY 1"
        )
        assert rows(airflow_env.warehouse, indexes) == [("setting_category",), ("setting_pkey",)]
        tables.update(rows(airflow_env.warehouse, "SELECT 'setting'::regclass::oid"))
    assert len(tables) == 2


def test_hook(airflow_env: AirflowEnv) -> None:
    run = airflow_env.run("dblink_hook")
    version = rows(airflow_env.source, "SHOW server_version")[0][0]
    answer = airflow_env.airflow.xcom("dblink_hook", run, "compare_servers")
    assert answer == {"source": version, "warehouse": version}
    log = airflow_env.airflow.wait_for_log("dblink_hook", run, "compare_servers", "[(9,), (10,)]")
    assert 'As expected: ERROR:  column "nonsense" does not exist' in log


def test_async(airflow_env: AirflowEnv) -> None:
    run = airflow_env.run("dblink_async")
    answers = airflow_env.airflow.xcom("dblink_async", run, "count_everywhere")
    assert answers == [[name, 200_000, 6_400_000] for name in ("source", "warehouse", "archive")]
    assert airflow_env.airflow.xcom("dblink_async", run, "copy_one_row") == "Saint-Paul-d'Oueil"


def test_job_goes_to_a_table_and_a_file(airflow_env: AirflowEnv) -> None:
    for _ in range(2):  # the second run finds the first run's rows, and adds none twice
        run = airflow_env.run("dblink_job", {"rows": 1_000, "seconds": 6})
    handle = airflow_env.airflow.xcom("dblink_job", run, "send")

    waited = airflow_env.airflow.xcom("dblink_job", run, "wait")
    assert waited == {**handle, "command_tag": "SELECT 500", "row_count": 500}
    loaded = rows(airflow_env.warehouse, "SELECT count(*), min(n), max(n) FROM number_digest")
    assert loaded == [(500, 1, 999)]
    with gzip.open(airflow_env.files / "airflow_dblink" / "number_digests.csv.gz", "rt") as file:
        lines = file.read().splitlines()
    assert lines[:2] == ["n,digest", "1,c4ca4238a0b923820dcc509a6f75849b"]
    assert len(lines) == 501
    jobs = rows(
        airflow_env.source,
        "SELECT state, try_number, row_count, result_table FROM airflow_dblink.job"
        " WHERE dag_id = 'dblink_job'",
    )
    assert jobs == 2 * [("succeeded", 1, 500, None)]
    assert rows(airflow_env.source, "SELECT 1 FROM pg_tables WHERE tablename LIKE 'result%'") == []


def test_jobs_in_several_databases(airflow_env: AirflowEnv) -> None:
    run = airflow_env.run("dblink_jobs_parallel")
    servers = (airflow_env.source, airflow_env.warehouse)

    found = rows(
        airflow_env.warehouse,
        f"SELECT port, database, tables > 0 AND bytes > 0 FROM database_size WHERE run_id = '{run}'",  # noqa: S608
    )
    assert sorted(found) == sorted((server.port, server.dbname, True) for server in servers)
    for server in servers:
        told = "SELECT state, map_index FROM airflow_dblink.job WHERE dag_id = 'dblink_jobs_parallel'"
        assert rows(server, told) == [("succeeded", servers.index(server))]


def test_job_whose_waiting_task_never_came_is_cancelled(airflow_env: AirflowEnv) -> None:
    good = airflow_env.run("dblink_job_teardown", {"seconds": 0})
    bad = airflow_env.airflow.trigger("dblink_job_teardown", {"seconds": 600, "meanwhile_fails": True})
    assert airflow_env.airflow.wait("dblink_job_teardown", bad, timeout_s=120) == "failed"

    states = {
        ti["task_id"]: ti["state"] for ti in airflow_env.airflow.task_instances("dblink_job_teardown", bad)
    }
    assert states == {
        "send": "success",
        "meanwhile": "failed",
        "wait": "upstream_failed",
        "cancel": "success",
    }
    for run, state in ((good, "succeeded"), (bad, "cancelled")):
        job_id = airflow_env.airflow.xcom("dblink_job_teardown", run, "send")["job_id"]
        assert airflow_env.airflow.xcom("dblink_job_teardown", run, "cancel") == {job_id: state}
        told = f"SELECT state FROM airflow_dblink.job WHERE id = '{job_id}'"  # noqa: S608
        assert rows(airflow_env.warehouse, told) == [(state,)]
    assert rows(airflow_env.warehouse, "SELECT run_id FROM report") == [(good,)]
    deadline = time.monotonic() + 60  # pg_stat_activity shows a session a moment longer than its job
    while rows(airflow_env.warehouse, "SELECT 1 FROM pg_stat_activity WHERE query LIKE '/* CALL run(%'"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_join_over_three_databases(airflow_env: AirflowEnv) -> None:
    env = airflow_env
    for country, top in (("FR", 2), ("DE", 3), ("FR", 2)):  # the third run finds the first one's rows
        run = env.run("dblink_join", {"country": country, "top": top})
        done = env.airflow.xcom("dblink_join", run, "revenue")
        assert done["sets"] == {"customer": 500, "item_price": 600}
        assert done["command_tags"][1] == "INSERT 0 500"
        best = env.airflow.xcom("dblink_join", run, "best_customers")
        assert best["rows"] == len(best["data"]) == top
        assert env.airflow.xcom("dblink_join", run, "customers_without_orders") == 0
    per_country = "SELECT country, count(*), sum(amount) FROM revenue GROUP BY 1 ORDER BY 1"
    total = """
        SELECT sum(item * 10 + extract(year FROM day)::int % 10) FROM customer_order WHERE customer % 2 = {}
    """
    found = rows(env.warehouse, per_country)
    assert found == [
        (country, 500, rows(env.warehouse, total.format(rest))[0][0])
        for country, rest in (("DE", 1), ("FR", 0))
    ]
    tasks = {ti["task_id"]: ti for ti in env.airflow.task_instances("dblink_join", run)}
    shown = tasks["revenue"]["rendered_fields"]["remotes"]
    assert shown["customer"]["parameters"] == {"country": "FR"}


def test_no_password_is_in_any_log_or_file(airflow_env: AirflowEnv) -> None:
    airflow_env.run("dblink_hook")
    airflow_env.run("dblink_transfer")
    everything = airflow_env.airflow.all_logs()
    assert "As expected: ERROR" in everything
    for server in (airflow_env.source, airflow_env.warehouse):
        assert server.role_password not in everything


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Give a directory for all files of the demo, which PostgreSQL's account can pass through."""
    with tempfile.TemporaryDirectory(prefix="demo_") as name:
        path = Path(name)
        path.chmod(0o711)
        yield path
        assert list(path.iterdir()) == []  # the demo leaves nothing behind


def test_demo_ends_with_what_it_moved(temporary: Path) -> None:
    env = os.environ | {"TMPDIR": str(temporary)}
    demo = subprocess.run(
        [*DEMO, "--scale", "1"], env=env, capture_output=True, text=True, check=False, timeout=900
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert re.search(r"^ +\d+\.\d s  load_accounts +success$", demo.stdout, re.MULTILINE)
    assert re.search(
        r"^load_accounts +100,000 +1\d\.\d +\d+\.\d\d +\d+\.\d +\d+\.\d$", demo.stdout, re.MULTILINE
    )
    assert re.search(r"^export_history +1,000 ", demo.stdout, re.MULTILINE)
    assert "Both sides agree: 100,000 accounts and 2,000 history rows" in demo.stdout


def test_demo_names_the_task_that_failed(temporary: Path) -> None:
    env = os.environ | {"TMPDIR": str(temporary), "AIRFLOW_DBLINK_PGBENCH": "/bin/false"}
    demo = subprocess.run([*DEMO], env=env, capture_output=True, text=True, check=False, timeout=900)
    assert demo.returncode == 1
    assert "Task fill_source failed; its log ends:" in demo.stderr
    assert "pgbench --initialize --scale=10 --quiet ended with exit code 1" in demo.stderr


def test_demo_with_ui_runs_by_its_schedule_and_ends_on_ctrl_c(temporary: Path) -> None:
    env = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen([*DEMO, "--ui"], env=env, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        told = ""
        while "Ctrl-C" not in told:
            line = demo.stdout.readline()
            assert line, told
            told += line
        address = re.search(r"(http://127\.0\.0\.1:\d+)\n +login: (admin)   password: (\S+)\n", told)
        assert address
        assert _first_run(*address.groups()) == ("success", "scheduled")
        demo.send_signal(signal.SIGINT)
        told = demo.stdout.read()
        assert demo.wait(60) == 0
    assert "Stopped; nothing is left behind." in told


def _first_run(url: str, username: str, password: str) -> tuple[str, str]:
    """Log in as the demo's user does, wait for the end of the first run; return state and type."""
    with httpx.Client(base_url=url, trust_env=False, timeout=90) as client:
        answer = client.post("/auth/token", json={"username": username, "password": password})
        client.headers["Authorization"] = f"Bearer {answer.raise_for_status().json()['access_token']}"
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            with suppress(httpx.TimeoutException):
                found = client.get("/api/v2/dags/dblink_flagship/dagRuns")
                runs = found.json()["dag_runs"] if found.is_success else []
                if runs and runs[0]["state"] in ("success", "failed"):
                    return runs[0]["state"], runs[0]["run_type"]
            time.sleep(1)
        pytest.fail("no run has ended")


@pytest.mark.parametrize(("signum", "after_s"), [(signal.SIGINT, 0.5), (signal.SIGTERM, 8.0)])
def test_demo_that_is_stopped_early_leaves_nothing(
    temporary: Path, signum: signal.Signals, after_s: float
) -> None:
    env = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(DEMO, env=env, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        assert demo.stdout.readline().startswith("Starting ")
        time.sleep(after_s)
        demo.send_signal(signum)
        assert demo.wait(60) == 130


def test_demo_without_the_examples_says_so() -> None:
    code = (
        "import sys; from pathlib import Path; from airflow_dblink.embedded import demo;"
        " demo.DAGS_FOLDER = Path(sys.argv[1]); demo.main([])"
    )
    demo = subprocess.run(
        [sys.executable, "-c", code, tempfile.gettempdir()], capture_output=True, text=True, check=False
    )
    assert demo.returncode == 2
    assert "the demo runs only from a checkout of airflow-dblink" in " ".join(demo.stderr.split())
