"""Which connection is the hook's own, and what of psycopg its Extra may say: PostgresHook's ways, both."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import Connection

from airflow_dblink.core.errors import UsageError
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database

HOOKS = [PostgresHook, DblinkHook]
WHERE = "SELECT current_database()"


def connection_to(database: Database, conn_id: str = "made", **fields: Any) -> Connection:
    params = database.params
    given: dict[str, Any] = {
        "conn_type": "postgres",
        "host": params["host"],
        "port": int(params["port"]),
        "login": params["user"],
        "password": params["password"],
        "schema": params["dbname"],
    }
    return Connection(conn_id=conn_id, **{**given, **fields})


def where_all_lead(hook: DblinkHook, conn_id: str | None = None) -> set[Any]:
    """Return the databases that everything of *hook* leads to which goes to its own connection."""
    engine = hook.get_sqlalchemy_engine()
    with engine.connect() as connection:
        found = [connection.exec_driver_sql(WHERE).scalar()]
    engine.dispose()
    with hook, hook.get_conn() as get_conn, hook.open_direct(conn_id or hook.conn_id) as direct:
        found += [link.execute(WHERE).fetchone()[0] for link in (get_conn, direct)]  # type: ignore[index]
        found += [hook.get_first(WHERE)[0], hook.query(WHERE)[0][0]]
    found += [hook.target().params["dbname"], asyncio.run(hook.atarget()).params["dbname"]]
    return set(found)


# -- given


@pytest.mark.parametrize("hook_class", HOOKS)
def test_a_connection_that_is_given_is_taken(source: Database, hook_class: Any) -> None:
    assert hook_class(connection=connection_to(source)).get_first(WHERE) == (source.name,)


def test_everything_leads_to_the_connection_that_is_given(
    source: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DBLINK_DEFAULT", warehouse.uri)
    assert where_all_lead(DblinkHook(connection=connection_to(source))) == {source.name}
    named = DblinkHook("warehouse", connection=connection_to(source))
    assert (named.conn_id, where_all_lead(named)) == ("warehouse", {source.name})
    # Other links are looked up.
    with DblinkHook(connection=connection_to(source)) as hook:
        hook.connect("w", "warehouse")
        assert hook.query(WHERE, connname="w") == [(warehouse.name,)]
        assert hook.conn_id == "made"  # in handles of jobs, errors and metrics


def test_one_without_a_type_is_taken_and_one_of_another_refused(source: Database) -> None:
    untyped = connection_to(source)
    untyped.conn_type = None
    assert DblinkHook(connection=untyped).get_first(WHERE) == (source.name,)
    with pytest.raises(UsageError, match="'mysql'"):
        DblinkHook(connection=connection_to(source, conn_type="mysql")).get_conn()


def test_a_connection_that_is_set_is_taken(source: Database, warehouse: Database) -> None:
    hook = DblinkHook("warehouse")
    hook.connection = connection_to(source)
    assert where_all_lead(hook) == {source.name}


# -- replaced


@pytest.mark.parametrize("hook_class", HOOKS)
def test_a_subclass_may_look_up_in_its_own_way(source: Database, hook_class: Any) -> None:
    class Own(hook_class):  # type: ignore[misc] # both
        @classmethod
        def get_connection(cls, conn_id: str) -> Connection:
            return connection_to(source, conn_id)

    assert Own("nowhere").get_first(WHERE) == (source.name,)
    if hook_class is DblinkHook:
        assert where_all_lead(Own("nowhere")) == {source.name}


def test_a_subclass_may_look_up_asynchronously_in_its_own_way(source: Database, warehouse: Database) -> None:
    class Own(DblinkHook):
        @classmethod
        async def aget_connection(cls, conn_id: str) -> Connection:
            return connection_to(source, conn_id)

    assert asyncio.run(Own("warehouse").atarget()).params["dbname"] == source.name
    assert asyncio.run(Own("warehouse").atarget("x")).params["dbname"] == source.name


@pytest.mark.parametrize("hook_class", HOOKS)
def test_a_test_may_replace_the_look_up(
    source: Database, hook_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_class, "get_connection", lambda *_: connection_to(source))
    assert hook_class("nowhere").get_first(WHERE) == (source.name,)
    if hook_class is DblinkHook:
        assert where_all_lead(DblinkHook("nowhere")) == {source.name}
    monkeypatch.undo()
    hook = hook_class("nowhere")
    hook.get_connection = lambda _: connection_to(source)
    assert hook.get_first(WHERE) == (source.name,)


# -- its id


@pytest.mark.parametrize("hook_class", HOOKS)
def test_the_id_can_be_set_as_subclasses_do(source: Database, hook_class: Any) -> None:
    class Named(hook_class):  # type: ignore[misc] # both
        conn_name_attr = "conn_id"

    class Storing(hook_class):  # type: ignore[misc] # both
        def __init__(self, conn_id: str, **kwargs: Any) -> None:
            super().__init__(conn_id, **kwargs)
            self.conn_id = conn_id

    for hook in (Named("source"), Named(conn_id="source"), Storing("source")):
        assert hook.get_conn_id() == hook.conn_id == "source"
        assert hook.get_first(WHERE) == (source.name,)


def test_an_id_that_is_set_is_the_one_that_counts(source: Database, warehouse: Database) -> None:
    hook = DblinkHook("warehouse")
    assert hook.get_first(WHERE) == (warehouse.name,)
    hook.conn_id = "source"
    assert (hook.dblink_conn_id, where_all_lead(hook)) == ("source", {source.name})
    hook.dblink_conn_id = "warehouse"
    assert (hook.conn_id, asyncio.run(hook.atarget()).params["dbname"]) == ("warehouse", warehouse.name)
    assert hook.get_first(WHERE) == (warehouse.name,)


# -- Extra


@pytest.mark.parametrize("hook_class", HOOKS)
def test_extra_comes_before_the_fields(
    source: Database, add_connection: AddConnection, hook_class: Any
) -> None:
    extra = {"dbname": source.name, "host": source.server.host, "options": "-cwork_mem=9MB"}
    add_connection("shop", source, host="no-such-host.invalid", schema="nope", extra=extra)
    assert hook_class("shop").get_first("SELECT current_database(), current_setting('work_mem')") == (
        source.name,
        "9MB",
    )


@pytest.mark.parametrize("hook_class", HOOKS)
@pytest.mark.parametrize(
    ("extra", "autocommit", "threshold"),
    [({"autocommit": True, "prepare_threshold": 3}, True, 3), ({"prepare_threshold": None}, False, None)],
)
def test_psycopgs_own_arguments_are_taken(
    source: Database,
    add_connection: AddConnection,
    hook_class: Any,
    extra: dict[str, Any],
    autocommit: bool,
    threshold: int | None,
) -> None:
    add_connection("shop", source, conn_type=hook_class.conn_type, extra=extra)
    with hook_class("shop").get_conn() as connection:
        assert (connection.autocommit, connection.prepare_threshold) == (autocommit, threshold)
    if hook_class is DblinkHook:  # Airflow's own operators hand Extra on
        ask = SQLExecuteQueryOperator(task_id="ask", conn_id="shop", sql="SELECT 1")
        assert ask.get_db_hook().get_first("SELECT 1") == (1,)
        with DblinkHook("shop") as hook:
            assert hook.link().connection.autocommit


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"autocommit": "perhaps"}, "'autocommit' of the connection is 'perhaps'"),
        ({"prepare_threshold": "x"}, "'prepare_threshold' of the connection is 'x'"),
        ({"row_factory": "dict_row"}, "'row_factory' of the connection .*\n.*dictcursor"),
        ({"cursor_factory": "ClientCursor"}, "'cursor_factory' of the connection .*\n.*get_conn"),
        ({"context": {}}, "'context' of the connection"),
    ],
)
def test_what_cannot_be_taken_is_named_with_what_to_do(
    source: Database, add_connection: AddConnection, extra: dict[str, Any], said: str
) -> None:
    add_connection("shop", source, extra=extra)
    for hook in (DblinkHook("shop"), DblinkHook("shop", **extra)):
        with pytest.raises(UsageError, match=said) as caught:
            hook.get_conn()
        assert "'shop'" in str(caught.value)
