# ruff: noqa: S608 - names that the tests themselves made
"""What the transfer operator does to rows and tables; how it fails is in test_transfer_failures."""

from __future__ import annotations

import logging
import re

import pytest

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.operators.common.progress import Progress
from tests.conftest import AddConnection
from tests.databases import Database
from tests.stores import MemoryStore
from tests.transfers import execute, operator, transfer

ITEM = "CREATE TABLE item (id int PRIMARY KEY, name text)"
THREE = "INSERT INTO item VALUES (1, 'a'), (2, 'b'), (3, NULL)"


@pytest.fixture
def both(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases with a table item, three rows in the source's."""
    source.execute(f"{ITEM}; {THREE}")
    warehouse.execute(ITEM)
    return source, warehouse


def items(database: Database) -> list[tuple[object, ...]]:
    return database.rows("SELECT * FROM item ORDER BY id")


# -- modes


def test_append_adds_the_rows_and_tells_what_it_did(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    warehouse.execute("INSERT INTO item VALUES (0, 'kept')")
    result = transfer()
    assert items(warehouse) == [(0, "kept"), *items(source)]
    assert set(result) == {"rows", "changed", "bytes", "seconds", "format", "xid", "verified"}
    assert (result["rows"], result["changed"], result["format"]) == (3, 3, "binary")
    assert 20 < result["bytes"] < 200
    assert warehouse.rows("SELECT DISTINCT xmin::text FROM item WHERE id > 0") == [(result["xid"],)]


def test_replace_leaves_only_the_rows_that_came(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    warehouse.execute("INSERT INTO item VALUES (0, 'gone')")
    transfer(mode="replace")
    assert items(warehouse) == items(source)


def test_a_second_append_of_the_same_keys_names_the_modes_that_load_again(
    both: tuple[Database, Database],
) -> None:
    transfer()
    with pytest.raises(RemoteError, match=r"(?s)'warehouse'.*23505.*HINT.*mode='append' only adds.*'upsert'"):
        transfer()
    assert transfer(mode="upsert")["changed"] == 0
    assert transfer(mode="replace")["changed"] == 3


@pytest.mark.parametrize("allowed", [True, "True"])
def test_replace_from_an_empty_source_empties_the_table_where_that_is_allowed(
    both: tuple[Database, Database], allowed: bool | str
) -> None:
    source, warehouse = both
    source.execute("TRUNCATE item")
    warehouse.execute("INSERT INTO item VALUES (0, 'gone')")
    result = transfer(mode="replace", allow_empty_source=allowed)
    assert (items(warehouse), result["rows"], result["changed"]) == ([], 0, 0)


@pytest.mark.parametrize("mode", ["append", "replace", "upsert", "create"])
def test_no_rows_into_an_empty_table_are_no_failure(both: tuple[Database, Database], mode: str) -> None:
    source, warehouse = both
    source.execute("TRUNCATE item")
    if mode == "create":
        warehouse.execute("DROP TABLE item")
    assert transfer(mode=mode)["rows"] == 0
    assert items(warehouse) == []


def test_upsert_rewrites_only_rows_that_differ(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    warehouse.execute("INSERT INTO item VALUES (2, 'old'), (3, NULL), (4, 'stays')")
    place = "SELECT id, ctid::text, xmin::text FROM item WHERE id IN (3, 4) ORDER BY id"
    before = warehouse.rows(place)
    result = transfer(mode="upsert")
    assert items(warehouse) == [*items(source), (4, "stays")]
    assert (result["rows"], result["changed"]) == (3, 2)
    assert warehouse.rows(place) == before
    assert transfer(mode="upsert")["changed"] == 0
    assert warehouse.rows(place) == before


def test_upsert_sees_a_difference_that_equals_does_not(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, n numeric, j json)")
    source.execute("INSERT INTO item VALUES (1, 1.00, '{}')")
    warehouse.execute("INSERT INTO item VALUES (1, 1.0, '{}')")
    assert transfer(mode="upsert")["changed"] == 1
    assert warehouse.rows("SELECT n::text FROM item") == [("1.00",)]


def test_upsert_by_a_key_that_is_named(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute(
            'CREATE TABLE item (id serial PRIMARY KEY, "A b" text, c int, v text, UNIQUE ("A b", c))'
        )
    source.execute("INSERT INTO item VALUES (9, 'x', 1, 'new')")
    warehouse.execute("INSERT INTO item VALUES (DEFAULT, 'x', 1, 'old')")
    transfer(mode="upsert", key=["c", "A b"], columns=["A b", "c", "v"])
    assert warehouse.rows("TABLE item") == [(1, "x", 1, "new")]


def test_upsert_of_key_columns_alone_adds_what_is_missing(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("INSERT INTO item VALUES (1, 'stays')")
    assert transfer(mode="upsert", columns=["id"])["changed"] == 2
    assert items(warehouse) == [(1, "stays"), (2, None), (3, None)]


def test_create_from_a_query(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    transfer(
        "made", mode="create", source_sql="SELECT id, 1.5::numeric(5,2) AS n, now()::date AS d FROM item"
    )
    assert warehouse.rows("SELECT id, n::text FROM made ORDER BY id") == [
        (1, "1.50"),
        (2, "1.50"),
        (3, "1.50"),
    ]


# -- columns and queries


def test_columns_as_a_list_and_as_a_mapping(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    source.execute("ALTER TABLE item ADD more int")
    warehouse.execute("ALTER TABLE item ADD title text")
    transfer(columns=["id"])
    transfer(columns={"id": "id", "name": "title"}, mode="replace")
    assert warehouse.rows("SELECT id, name, title FROM item WHERE id = 1") == [(1, None, "a")]


def test_columns_are_matched_by_name_not_by_place(source: Database, warehouse: Database) -> None:
    source.execute("CREATE TABLE item (gone int, name text, id int); ALTER TABLE item DROP gone")
    source.execute("INSERT INTO item VALUES ('a', 1)")
    warehouse.execute(ITEM)
    transfer()
    assert items(warehouse) == [(1, "a")]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM item;",
        "SELECT * FROM item ; -- the end",
        "-- the start\nSELECT * FROM item -- the end",
        "/* ; */ SELECT id, name FROM item /* a ; b */ ;\n\n",
        "WITH w AS (TABLE item) SELECT name, id FROM w WHERE name IS DISTINCT FROM ';' ORDER BY id",
        "TABLE item",
        "VALUES (1, 'a'), (2, 'b'), (3, NULL)",
        "SELECT id, name, '{}' AS \"100 %\" FROM item",
    ],
)
def test_a_source_query_may_end_as_it_likes(both: tuple[Database, Database], query: str) -> None:
    source, warehouse = both
    columns = {"column1": "id", "column2": "name"} if query.startswith("VALUES") else ["id", "name"]
    transfer(source_sql=query, columns=columns)
    assert items(warehouse) == items(source)


@pytest.mark.parametrize(
    ("parameters", "query"),
    [
        (["a;b'c", 2], "SELECT id, %s::text AS name, '%%' AS p FROM item WHERE id >= %s"),
        (
            {"low": 2, "name": "a;b'c"},
            "SELECT id, %(name)s::text AS name, '%%' AS p FROM item WHERE id >= %(low)s",
        ),
    ],
)
def test_source_parameters_are_values(
    both: tuple[Database, Database], parameters: object, query: str
) -> None:
    _, warehouse = both
    transfer(source_sql=query, source_parameters=parameters, columns=["id", "name"])
    assert items(warehouse) == [(2, "a;b'c"), (3, "a;b'c")]


# -- around the load


def test_pre_and_post_sql_are_one_transaction_with_the_load(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("CREATE TABLE log (what text, n bigint); INSERT INTO item VALUES (3, 'in the way')")
    count = "INSERT INTO log SELECT '{}', count(*) FROM item; SELECT ';'"
    arguments = {"pre_sql": "DELETE FROM item; " + count.format("pre"), "post_sql": count.format("post")}
    result = transfer(**arguments)
    assert warehouse.rows("SELECT what, n, xmin::text FROM log") == [
        ("pre", 0, result["xid"]),
        ("post", 3, result["xid"]),
    ]
    with pytest.raises(RemoteError, match="division by zero"):
        transfer(pre_sql="DELETE FROM item", post_sql="INSERT INTO log VALUES ('x', 1); SELECT 1/0")
    with pytest.raises(RemoteError, match="division by zero"):
        transfer(pre_sql="DELETE FROM item; SELECT 1/0")
    assert warehouse.rows("SELECT count(*) FROM log") == [(2,)]
    assert len(items(warehouse)) == 3


def test_analyze_is_done_when_asked_for(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    known = "SELECT reltuples::int FROM pg_class WHERE oid = 'item'::regclass"
    transfer()
    assert warehouse.rows(known) == [(-1,)]
    transfer(mode="replace", analyze=True)
    assert warehouse.rows(known) == [(3,)]


def test_session_settings_hold_on_both_sides_within_the_transaction(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    transfer(
        source_sql="SELECT id, current_setting('my.own') AS name FROM item",
        session_settings={"my.own": "from the task"},
        post_sql="UPDATE item SET name = name || '!' WHERE current_setting('my.own') = 'from the task'",
    )
    assert {row[1] for row in items(warehouse)} == {"from the task!"}


ODD = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "extra_float_digits": "-10",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "client_encoding": "LATIN1",
    "search_path": "pg_catalog",
}


@pytest.mark.parametrize("odd", ["source", "warehouse"])
def test_odd_settings_of_a_role_change_no_value(both: tuple[Database, Database], odd: str) -> None:
    source, warehouse = both
    values = """SELECT '2026-02-01'::date AS d,
        '1 year -2 days +03:00'::interval AS i, 0.1::float8 + 0.2 AS f,
        '2026-02-01 00:00:00+00'::timestamptz AS t, '\\x005c27'::bytea AS b, 'ok'::public.mood AS m,
        E'back\\\\slash ''quote'' \\u00e4'::text AS s"""
    for database in both:
        database.execute("CREATE TYPE mood AS ENUM ('ok')")
    source.execute(f"CREATE TABLE value AS {values}")
    warehouse.execute(
        "CREATE TABLE value (d date, i interval, f float8, t timestamptz, b bytea, m mood, s text)"
    )
    changed = source if odd == "source" else warehouse
    alter = f'ALTER ROLE "{changed.server.role}" IN DATABASE "{changed.name}" SET '
    for name, setting in ODD.items():
        changed.admin(f"{alter} {name} = '{setting}'")
    result = transfer("public.value", source_sql=r"SELECT * FROM public.value WHERE s <> 'a\'")
    assert (result["format"], result["rows"]) == ("text", 1)
    images = f"SELECT record_image_eq(v, e) FROM (SELECT * FROM value) AS v, ({values}) AS e"
    assert warehouse.admin(images) == [(True,)]


def test_row_level_security_on_the_source_is_told(
    both: tuple[Database, Database], caplog: pytest.LogCaptureFixture
) -> None:
    source, warehouse = both
    source.execute(
        "ALTER TABLE item ENABLE ROW LEVEL SECURITY; ALTER TABLE item FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY odd ON item USING (id % 2 = 1)"
    )
    transfer()
    assert [row[0] for row in items(warehouse)] == [1, 3]
    assert "row-level security limits which rows of public.item are read" in caplog.text


# -- exactly once, logs


@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
def test_a_retry_after_the_commit_moves_nothing(both: tuple[Database, Database], mode: str) -> None:
    source, warehouse = both
    store = MemoryStore()
    task = operator(source_table="item", destination_table="item", mode=mode)
    first = execute(task, store)
    # As if the worker had died right after the COMMIT: the end was never stored.
    store.set("airflow_dblink_once", store.history[-2])
    source.execute("INSERT INTO item VALUES (4, 'later')")
    assert execute(task, store) == first
    assert len(items(warehouse)) == 3
    assert execute(task, store) == first
    # Cleared by the user after its success: done anew.
    store.set("airflow_dblink_once", {**store.history[-1], "ended": "returned"})
    warehouse.execute("TRUNCATE item")
    assert execute(task, store, max_tries=1)["rows"] == 4
    assert len(items(warehouse)) == 4


@pytest.mark.parametrize("refuse_at", [1, 2])
def test_a_superseded_try_changes_nothing(both: tuple[Database, Database], refuse_at: int) -> None:
    _, warehouse = both
    task = operator(source_table="item", destination_table="item")
    with pytest.raises(RuntimeError, match=f"set number {refuse_at}"):
        execute(task, MemoryStore(refuse_at=refuse_at))
    assert items(warehouse) == []


def test_progress_tells_rows_megabytes_speed_and_share(
    both: tuple[Database, Database],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, warehouse = both
    source.execute(
        "INSERT INTO item SELECT i, repeat('x', 50) FROM generate_series(4, 40000) AS i; ANALYZE item"
    )
    monkeypatch.setattr(Progress, "every_s", 0.0)
    with caplog.at_level(logging.DEBUG):
        transfer()
    said = capfd.readouterr().out
    number = r"[\d,]+"
    so_far = rf"So far: {number} rows, [\d.]+ MB, [\d.]+ MB/s, about \d+% of 40,000, {number} s left"
    assert len(re.findall(so_far, said)) > 3
    assert re.search(r"Moved: 40,000 rows, [\d.]+ MB, [\d.]+ MB/s", said)
    for server in (source.server, warehouse.server):
        assert server.role_password not in said + caplog.text


def test_a_dblink_connection_works_as_well(
    both: tuple[Database, Database], add_connection: AddConnection
) -> None:
    source, warehouse = both
    other = add_connection(
        "other", source, conn_type="dblink", extra={"session_settings": {"work_mem": "1MB"}}
    )
    transfer(source_conn_id=other)
    assert len(items(warehouse)) == 3
