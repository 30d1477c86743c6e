# ruff: noqa: S608 - names that the tests themselves made
"""The main job of a sync, by every method: what differs is found, written, and nothing else is touched."""

from __future__ import annotations

import psycopg
import pytest

from tests.databases import Database
from tests.syncs import sync

ITEM = "CREATE TABLE item (id bigint PRIMARY KEY, k int, s text, ts timestamptz, n numeric, j jsonb)"
FILL = """
INSERT INTO item SELECT i, i * 7, md5(i::text), timestamptz '2024-01-01 00:00+00' + i * interval '1.7 s',
       i / 100.0, jsonb_build_object('a', i) FROM generate_series(1, 3000) AS i
"""
# Missing 3, changed 4 (one of them only in the scale of a number), extra 2.
DIFFER = """
DELETE FROM item WHERE id % 1000 = 1;
UPDATE item SET s = 'x' WHERE id % 1000 = 2;
UPDATE item SET n = 3.3 WHERE id = 330;
INSERT INTO item (id, s) VALUES (-5, 'x'), (100000, NULL)
"""


@pytest.fixture
def both(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases with the same table item of 3,000 rows."""
    for database in (source, warehouse):
        database.execute(f"{ITEM}; {FILL}; ANALYZE item")
    return source, warehouse


def rows(database: Database, table: str = "item") -> list[str]:
    return [
        text for (text,) in database.rows(f'SELECT i::text FROM {table} AS i ORDER BY i::text COLLATE "C"')
    ]


@pytest.mark.parametrize(("given", "used"), [("4MB", "64MB"), ("64MB", "64MB"), ("256MB", "256MB")])
def test_work_mem_is_raised_and_never_lowered(
    source: Database, warehouse: Database, given: str, used: str
) -> None:
    for database in (source, warehouse):
        database.admin(f"ALTER DATABASE \"{database.name}\" SET work_mem = '{given}'")
    warehouse.execute(
        "CREATE TABLE item (id int PRIMARY KEY, there text, here text DEFAULT current_setting('work_mem'))"
    )
    sync(source_sql="SELECT 1 AS id, current_setting('work_mem') AS there", columns=["id", "there"])
    assert rows(warehouse) == [f"(1,{used},{used})"]


@pytest.mark.parametrize("method", ["auto", "difference", "reload"])
@pytest.mark.parametrize("apply", ["set", "statements"])
def test_it_moves_only_the_difference(both: tuple[Database, Database], method: str, apply: str) -> None:
    source, warehouse = both
    warehouse.execute(DIFFER)
    untouched = "SELECT id, ctid::text, xmin::text FROM item WHERE id % 1000 > 2 AND id <> 330 ORDER BY id"
    before = warehouse.rows(untouched)
    result = sync(method=method, apply=apply)
    assert (result["missing"], result["changed"], result["extra"]) == (3, 4, 2)
    assert (result["inserted"], result["updated"], result["deleted"]) == (3, 4, 2)
    assert rows(source) == rows(warehouse)
    kept = {row[0] for row in before} - {100000}
    assert [row for row in warehouse.rows(untouched) if row[0] in kept] == [r for r in before if r[0] in kept]


@pytest.mark.parametrize("method", ["auto", "difference", "reload"])
def test_equal_tables_are_left_alone(both: tuple[Database, Database], method: str) -> None:
    _, warehouse = both
    before = warehouse.rows("SELECT ctid::text, xmin::text FROM item")
    result = sync(method=method)
    assert result["missing"] + result["changed"] + result["extra"] == 0
    assert warehouse.rows("SELECT ctid::text, xmin::text FROM item") == before


def test_a_dry_run_tells_and_changes_nothing(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    warehouse.execute(DIFFER)
    before = rows(warehouse)
    result = sync(plan_only=True)
    assert (result["missing"], result["changed"], result["extra"]) == (3, 4, 2)
    assert (result["inserted"], result["updated"], result["deleted"], result["xid"]) == (0, 0, 0, None)
    assert result["first_keys"] == {
        "missing": [["1"], ["1001"], ["2001"]],
        "changed": [["2"], ["330"], ["1002"], ["2002"]],
        "extra": [["-5"], ["100000"]],
    }
    assert rows(warehouse) == before
    applied = sync(plan=result["plan"])
    assert (applied["inserted"], applied["updated"], applied["deleted"]) == (3, 4, 2)
    assert rows(source) == rows(warehouse)


def test_keys_of_any_type_and_names(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute(
            'CREATE TABLE "It em" ("K ""1" text, b numeric(10,2), v text[], PRIMARY KEY ("K ""1", b));'
            """ INSERT INTO "It em" SELECT 'k' || i, i / 10.0, ARRAY[md5(i::text), NULL]"""
            " FROM generate_series(1, 3000) AS i"
        )
    warehouse.execute("""DELETE FROM "It em" WHERE b::int % 100 = 7""")
    warehouse.execute("""UPDATE "It em" SET v = v || 'z'::text WHERE b::int % 100 = 8""")
    source.execute("""DELETE FROM "It em" WHERE b::int % 100 = 9""")
    result = sync('"It em"')
    assert (result["inserted"], result["updated"], result["deleted"]) == (30, 30, 30)
    assert rows(source, '"It em"') == rows(warehouse, '"It em"')


def test_the_first_load_is_copied_straight_into_the_table(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    warehouse.execute("TRUNCATE item")
    result = sync()
    assert (result["inserted"], result["updated"], result["deleted"]) == (3000, 0, 0)
    assert rows(source) == rows(warehouse)


def test_replace_empties_the_table_and_loads_it(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    warehouse.execute(DIFFER)
    before = warehouse.rows("SELECT pg_relation_filenode('item')")
    result = sync(method="replace", max_delete_fraction=None)
    assert (result["method"], result["inserted"], result["deleted"]) == ("replace", 3000, 2999)
    assert rows(source) == rows(warehouse)
    assert warehouse.rows("SELECT pg_relation_filenode('item')") != before


@pytest.mark.parametrize(("above", "method"), [(0.5, "difference"), (0.01, "replace")])
def test_auto_replaces_only_above_what_is_allowed(
    both: tuple[Database, Database], above: float, method: str
) -> None:
    source, warehouse = both
    warehouse.execute(DIFFER)
    assert sync(replace_above=above, max_delete_fraction=None)["method"] == method
    assert rows(source) == rows(warehouse)


def test_a_reload_is_never_a_replacement_unless_it_is_allowed(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("UPDATE item SET k = 0 WHERE id > 1")
    place = "SELECT ctid::text, xmin::text FROM item WHERE id = 1"
    before = warehouse.rows(place)
    assert sync()["method"] == "reload"
    assert warehouse.rows(place) == before


@pytest.mark.parametrize("method", ["auto", "difference"])
@pytest.mark.parametrize("where", [None, "id > 100"])
def test_nothing_on_either_side_takes_no_lock_and_no_xid(
    source: Database, warehouse: Database, method: str, where: str | None
) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, v text)")
        if where:
            database.execute("INSERT INTO item VALUES (1, 'v')")
    with psycopg.connect(warehouse.conninfo) as holder:
        holder.execute("LOCK TABLE item IN ROW EXCLUSIVE MODE")
        result = sync(method=method, where=where, session_settings={"lock_timeout": "5s"})
    assert (result["inserted"], result["xid"]) == (0, None)
