"""The incremental form: only what changed since the watermark, which is kept and never lost or moved back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException

from tests.databases import Database
from tests.integration.sync.moments import COUNTED, Meanwhile, applied, rows
from tests.integration.tasks import context
from tests.stores import MemoryStore, StaleTryError
from tests.syncs import sync_operator

Both = tuple[Database, Database]
ORDERS, OTHER = Asset("orders"), Asset("other")
WATERMARK = sync_operator(watermark_column="changed").watermark_key


class AssetStores:
    """What Airflow gives as ``asset_state_store`` to a task with these inlets and outlets."""

    def __init__(self, *assets: Asset, store: MemoryStore | None = None) -> None:
        self._stores = {asset.name: store or MemoryStore() for asset in assets}

    def __getitem__(self, asset: Asset) -> MemoryStore:
        if asset.name not in self._stores:
            raise KeyError(f"{asset!r} is not in this task's inlets or outlets")
        return self._stores[asset.name]

    def _single(self) -> MemoryStore:
        if len(self._stores) != 1:
            raise ValueError(f"Task has {len(self._stores)} concrete inlets and outlets")
        return next(iter(self._stores.values()))

    def get(self, key: str, default: Any = None) -> Any:
        return self._single().get(key, default)

    def set(self, key: str, value: Any) -> None:
        if value is None:
            raise ValueError("Cannot set value as None")
        self._single().set(key, value)


def sync(stores: AssetStores, store: MemoryStore | None = None, **arguments: Any) -> Any:
    task = arguments.pop("task", {})
    arguments.setdefault("watermark_column", "changed")
    given: Any = {**context(store, **task), "asset_state_store": stores}
    return sync_operator(**arguments).execute(given)


@pytest.fixture
def stores() -> AssetStores:
    return AssetStores(ORDERS)


def make(source: Database, warehouse: Database, kind: str, value: str) -> Both:
    """Make table item with ten rows; *value* is the watermark of row i."""
    for database in (source, warehouse):
        database.execute(f"CREATE TABLE item (id int PRIMARY KEY, s text, changed {kind})")
    source.execute(f"INSERT INTO item SELECT i, 'a', {value} FROM generate_series(1, 10) AS i")  # noqa: S608
    warehouse.execute(COUNTED)
    return source, warehouse


@pytest.fixture
def both(source: Database, warehouse: Database) -> Both:
    return make(source, warehouse, "bigint", "i")


@pytest.mark.parametrize(
    ("kind", "value", "later", "highest"),
    [
        ("bigint", "i", "11", "11"),
        ("integer", "i", "11", "11"),
        ("numeric(10,2)", "i", "11.50", "11.50"),
        ("date", "date '2024-01-01' + i", "'2024-02-01'", "2024-02-01"),
        (
            "timestamp",
            "timestamp '2024-01-01' + i * interval '1 day'",
            "'2024-02-01 00:00:00.000001'",
            "2024-02-01T00:00:00.000001",
        ),
        (
            "timestamptz(3)",
            "timestamptz '2024-01-01 00:00+00' + i * interval '1 day'",
            "'2024-02-01 12:00:00.123+05:30'",
            "2024-02-01T06:30:00.123+00:00",
        ),
    ],
)
def test_only_what_is_new_is_read(
    source: Database,
    warehouse: Database,
    stores: AssetStores,
    kind: str,
    value: str,
    later: str,
    highest: str,
) -> None:
    make(source, warehouse, kind, value)
    first = sync(stores)
    assert (first["source_rows"], first["inserted"]) == (10, 10)
    source.execute(f"UPDATE item SET s = 'b', changed = {later} WHERE id = 3")  # noqa: S608
    settings = {"datestyle": "SQL, DMY", "timezone": "UTC"}
    second = sync(stores, session_settings=settings)
    # The row that had the highest watermark is read again: another may have got the same one since.
    assert (second["source_rows"], second["updated"], second["inserted"]) == (2, 1, 0)
    assert stores.get(WATERMARK) == highest
    assert sync(stores)["source_rows"] == 1
    assert rows(warehouse) == rows(source)


@pytest.mark.parametrize(
    ("kind", "value", "overlap", "late"),
    [
        ("bigint", "i", 3, "7"),
        ("numeric", "i", 2.5, "8"),
        ("date", "date '2024-01-01' + i", timedelta(days=3), "'2024-01-08'"),
        (
            "timestamptz",
            "timestamptz '2024-01-01 00:00+00' + i * interval '1 minute'",
            timedelta(seconds=180),
            "'2024-01-01 00:07+00'",
        ),
        (
            "timestamp",
            "timestamp '2024-01-01' + i * interval '1 minute'",
            timedelta(minutes=3),
            "'2024-01-01 00:07'",
        ),
    ],
)
def test_an_overlap_finds_what_committed_late(
    source: Database, warehouse: Database, stores: AssetStores, kind: str, value: str, overlap: Any, late: str
) -> None:
    make(source, warehouse, kind, value)
    sync(stores)
    mark = stores.get(WATERMARK)
    source.execute(f"INSERT INTO item VALUES (100, 'late', {late})")  # noqa: S608
    assert sync(stores)["inserted"] == 0
    assert sync(stores, watermark_overlap=overlap)["inserted"] == 1
    assert stores.get(WATERMARK) == mark
    assert rows(warehouse) == rows(source)


def test_until_leaves_the_rest_to_the_next_run(both: Both, stores: AssetStores) -> None:
    source, warehouse = both
    first = sync(stores, watermark_until="6")
    assert (first["inserted"], stores.get(WATERMARK)) == (5, "5")
    assert sync(stores)["inserted"] == 5
    assert rows(warehouse) == rows(source)
    # A window that ends below the watermark is empty, and moves nothing.
    assert sync(stores, watermark_until="3")["source_rows"] == 0
    assert stores.get(WATERMARK) == "10"


def test_numbers_are_compared_as_numbers(both: Both, stores: AssetStores) -> None:
    source, _ = both
    stores.set(WATERMARK, "9")
    sync(stores)
    assert stores.get(WATERMARK) == "10"
    source.execute("DELETE FROM item WHERE changed > 9")
    sync(stores, watermark_overlap=5)
    assert stores.get(WATERMARK) == "10"


def test_rows_without_a_watermark_and_deletes_are_for_a_full_sync(both: Both, stores: AssetStores) -> None:
    source, warehouse = both
    source.execute("INSERT INTO item VALUES (50, 'null', NULL)")
    assert sync(stores)["inserted"] == 11  # the first run has no window
    source.execute("UPDATE item SET s = 'unseen' WHERE id = 50; DELETE FROM item WHERE id IN (2, 3)")
    source.execute("INSERT INTO item VALUES (51, 'null', NULL)")
    result = sync(stores)
    assert (result["inserted"], result["updated"], result["deleted"]) == (0, 0, 0)
    mark = stores.get(WATERMARK)
    full = sync(stores, watermark_column=None)
    assert (full["inserted"], full["updated"], full["deleted"]) == (1, 1, 2)
    assert stores.get(WATERMARK) == mark
    assert rows(warehouse) == rows(source)


def test_an_empty_source_keeps_the_watermark(both: Both, stores: AssetStores) -> None:
    source, warehouse = both
    sync(stores)
    source.execute("TRUNCATE item")
    assert sync(stores)["watermark"] is None
    assert stores.get(WATERMARK) == "10"
    assert len(rows(warehouse)) == 10


# -- several assets


def test_with_several_assets_it_must_be_said_whose_the_watermark_is(both: Both) -> None:
    _, warehouse = both
    for stores in (AssetStores(ORDERS, OTHER), AssetStores()):
        with pytest.raises(AirflowFailException, match=r"(?s)belongs to an asset.*watermark_asset="):
            sync(stores)
    with pytest.raises(AirflowFailException, match=r"not in this task's inlets or outlets"):
        sync(AssetStores(OTHER), watermark_asset=ORDERS)
    assert rows(warehouse) == []
    stores = AssetStores(ORDERS, OTHER)
    sync(stores, watermark_asset=OTHER)
    assert (stores[OTHER].get(WATERMARK), stores[ORDERS].get(WATERMARK)) == ("10", None)


# -- between the commit and the watermark


class Down(RuntimeError):
    """What the store raises when it can't be reached."""


class DownOnce(MemoryStore):
    def set(self, key: str, value: Any) -> None:
        if not self.history:
            self.history.append(value)
            raise Down
        super().set(key, value)


def test_a_crash_before_the_watermark_is_made_up_for_by_the_next_try(both: Both) -> None:
    source, warehouse = both
    stores, store = AssetStores(ORDERS, store=DownOnce()), MemoryStore()
    with pytest.raises(Down):
        sync(stores, store)
    source.execute("INSERT INTO item VALUES (11, 'next', 11)")
    result = sync(stores, store, task={"try_number": 2})
    assert (result["inserted"], stores.get(WATERMARK)) == (10, "10")
    assert applied(warehouse) == [result["xid"]]
    assert sync(stores)["inserted"] == 1


@pytest.mark.parametrize("refuse_at", [1, 2, 3])
def test_a_superseded_try_moves_no_watermark(both: Both, stores: AssetStores, refuse_at: int) -> None:
    store = MemoryStore(refuse_at=refuse_at)
    with pytest.raises(StaleTryError):
        sync(stores, store)
    assert stores.get(WATERMARK) is None
    store.refuse_at = None
    sync(stores, store, task={"try_number": 2})
    assert stores.get(WATERMARK) == "10"


def test_a_failed_run_and_a_dry_run_move_no_watermark(both: Both, stores: AssetStores) -> None:
    _, warehouse = both
    assert sync(stores, plan_only=True)["missing"] == 10
    warehouse.execute("ALTER TABLE item ADD CHECK (id < 5)")
    with pytest.raises(Exception, match="violates check constraint"):
        sync(stores)
    assert stores.get(WATERMARK) is None
    assert rows(warehouse) == []


def test_a_run_that_began_earlier_undoes_nothing_of_a_later_one(both: Both, stores: AssetStores) -> None:
    """The later one's watermark is kept, so what the earlier one took back would never be seen again."""
    source, warehouse = both
    sync(stores)

    def act() -> None:
        source.execute("UPDATE item SET s = 'b', changed = 20 WHERE id = 3")
        source.execute("UPDATE item SET s = 'b', changed = 30 WHERE id = 4")
        sync(stores)
        assert rows(warehouse) == rows(source)

    source.execute("UPDATE item SET s = 'between', changed = 15 WHERE id = 3")
    sync(stores, Meanwhile(act))
    assert rows(warehouse) == rows(source)
    assert stores.get(WATERMARK) == "30"


def test_tables_that_share_an_asset_have_each_their_own(both: Both, stores: AssetStores) -> None:
    source, warehouse = both
    for database in both:
        database.execute("CREATE TABLE other (id int PRIMARY KEY, changed bigint)")
    source.execute("INSERT INTO other VALUES (1, 1)")
    sync(stores)
    assert sync(stores, source_table="other", destination_table="other")["inserted"] == 1
    assert warehouse.rows("SELECT id FROM other") == [(1,)]


@pytest.mark.parametrize("overlap", [-1, timedelta(days=-1), True, "1 day"])
def test_an_overlap_that_is_none_is_refused(both: Both, stores: AssetStores, overlap: Any) -> None:
    with pytest.raises(AirflowFailException, match="watermark_overlap must be a timedelta or number"):
        sync(stores, watermark_overlap=overlap)


@pytest.mark.parametrize("argument", ["watermark_overlap", "watermark_until"])
def test_what_belongs_to_a_watermark_is_refused_without_one(both: Both, argument: str) -> None:
    arguments: dict[str, Any] = {argument: 1}
    with pytest.raises(AirflowFailException, match=f"{argument} belongs to watermark_column"):
        sync(AssetStores(ORDERS), watermark_column=None, **arguments)


def test_infinity_is_no_watermark(source: Database, warehouse: Database, stores: AssetStores) -> None:
    make(source, warehouse, "timestamp", "CASE WHEN i = 5 THEN 'infinity' ELSE timestamp '2024-01-01' END")
    assert sync(stores)["inserted"] == 10
    assert stores.get(WATERMARK) == "2024-01-01T00:00:00"
