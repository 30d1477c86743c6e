"""The vocabulary on real servers, held against PostgreSQL's own dblink where both can do a thing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from airflow_dblink.core.connection import connect
from airflow_dblink.core.errors import DblinkError, RemoteError, TransientError, UsageError
from airflow_dblink.core.link import Link
from airflow_dblink.core.links import Links
from tests.databases import Database

Outcome = tuple[Any, ...]
Call = tuple[Any, ...]


class Ours:
    """The vocabulary as this package has it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.links = Links()

    def connect(self, name: str | None) -> str:
        return self.links.connect(name, self.database.target)

    def disconnect(self, name: str | None) -> str:
        return self.links.disconnect(name)

    def connections(self) -> list[str]:
        return sorted(self.links.names())

    def query(self, text: str, columns: str, name: str | None = "x", fail: bool = True) -> list[Any]:
        return self.links.get(name).query(text, fail_on_error=fail)

    def exec(self, text: str, name: str | None = "x", fail: bool = True) -> str:
        return self.links.get(name).exec(text, fail_on_error=fail)

    def open(self, cursor: str, text: str, name: str | None = "x", fail: bool = True) -> str:
        return self.links.get(name).open(cursor, text, fail_on_error=fail)

    def fetch(
        self, cursor: str, count: int, columns: str, name: str | None = "x", fail: bool = True
    ) -> list[Any]:
        return self.links.get(name).fetch(cursor, count, fail_on_error=fail)

    def close(self, cursor: str, name: str | None = "x", fail: bool = True) -> str:
        return self.links.get(name).close(cursor, fail_on_error=fail)

    def message(self, name: str | None = "x") -> str:
        return self.links.get(name).error_message()


class Dblinks:
    """The vocabulary as the extension has it, called by SQL from a superuser's session."""

    def __init__(self, database: Database) -> None:
        database.admin("CREATE EXTENSION dblink")
        self.database = database
        self.session = psycopg.connect(database.admin_conninfo, autocommit=True)

    def _call(self, function: str, *arguments: Any, columns: str = "") -> list[Any]:
        values = sql.SQL(", ").join(map(sql.Literal, (a for a in arguments if a is not None)))
        text = sql.SQL("SELECT * FROM dblink{}({}) {}").format(
            sql.SQL(function), values, sql.SQL(f"AS t({columns})" if columns else "")
        )
        return self.session.execute(text).fetchall()

    def connect(self, name: str | None) -> str:
        return str(self._call("_connect", name, self.database.conninfo)[0][0])

    def disconnect(self, name: str | None) -> str:
        return str(self._call("_disconnect", name)[0][0])

    def connections(self) -> list[str]:
        return sorted(self._call("_get_connections")[0][0] or [])

    def query(self, text: str, columns: str, name: str | None = "x", fail: bool = True) -> list[Any]:
        return self._call("", name, text, fail, columns=columns)

    def exec(self, text: str, name: str | None = "x", fail: bool = True) -> str:
        return str(self._call("_exec", name, text, fail)[0][0])

    def open(self, cursor: str, text: str, name: str | None = "x", fail: bool = True) -> str:
        return str(self._call("_open", name, cursor, text, fail)[0][0])

    def fetch(
        self, cursor: str, count: int, columns: str, name: str | None = "x", fail: bool = True
    ) -> list[Any]:
        return self._call("_fetch", name, cursor, count, fail, columns=columns)

    def close(self, cursor: str, name: str | None = "x", fail: bool = True) -> str:
        return str(self._call("_close", name, cursor, fail)[0][0])

    def message(self, name: str | None = "x") -> str:
        return str(self._call("_error_message", name)[0][0])


_HINTED = ("08003", "42710", "2F003")  # errors of dblink's own, to which we add what to do


def _outcome(side: Ours | Dblinks, call: Call) -> Outcome:
    function, *arguments = call
    try:
        return ("value", getattr(side, function)(*arguments))
    except DblinkError as error:
        return (
            error.sqlstate,
            error.message,
            error.detail,
            None if error.sqlstate in _HINTED else error.hint,
        )
    except psycopg.Error as error:
        diag = error.diag
        return (diag.sqlstate, diag.message_primary, diag.message_detail, diag.message_hint)


_REMOTE = "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"


def _after(side: Ours | Dblinks) -> Outcome:
    """Return what the calls left behind: tables' rows and the state of the remote sessions."""
    database = side.database
    states = sorted(database.admin(_REMOTE, database.server.role))
    found = database.admin("SELECT to_regclass('t')")[0][0]
    return (states, sorted(database.rows("SELECT * FROM t")) if found else None)


@pytest.fixture
def ours(warehouse: Database) -> Iterator[Ours]:
    side = Ours(warehouse)
    with side.links:
        yield side


@pytest.fixture
def dblinks(source: Database) -> Iterator[Dblinks]:
    side = Dblinks(source)
    with side.session:
        yield side


ONE = "a int"
CONNECT = ("connect", "x")
TABLE = ("exec", "CREATE TABLE t (a int PRIMARY KEY)")
DEFERRED = (
    "exec",
    "CREATE TABLE p (a int PRIMARY KEY); CREATE TABLE t (a int REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
)
LONG = "é" * 40

SCENARIOS: dict[str, list[Call]] = {
    "connections": [
        ("connections",),
        ("connect", "b"),
        ("connect", "a"),
        ("connect", None),
        ("connections",),
        ("disconnect", "a"),
        ("disconnect", "a"),
        ("connections",),
        ("disconnect", None),
        ("disconnect", None),
        ("open", "c", "SELECT 1", "gone"),
        ("fetch", "c", 1, ONE, None),
    ],
    "duplicate name": [CONNECT, CONNECT, ("query", "SELECT 1", ONE)],
    "odd names": [
        ("connect", ""),
        ("connect", "a=b"),
        ("connect", "Q\"uote's"),
        ("connect", "UPPER"),
        ("query", "SELECT 1", ONE, "a=b"),
        ("query", "SELECT 2", ONE, ""),
        ("disconnect", "upper"),
        ("connections",),
    ],
    "long names are cut": [
        ("connect", LONG),
        ("connections",),
        ("query", "SELECT 1", ONE, LONG[:31]),
        ("query", "SELECT 1", ONE, LONG + "x"),
        ("connect", LONG[:35]),
        ("close", "c", LONG[:30]),
        ("disconnect", LONG + "y"),
    ],
    "unnamed is replaced": [
        ("connect", None),
        ("exec", "CREATE TEMP TABLE own (a int)", None),
        ("connect", None),
        ("query", "SELECT a FROM own", ONE, None),
    ],
    "disconnect loses the transaction": [
        CONNECT,
        TABLE,
        ("exec", "BEGIN"),
        ("exec", "INSERT INTO t VALUES (1)"),
        ("disconnect", "x"),
    ],
    "tags": [
        CONNECT,
        TABLE,
        ("exec", "INSERT INTO t SELECT generate_series(1, 15)"),
        ("exec", "UPDATE t SET a = a + 100"),
        ("exec", "DELETE FROM t WHERE a < 0"),
        ("exec", "CREATE TABLE u AS SELECT 1 AS a"),
        ("exec", "BEGIN"),
        ("exec", "SAVEPOINT s"),
        ("exec", "RELEASE s"),
        ("exec", "END"),
        ("exec", "START TRANSACTION"),
        ("exec", "ABORT"),
        ("exec", "SET work_mem = '1MB'"),
        ("exec", "DO $$BEGIN NULL; END$$"),
        ("exec", "LISTEN a; NOTIFY a; UNLISTEN a"),
        ("exec", "TRUNCATE t"),
        ("exec", "DISCARD ALL"),
    ],
    "several statements": [
        CONNECT,
        TABLE,
        ("exec", "SELECT 1; INSERT INTO t VALUES (1)"),
        ("query", "SELECT 1; SELECT 2", ONE),
        ("query", "INSERT INTO t VALUES (2); SELECT a FROM t ORDER BY a", ONE),
        ("query", "SELECT 1; INSERT INTO t VALUES (3)", "tag text"),
        ("exec", "INSERT INTO t VALUES (4); INSERT INTO t VALUES (4)"),
        ("query", "SELECT 1; SELECT 1/0", ONE, "x", False),
        ("query", "SELECT 1; SELECT 1/0", ONE),
    ],
    "exec refuses rows although it has run": [
        CONNECT,
        TABLE,
        ("exec", "INSERT INTO t VALUES (1) RETURNING a"),
        ("exec", "INSERT INTO t VALUES (2); SELECT 1", "x", False),
        ("exec", "SHOW work_mem"),
    ],
    "errors": [
        CONNECT,
        TABLE,
        ("query", "SELECT a FROM nope", ONE),
        ("query", "SELECT a FROM nope", ONE, "x", False),
        ("exec", "INSERT INTO t VALUES (1), (1)"),
        ("exec", "INSERT INTO t VALUES (1), (1)", "x", False),
        ("exec", "SELECT 1/0; SELECT 2", "x", False),
        ("exec", "DO $$BEGIN RAISE 'm' USING DETAIL = 'd', HINT = 'h', ERRCODE = 'AB123'; END$$"),
        ("query", "SELECT 7", ONE),
    ],
    "last message": [
        CONNECT,
        ("message",),
        ("query", "SELECT 1/0", ONE),
        ("message",),
        ("exec", "DO $$BEGIN RAISE 'm' USING DETAIL = 'd', HINT = 'h'; END$$"),
        ("message",),
        ("exec", "SET work_mem = '1MB'"),
        ("message",),
    ],
    "cursor": [
        CONNECT,
        ("open", "c", "SELECT generate_series(1, 5)"),
        ("fetch", "c", 2, ONE),
        ("fetch", "C", 2, ONE),
        ("fetch", "c", 2, ONE),
        ("fetch", "c", 2, ONE),
        ("close", "c"),
        ("close", "c"),
    ],
    "cursor names": [
        CONNECT,
        ("open", "Plain", "SELECT 1"),
        ("open", '"Quo""ted c"', "SELECT 2"),
        ("query", "SELECT name::text FROM pg_cursors WHERE name <> 'c1' ORDER BY 1", "a text"),
        ("fetch", "pLAIN", 1, ONE),
        ("fetch", '"Quo""ted c"', 1, ONE),
        ("close", '"Quo""ted c"'),
        ("close", "plain"),
    ],
    "cursor names beyond ASCII are not folded": [
        CONNECT,
        ("exec", "BEGIN"),
        ("exec", 'DECLARE "É" CURSOR FOR SELECT 1'),
        ("fetch", "É", 1, ONE),
    ],
    "long cursor names": [
        CONNECT,
        ("open", "c" * 80, "SELECT 1"),
        ("open", "b", "SELECT 2"),
        ("close", "b"),
        ("fetch", "c" * 80, 1, ONE),
        ("close", "c" * 80),
    ],
    "close all": [
        CONNECT,
        ("exec", "BEGIN"),
        ("open", "a", "SELECT 1"),
        ("open", "b", "SELECT 2"),
        ("close", "all"),
        ("fetch", "a", 1, ONE),
    ],
    "fetch back": [
        CONNECT,
        ("exec", "BEGIN"),
        ("exec", "DECLARE c SCROLL CURSOR FOR SELECT generate_series(1, 5)"),
        ("fetch", "c", 3, ONE),
        ("fetch", "c", 0, ONE),
        ("fetch", "c", -2, ONE),
    ],
    "close of the last cursor commits": [
        CONNECT,
        TABLE,
        ("open", "a", "SELECT 1"),
        ("exec", "INSERT INTO t VALUES (1)"),
        ("open", "b", "SELECT 2"),
        ("close", "a"),
        ("exec", "INSERT INTO t VALUES (2)"),
        ("close", "b"),
    ],
    "open cursors keep the transaction": [
        CONNECT,
        TABLE,
        ("open", "a", "SELECT 1"),
        ("exec", "INSERT INTO t VALUES (1)"),
        ("open", "b", "SELECT 2"),
        ("close", "a"),
    ],
    "the user's transaction is left alone": [
        CONNECT,
        TABLE,
        ("exec", "BEGIN"),
        ("exec", "INSERT INTO t VALUES (1)"),
        ("open", "a", "SELECT 1"),
        ("close", "a"),
    ],
    "open, abort, begin, open, close": [
        CONNECT,
        TABLE,
        ("open", "a", "SELECT 1"),
        ("exec", "ABORT"),
        ("exec", "BEGIN"),
        ("exec", "INSERT INTO t VALUES (1)"),
        ("open", "a", "SELECT 1"),
        ("close", "a"),
    ],
    "failed open leaves the transaction aborted": [
        CONNECT,
        ("open", "a", "SELECT nope"),
        ("query", "SELECT 1", ONE),
        ("exec", "ABORT"),
        ("query", "SELECT 1", ONE),
        ("open", "a", "SELECT nope", "x", False),
    ],
    "unknown cursor": [
        CONNECT,
        ("fetch", "c", 1, ONE),
        ("fetch", "c", 1, ONE, "x", False),
        ("close", "c"),
        ("close", "c", "x", False),
        ("exec", "BEGIN"),
        ("close", "c", "x", False),
        ("query", "SELECT 1", ONE),
    ],
    "deferred constraint": [
        CONNECT,
        DEFERRED,
        ("open", "c", "SELECT 1"),
        ("exec", "INSERT INTO t VALUES (1)"),
        ("close", "c", "x", False),
        ("open", "c", "SELECT 1"),
        ("close", "c"),
    ],
    "a failed commit is a rollback": [
        CONNECT,
        TABLE,
        ("exec", "BEGIN"),
        ("exec", "INSERT INTO t VALUES (1)"),
        ("exec", "SELECT 1/0", "x", False),
        ("exec", "COMMIT"),
    ],
    "one implicit transaction": [
        CONNECT,
        TABLE,
        ("exec", "INSERT INTO t VALUES (1); SELECT 1/0", "x", False),
    ],
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_the_same_as_dblink(scenario: list[Call], ours: Ours, dblinks: Dblinks) -> None:
    for call in scenario:
        assert (call, _outcome(ours, call)) == (call, _outcome(dblinks, call))
    assert _after(ours) == _after(dblinks)


# -- where ours differs on purpose (section 20 of the contract), and what dblink can't be asked


@pytest.fixture
def link(links: Links, source: Database) -> Link:
    links.connect("x", source.target)
    return links.get("x")


def _state(database: Database) -> str:
    return str(database.admin(_REMOTE, database.server.role)[0][0])


def test_a_failed_declare_is_not_counted(link: Link, source: Database) -> None:
    link.open("a", "SELECT 1")
    link.exec("SAVEPOINT s")
    assert link.open("b", "SELECT nope", fail_on_error=False) == "ERROR"
    link.exec("ROLLBACK TO s")

    link.close("a")

    assert _state(source) == "idle"


@pytest.mark.parametrize("end", ["ABORT", "COMMIT", "ROLLBACK"])
def test_the_users_transaction_is_never_committed_whatever_came_before(
    link: Link, source: Database, end: str
) -> None:
    source.execute("CREATE TABLE t (a int)")
    link.open("a", "SELECT 1")
    link.exec(end)
    link.exec("BEGIN")
    link.exec("INSERT INTO t VALUES (1)")
    link.exec("DECLARE a CURSOR FOR SELECT 1")

    link.close("a")

    assert _state(source) == "idle in transaction"
    assert source.rows("SELECT * FROM t") == []


def test_a_foreign_cursor_does_not_end_the_transaction_of_ours(link: Link, source: Database) -> None:
    link.open("ours", "SELECT 1")
    link.exec("DECLARE theirs CURSOR FOR SELECT 2")

    link.close("theirs")

    assert link.fetch("ours", 1) == [(1,)]
    link.close("ours")
    assert _state(source) == "idle"


def test_a_cursor_lost_with_its_savepoint_does_not_keep_the_transaction(link: Link, source: Database) -> None:
    link.open("a", "SELECT 1")
    link.exec("SAVEPOINT s")
    link.open("b", "SELECT 2")
    link.exec("ROLLBACK TO s")

    link.close("a")

    assert _state(source) == "idle"


@pytest.mark.parametrize(
    "statement",
    [
        "COPY t TO STDOUT",
        "copy (select 1) to stdout",
        "SELECT 1; COPY t FROM STDIN",
        "/* x */ COPY t FROM stdin",
    ],
)
def test_copy_is_refused_before_sending_and_the_link_stays_usable(
    link: Link, source: Database, statement: str
) -> None:
    source.execute("CREATE TABLE t (a int)")
    for call in (link.query, link.exec):
        with pytest.raises(UsageError, match="COPY with the client"):
            call(statement)
    assert link.query("SELECT 1") == [(1,)]


@pytest.mark.parametrize("direction", ["(SELECT generate_series(1, 100000)) TO STDOUT", "t FROM STDIN"])
def test_copy_hidden_from_the_lexer_leaves_the_link_usable(
    link: Link, source: Database, direction: str
) -> None:
    source.execute("CREATE TABLE t (a int)")
    link.exec("SET standard_conforming_strings = off; SET escape_string_warning = off")

    with pytest.raises(UsageError, match="COPY"):
        link.exec(rf"SELECT '\'' ; COPY {direction}; --'")

    assert link.query("SELECT 1") == [(1,)]
    assert source.rows("SELECT * FROM t") == []


def test_a_link_with_unread_results_refuses_and_keeps_them(link: Link) -> None:
    pgconn = link.connection.pgconn
    pgconn.send_query(b"SELECT 42")

    for call in (link.query, link.exec):
        with pytest.raises(RemoteError, match="another command is already in progress"):
            call("SELECT 1", fail_on_error=False)

    result = pgconn.get_result()
    assert result is not None
    assert result.get_value(0, 0) == b"42"
    assert pgconn.get_result() is None
    assert link.query("SELECT 1") == [(1,)]


@pytest.mark.parametrize("statement", ["", " ", ";", "-- nothing", "/* ; */ ;;"])
def test_an_empty_statement_is_refused(link: Link, statement: str) -> None:
    for call in (link.query, link.exec):
        with pytest.raises(UsageError, match="empty"):
            call(statement)
    for query in (lambda: link.open("c", statement), lambda: link.batches(statement, None, 1)):
        with pytest.raises(UsageError, match="one statement"):
            query()


@pytest.mark.parametrize("statement", ["SELECT 'a\0b'", "SELECT 1; \0 DROP TABLE t"])
def test_nul_is_refused_and_nothing_before_it_is_run(link: Link, statement: str) -> None:
    for call in (
        lambda: link.query(statement),
        lambda: link.exec(statement),
        lambda: link.open("c", statement),
        lambda: link.batches(statement, None, 1),
    ):
        with pytest.raises(UsageError, match="NUL"):
            call()


def test_nul_in_a_value_is_refused(link: Link) -> None:
    with pytest.raises(UsageError):
        link.query("SELECT %s", ["a\0b"])


@pytest.mark.parametrize("query", ["SELECT 1; SELECT 2", "SELECT 1; COMMIT"])
def test_a_cursor_is_for_one_query(link: Link, source: Database, query: str) -> None:
    with pytest.raises(UsageError, match="one statement"):
        link.open("c", query)
    with pytest.raises(UsageError, match="one statement"):
        link.batches(query, None, 10)
    assert _state(source) == "idle"


@pytest.mark.parametrize(
    "query", ["SELECT 7;", "SELECT 7 ; -- seven", "SELECT 7 -- seven", "/* ; */ SELECT 7"]
)
def test_a_query_may_end_as_people_end_them(link: Link, query: str) -> None:
    link.open("c", query)
    assert link.fetch("c", 5) == [(7,)]
    link.close("c")
    assert list(link.batches(query, None, 10)) == [[(7,)]]


@pytest.mark.parametrize("name", ["", '""', "a b", "c; DROP TABLE t", '"c"; x', "1c", "a.b", '"c'])
def test_a_cursor_name_is_a_name_and_no_sql(link: Link, name: str) -> None:
    for call in (
        lambda: link.open(name, "SELECT 1"),
        lambda: link.fetch(name, 1),
        lambda: link.close(name),
    ):
        with pytest.raises(UsageError, match="not a cursor name"):
            call()


@pytest.mark.parametrize("howmany", [True, "1", 1.5, None])
def test_howmany_is_an_integer(link: Link, howmany: Any) -> None:
    with pytest.raises(UsageError, match="howmany"):
        link.fetch("c", howmany)


@pytest.mark.parametrize("batch_rows", [0, -1, True, "5", 2.0])
def test_batch_rows_is_checked_before_the_first_batch(link: Link, batch_rows: Any) -> None:
    with pytest.raises(UsageError, match="batch_rows"):
        link.batches("SELECT 1", None, batch_rows)


def test_parameters_are_bound_by_type_and_name(link: Link) -> None:
    assert link.query("SELECT %s::int, %s::text[], %s::date", [1, ["a", "b'"], None]) == [
        (1, ["a", "b'"], None)
    ]
    assert link.query("SELECT %(a)s::text; SELECT %(b)s::int", {"a": "x", "b": 2}) == [(2,)]
    assert link.query("SELECT '100%%', %s::text", ["';--"]) == [("100%", "';--")]
    assert link.query("SELECT '100%'") == [("100%",)]


@pytest.mark.parametrize("params", [[], [1, 2], {"a": 1}])
def test_parameters_that_do_not_fit_are_a_mistake_of_the_caller(link: Link, params: Any) -> None:
    with pytest.raises(UsageError, match="parameters do not fit"):
        link.query("SELECT %s", params)


def _terminate(database: Database) -> None:
    database.admin(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND usename = %s",
        database.server.role,
    )


def test_fail_on_error_false_never_hides_a_lost_connection(
    link: Link, links: Links, source: Database
) -> None:
    _terminate(source)

    for call in (
        lambda: link.query("SELECT 1", fail_on_error=False),
        lambda: link.query("SELECT 1", fail_on_error=False),
        lambda: link.exec("SELECT 1", fail_on_error=False),
        lambda: link.open("c", "SELECT 1", fail_on_error=False),
        lambda: link.fetch("c", 1, fail_on_error=False),
        lambda: link.close("c", fail_on_error=False),
        lambda: list(link.batches("SELECT 1", None, 1)),
    ):
        with pytest.raises(TransientError) as caught:
            call()
        assert "'x'" in str(caught.value)
    assert links.names() == ["x"]
    assert links.disconnect("x") == "OK"


def test_fail_on_error_false_logs_what_dblink_notices(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert link.exec("SELECT 1/0", fail_on_error=False) == "ERROR"

    assert "division by zero [SQLSTATE 22012]" in caplog.text
    assert 'while executing command on dblink connection named "x"' in caplog.text


def test_the_servers_messages_are_logged(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        link.exec("DO $$BEGIN RAISE NOTICE 'hello'; RAISE WARNING 'beware'; END$$")

    levels = {record.getMessage(): record.levelname for record in caplog.records}
    assert levels["source: NOTICE:  hello"] == "INFO"
    assert levels["source: WARNING:  beware"] == "WARNING"


def test_a_long_name_is_cut_with_a_warning(
    links: Links, source: Database, caplog: pytest.LogCaptureFixture
) -> None:
    links.connect("n" * 70, source.target)

    assert f'identifier "{"n" * 70}" will be truncated to "{"n" * 63}"' in caplog.text


def test_a_failed_connect_keeps_the_unnamed_link(links: Links, source: Database) -> None:
    links.connect(None, source.target)
    links.get(None).exec("CREATE TEMP TABLE own (a int)")

    with pytest.raises(TransientError):
        links.connect(None, type(source.target)("wrong", {**source.params, "password": "no"}))

    assert links.get(None).query("SELECT count(*) FROM own") == [(0,)]


# -- batches


def _series(last: int) -> str:
    return f"SELECT g FROM generate_series(1, {last}) g"  # noqa: S608 - a number


@pytest.mark.parametrize(("rows", "sizes"), [(0, []), (1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3])])
def test_batches_have_their_size(link: Link, source: Database, rows: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in link.batches(_series(rows), None, 3)] == sizes
    assert _state(source) == "idle"


def test_batches_are_one_snapshot(link: Link, source: Database) -> None:
    source.execute("CREATE TABLE t AS SELECT generate_series(1, 5) AS a")
    batches = link.batches("SELECT a FROM t ORDER BY a", None, 2)

    first = next(batches)
    source.execute("DELETE FROM t")

    assert [first, *batches] == [[(1,), (2,)], [(3,), (4,)], [(5,)]]


def test_batches_closed_early_roll_back(link: Link, source: Database) -> None:
    batches = link.batches(_series(10), None, 2)
    next(batches)
    assert _state(source) == "idle in transaction"

    batches.close()  # type: ignore[attr-defined]

    assert _state(source) == "idle"


def test_batches_in_the_users_transaction_leave_it_open(link: Link, source: Database) -> None:
    source.execute("CREATE TABLE t (a int)")
    link.exec("BEGIN")
    link.exec("INSERT INTO t VALUES (1)")

    assert list(link.batches("SELECT a FROM t", None, 5)) == [[(1,)]]

    assert _state(source) == "idle in transaction"
    assert link.query("SELECT count(*) FROM pg_cursors WHERE name LIKE 'airflow%'") == [(0,)]
    link.exec("COMMIT")
    assert source.rows("SELECT a FROM t") == [(1,)]


def test_an_error_midway_is_the_servers_and_ends_the_transaction(link: Link, source: Database) -> None:
    batches = link.batches("SELECT 1 / (5 - g) FROM generate_series(1, 9) g", None, 2)
    next(batches)
    next(batches)

    with pytest.raises(RemoteError, match="division by zero"):
        next(batches)

    assert _state(source) == "idle"


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


@pytest.mark.parametrize("value", ["'infinity'::date", "'24:00'::time", "'{0044-03-15 BC}'::date[]"])
def test_a_value_that_python_cannot_hold_is_named_by_its_column_not_by_itself(
    links: Links, source: Database, value: str
) -> None:
    links.connect(None, source.target)
    link = links.get(None)
    with pytest.raises(RemoteError) as caught:
        link.query(f'SELECT 1 AS "One", {value} AS "Odd"')
    assert "'Odd'" in str(caught.value)
    assert "'One'" not in str(caught.value)
    assert "infinity" not in str(caught.value)
    assert caught.value.sqlstate == "22000"
    assert link.query("SELECT 1") == [(1,)]
