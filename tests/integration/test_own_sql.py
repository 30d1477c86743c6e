"""Questions to the catalogs: no operator of others in them, and the session's own path for names."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.own_sql import ask
from tests.databases import Database

# "oid = regclass" has no operator of its own.
_PLANTED = """
CREATE FUNCTION planted(oid, regclass) RETURNS bool LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION 'planted'; END$$;
CREATE OPERATOR = (FUNCTION = planted, LEFTARG = oid, RIGHTARG = regclass);
CREATE SCHEMA app CREATE TABLE item (id int);
"""
_QUESTION = (
    "SELECT relnamespace::regnamespace::text AS schema, format_type(%(type)s::regtype, NULL) AS type"
    "  FROM pg_class WHERE oid = to_regclass(%(name)s)"
)


@pytest.fixture
def connection(source: Database) -> Iterator[LinkConnection]:
    source.execute(_PLANTED)
    with connect(source.target) as opened:
        opened.execute("SET search_path = public, app")
        yield opened


def path(connection: LinkConnection) -> str:
    row = connection.execute("SHOW search_path").fetchone()
    return str(row and row[0])


@pytest.mark.parametrize("begin", [None, "BEGIN", "BEGIN READ ONLY"])
def test_a_question_is_read_without_others_operators_and_names_by_the_sessions_path(
    connection: LinkConnection, begin: str | None
) -> None:
    if begin:
        connection.execute(begin.encode())
    asked = {"name": "item", "type": "app.item"}

    assert ask(connection, _QUESTION, asked) == [{"schema": "app", "type": "item"}]

    assert path(connection) == "public, app"
    with pytest.raises(psycopg.errors.RaiseException, match="planted"):  # it would have been taken
        connection.execute(_QUESTION, asked)


def test_a_path_that_is_set_in_the_transaction_stays(connection: LinkConnection) -> None:
    connection.execute("BEGIN")
    connection.execute("SET search_path = app")
    ask(connection, "SELECT 1 AS one")
    assert path(connection) == "app"
    connection.execute("SET LOCAL search_path = public")
    ask(connection, "SELECT 1 AS one")
    assert path(connection) == "public"
    connection.execute("COMMIT")
    assert path(connection) == "app"


def test_an_error_leaves_the_path_as_it_was(connection: LinkConnection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        ask(connection, "SELECT 1/0 AS none")
    assert path(connection) == "public, app"
    connection.execute("BEGIN")
    connection.execute("SAVEPOINT before")
    with pytest.raises(psycopg.errors.DivisionByZero):
        ask(connection, "SELECT 1/0 AS none")
    connection.execute("ROLLBACK TO before")
    assert path(connection) == "public, app"
    assert ask(connection, "SELECT 1 AS one") == [{"one": 1}]
