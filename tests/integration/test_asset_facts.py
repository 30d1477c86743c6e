"""Events of a task's outlets: the numbers of its result, and none if nothing has changed."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias, BaseOperator
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.fetch import DblinkFetchOperator
from airflow_dblink.operators.query import DblinkQueryOperator
from airflow_dblink.operators.sync import DblinkSyncOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator
from tests.databases import Database
from tests.integration.tasks import context
from tests.stores import MemoryStore

ITEMS = Asset("items", extra={"team": "shop"})
ALIAS = AssetAlias("an_alias")
_BOTH: dict[str, Any] = {
    "source_conn_id": "source",
    "source_table": "item",
    "destination_conn_id": "warehouse",
    "destination_table": "item",
}


@pytest.fixture(autouse=True)
def items(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, name text)")
    source.execute("INSERT INTO item SELECT i, 'hidden' FROM generate_series(1, 3) AS i")


def _event(
    kind: type[BaseOperator], store: MemoryStore | None = None, **arguments: Any
) -> dict[str, Any] | None:
    """Run the task, and return the extra of its outlet's event; ``None`` if there is no event."""
    task = kind(task_id="t", outlets=[ITEMS, ALIAS], **arguments)
    given = context(store)
    given |= {"task": task, "outlet_events": OutletEventAccessors()}
    task.execute(given)
    assert ALIAS in task.outlets
    extra: dict[str, Any] = given["outlet_events"][ITEMS].extra
    assert "hidden" not in repr(extra)
    return extra if ITEMS in task.outlets else None


def test_a_transfer_tells_what_it_moved(warehouse: Database) -> None:
    facts = _event(DblinkTransferOperator, **_BOTH, mode="upsert", emit_when_changed=True)

    assert facts is not None
    assert (facts["rows"], facts["changed"]) == (3, 3)
    assert facts["bytes"] > 0
    assert facts["seconds"] >= 0
    assert "xid" not in facts


def test_a_replaced_table_has_changed_even_if_it_is_empty_now(source: Database) -> None:
    source.execute("TRUNCATE item")
    given: dict[str, Any] = {**_BOTH, "emit_when_changed": True, "allow_empty_source": True}

    assert _event(DblinkTransferOperator, **given, mode="append") is None
    assert _event(DblinkTransferOperator, **given, mode="replace") is not None
    assert _event(DblinkTransferOperator, **given, mode="swap") is not None


def test_a_sync_tells_what_differed_and_a_second_one_nothing(warehouse: Database) -> None:
    warehouse.execute("INSERT INTO item VALUES (1, 'other'), (9, 'gone')")
    facts = _event(DblinkSyncOperator, **_BOTH, emit_when_changed=True, max_delete_fraction=None)

    assert facts is not None
    assert (facts["inserted"], facts["updated"], facts["deleted"]) == (2, 1, 1)
    assert _event(DblinkSyncOperator, **_BOTH, emit_when_changed=True) is None
    unchanged = _event(DblinkSyncOperator, **_BOTH)
    assert unchanged is not None
    assert unchanged["inserted"] == 0
    assert "first_keys" not in unchanged


def test_a_dry_run_changes_nothing() -> None:
    assert _event(DblinkSyncOperator, **_BOTH, plan_only=True, emit_when_changed=True) is None


@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ("INSERT INTO item VALUES (7)", 1),
        ("SET LOCAL work_mem = '8MB'; UPDATE item SET name = 'x' WHERE id < 3; DELETE FROM item", 5),
        ("UPDATE item SET name = 'x' WHERE false", None),
        ("DELETE FROM item WHERE false; SET LOCAL work_mem = '8MB'; ANALYZE item", None),
        ("CREATE TABLE other (a int)", 0),
        ("SELECT nextval('seq')", 0),
        ("UPDATE item SET name = 'x' WHERE false; TRUNCATE item", 0),
    ],
    ids=str,
)
def test_a_script_tells_by_its_command_tags(source: Database, statement: str, changed: int | None) -> None:
    source.execute("CREATE SEQUENCE seq")

    facts = _event(DblinkExecOperator, conn_id="source", sql=statement, emit_when_changed=True)

    assert (None if facts is None else facts["changed"]) == changed


def test_a_retry_that_finds_the_work_done_tells_the_same() -> None:
    store = MemoryStore()
    given: dict[str, Any] = {**_BOTH, "mode": "upsert"}

    first = _event(DblinkTransferOperator, store, **given)

    assert first == _event(DblinkTransferOperator, store, **given, emit_when_changed=True)


def test_a_fetch_and_a_query_tell_their_rows() -> None:
    select: dict[str, Any] = {"conn_id": "source", "sql": "SELECT * FROM item", "max_xcom_rows": 10}
    fetched = _event(DblinkFetchOperator, **select)
    assert fetched is not None
    assert fetched["rows"] == 3
    written = _event(DblinkQueryOperator, conn_id="source", sql="DELETE FROM item WHERE id = 1")
    assert written is not None
    assert written["changed"] == 1


def test_a_reference_to_an_asset_gets_no_event_either() -> None:
    references = [Asset.ref(name="one"), Asset.ref(uri="x://two")]
    task = DblinkExecOperator(
        task_id="t", conn_id="source", sql="DELETE FROM item WHERE false", emit_when_changed=True
    )
    task.outlets = [*references, ALIAS]
    given = context()
    given |= {"task": task, "outlet_events": OutletEventAccessors()}
    task.execute(given)

    assert task.outlets == [ALIAS]


def test_without_outlets_nothing_is_asked_for() -> None:
    DblinkExecOperator(task_id="t", conn_id="source", sql="SELECT 1").execute(context())


def test_a_wrong_value_is_refused() -> None:
    with pytest.raises(AirflowFailException, match="emit_when_changed must be true or false"):
        DblinkExecOperator(task_id="t", conn_id="source", sql="SELECT 1", emit_when_changed="maybe")
