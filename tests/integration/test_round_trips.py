"""How often each operator waits for a server: what a far server costs. Counted by a proxy, not by time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import BaseOperator

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.fetch import DblinkFetchOperator
from airflow_dblink.operators.query import DblinkQueryOperator
from airflow_dblink.operators.sync import DblinkSyncOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator
from tests.databases import Database
from tests.integration.tasks import context
from tests.round_trips import Proxy
from tests.stores import MemoryStore

_BOTH = {"source_conn_id": "far_source", "destination_conn_id": "far_warehouse"}
_TABLES: dict[str, Any] = {**_BOTH, "source_table": "item", "destination_table": "item"}
_CONNECTING = 4
_ROWS = "SELECT i, 'n' || i FROM pg_catalog.generate_series(1, 1000) AS i"

_ITEM = "CREATE TABLE item (id int PRIMARY KEY, name text)"


@pytest.fixture
def far(
    source: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Proxy, Proxy]]:
    """Give both servers behind proxies; table ``item`` has 1,000 rows in the source alone."""
    source.execute(_ITEM)
    warehouse.execute(_ITEM)
    oid = "SELECT 'item'::regclass::oid"
    while source.rows(oid) == warehouse.rows(oid):  # only then a sync asks whether it is the same table
        warehouse.execute(f"DROP TABLE item; {_ITEM}")
    source.execute(f"INSERT INTO item {_ROWS}")
    with Proxy(source) as to_source, Proxy(warehouse) as to_warehouse:
        monkeypatch.setenv("AIRFLOW_CONN_FAR_SOURCE", to_source.uri)
        monkeypatch.setenv("AIRFLOW_CONN_FAR_WAREHOUSE", to_warehouse.uri)
        yield to_source, to_warehouse


def _round_trips(far: tuple[Proxy, Proxy], task: BaseOperator) -> tuple[int, int]:
    """Run *task*; return its round trips to the source and to the warehouse, connecting included."""
    for proxy in far:
        proxy.forget()
    task.execute(context(MemoryStore()))
    return far[0].round_trips, far[1].round_trips


def _at_most(far: tuple[Proxy, Proxy], task: BaseOperator, source: int, warehouse: int) -> None:
    for found, most in zip(_round_trips(far, task), (source, warehouse), strict=True):
        assert min(_CONNECTING + 1, most) <= found <= most


def test_fetch(far: tuple[Proxy, Proxy]) -> None:
    task = DblinkFetchOperator(
        task_id="fetch", conn_id="far_source", sql="SELECT * FROM item WHERE id < 10", max_xcom_rows=10
    )
    _at_most(far, task, 8, 0)


def test_exec(far: tuple[Proxy, Proxy]) -> None:
    task = DblinkExecOperator(task_id="exec", conn_id="far_warehouse", sql="INSERT INTO item VALUES (0)")
    _at_most(far, task, 0, 6)


def test_query_with_one_remote_set(far: tuple[Proxy, Proxy]) -> None:
    task = DblinkQueryOperator(
        task_id="query",
        conn_id="far_warehouse",
        sql="INSERT INTO item SELECT * FROM remote",
        remotes={"remote": {"conn_id": "far_source", "sql": "SELECT * FROM item"}},
    )
    _at_most(far, task, 10, 19)


@pytest.mark.parametrize(
    ("mode", "most"),
    [
        pytest.param("append", (12, 14), id="append"),
        pytest.param("replace", (13, 17), id="replace"),
        pytest.param("upsert", (12, 19), id="upsert"),
    ],
)
def test_transfer(far: tuple[Proxy, Proxy], mode: Any, most: tuple[int, int]) -> None:
    _at_most(far, DblinkTransferOperator(task_id="move", mode=mode, **_TABLES), *most)


def test_sync(far: tuple[Proxy, Proxy], source: Database, warehouse: Database) -> None:
    warehouse.execute(f"INSERT INTO item {_ROWS}")
    task = DblinkSyncOperator(task_id="sync", **_TABLES)
    _round_trips(far, task)  # the first one asks whether both servers hash alike
    _at_most(far, task, 19, 15)
    counts = []
    for name in ("one", "two", "three"):
        source.execute("UPDATE item SET name = %s WHERE id %% 100 = 0", name)
        counts.append(_round_trips(far, task))
    # The least: autovacuum may write on the destination's server meanwhile, and the sync then looks again.
    for found, most in zip(map(min, zip(*counts, strict=True)), (21, 43), strict=True):
        assert _CONNECTING + 1 <= found <= most
    assert _round_trips(far, task)[1] <= 15, "the changes were applied"
