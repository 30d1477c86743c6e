"""Airflow's own SQL operators and sensor on connections of type ``dblink``: they find and use DblinkHook."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg.errors
import pytest
from airflow.providers.common.compat.sdk import AirflowException, BaseHook
from airflow.providers.common.sql.operators.generic_transfer import GenericTransfer
from airflow.providers.common.sql.operators.sql import (
    SQLBulkLoadOperator,
    SQLCheckOperator,
    SQLColumnCheckOperator,
    SQLExecuteQueryOperator,
    SQLInsertRowsOperator,
    SQLTableCheckOperator,
    SQLThresholdCheckOperator,
    SQLValueCheckOperator,
)
from airflow.providers.common.sql.sensors.sql import SqlSensor
from airflow.sdk import BaseOperator
from airflow.sdk.execution_time.context import set_current_context
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.tasks import context

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs/how-to/stock-operators.md"

ITEM = "CREATE TABLE item (id int PRIMARY KEY, name text, price numeric, tags text[], more jsonb)"
ITEMS = """
INSERT INTO item SELECT n, 'item ' || n, n * 1.5, ARRAY['a', 'b'], '{"n": 1}' FROM generate_series(1, 9) n
"""


@pytest.fixture(autouse=True)
def _connections(source: Database, warehouse: Database, add_connection: AddConnection) -> None:
    """Make ``shop`` and ``stock``, of type dblink; the databases fail a test that leaves sessions."""
    add_connection("shop", source, conn_type="dblink")
    add_connection("stock", warehouse, conn_type="dblink")


def execute(operator: BaseOperator) -> Any:
    """Execute *operator* as the task runner does, once its templates are rendered."""
    operator.prepare_template()
    with set_current_context(context(dag_id="dag", task_id=operator.task_id)) as now:
        return operator.execute(now)


def query(sql: str | list[str], **arguments: Any) -> Any:
    return execute(SQLExecuteQueryOperator(task_id="query", conn_id="shop", sql=sql, **arguments))


def test_the_connection_type_leads_to_the_hook_of_the_installed_provider() -> None:
    registered = ProvidersManagerTaskRuntime().hooks["dblink"]  # type: ignore[no-untyped-call] # Airflow's
    assert registered is not None
    assert registered.package_name == "airflow-dblink"

    hook = BaseHook.get_connection("shop").get_hook()  # type: ignore[no-untyped-call] # Airflow's
    assert type(hook) is DblinkHook
    assert hook.conn_id == "shop"
    assert type(SQLExecuteQueryOperator(task_id="t", conn_id="shop", sql="").get_db_hook()) is DblinkHook


# -- SQLExecuteQueryOperator


@pytest.mark.parametrize(
    ("sql", "arguments", "output"),
    [
        ("SELECT 1, 'a%'", {}, [(1, "a%")]),
        ("SELECT %(n)s + 1, %(nothing)s::text", {"parameters": {"n": 1, "nothing": None}}, [(2, None)]),
        ("SELECT %s || %s", {"parameters": ["a", "b"]}, [("ab",)]),
        ("SELECT 1; SELECT 2", {"split_statements": True}, [(2,)]),
        ("SELECT 1; SELECT 2", {"split_statements": True, "return_last": False}, [[(1,)], [(2,)]]),
        (["SELECT %(n)s", "SELECT 2 * %(n)s"], {"parameters": {"n": 3}}, [[(3,)], [(6,)]]),
        ("CREATE TEMP TABLE t (a int)", {}, None),
        (
            "SELECT 1 AS a, 2 AS b",
            {"handler": lambda cursor: [c.name for c in cursor.description]},
            ["a", "b"],
        ),
        ("SELECT 1", {"output_processor": lambda results, columns: [(results, columns[0][0].name)]}, None),
        ("SELECT 1", {"do_xcom_push": False}, None),
    ],
)
def test_a_query(sql: str | list[str], arguments: dict[str, Any], output: Any) -> None:
    if "output_processor" in arguments:
        output = ([[(1,)]], "?column?")
    assert query(sql, **arguments) == output


def test_statements_are_one_transaction_unless_autocommit(source: Database) -> None:
    source.execute("CREATE TABLE t (a int)")
    script = "INSERT INTO t VALUES (%(a)s); SELECT 1 / (%(a)s - 1)"

    for autocommit, rows in ((False, []), (True, [(1,)])):
        with pytest.raises(psycopg.errors.DivisionByZero):
            query(script, parameters={"a": 1}, split_statements=True, autocommit=autocommit)
        assert source.rows("SELECT a FROM t") == rows

    query(script, parameters={"a": 2}, split_statements=True)
    assert source.rows("SELECT a FROM t ORDER BY a") == [(1,), (2,)]
    query("VACUUM t", autocommit=True)


def test_an_error_is_psycopgs(source: Database) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable, match='"nope" does not exist'):
        query("SELECT * FROM nope")


def test_the_session_is_the_tasks() -> None:
    own = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    assert query(own) == [("dag.query run",)]


def test_the_connections_extra_and_hook_params_arrive(
    source: Database, add_connection: AddConnection
) -> None:
    extra = {"session_settings": {"work_mem": "7MB"}, "sslmode": "prefer", "password_required": "true"}
    add_connection("shop", source, conn_type="dblink", extra=extra)

    assert query("SHOW work_mem") == [("7MB",)]
    assert query("SHOW work_mem", hook_params={"session_settings": {"work_mem": "8MB"}}) == [("8MB",)]
    options = {"options": "-c lock_timeout=5s"}
    assert query("SHOW lock_timeout", hook_params=options) == [("5s",)]


# -- checks


def test_a_check() -> None:
    execute(SQLCheckOperator(task_id="t", conn_id="shop", sql="SELECT 1, 'x', %s", parameters=[True]))
    for sql, reason in (("SELECT 1, 0", "Test failed"), ("SELECT 1 WHERE false", "zero rows")):
        with pytest.raises(AirflowException, match=reason):
            execute(SQLCheckOperator(task_id="t", conn_id="shop", sql=sql))


@pytest.mark.parametrize(
    ("operator", "arguments", "wrong"),
    [
        (
            SQLColumnCheckOperator,
            {
                "table": "item",
                "column_mapping": {"price": {"max": {"leq_to": 14}, "null_check": {"equal_to": 0}}},
            },
            {"column_mapping": {"price": {"max": {"leq_to": 13}, "null_check": {"equal_to": 0}}}},
        ),
        (
            SQLTableCheckOperator,
            {"table": "item", "checks": {"nine": {"check_statement": "count(*) = 9"}}},
            {"checks": {"nine": {"check_statement": "count(*) = 8"}}},
        ),
        (
            SQLValueCheckOperator,
            {"sql": "SELECT sum(price) FROM item", "pass_value": 67, "tolerance": 0.1},
            {"tolerance": 0.001},
        ),
        (
            SQLThresholdCheckOperator,
            {
                "sql": "SELECT count(*) FROM item",
                "min_threshold": 1,
                "max_threshold": "SELECT max(id) FROM item",
            },
            {"min_threshold": 10},
        ),
    ],
)
def test_other_checks(
    source: Database, operator: type[BaseOperator], arguments: dict[str, Any], wrong: dict[str, Any]
) -> None:
    source.execute(ITEM)
    source.execute(ITEMS)
    execute(operator(task_id="t", conn_id="shop", **arguments))
    with pytest.raises(AirflowException):
        execute(operator(task_id="t", conn_id="shop", **{**arguments, **wrong}))


# -- SqlSensor


def sensor(sql: str, **arguments: Any) -> SqlSensor:
    return SqlSensor(task_id="wait", conn_id="shop", sql=sql, **arguments)


def test_a_sensor_waits_for_a_row(source: Database) -> None:
    source.execute(ITEM)
    waiting = sensor("SELECT name FROM item WHERE id = %(id)s", parameters={"id": 3})

    assert not waiting.poke(context())
    source.execute(ITEMS)
    assert waiting.poke(context())
    execute(waiting)


def test_the_criteria_of_a_sensor(source: Database) -> None:
    assert not sensor("SELECT 1", success=lambda cell: cell > 1).poke(context())
    assert sensor("SELECT 1, 2", success=lambda cell: cell > 1, selector=lambda row: row[1]).poke(context())
    with pytest.raises(AirflowException, match="Failure criteria met"):
        sensor("SELECT -1", failure=lambda cell: cell < 0).poke(context())
    with pytest.raises(AirflowException, match="No rows"):
        sensor("SELECT 1 WHERE false", fail_on_empty=True).poke(context())
    settings = {"session_settings": {"work_mem": "7MB"}}
    is_set = sensor("SHOW work_mem", hook_params=settings, success=lambda cell: bool(cell == "7MB"))
    assert is_set.poke(context())


# -- GenericTransfer and its kin


def transfer(sql: str | list[str], **arguments: Any) -> None:
    execute(
        GenericTransfer(
            task_id="transfer",
            source_conn_id="shop",
            destination_conn_id="stock",
            destination_table="item",
            sql=sql,
            **arguments,
        )
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"insert_args": {"commit_every": 2}},
        {"page_size": 4},
        {"page_size": 3},
    ],
    ids=["at once", "in chunks", "in pages", "in full pages"],
)
def test_generic_transfer(source: Database, warehouse: Database, arguments: dict[str, Any]) -> None:
    source.execute(ITEM)
    source.execute(ITEMS)
    warehouse.execute(ITEM)
    warehouse.execute("INSERT INTO item VALUES (1, 'old')")

    transfer("SELECT * FROM item ORDER BY id", preoperator="TRUNCATE item", **arguments)

    everything = "SELECT * FROM item ORDER BY id"
    assert warehouse.rows(everything) == source.rows(everything)
    assert len(warehouse.rows(everything)) == 9


def test_generic_transfer_commits_chunk_by_chunk(source: Database, warehouse: Database) -> None:
    warehouse.execute("CREATE TABLE item (id int PRIMARY KEY)")
    query = "SELECT * FROM unnest(ARRAY[1, 2, 3, 3, 5]) id"

    with pytest.raises(psycopg.errors.UniqueViolation):
        transfer(query, insert_args={"commit_every": 2})
    assert warehouse.rows("SELECT id FROM item ORDER BY id") == [(1,), (2,)]

    transfer(query, insert_args={"replace": True, "replace_index": "id", "target_fields": ["id"]})
    assert warehouse.rows("SELECT id FROM item ORDER BY id") == [(1,), (2,), (3,), (5,)]


def test_insert_rows_and_bulk_load(warehouse: Database, tmp_path: Path) -> None:
    warehouse.execute(ITEM)
    rows = [(1, "one", 1.5, ["x"], {"k": [1]}), (2, None, None, [], None)]
    execute(
        SQLInsertRowsOperator(
            task_id="t",
            conn_id="stock",
            schema="public",
            table_name="item",
            rows=rows,
            preoperator="TRUNCATE item",
            postoperator="UPDATE item SET name = 'two' WHERE name IS NULL",
        )
    )
    file = tmp_path / "item.tsv"
    file.write_text("3\tthree\t4.5\t{}\t\\N\n")
    execute(SQLBulkLoadOperator(task_id="t", conn_id="stock", table="item", tmp_file=str(file)))

    assert warehouse.rows("SELECT * FROM item ORDER BY id") == [
        (1, "one", Decimal("1.5"), ["x"], {"k": [1]}),
        (2, "two", None, [], None),
        (3, "three", Decimal("4.5"), [], None),
    ]


# -- whole Dags, run by dag.test() in an Airflow of their own: branches, XCom, a deferred task

STOCK_DAG = """
from airflow.providers.common.sql.operators.generic_transfer import GenericTransfer
from airflow.providers.common.sql.operators.sql import (
    BranchSQLOperator, SQLExecuteQueryOperator, SQLInsertRowsOperator)
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

with DAG("stock"):
    for answer in ("true", "false"):
        branch = BranchSQLOperator(
            task_id=f"is_{answer}", conn_id="shop_db", sql="SELECT %(answer)s::boolean",
            parameters={"answer": answer},
            follow_task_ids_if_true=[f"{answer}_yes"], follow_task_ids_if_false=[f"{answer}_no"])
        branch >> [EmptyOperator(task_id=f"{answer}_yes"), EmptyOperator(task_id=f"{answer}_no")]
    rows = SQLExecuteQueryOperator(
        task_id="rows", conn_id="shop_db",
        sql="SELECT application_name, now(), 1.50 FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    # "rows" is no templated field: Airflow doesn't see that the one needs the other.
    rows >> SQLInsertRowsOperator(
        task_id="insert", conn_id="warehouse_db", schema="public", table_name="seen", rows=rows.output)
    GenericTransfer(
        task_id="deferred", source_conn_id="shop_db", destination_conn_id="warehouse_db",
        destination_table="n", sql="SELECT n FROM generate_series(1, 5) n", page_size=2, deferrable=True)
"""

RUN_DAGS = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.utils.db import initdb

initdb()
dags = DagBag(sys.argv[1]).dags
states = []
for dag_id in sys.argv[2:]:
    run = dags[dag_id].test()
    states.append({ti.task_id: ti.state for ti in run.get_task_instances()})
print("\\n" + json.dumps(states))
"""


def run_dags(home: Path, files: dict[str, str], connections: dict[str, Database], *ids: str) -> list[Any]:
    """Run Dags one after another, each to its end; return the states of their tasks by task id."""
    (home / "dags").mkdir()
    for name, text in files.items():
        (home / "dags" / name).write_text(text)
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        **{
            f"AIRFLOW_CONN_{conn_id.upper()}": database.uri.replace("postgres://", "dblink://", 1)
            for conn_id, database in connections.items()
        },
    }
    run = subprocess.run(
        [sys.executable, "-c", RUN_DAGS, str(home / "dags"), *ids],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    states: list[Any] = json.loads(run.stdout.splitlines()[-1])
    assert "failed" not in {state for dag in states for state in dag.values()}, run.stdout
    return states


def test_whole_dags(source: Database, warehouse: Database, tmp_path: Path) -> None:
    warehouse.execute("CREATE TABLE seen (name text, at timestamptz, price numeric)")
    warehouse.execute("CREATE TABLE n (n int)")
    source.execute("CREATE TABLE orders (id int, day date, status text)")
    source.execute("INSERT INTO orders VALUES (1, '2026-01-01', 'paid'), (2, '2026-01-02', 'new')")
    (how_to,) = re.findall(r"^```python\n(.*?)^```$", HOW_TO.read_text(), re.MULTILINE | re.DOTALL)

    stock, first, second = run_dags(
        tmp_path,
        {"stock.py": STOCK_DAG, "how_to.py": how_to},
        {"shop_db": source, "warehouse_db": warehouse},
        *("stock", "stock-operators_howto", "stock-operators_howto"),
    )

    assert {task for task, state in stock.items() if state == "skipped"} == {"true_no", "false_yes"}
    assert set(stock.values()) == {"success", "skipped"}
    ((name, price),) = warehouse.rows("SELECT name, price FROM seen")
    assert name.startswith("stock.rows 20")
    assert price == Decimal("1.50")
    assert warehouse.rows("SELECT n FROM n ORDER BY n") == [(1,), (2,), (3,), (4,), (5,)]

    assert set(first.values()) == {"success"}
    assert source.rows("SELECT id FROM orders WHERE status = 'closed'") == [(1,)]
    assert {task for task, state in second.items() if state == "skipped"} == {"close_day"}
