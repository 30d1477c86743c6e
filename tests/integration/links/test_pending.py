"""The asynchronous query of a link: streamed, polled, stopped. What dblink can't be asked, or can't do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.errors import RemoteError, TransientError, UsageError
from airflow_dblink.core.link.link import Link
from tests.databases import Database
from tests.oracle import wait_until

MB = 1024 * 1024


@pytest.fixture(params=["chunks", "single rows"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test as with libpq 17, and as with an older one."""
    if request.param == "single rows":
        monkeypatch.setattr(psycopg.capabilities, "has_stream_chunked", lambda: False)


def _series(last: int) -> str:
    return f"SELECT g FROM generate_series(1, {last}) g"  # noqa: S608 - a number


def _waiting_for_client(database: Database) -> bool:
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'ClientWrite'"
    return bool(database.admin(waits))


# -- result by result, in every mode of libpq's


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 512, 1000])
def test_a_result_is_whole_whatever_its_size(link: Link, rows: int) -> None:
    assert link.pending.send(_series(rows) + "; SELECT 'next'") == 1
    assert link.pending.result() == [(i,) for i in range(1, rows + 1)]
    assert link.pending.result() == [("next",)]
    assert link.pending.result() == []
    assert link.query("SELECT 1") == [(1,)]


@pytest.mark.usefixtures("mode")
def test_all_kinds_of_statements_and_an_error_in_every_mode(link: Link, source: Database) -> None:
    source.execute("CREATE TABLE t (a int)")
    link.pending.send("SELECT 1; INSERT INTO t VALUES (1); SELECT 2 WHERE false; SELECT 1/0; SELECT 3")
    assert link.pending.result() == [(1,)]
    assert link.pending.result() == [("INSERT 0 1",)]
    assert link.pending.result() == []
    with pytest.raises(RemoteError, match="division by zero"):
        link.pending.result()
    assert link.pending.result() == []
    assert source.rows("SELECT * FROM t") == []


@pytest.mark.usefixtures("mode")
def test_values_are_typed(link: Link) -> None:
    link.pending.send("SELECT %s::int, %s, ARRAY[1, NULL], '2020-01-02'::date, '\\x00ff'::bytea", [1, "ü'"])
    ((number, text, array, day, raw),) = link.pending.result()
    assert (number, text, array, day.isoformat(), bytes(raw)) == (
        1,
        "ü'",
        [1, None],
        "2020-01-02",
        b"\x00\xff",
    )


@pytest.mark.usefixtures("mode")
def test_results_with_other_columns_follow_each_other(link: Link) -> None:
    link.pending.send("SELECT 1; SELECT 'a', 2.5::float8, true; SELECT; SELECT NULL::int")
    results = [link.pending.result() for _ in range(5)]
    assert results == [[(1,)], [("a", 2.5, True)], [()], [(None,)], []]


@pytest.mark.usefixtures("mode")
def test_a_value_that_python_cannot_hold_takes_its_result_along_and_no_other(link: Link) -> None:
    link.pending.send(
        "SELECT CASE g WHEN 600 THEN 'infinity' ELSE now()::date END AS day FROM generate_series(1, 2000) g;"
        "SELECT 'next'"
    )
    with pytest.raises(RemoteError, match="'day'"):
        link.pending.result()
    assert link.pending.result() == [("next",)]
    assert link.pending.result() == []
    assert link.query("SELECT 1") == [(1,)]


# -- streaming


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize(
    ("rows", "batch_rows", "sizes"),
    [(0, 3, []), (1, 3, [1]), (3, 3, [3]), (4, 3, [3, 1]), (700, 300, [300, 300, 100]), (512, 512, [512])],
)
def test_a_stream_has_batches_of_their_size(link: Link, rows: int, batch_rows: int, sizes: list[int]) -> None:
    link.pending.send(_series(rows))
    batches = list(link.pending.batches(batch_rows))
    assert [len(batch) for batch in batches] == sizes
    assert [row for batch in batches for row in batch] == [(i,) for i in range(1, rows + 1)]
    assert list(link.pending.batches(batch_rows)) == []
    assert link.query("SELECT 1") == [(1,)]


def test_a_stream_is_one_result_as_result_is(link: Link, source: Database) -> None:
    source.execute("CREATE TABLE t (a int)")
    link.pending.send("SELECT generate_series(1, 5); INSERT INTO t VALUES (1); SELECT 6; SELECT 7")
    assert list(link.pending.batches(3)) == [[(1,), (2,), (3,)], [(4,), (5,)]]
    assert list(link.pending.batches(3)) == [[("INSERT 0 1",)]]
    assert link.pending.result() == [(6,)]
    assert list(link.pending.batches(3)) == [[(7,)]]
    assert link.pending.result() == []


@pytest.mark.usefixtures("mode")
def test_a_stream_begins_before_the_query_has_ended(link: Link, source: Database) -> None:
    link.pending.send("SELECT g, repeat('x', 1000) FROM generate_series(1, 60000) g")
    batches = link.pending.batches(10)
    assert [row[0] for row in next(batches)] == list(range(1, 11))
    wait_until(lambda: _waiting_for_client(source))  # the rest is on the server, not here
    assert sum(map(len, batches)) == 60_000 - 10
    assert link.pending.result() == []


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("closed", [True, False])
def test_a_stream_abandoned_midway_gives_way_to_the_next_result(link: Link, closed: bool) -> None:
    link.pending.send(_series(5000) + "; SELECT 'next'")
    batches = link.pending.batches(10)
    assert len(next(batches)) == 10
    if closed:
        batches.close()  # type: ignore[attr-defined]

    assert link.pending.result() == [("next",)]
    assert link.pending.result() == []
    assert link.query("SELECT 1") == [(1,)]


def test_an_error_in_what_an_abandoned_stream_left_is_not_missed(link: Link) -> None:
    link.pending.send("SELECT 1 / (4000 - g) FROM generate_series(1, 5000) g; SELECT 'never'")
    next(link.pending.batches(10))

    with pytest.raises(RemoteError, match="division by zero"):
        link.pending.result()
    assert link.pending.result() == []


def test_a_stream_whose_result_another_call_has_taken_says_so(link: Link) -> None:
    link.pending.send(_series(5000) + "; SELECT 'next'; SELECT 'last'")
    batches = link.pending.batches(256)
    next(batches)
    assert link.pending.result() == [("next",)]

    with pytest.raises(UsageError, match="get_result was called again"):
        next(batches)

    assert link.pending.result() == [("last",)]
    assert link.pending.result() == []


def test_of_two_streams_of_one_link_the_first_says_that_it_is_over(link: Link) -> None:
    link.pending.send(_series(5000) + ";" + _series(3))
    first, second = link.pending.batches(2), link.pending.batches(2)
    next(first)
    assert next(second) == [(1,), (2,)]

    with pytest.raises(UsageError, match="get_result was called again"):
        list(first)

    assert list(second) == [[(3,)]]
    assert link.pending.result() == []


def test_a_stream_is_over_when_another_query_was_sent(link: Link) -> None:
    link.pending.send(_series(5000))
    batches = link.pending.batches(256)
    next(batches)
    assert link.pending.result() == []
    link.pending.send(_series(3))

    with pytest.raises(UsageError, match="get_result was called again"):
        list(batches)

    assert link.pending.result() == [(1,), (2,), (3,)]
    assert link.pending.result() == []


@pytest.mark.usefixtures("mode")
def test_the_rows_before_an_error_come_before_it(link: Link) -> None:
    link.pending.send("SELECT 1000 / (701 - g) FROM generate_series(1, 1000) g")
    batches = link.pending.batches(100)
    # Chunks of 256: the rows of a chunk that the error cut short don't come.
    assert [len(next(batches)) for _ in range(5)] == [100] * 5
    with pytest.raises(RemoteError, match="division by zero"):
        list(batches)
    assert link.pending.result() == []
    assert link.query("SELECT 1") == [(1,)]


def test_a_stream_that_shall_not_fail_ends_at_the_error(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    link.pending.send("SELECT 1000 / (701 - g) FROM generate_series(1, 1000) g")
    assert sum(map(len, link.pending.batches(100, fail_on_error=False))) >= 500
    assert "division by zero" in caplog.text
    assert link.pending.result() == []


def test_a_stream_of_a_lost_connection_raises_even_if_it_shall_not_fail(link: Link, source: Database) -> None:
    link.pending.send("SELECT g, repeat('x', 1000) FROM generate_series(1, 100000) g")
    batches = link.pending.batches(10, fail_on_error=False)
    next(batches)
    source.admin("SELECT pg_terminate_backend(%s, 10000)", link.pgconn.backend_pid)

    with pytest.raises(TransientError):
        list(batches)
    # The server's last words may come only now.
    with pytest.raises(TransientError, match=r"no connection to the server|terminating connection"):
        list(link.pending.batches(10))


def test_wide_rows_stream(link: Link) -> None:
    columns = ", ".join(f"g + {i}" for i in range(1600))
    link.pending.send(f"SELECT {columns} FROM generate_series(1, 100) g")  # noqa: S608 - numbers
    rows = [row for batch in link.pending.batches(7) for row in batch]
    assert rows == [tuple(range(g, g + 1600)) for g in range(1, 101)]
    assert link.pending.result() == []

    link.pending.send("SELECT repeat(g::text, 5000000) FROM generate_series(1, 4) g")
    assert [len(batch[0][0]) for batch in link.pending.batches(1)] == [5_000_000] * 4
    assert link.pending.result() == []


@pytest.mark.parametrize("batch_rows", [0, -1, True, "5", 2.0, None])
def test_batch_rows_is_checked_before_anything_is_read(link: Link, batch_rows: Any) -> None:
    link.pending.send("SELECT 1")
    with pytest.raises(UsageError, match="batch_rows"):
        link.pending.batches(batch_rows)
    assert link.pending.result() == [(1,)]


# -- polling


def test_is_busy_tells_whether_result_would_wait(link: Link, source: Database) -> None:
    with psycopg.connect(source.conninfo, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(1)")
        link.pending.send("SELECT 'got it' FROM pg_advisory_lock(1)")
        assert [link.pending.is_busy() for _ in range(3)] == [1, 1, 1]
        other.execute("SELECT pg_advisory_unlock(1)")
        wait_until(lambda: link.pending.is_busy() == 0)
    with _no_waiting(link):
        assert link.pending.result() == [("got it",)]
    assert link.pending.is_busy() == 0
    assert link.pending.result() == []


@contextmanager
def _no_waiting(link: Link) -> Iterator[None]:
    """Let every wait of the link fail at once."""

    def refuse() -> None:
        raise AssertionError("it waits")

    link.connection.check = refuse
    yield
    link.connection.check = None


def test_is_busy_is_0_where_result_raises_at_once(link: Link, source: Database) -> None:
    link.pending.send("SELECT pg_sleep(60)")
    source.admin("SELECT pg_terminate_backend(%s, 10000)", link.pgconn.backend_pid)
    wait_until(lambda: link.pending.is_busy() == 0)
    with pytest.raises(TransientError):
        link.pending.result()
    assert link.pending.is_busy() == 0


# -- what is sent


@pytest.mark.parametrize("statement", ["COPY t FROM STDIN", "SELECT 1; copy (SELECT 1) to stdout"])
def test_copy_is_refused_and_nothing_is_sent(link: Link, source: Database, statement: str) -> None:
    source.execute("CREATE TABLE t (a int)")
    with pytest.raises(UsageError, match="COPY with the client"):
        link.pending.send(statement)
    assert link.is_idle
    assert link.pending.result() == []


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("direction", ["(SELECT generate_series(1, 100000)) TO STDOUT", "t FROM STDIN"])
def test_copy_hidden_from_the_lexer_leaves_the_link_usable(
    link: Link, source: Database, direction: str
) -> None:
    source.execute("CREATE TABLE t (a int)")
    # The second part of an E string takes escapes, too, also after a comment.
    assert link.pending.send(rf"SELECT E'a' --{chr(10)}'\'' ; COPY {direction}; --'") == 1
    assert link.pending.result() == [("a'",)]
    with pytest.raises(UsageError, match="COPY"):
        link.pending.result()
    assert link.pending.result() == []
    assert link.query("SELECT 1") == [(1,)]
    assert source.rows("SELECT * FROM t") == []


@pytest.mark.parametrize("statement", ["", " ;; ", "-- nothing"])
def test_an_empty_statement_is_refused(link: Link, statement: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        link.pending.send(statement)
    assert link.is_idle


def test_nul_and_parameters_that_do_not_fit_are_refused(link: Link) -> None:
    for statement, params in (("SELECT 'a\0b'", None), ("SELECT %s", ["a\0b"]), ("SELECT %s", [1, 2])):
        with pytest.raises(UsageError):
            link.pending.send(statement, params)
    assert link.is_idle


def test_refused_statements_keep_the_results_of_the_last_one(link: Link) -> None:
    link.pending.send("SELECT 1")
    for statement in ("", "COPY t FROM STDIN", "SELECT '\0'"):
        with pytest.raises(UsageError):
            link.pending.send(statement)
    assert link.pending.result() == [(1,)]
    assert link.pending.result() == []


def test_send_says_why_it_sent_nothing(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    link.pending.send("SELECT 1")
    assert link.pending.send("SELECT 2") == 0
    assert "could not send query: another command is already in progress" in caplog.text
    assert "WARNING" in {record.levelname for record in caplog.records}


def test_a_large_statement_does_not_deadlock_with_its_own_answers(link: Link) -> None:
    """Neither side reads while it writes: the server's answers fill the sockets while we still send."""
    answers = "SELECT repeat('x', 1000000);" * 20
    link.pending.send(answers + "SELECT length($$" + "y" * (20 * MB) + "$$)")
    assert [len(link.pending.result()[0][0]) for _ in range(20)] == [1_000_000] * 20
    assert link.pending.result() == [(20 * MB,)]
    assert link.pending.result() == []


def test_a_stream_whose_link_was_closed_is_no_end(link: Link) -> None:
    link.pending.send("SELECT generate_series(1, 1000)")
    begun, other = link.pending.batches(2), link.pending.batches(2)
    next(begun)
    link.disconnect()

    for batches in (begun, other):
        with pytest.raises(UsageError, match="the link was closed before"):
            list(batches)


def test_a_session_that_the_server_ended_is_lost_whatever_the_sqlstate(link: Link, source: Database) -> None:
    link.exec("SET idle_in_transaction_session_timeout = '100ms'")
    link.exec("BEGIN")
    assert source.wait_until_left() == []

    with pytest.raises(TransientError):
        link.exec("SELECT 1", fail_on_error=False)


def test_what_is_waited_for_is_cancelled_by_an_exception_and_the_link_stays_usable(
    link: Link, source: Database
) -> None:
    wanted = [True]

    def check() -> None:
        if not wanted[0]:
            raise ZeroDivisionError

    link.connection.check = check
    wanted[0] = False
    with pytest.raises(ZeroDivisionError):
        link.exec("SELECT 1 FROM pg_sleep(60)")
    wanted[0] = True

    assert link.query("SELECT 1") == [(1,)]


def test_all_that_waits_is_read_at_once(link: Link, source: Database) -> None:
    link.exec("LISTEN many")
    payload = "x" * 7000
    source.execute("; ".join(f"NOTIFY many, '{i}{payload}'" for i in range(40)))
    link.query("SELECT pg_sleep(0.2)")

    assert len(link.get_notify()) == 40
