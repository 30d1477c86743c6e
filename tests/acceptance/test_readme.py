"""Every snippet of README and docs does what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import psycopg
import pytest

from airflow_dblink.core.events.install import install_script as install_events
from airflow_dblink.core.events.table import SCHEMA as EVENTS
from airflow_dblink.core.jobs.install import install_script
from airflow_dblink.core.jobs.job import SCHEMA
from tests.acceptance.conftest import AirflowEnv, execute, rows

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

ORDERS = """
DROP TABLE IF EXISTS orders;
CREATE TABLE orders (id bigint PRIMARY KEY, day date NOT NULL, status text NOT NULL);
"""
THREE = (
    "INSERT INTO orders VALUES (1, '2026-01-01', 'paid'), (2, '2026-01-02', 'new'), (3, 'infinity', 'paid')"
)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def python_blocks(path: Path) -> list[str]:
    return blocks(path, "python")


@pytest.fixture
def shop(airflow_env: AirflowEnv) -> AirflowEnv:
    execute(airflow_env.source, ORDERS + THREE)
    execute(airflow_env.warehouse, ORDERS)
    return airflow_env


def test_dag(shop: AirflowEnv) -> None:
    (dag,) = [block for block in python_blocks(ROOT / "README.md") if "with DAG(" in block]
    target = (shop.files / "closed_orders.csv.gz").as_uri()
    changed = dag.replace("file:///tmp/closed_orders.csv.gz", target)
    assert changed != dag
    (shop.dags / "readme.py").write_text(changed)
    for _ in range(2):
        run = shop.run("shop_to_warehouse")
        assert shop.airflow.xcom("shop_to_warehouse", run, "export")["rows"] == 1
    assert shop.airflow.xcom("shop_to_warehouse", run, "close_day") == "UPDATE 0"
    ours = rows(shop.warehouse, "SELECT id, status, day::text FROM orders ORDER BY id")
    assert ours == [(1, "closed", "2026-01-01"), (2, "new", "2026-01-02"), (3, "paid", "infinity")]


def test_own_dags_on_the_embedded_servers(tmp_path: Path) -> None:
    (script,) = python_blocks(ROOT / "docs/how-to/embedded.md")
    (dag,) = [block for block in python_blocks(ROOT / "README.md") if "with DAG(" in block]
    (tmp_path / "dags").mkdir()
    target = (tmp_path / "closed_orders.csv.gz").as_uri()
    (tmp_path / "dags/shop.py").write_text(dag.replace("file:///tmp/closed_orders.csv.gz", target))
    (tmp_path / "script.py").write_text(script)

    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "success" in done.stdout.splitlines(), done.stdout + done.stderr
    assert (tmp_path / "closed_orders.csv.gz").exists()


def test_hook(shop: AirflowEnv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_DB", shop.source.airflow_uri())
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE_DB", shop.warehouse.airflow_uri())
    execute(shop.source, "UPDATE orders SET day = '2026-01-03' WHERE id = 3")  # Python has no infinite date
    (script,) = [block for block in python_blocks(ROOT / "README.md") if "DblinkHook(" in block]
    exec(compile(script, "README.md", "exec"), {})  # noqa: S102 - the test is to run it
    lines = capsys.readouterr().out.splitlines()
    assert sorted(eval(lines[0])) == [("new", 1), ("paid", 2)]  # noqa: S307
    assert lines[1:] == ["DELETE 0", "3"]


def test_reference(shop: AirflowEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_DB", shop.source.airflow_uri())
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE_DB", shop.warehouse.airflow_uri())
    for script in python_blocks(ROOT / "docs/reference/hook.md"):
        exec(compile(script, "hook.md", "exec"), {})  # noqa: S102


def test_connection_form() -> None:
    (script,) = python_blocks(ROOT / "docs/how-to/connections.md")
    exec(compile(script, "connections.md", "exec"), {})  # noqa: S102


@pytest.mark.parametrize(
    "name",
    [
        *("exec", "fetch", "transfer", "swap", "parts", "sets", "sync", "query", "jobs", "stock-operators"),
        *("wait-for-data", "new-rows"),
    ],
)
def test_how_to(shop: AirflowEnv, name: str) -> None:
    # Python has no infinite date, and docs/how-to/fetch.md says so.
    execute(shop.source, "UPDATE orders SET day = '2026-01-03' WHERE id = 3")
    if name == "sets":
        execute(shop.source, "DROP SCHEMA IF EXISTS sales CASCADE; CREATE SCHEMA sales")
        execute(
            shop.source, "CREATE TABLE sales.shop (id int PRIMARY KEY); CREATE TABLE sales.a_log (id int)"
        )
    for dag in python_blocks(ROOT / f"docs/how-to/{name}.md"):
        (dag_id,) = re.findall(r'with DAG\("([\w-]+)"', dag)
        (shop.dags / f"{dag_id}.py").write_text(dag.replace("file:///tmp/", f"{shop.files.as_uri()}/"))
        run = shop.run(dag_id)
        results = {ti["task_id"]: ti["state"] for ti in shop.airflow.task_instances(dag_id, run)}
        assert set(results.values()) == {"success"}


def test_how_to_react_to_events(shop: AirflowEnv) -> None:
    page = ROOT / "docs/how-to/react-to-events.md"
    execute(shop.source, f"DROP SCHEMA IF EXISTS {EVENTS} CASCADE; DROP TABLE IF EXISTS item")
    execute(shop.source, install_events(EVENTS))
    execute(shop.source, "UPDATE orders SET status = 'paid' WHERE id = 1")
    for statements in blocks(page, "sql"):  # the first one emits the Dag's event
        execute(shop.source, statements)
    dag, *snippets = python_blocks(page)
    (shop.dags / "events_howto.py").write_text(dag)
    run = shop.run("events_howto")
    assert shop.airflow.xcom("events_howto", run, "ack") == 1
    assert rows(shop.source, "SELECT status FROM orders WHERE id = 1") == [("shipped",)]
    for snippet in snippets:
        exec(compile(snippet, page.name, "exec"), {})  # noqa: S102 - our own page
    execute(shop.source, f"DROP SCHEMA {EVENTS} CASCADE; DROP TABLE item")


def test_what_dbas_are_told_to_run(shop: AirflowEnv) -> None:
    execute(shop.source, install_script(SCHEMA))
    statements = blocks(ROOT / "docs/how-to/jobs-for-dbas.md", "sql")
    assert len(statements) == 4
    with psycopg.connect(shop.source.conninfo(superuser=True), autocommit=True) as dba:
        dba.execute("CREATE ROLE dba")
        for statement in statements:
            dba.execute(statement.encode())
        dba.execute(f'REASSIGN OWNED BY dba TO "{shop.source.role}"; DROP ROLE dba'.encode())


@pytest.mark.parametrize("name", ["jobs", "events", "sync"])
def test_the_guarantees_name_tests_that_exist(name: str) -> None:
    page = (ROOT / f"docs/{name}-guarantees.md").read_text()
    rows = [line for line in page.splitlines() if "test_" in line and line.startswith("|")]
    assert len(rows) >= 15
    everywhere = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", page):
        assert f"def {test}(" in everywhere, test
    for row in rows:
        for file, tests in re.findall(r"`([\w/]+\.py)`: (.*?)(?:<br>| \|)", row):
            text = (ROOT / "tests" / file).read_text()
            for test in re.findall(r"`(\w+)`", tests):
                assert f"def {test}(" in text, f"{test} in {file}"


def commands() -> list[str]:
    return [line for path in DOCS for block in blocks(path, "console") for line in block.splitlines() if line]


@pytest.mark.parametrize("command", commands())
def test_command(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        asked = subprocess.run(
            ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert ".venv/bin/python -m" in asked.stdout
    elif words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert words[2:] == [project["name"]]
    else:
        assert words[0] == "airflow"
        arguments = [sys.executable, "-m", *words[:3], "--help"]
        asked = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert asked.stdout


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert link.startswith("https://") or (path.parent / link).exists(), link
