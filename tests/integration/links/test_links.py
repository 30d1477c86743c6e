"""The vocabulary on a real server: what dblink can't be asked. See also ``tests/differential``."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from airflow_dblink.core.errors import RemoteError, TransientError, UsageError
from airflow_dblink.core.link.link import Link
from airflow_dblink.core.link.registry import Links
from tests.databases import Database
from tests.oracle import state


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

    with pytest.raises(UsageError, match="COPY"):  # the second part of an E string takes escapes, too
        link.exec(rf"SELECT E'a' --{chr(10)}'\'' ; COPY {direction}; --'")

    assert link.query("SELECT 1") == [(1,)]
    assert source.rows("SELECT * FROM t") == []


@pytest.mark.parametrize("statement", ["", " ", ";", "-- nothing", "/* ; */ ;;"])
def test_an_empty_statement_is_refused(link: Link, statement: str) -> None:
    for call in (link.query, link.exec):
        with pytest.raises(UsageError, match="empty"):
            call(statement)
    for query in (lambda: link.open("c", statement), lambda: link.batches(statement, None, 1)):
        with pytest.raises(UsageError, match="empty"):
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
    assert state(source) == "idle"


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
