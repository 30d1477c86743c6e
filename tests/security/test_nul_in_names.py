"""A NUL in a name or a text: libpq would cut it there, and psycopg's error counts as one to try again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import UsageError
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.common.load_plan import DblinkPartsPlanOperator
from airflow_dblink.operators.common.load_tasks import (
    DblinkPartsDropOperator,
    DblinkPartsIndexOperator,
    DblinkPartsLoadOperator,
    DblinkPartsSwapOperator,
    DblinkPartsVerifyOperator,
)
from airflow_dblink.operators.events import (
    DblinkAckEventsOperator,
    DblinkClaimEventsOperator,
    DblinkNotifyOperator,
    DblinkReleaseEventsOperator,
)
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.fetch import DblinkFetchOperator
from airflow_dblink.operators.jobs import (
    DblinkCancelQueryOperator,
    DblinkGetResultOperator,
    DblinkJobOperator,
    DblinkSendQueryOperator,
)
from airflow_dblink.operators.new_rows import DblinkNewRowsOperator
from airflow_dblink.operators.query import DblinkQueryOperator
from airflow_dblink.operators.sync import DblinkSyncOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator
from tests.databases import Database
from tests.integration.tasks import context

JOB = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
TWO = {"source_conn_id": "source", "destination_conn_id": "warehouse", "destination_table": "t"}
PAUSE = {"pause_while": "SELECT false", "pause_while_conn_id": "warehouse"}
PARTS: dict[type[DblinkBaseOperator], dict[str, Any]] = {
    DblinkPartsPlanOperator: PAUSE,
    DblinkPartsLoadOperator: {"part": 1, **PAUSE},
    DblinkPartsVerifyOperator: {"parts": [1]},
    DblinkPartsIndexOperator: {},
    DblinkPartsSwapOperator: {},
    DblinkPartsDropOperator: {},
}
QUERY = {**TWO, "source_sql": "SELECT a FROM t WHERE a::text <> %s", "source_parameters": ["x"]}
SET = {"source_conn_id": "source", "destination_conn_id": "warehouse", "tables": ["t"], "exclude": ["u"]}
IN_PARTS: dict[type[DblinkBaseOperator], list[dict[str, Any]]] = {
    DblinkPartsPlanOperator: [{**QUERY, "part_column": "a"}, SET],
}
# Valid arguments, of which each text in turn gets a NUL.
OPERATORS: dict[type[DblinkBaseOperator], list[dict[str, Any]]] = {
    DblinkExecOperator: [{"conn_id": "source", "sql": "SELECT 1", "session_settings": {"work_mem": "1MB"}}],
    DblinkFetchOperator: [{"conn_id": "source", "sql": "SELECT 1", "path": "/dev/shm/none"}],
    DblinkClaimEventsOperator: [{"conn_id": "source", "topic": "t", "event_schema": "s"}],
    DblinkAckEventsOperator: [{"conn_id": "source", "claimed_by": "c", "event_schema": "s"}],
    DblinkReleaseEventsOperator: [{"conn_id": "source", "claimed_by": "c", "event_schema": "s"}],
    DblinkNotifyOperator: [{"conn_id": "source", "channel": "c", "payload": "p"}],
    DblinkQueryOperator: [
        {"conn_id": "source", "sql": "TABLE r", "max_xcom_rows": 1},
        {
            "conn_id": "source",
            "sql": "TABLE r",
            "remotes": {"r": {"conn_id": "warehouse", "sql": "SELECT 1 AS a", "indexes": ["a"]}},
        },
    ],
    DblinkTransferOperator: [
        {**TWO, "source_table": "t", "mode": "upsert", "columns": ["a"], "key": ["a"]},
        {**TWO, "source_sql": "SELECT 1 AS a", "pre_sql": "SELECT 1", "post_sql": "SELECT 1"},
        {**TWO, "source_table": "t", "columns": {"a": "a"}},
        {**TWO, "source_table": "t", **PAUSE},
    ],
    DblinkNewRowsOperator: [
        {**TWO, "source_table": "t", "xid_column": "xid", "columns": ["a"], "key": ["a"]},
        {**TWO, "source_table": "t", "columns": {"a": "a"}},
    ],
    DblinkSyncOperator: [
        {**TWO, "source_table": "t", "columns": ["a"], "key": ["a"], "where": "a > 0"},
        {**TWO, "source_sql": "SELECT 1 AS a", "key": ["a"]},
        {**TWO, "source_table": "t", "columns": {"a": "a"}, "watermark_column": "a"},
    ],
    **{
        kind: [
            {**TWO, "source_table": "t", "columns": ["a"], **more},
            {**TWO, "source_table": "t", "columns": {"a": "a"}, **more},
            *IN_PARTS.get(kind, ()),
        ]
        for kind, more in PARTS.items()
    },
    DblinkSendQueryOperator: [{"conn_id": "source", "sql": "SELECT 1", "job_schema": "s"}],
    DblinkJobOperator: [{"conn_id": "source", "sql": "SELECT 1", "path": "/dev/shm/none", "job_schema": "s"}],
    DblinkGetResultOperator: [
        {"handle": {"conn_id": "source", "job_id": JOB, "schema": "s"}, "path": "/dev/shm/none"},
        {"handle": JOB, "conn_id": "source", "max_xcom_rows": 1},
        {
            "handle": {"conn_id": "source", "job_id": JOB, "schema": "s"},
            "destination_conn_id": "warehouse",
            "destination_table": "t",
            "mode": "upsert",
            "key": ["a"],
        },
    ],
    DblinkCancelQueryOperator: [{"handle": {"conn_id": "source", "job_id": JOB, "schema": "s"}}],
}


def with_nul(value: Any) -> list[Any]:
    """Return *value* with a NUL in each of its texts in turn."""
    if isinstance(value, str):
        return [f"{value[:1]}\0{value[1:]}"]
    if isinstance(value, Mapping):
        values = [{**value, key: changed} for key in value for changed in with_nul(value[key])]
        keys = [{f"{key}\0": other for key, other in value.items()}]
        return values + keys
    if isinstance(value, list):
        return [
            [*value[:i], changed, *value[i + 1 :]]
            for i, each in enumerate(value)
            for changed in with_nul(each)
        ]
    return []


CASES = [
    (kind, {**given, name: changed}, name)
    for kind, variants in OPERATORS.items()
    for given in variants
    for name in given
    for changed in with_nul(given[name])
]


@pytest.fixture
def tables(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE t (a int PRIMARY KEY)")


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("kind", "arguments", "name"), CASES, ids=[f"{kind.__name__}-{name}" for kind, _, name in CASES]
)
def test_no_text_with_a_nul_is_tried_again(
    kind: type[DblinkBaseOperator], arguments: dict[str, Any], name: str
) -> None:
    with pytest.raises((AirflowFailException, UsageError)) as raised:
        kind(task_id="t", **arguments).execute(context())

    text = str(raised.value)
    assert "NUL" in text or "\0" in text or "x00" in text, name


def test_all_operators_with_texts_are_here() -> None:
    def below(kind: type[Any]) -> list[type[Any]]:
        return [kind, *(each for sub in kind.__subclasses__() for each in below(sub))]

    ours = {kind for kind in below(DblinkBaseOperator) if kind.__module__.startswith("airflow_dblink.")}
    assert {kind for kind in ours if kind.template_fields and "Base" not in kind.__name__} == set(OPERATORS)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    "call",
    [
        lambda hook: hook.get_pkey("t\0"),
        lambda hook: hook.build_sql_insert("t\0", [1], ["1"], ["2"]),
        lambda hook: hook.build_sql_delete("t\0", [1], ["1"]),
        lambda hook: hook.build_sql_update("t\0", [1], ["1"], ["2"]),
        lambda hook: hook.open("c\0", "SELECT 1"),
        lambda hook: hook.exec("SELECT 1\0"),
        lambda hook: hook.query("SELECT 1\0"),
        lambda hook: hook.send_query("SELECT 1\0"),
        lambda hook: hook.attach({"r\0": {"conn_id": "warehouse", "sql": "SELECT 1"}}),
    ],
)
def test_the_hooks_functions_refuse_it_too(call: Any) -> None:
    with DblinkHook("source") as hook, pytest.raises(UsageError):
        call(hook)
