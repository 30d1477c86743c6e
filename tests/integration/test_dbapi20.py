"""PEP 249 on the hook's connections, and on the stock hook's as the measure: what holds there holds here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from typing import Any

import psycopg
import pytest
from airflow.providers.postgres.hooks.postgres import PostgresHook

from airflow_dblink.hooks.dblink import DblinkHook
from tests.databases import Database

BOOZE = ["Victoria Bitter", "Cooper's", "Redback", "Swan Lager", "XXXX", "Toohey's"]


@pytest.fixture(params=[PostgresHook, DblinkHook])
def connection(request: pytest.FixtureRequest, source: Database) -> Iterator[Any]:
    """Give a connection of each hook to a database that has the table ``booze``."""
    source.execute("CREATE TABLE booze (name varchar(20))")
    with suppress(psycopg.OperationalError):  # closed by the test
        made = request.param("source").get_conn()
        yield made
        made.close()


@pytest.fixture
def full(connection: Any) -> Any:
    """Give a connection in whose open transaction the table has its rows."""
    connection.cursor().executemany("INSERT INTO booze VALUES (%s)", [[name] for name in BOOZE])
    return connection


def test_the_errors_are_attributes_of_a_connection(connection: Any) -> None:
    assert issubclass(connection.Error, Exception)
    for name in ("InterfaceError", "DatabaseError"):
        assert issubclass(getattr(connection, name), connection.Error)
    for name in ("OperationalError", "IntegrityError", "InternalError", "ProgrammingError", "DataError"):
        assert issubclass(getattr(connection, name), connection.DatabaseError)
        assert getattr(connection, name) is getattr(psycopg, name)


def test_commit_and_rollback(connection: Any, source: Database) -> None:
    connection.commit()
    connection.rollback()
    connection.execute("INSERT INTO booze VALUES ('a')")
    connection.rollback()
    connection.execute("INSERT INTO booze VALUES ('b')")
    connection.commit()
    assert source.rows("SELECT * FROM booze") == [("b",)]


def test_cursors_of_a_connection_see_each_others_rows(connection: Any) -> None:
    first, second = connection.cursor(), connection.cursor()
    first.execute("INSERT INTO booze VALUES ('a')")
    second.execute("SELECT name FROM booze")
    assert second.fetchall() == [("a",)]


def test_description(full: Any) -> None:
    cursor = full.cursor()
    assert cursor.description is None
    cursor.execute("CREATE TABLE barflys (name varchar(20))")
    assert cursor.description is None
    described = cursor.execute("SELECT name FROM booze").description
    assert [(column[0], len(column)) for column in described or ()] == [("name", 7)]
    assert [column[1] for column in described or ()] == [psycopg.STRING]
    cursor.execute("DELETE FROM booze")
    assert cursor.description is None


def test_rowcount(full: Any) -> None:
    cursor = full.cursor()
    assert cursor.rowcount == -1
    cursor.execute("CREATE TABLE barflys (name varchar(20))")
    assert cursor.rowcount == -1
    cursor.execute("SELECT name FROM booze")
    assert cursor.rowcount == len(BOOZE)
    cursor.execute("UPDATE booze SET name = 'x'")
    assert cursor.rowcount == len(BOOZE)
    cursor.executemany("INSERT INTO booze VALUES (%s)", [["a"], ["b"]])
    assert cursor.rowcount == 2


def test_what_is_closed_is_refused(connection: Any) -> None:
    cursor = connection.cursor()
    cursor.close()
    cursor.close()
    with pytest.raises(psycopg.InterfaceError, match="cursor is closed"):
        cursor.execute("SELECT 1")
    other = connection.cursor()
    connection.close()
    connection.close()
    for use in (connection.commit, connection.rollback, lambda: other.execute("SELECT 1")):
        with pytest.raises(psycopg.Error):
            use()


def test_closing_rolls_back(connection: Any, source: Database) -> None:
    connection.execute("INSERT INTO booze VALUES ('a')")
    connection.close()
    assert source.rows("SELECT * FROM booze") == []


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        ("INSERT INTO booze VALUES (%s)", ["Cooper's"]),
        ("INSERT INTO booze VALUES (%(beer)s)", {"beer": "Cooper's"}),
        ("INSERT INTO booze VALUES ('Cooper''s')", None),
    ],
)
def test_execute(connection: Any, statement: str, parameters: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(statement, parameters)
    assert cursor.rowcount == 1
    assert cursor.execute("SELECT name FROM booze").fetchall() == [("Cooper's",)]


def test_executemany(connection: Any) -> None:
    cursor = connection.cursor()
    cursor.executemany("INSERT INTO booze VALUES (%(beer)s)", [{"beer": name} for name in BOOZE[:2]])
    cursor.executemany("INSERT INTO booze VALUES (%s)", [])
    assert cursor.execute("SELECT name FROM booze ORDER BY 1").fetchall() == [
        ("Cooper's",),
        ("Victoria Bitter",),
    ]


def test_fetchone(full: Any) -> None:
    cursor = full.cursor()
    for statement in (None, "CREATE TABLE barflys (name text)", "INSERT INTO booze VALUES ('x')"):
        if statement:
            cursor.execute(statement)
        with pytest.raises(psycopg.ProgrammingError):
            cursor.fetchone()
    cursor.execute("SELECT name FROM booze WHERE name = 'Redback'")
    assert cursor.fetchone() == ("Redback",)
    assert cursor.fetchone() is None
    assert cursor.execute("SELECT 1 WHERE false").fetchone() is None


def test_fetchmany(full: Any) -> None:
    cursor = full.cursor()
    with pytest.raises(psycopg.ProgrammingError):
        cursor.fetchmany(4)
    cursor.execute("SELECT name FROM booze ORDER BY 1")
    assert len(cursor.fetchmany()) == cursor.arraysize == 1
    assert [len(cursor.fetchmany(4)) for _ in range(3)] == [4, 1, 0]
    cursor.arraysize = 4
    cursor.execute("SELECT name FROM booze ORDER BY 1")
    assert [len(cursor.fetchmany()) for _ in range(3)] == [4, 2, 0]
    assert cursor.execute("SELECT 1 WHERE false").fetchmany() == []


def test_fetchall(full: Any) -> None:
    cursor = full.cursor()
    with pytest.raises(psycopg.ProgrammingError):
        cursor.fetchall()
    cursor.execute("SELECT name FROM booze")
    assert sorted(name for (name,) in cursor.fetchall()) == sorted(BOOZE)
    assert cursor.fetchall() == []


def test_mixed_fetches_and_iteration(full: Any) -> None:
    cursor = full.cursor()
    cursor.execute("SELECT name FROM booze ORDER BY 1")
    rows = [cursor.fetchone(), *cursor.fetchmany(2), cursor.fetchone(), *cursor.fetchall()]
    assert [name for (name,) in rows] == sorted(BOOZE)
    cursor.execute("SELECT name FROM booze ORDER BY 1")
    assert [name for (name,) in cursor] == sorted(BOOZE)


def test_nextset(connection: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT 1; SELECT 2, 3")
    assert cursor.fetchall() == [(1,)]
    assert cursor.nextset()
    assert cursor.fetchall() == [(2, 3)]
    assert not cursor.nextset()


def test_sizes_are_taken_and_nothing_comes_of_it(connection: Any) -> None:
    cursor = connection.cursor()
    cursor.setinputsizes((25,))
    cursor.setoutputsize(1000, 0)
    assert cursor.execute("SELECT 1").fetchone() == (1,)


def test_none_and_the_type_constructors(connection: Any) -> None:
    values = [None, psycopg.Date(2002, 12, 25), psycopg.Time(13, 45, 30), psycopg.Binary(b"\0\xff")]
    values += [psycopg.Timestamp(2002, 12, 25, 13, 45, 30), psycopg.DateFromTicks(0.0)]
    query = "SELECT %s::text, %s::date, %s::time, %s::bytea, %s::timestamp, %s::date"
    row = connection.execute(query, values).fetchone()
    assert row[:3] == tuple(values[:3])
    assert (bytes(row[3]), row[4]) == (b"\0\xff", values[4])
    assert isinstance(row[5], date)


def test_an_error_has_its_class_and_the_transaction_waits_for_a_rollback(connection: Any) -> None:
    connection.execute("CREATE TABLE t (a int PRIMARY KEY CHECK (a > 0))")
    connection.commit()
    for statement, kind in {
        "INSERT INTO t VALUES (1), (1)": psycopg.IntegrityError,
        "SELECT 1/0": psycopg.DataError,
        "SELEC": psycopg.ProgrammingError,
        "SELECT pg_sleep(1)": psycopg.OperationalError,
    }.items():
        if "pg_sleep" in statement:
            connection.execute("SET LOCAL statement_timeout = 100")
        with pytest.raises(kind):
            connection.execute(statement)
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("SELECT 1")
        connection.rollback()
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_autocommit_is_an_attribute(connection: Any, source: Database) -> None:
    connection.autocommit = True
    connection.execute("INSERT INTO booze VALUES ('a')")
    assert source.rows("SELECT * FROM booze") == [("a",)]
    connection.autocommit = False
    connection.execute("SELECT 1")
    with pytest.raises(psycopg.ProgrammingError, match="autocommit"):
        connection.autocommit = True
