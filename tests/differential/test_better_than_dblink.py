"""Where this package differs from PostgreSQL's own dblink on purpose: both, side by side.

Section 20 of the contract (docs: what is better) names the reasons: nothing is thrown away, a lost connection
is never hidden, the user's transactions are the user's, COPY doesn't hang.
"""

from __future__ import annotations

import logging

import pytest

from tests.oracle import (
    ONE,
    TAG,
    Call,
    Dblinks,
    Ours,
    Side,
    outcome,
    state,
    wait_until,
)


@pytest.fixture(autouse=True)
def connected(ours: Ours, dblinks: Dblinks) -> None:
    for side in (ours, dblinks):
        side.connect("x")


@pytest.fixture
def sides(ours: Ours, dblinks: Dblinks) -> tuple[Side, Side]:
    return ours, dblinks


def _do(side: Side, *calls: Call) -> None:
    for call in calls:
        assert outcome(side, call)[0] == "value", call


# -- unread results


@pytest.mark.parametrize("fail", [True, False])
def test_a_refused_query_keeps_the_unread_results_that_dblink_throws_away(
    ours: Ours, dblinks: Dblinks, fail: bool
) -> None:
    for side in (ours, dblinks):
        side.send("SELECT 1; SELECT 2")
        assert outcome(side, ("query", "SELECT 3", ONE, "x", fail))[:2] == (
            "XX000",
            "could not send query: another command is already in progress",
        )

    assert [ours.result(ONE) for _ in range(3)] == [[(1,)], [(2,)], []]
    assert dblinks.result(ONE) == []


def test_a_refused_query_keeps_a_query_that_still_runs(ours: Ours, dblinks: Dblinks) -> None:
    for side in (ours, dblinks):
        side.send("SELECT 1 FROM pg_sleep(5)")
        side.working()
        assert outcome(side, ("query", "SELECT 3", ONE))[0] == "XX000"
        # dblink has waited for the end, to throw it away.
        assert side.is_busy() == (side is ours)

    assert ours.result(ONE) == [(1,)]
    assert dblinks.result(ONE) == []


def test_batches_keep_unread_results(ours: Ours) -> None:
    ours.send("SELECT 1")
    link = ours.links.get("x")
    with pytest.raises(Exception, match="another command is already in progress"):
        list(link.batches("SELECT 2", None, 10))
    assert ours.result(ONE) == [(1,)]


# -- lost connections

LOST: list[Call] = [
    ("query", "SELECT 1", ONE, "x", False),
    ("exec", "SELECT 1", "x", False),
    ("open", "c", "SELECT 1", "x", False),
    ("fetch", "c", 1, ONE, "x", False),
    ("close", "c", "x", False),
    ("result", ONE, "x", False),
]


@pytest.mark.parametrize("call", LOST[:-1], ids=lambda call: call[0])
def test_fail_on_error_false_hides_a_lost_connection_only_in_dblink(
    ours: Ours, dblinks: Dblinks, call: Call
) -> None:
    for side in (ours, dblinks):
        side.terminate()

    # The server's own last words, as its error or, where sending failed first, as libpq's.
    lost = outcome(ours, call)
    assert lost[0] in ("57P01", "08006")
    assert "terminating connection due to administrator command" in lost[1]
    hidden = outcome(dblinks, call)
    if call[0] == "open":  # an error for once: it is its BEGIN that fails
        assert hidden[0] == "XX000"
        assert hidden[1].startswith("begin error: FATAL:  terminating connection")
        return
    assert hidden[:2] in (("value", "ERROR"), ("value", []))
    assert hidden[2][0] == "08006"
    assert hidden[2][1].startswith("FATAL:  terminating connection due to administrator command\n")


@pytest.mark.parametrize("call", LOST[1:-1], ids=lambda call: call[0])
def test_fail_on_error_false_hides_a_connection_known_to_be_lost_only_in_dblink(
    ours: Ours, dblinks: Dblinks, call: Call
) -> None:
    for side in (ours, dblinks):
        side.lose()

    assert outcome(ours, call)[:2] == ("08006", "no connection to the server")
    hidden = outcome(dblinks, call)
    assert hidden[:2] == ("value", [] if call[0] == "fetch" else "ERROR")
    assert hidden[2][:2] == ("08006", "no connection to the server")


@pytest.mark.parametrize("fail", [True, False])
def test_results_of_a_lost_connection_never_look_read_to_their_end(
    ours: Ours, dblinks: Dblinks, fail: bool
) -> None:
    for side in (ours, dblinks):
        side.send("SELECT 1 FROM pg_sleep(60)")
        side.working()
        side.terminate()
    call = ("result", ONE, "x", fail)

    got = [outcome(ours, call)[0] for _ in range(4)]
    assert got == ["57P01", "08006", "08006", "08006"]
    theirs = [outcome(dblinks, call) for _ in range(4)]
    assert theirs[2:] == [("value", []), ("value", [])]
    assert [o[0] for o in theirs[:2]] == (["57P01", "08006"] if fail else ["value", "value"])


def test_results_of_a_link_known_to_be_lost_raise_where_dblink_gives_no_rows(
    ours: Ours, dblinks: Dblinks
) -> None:
    for side in (ours, dblinks):
        side.lose()

    assert outcome(ours, ("result", ONE))[:2] == ("08006", "no connection to the server")
    assert outcome(dblinks, ("result", ONE)) == ("value", [])


def test_notifications_of_a_lost_link_raise_where_dblink_gives_none(ours: Ours, dblinks: Dblinks) -> None:
    for side in (ours, dblinks):
        side.exec("LISTEN a")
        side.lose()

    assert outcome(ours, ("get_notify",))[:2] == ("08006", "no connection to the server")
    assert outcome(dblinks, ("get_notify",)) == ("value", [])


def test_notifications_that_came_before_the_connection_was_lost_are_still_given(
    sides: tuple[Side, Side],
) -> None:
    for side in sides:
        side.exec("LISTEN a")
        side.notify("NOTIFY a, 'last'")
        side.query("SELECT 1", ONE)
        side.lose()
        assert side.get_notify() == [("a", "other", "last")]


def test_cancel_on_a_lost_link_says_so_in_the_words_of_libpq_17(ours: Ours, dblinks: Dblinks) -> None:
    for side in (ours, dblinks):
        side.lose()

    assert ours.cancel() == "connection not open"
    assert dblinks.cancel() in ("connection not open", "PQcancel() -- no cancel object supplied")  # 15


# -- cursors and transactions


def test_a_failed_open_is_counted_only_by_dblink(ours: Ours, dblinks: Dblinks) -> None:
    for side in (ours, dblinks):
        side.open("a", "SELECT 1")
        side.exec("SAVEPOINT s")
        assert side.open("b", "SELECT nope", fail=False) == "ERROR"
        side.exec("ROLLBACK TO s")
        side.close("a")

    assert state(ours.database) == "idle"
    assert state(dblinks.database) == "idle in transaction"


@pytest.mark.parametrize("end", ["ABORT", "COMMIT", "ROLLBACK"])
def test_a_transaction_of_the_user_is_committed_only_by_dblink(
    ours: Ours, dblinks: Dblinks, end: str
) -> None:
    for side in (ours, dblinks):
        side.database.execute("CREATE TABLE t (a int)")
        side.open("a", "SELECT 1")
        side.exec(end)
        side.exec("BEGIN")
        side.exec("INSERT INTO t VALUES (1)")
        side.exec("DECLARE a CURSOR FOR SELECT 1")
        side.close("a")

    assert state(ours.database) == "idle in transaction"
    assert ours.database.rows("SELECT * FROM t") == []
    assert state(dblinks.database) == "idle"
    assert dblinks.database.rows("SELECT * FROM t") == [(1,)]


def test_a_cursor_of_the_users_ends_the_transaction_only_in_dblink(ours: Ours, dblinks: Dblinks) -> None:
    for side in (ours, dblinks):
        side.open("ours", "SELECT 1")
        side.exec("DECLARE theirs CURSOR FOR SELECT 2")
        side.close("theirs")

    assert ours.fetch("ours", 1, ONE) == [(1,)]
    ours.close("ours")
    assert state(ours.database) == "idle"
    assert outcome(dblinks, ("fetch", "ours", 1, ONE))[0] == "34000"


def test_a_cursor_lost_with_its_savepoint_keeps_the_transaction_only_in_dblink(
    ours: Ours, dblinks: Dblinks
) -> None:
    for side in (ours, dblinks):
        side.open("a", "SELECT 1")
        side.exec("SAVEPOINT s")
        side.open("b", "SELECT 2")
        side.exec("ROLLBACK TO s")
        side.close("a")

    assert state(ours.database) == "idle"
    assert state(dblinks.database) == "idle in transaction"


def test_open_takes_one_statement_where_dblink_leaves_a_cursor_and_an_error(
    ours: Ours, dblinks: Dblinks
) -> None:
    call = ("open", "c", "SELECT 1; SELECT 2")

    assert outcome(ours, call)[:2] == (None, "a query is one statement, got 2")
    assert state(ours.database) == "idle"
    assert outcome(dblinks, call)[0] == "08006"
    assert state(dblinks.database) == "idle in transaction"


def test_a_cursor_name_is_sql_only_in_dblink(ours: Ours, dblinks: Dblinks) -> None:
    name = "c CURSOR FOR SELECT 2; CREATE TABLE t (a int); DECLARE d"
    for side in (ours, dblinks):
        outcome(side, ("open", name, "SELECT 1"))
        outcome(side, ("exec", "COMMIT"))

    assert ours.database.rows("SELECT to_regclass('t')") == [(None,)]
    assert dblinks.database.rows("SELECT to_regclass('t')::text") == [("t",)]


# -- what is refused before it is sent


def test_copy_is_refused_where_dblinks_link_is_stuck(ours: Ours, dblinks: Dblinks) -> None:
    for side in (ours, dblinks):
        side.exec("CREATE TABLE t (a int)")
    copy = "COPY t FROM STDIN"

    assert "COPY with the client" in outcome(ours, ("exec", copy))[1]
    assert "COPY with the client" in outcome(ours, ("query", copy, ONE))[1]
    assert "COPY with the client" in outcome(ours, ("send", copy))[1]
    _do(ours, ("query", "SELECT 1", ONE))
    assert (
        outcome(dblinks, ("exec", copy))[0] == "08006"
    )  # query would loop for ever: not even a cancel helps
    assert dblinks.send("SELECT 1") == 0
    dblinks.disconnect("x")


def test_a_sent_copy_is_refused_where_dblink_never_gets_past_it(ours: Ours, dblinks: Dblinks) -> None:
    copy = "COPY (SELECT 1) TO STDOUT"

    assert "COPY with the client" in outcome(ours, ("send", copy))[1]
    _do(ours, ("query", "SELECT 1", ONE))
    assert dblinks.send(copy) == 1
    assert [outcome(dblinks, ("result", TAG))[0] for _ in range(5)] == ["08006"] * 5
    dblinks.disconnect("x")


@pytest.mark.parametrize("statement", ["", ";", "-- nothing"])
def test_an_empty_statement_is_refused_where_dblink_has_no_words_for_it(
    ours: Ours, dblinks: Dblinks, statement: str
) -> None:
    for call in (("query", statement, ONE), ("exec", statement)):
        assert outcome(ours, call)[:2] == (None, "the statement is empty")
        assert outcome(dblinks, call)[:2] == ("08006", "could not obtain message string for remote error")
    assert outcome(ours, ("send", statement))[:2] == (None, "the statement is empty")
    assert dblinks.send(statement) == 1
    assert outcome(dblinks, ("result", ONE))[0] == "08006"


# -- messages


def test_the_servers_messages_are_heard_where_dblink_hides_them(
    ours: Ours, dblinks: Dblinks, caplog: pytest.LogCaptureFixture
) -> None:
    call = ("exec", "DO $$BEGIN RAISE WARNING 'beware'; END$$")

    with caplog.at_level(logging.WARNING):
        assert outcome(ours, call) == ("value", "DO")
    assert "WARNING:  beware" in caplog.text
    assert outcome(dblinks, call) == ("value", "DO")


def test_messages_that_come_with_an_asynchronous_query_are_heard_too(
    ours: Ours, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ours.send("DO $$BEGIN RAISE WARNING 'beware'; END$$")
        ours.ready()
        ours.result(TAG)
    assert "WARNING:  beware" in caplog.text


def test_is_busy_is_about_the_first_rows_where_dblink_reads_all_of_them(ours: Ours, dblinks: Dblinks) -> None:
    for side in (ours, dblinks):
        side.send("SELECT repeat('x', 100) FROM generate_series(1, 300000)")  # more than sockets hold
        while side.is_busy():  # without a pause: dblink needs thousands of calls
            pass

    assert state(ours.database) == "active"
    wait_until(lambda: state(dblinks.database) == "idle")
    for side in (ours, dblinks):
        assert len(side.result("a text")) == 300_000
        assert side.result("a text") == []
