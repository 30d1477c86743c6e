"""Runs Airflow's operators for :mod:`benchmarks.child`: jobs come in on stdin, answers go out on a pipe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import psycopg
from airflow.providers.common.sql.operators.generic_transfer import GenericTransfer
from airflow.providers.postgres.hooks.postgres import PostgresHook

from airflow_dblink.core.once.transaction import Once
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.common.load_plan import DblinkPartsPlanOperator
from airflow_dblink.operators.common.load_tasks import (
    DblinkPartsIndexOperator,
    DblinkPartsLoadOperator,
    DblinkPartsSwapOperator,
    DblinkPartsVerifyOperator,
)
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.query import DblinkQueryOperator, Remote
from airflow_dblink.operators.sync import DblinkSyncOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator
from benchmarks.side import PROXIED, Meter, Store, connect, context_of_task, proxied, serve

_SOURCE = "bench_source"
_DESTINATION = "bench_destination"
_Connection = psycopg.Connection[tuple[Any, ...]]
_LOAD_TASKS: dict[str, type[Any]] = {
    "plan": DblinkPartsPlanOperator,
    "load": DblinkPartsLoadOperator,
    "verify": DblinkPartsVerifyOperator,
    "index": DblinkPartsIndexOperator,
    "swap": DblinkPartsSwapOperator,
}


# -- jobs


def transfer(measured: Meter, **arguments: Any) -> dict[str, Any]:
    """Run the transfer operator; what is measured is its ``execute()``, connecting included."""
    operator = DblinkTransferOperator(
        task_id="move", source_conn_id=_SOURCE, destination_conn_id=_DESTINATION, **arguments
    )
    context = context_of_task()
    return measured(lambda: operator.execute(context))


def load_task(measured: Meter, *, task: str, table: str, **arguments: Any) -> dict[str, Any]:
    """Run one task of a load in parts; the caller takes the time of all, which the meter would lengthen."""
    del measured
    operator = _LOAD_TASKS[task](
        task_id=task,
        load_id="plan",
        source_conn_id=_SOURCE,
        destination_conn_id=_DESTINATION,
        source_table=table,
        destination_table=table,
        **arguments,
    )
    return {"returned": operator.execute(context_of_task())}


def sync(measured: Meter, **arguments: Any) -> dict[str, Any]:
    """Run the sync operator; what is measured is its ``execute()``, connecting included."""
    operator = DblinkSyncOperator(
        task_id="sync", source_conn_id=_SOURCE, destination_conn_id=_DESTINATION, **arguments
    )
    context = context_of_task()
    return measured(lambda: operator.execute(context))


def query(measured: Meter, *, statement: str, remote: str) -> dict[str, Any]:
    """Run the query operator with one remote set, named r; returns the rows."""
    operator = DblinkQueryOperator(
        task_id="join",
        conn_id=_DESTINATION,
        sql=statement,
        remotes={"r": Remote(_SOURCE, remote)},
        max_xcom_rows=1_000,
    )
    context = context_of_task()
    return measured(lambda: operator.execute(context)["data"])


def generic_transfer(measured: Meter, *, query: str, table: str) -> dict[str, Any]:
    """Run Airflow's own operator, as it is by default."""
    operator = GenericTransfer(
        task_id="operator",
        sql=query,
        destination_table=table,
        source_conn_id=_SOURCE,
        destination_conn_id=_DESTINATION,
    )
    context = context_of_task()
    return measured(lambda: operator.execute(context))


def batches(measured: Meter, *, way: str, query: str, batch_rows: int) -> dict[str, Any]:
    """Read all rows in lists; returns their number and the sum of their first column."""
    read = _hook_batches if way == "hook" else _psycopg_batches

    def consume() -> tuple[int, int]:
        count = total = 0
        for batch in read(query, batch_rows):
            count += len(batch)
            total += sum(row[0] for row in batch)
        return count, total

    return measured(consume)


def _hook_batches(query: str, batch_rows: int) -> Iterator[list[tuple[Any, ...]]]:
    with DblinkHook(dblink_conn_id=_SOURCE) as hook:
        yield from hook.batches(query, batch_rows=batch_rows)


def _psycopg_batches(query: str, batch_rows: int) -> Iterator[list[tuple[Any, ...]]]:
    with connect(_SOURCE) as connection, connection.cursor("bench") as cursor:
        cursor.itersize = batch_rows
        cursor.execute(query.encode())
        while batch := cursor.fetchmany(batch_rows):
            yield batch


def get_result(measured: Meter, *, query: str, batch_rows: int) -> dict[str, Any]:
    """Read the result of an asynchronous query in lists; returns their number of rows."""

    def consume() -> int:
        with DblinkHook(dblink_conn_id=_SOURCE) as hook:
            hook.send_query(query)
            return sum(len(batch) for batch in hook.get_result(batch_rows=batch_rows))

    return measured(consume)


def builders(measured: Meter, *, way: str, kind: str, table: str, rows: int) -> dict[str, Any]:
    """Build a statement for each of the first *rows* keys; returns a digest of the texts."""
    keys = [str(key) for key in range(1, rows + 1)]
    with DblinkHook(dblink_conn_id=_SOURCE) as hook:
        hook.build_sql_delete(table, [1], ["1"])  # connected, and the table is known
        connection = hook.link().connection  # one session for all: on which CPU it runs counts as much
        work = {
            "dblink": lambda: _dblink_one(connection, kind, table, keys),
            "dblink_set": lambda: _dblink_set(connection, kind, table, keys),
            "hook": lambda: _hook_one(hook, kind, table, keys),
            "hook_many": lambda: getattr(hook, f"build_sql_{kind}_many")(table, [1], [[key] for key in keys]),
        }[way]
        answer = measured(work)
    answer["returned"] = hashlib.sha256("\n".join(answer["returned"]).encode()).hexdigest()
    return answer


def _dblink_one(connection: _Connection, kind: str, table: str, keys: list[str]) -> list[str]:
    keyed = "%s, %s" if kind != "delete" else "%s"
    call = f"SELECT dblink_build_sql_{kind}(%s, '1', 1, {keyed})".encode()
    given = 1 if kind == "delete" else 2
    rows = (connection.execute(call, [table, *[[key]] * given]).fetchone() for key in keys)
    return [row[0] for row in rows if row]


def _dblink_set(connection: _Connection, kind: str, table: str, keys: list[str]) -> list[str]:
    keyed = "ARRAY[key], ARRAY[key]" if kind != "delete" else "ARRAY[key]"
    call = f"SELECT dblink_build_sql_{kind}(%s, '1', 1, {keyed}) FROM unnest(%s::text[]) AS key"  # noqa: S608 - constants
    return [row[0] for row in connection.execute(call.encode(), [table, keys])]


def _hook_one(hook: DblinkHook, kind: str, table: str, keys: list[str]) -> list[str]:
    build = getattr(hook, f"build_sql_{kind}")
    if kind == "delete":
        return [build(table, [1], [key]) for key in keys]
    return [build(table, [1], [key], [key]) for key in keys]


def small_statements(measured: Meter, *, hook: str, table: str, times: int) -> dict[str, Any]:
    """Read so many rows of *table* by their key, each with a statement; returns the sum of their keys."""
    made = PostgresHook(_SOURCE) if hook == "stock" else DblinkHook(dblink_conn_id=_SOURCE)
    query = f"SELECT id, s, n FROM {table} WHERE id = %s"  # noqa: S608 - a constant
    with closing(made.get_conn()) as connection, closing(connection.cursor()) as cursor:

        def read() -> int:
            total = 0
            for key in range(1, times + 1):
                cursor.execute(query, [key])
                total += cursor.fetchall()[0][0]
            return total

        return measured(read)


def exec_round_trips(measured: Meter, *, statement: str) -> dict[str, Any]:
    """Count the round trips of both ways, those of connecting left out."""
    with proxied(_DESTINATION) as (proxy, uri):
        _execute_once(PROXIED, statement)
        once = proxy.round_trips()
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute(statement.encode())
        plain = proxy.round_trips()
    return {"once": once, "plain": plain}


def exec_connected(measured: Meter, *, way: str, statement: str, times: int) -> dict[str, Any]:
    """Run *statement* many times over one open connection."""
    if way == "plain":
        with connect(_DESTINATION) as connection:
            connection.autocommit = True
            return measured(lambda: [connection.execute(statement.encode()) for _ in range(times)] and None)
    with DblinkHook(dblink_conn_id=_DESTINATION) as hook:
        connection = hook.link().connection

        def run() -> None:
            for _ in range(times):
                once = Once(connection, _DESTINATION, Store())
                once.recall()
                once.begin()
                once.run(statement)

        return measured(run)


def exec_whole(measured: Meter, *, way: str, statement: str, times: int) -> dict[str, Any]:
    """Run *statement* many times, each with a connection of its own."""

    def plain() -> None:
        with connect(_DESTINATION) as connection:
            connection.execute(statement.encode())

    def once() -> None:
        _execute_once(_DESTINATION, statement)

    work = plain if way == "plain" else once
    return measured(lambda: [work() for _ in range(times)] and None)


def _execute_once(conn_id: str, statement: str) -> None:
    operator = DblinkExecOperator(
        task_id="exec", conn_id=conn_id, sql=statement, orphan_timeout=timedelta(minutes=1)
    )
    operator.execute(context_of_task())


_JOBS = (
    transfer,
    load_task,
    sync,
    query,
    generic_transfer,
    batches,
    get_result,
    builders,
    small_statements,
    exec_round_trips,
    exec_connected,
    exec_whole,
)


if __name__ == "__main__":
    serve(*_JOBS)
