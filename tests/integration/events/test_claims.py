"""Claiming: each event for one run, and the same events again for a retry."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.errors import TransientError, UsageError
from airflow_dblink.core.events.claims import acknowledge, claim_rows, release
from airflow_dblink.core.events.table import Events, EventTable
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.server.target import PoolingMode
from tests.databases import Database
from tests.integration.events.conftest import ORDERS, claim_as, emit
from tests.pooler import pooler
from tests.standby import standby_of


def _finish(how: Any, database: Database, key: str, events: Events = ORDERS) -> int:
    with closing(connect(database.target)) as connection:
        number: int = how(Side(connection, "source"), events, key, settings={})
        return number


def test_each_event_is_for_one_run_and_the_oldest_come_first(shop: Database) -> None:
    emit(shop, 5)

    assert claim_as("a", shop.target, most=3) == [1, 2, 3]
    assert claim_as("b", shop.target, most=3) == [4, 5]
    assert claim_as("c", shop.target) == []


def test_a_retry_gets_the_same_events_and_no_new_ones(shop: Database) -> None:
    emit(shop, 2)
    first = claim_as("a", shop.target)
    emit(shop, 2)

    assert claim_as("a", shop.target, most=1) == first == [1, 2]
    assert claim_as("b", shop.target) == [3, 4]


def test_a_retry_gets_them_also_when_they_are_done(shop: Database) -> None:
    emit(shop, 2)
    claim_as("a", shop.target)

    assert _finish(acknowledge, shop, "a") == 2
    assert _finish(acknowledge, shop, "a") == 0
    assert claim_as("a", shop.target) == [1, 2]
    assert claim_as("b", shop.target) == []


def test_released_events_are_for_others_and_done_ones_stay(shop: Database) -> None:
    emit(shop, 3)
    claim_as("a", shop.target)
    shop.execute("UPDATE airflow_dblink_events.event SET done_at = now() WHERE id = 2")

    assert _finish(release, shop, "a") == 2
    assert claim_as("b", shop.target) == [1, 3]
    assert claim_as("a", shop.target) == [2]


def test_topics_are_apart(shop: Database) -> None:
    emit(shop, 2, "orders")
    emit(shop, 1, "it's")

    assert claim_as("a", shop.target, Events("it's")) == [3]
    assert claim_as("a2", shop.target, Events("ORDERS")) == []
    assert claim_as("b", shop.target) == [1, 2]


def test_a_locked_event_is_left_to_a_later_run(shop: Database) -> None:
    emit(shop, 3)
    with psycopg.connect(shop.conninfo) as other:
        other.execute("SELECT FROM airflow_dblink_events.event WHERE id = 2 FOR UPDATE")
        assert claim_as("a", shop.target) == [1, 3]

    assert claim_as("b", shop.target) == [2]


def test_many_claim_at_once_and_none_is_claimed_twice(shop: Database) -> None:
    shop.execute("SELECT airflow_dblink_events.emit('orders') FROM generate_series(1, 2000)")

    with ThreadPoolExecutor(8) as threads:
        claims = [threads.submit(claim_as, f"run {i}", shop.target, most=100) for i in range(24)]
        claimed = [each for one in claims for each in one.result()]
    claimed += claim_as("the last", shop.target)

    assert sorted(claimed) == list(range(1, 2001))


def test_a_zombie_and_its_successor_get_the_same_events(shop: Database) -> None:
    emit(shop, 200)

    with ThreadPoolExecutor(6) as threads:
        claims = [threads.submit(claim_as, "a", shop.target, most=30) for _ in range(12)]

    assert {tuple(one.result()) for one in claims} == {tuple(range(1, 31))}


def test_an_event_that_commits_late_is_not_forgotten(shop: Database) -> None:
    with psycopg.connect(shop.conninfo) as late:
        late.execute("SELECT airflow_dblink_events.emit('orders')")
        emit(shop, 1)
        assert claim_as("a", shop.target) == [2]

    assert claim_as("b", shop.target) == [1]


def test_an_event_that_is_rolled_back_is_none(shop: Database) -> None:
    with psycopg.connect(shop.conninfo) as undone:
        undone.execute("SELECT airflow_dblink_events.emit('orders')")
        undone.rollback()

    assert claim_as("a", shop.target) == []


def test_the_rows_have_all_columns(shop: Database) -> None:
    emit(shop, 1)

    with closing(connect(shop.target)) as connection:
        (row,) = claim_rows(Side(connection, "source"), ORDERS, "a", most=1, settings={})

    assert (row["id"], row["topic"], row["payload"], row["claimed_by"]) == (1, "orders", {"n": 1}, "a")
    assert row["claimed_at"] >= row["emitted_at"]
    assert row["emitted_by"] == shop.server.role


# -- a user's own table

_QUEUE = """
CREATE TABLE "My Queue" (
    nr uuid PRIMARY KEY DEFAULT gen_random_uuid(), kind text, taken varchar(200), finished timestamptz
);
"""
_OWN = EventTable('"My Queue"', id="nr", claimed_by="taken", topic="kind", done_at="finished")


def test_an_own_table(source: Database) -> None:
    source.execute(_QUEUE)
    source.execute("""INSERT INTO "My Queue" (kind) VALUES ('a'), ('a'), ('b')""")
    source.execute("""INSERT INTO "My Queue" (kind, finished) VALUES ('a', now())""")
    events = Events("a", own=_OWN)

    claimed = claim_as("x", source.target, events)

    assert len(claimed) == 2
    assert claim_as("x", source.target, events) == claimed
    assert len(claim_as("y", source.target, Events(own=_OWN))) == 1
    assert _finish(acknowledge, source, "x", events) == 2
    assert _finish(release, source, "y", events) == 1
    assert len(claim_as("z", source.target, Events(own=_OWN))) == 1


def test_an_own_tables_triggers_run_under_the_users_path(source: Database) -> None:
    source.execute(_QUEUE)
    source.execute("""
        CREATE SCHEMA app; CREATE TABLE app.log (a text);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO log VALUES (new.taken); RETURN new; END';
        CREATE TRIGGER note BEFORE UPDATE ON "My Queue" FOR EACH ROW EXECUTE FUNCTION note();
        INSERT INTO "My Queue" (kind) VALUES ('a')
    """)

    claim_as("x", source.target, Events(own=_OWN), settings={"search_path": "public, app"})

    assert source.rows("SELECT a FROM app.log") == [("x",)]


def test_a_table_without_a_column_for_the_end_can_not_acknowledge(source: Database) -> None:
    source.execute(_QUEUE)
    events = Events(own=EventTable('"My Queue"', id="nr", claimed_by="taken"))

    with pytest.raises(UsageError, match="has no column that says when an event is done"):
        _finish(acknowledge, source, "x", events)


def test_a_hostile_path_has_no_say(shop: Database) -> None:
    emit(shop, 1)
    shop.execute("""
        CREATE FUNCTION public.never(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.never)
    """)
    settings = {"search_path": "public, pg_catalog"}

    assert claim_as("a", shop.target, settings=settings) == [1]
    assert claim_as("a", shop.target, settings=settings) == [1]


def test_repeated_ids_take_nothing_away_and_are_refused(source: Database) -> None:
    source.execute("CREATE TABLE q (id int, name text, claimed_by text); INSERT INTO q VALUES (1, 'first')")
    events = Events(own=EventTable("q"))
    assert claim_as("a", source.target, events) == [1]
    source.execute("INSERT INTO q VALUES (1, 'second')")
    assert claim_as("b", source.target, events) == [1]
    assert source.rows("SELECT name, claimed_by FROM q ORDER BY 1") == [("first", "a"), ("second", "b")]

    source.execute("INSERT INTO q SELECT 7 FROM generate_series(1, 5)")
    with pytest.raises(UsageError, match="ids in q are not unique"):
        claim_as("c", source.target, events, most=1)
    assert source.rows("SELECT count(*) FROM q WHERE id = 7 AND claimed_by IS NULL") == [(5,)]


@pytest.mark.parametrize("column", ["who name", "who text"])
def test_a_column_that_does_not_keep_the_key_is_refused(source: Database, column: str) -> None:
    source.execute(f"CREATE TABLE q (id int PRIMARY KEY, {column})")
    source.execute("INSERT INTO q VALUES (1)")
    source.execute("""
        CREATE FUNCTION lower_it() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN new.who := lower(new.who::text); RETURN new; END';
        CREATE TRIGGER t BEFORE UPDATE ON q FOR EACH ROW EXECUTE FUNCTION lower_it()
    """)
    with pytest.raises(UsageError, match="does not keep the key of a claim as it is"):
        claim_as("D" * 70, source.target, Events(own=EventTable("q", claimed_by="who")))
    assert source.rows("SELECT who FROM q") == [(None,)]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("bytea", r"'\x01'", r"\x01"),
        ("interval", "'1 mon'", "1 mon"),
        ("date", "'0044-03-15 BC'", "0044-03-15 BC"),
        ("timestamp", "'infinity'", "infinity"),
        ("int8range", "'[1,2)'", "[1,2)"),
        ("boolean", "true", "t"),
        ("numeric", "1.50", "1.50"),
        ("smallint", "7", 7),
    ],
)
def test_ids_of_other_types_are_postgresqls_texts(source: Database, kind: str, value: str, text: Any) -> None:
    source.execute(f"CREATE TABLE q (id {kind} PRIMARY KEY, claimed_by text)")
    source.execute(f"INSERT INTO q VALUES ({value})")  # noqa: S608 - constants

    assert claim_as("a", source.target, Events(own=EventTable("q"))) == [text]


@pytest.mark.parametrize(
    "poison",
    ["('1' || repeat('0', 5000))::jsonb", "(repeat('[', 4000) || repeat(']', 4000))::jsonb"],
)
def test_an_event_that_python_can_not_hold_stops_no_claim(shop: Database, poison: str) -> None:
    shop.execute(f"SELECT airflow_dblink_events.emit('orders', {poison})")
    emit(shop, 1)

    with closing(connect(shop.target)) as connection:
        rows = claim_rows(Side(connection, "source"), ORDERS, "a", most=10, settings={})

    assert [row["id"] for row in rows] == [1, 2]
    assert isinstance(rows[0]["payload"], str)
    assert rows[1]["payload"] == {"n": 1}


def test_a_key_has_a_claim_for_each_topic(shop: Database) -> None:
    emit(shop, 1, "orders")
    emit(shop, 1, "refunds")

    assert claim_as("a", shop.target, Events("orders")) == [1]
    assert claim_as("a", shop.target, Events("refunds")) == [2]
    assert claim_as("a", shop.target, Events("orders")) == [1]


# -- places


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_through_a_pooler(shop: Database, mode: PoolingMode) -> None:
    emit(shop, 3)
    with pooler(shop.server, mode) as port:
        params = {**shop.params, "host": "127.0.0.1", "port": port}
        target = replace(shop.target, params=params, pooling_mode=mode)
        assert claim_as("a", target, most=2) == [1, 2]
        assert claim_as("a", target, most=2) == [1, 2]
        assert claim_as("b", target) == [3]


def test_a_standby_is_named(shop: Database) -> None:
    emit(shop, 1)
    with standby_of(shop.server) as standby:
        copy = Database("copy", standby, shop.name)
        with pytest.raises(TransientError, match="the server is a standby, which changes nothing"):
            claim_as("a", copy.target)
