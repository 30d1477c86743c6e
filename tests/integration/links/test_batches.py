"""Batches of one query, through a cursor on the server."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.link.link import Link
from airflow_dblink.core.server.login import connect
from tests.databases import Database
from tests.oracle import state


def _series(last: int) -> str:
    return f"SELECT g FROM generate_series(1, {last}) g"  # noqa: S608 - a number


@pytest.mark.parametrize(("rows", "sizes"), [(0, []), (1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3])])
def test_batches_have_their_size(link: Link, source: Database, rows: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in link.batches(_series(rows), None, 3)] == sizes
    assert state(source) == "idle"


def test_batches_are_one_snapshot(link: Link, source: Database) -> None:
    source.execute("CREATE TABLE t AS SELECT generate_series(1, 5) AS a")
    batches = link.batches("SELECT a FROM t ORDER BY a", None, 2)

    first = next(batches)
    source.execute("DELETE FROM t")

    assert [first, *batches] == [[(1,), (2,)], [(3,), (4,)], [(5,)]]


def test_batches_closed_early_end_their_transaction(link: Link, source: Database) -> None:
    batches = link.batches(_series(10), None, 2)
    next(batches)
    assert state(source) == "idle in transaction"

    batches.close()  # type: ignore[attr-defined]

    assert state(source) == "idle"


def test_what_is_done_meanwhile_is_kept_when_batches_are_closed_early(link: Link, source: Database) -> None:
    source.execute("CREATE TABLE t (a int)")
    batches = link.batches(_series(10), None, 2)
    next(batches)
    link.exec("INSERT INTO t VALUES (1)")

    batches.close()  # type: ignore[attr-defined]

    assert source.rows("SELECT a FROM t") == [(1,)]


def test_a_transaction_that_the_user_began_meanwhile_is_left_alone(link: Link, source: Database) -> None:
    source.execute("CREATE TABLE t (a int)")
    batches = link.batches(_series(10), None, 2)
    next(batches)
    link.exec("ROLLBACK")
    link.exec("BEGIN")
    link.exec("INSERT INTO t VALUES (1)")

    batches.close()  # type: ignore[attr-defined]

    assert state(source) == "idle in transaction"
    assert source.rows("SELECT a FROM t") == []


def test_two_batches_of_one_link_end_with_the_last(link: Link, source: Database) -> None:
    outer = link.batches(_series(4), None, 2)
    pairs = [(len(batch), [len(inner) for inner in link.batches(_series(3), None, 2)]) for batch in outer]
    assert pairs == [(2, [2, 1]), (2, [2, 1])]
    assert state(source) == "idle"

    first, second = link.batches(_series(2), None, 2), link.batches(_series(4), None, 2)
    next(first)
    next(second)
    assert list(first) == []
    assert list(second) == [[(3,), (4,)]]
    assert state(source) == "idle"


@pytest.mark.parametrize("query", ["SELECT nope", "SELECT 1 / 0"])
def test_a_query_that_fails_leaves_no_transaction(link: Link, source: Database, query: str) -> None:
    with pytest.raises(RemoteError):
        list(link.batches(query, None, 2))

    assert state(source) == "idle"


def test_batches_in_the_users_transaction_leave_it_open(link: Link, source: Database) -> None:
    source.execute("CREATE TABLE t (a int)")
    link.exec("BEGIN")
    link.exec("INSERT INTO t VALUES (1)")

    assert list(link.batches("SELECT a FROM t", None, 5)) == [[(1,)]]

    assert state(source) == "idle in transaction"
    assert link.query("SELECT count(*) FROM pg_cursors WHERE name LIKE 'airflow%'") == [(0,)]
    link.exec("COMMIT")
    assert source.rows("SELECT a FROM t") == [(1,)]


def test_an_error_midway_is_the_servers_and_ends_the_transaction(link: Link, source: Database) -> None:
    batches = link.batches("SELECT 1 / (5 - g) FROM generate_series(1, 9) g", None, 2)
    next(batches)
    next(batches)

    with pytest.raises(RemoteError, match="division by zero"):
        next(batches)

    assert state(source) == "idle"


class StopNowError(Exception):
    """What a check raises in these tests."""


def test_a_stop_while_a_batch_is_awaited_is_what_the_caller_sees(source: Database) -> None:
    wanted = [True]

    def check() -> None:
        if not wanted[0]:
            raise StopNowError

    connection = connect(source.target, check=check)
    link = Link(None, source.target, connection)
    batches = link.batches("SELECT g, pg_sleep(g - 1) FROM generate_series(1, 60) g", None, 1)
    next(batches)
    wanted[0] = False

    with pytest.raises(StopNowError):
        next(batches)

    link.abort()
    assert source.wait_until_left() == []


@pytest.mark.parametrize("batch_rows", [0, -1, True, "5", 2.0])
def test_batch_rows_is_checked_before_the_first_batch(link: Link, batch_rows: Any) -> None:
    with pytest.raises(UsageError, match="batch_rows"):
        link.batches("SELECT 1", None, batch_rows)


def test_no_query_is_sent_while_batches_are_being_read(link: Link, source: Database) -> None:
    batches = link.batches(_series(10), None, 2)
    next(batches)
    with pytest.raises(UsageError, match="still being read"):
        link.pending.send("SELECT 1")
    assert next(batches) == [(3,), (4,)]
    batches.close()  # type: ignore[attr-defined]

    assert link.pending.send("CREATE TABLE t (a int)") == 1
    assert link.pending.result() == [("CREATE TABLE",)]
    assert link.pending.result() == []
    assert source.rows("SELECT * FROM t") == []
    assert state(source) == "idle"


def test_a_query_is_sent_after_batches_were_read_to_their_end_or_failed(link: Link) -> None:
    assert len(list(link.batches(_series(10), None, 2))) == 5
    assert link.pending.send("SELECT 1") == 1
    assert [link.pending.result(), link.pending.result()] == [[(1,)], []]
    with pytest.raises(RemoteError, match="division by zero"):
        list(link.batches("SELECT 1 / (5 - g) FROM generate_series(1, 9) g", None, 2))
    assert link.pending.send("SELECT 1") == 1
    assert [link.pending.result(), link.pending.result()] == [[(1,)], []]
