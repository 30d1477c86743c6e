"""No argument but those that are SQL themselves gets a text run as SQL: all arguments, all payloads."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.sdk import Asset, BaseOperator, Context
from airflow.sdk.execution_time.context import set_current_context

from airflow_dblink.core.events.install import install_script as install_events
from airflow_dblink.core.events.table import SCHEMA as EVENTS
from airflow_dblink.core.jobs.install import install_script
from airflow_dblink.core.jobs.job import SCHEMA
from airflow_dblink.embedded.server import Server
from airflow_dblink.hooks.dblink import DblinkHook
from tests.databases import Database, new_database
from tests.integration.tasks import context
from tests.security.calls import (
    HANDLE,
    INSTEAD,
    METHODS,
    NOTHING_SENT,
    OPERATORS,
    TRUSTED,
    arguments_of,
    attacks,
    hook_methods,
    is_text,
    names_of,
    operator_classes,
)
from tests.security.payloads import PAYLOADS, lay_traces, traces
from tests.stores import MemoryStore

_UNREADABLE = re.compile("syntax error|unterminated quoted|unterminated dollar")
_OPERATOR_ARGUMENTS = [
    (name, argument, annotation)
    for name, kind in sorted(operator_classes().items())
    for argument, annotation in sorted(arguments_of(kind).items())
]
_METHOD_ARGUMENTS = [
    (name, argument, annotation)
    for name, method in sorted(hook_methods().items())
    if name in METHODS
    for argument, annotation in {**dict.fromkeys(METHODS[name], "Any"), **names_of(method)}.items()
    if argument not in TRUSTED
]


def _payloads(annotation: str) -> Sequence[str]:
    return PAYLOADS if is_text(annotation) else PAYLOADS[:3]


@pytest.fixture(scope="module")
def databases(pair: tuple[Server, Server]) -> Iterator[list[Database]]:
    """Give the two databases of all calls, with jobs, and traces that a payload would leave."""
    with new_database(pair[0], "source") as source, new_database(pair[1], "warehouse") as warehouse:
        for database in (source, warehouse):
            database.execute("CREATE TABLE item (id int PRIMARY KEY, name text, xid xid8)")
            database.execute("INSERT INTO item SELECT i, 'row ' || i FROM generate_series(1, 5) AS i")
            lay_traces(database)
            database.execute(install_script(SCHEMA))
            database.execute(install_events(EVENTS))
            database.execute("SELECT airflow_dblink_events.emit('orders') FROM generate_series(1, 100)")
        yield [source, warehouse]


@pytest.fixture(autouse=True)
def _in_place(databases: list[Database], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # files are written where a relative path leads
    for database in databases:
        monkeypatch.setenv(f"AIRFLOW_CONN_{database.conn_id.upper()}", database.uri)


class _Assets:
    """What Airflow gives as the state of a task's asset."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    def __getitem__(self, asset: Asset) -> MemoryStore:
        return self._store

    def get(self, key: str, default: Any = None) -> Any:
        return self._store.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self._store.set(key, value)


@contextlib.contextmanager
def _task() -> Iterator[Any]:
    task = {**context(), "asset_state_store": _Assets()}
    with set_current_context(cast("Context", task)):
        yield task


def _new_handle() -> dict[str, str]:
    with DblinkHook(dblink_conn_id="source") as hook:
        handle = hook.send_job("SELECT id, name FROM item", keep_result=True)
        hook.wait_for_job(handle, poll_s=0.1)
    return handle


def _with_handle(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _new_handle() if value is HANDLE else value for name, value in arguments.items()}


def _check(databases: list[Database], what: str) -> None:
    for database in databases:
        if found := traces(database):
            pytest.fail(f"{what} in {database.conn_id}: {found}")


def _demand_its_place(what: str, error: Exception) -> None:
    """Fail if the server could not parse a statement: then the payload has left its place."""
    if _UNREADABLE.search(str(error)):
        pytest.fail(f"{what}: {error}")


def _run(kind: type[BaseOperator], arguments: Mapping[str, Any]) -> None:
    with _task() as task:
        kind(task_id="attacked", **_with_handle(arguments)).execute(task)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_arguments_that_are_attacked_work_as_they_are(name: str) -> None:
    kind = operator_classes()[name]
    _run(kind, OPERATORS[name])
    for (operator, _), others in INSTEAD.items():
        if operator == name:
            _run(kind, {**OPERATORS[name], **others})


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_arguments_of_the_hook_that_are_attacked_work_as_they_are(
    databases: list[Database], name: str
) -> None:
    databases[0].execute("INSERT INTO item VALUES (1, 'row 1') ON CONFLICT DO NOTHING")
    databases[0].execute("DELETE FROM item WHERE id = 9")
    _call(databases[0], name, METHODS[name])


def test_no_operator_is_forgotten() -> None:
    assert set(OPERATORS) == set(operator_classes())


def test_no_method_of_the_hook_is_forgotten() -> None:
    assert set(METHODS) | NOTHING_SENT == set(hook_methods())
    assert not set(METHODS) & NOTHING_SENT


@pytest.mark.parametrize(("name", "argument", "annotation"), _OPERATOR_ARGUMENTS)
def test_an_operator_runs_no_argument(
    databases: list[Database], name: str, argument: str, annotation: str
) -> None:
    kind = operator_classes()[name]
    base = {**OPERATORS[name], **INSTEAD.get((name, argument), {})}
    value = base.get(argument)
    if value is HANDLE:
        value = _new_handle()
    for payload in _payloads(annotation):
        for attacked in attacks(value, payload):
            what = f"{name}({argument}={attacked!r})"
            try:
                _run(kind, {**base, argument: attacked})
            except Exception as error:  # noqa: BLE001 - refused, in whatever way
                _demand_its_place(what, error)
        _check(databases, f"{name}, {argument}, {payload!r}")


@pytest.mark.parametrize(("name", "argument", "annotation"), _METHOD_ARGUMENTS)
def test_the_hook_runs_no_argument(
    databases: list[Database], name: str, argument: str, annotation: str
) -> None:
    base = METHODS[name]
    value = base.get(argument)
    if value is HANDLE:
        value = _new_handle()
    for payload in _payloads(annotation):
        for attacked in attacks(value, payload):
            if annotation == "KeySource" and isinstance(attacked, str):
                continue  # a query for the keys, of the Dag's author
            what = f"{name}({argument}={attacked!r})"
            try:
                _call(databases[0], name, {**base, argument: attacked})
            except Exception as error:  # noqa: BLE001 - refused, in whatever way
                _demand_its_place(what, error)
        _check(databases, f"{name}, {argument}, {payload!r}")


def _call(source: Database, name: str, arguments: Mapping[str, Any]) -> None:
    with _task(), DblinkHook(dblink_conn_id="source") as hook:
        if name in ("fetch", "close"):
            hook.open("c", "SELECT id FROM item")
        if name == "disconnect":
            hook.connect("far", "source")
        given = getattr(hook, name)(**_with_handle(arguments))
        if name == "batches":
            list(given)
    if name.startswith("build_sql"):  # is made to be run
        for statement in [given] if isinstance(given, str) else given:
            source.execute(statement.replace("%", "%%"))
