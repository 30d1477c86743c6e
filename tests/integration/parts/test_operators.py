"""The tasks of a load in parts, as Airflow runs them: retries, a cleared plan, mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from psycopg import sql

from airflow_dblink.core.errors import LoadLostError, RemoteError
from airflow_dblink.core.parts.copying import copy_part
from airflow_dblink.operators.common import load_tasks
from airflow_dblink.operators.common.load_plan import DblinkPartsPlanOperator
from airflow_dblink.operators.common.load_tasks import (
    DblinkPartsDropOperator,
    DblinkPartsIndexOperator,
    DblinkPartsLoadOperator,
    DblinkPartsSwapOperator,
    DblinkPartsVerifyOperator,
)
from airflow_dblink.operators.parts import dblink_parted_transfer
from tests.databases import Database, new_database
from tests.integration.tasks import context
from tests.parts import FILL, ITEM, PART_BYTES
from tests.stores import MemoryStore
from tests.transfers import meanwhile

ROWS = "SELECT * FROM item ORDER BY 1"
LEFT = "SELECT relname FROM pg_class WHERE relname LIKE 'dblink_load%%'"
COMMON: dict[str, Any] = {
    "source_conn_id": "source",
    "source_table": "item",
    "destination_conn_id": "warehouse",
    "destination_table": "item",
}
OFTEN = timedelta(milliseconds=1)
CUT: dict[str, Any] = {"part_bytes": PART_BYTES, "idle": timedelta(minutes=1)}


@dataclass
class Run:
    """One run of the group: its tasks, and their state."""

    stores: dict[str, MemoryStore] = field(default_factory=dict)

    def execute(
        self, kind: type[Any], name: str, try_number: int = 1, max_tries: int = 0, **arguments: Any
    ) -> Any:
        """Execute the task *name* of the group."""
        given = {**COMMON, **(CUT if name == "plan" else {"load_id": "plan"}), **arguments}
        task = kind(task_id=name, **given)
        store = self.stores.setdefault(name, MemoryStore())
        found = context(store, task_id=name, try_number=try_number, max_tries=max_tries)
        return task.execute(found)

    def plan(self, try_number: int = 1, max_tries: int = 0, **arguments: Any) -> list[int]:
        found: list[int] = self.execute(DblinkPartsPlanOperator, "plan", try_number, max_tries, **arguments)
        return found

    def load(self, part: Any, try_number: int = 1, **arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.execute(
            DblinkPartsLoadOperator, "load", try_number, part=part, **arguments
        )
        return found

    def rest(self, parts: list[int], **arguments: Any) -> dict[str, Any]:
        """Execute the tasks after the parts; returns the result of the last one."""
        self.execute(DblinkPartsVerifyOperator, "verify", parts=parts, **arguments)
        self.execute(DblinkPartsIndexOperator, "index", index_sessions=2, **arguments)
        found: dict[str, Any] = self.execute(DblinkPartsSwapOperator, "swap", **arguments)
        return found

    def drop(self) -> dict[str, Any]:
        found: dict[str, Any] = self.execute(DblinkPartsDropOperator, "drop")
        return found


@pytest.fixture
def run(source: Database, warehouse: Database) -> Iterator[Run]:
    """Give a run, and the tables; the keeper is ended afterwards."""
    source.execute(f"{ITEM}; {FILL}")
    warehouse.execute(ITEM)
    warehouse.execute("INSERT INTO item VALUES (0, 'before')")
    yield Run()
    source.admin(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'dblink_keeper%%'"
    )


def test_the_tasks_load_the_table(run: Run, source: Database, warehouse: Database) -> None:
    parts = run.plan()
    assert parts == list(range(1, len(parts) + 1))
    done = [run.load(part) for part in parts]
    result = run.rest(parts)
    assert sum(each["rows"] for each in done) == result["rows"] == 5000
    assert (result["parts"], result["retries"]) == (len(parts), 0)
    assert warehouse.rows(ROWS) == source.rows(ROWS)
    assert warehouse.rows(LEFT) == []
    # A try that comes after the commit, as Airflow has not heard of it, returns the same.
    forget_end(run)
    assert run.execute(DblinkPartsSwapOperator, "swap", 2) == result


def test_the_log_tells_how_far_all_parts_have_come(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    parts = run.plan()
    for part in parts:
        run.load(part)
    lines = re.findall(r"item so far: (.*?) \[", capsys.readouterr().out)
    count = len(parts)
    assert len(lines) == count
    speed = r"[\d,]+ rows, [\d.]+ MB, [\d.]+ MB/s"
    left = r"about [\d,]+ (s|min) left"
    assert re.fullmatch(rf"1 of {count} parts \({100 // count}%\), {speed}, {left}", lines[0])
    assert re.fullmatch(rf"{count} of {count} parts \(100%\), {speed}", lines[-1])


def test_a_ledger_that_is_gone_after_a_part_fails_nothing(
    run: Run, warehouse: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = run.plan()
    (ledger,) = [name for (name,) in warehouse.rows(LEFT) if name.endswith("_parts")]

    def and_then_gone(*args: Any, **kwargs: Any) -> Any:
        done = copy_part(*args, **kwargs)
        warehouse.execute(f'DROP TABLE "{ledger}"')
        return done

    monkeypatch.setattr(load_tasks, "copy_part", and_then_gone)
    assert run.load(parts[0])["rows"] > 0


def tables(database: Database) -> list[str]:
    return sorted(name for (name,) in database.rows(f"{LEFT} AND relkind = 'r'"))


def test_a_load_that_is_dropped_leaves_nothing_and_others_stay(
    run: Run, source: Database, warehouse: Database
) -> None:
    parts = run.plan()
    run.load(parts[0])
    mine = tables(warehouse)
    run.execute(DblinkPartsPlanOperator, "another_plan", load_id="another", **CUT)
    others = [name for name in tables(warehouse) if name not in mine]
    assert len(others) == 2
    with ExitStack() as zombies:
        for name in mine:  # the loaded table and its ledger
            zombie = zombies.enter_context(closing(psycopg.connect(warehouse.conninfo)))
            zombie.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.Identifier(name)))
        assert run.drop() == {"dropped": 1}
    assert tables(warehouse) == others
    assert run.drop() == {"dropped": 0}
    with pytest.raises(AirflowFailException, match="there is nothing to load into"):
        run.load(parts[1])


def test_a_drop_that_is_not_wanted_any_more_drops_nothing(run: Run, warehouse: Database) -> None:
    run.plan()
    there = tables(warehouse)
    task = DblinkPartsDropOperator(task_id="drop", load_id="plan", **COMMON)
    with pytest.raises(RemoteError, match="Airflow doesn't have this task as running"):
        task.execute(context(task_id="drop", wanted="restarting"))
    assert tables(warehouse) == there


def test_a_drop_needs_no_source(run: Run, warehouse: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run.plan()
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", "postgres://nobody:none@127.0.0.1:1/nothing")
    task = DblinkPartsDropOperator(task_id="drop", load_id="plan", **{**COMMON, "source_conn_id": "away"})
    assert task.execute(context(task_id="drop")) == {"dropped": 1}
    assert tables(warehouse) == []


def test_a_swap_waits_for_no_session_that_holds_a_ledger(run: Run, warehouse: Database) -> None:
    parts = run.plan()
    for part in parts:
        run.load(part)
    ledger = tables(warehouse)[-1]
    with closing(psycopg.connect(warehouse.conninfo)) as zombie:
        zombie.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.Identifier(ledger)))
        assert run.rest(parts)["rows"] == 5000


def test_tries_go_on_and_a_cleared_plan_begins_anew(run: Run, source: Database, warehouse: Database) -> None:
    parts = run.plan()
    run.load(1)
    assert run.plan(2) == parts
    assert run.load(1, 2)["tries"] == 1
    source.execute("DELETE FROM item WHERE id > 100")
    again = run.plan(3, max_tries=2)
    for part in again:
        run.load(part, 3)
    assert run.rest(again)["rows"] == 100
    assert warehouse.rows(ROWS) == source.rows(ROWS)


def forget_end(run: Run) -> None:
    """Leave the swap as if its worker had died after the commit."""
    store = run.stores["swap"]
    store.set("airflow_dblink_once", {**store.get("airflow_dblink_once"), "ended": None})


def test_a_load_that_was_planned_anew_after_the_swap_is_swapped_in(
    run: Run, source: Database, warehouse: Database
) -> None:
    parts = run.plan()
    for part in parts:
        run.load(part)
    run.rest(parts)
    forget_end(run)
    source.execute("DELETE FROM item WHERE id > 100")
    parts = run.plan(3, max_tries=2)
    for part in parts:
        run.load(part, 3)
    run.execute(DblinkPartsVerifyOperator, "verify", 3, 2, parts=parts)
    run.execute(DblinkPartsIndexOperator, "index", 3, 2)
    assert run.execute(DblinkPartsSwapOperator, "swap", 3, 2)["rows"] == 100
    assert warehouse.rows(ROWS) == source.rows(ROWS)
    assert warehouse.rows(LEFT) == []


def test_a_cleared_plan_begins_anew_even_if_its_first_try_fails(
    run: Run, source: Database, warehouse: Database
) -> None:
    run.plan()
    run.load(1)
    source.execute("DELETE FROM item WHERE id > 100")
    with pytest.raises(AirflowFailException, match="does not exist"):
        run.plan(3, max_tries=2, destination_table="nowhere")
    parts = run.plan(4, max_tries=2)
    for part in parts:
        run.load(part, 4)
    assert run.rest(parts)["rows"] == 100
    assert warehouse.rows(ROWS) == source.rows(ROWS)


def test_loads_into_two_databases_have_a_snapshot_each(
    run: Run, source: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_database(warehouse.server, "staging") as staging:
        monkeypatch.setenv("AIRFLOW_CONN_STAGING", staging.uri)
        staging.execute(ITEM)
        wanted = source.rows(ROWS)
        parts = run.plan()
        source.execute("DELETE FROM item WHERE id > 100")
        other = Run()
        arguments: dict[str, Any] = {"destination_conn_id": "staging"}
        others = other.execute(DblinkPartsPlanOperator, "plan", **arguments)
        for part in others:
            other.execute(DblinkPartsLoadOperator, "load", part=part, **arguments)
        for part in parts:
            run.load(part)
        assert other.rest(others, **arguments)["rows"] == 100
        run.rest(parts)
        assert staging.rows(ROWS) == source.rows(ROWS)
        assert warehouse.rows(ROWS) == wanted


def test_the_settings_say_which_tables_are_meant(run: Run, source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute("CREATE SCHEMA sales")
    source.execute(
        "CREATE TABLE sales.item AS SELECT i AS id, 'sold' AS name FROM generate_series(1, 100) AS i"
    )
    warehouse.execute("CREATE TABLE sales.item (id int PRIMARY KEY, name text)")
    arguments: dict[str, Any] = {"session_settings": {"search_path": "sales"}}
    parts = run.plan(**arguments)
    for part in parts:
        run.load(part, **arguments)
    assert run.rest(parts, **arguments)["rows"] == 100
    assert warehouse.rows("SELECT * FROM sales.item ORDER BY 1") == source.rows(
        "SELECT * FROM sales.item ORDER BY 1"
    )
    assert warehouse.rows("SELECT id FROM item") == [(0,)]
    assert warehouse.rows(LEFT) == []
    forget_end(run)
    again = run.execute(DblinkPartsSwapOperator, "swap", 2, **arguments)
    assert again["rows"] == 100


def test_a_partitioned_table_without_partitions_is_one_part_without_rows(
    run: Run, source: Database, warehouse: Database
) -> None:
    source.execute(
        "DROP TABLE item; CREATE TABLE item (id int, name text, at timestamptz) PARTITION BY LIST (id)"
    )
    assert run.plan() == [1]
    assert run.load(1)["rows"] == 0
    with pytest.raises(AirflowFailException, match="allow_empty_source"):
        run.rest([1])
    assert run.execute(DblinkPartsSwapOperator, "swap", 2, allow_empty_source=True)["rows"] == 0
    assert warehouse.rows(ROWS) == []


def test_a_run_that_was_deleted_leaves_nothing_to_go_on_with(
    run: Run, source: Database, warehouse: Database
) -> None:
    run.plan()
    run.load(1)
    run.plan(2, max_tries=1, min_parts=2)
    source.execute("DELETE FROM item WHERE id > 100")
    run.stores.clear()  # a new run of the same name
    parts = run.plan()
    for part in parts:
        run.load(part)
    assert run.rest(parts)["rows"] == 100
    assert warehouse.rows(ROWS) == source.rows(ROWS)


def test_indexes_and_swap_need_no_source(run: Run, warehouse: Database) -> None:
    parts = run.plan()
    for part in parts:
        run.load(part)
    run.execute(DblinkPartsVerifyOperator, "verify", parts=parts)
    run.execute(DblinkPartsIndexOperator, "index", source_conn_id="is_down")
    assert run.execute(DblinkPartsSwapOperator, "swap", source_conn_id="is_down")["rows"] == 5000
    assert warehouse.rows("SELECT count(*) FROM item") == [(5000,)]
    assert warehouse.rows(LEFT) == []


def test_a_load_that_is_lost_is_not_tried_again(run: Run, source: Database, warehouse: Database) -> None:
    parts = run.plan(lock=False)
    source.execute("TRUNCATE item")
    with pytest.raises(AirflowFailException, match="was truncated, rewritten"):
        run.load(1)
    with pytest.raises(AirflowFailException, match="are not copied: 1, 2"):
        run.rest(parts)
    assert warehouse.rows("SELECT id FROM item") == [(0,)]


def test_a_part_of_a_load_that_has_ended_says_so(run: Run) -> None:
    parts = run.plan()
    for part in parts:
        run.load(part)
    run.rest(parts)
    with pytest.raises(AirflowFailException, match="there is nothing to load into"):
        run.load(1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part_bytes": 0}, "part_bytes must be a whole number"),
        ({"source_table": None}, "source_table has no value"),
        ({"columns": "id"}, "columns must be a list or a mapping"),
        ({"idle": 5}, "idle must be a timedelta"),
        ({"max_parts": 9999}, "max_parts must be at most 1000"),
        ({"min_parts": None}, "min_parts must be a whole number"),
        ({"max_mb_per_s": 0}, "max_mb_per_s must be above 0"),
        ({"pause_while": "SELECT 1; SELECT 2"}, "pause_while"),
        ({"pause_while_conn_id": "source"}, "pause_while_conn_id belongs to pause_while"),
        ({"source_table": None, "source_sql": "SELECT 1"}, "source_sql has no pages to be cut"),
        ({"source_sql": "SELECT 1", "part_column": "id"}, "source_table and source_sql are both given"),
        (
            {"source_table": None, "source_sql": "SELECT 1; SELECT 2", "part_column": "id"},
            "source_sql",
        ),
        ({"source_parameters": [1]}, "source_parameters belong to source_sql"),
        ({"part_column": ""}, "part_column has no value"),
    ],
)
def test_a_mistake_is_said_when_the_dag_is_parsed(arguments: dict[str, Any], message: str) -> None:
    with DAG("mistaken", schedule=None), pytest.raises(Exception, match=message):
        dblink_parted_transfer(group_id="load", **{**COMMON, **arguments})


def test_a_query_comes_in_ranges_of_a_column(run: Run, source: Database, warehouse: Database) -> None:
    source.execute("ANALYZE item")
    query = "SELECT id, name, at FROM item WHERE id > %(least)s"
    asked: dict[str, Any] = {"source_table": None, "source_sql": query, "source_parameters": {"least": 2000}}
    parts = run.plan(**asked, part_column="id")
    assert len(parts) > 4
    for part in parts:
        run.load(part, **asked)
    assert run.rest(parts, **asked)["rows"] == 3000
    assert warehouse.rows(ROWS) == source.rows("SELECT * FROM item WHERE id > 2000 ORDER BY 1")


def test_other_parameters_than_planned_are_refused(run: Run) -> None:
    asked: dict[str, Any] = {
        "source_table": None,
        "source_sql": "SELECT id, name, at FROM item WHERE id > %s",
    }
    run.plan(**asked, source_parameters=[2000], part_column="id")
    with pytest.raises(AirflowFailException, match="would be copied otherwise than the load was planned"):
        run.load(1, **asked, source_parameters=[3000])


def test_a_limit_holds_for_each_part(run: Run) -> None:
    assert len(run.plan(part_bytes=1_000_000)) == 2
    done = run.load(1, max_mb_per_s=1)
    # The first 256 kB don't wait.
    assert done["seconds"] >= (done["bytes"] - 256 * 1024) / 1_000_000
    assert done["bytes"] > 500_000


def test_a_pause_keeps_the_plan_from_beginning(
    run: Run, warehouse: Database, is_paused: Callable[[], bool]
) -> None:
    warehouse.execute("CREATE TABLE hold (stop bool); INSERT INTO hold VALUES (true)")
    with meanwhile(lambda: begun(warehouse), when=is_paused):
        run.plan(pause_while="SELECT stop FROM hold", pause_check_interval=OFTEN)
    assert warehouse.rows(LEFT) != []


def begun(warehouse: Database) -> None:
    assert warehouse.rows(LEFT) == []
    warehouse.execute("UPDATE hold SET stop = false")


def test_the_rows_of_a_part_wait(
    run: Run, source: Database, warehouse: Database, is_paused: Callable[[], bool]
) -> None:
    parts = run.plan()
    source.execute("CREATE TABLE hold (stop bool); INSERT INTO hold VALUES (true)")
    pause: dict[str, Any] = {"pause_while": "SELECT stop FROM hold", "pause_while_conn_id": "source"}
    with meanwhile(lambda: source.execute("UPDATE hold SET stop = false"), when=is_paused):
        run.load(1, **pause, pause_check_interval=OFTEN)
    for part in parts[1:]:
        run.load(part, **pause)
    run.rest(parts)
    assert warehouse.rows(ROWS) == source.rows(ROWS)


def test_an_error_of_the_pause_is_not_one_of_the_table_that_is_read(run: Run, source: Database) -> None:
    """The next try may find what the pause looks at."""
    run.plan()
    with pytest.raises(
        RemoteError, match=r'relation "hold" does not exist(.|\n)*asking pause_while'
    ) as caught:
        run.load(1, pause_while="SELECT stop FROM hold", pause_while_conn_id="source")
    assert not isinstance(caught.value, LoadLostError)
    source.execute("CREATE TABLE hold (stop bool)")
    assert run.load(1, 2, pause_while="SELECT stop FROM hold", pause_while_conn_id="source")["rows"] > 0


def test_a_plan_that_has_begun_does_not_wait_again(run: Run) -> None:
    """Its keeper would be idle meanwhile, and end."""
    parts = run.plan()
    assert run.plan(2, pause_while="SELECT true") == parts


def test_a_template_without_a_value_fails_for_good(run: Run) -> None:
    with pytest.raises(AirflowFailException, match="source_table has no value"):
        run.plan(source_table="None")


def test_the_group_runs_its_tasks_in_order() -> None:
    with DAG("ordered", schedule=None) as dag:
        group = dblink_parted_transfer(
            group_id="load", max_active_parts=3, task_arguments={"retries": 7}, **COMMON
        )
    assert group.group_id == "load"
    order = ["plan", "load", "verify", "index", "swap"]
    assert [*dag.task_dict] == [f"load.{name}" for name in order]
    assert {task.retries for task in dag.tasks} == {7}
    assert dag.task_dict["load.load"].max_active_tis_per_dagrun == 3
    for before, after in pairwise(order):
        assert f"load.{after}" in dag.task_dict[f"load.{before}"].downstream_task_ids
