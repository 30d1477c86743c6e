"""A mistake of the caller's ends neither the connection nor its transaction; a time-out ends both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg.adapt import Dumper
from psycopg.pq import TransactionStatus

from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.hooks.dblink import DblinkHook
from tests.databases import Database
from tests.transfers import TimeIsUp, alarm, sleeping

SURROGATE = "\ud800"
Mistake = Callable[[LinkConnection], Any]


class Unadaptable:
    """A value whose dumper raises."""


class RaisingDumper(Dumper):
    """Raises an error that isn't psycopg's."""

    def dump(self, obj: Any) -> bytes:
        raise ZeroDivisionError


def _raising(cursor: object) -> Any:
    raise ZeroDivisionError


def _raising_row(cursor: object) -> Any:
    def make(values: Any) -> Any:
        raise ZeroDivisionError

    return make


@pytest.fixture
def connection(source: Database) -> Iterator[LinkConnection]:
    source.execute("CREATE TABLE t (a text)")
    with closing(DblinkHook(dblink_conn_id="source").get_conn()) as made:
        made.adapters.register_dumper(Unadaptable, RaisingDumper)
        yield made


def _stream(connection: LinkConnection, row_factory: Any) -> None:
    for _ in connection.cursor(row_factory=row_factory).stream("SELECT generate_series(1, 100000)"):
        pass


MISTAKES: dict[str, Mistake] = {
    "a value without a form": lambda c: c.execute("INSERT INTO t VALUES (%s)", [Unadaptable()]),
    "a lone surrogate": lambda c: c.execute("INSERT INTO t VALUES (%s)", [SURROGATE]),
    "a lone surrogate in the text": lambda c: c.execute(f"SELECT '{SURROGATE}'".encode()),
    "a lone surrogate among many": lambda c: c.cursor().executemany(
        "INSERT INTO t VALUES (%s)", [["b"]] * 50 + [[SURROGATE]]
    ),
    "a row factory that raises": lambda c: c.cursor(row_factory=_raising).execute("SELECT 1"),
    "a row that raises": lambda c: c.cursor(row_factory=_raising_row).execute("SELECT 1").fetchall(),
    "a server cursor's row": lambda c: c.cursor("c", row_factory=_raising_row).execute("SELECT 1").fetchall(),
    "copy of what has no form": lambda c: _copy(c),
}


def _copy(connection: LinkConnection) -> None:
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        copy.write_row([Unadaptable()])


@pytest.mark.parametrize("mistake", [pytest.param(call, id=name) for name, call in MISTAKES.items()])
def test_the_connection_goes_on_as_psycopgs_own_does(
    connection: LinkConnection, source: Database, mistake: Mistake
) -> None:
    with psycopg.connect(source.conninfo) as stock:
        stock.adapters.register_dumper(Unadaptable, RaisingDumper)
        for each in (stock, connection):
            each.execute("INSERT INTO t VALUES ('kept')")
            with pytest.raises((ZeroDivisionError, UnicodeEncodeError, psycopg.errors.QueryCanceled)):
                mistake(each)  # type: ignore[arg-type] # psycopg's own beside ours
            assert not each.closed
        assert connection.info.transaction_status == stock.info.transaction_status

        if connection.info.transaction_status == TransactionStatus.INTRANS:
            stock.rollback()
            connection.commit()
            assert ("kept",) in source.rows("SELECT a FROM t")


@pytest.mark.parametrize("row_factory", [_raising, _raising_row])
def test_a_stream_that_is_left_ends_on_the_server(connection: LinkConnection, row_factory: Any) -> None:
    connection.autocommit = True

    with pytest.raises(ZeroDivisionError):
        _stream(connection, row_factory)

    assert connection.info.transaction_status == TransactionStatus.IDLE
    assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_a_time_out_while_the_server_works_ends_the_transaction(
    connection: LinkConnection, source: Database
) -> None:
    connection.execute("INSERT INTO t VALUES ('lost')")

    with pytest.raises(TimeIsUp), alarm(lambda: sleeping(source)):
        connection.execute("SELECT pg_sleep(60)")

    assert connection.closed
    assert source.wait_until_left() == []
    assert source.rows("SELECT * FROM t") == []


def test_a_stop_between_statements_costs_nothing(connection: LinkConnection, source: Database) -> None:
    connection.execute("INSERT INTO t VALUES ('kept')")

    def waits() -> bool:
        return "idle in transaction" in [state for _, _, state, _ in source.sessions()]

    with pytest.raises(TimeIsUp), alarm(waits):
        next(connection.notifies(timeout=60))

    assert not connection.closed
    assert connection.info.transaction_status == TransactionStatus.INTRANS
