"""A sync is done exactly once across its tries; an approved plan is done exactly, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import TransientError
from airflow_dblink.core.once.transaction import KEY
from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.sync.moments import COUNTED, Meanwhile, Network, applied, fill, rows
from tests.stores import MemoryStore, StaleTryError
from tests.syncs import sync

Both = tuple[Database, Database]
METHODS: list[dict[str, Any]] = [{}, {"method": "reload"}, {"apply": "statements"}, {"lock": "compare"}]


@pytest.fixture
def both(source: Database, warehouse: Database) -> Both:
    fill(source, warehouse)
    warehouse.execute(COUNTED)
    return source, warehouse


# -- the state between tries


@pytest.mark.parametrize("arguments", METHODS)
@pytest.mark.parametrize("refuse_at", [1, 2])
def test_a_superseded_try_changes_nothing(both: Both, refuse_at: int, arguments: dict[str, Any]) -> None:
    source, warehouse = both
    before = rows(warehouse)
    store = MemoryStore(refuse_at=refuse_at)
    with pytest.raises(StaleTryError):
        sync(store=store, **arguments)
    assert rows(warehouse) == before
    store.refuse_at = None
    assert sync(store=store, **arguments)["inserted"] == 3
    assert rows(warehouse) == rows(source)
    assert len(applied(warehouse)) == 1


@pytest.mark.parametrize("arguments", METHODS)
def test_a_try_that_was_superseded_after_its_commit_is_adopted(both: Both, arguments: dict[str, Any]) -> None:
    source, warehouse = both
    store = MemoryStore(refuse_at=3)
    with pytest.raises(StaleTryError):
        sync(store=store, **arguments)
    kept = store.get(KEY)["result"]
    store.refuse_at = None
    source.execute("UPDATE item SET s = 'later' WHERE id = 5")
    assert sync(store=store, task={"try_number": 2}, **arguments) == kept
    assert applied(warehouse) == [kept["xid"]]
    assert (kept["inserted"], kept["updated"], kept["deleted"]) == (3, 3, 2)
    assert rows(warehouse) != rows(source), "done once, as of the first try"


def test_the_answer_to_the_commit_is_lost(both: Both, add_connection: AddConnection) -> None:
    source, warehouse = both
    store = MemoryStore()
    with Network(warehouse.server, loses_commit=True) as network:
        add_connection("warehouse", warehouse, port=network.port)
        with pytest.raises(TransientError, match=r"'warehouse'") as caught:
            sync(store=store)
        assert "secret" not in str(caught.value)
    add_connection("warehouse", warehouse)
    result = sync(store=store, task={"try_number": 2})
    assert applied(warehouse) == [result["xid"]]
    assert result == store.get(KEY)["result"] == json.loads(json.dumps(result))
    assert rows(warehouse) == rows(source)


def test_what_was_returned_is_returned_again(both: Both) -> None:
    _, warehouse = both
    store = MemoryStore()
    assert sync(store=store) == sync(store=store)
    assert len(applied(warehouse)) == 1


def test_a_cleared_task_runs_anew(both: Both) -> None:
    source, warehouse = both
    store = MemoryStore()
    first = sync(store=store)
    source.execute("UPDATE item SET s = 'later' WHERE id = 5")
    again = sync(store=store, task={"max_tries": 1, "try_number": 2})
    assert (again["updated"], again["xid"] != first["xid"]) == (1, True)
    assert rows(warehouse) == rows(source)


def test_a_sync_without_a_difference_is_a_success_like_any_other(both: Both) -> None:
    source, warehouse = both
    sync()
    xids, store = applied(warehouse), MemoryStore()
    first = sync(store=store)
    assert (first["xid"], first["groups_differing"]) == (None, 0)
    assert sync(store=store) == first
    source.execute("UPDATE item SET s = 'later' WHERE id = 5")
    assert sync(store=store, task={"max_tries": 1})["updated"] == 1
    assert applied(warehouse)[:-1] == xids


def test_an_aborted_try_before_a_sync_without_a_difference_is_forgotten(both: Both) -> None:
    """Otherwise a task that is cleared much later asks for a transaction that the server has forgotten."""
    _, warehouse = both
    store = MemoryStore(refuse_at=2)
    with pytest.raises(StaleTryError):
        sync(store=store)
    store.refuse_at = None
    sync()
    assert sync(store=store, task={"try_number": 2})["xid"] is None
    assert store.get(KEY)["ended"] == "returned"
    assert len(applied(warehouse)) == 1


def test_a_dry_run_keeps_nothing(both: Both) -> None:
    store = MemoryStore()
    sync(store=store, plan_only=True)
    assert store.history == []


# -- the approval

APPLIED_BY: list[dict[str, Any]] = [
    {},
    {"method": "reload"},
    {"method": "difference"},
    {"apply": "statements"},
    {"lock": "compare"},
    {"method": "reload", "apply": "statements"},
]


@pytest.mark.parametrize("planned_by", [{}, {"method": "reload"}])
@pytest.mark.parametrize("applied_by", APPLIED_BY)
def test_a_plan_is_applied_by_any_method(
    both: Both, planned_by: dict[str, Any], applied_by: dict[str, Any]
) -> None:
    source, warehouse = both
    dry = json.loads(json.dumps(sync(plan_only=True, **planned_by)))
    done = sync(plan=dry["plan"], **applied_by)
    assert [done[name] for name in ("inserted", "updated", "deleted")] == [
        dry[name] for name in ("missing", "changed", "extra")
    ]
    assert rows(warehouse) == rows(source)


MOVES = [
    ("source", "UPDATE item SET s = 'moved' WHERE id = 1"),  # what would be inserted
    ("source", "UPDATE item SET s = 'moved' WHERE id = 2"),  # what would be written over the old
    ("source", "UPDATE item SET s = 'moved' WHERE id = 1500"),
    ("source", "DELETE FROM item WHERE id = 1500"),
    ("source", "DELETE FROM item WHERE id = 1"),
    ("source", "INSERT INTO item VALUES (-5, 0, 'extra secret')"),  # what would be deleted
    ("warehouse", "UPDATE item SET s = 'moved' WHERE id = 2"),  # what would be overwritten
    ("warehouse", "UPDATE item SET s = 'moved' WHERE id = -5"),  # what would be deleted
    ("warehouse", "UPDATE item SET s = 'moved' WHERE id = 1500"),
    ("warehouse", "INSERT INTO item VALUES (-6, 0, NULL)"),
    ("warehouse", "INSERT INTO item VALUES (1, 1, 'moved')"),
    ("warehouse", "DELETE FROM item WHERE id = 2"),
    ("warehouse", "DELETE FROM item WHERE id = -5"),
    ("warehouse", "UPDATE item SET id = -7 WHERE id = -5"),
]


@pytest.mark.parametrize("method", ["auto", "reload"])
@pytest.mark.parametrize(("side", "statement"), MOVES)
def test_a_plan_is_refused_once_the_data_moved_on(both: Both, side: str, statement: str, method: str) -> None:
    source, warehouse = both
    plan = sync(plan_only=True)["plan"]
    (source if side == "source" else warehouse).execute(statement)
    before = rows(warehouse)
    with pytest.raises(AirflowFailException, match="the data moved on") as caught:
        sync(plan=plan, method=method)
    assert "secret" not in str(caught.value)
    assert rows(warehouse) == before


def test_a_plan_is_refused_if_the_data_moves_after_its_compare(both: Both) -> None:
    _, warehouse = both
    plan = sync(plan_only=True)["plan"]
    move = Meanwhile(lambda: warehouse.execute("UPDATE item SET s = 'moved' WHERE id = 1500"))
    with pytest.raises(AirflowFailException, match="the data moved on"):
        sync(plan=plan, store=move)
    assert len(applied(warehouse)) == 1


def test_a_change_that_leaves_the_plan_as_it_is_doesnt_matter(both: Both) -> None:
    source, warehouse = both
    plan = sync(plan_only=True)["plan"]
    for database in both:
        database.execute("UPDATE item SET s = 'same' WHERE id = 1500; DELETE FROM item WHERE id = 1501")
    sync(plan=plan)
    assert rows(warehouse) == rows(source)


def test_a_plan_is_applied_once(both: Both) -> None:
    plan = sync(plan_only=True)["plan"]
    sync(plan=plan)
    with pytest.raises(AirflowFailException, match="the data moved on"):
        sync(plan=plan)


def test_a_plan_of_a_part_is_for_that_part(both: Both) -> None:
    source, warehouse = both
    part: dict[str, Any] = {"where": "id < %s", "where_parameters": [1500]}
    dry = sync(plan_only=True, **part)
    assert (dry["missing"], dry["changed"], dry["extra"]) == (2, 2, 1)
    with pytest.raises(AirflowFailException, match="made with other arguments"):
        sync(plan=dry["plan"])
    warehouse.execute("UPDATE item SET s = 'elsewhere' WHERE id = 2500")  # outside of it
    assert sync(plan=dry["plan"], **part)["inserted"] == 2
    assert [row for row in rows(warehouse) if row[0] < 1500] == [r for r in rows(source) if r[0] < 1500]
    assert rows(warehouse) != rows(source)


@pytest.mark.parametrize("handed_on", [str, json.dumps, dict, lambda dry: dry["plan"]])
def test_a_plan_is_handed_on_as_airflow_does(both: Both, handed_on: Callable[[Any], Any]) -> None:
    source, warehouse = both
    dry = sync(plan_only="True")
    assert sync(plan=handed_on(dry))["inserted"] == dry["missing"]
    assert rows(warehouse) == rows(source)


def test_a_dry_run_tells_what_a_guard_would_refuse(both: Both) -> None:
    dry = sync(plan_only=True, max_change_fraction="0.0001")
    (refused,) = dry["refused"]
    assert "max_change_fraction=0.0001" in refused
    with pytest.raises(AirflowFailException, match="max_change_fraction"):
        sync(plan=dry, max_change_fraction="0.0001")
    assert sync(plan=dry, max_change_fraction="None")["inserted"] == dry["missing"]


@pytest.mark.parametrize("name", ["max_delete_fraction", "max_change_fraction", "replace_above"])
def test_a_text_that_is_no_number_is_refused(both: Both, name: str) -> None:
    arguments: dict[str, Any] = {name: "much"}
    with pytest.raises(AirflowFailException, match=f"{name} must be a number or None, got 'much'"):
        sync(**arguments)


def test_a_plan_of_equal_tables_does_nothing_and_is_refused_if_they_differ(both: Both) -> None:
    source, _ = both
    sync()
    plan = sync(plan_only=True)["plan"]
    assert sync(plan=plan)["inserted"] == 0
    source.execute("UPDATE item SET s = 'moved' WHERE id = 1500")
    with pytest.raises(AirflowFailException, match="the data moved on"):
        sync(plan=plan)


@pytest.mark.parametrize("plan", [{}, {"seed": 1}, {"digest": "0"}])
def test_what_is_no_plan_is_refused(both: Both, plan: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException, match="plan must be the result of a dry run"):
        sync(plan=plan)
