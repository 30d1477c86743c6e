"""A unique constraint to which two NULLs are one value: NULL stands in the way like any other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.databases import Database
from tests.integration.sync.tables import done, refused_by_server, settled
from tests.versions import needs_version

METHODS = pytest.mark.parametrize("method", ["difference", "reload"])
ITEM = """
CREATE TABLE item (id int PRIMARY KEY, a text, b int, UNIQUE {} (a, b));
INSERT INTO item VALUES (1, 'x', 1), (2, NULL, 2), (3, NULL, NULL), (4, 'y', NULL)
"""


def made(source: Database, warehouse: Database, nulls: str = "NULLS NOT DISTINCT") -> None:
    for database in (source, warehouse):
        database.execute(ITEM.format(nulls))


@pytest.fixture(autouse=True)
def _has_the_constraint(warehouse: Database) -> None:
    needs_version(warehouse, 15, "NULLS NOT DISTINCT")


@METHODS
def test_rows_that_swap_a_value_for_null_are_written_by_replacing_them(
    source: Database, warehouse: Database, method: str
) -> None:
    made(source, warehouse)
    source.execute("DELETE FROM item; INSERT INTO item VALUES (1, NULL, 2), (2, NULL, NULL), (3, 'x', 1)")
    refused_by_server(warehouse, "warehouse", "item_a_b_key", "23505", method=method)
    result = settled(source, warehouse, method=method, on_conflict="replace", max_delete_fraction=None)
    assert done(result) == (0, 3, 1)


@METHODS
def test_a_row_outside_that_holds_null_makes_way_for_a_new_one(
    source: Database, warehouse: Database, method: str
) -> None:
    made(source, warehouse)
    source.execute("UPDATE item SET id = 30 WHERE id = 3")
    arguments: dict[str, Any] = {"where": "id >= 30", "method": method, "max_delete_fraction": None}
    result = settled(source, warehouse, on_conflict="replace", **arguments)
    assert (result["inserted"], result["displaced"]) == (1, 1)


@METHODS
def test_nulls_that_are_distinct_do_not_stand_in_the_way(
    source: Database, warehouse: Database, method: str
) -> None:
    made(source, warehouse, "")
    source.execute("UPDATE item SET a = NULL, b = NULL WHERE id < 3")
    result = settled(source, warehouse, method=method, on_conflict="replace")
    assert (result["updated"], result["displaced"]) == (2, 0)
