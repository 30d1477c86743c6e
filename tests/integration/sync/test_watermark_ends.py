# ruff: noqa: S608 - names and values that the tests themselves made
"""Watermarks at the ends of their type: infinity, minus infinity, NaN, and types that have no order."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk.exceptions import AirflowFailException

from tests.databases import Database
from tests.integration.sync.tables import contents
from tests.integration.sync.test_watermark import ORDERS, WATERMARK, AssetStores, make, sync
from tests.versions import needs_version


@pytest.fixture
def stores() -> AssetStores:
    return AssetStores(ORDERS)


def knows_infinity(database: Database, kind: str) -> None:
    """Skip where the server has no infinite intervals."""
    if kind == "interval":
        needs_version(database, 17, "infinite intervals")


def test_infinity_is_no_watermark(source: Database, warehouse: Database, stores: AssetStores) -> None:
    make(source, warehouse, "timestamp", "CASE WHEN i = 5 THEN 'infinity' ELSE timestamp '2024-01-01' END")
    assert sync(stores)["inserted"] == 10
    assert stores.get(WATERMARK) == "2024-01-01T00:00:00"


# -- what would be the last watermark ever


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        *(("float8", "NaN"), ("float8", "Infinity"), ("real", "NaN"), ("numeric", "NaN")),
        *(("numeric", "Infinity"), ("numeric(10, 2)", "NaN"), ("timed", "infinity")),
        ("interval", "infinity"),
    ],
)
def test_nothing_comes_after_infinity_so_it_is_no_watermark(
    source: Database, warehouse: Database, stores: AssetStores, kind: str, last: str
) -> None:
    one, two = ("1", "2") if kind[:5] != "timed" else ("2026-01-01 00:00+00", "2026-01-02 00:00+00")
    knows_infinity(source, kind)
    for database in (source, warehouse):
        database.execute("CREATE DOMAIN timed AS timestamptz")
        database.execute(f"CREATE TABLE item (id int PRIMARY KEY, changed {kind})")
    source.execute(f"INSERT INTO item VALUES (1, '{one}'), (2, '{last}')")
    sync(stores)
    source.execute(f"INSERT INTO item VALUES (3, '{two}')")
    assert sync(stores)["inserted"] == 1
    assert contents(warehouse) == contents(source)


@pytest.mark.parametrize(
    ("kind", "one", "two"),
    [
        *(("float8", "1", "2"), ("numeric", "1", "2"), ("interval", "1", "2")),
        *(("date", "2026-01-01", "2026-01-02"), ("timed", "2026-01-01 00:00+00", "2026-01-02 00:00+00")),
    ],
)
@pytest.mark.parametrize("overlaps", [True, False])
def test_minus_infinity_is_below_all_watermarks_and_read_each_time(
    source: Database, warehouse: Database, stores: AssetStores, kind: str, one: str, two: str, overlaps: bool
) -> None:
    knows_infinity(source, kind)
    for database in (source, warehouse):
        database.execute("CREATE DOMAIN timed AS timestamptz")
        database.execute(f"CREATE TABLE item (id int PRIMARY KEY, changed {kind})")
    source.execute(f"INSERT INTO item VALUES (1, '{one}'), (2, 'infinity')")
    step = timedelta(0) if kind in ("date", "timed", "interval") else 0
    given = step if overlaps else None
    assert sync(stores, watermark_overlap=given)["inserted"] == 2
    source.execute(f"INSERT INTO item VALUES (3, '{two}'), (4, '-infinity')")
    assert sync(stores, watermark_overlap=given)["inserted"] == 2
    assert contents(warehouse) == contents(source)


@pytest.mark.parametrize("kind", ["uuid", "boolean", "jsonb"])
def test_a_type_without_a_highest_value_is_refused(
    source: Database, warehouse: Database, stores: AssetStores, kind: str
) -> None:
    make(source, warehouse, kind, "NULL")
    why = f"watermark_column 'changed' is of type {kind}, which has no max\\(\\)"
    with pytest.raises(AirflowFailException, match=why):
        sync(stores)
