# ruff: noqa: S608 - names that the tests themselves made
"""Mode ``replace`` and a source without rows: the destination's rows stay unless the task allows it."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.operators.jobs import DblinkGetResultOperator, DblinkSendQueryOperator
from tests.databases import Database
from tests.integration.tasks import context
from tests.transfers import meanwhile, transfer

ITEM = "CREATE TABLE item (id int PRIMARY KEY, name text)"
STAYS = [(0, "stays")]
REFUSED = r"(?s)'source': the source is empty, and public.item has rows.*HINT.*allow_empty_source=True"


@pytest.fixture
def filled(source: Database, warehouse: Database) -> Database:
    """Give the warehouse with a row in table item; the source's has none."""
    source.execute(ITEM)
    warehouse.execute(f"{ITEM}; INSERT INTO item VALUES (0, 'stays')")
    return warehouse


def items(database: Database) -> list[tuple[object, ...]]:
    return database.rows("TABLE item")


def test_it_is_refused_and_nothing_is_changed(filled: Database) -> None:
    filled.execute("CREATE TABLE note (a int)")
    with pytest.raises(AirflowFailException, match=REFUSED):
        transfer(
            mode="replace", pre_sql="INSERT INTO note VALUES (1)", post_sql="INSERT INTO note VALUES (2)"
        )
    with pytest.raises(AirflowFailException, match=REFUSED):
        transfer(mode="replace", source_sql="SELECT id, name FROM item WHERE id < 0")
    assert (items(filled), filled.rows("TABLE note")) == (STAYS, [])


def test_rows_that_pre_sql_deletes_are_not_counted(filled: Database) -> None:
    assert transfer(mode="replace", pre_sql="DELETE FROM item")["rows"] == 0
    assert items(filled) == []


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_rows_count_that_come_while_it_waits_for_the_table(filled: Database, isolation: str) -> None:
    filled.execute("DELETE FROM item")
    filled.admin(f"ALTER DATABASE {filled.name} SET default_transaction_isolation = '{isolation}'")
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(filled.conninfo) as other:
        other.execute("INSERT INTO item VALUES (0, 'stays')")
        with (
            meanwhile(other.commit, lambda: filled.admin(waiting)),
            pytest.raises(AirflowFailException, match=REFUSED),
        ):
            transfer(mode="replace")
    assert items(filled) == STAYS


@pytest.mark.parametrize("partitions", [False, True])
def test_a_role_that_sees_no_rows_is_refused_too(filled: Database, partitions: bool) -> None:
    filled.admin("DROP TABLE item")
    filled.admin(ITEM + (" PARTITION BY RANGE (id)" if partitions else ""))
    if partitions:
        filled.admin("CREATE TABLE part PARTITION OF item FOR VALUES FROM (0) TO (10)")
    role = f'"{filled.server.role}"'
    filled.admin(f"INSERT INTO item VALUES (0, 'stays'); GRANT TRUNCATE, INSERT ON item TO {role}")
    with pytest.raises(AirflowFailException, match=r"(?s)item may have rows.*\(no SELECT\).*allow_empty"):
        transfer(mode="replace")
    assert filled.admin("TABLE item") == STAYS
    filled.admin(f"GRANT SELECT (id) ON item TO {role}")
    with pytest.raises(AirflowFailException, match=REFUSED):
        transfer(mode="replace")
    transfer(mode="replace", allow_empty_source=True)
    assert filled.admin("TABLE item") == []


def test_a_jobs_result_without_rows_is_refused_too(filled: Database) -> None:
    send = DblinkSendQueryOperator(
        task_id="send", conn_id="source", sql="SELECT id, name FROM item", keep_result=True
    )
    handle = send.execute(context())

    def load(**arguments: Any) -> dict[str, Any]:
        task = DblinkGetResultOperator(
            task_id="load",
            handle=handle,
            destination_conn_id="warehouse",
            destination_table="item",
            mode="replace",
            **arguments,
        )
        return task.execute(context())

    with pytest.raises(AirflowFailException, match=REFUSED):
        load(drop_result=True)
    assert items(filled) == STAYS
    assert load(allow_empty_source=True, drop_result=True)["rows"] == 0
    assert items(filled) == []


def test_another_value_than_yes_or_no_is_refused_first(filled: Database) -> None:
    with pytest.raises(AirflowFailException, match="allow_empty_source must be true or false, got 'maybe'"):
        transfer(mode="replace", allow_empty_source="maybe")
