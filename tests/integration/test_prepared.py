"""Statements that are repeated on a connection of get_conn are prepared, where no pooler shares sessions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database
from tests.pooler import pooler

PREPARED = "SELECT count(*)::int FROM pg_prepared_statements"


@pytest.fixture
def connection(source: Database) -> Iterator[LinkConnection]:
    source.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    with closing(DblinkHook(dblink_conn_id="source").get_conn()) as made:
        yield made


def _prepared(connection: psycopg.Connection) -> int:
    row = connection.cursor().execute(PREPARED, prepare=False).fetchone()
    return int(row[0]) if row else -1


def _repeat(connection: LinkConnection, query: str = "SELECT * FROM t", times: int = 15) -> None:
    for _ in range(times):
        connection.execute(query.encode())


@pytest.mark.parametrize("autocommit", [True, False])
def test_what_is_repeated_is_prepared(connection: LinkConnection, autocommit: bool) -> None:
    connection.autocommit = autocommit
    connection.execute("SELECT %s::int", [1])
    assert _prepared(connection) == 0

    for number in range(15):
        assert connection.execute("SELECT %s::int", [number]).fetchone() == (number,)

    assert _prepared(connection) == 1


@pytest.mark.parametrize("autocommit", [True, False])
def test_the_sixth_run_is_prepared_as_psycopgs(
    connection: LinkConnection, source: Database, autocommit: bool
) -> None:
    connection.autocommit = autocommit
    with psycopg.connect(source.uri, autocommit=autocommit) as psycopgs:
        for _ in range(8):
            counts = []
            for each in (connection, psycopgs):
                each.execute("SELECT %s::int", [1])
                counts.append(_prepared(each))
            assert counts[0] == counts[1]
    assert counts == [1, 1]


def test_several_statements_in_one_text_are_never_prepared(connection: LinkConnection) -> None:
    _repeat(connection, "SELECT 1; SELECT 2")
    assert _prepared(connection) == 0


def test_prepare_means_what_it_says(connection: LinkConnection) -> None:
    connection.execute("SELECT 1", prepare=True)
    assert _prepared(connection) == 1
    _repeat(connection, "SELECT 2")
    connection.execute("SELECT 3", prepare=False)
    assert _prepared(connection) == 2


def test_many_are_prepared_at_once(connection: LinkConnection) -> None:
    connection.cursor().executemany("INSERT INTO t VALUES (%s)", [[1]] * 5)
    assert _prepared(connection) == 1


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_table_that_was_changed_elsewhere_is_read_as_it_is(
    connection: LinkConnection, source: Database, autocommit: bool
) -> None:
    connection.autocommit = autocommit
    _repeat(connection)
    connection.commit()
    source.execute("ALTER TABLE t ADD b text DEFAULT 'new'")

    assert connection.execute("SELECT * FROM t").fetchall() == [(1, "new")]
    _repeat(connection)


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize(
    "change", ["SET search_path = other", "CREATE TEMP TABLE t AS SELECT 2 AS a, 3 AS b"]
)
def test_names_mean_what_they_mean_now(
    connection: LinkConnection, source: Database, change: str, autocommit: bool
) -> None:
    source.execute("CREATE SCHEMA other; CREATE TABLE other.t AS SELECT 2 AS a, 3 AS b")
    connection.autocommit = autocommit
    _repeat(connection)
    connection.execute(change.encode())

    assert connection.execute("SELECT * FROM t").fetchall() == [(2, 3)]


@pytest.mark.parametrize("statement", ["DISCARD ALL", "DEALLOCATE ALL"])
def test_what_was_dropped_is_prepared_anew(connection: LinkConnection, statement: str) -> None:
    connection.autocommit = True
    connection.execute(statement.encode())
    _repeat(connection)
    connection.execute(statement.encode())
    connection.execute("SELECT 1")
    _repeat(connection)
    connection.execute(statement.encode())

    assert connection.execute("SELECT * FROM t").fetchall() == [(1,)]


def test_a_transaction_may_still_be_set_up(connection: LinkConnection) -> None:
    for _ in range(12):
        connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        _repeat(connection, times=1)
        connection.commit()


def test_nothing_is_prepared_through_a_pooler(source: Database, add_connection: AddConnection) -> None:
    with pooler(source.server, "transaction") as port:
        for mode in ("none", "transaction"):
            add_connection(
                "pooled", source, port=port, conn_type="dblink", extra=f'{{"pooling_mode": "{mode}"}}'
            )
            with closing(DblinkHook(dblink_conn_id="pooled").get_conn()) as connection:
                connection.autocommit = True
                _repeat(connection, "SELECT 1")
                connection.execute("SELECT 2", prepare=True)
                assert _prepared(connection) == 0
                assert connection.prepare_threshold is None


def test_links_prepare_nothing(source: Database) -> None:
    with DblinkHook(dblink_conn_id="source") as hook:
        for _ in range(15):
            hook.query("SELECT 1")
        assert hook.query(PREPARED) == [(0,)]


def test_an_error_within_a_transaction_is_psycopgs(connection: LinkConnection, source: Database) -> None:
    _repeat(connection)
    connection.commit()
    connection.execute("SELECT 1")
    source.execute("ALTER TABLE t ADD b text DEFAULT 'new'")

    with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan"):
        connection.execute("SELECT * FROM t")
    connection.rollback()
    assert connection.execute("SELECT * FROM t").fetchall() == [(1, "new")]
