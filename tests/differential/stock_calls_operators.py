"""Calls of Airflow's own SQL operators, sensor and trigger."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow.providers.common.sql.operators.generic_transfer import GenericTransfer
from airflow.providers.common.sql.operators.sql import (
    BranchSQLOperator,
    SQLBulkLoadOperator,
    SQLCheckOperator,
    SQLColumnCheckOperator,
    SQLExecuteQueryOperator,
    SQLInsertRowsOperator,
    SQLIntervalCheckOperator,
    SQLTableCheckOperator,
    SQLThresholdCheckOperator,
    SQLValueCheckOperator,
)
from airflow.providers.common.sql.sensors.sql import SqlSensor
from airflow.providers.common.sql.triggers.sql import SQLExecuteQueryTrigger
from airflow.sdk import BaseHook

from tests.differential.stock_side import Side, add, call


def _operator(made: Any) -> Any:
    return lambda side: side.execute(made(side.connection()))


_PICKED = "SELECT id, name FROM item ORDER BY id"


def _query(**arguments: Any) -> Any:
    return _operator(lambda conn: SQLExecuteQueryOperator(task_id="t", conn_id=conn, **arguments))


def _sensor(**arguments: Any) -> Any:
    def poke(side: Side) -> Any:
        return SqlSensor(task_id="t", conn_id=side.connection(), **arguments).poke({})

    return poke


def _check(operator: Any, **arguments: Any) -> Any:
    return _operator(lambda conn: operator(task_id="t", conn_id=conn, **arguments))


def _transfer(sql: str, create: str, **arguments: Any) -> Any:
    def transfer(side: Side) -> Any:
        side.database.execute(create)
        conn = side.connection()
        side.execute(
            GenericTransfer(
                task_id="t",
                sql=sql,
                destination_table="t",
                source_conn_id=conn,
                destination_conn_id=conn,
                **arguments,
            )
        )

    return transfer


for _name, _call in {
    "SQLExecuteQueryOperator": _query(sql=_PICKED),
    "SQLExecuteQueryOperator of a list": _query(sql=["SELECT 1", "SELECT 2"]),
    "SQLExecuteQueryOperator with parameters": _query(sql="SELECT %(a)s", parameters={"a": [1, 2]}),
    "SQLExecuteQueryOperator of another database": _query(
        sql="SELECT current_database()", database="postgres"
    ),
    "SQLExecuteQueryOperator with options": _query(
        sql="SHOW statement_timeout", hook_params={"options": "-c statement_timeout=5s"}
    ),
    "SQLExecuteQueryOperator in autocommit": _query(sql="VACUUM item", autocommit=True),
    "SQLExecuteQueryOperator of an error": _query(sql="SELECT 1/0"),
    "SqlSensor of true": _sensor(sql="SELECT count(*) FROM item"),
    "SqlSensor of false": _sensor(sql="SELECT 0"),
    "SqlSensor of no rows": _sensor(sql="SELECT 1 WHERE false"),
    "SqlSensor with a selector": _sensor(sql="SELECT 0, 5", selector=lambda row: row[1]),
    "SQLCheckOperator": _check(SQLCheckOperator, sql="SELECT true, 1"),
    "SQLCheckOperator that fails": _check(SQLCheckOperator, sql="SELECT false"),
    "SQLValueCheckOperator": _check(SQLValueCheckOperator, sql="SELECT 1.5", pass_value=1.4, tolerance=0.2),
    "SQLThresholdCheckOperator": _check(
        SQLThresholdCheckOperator, sql="SELECT 9", min_threshold=1, max_threshold="SELECT 5"
    ),
    "SQLIntervalCheckOperator": _check(
        SQLIntervalCheckOperator,
        table="item",
        metrics_thresholds={"count(*)": 2},
        date_filter_column="made::date",
    ),
    "SQLColumnCheckOperator": _check(
        SQLColumnCheckOperator,
        table="item",
        column_mapping={"id": {"min": {"equal_to": 1}, "null_check": {"equal_to": 0}}},
    ),
    "SQLTableCheckOperator": _check(
        SQLTableCheckOperator, table="item", checks={"rows": {"check_statement": "count(*) = 5"}}
    ),
    "BranchSQLOperator": _check(
        BranchSQLOperator, sql="SELECT true", follow_task_ids_if_true=[], follow_task_ids_if_false=[]
    ),
    "SQLInsertRowsOperator": _check(
        SQLInsertRowsOperator, table_name="public.bare", rows=[(1, "a")], columns=["id", "name"]
    ),
    "GenericTransfer": _transfer(_PICKED, "CREATE TABLE t (id int, name text)"),
    "GenericTransfer with preoperator": _transfer(
        _PICKED,
        "CREATE TABLE t (id int, name text)",
        preoperator=["DELETE FROM t", "INSERT INTO t VALUES (0)"],
    ),
    "GenericTransfer in pages": _transfer(_PICKED, "CREATE TABLE t (id int, name text)", page_size=2),
    "GenericTransfer with insert args": _transfer(
        _PICKED,
        "CREATE TABLE t (name text, id int)",
        insert_args={"target_fields": ["id", "name"], "commit_every": 2},
    ),
    "GenericTransfer of objects in jsonb": _transfer(
        "SELECT '{\"a\": 1}'::jsonb", "CREATE TABLE t (j jsonb)"
    ),
    "GenericTransfer of lists in jsonb": _transfer(
        "SELECT '[]'::jsonb, '[1, null]'::jsonb, '[\"a\"]'::json", "CREATE TABLE t (j jsonb, k jsonb, l json)"
    ),
    "GenericTransfer of scalars in jsonb": _transfer(
        "SELECT '1'::jsonb, '\"a\"'::jsonb, 'true'::jsonb", "CREATE TABLE t (j jsonb, k jsonb, l jsonb)"
    ),
    "GenericTransfer of arrays": _transfer(
        "SELECT '{1,NULL}'::int[], '{a}'::text[], '{}'::text[]",
        "CREATE TABLE t (a int[], b text[], c text[])",
    ),
    "GenericTransfer of jsonb arrays": _transfer(
        "SELECT ARRAY['{\"a\": 1}'::jsonb]", "CREATE TABLE t (a jsonb[])"
    ),
}.items():
    add(_name, _call)


@call
def SQLBulkLoadOperator_(side: Side) -> Any:
    path = side.file(b"1\ta\n")
    side.execute(SQLBulkLoadOperator(task_id="t", conn_id=side.connection(), table="bare", tmp_file=path))


@call
def SQLExecuteQueryTrigger_(side: Side) -> Any:
    trigger: Any = SQLExecuteQueryTrigger(sql=_PICKED, conn_id=side.connection())

    async def events() -> Any:
        return [event.payload async for event in trigger.run()]

    return asyncio.run(events())


@call
def get_hook_with_hook_params(side: Side) -> Any:
    hook: Any = BaseHook.get_connection(side.connection()).get_hook(hook_params={"database": "postgres"})  # type: ignore[no-untyped-call]
    return hook.get_first("SELECT current_database()")
