"""SQLAlchemy's engines of the hook: those that PostgresHook's are, under the credential rule."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from airflow.providers.postgres.hooks.postgres import PostgresHook
from sqlalchemy import Engine, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from airflow_dblink.core.errors import CredentialError, RemoteError, UsageError
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database

HOOKS = [PostgresHook, DblinkHook]
OTHER = {"options": "-csearch_path=other"}


@contextmanager
def engine_of(hook: Any, **kwargs: Any) -> Iterator[Engine]:
    engine = hook.get_sqlalchemy_engine(kwargs)
    yield engine
    engine.dispose()


def first(hook: Any, query: str = "SELECT current_schema()", **kwargs: Any) -> Any:
    with engine_of(hook, **kwargs) as engine, engine.connect() as connection:
        return connection.execute(text(query)).scalar()


@pytest.fixture
def other(source: Database) -> Database:
    """Give a database in which a query's rows depend on the search_path."""
    source.execute("CREATE SCHEMA other; CREATE TABLE t (a int); CREATE TABLE other.t (b int)")
    return source


# -- what was asked for


@pytest.mark.parametrize("hook_class", HOOKS)
@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
@pytest.mark.parametrize("is_argument", [True, False])
def test_the_scheme(
    other: Database, add_connection: AddConnection, hook_class: Any, scheme: str, is_argument: bool
) -> None:
    conn_id = add_connection("shop", other, extra={} if is_argument else {"sqlalchemy_scheme": scheme})
    hook = hook_class(conn_id, **({"sqlalchemy_scheme": scheme} if is_argument else {}))

    with engine_of(hook, poolclass=NullPool) as engine:
        assert engine.dialect.driver in (scheme.partition("+")[2] or "psycopg", "psycopg")
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO t VALUES (1)"))
    assert hook.get_table_schema("t") == [{"name": "a", "type": "INTEGER"}]
    hook.inspector.engine.dispose()
    assert other.rows("SELECT a FROM t") == [(1,)]


@pytest.mark.parametrize("hook_class", HOOKS)
@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_query_connect_args_and_listeners(
    other: Database, add_connection: AddConnection, hook_class: Any, scheme: str
) -> None:
    add_connection("shop", other)
    hook = hook_class("shop", sqlalchemy_scheme=scheme)
    assert first(hook) == "public"
    assert first(hook, connect_args=OTHER) == "other"
    with engine_of(hook) as engine:

        @event.listens_for(engine, "do_connect")
        def connecting(_dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]) -> None:
            cparams["options"] = "-csearch_path=other"

        with engine.connect() as connection:
            assert connection.execute(text("SELECT current_schema()")).scalar() == "other"

    add_connection("asked", other, extra={"sqlalchemy_query": OTHER})
    hook = hook_class("asked", sqlalchemy_scheme=scheme)
    assert first(hook) == "other"
    assert [column["name"] for column in hook.get_table_schema("t")] == ["b"]
    hook.inspector.engine.dispose()


@pytest.mark.parametrize("hook_class", HOOKS)
def test_a_cursor_factory_is_taken(source: Database, add_connection: AddConnection, hook_class: Any) -> None:
    add_connection("shop", source)
    with engine_of(hook_class("shop"), connect_args={"cursor_factory": psycopg.ClientCursor}) as engine:
        raw = engine.raw_connection()
        assert isinstance(raw.cursor(), psycopg.ClientCursor)
        raw.close()


@pytest.mark.parametrize("hook_class", HOOKS)
def test_get_df_reads_where_the_query_says(
    other: Database, add_connection: AddConnection, hook_class: Any
) -> None:
    add_connection("asked", other, extra={"sqlalchemy_query": OTHER})
    other.execute("INSERT INTO t VALUES (1); INSERT INTO other.t VALUES (2)")

    class Closing(hook_class):  # type: ignore[misc] # get_df leaves its engine's connections to the collector
        def get_sqlalchemy_engine(self, engine_kwargs: Any = None) -> Engine:
            engine: Engine = super().get_sqlalchemy_engine({"poolclass": NullPool, **(engine_kwargs or {})})
            return engine

    hook = Closing("asked", sqlalchemy_scheme="postgresql+psycopg2")
    assert hook.get_df("SELECT * FROM t").to_dict("list") == {"b": [2]}
    # By get_conn(), which the query isn't for.
    chunks = list(hook.get_df_by_chunks("SELECT * FROM t", chunksize=1))
    assert [chunk.to_dict("list") for chunk in chunks] == [{"a": [1]}]
    with engine_of(hook) as engine:
        hook.get_df("SELECT 7 AS b").to_sql("made", engine, index=False)
    assert other.rows("SELECT b FROM other.made") == [(7,)]


@pytest.mark.parametrize("hook_class", HOOKS)
@pytest.mark.parametrize("driver", ["psycopg_async", "asyncpg"])
def test_an_async_driver_is_for_an_async_engine(
    source: Database, add_connection: AddConnection, hook_class: Any, driver: str
) -> None:
    async def ask() -> Any:
        engine = AsyncEngine(
            hook_class("shop", sqlalchemy_scheme=f"postgresql+{driver}").get_sqlalchemy_engine()
        )
        async with engine.connect() as connection:
            answer = (await connection.execute(text("SELECT current_database()"))).scalar()
        await engine.dispose()
        return answer

    add_connection("shop", source)
    assert asyncio.run(ask()) == source.name


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_session_settings_and_options_are_in_every_engine(
    source: Database, add_connection: AddConnection, scheme: str
) -> None:
    extra = {"session_settings": {"work_mem": "9MB"}, "application_name": "mine"}
    add_connection("shop", source, conn_type="dblink", extra=extra)
    hook = DblinkHook("shop", sqlalchemy_scheme=scheme)
    assert first(hook, "SHOW work_mem") == "9MB"
    assert first(hook, "SHOW application_name") == "mine"


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_an_error_of_session_settings_names_the_connection(
    source: Database, add_connection: AddConnection, scheme: str
) -> None:
    add_connection("shop", source, conn_type="dblink", extra={"session_settings": {"work_mem": "much"}})

    with pytest.raises(RemoteError, match=r"(?s)'shop': .*work_mem.* 22023") as caught:
        first(DblinkHook("shop", sqlalchemy_scheme=scheme))

    assert "applying session_settings" in (caught.value.context or "")
    assert source.wait_until_left() == []


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_a_token_is_asked_for_at_each_connecting(
    source: Database, add_connection: AddConnection, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    add_connection("shop", source, extra={"iam": True})
    tokens = ["expired", source.server.role_password]

    def token(hook: DblinkHook, connection: Any) -> tuple[str, str, int]:
        return connection.login, tokens[0], connection.port

    monkeypatch.setattr(DblinkHook, "get_iam_token", token)
    with engine_of(DblinkHook("shop", sqlalchemy_scheme=scheme), poolclass=NullPool) as engine:
        with pytest.raises(OperationalError):
            engine.connect()
        tokens.pop(0)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT current_database()")).scalar() == source.name


def test_a_driver_that_is_not_libpqs_leaves_nothing_out_that_matters(
    source: Database, add_connection: AddConnection, caplog: pytest.LogCaptureFixture
) -> None:
    asyncpg = "postgresql+asyncpg"
    for extra in ({"sslmode": "verify-full"}, OTHER, {"sslrootcert": "x"}):
        add_connection("shop", source, extra=extra)
        with pytest.raises(UsageError, match=f"'{next(iter(extra))}' of the connection is libpq's") as caught:
            _ = DblinkHook("shop", sqlalchemy_scheme=asyncpg).sqlalchemy_url
        assert "'shop'" in str(caught.value)
    add_connection("shop", source, extra={"sslmode": "prefer", "keepalives_idle": 30})
    url = DblinkHook("shop", sqlalchemy_scheme=asyncpg).sqlalchemy_url
    assert (url.host, url.port, dict(url.query)) == (source.server.host, int(source.server.port), {})
    said = {"sslmode": "verify-full", "sqlalchemy_query": {"ssl": "verify-full"}}
    add_connection("shop", source, extra=said)
    assert dict(DblinkHook("shop", sqlalchemy_scheme=asyncpg).sqlalchemy_url.query) == {"ssl": "verify-full"}


# -- the URL


@pytest.mark.parametrize("host", ["db.example.org", "10.0.0.1", "::1"])
def test_one_host_is_in_the_authority(source: Database, add_connection: AddConnection, host: str) -> None:
    add_connection("shop", source, host=host, port=5433, extra={"sslmode": "require"})
    hook = DblinkHook("shop")
    for url in (hook.sqlalchemy_url, make_url(hook.get_uri())):
        assert (url.host, url.port, dict(url.query)) == (host, 5433, {"sslmode": "require"})
        assert (url.username, url.database) == (source.server.role, source.name)


@pytest.mark.parametrize(
    ("host", "port", "query"),
    [
        ("a,b", 5433, {"host": "a,b", "port": "5433,5433"}),
        ("/var/run/postgresql", 5433, {"host": "/var/run/postgresql", "port": "5433"}),
        ("/var/run/postgresql", None, {"host": "/var/run/postgresql"}),
    ],
)
def test_several_hosts_and_sockets_are_in_the_query(
    source: Database, add_connection: AddConnection, host: str, port: int | None, query: dict[str, str]
) -> None:
    add_connection("shop", source, host=host, port=port)
    url = DblinkHook("shop").sqlalchemy_url
    assert (url.host, url.port, dict(url.query)) == (None, None, query)


def test_text_of_the_url_shows_no_secret(source: Database, add_connection: AddConnection) -> None:
    secrets = {"sslpassword": "geheim1", "sqlalchemy_query": {"sslpassword": "geheim2"}}
    add_connection("shop", source, extra=secrets)
    hook = DblinkHook("shop")
    with engine_of(hook) as engine:
        for shown in (hook.sqlalchemy_url, engine.url, engine):
            for text_of_it in (str(shown), repr(shown)):
                assert "geheim" not in text_of_it
                assert source.server.role_password not in text_of_it
    assert make_url(hook.get_uri()).query["sslpassword"] == "geheim1"
    assert make_url(hook.get_uri()).password == source.server.role_password


# -- the credential rule


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_the_rule_holds_for_what_is_given_anywhere(
    source: Database, add_connection: AddConnection, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    password = source.server.role_password
    monkeypatch.setenv("PGPASSWORD", password)
    add_connection("bare", source, password=None)
    hook = DblinkHook("bare", sqlalchemy_scheme=scheme)

    with engine_of(hook) as engine, pytest.raises(CredentialError):
        engine.connect()
    with pytest.raises(CredentialError):
        _ = hook.sqlalchemy_url
    assert first(hook, "SELECT 1", connect_args={"password": password}) == 1
    with engine_of(hook) as engine:

        @event.listens_for(engine, "do_connect")
        def connecting(_dialect: Any, _record: Any, _cargs: Any, cparams: dict[str, Any]) -> None:
            cparams["password"] = password

        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
    # A certificate that nobody asked for doesn't let the worker's password in.
    add_connection("bare", source, password=None, extra={"sslcert": "/nowhere/c.pem"})
    with engine_of(DblinkHook("bare", sqlalchemy_scheme=scheme)) as engine, pytest.raises(CredentialError):
        engine.connect()
    assert source.wait_until_left() == []
    free = DblinkHook("bare", sqlalchemy_scheme=scheme, password_required=False)
    assert first(free, "SELECT 1") == 1


def test_a_connection_that_somebody_else_makes_is_his(
    source: Database, add_connection: AddConnection
) -> None:
    add_connection("bare", source, password=None)
    made = first(DblinkHook("bare"), creator=lambda: psycopg.connect(source.conninfo))
    assert made == "public"


def test_an_engine_from_the_uri_connects(source: Database, add_connection: AddConnection) -> None:
    add_connection("shop", source)
    engine = create_engine(DblinkHook("shop").get_uri(), poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT current_database()")).scalar() == source.name
