# ruff: noqa: S608 - names that the tests themselves made
"""Keys that are not unique over all that the table's name reaches: only what was asked for is touched."""

from __future__ import annotations

from typing import Any

import pytest

from tests.databases import Database
from tests.integration.sync.tables import contents, refused, refused_by_server, versions
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


def outside(database: Database) -> list[Any]:
    """Return the rows outside of the part, and where they lie."""
    return database.admin(
        f"SELECT tableoid::regclass::text, ctid::text, xmin::text, item.* FROM item"
        f" WHERE NOT {PART} ORDER BY id"
    )


@METHODS
def test_a_childs_rows_with_the_same_keys_are_not_touched(
    source: Database, warehouse: Database, method: str
) -> None:
    heirs(source, warehouse)
    before = outside(warehouse)
    result = sync(method=method, where=PART, max_delete_fraction=None)
    assert (result["missing"], result["changed"], result["extra"]) == (1, 1, 1)
    assert (result["inserted"], result["updated"], result["deleted"]) == (1, 1, 1)
    assert outside(warehouse) == before
    assert [row for row in contents(warehouse) if ",x," in row] == contents(source)


@METHODS
@pytest.mark.parametrize("off", [{"delete": False}, {"update": False}, {"insert": False}])
def test_a_childs_rows_are_not_touched_by_some_kinds_of_change(
    source: Database, warehouse: Database, method: str, off: dict[str, bool]
) -> None:
    heirs(source, warehouse)
    before = outside(warehouse)
    result = sync(method=method, where=PART, max_delete_fraction=None, **off)
    wanted = [int(on) for on in ("insert" not in off, "update" not in off, "delete" not in off)]
    assert [result["inserted"], result["updated"], result["deleted"]] == wanted
    assert outside(warehouse) == before


def test_a_childs_rows_are_not_touched_by_an_incremental_sync(source: Database, warehouse: Database) -> None:
    heirs(source, warehouse)
    before = outside(warehouse)
    result = new(AssetStores(ORDERS), where=PART, watermark_column="id")
    assert (result["inserted"], result["updated"], result["deleted"]) == (1, 1, 0)
    assert outside(warehouse) == before


@METHODS
def test_statements_that_would_write_a_childs_rows_too_are_refused(
    source: Database, warehouse: Database, method: str
) -> None:
    heirs(source, warehouse)
    words = ["key (id)", "in common", "public.item", "21000", "apply='set'"]
    refused(warehouse, *words, where=PART, apply="statements", method=method, max_delete_fraction=None)
    warehouse.execute("DELETE FROM heir WHERE id < 3")
    before = outside(warehouse)
    result = sync(where=PART, apply="statements", method=method, max_delete_fraction=None)
    assert (result["inserted"], result["updated"], result["deleted"]) == (1, 1, 1)
    assert outside(warehouse) == before


@METHODS
def test_a_key_that_only_a_child_has_outside_of_where_is_in_the_way(
    source: Database, warehouse: Database, method: str
) -> None:
    heirs(source, warehouse, "(1, 'x', 'new'), (4, 'x', 'more')")
    words = ["public.item outside of it", "23505"]
    refused(warehouse, *words, where=PART, method=method, max_delete_fraction=None)


def test_a_first_load_of_a_part_sees_a_childs_key_in_the_way(source: Database, warehouse: Database) -> None:
    heirs(source, warehouse, "(4, 'x', 'more')")
    warehouse.execute(f"DELETE FROM ONLY item WHERE {PART}")
    refused(warehouse, "public.item outside of it", "23505", where=PART)


@METHODS
@pytest.mark.parametrize("apply", ["set", "statements"])
def test_a_trigger_that_moves_rows_into_children_may_do_so(
    source: Database, warehouse: Database, method: str, apply: str
) -> None:
    """What it returns for that, no row, isn't counted; the rows are where they should be."""
    heirs(source, warehouse)
    warehouse.execute("DELETE FROM heir WHERE id < 3")
    warehouse.execute(
        "CREATE FUNCTION send() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN INSERT INTO heir VALUES (NEW.*); RETURN NULL; END $$;"
        "CREATE TRIGGER send BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION send()"
    )
    result = sync(where=PART, method=method, apply=apply, max_delete_fraction=None)
    assert (result["inserted"], result["updated"], result["deleted"]) == (0, 1, 1)
    assert [row for row in contents(warehouse) if ",x," in row] == contents(source)
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
