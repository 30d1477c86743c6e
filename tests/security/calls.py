"""Every operator, sensor and public method of the hook, with arguments that work."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, BaseOperator

from airflow_dblink.core.events.table import EventTable
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.provider_info import get_provider_info

#: SQL of the Dag's author, who is trusted: it must run.
TRUSTED = frozenset({"sql", "source_sql", "pre_sql", "post_sql", "where", "pause_while", "failure_sql"})
# Arguments without text: callables, and objects that Airflow makes.
_NO_TEXT = frozenset(
    {"self", "kwargs", "args", "handler", "success", "failure", "watermark_asset", "own_table"}
)

ITEM = {"source_table": "item", "destination_table": "item"}
BOTH = {"source_conn_id": "source", "destination_conn_id": "warehouse"}
SETTINGS = {"work_mem": "8MB"}
SELECT = {"conn_id": "source", "sql": "SELECT id, name FROM item WHERE name <> %s", "parameters": ["x"]}
INSERT = {
    "conn_id": "warehouse",
    "sql": "INSERT INTO item (id, name) VALUES (1, %s) ON CONFLICT DO NOTHING",
    "parameters": ["x"],
}
REMOTES = {"far": {"conn_id": "source", "sql": "SELECT id, name FROM item", "indexes": ["id"]}}

QUEUE = EventTable("item", id="id", claimed_by="name")

#: Stands for a job's handle in the arguments by operator; a new handle is made for each call.
HANDLE = object()
OPERATORS: Mapping[str, Mapping[str, Any]] = {
    "DblinkExecOperator": {**INSERT, "session_settings": SETTINGS},
    "DblinkFetchOperator": {**SELECT, "max_xcom_rows": 10, "session_settings": SETTINGS},
    "DblinkSendQueryOperator": {**INSERT, "session_settings": SETTINGS},
    "DblinkJobOperator": {**INSERT, "poll_interval": 0.1, "session_settings": SETTINGS},
    "DblinkGetResultOperator": {"handle": HANDLE, "conn_id": "source", "max_xcom_rows": 10},
    "DblinkCancelQueryOperator": {"handle": HANDLE, "conn_id": "source"},
    "DblinkJobSensor": {"handle": HANDLE, "conn_id": "source", "poke_interval": 0.1, "timeout": 60},
    "DblinkSqlSensor": {**SELECT, "session_settings": SETTINGS, "poke_interval": 0.1, "timeout": 1},
    "DblinkClaimEventsOperator": {"conn_id": "source", "topic": "orders", "skip_when_empty": False},
    "DblinkAckEventsOperator": {"conn_id": "source", "claimed_by": "d/r/t/-1", "session_settings": SETTINGS},
    "DblinkReleaseEventsOperator": {"conn_id": "source", "claimed_by": "d/r/t/-1", "own_table": QUEUE},
    "DblinkNotifyOperator": {
        "conn_id": "source",
        "channel": "c",
        "payload": "p",
        "session_settings": SETTINGS,
    },
    "DblinkQueryOperator": {
        "conn_id": "warehouse",
        "sql": "SELECT far.id FROM far WHERE name <> %s",
        "parameters": ["x"],
        "remotes": REMOTES,
        "max_xcom_rows": 10,
        "session_settings": SETTINGS,
    },
    "DblinkTransferOperator": {
        **BOTH,
        **ITEM,
        "mode": "upsert",
        "key": ["id"],
        "columns": ["id", "name"],
        "session_settings": SETTINGS,
    },
    "DblinkNewRowsOperator": {
        **BOTH,
        **ITEM,
        "xid_column": "xid",
        "columns": ["id", "name"],
        "key": ["id"],
        "session_settings": SETTINGS,
    },
    "DblinkSyncOperator": {
        **BOTH,
        **ITEM,
        "key": ["id"],
        "columns": ["id", "name"],
        "where": "id > %s",
        "where_parameters": [0],
        "session_settings": SETTINGS,
    },
}
_TABLE = {"destination_conn_id": "warehouse", "destination_table": "item", "mode": "upsert", "key": ["id"]}
_WATERMARK = {
    "watermark_column": "id",
    "watermark_asset": Asset("items"),
    "where": None,
    "where_parameters": None,
}
_FILE = {"max_xcom_rows": None, "path": "rows.csv"}
_SOURCE_SQL = {
    "source_table": None,
    "source_sql": "SELECT id, name FROM item WHERE name <> %s",
    "source_parameters": ["x"],
}
_FILE_ARGUMENTS = ("path", "path_conn_id", "header", "base_path", "file_mode")
_WITH_FILES = ("DblinkFetchOperator", "DblinkGetResultOperator", "DblinkQueryOperator")
#: Other arguments that must be given so that an argument is read; ``None`` removes one.
INSTEAD: Mapping[tuple[str, str], Mapping[str, Any]] = {
    **{(operator, name): _FILE for operator in _WITH_FILES for name in _FILE_ARGUMENTS},
    **{(operator, "csv_options"): {**_FILE, "csv_options": {"delimiter": ";"}} for operator in _WITH_FILES},
    **{("DblinkJobOperator", name): {**SELECT, **_FILE} for name in _FILE_ARGUMENTS},
    **{("DblinkGetResultOperator", name): {"max_xcom_rows": None, **_TABLE} for name in _TABLE},
    ("DblinkTransferOperator", "source_parameters"): _SOURCE_SQL,
    ("DblinkSyncOperator", "source_parameters"): _SOURCE_SQL,
    **{
        (operator, "pause_while_conn_id"): {"pause_while": "SELECT false", "pause_while_conn_id": "source"}
        for operator in ("DblinkTransferOperator", "DblinkNewRowsOperator", "DblinkSyncOperator")
    },
    **{
        ("DblinkSyncOperator", name): {"apply": "statements", "statements_path": "made.sql"}
        for name in ("statements_path", "base_path", "file_mode")
    },
    **{
        ("DblinkSyncOperator", name): _WATERMARK
        for name in ("watermark_column", "watermark_overlap", "watermark_until")
    },
}

_KEY: dict[str, Any] = {"relname": "item", "primary_key_attnums": [1]}
#: By method of the hook.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ack_events": {"claimed_by": "d/r/t/-1"},
    "attach": {"remotes": REMOTES},
    "batches": {"sql": "SELECT %s", "params": ["x"]},
    "build_sql_delete": {**_KEY, "tgt_pk_att_vals": ["1"]},
    "build_sql_delete_many": {**_KEY, "tgt": [["1"]]},
    "build_sql_insert": {**_KEY, "src_pk_att_vals": ["1"], "tgt_pk_att_vals": ["9"]},
    "build_sql_insert_many": {**_KEY, "src": [["1"]], "tgt": [["9"]]},
    "build_sql_update": {**_KEY, "src_pk_att_vals": ["1"], "tgt_pk_att_vals": ["2"]},
    "build_sql_update_many": {**_KEY, "src": [["1"]], "tgt": [["2"]]},
    "cancel_job": {"handle": HANDLE},
    "cancel_query": {"connname": None},
    "claim_events": {"topic": "orders", "claimed_by": "d/r/t/-1"},
    "close": {"cursor": "c"},
    "connect": {"connname": "far", "conn_id": "source"},
    "connect_u": {"connname": "far", "conn_id": "source"},
    "disconnect": {"connname": "far"},
    "drop_result": {"handle": HANDLE},
    "error_message": {"connname": None},
    "exec": {"sql": "UPDATE item SET name = %s WHERE id = 9", "params": ["x"]},
    "fetch": {"cursor": "c", "howmany": 5},
    "get_notify": {"connname": None},
    "get_pkey": {"relname": "item"},
    "get_result": {"connname": None},
    "insert_rows": {
        "table": "item",
        "rows": [(7, "x")],
        "target_fields": ["id", "name"],
        "replace": True,
        "replace_index": "id",
        "replace_target": ["name"],
    },
    "install_events": {"event_schema": "events", "emit": ["postgres"], "claim": ["postgres"]},
    "is_busy": {"connname": None},
    "job": {"handle": HANDLE},
    "notify": {"channel": "c", "payload": "p"},
    "open": {"cursor": "c", "sql": "SELECT %s", "params": ["x"]},
    "prune_jobs": {"older_than": timedelta(days=1), "conn_id": "source"},
    "query": {"sql": "SELECT %s", "params": ["x"]},
    "release_events": {"claimed_by": "d/r/t/-1", "own_table": QUEUE},
    "send_job": {"sql": "SELECT %s", "params": ["x"], "name": "n", "session_settings": SETTINGS},
    "send_query": {"sql": "SELECT %s", "params": ["x"]},
    "wait_for_job": {"handle": HANDLE, "poll_s": 0.1},
}
#: Methods that send no text with an argument in it.
NOTHING_SENT = frozenset(
    {
        *("atarget", "target", "link", "get_conn", "get_connections", "get_sqlalchemy_engine", "open_direct"),
        *("get_uri", "remote_sides", "result_link", "counted_result_query", "submission", "test_connection"),
    }
)


def operator_classes() -> dict[str, type[BaseOperator]]:
    """Return the provider's operators and sensors by name."""
    info = get_provider_info()
    modules = [
        name for kind in ("operators", "sensors") for each in info[kind] for name in each["python-modules"]
    ]
    return {
        name: kind
        for module in map(importlib.import_module, modules)
        for name, kind in vars(module).items()
        if name.startswith("Dblink")
        and "Base" not in name
        and isinstance(kind, type)
        and kind.__module__ == module.__name__
    }


def arguments_of(kind: type[BaseOperator]) -> dict[str, str]:
    """Return the arguments of our own constructors of *kind* that aren't trusted, with their types.

    Arguments of the common base are left out for all operators but one.
    """
    ours = [base for base in kind.__mro__ if base.__module__.startswith("airflow_dblink")]
    if kind.__name__ != "DblinkExecOperator":
        ours = [base for base in ours if base is not DblinkBaseOperator]
    return {
        name: annotation
        for base in ours
        if "__init__" in vars(base)
        for name, annotation in names_of(vars(base)["__init__"]).items()
    }


def hook_methods() -> dict[str, Callable[..., Any]]:
    """Return the hook's public methods that are our own."""
    return {
        name: method
        for name, method in inspect.getmembers(DblinkHook, inspect.isfunction)
        if method.__module__.startswith("airflow_dblink") and not name.startswith("_")
    }


def names_of(function: Callable[..., Any]) -> dict[str, str]:
    """Return the arguments that aren't trusted, with their types."""
    return {
        name: str(parameter.annotation)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in _NO_TEXT | TRUSTED
    }


def is_text(annotation: str) -> bool:
    """Return whether an argument is a text or holds texts; a number or switch can only be one by mistake."""
    return not any(word in annotation for word in ("bool", "float", "int", "timedelta", "Literal"))


def attacks(value: Any, payload: str) -> Iterator[Any]:
    """Yield *value* with the payload in each of its places that may be text, one after the other."""
    if isinstance(value, str):
        yield value + payload
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            for attacked in attacks(each, payload):
                changed = [*value]
                changed[i] = attacked
                yield changed
        yield [*value, payload]
    elif isinstance(value, Mapping):
        for key, each in value.items():
            others = {k: v for k, v in value.items() if k != key}
            yield {**others, key + payload: each}
            if key not in TRUSTED:
                yield from ({**others, key: attacked} for attacked in attacks(each, payload))
    if not isinstance(value, Mapping):
        yield payload
