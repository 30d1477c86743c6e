"""mode='swap' and what others have locked: no reader and no writer is ended for it, nor waits for long."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.errors import TransientError
from tests.databases import Database
from tests.integration.test_transfer_swap_readers import in_a_loop, wait_for_reads
from tests.transfers import meanwhile, sleeping, transfer

TABLES = """
CREATE TABLE country (code text PRIMARY KEY, name text);
INSERT INTO country VALUES ('de', 'x'), ('fr', 'x');
CREATE TABLE item (id int PRIMARY KEY, num serial, country text CONSTRAINT to_country REFERENCES country);
INSERT INTO item (id, country) VALUES (0, 'de');
"""
ROWS = "SELECT i AS id, i AS num, 'fr' AS country FROM generate_series(1, 100) AS i"
JOIN = "SELECT count(*) FROM country AS c JOIN item AS i ON i.country = c.code"
#: Sessions that wait for a lock of item: the swap in the first place, readers behind it.
WAITING = "SELECT pid FROM pg_locks WHERE relation = 'public.item'::regclass AND NOT granted"
SWAPS = 30


@pytest.fixture
def item(source: Database, warehouse: Database) -> Database:
    """Give the destination's database, with a table that refers to another and has a sequence."""
    warehouse.execute(TABLES)
    return warehouse


def swap(**arguments: Any) -> Any:
    given = {"source_sql": ROWS, "mode": "swap", "swap_timeout": timedelta(minutes=2), **arguments}
    return transfer("item", **given)


@pytest.mark.parametrize("first", ["SELECT FROM country", "SELECT nextval('item_num_seq')"])
def test_who_waits_behind_the_lock_and_holds_what_the_swap_needs_next_is_not_ended(
    item: Database, first: str
) -> None:
    with (
        psycopg.connect(item.conninfo) as other,
        psycopg.connect(item.conninfo) as reader,
        psycopg.connect(item.admin_conninfo, autocommit=True) as admin,
    ):
        other.execute("SELECT FROM item")
        reader.execute(first.encode())

        def read() -> None:
            with meanwhile(other.rollback, lambda: len(admin.execute(WAITING.encode()).fetchall()) > 1):
                while other.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
                    reader.execute("SAVEPOINT before")
                    assert reader.execute("SELECT count(*) FROM item").fetchone() is not None
                    reader.execute("ROLLBACK TO before")  # which gives back the lock on item alone
            reader.rollback()

        with meanwhile(read, lambda: item.admin(WAITING)):
            swap()
    assert item.rows("SELECT count(*), min(id) FROM item") == [(100, 1)]


def test_joins_with_a_table_that_it_refers_to_go_on(item: Database) -> None:
    with ExitStack() as stack:
        readers = [stack.enter_context(psycopg.connect(item.conninfo, autocommit=True)) for _ in range(2)]

        def read(connection: psycopg.Connection[Any]) -> None:
            assert connection.execute(JOIN.encode()).fetchone() in [(1,), (100,)]

        with in_a_loop(*(lambda reader=each: read(reader) for each in readers)) as counts:
            for _ in range(SWAPS):
                swap()
                wait_for_reads(counts)


@pytest.mark.parametrize("others", [False, True])
def test_a_writer_of_a_table_that_it_refers_to_is_named_before_a_row_moves(
    item: Database, *, others: bool
) -> None:
    with (
        psycopg.connect(item.conninfo, application_name="reader") as reader,
        psycopg.connect(item.conninfo, application_name="long job") as writer,
    ):
        if others:
            reader.execute("SELECT FROM country, item")
        writer.execute("UPDATE country SET name = 'y' WHERE code = 'de'")
        with pytest.raises(TransientError) as caught:
            swap(source_sql="SELECT 1 AS id, pg_sleep(3600)::text AS country", swap_timeout=timedelta())
        pid = writer.info.backend_pid
        message = str(caught.value)
        words = [
            "a table that public.item references could not be locked",
            f"pid {pid} ('long job', idle in",
            "55P03",
        ]
        assert [word for word in words if word not in message] == [], message
        assert "'reader'" not in message
        assert item.rows("SELECT id FROM item") == [(0,)]


def test_a_writer_of_a_table_that_it_refers_to_is_waited_for(item: Database) -> None:
    with psycopg.connect(item.conninfo) as writer:
        writer.execute("UPDATE country SET name = 'y' WHERE code = 'de'")
        with meanwhile(writer.commit, lambda: sleeping(item)):
            swap()
    assert item.rows("SELECT count(*) FROM item") == [(100,)]


def test_who_is_waited_for_by_his_old_snapshot_may_write_what_it_refers_to(item: Database) -> None:
    with psycopg.connect(item.conninfo) as writer:
        writer.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        writer.execute("SELECT 1")

        def write() -> None:
            writer.execute("SET LOCAL lock_timeout = '30s'")
            writer.execute("UPDATE country SET name = 'y' WHERE code = 'de'")
            writer.commit()

        with meanwhile(write, lambda: sleeping(item)):
            swap(old_snapshots_timeout=timedelta(minutes=1))
    assert item.rows("SELECT count(*) FROM item") == [(100,)]


def test_a_session_that_came_while_the_swap_waited_is_named(item: Database) -> None:
    with psycopg.connect(item.conninfo, application_name="first") as first:
        first.execute("SELECT FROM item")
        late_ones: list[psycopg.Connection[Any]] = []

        def come() -> None:
            late_ones.append(psycopg.connect(item.conninfo, application_name="late report"))
            late_ones[0].execute("SELECT FROM item")
            first.rollback()

        try:
            with (
                pytest.raises(TransientError, match="'late report', idle in transaction"),
                meanwhile(come, lambda: sleeping(item)),
            ):
                swap(swap_timeout=timedelta(seconds=15))
        finally:
            for each in late_ones:
                each.close()


def test_a_session_that_uses_the_sequence_alone_is_named(item: Database) -> None:
    with psycopg.connect(item.conninfo, application_name="numbers") as other:
        other.execute("SELECT nextval('item_num_seq')")
        with pytest.raises(TransientError, match="'numbers', idle in transaction"):
            swap(swap_timeout=timedelta())
