"""The incremental form: only what changed since the watermark, which is kept and never lost or moved back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException
from psycopg.types.json import Jsonb

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
    with pytest.raises(AirflowFailException, match=r"task, which has 1: 'other'; 'orders' is none of them"):
        sync(AssetStores(OTHER), watermark_asset=ORDERS, outlets=[OTHER])
    with pytest.raises(AirflowFailException, match=r"task, which has 2: 'orders', 'other'\n") as caught:
        sync(AssetStores(ORDERS, OTHER), outlets=[OTHER, ORDERS])
    assert "uri" not in str(caught.value)
    with pytest.raises(AirflowFailException, match="watermark_asset must be an Asset, got str"):
        sync(AssetStores(ORDERS), watermark_asset="orders")
    assert rows(warehouse) == []
    stores = AssetStores(ORDERS, OTHER)
    sync(stores, watermark_asset=OTHER)
    assert (stores[OTHER].get(WATERMARK), stores[ORDERS].get(WATERMARK)) == ("10", None)


def test_a_task_without_an_asset_is_told_that_it_needs_one(both: Both) -> None:
    """Airflow gives such a task no store at all."""
    _, warehouse = both
    with pytest.raises(AirflowFailException, match=r"(?s)belongs to an asset.*outlets=\[Asset\(\.\.\.\)\]"):
        sync_operator(watermark_column="changed").execute(context())
    assert rows(warehouse) == []


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
    """The later run's watermark stays, so rows that the earlier run took back would never be read again."""
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


PARTS: list[dict[str, Any]] = [
    {"where": "id %% 2 = %(rest)s", "where_parameters": {"rest": 0}},
    {"where": "id %% 2 = %(rest)s", "where_parameters": {"rest": 1}},
]
QUERIES: list[dict[str, Any]] = [
    {"source_sql": "SELECT * FROM item WHERE id %% 2 = %s", "source_parameters": [rest]} for rest in (0, 1)
]


@pytest.mark.parametrize("tasks", [PARTS, QUERIES], ids=["where", "source_sql"])
def test_tasks_that_differ_in_a_parameter_alone_lose_no_rows(
    both: Both, stores: AssetStores, tasks: list[dict[str, Any]]
) -> None:
    source, warehouse = both
    assert [sync(stores, **task)["inserted"] for task in tasks] == [5, 5]
    assert rows(warehouse) == rows(source)
    assert [sync(stores, **task)["source_rows"] for task in tasks] == [1, 1]


@pytest.mark.parametrize(
    "other",
    [
        {"where_parameters": {"rest": "secret"}},
        {"source_parameters": [Jsonb({"long": ["x" * 100, 1]})]},
        {"columns": ["id", "changed"]},
        {"columns": {"id": "id", "changed": "changed"}},
        {"key": ["changed"]},
        {"insert": False},
        {"update": "False"},
        {"delete": False},
    ],
)
def test_what_makes_a_task_another_has_another_watermark(other: dict[str, Any]) -> None:
    given: dict[str, Any] = {"watermark_column": "changed", "where": "id > %(rest)s"}
    given["source_sql"] = "SELECT * FROM item"
    keys = {sync_operator(**given, **more).watermark_key for more in ({}, other)}
    keys.add(sync_operator(**given, source_parameters=[Jsonb({"long": ["x" * 100, 2]})]).watermark_key)
    assert len(keys) == 3
    assert not any("secret" in key for key in keys)


def test_what_a_template_makes_of_a_task_is_the_same_task() -> None:
    same = sync_operator(watermark_column="changed", insert="True", key=("id",)).watermark_key
    assert same == sync_operator(watermark_column="changed", key=["id"]).watermark_key


@pytest.mark.parametrize(
    ("kind", "value", "overlap", "hint"),
    [
        ("bigint", "i", timedelta(days=1), "give a number"),
        ("numeric", "i", timedelta(days=1), "give a number"),
        ("double precision", "i", timedelta(days=1), "give a number"),
        ("timestamptz", "now()", 3, "give a timedelta"),
        ("timestamp(3) without time zone", "now()", 0.5, "give a timedelta"),
        ("text", "i", 1, ""),
    ],
)
def test_an_overlap_of_another_kind_is_refused_by_the_first_run(
    source: Database,
    warehouse: Database,
    stores: AssetStores,
    kind: str,
    value: str,
    overlap: Any,
    hint: str,
) -> None:
    make(source, warehouse, kind, value)
    with pytest.raises(AirflowFailException, match="watermark_overlap=") as caught:
        sync(stores, watermark_overlap=overlap)
    words = (repr(overlap), "'changed'", kind.replace("timestamptz", "timestamp with time zone"), "'source'")
    assert not [word for word in (*words, hint) if word not in str(caught.value)], str(caught.value)


@pytest.mark.parametrize("kind", ["smallint", "integer", "bigint", "low", "numeric(3,0)", "real", "float8"])
def test_an_overlap_may_reach_below_the_lowest_value(
    source: Database, warehouse: Database, stores: AssetStores, kind: str
) -> None:
    source.execute("CREATE DOMAIN low AS smallint NOT NULL CHECK (VALUE > -32768)")
    warehouse.execute("CREATE DOMAIN low AS smallint")
    lowest = {"integer": -(2**31) + 1, "bigint": -(2**63) + 1, "numeric(3,0)": -999}.get(kind, -32767)
    make(source, warehouse, kind, str(lowest))
    assert sync(stores, watermark_overlap=100)["inserted"] == 10
    source.execute(f"INSERT INTO item VALUES (11, 'b', {lowest})")  # noqa: S608
    for overlap in (100, 0.5, 1e30):
        sync(stores, watermark_overlap=overlap)
    assert rows(warehouse) == rows(source)


@pytest.mark.parametrize("kind", ["double precision", "real", "numeric"])
def test_fractions_are_a_watermark(
    source: Database, warehouse: Database, stores: AssetStores, kind: str
) -> None:
    make(source, warehouse, kind, "i / 10.0")
    sync(stores)
    source.execute("INSERT INTO item VALUES (11, 'late', 0.95), (12, 'new', 1.05), (13, 'x', 'NaN')")
    assert sync(stores, watermark_until="1.04")["inserted"] == 0
    sync(stores, watermark_overlap=0.06, watermark_until="2")
    assert warehouse.rows("SELECT id FROM item WHERE s <> 'a' ORDER BY id") == [(11,), (12,)]


def test_an_overlap_beyond_all_dates_is_refused(
    source: Database, warehouse: Database, stores: AssetStores
) -> None:
    make(source, warehouse, "date", "date '2024-01-01'")
    sync(stores)
    with pytest.raises(AirflowFailException, match=r"watermark_overlap=.* leads below date"):
        sync(stores, watermark_overlap=timedelta.max)


@pytest.mark.parametrize("until", ["gestern abend", "", "None", " ", True, [6], "1,5"])
def test_an_end_that_is_none_is_refused(both: Both, stores: AssetStores, until: Any) -> None:
    for _ in range(2):
        with pytest.raises(AirflowFailException, match="watermark_until") as caught:
            sync(stores, watermark_until=until)
        assert "SQLSTATE" not in str(caught.value)
        sync(stores)
    if isinstance(until, str) and until.strip() not in ("", "None"):
        assert f"watermark_until={until!r} is no bigint" in str(caught.value)


def test_a_watermark_of_a_column_that_has_another_type_now(both: Both, stores: AssetStores) -> None:
    sync(stores)
    for database in both:
        database.execute("ALTER TABLE item ALTER changed TYPE timestamptz USING now()")
    with pytest.raises(AirflowFailException, match="the stored watermark, '10', is no timestamp with"):
        sync(stores)


@pytest.mark.parametrize("overlap", [-1, timedelta(days=-1), True, "1 day", float("inf"), float("nan")])
def test_an_overlap_that_is_none_is_refused(both: Both, stores: AssetStores, overlap: Any) -> None:
    with pytest.raises(AirflowFailException, match="watermark_overlap must be a timedelta or number"):
        sync(stores, watermark_overlap=overlap)


@pytest.mark.parametrize("argument", ["watermark_overlap", "watermark_until"])
def test_what_belongs_to_a_watermark_is_refused_without_one(both: Both, argument: str) -> None:
    arguments: dict[str, Any] = {argument: 1}
    with pytest.raises(AirflowFailException, match=f"{argument} belongs to watermark_column"):
        sync(AssetStores(ORDERS), watermark_column=None, **arguments)


def test_what_is_new_does_not_displace_rows(
    source: Database, warehouse: Database, stores: AssetStores
) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, changed int, email text UNIQUE)")
    with pytest.raises(AirflowFailException, match="doesn't go together with watermark_column"):
        sync(stores, on_conflict="replace")
