"""The operators and the hook: what they return, what they refuse, and what a kill leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import psycopg
import pytest
from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time.context import set_current_context

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.events.table import EventTable
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.events import (
    DblinkAckEventsOperator,
    DblinkClaimEventsOperator,
    DblinkNotifyOperator,
    DblinkReleaseEventsOperator,
)
from tests.databases import Database
from tests.integration.events.conftest import emit
from tests.integration.tasks import context
from tests.stores import MemoryStore

_KEY = "dag/run/task/-1"


def _claim(run_id: str = "run", **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """Return what the operator returns, and its other XComs."""
    task = context(run_id=run_id)
    given = {"task_id": "task", "conn_id": "source", "topic": "orders"}
    return DblinkClaimEventsOperator(**{**given, **arguments}).execute(task), task["ti"].xcoms


def _finish(kind: type[BaseOperator], claimed_by: str, **arguments: Any) -> Any:
    return kind(task_id="t", conn_id="source", claimed_by=claimed_by, **arguments).execute(context())


def test_the_ids_go_to_xcom_with_the_key_and_an_empty_claim_skips(
    shop: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    emit(shop, 3)

    assert _claim(limit="2") == ([1, 2], {"claimed_by": _KEY})
    assert _claim() == ([1, 2], {"claimed_by": _KEY})
    assert _claim("other") == ([3], {"claimed_by": "dag/other/task/-1"})
    with pytest.raises(AirflowSkipException):
        _claim("third")
    assert _claim("third", skip_when_empty=False)[0] == []
    assert '"n"' not in capsys.readouterr().out


def test_done_and_given_back(shop: Database) -> None:
    emit(shop, 2)
    _claim()

    assert _finish(DblinkReleaseEventsOperator, _KEY) == 2
    assert _finish(DblinkReleaseEventsOperator, _KEY) == 0
    assert _claim("other")[0] == [1, 2]
    assert _finish(DblinkAckEventsOperator, "dag/other/task/-1") == 2
    assert _finish(DblinkReleaseEventsOperator, "dag/other/task/-1") == 0


def test_ids_of_an_own_table_are_texts(source: Database) -> None:
    source.execute("CREATE TABLE q (id uuid PRIMARY KEY, who text)")
    source.execute("INSERT INTO q VALUES ('6ba7b810-9dad-11d1-80b4-00c04fd430c8')")
    own = EventTable("q", claimed_by="who")

    assert _claim(topic=None, own_table=own)[0] == ["6ba7b810-9dad-11d1-80b4-00c04fd430c8"]
    with pytest.raises(AirflowFailException, match="has no column that says when an event is done"):
        _finish(DblinkAckEventsOperator, _KEY, own_table=own)


def test_a_missing_column_is_named_and_nothing_is_claimed(source: Database) -> None:
    source.execute("CREATE TABLE q (id int PRIMARY KEY, who text); INSERT INTO q VALUES (1)")

    with pytest.raises(Exception, match=r"column e\.claimed_by does not exist"):
        _claim(topic=None, own_table=EventTable("q"))
    assert source.rows("SELECT count(who) FROM q") == [(0,)]


def test_session_settings_hold(source: Database) -> None:
    source.execute(
        "CREATE SCHEMA s; CREATE TABLE s.q (id int PRIMARY KEY, who text); INSERT INTO s.q VALUES (1)"
    )
    own = EventTable("q", claimed_by="who")

    assert _claim(topic=None, own_table=own, session_settings={"search_path": "s"})[0] == [1]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"topic": None}, "topic has no value"),
        ({"topic": ""}, "topic has no value"),
        ({"limit": 0}, "limit must be an integer of at least 1"),
        ({"limit": 10_001}, "limit is at most 10000, got 10001"),
        ({"own_table": {"name": "q"}}, "own_table must be an EventTable, got dict"),
        ({"own_table": EventTable("q")}, "has no column for it"),
        ({"skip_when_empty": "often"}, "skip_when_empty must be true or false"),
    ],
    ids=str,
)
def test_mistakes_fail_when_the_dag_is_parsed(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(AirflowFailException, match=error):
        _claim(**arguments)


def test_the_key_is_known_before_anything_is_claimed(source: Database) -> None:
    task = context()
    with pytest.raises(AirflowFailException, match="is not there"):
        DblinkClaimEventsOperator(task_id="task", conn_id="source", topic="orders").execute(task)

    assert task["ti"].xcoms == {"claimed_by": _KEY}


# -- from Python code


@contextmanager
def _in_a_task(**fields: Any) -> Iterator[None]:
    with set_current_context(cast("Context", context(**fields))):
        yield


def test_the_hook_returns_whole_events(shop: Database) -> None:
    emit(shop, 2)
    hook = DblinkHook(dblink_conn_id="source")

    with _in_a_task():
        rows = hook.claim_events("orders", limit=1)
        assert [(row["id"], row["payload"]) for row in rows] == [(1, {"n": 1})]
        assert hook.ack_events() == 1
    with _in_a_task(run_id="other"):
        assert [row["id"] for row in hook.claim_events("orders", claimed_by=_KEY)] == [1]
        assert [row["id"] for row in hook.claim_events("orders")] == [2]
        assert hook.release_events() == 1
    with pytest.raises(UsageError, match="outside of a task there is no key"):
        hook.claim_events("orders")


# -- NOTIFY


def _notify(store: MemoryStore, **arguments: Any) -> str:
    given = {"task_id": "t", "conn_id": "source", "channel": "Odd 'channel'", "payload": "50% of it's"}
    return DblinkNotifyOperator(**{**given, **arguments}).execute(context(store))


def test_a_retry_notifies_nobody_again(source: Database) -> None:
    with psycopg.connect(source.conninfo, autocommit=True) as listening:
        listening.execute("""LISTEN "Odd 'channel'"; LISTEN the_end""")
        store = MemoryStore()
        assert _notify(store) == "SELECT 1"
        assert _notify(store) == "SELECT 1"
        with _in_a_task():
            DblinkHook(dblink_conn_id="source").notify("the_end", "it's %s")
        told = [(note.channel, note.payload) for note in listening.notifies(stop_after=2, timeout=60)]

    assert told == [("Odd 'channel'", "50% of it's"), ("the_end", "it's %s")]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"channel": "x" * 64}, "channel must be a name of 1 to 63 bytes, got 64 bytes"),
        ({"channel": "ä" * 32}, "got 64 bytes"),
        ({"channel": ""}, "channel has no value"),
        ({"payload": "x" * 8_000}, "payload has at most 7999 bytes, got 8000 bytes"),
        ({"payload": 1}, "payload must be text, got int"),
        ({"payload": "a\0"}, "NUL"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_no_notification_can_carry_is_refused(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(AirflowFailException, match=error):
        _notify(MemoryStore(), **arguments)


def test_the_longest_notification_is_sent(source: Database) -> None:
    with psycopg.connect(source.conninfo, autocommit=True) as listening:
        channel, payload = "x" * 63, "y" * 7_999
        listening.execute(f"LISTEN {channel}".encode())
        _notify(MemoryStore(), channel=channel, payload=payload)
        (note,) = listening.notifies(stop_after=1, timeout=60)

    assert (note.channel, note.payload) == (channel, payload)
