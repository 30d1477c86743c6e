"""Replaces modules that the providers' tests import but don't ship: ``tests_common``, other providers.

It has only the parts that tests of a PostgreSQL hook use. If a part is missing, a test also fails with the
stock hook, and such a test isn't counted.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from airflow.providers.common.sql.operators.generic_transfer import GenericTransfer
from airflow.sdk import DAG, Connection
from airflow.sdk.definitions._internal.types import NOTSET
from airflow.sdk.exceptions import TaskDeferred

from tests.integration.tasks import context

Hook = Any


def install() -> None:
    """Make the modules importable."""
    _module("tests_common.pytest_plugin")
    _module("tests_common.test_utils.common_sql", mock_db_hook=mock_db_hook)
    _module("tests_common.test_utils.compat", GenericTransfer=GenericTransfer)
    _module("tests_common.test_utils.dag", sync_dag_to_db=mock.MagicMock())
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731 - these tests need no metadata database
    names = ("clear_db_dag_bundles", "clear_db_dags", "clear_db_runs", "clear_db_xcom")
    _module("tests_common.test_utils.db", **dict.fromkeys(names, nothing))
    _module(
        "tests_common.test_utils.markers",
        skip_if_force_lowest_dependencies_marker=pytest.mark.skipif(False, reason="the pinned versions run"),
    )
    _module(
        "tests_common.test_utils.operators.run_deferrable",
        execute_operator=execute_operator,
        mock_context=mock_context,
        run_trigger=lambda trigger: asyncio.run(_events(trigger)),
    )
    _module("tests_common.test_utils.providers", get_provider_min_airflow_version=lambda _: (2, 11, 0))
    _module("tests_common.test_utils.taskinstance", TaskInstanceWrapper=mock.MagicMock)
    _module(
        "tests_common.test_utils.version_compat",
        AIRFLOW_V_3_0_1=True,
        AIRFLOW_V_3_0_PLUS=True,
        NOTSET=NOTSET,
    )
    # Patched by the tests that use them.
    _module("airflow.providers.amazon.aws.hooks.base_aws", AwsBaseHook=type("AwsBaseHook", (), {}))
    _module("airflow.providers.mysql.hooks.mysql", MySqlHook=type("MySqlHook", (), {}))
    _module("pyodbc", Cursor=_OdbcCursor)


class _OdbcCursor:
    """Has the attributes of a cursor of pyodbc."""

    description: Any = None
    rowcount = -1
    fast_executemany = False
    messages: Any = None

    def execute(self, *_: Any) -> Any: ...
    def executemany(self, *_: Any) -> Any: ...
    def fetchall(self) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchmany(self, *_: Any) -> Any: ...
    def close(self) -> Any: ...
    def nextset(self) -> Any: ...


def _module(name: str, **content: Any) -> None:
    """Make a module of that name, and all its packages, importable."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        try:
            __import__(path)
        except ImportError:
            made = types.ModuleType(path)
            made.__path__ = []
            sys.modules[path] = made
            if end > 1:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], made)
    for attribute, value in content.items():
        setattr(sys.modules[name], attribute, value)


def mock_db_hook(
    hook_class: Any, hook_params: dict[str, Any] | None = None, conn_params: dict[str, Any] | None = None
) -> Hook:
    """Return a hook of a subclass of *hook_class* with a made-up connection and a mocked psycopg."""
    fields = {"login": "login", "password": "password", "host": "host", "schema": "schema", "port": 1234}
    connection = Connection(**{**fields, **(conn_params or {})})
    names = ["description", "rowcount", "execute", "fetchall", "fetchone", "close"]
    mocked = mock.MagicMock()
    mocked.cursor.return_value = mock.MagicMock(rowcount=0, spec=names)

    def get_connection(cls: Any, conn_id: str) -> Connection:
        cls.connection_invocations += 1
        return connection

    content = {
        "conn_name_attr": "test_conn_id",
        "connection_invocations": 0,
        "get_connection": classmethod(get_connection),
        "get_conn": lambda self: mocked,
    }
    return type("MockedHook", (hook_class,), content)(**(hook_params or {}))


def mock_context(task: Any) -> Any:
    """Return a context for *task* whose XComs go nowhere."""
    made = context(dag_id="dag", task_id=task.task_id)
    made["ti"].xcom_pull = lambda *_, **__: None
    return made


def execute_operator(operator: Any) -> tuple[Any, list[Any]]:
    """Execute *operator* and, as often as it defers, its triggers; return its result and their events."""
    now = mock_context(operator)
    operator.render_template_fields(context=now)
    events: list[Any] = []
    call: Callable[[], Any] = lambda: operator.execute(context=now)  # noqa: E731
    while True:
        try:
            return call(), events
        except TaskDeferred as deferred:
            latest = asyncio.run(_events(deferred.trigger))
            if not latest:
                return None, events
            events += latest
            method, payload = getattr(operator, deferred.method_name), latest[0].payload
            call = lambda: method(context=now, event=payload)  # noqa: B023, E731 - called before they change


async def _events(trigger: Any) -> list[Any]:
    return [event async for event in trigger.run()]


class DagMaker:
    """A Dag whose tasks are executed here, without a scheduler."""

    session = None

    def __call__(self, dag_id: str = "dag", **arguments: Any) -> DagMaker:
        arguments.pop("serialized", None)
        self.dag = DAG(dag_id, schedule=None, **arguments)
        return self

    def __enter__(self) -> DAG:
        return self.dag.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.dag.__exit__(*error)  # type: ignore[no-untyped-call] # Airflow's

    def create_dagrun(self, **_: Any) -> Any:
        """Return a run, of which no attribute is used."""
        return mock.MagicMock()

    def run_ti(self, task_id: str, *_: Any) -> None:
        """Execute one task, with its templates rendered."""
        task: Any = self.dag.get_task(task_id)
        now = mock_context(task)
        task.render_template_fields(now)
        task.execute(now)
