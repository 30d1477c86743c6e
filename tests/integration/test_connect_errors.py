"""What code catches where a server is away: psycopg's error, SQLAlchemy's from an engine, and ours."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy.exc
from airflow.providers.postgres.hooks.postgres import PostgresHook

from airflow_dblink.core.errors import CredentialError, DblinkError, TransientError, UsageError
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database

CALLS: list[Callable[[Any], Any]] = [
    lambda hook: hook.get_conn(),
    lambda hook: hook.run("SELECT 1"),
    lambda hook: hook.get_first("SELECT 1"),
    lambda hook: hook.insert_rows("t", [(1,)]),
]
ENGINE_CALLS: list[Callable[[Any], Any]] = [
    lambda hook: hook.get_sqlalchemy_engine().connect(),
    lambda hook: hook.get_table_schema("t"),
]
AWAY: list[dict[str, Any]] = [{"port": 1}, {"password": "wrong"}, {"schema": "nope"}]


@pytest.mark.parametrize("fields", AWAY, ids=["port", "password", "database"])
@pytest.mark.parametrize("hook_class", [PostgresHook, DblinkHook])
def test_a_server_that_refuses_is_psycopgs_error_and_sqlalchemys_from_an_engine(
    source: Database, add_connection: AddConnection, hook_class: Any, fields: dict[str, Any]
) -> None:
    hook = hook_class(add_connection("away", source, **fields))

    for call in CALLS:
        with pytest.raises(psycopg.OperationalError):
            call(hook)
    for call in ENGINE_CALLS:
        with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            call(hook)
        assert isinstance(caught.value.orig, psycopg.OperationalError)
        assert source.server.role_password not in str(caught.value)


def test_it_is_our_error_as_well_with_all_it_knows(source: Database, add_connection: AddConnection) -> None:
    hook = DblinkHook(add_connection("away", source, port=1))
    with pytest.raises(TransientError) as caught:
        hook.get_conn()
    error = caught.value

    assert isinstance(error, psycopg.OperationalError)
    assert error.sqlstate == "08001"
    assert error.retryable
    assert error.diag.message_primary is None
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), str(again)) == (type(error), str(error))
    with pytest.raises(sqlalchemy.exc.OperationalError) as engines:
        hook.get_sqlalchemy_engine().connect()
    assert isinstance(engines.value.orig, TransientError)
    assert "'away'" in str(engines.value)


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"password": "wrong"}, "correct the password of the connection, or its login"),
        ({"schema": "nope"}, "correct the database of the connection (field Schema)"),
        ({"port": 1}, "correct host and port of the connection, or start the server"),
        ({"host": "no_such_host.invalid"}, "correct the host of the connection"),
        ({"login": "no_such"}, "correct the password of the connection, or its login"),
        (
            {"host": "127.0.0.1,127.0.0.1", "port": 1},
            "correct host and port of the connection, or start the server",
        ),
    ],
    ids=["password", "database", "port", "host", "login", "two hosts"],
)
def test_the_hint_names_what_is_wrong_and_nothing_else(
    source: Database, add_connection: AddConnection, fields: dict[str, Any], hint: str
) -> None:
    hook = DblinkHook(add_connection("away", source, **fields))
    with pytest.raises(TransientError) as caught:
        hook.get_conn()

    assert caught.value.hint == hint
    assert source.server.role_password not in str(caught.value)


def test_reasons_that_differ_give_the_general_hint(source: Database, add_connection: AddConnection) -> None:
    ports = f"1,{source.server.port}"
    two = {"password": "wrong", "extra": {"host": "127.0.0.1,127.0.0.1", "port": ports}}
    with pytest.raises(TransientError) as caught:
        DblinkHook(add_connection("away", source, **two)).get_conn()

    assert caught.value.hint == "check host, port, database, login and password of the connection"


def test_a_link_says_the_same(source: Database, add_connection: AddConnection) -> None:
    with (
        DblinkHook(add_connection("away", source, port=1)) as hook,
        pytest.raises(psycopg.OperationalError) as caught,
    ):
        hook.query("SELECT 1")
    assert isinstance(caught.value, DblinkError)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"password": None}, CredentialError), ({"extra": {"nonsense": 1}}, UsageError)],
    ids=["credential", "option"],
)
def test_a_connection_to_be_corrected_is_no_server_that_is_away(
    source: Database, add_connection: AddConnection, fields: dict[str, Any], kind: type[DblinkError]
) -> None:
    """Who catches psycopg's OperationalError waits and tries again, which can't help here."""
    hook = DblinkHook(add_connection("wrong", source, **fields))
    for call in (hook.get_conn, lambda: hook.get_sqlalchemy_engine().connect()):
        with pytest.raises(kind) as caught:
            call()
        assert not isinstance(caught.value, psycopg.Error)
