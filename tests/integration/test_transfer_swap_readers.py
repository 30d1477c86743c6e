# ruff: noqa: S608 - numbers and names that the tests themselves made
"""mode='swap' beside others: readers in a loop, older snapshots, a second swap; and ends at every stage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.errors import TransientError
from tests.databases import Database
from tests.oracle import wait_until
from tests.transfers import TimeIsUp, alarm, meanwhile, transfer

ITEM = "CREATE TABLE item (id int PRIMARY KEY, batch int NOT NULL, name text) WITH (autovacuum_enabled = off)"
FILL = "INSERT INTO item SELECT i, 0, repeat('x', 100) FROM generate_series(1, 1000) AS i"
INDEX = "CREATE INDEX item_batch ON item (batch, name)"
WHOLE = (1000, 1, 500500)
READ = "SELECT count(*), count(DISTINCT batch), sum(id) FROM item"
BY_INDEX = "SELECT count(*), count(DISTINCT batch), sum(id) FROM item WHERE batch >= 0 AND name > ''"
SWAPS = 10
WAITS = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest.fixture
def item(source: Database, warehouse: Database) -> Database:
    """Give the destination's database, with a table of a thousand rows of batch 0."""
    warehouse.execute(f"{ITEM}; {FILL}; {INDEX}; ANALYZE item")
    return warehouse


def swap(batch: int = 1, **arguments: Any) -> Any:
    query = f"SELECT i AS id, {batch} AS batch, repeat('y', 100) AS name FROM generate_series(1, 1000) AS i"
    return transfer("item", **{"source_sql": query, "mode": "swap", **arguments})


@contextmanager
def in_a_loop(*readers: Callable[[], None]) -> Iterator[list[int]]:
    """Let each of *readers* read again and again; gives the number of reads of each, and fails as they do."""
    over = threading.Event()
    counts = [0] * len(readers)
    failures: list[BaseException] = []

    def loop(number: int) -> None:
        try:
            while not over.is_set():
                readers[number]()
                counts[number] += 1
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(len(readers))]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def wait_for_reads(counts: list[int]) -> None:
    """Wait until each reader has read once more."""
    before = list(counts)
    wait_until(lambda: all(now > then for now, then in zip(counts, before, strict=True)))


def test_readers_see_one_whole_table_and_no_error(item: Database) -> None:
    with (
        psycopg.connect(item.conninfo, autocommit=True, prepare_threshold=0) as prepared,
        psycopg.connect(item.conninfo, autocommit=True, prepare_threshold=0) as by_index,
        psycopg.connect(item.conninfo) as repeatable,
    ):
        by_index.execute("SET enable_seqscan = off")
        repeatable.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        def read(connection: psycopg.Connection[Any], query: bytes) -> None:
            assert connection.execute(query).fetchone() == WHOLE

        def read_after_a_while() -> None:
            with repeatable.transaction():
                repeatable.execute("SELECT pg_sleep(0.01)")  # its snapshot is from here on
                read(repeatable, READ.encode())

        with in_a_loop(
            lambda: read(prepared, READ.encode()),
            lambda: read(by_index, BY_INDEX.encode()),
            read_after_a_while,
        ) as counts:
            for batch in range(1, SWAPS + 1):
                swap(batch)
                wait_for_reads(counts)
    assert item.rows("SELECT DISTINCT batch FROM item") == [(SWAPS,)]


def test_an_older_snapshot_sees_the_new_rows_and_not_an_empty_table(item: Database) -> None:
    with psycopg.connect(item.conninfo) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT 1")
        swap()
        assert reader.execute("SELECT count(*), min(batch) FROM item").fetchone() == (1000, 1)
        reader.execute("SET enable_seqscan = off")
        assert reader.execute("SELECT count(*) FROM item WHERE batch = 1").fetchone() == (1000,)


@pytest.mark.parametrize("who", ["the same role", "another one"])
def test_older_snapshots_are_waited_for_and_named(item: Database, who: str) -> None:
    is_same = who == "the same role"
    conninfo = item.conninfo if is_same else item.admin_conninfo
    with psycopg.connect(conninfo, application_name="long report") as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT 1")
        shown = r", idle in" if is_same else r"\)"  # another role's state is hidden
        with pytest.raises(TransientError, match=rf"old_snapshots_timeout is over.*\('long report'{shown}"):
            swap(old_snapshots_timeout=timedelta())
        assert item.rows(READ.replace("sum(id)", "max(batch)")) == [(1000, 1, 0)]

        asleep = f"SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = '{item.name}'"
        with meanwhile(reader.rollback, lambda: item.admin(asleep)):
            swap(old_snapshots_timeout=timedelta(minutes=1))
    assert item.rows("SELECT DISTINCT batch FROM item") == [(1,)]


def test_a_second_swap_waits_for_the_first(source: Database, item: Database) -> None:
    """Both have looked at the table before; the second takes the place of the first's."""
    gated = "SELECT 1 AS id, 1 AS batch, (SELECT 'x' FROM pg_advisory_xact_lock(7)) AS name"
    waits = (
        "SELECT 1 FROM pg_locks WHERE relation = 'item'::regclass"
        " AND mode = 'ShareUpdateExclusiveLock' AND NOT granted"
    )
    with psycopg.connect(source.conninfo) as gate:
        gate.execute("SELECT pg_advisory_xact_lock(7)")
        second = threading.Thread(target=swap, args=(2,))

        def let_second_wait() -> None:
            second.start()

        def open_gate() -> None:
            gate.rollback()

        with (
            meanwhile(open_gate, lambda: item.admin(waits)),
            meanwhile(let_second_wait, lambda: source.admin(WAITS)),
        ):
            swap(source_sql=gated)
        second.join()
    assert item.rows(READ.replace("sum(id)", "max(batch)")) == [(1000, 1, 2)]


# -- the session ends


def shadows(database: Database) -> list[Any]:
    return database.admin("SELECT relname FROM pg_class WHERE relname LIKE '%airflow_dblink%'")


STAGES = {
    "load": "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY%FREEZE%' AND query NOT LIKE 'SELECT%'"
    " AND datname = current_database()",
    "index": "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%CREATE INDEX%'",
    "lock": "SELECT pid FROM pg_locks WHERE relation = 'item'::regclass AND mode = 'AccessExclusiveLock'"
    " AND NOT granted",
    "pause": "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE 'SELECT pg_cat%'",
    "post_sql": "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%a while%'",
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["terminated", "killed"])
def test_an_end_at_any_stage_leaves_the_table_as_it_was(
    source: Database, item: Database, stage: str, how: str
) -> None:
    item.execute(
        """CREATE FUNCTION slow(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
           BEGIN IF $1 = 500 AND current_setting('test.slow', true) = 'on' THEN PERFORM pg_sleep(60); END IF;
           RETURN $1; END $$;
           CREATE INDEX item_slow ON item (public.slow(id))"""
    )
    arguments: dict[str, Any] = {}
    if stage == "index":
        arguments["pre_sql"] = "SET LOCAL test.slow = 'on'"
    if stage == "post_sql":
        arguments["post_sql"] = 'SELECT pg_sleep(60) AS "a while"'
    if stage == "load":  # the first rows come at once, the last one doesn't
        last = "CASE WHEN i = 3000 THEN pg_sleep(20)::text ELSE '' END"
        rows = "generate_series(1, 3000) AS i"
        arguments["source_sql"] = (
            f"SELECT i AS id, 1 AS batch, repeat('x', 1000) || {last} AS name FROM {rows}"
        )
    with psycopg.connect(item.conninfo) as reader:
        if stage in ("lock", "pause"):
            reader.execute("SELECT FROM item LIMIT 1")

        def end() -> None:
            item.admin(f"SELECT pg_terminate_backend(pid) FROM ({STAGES[stage]}) AS found")

        if how == "terminated":
            with pytest.raises(TransientError), meanwhile(end, lambda: item.admin(STAGES[stage])):
                swap(**arguments)
        else:
            with pytest.raises(TimeIsUp), alarm(lambda: item.admin(STAGES[stage])):
                swap(**arguments)
    assert shadows(item) == []
    assert item.rows(READ.replace("sum(id)", "max(batch)")) == [(1000, 1, 0)]
    swap()
    assert item.rows(READ.replace("sum(id)", "max(batch)")) == [(1000, 1, 1)]
    assert shadows(item) == []
