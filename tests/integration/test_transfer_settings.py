"""A transfer is checked and run under the same settings, on servers that differ."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.embedded.server import servers
from tests.conftest import AddConnection
from tests.databases import Database, new_database
from tests.debian import postgres_bindir
from tests.transfers import transfer


def test_execution_timeout_between_servers_of_different_versions(
    warehouse: Database, add_connection: AddConnection
) -> None:
    """transaction_timeout exists since PostgreSQL 17: the version of its own server decides."""
    warehouse.execute("CREATE TABLE item (id int)")
    with servers("older", bindir=postgres_bindir()) as (server,), new_database(server, "older") as older:
        add_connection("older", older)
        older.execute("CREATE TABLE item AS SELECT 1 AS id")
        there = transfer(source_conn_id="older", execution_timeout=timedelta(minutes=1))
        back = transfer(
            source_conn_id="warehouse", destination_conn_id="older", execution_timeout=timedelta(minutes=1)
        )
        assert (there["rows"], back["rows"]) == (1, 1)
        assert older.rows("SELECT count(*) FROM item") == [(2,)]


def test_names_are_looked_up_under_the_operators_search_path(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute("CREATE SCHEMA sales; CREATE TABLE item (v real); CREATE TABLE sales.item (v int)")
    source.execute("INSERT INTO item VALUES (0.5); INSERT INTO sales.item VALUES (7)")

    transfer(session_settings={"search_path": "sales"})
    transfer(
        source_sql="SELECT v FROM item", destination_table="item", session_settings={"search_path": "sales"}
    )

    assert warehouse.rows("SELECT v FROM sales.item") == [(7,), (7,)]
    assert warehouse.rows("SELECT v FROM public.item") == []


@pytest.mark.parametrize(("given", "wanted"), [("timestamp", "timestamptz"), ("timestamptz", "date")])
def test_a_cast_that_depends_on_the_time_zone_is_refused_where_the_zones_differ(
    source: Database, warehouse: Database, given: str, wanted: str
) -> None:
    source.execute(f"CREATE TABLE item AS SELECT '2026-07-01 12:00'::{given} AS v")
    warehouse.execute(f"CREATE TABLE item (v {wanted})")
    source.admin(f"ALTER ROLE {source.server.role} SET timezone = 'Europe/Berlin'")
    try:
        with pytest.raises(AirflowFailException, match=r"'v'.*Europe/Berlin.*\n?.*AT TIME ZONE"):
            transfer()
        assert warehouse.rows("SELECT v FROM item") == []
        transfer(session_settings={"timezone": "UTC"})
        assert warehouse.rows("SELECT count(*) FROM item") == [(1,)]
    finally:
        source.admin(f"ALTER ROLE {source.server.role} RESET timezone")


def test_a_sequence_owned_by_a_text_column_is_left_alone(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute(
            "CREATE SEQUENCE number; CREATE TABLE item (v text DEFAULT 'INV-' || nextval('number'));"
            "ALTER SEQUENCE number OWNED BY item.v"
        )
    source.execute("INSERT INTO item DEFAULT VALUES")
    assert transfer()["rows"] == 1
    assert warehouse.rows("SELECT v FROM item") == [("INV-1",)]


def test_upsert_cannot_update_what_is_always_generated(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute(
            "CREATE TABLE item (k int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v text);"
            "INSERT INTO item (k, v) VALUES (1, 'a')"
        )
    with pytest.raises(AirflowFailException, match="'n'"):
        transfer(mode="upsert")
    source.execute("UPDATE item SET v = 'b'")
    assert transfer(mode="upsert", columns=["k", "v"])["changed"] == 1
    assert warehouse.rows("SELECT v FROM item") == [("b",)]


@pytest.mark.parametrize("array", ["", "[]"])
def test_composites_of_one_name_but_other_attributes_are_refused(
    source: Database, warehouse: Database, array: str
) -> None:
    source.execute(f"CREATE TYPE pair AS (a int, b int); CREATE TABLE item (v pair{array})")
    warehouse.execute(f"CREATE TYPE pair AS (b int, a int); CREATE TABLE item (v pair{array})")
    with pytest.raises(AirflowFailException, match="'v'"):
        transfer()
