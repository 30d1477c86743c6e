# ruff: noqa: S608 - names that the tests themselves made
"""Keys that aren't unique among all rows under the table's name: only the selected rows are changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from airflow_dblink.embedded.server import Server
from tests.databases import Database
from tests.integration.sync.tables import (
    caseless_databases,
    contents,
    done,
    planned,
    refused,
    refused_by_server,
    system_server,
    versions,
)
from tests.integration.sync.test_watermark import ORDERS, AssetStores
from tests.integration.sync.test_watermark import sync as new
from tests.syncs import sync

METHODS = pytest.mark.parametrize("method", ["difference", "reload"])
ITEM = "CREATE TABLE item (id int PRIMARY KEY, region text, v text)"
PART = "region = 'x'"


def heirs(source: Database, warehouse: Database, rows: str = "(1, 'x', 'new'), (3, 'x', 'more')") -> None:
    """Give the warehouse two rows that differ, and a child with the same keys outside of the part."""
    source.execute(f"{ITEM}; INSERT INTO item VALUES {rows}")
    warehouse.execute(f"{ITEM}; INSERT INTO item VALUES (1, 'x', 'old'), (2, 'x', 'extra'), (9, 'y', 'else')")
    warehouse.execute("CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (item)")
    warehouse.execute("INSERT INTO heir VALUES (1, 'y', 'kept'), (2, 'y', 'kept'), (4, 'y', 'kept')")


def within(database: Database) -> list[str]:
    """Return the rows of the part."""
    return [row for row in contents(database) if ",x," in row]


@contextmanager
def nothing_outside_is_touched(database: Database) -> Iterator[None]:
    """Fail if a row outside of the part has changed, or was moved."""
    rows = f"SELECT tableoid::regclass, ctid::text, xmin::text, item.* FROM item WHERE NOT {PART} ORDER BY id"
    before = database.admin(rows)
    yield
    assert database.admin(rows) == before


@METHODS
def test_a_childs_rows_with_the_same_keys_are_not_touched(
    source: Database, warehouse: Database, method: str
) -> None:
    heirs(source, warehouse)
    with nothing_outside_is_touched(warehouse):
        result = sync(method=method, where=PART, max_delete_fraction=None)
    assert planned(result) == done(result) == (1, 1, 1)
    assert within(warehouse) == within(source)


@METHODS
@pytest.mark.parametrize("off", [{"delete": False}, {"update": False}, {"insert": False}])
def test_a_childs_rows_are_not_touched_by_some_kinds_of_change(
    source: Database, warehouse: Database, method: str, off: dict[str, Any]
) -> None:
    heirs(source, warehouse)
    with nothing_outside_is_touched(warehouse):
        result = sync(method=method, where=PART, max_delete_fraction=None, **off)
    assert done(result) == tuple(int(kind not in off) for kind in ("insert", "update", "delete"))


def test_a_childs_rows_are_not_touched_by_an_incremental_sync(source: Database, warehouse: Database) -> None:
    heirs(source, warehouse)
    with nothing_outside_is_touched(warehouse):
        result = new(AssetStores(ORDERS), where=PART, watermark_column="id")
    assert done(result) == (1, 1, 0)


@METHODS
def test_statements_that_would_write_a_childs_rows_too_are_refused(
    source: Database, warehouse: Database, method: str
) -> None:
    heirs(source, warehouse)
    words = ["key (id)", "in common", "public.item", "21000", "apply='set'"]
    arguments: dict[str, Any] = {"apply": "statements", "method": method, "max_delete_fraction": None}
    refused(warehouse, *words, where=PART, **arguments)
    warehouse.execute("DELETE FROM heir WHERE id < 3")
    with nothing_outside_is_touched(warehouse):
        assert done(sync(where=PART, **arguments)) == (1, 1, 1)


@METHODS
def test_a_key_that_only_a_child_has_outside_of_where_is_in_the_way(
    source: Database, warehouse: Database, method: str
) -> None:
    heirs(source, warehouse, "(1, 'x', 'new'), (4, 'x', 'more')")
    words = ["public.item outside of where", "23505"]
    refused(warehouse, *words, where=PART, method=method, max_delete_fraction=None)


def test_a_first_load_of_a_part_sees_a_childs_key_in_the_way(source: Database, warehouse: Database) -> None:
    heirs(source, warehouse, "(4, 'x', 'more')")
    warehouse.execute(f"DELETE FROM ONLY item WHERE {PART}")
    refused(warehouse, "public.item outside of where", "23505", where=PART)


@METHODS
@pytest.mark.parametrize("apply", ["set", "statements"])
def test_a_trigger_that_moves_rows_into_children_may_do_so(
    source: Database, warehouse: Database, method: str, apply: str
) -> None:
    """The trigger returns no row for them, so they aren't counted; but the rows are in their place."""
    heirs(source, warehouse)
    warehouse.execute("DELETE FROM heir WHERE id < 3")
    warehouse.execute(
        "CREATE FUNCTION send() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN INSERT INTO heir VALUES (NEW.*); RETURN NULL; END $$;"
        "CREATE TRIGGER send BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION send()"
    )
    result = sync(where=PART, method=method, apply=apply, max_delete_fraction=None)
    assert done(result) == (0, 1, 1)
    assert within(warehouse) == within(source)
    assert [row[0] for row in versions(warehouse)].count("heir") == 2


@METHODS
def test_a_trigger_that_changes_a_childs_row_of_the_same_key_is_found_out(
    source: Database, warehouse: Database, method: str
) -> None:
    heirs(source, warehouse)
    warehouse.execute("ALTER TABLE item ADD boss int")
    warehouse.execute(
        "ALTER TABLE item ADD FOREIGN KEY (boss) REFERENCES item ON DELETE CASCADE;"
        "CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN UPDATE heir SET v = 'lost' WHERE id = OLD.id; RETURN NULL; END $$;"
        "CREATE TRIGGER follow AFTER DELETE ON item FOR EACH ROW EXECUTE FUNCTION follow()"
    )
    arguments = {"columns": ["id", "region", "v"], "max_delete_fraction": None, "method": method}
    refused_by_server(warehouse, "changed other rows", where=PART, **arguments)


# -- keys that are equal by the index, or by the column


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a server that has ICU."""
    with system_server("icu") as server:
        yield server


@pytest.fixture
def icu(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Database, Database]]:
    with caseless_databases(server, monkeypatch) as databases:
        yield databases


FINER = """
CREATE TABLE item (id text COLLATE caseless NOT NULL, region text, v text);
CREATE UNIQUE INDEX ON item (id COLLATE "C")
"""


@METHODS
@pytest.mark.parametrize("where", [PART, None])
def test_the_index_says_which_key_is_whose_not_the_column(
    icu: tuple[Database, Database], method: str, where: str | None
) -> None:
    source, warehouse = icu
    for database in icu:
        database.execute(FINER)
    source.execute("INSERT INTO item VALUES ('a', 'x', 'new'), ('c', 'x', 'v'), ('C', 'x', 'more')")
    warehouse.execute("INSERT INTO item VALUES ('a', 'x', 'old'), ('b', 'x', 'extra'), ('c', 'x', 'v')")
    if where:
        warehouse.execute(
            "INSERT INTO item VALUES ('A', 'y', 'kept'), ('B', 'y', 'kept'), ('d', 'y', 'kept')"
        )
    with nothing_outside_is_touched(warehouse):
        result = sync(method=method, where=where, key=["id"], max_delete_fraction=None)
    assert planned(result) == done(result) == (1, 1, 1)
    assert within(warehouse) == within(source)


@METHODS
def test_statements_go_by_the_column_and_are_refused_where_it_has_two(
    icu: tuple[Database, Database], method: str
) -> None:
    source, warehouse = icu
    for database in icu:
        database.execute(FINER)
    source.execute("INSERT INTO item VALUES ('a', 'x', 'new')")
    warehouse.execute("INSERT INTO item VALUES ('a', 'x', 'old'), ('A', 'y', 'kept')")
    arguments: dict[str, Any] = {"where": PART, "key": ["id"], "method": method, "apply": "statements"}
    refused(warehouse, "in common", "21000", "apply='set'", **arguments)
    warehouse.execute("DELETE FROM item WHERE region = 'y'")
    assert sync(**arguments)["updated"] == 1


def test_a_row_makes_way_only_if_the_index_says_so(icu: tuple[Database, Database]) -> None:
    source, warehouse = icu
    for database in icu:
        database.execute("CREATE TABLE item (id int PRIMARY KEY, email text COLLATE caseless)")
        database.execute('CREATE UNIQUE INDEX ON item (email COLLATE "C")')
    source.execute("INSERT INTO item VALUES (1, 'ann'), (2, 'bob'), (3, 'Eve')")
    warehouse.execute("INSERT INTO item VALUES (1, 'ann'), (7, 'ANN'), (8, 'Bob'), (9, 'Eve')")
    result = sync(on_conflict="replace", delete=False)
    assert (result["inserted"], result["displaced"]) == (2, 1)
    assert contents(warehouse) == ["(1,ann)", "(2,bob)", "(3,Eve)", "(7,ANN)", "(8,Bob)"]


@METHODS
@pytest.mark.parametrize("apply", ["set", "statements"])
def test_an_index_with_an_equality_of_its_own(
    source: Database, warehouse: Database, method: str, apply: str
) -> None:
    """Composites with 1.0 and 1.00 are equal, but not to an index on their images."""
    for database in (source, warehouse):
        database.execute(
            "CREATE TYPE place AS (x numeric); CREATE TABLE item (id place, region text, v text)"
        )
        database.execute("ALTER TABLE item ALTER id SET NOT NULL")
        database.execute("CREATE UNIQUE INDEX ON item (id record_image_ops)")
    source.execute("INSERT INTO item VALUES (ROW(1.0), 'x', 'new')")
    warehouse.execute("INSERT INTO item VALUES (ROW(1.0), 'x', 'old'), (ROW(1.00), 'y', 'kept')")
    if apply == "statements":  # they can't name such a key
        refused(warehouse, "composite", where=PART, key=["id"], method=method, apply=apply)
        return
    with nothing_outside_is_touched(warehouse):
        assert sync(method=method, where=PART, key=["id"])["updated"] == 1
    warehouse.execute("UPDATE item SET region = 'x'")
    refused(warehouse, "same key", where=PART, key=["id"], method=method, max_delete_fraction=None)
