"""DblinkHook: from Airflow connections to links, under dblink's credential rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from airflow_dblink.core.errors import CredentialError, RemoteError, TransientError, UsageError
from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.server.target import Target
from airflow_dblink.embedded.server import Server, servers
from airflow_dblink.hooks.dblink import DblinkHook
from tests.certificates import use_tls
from tests.conftest import AddConnection
from tests.databases import Database
from tests.debian import postgres_bindir
from tests.own_process import last_line


def _password(database: Database) -> str:
    return database.server.role_password


def test_the_unnamed_link_opens_by_itself_and_named_ones_on_demand(
    source: Database, warehouse: Database
) -> None:
    with DblinkHook(dblink_conn_id="warehouse") as hook:
        assert hook.get_connections() == []
        assert hook.query("SELECT current_database()") == [(warehouse.name,)]
        assert hook.connect("crm", "source") == "OK"
        assert hook.get_connections() == ["crm"]
        assert hook.query("SELECT current_database()", connname="crm") == [(source.name,)]
        assert hook.exec("CREATE TABLE t (a int)", connname="crm") == "CREATE TABLE"
        assert hook.exec("INSERT INTO t SELECT generate_series(1, %s)", [5], connname="crm") == "INSERT 0 5"
        assert hook.open("c", "SELECT a FROM t ORDER BY a", connname="crm") == "OK"
        assert hook.fetch("c", 2, connname="crm") == [(1,), (2,)]
        assert hook.close("c", connname="crm") == "OK"
        assert list(hook.batches("SELECT a FROM t ORDER BY a", batch_rows=3, connname="crm")) == [
            [(1,), (2,), (3,)],
            [(4,), (5,)],
        ]
        assert hook.exec("SELECT 1/0", connname="crm", fail_on_error=False) == "ERROR"
        assert hook.error_message("crm") == "ERROR:  division by zero"
        assert hook.disconnect("crm") == "OK"
        with pytest.raises(UsageError, match='connection "crm" not available'):
            hook.fetch("c", 1, connname="crm")


@pytest.mark.parametrize("function", ["query", "exec", "batches"])
def test_none_is_refused_where_dblink_would_do_nothing(source: Database, function: str) -> None:
    with DblinkHook(dblink_conn_id="source") as hook:
        with pytest.raises(UsageError, match="sql must not be None"):
            getattr(hook, function)(None)
        with pytest.raises(UsageError, match="cursor must be text"):
            hook.open(None, "SELECT 1")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="conn_id must be text"):
            hook.connect("x", None)  # type: ignore[arg-type]


# -- connections that don't work


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"password": "wrong-geheim"}, "password authentication failed"),
        ({"host": "no-such-host.invalid"}, "no-such-host.invalid"),
        ({"port": 1}, "refused"),
        ({"schema": "nope"}, 'database "nope" does not exist'),
    ],
    ids=["password", "host", "port", "database"],
)
def test_an_error_of_connecting_names_connection_and_reason_and_no_password(
    source: Database, add_connection: AddConnection, fields: dict[str, Any], reason: str
) -> None:
    add_connection("broken", source, **fields)
    with DblinkHook(dblink_conn_id="broken") as hook:
        for call in (
            lambda: hook.query("SELECT 1"),
            lambda: hook.connect("x", "broken"),
            hook.get_conn,
            lambda: hook.query("SELECT 1", fail_on_error=False),
        ):
            with pytest.raises(TransientError) as caught:
                call()
            assert caught.value.sqlstate == "08001"
            assert "'broken'" in str(caught.value)
            assert reason in str(caught.value)
            assert "geheim" not in str(caught.value)
            assert _password(source) not in str(caught.value)
        assert hook.get_connections() == []
        fine, message = hook.test_connection()
        assert not fine
        assert reason in message


def test_a_connection_of_another_type_is_refused(source: Database, add_connection: AddConnection) -> None:
    add_connection("files", source, conn_type="mysql")

    with pytest.raises(UsageError, match=r"'files'.*'mysql'"), DblinkHook(dblink_conn_id="files") as hook:
        hook.query("SELECT 1")


@pytest.mark.parametrize(
    ("extra", "field"),
    [({"pooling_mode": "x"}, "pooling_mode"), ({"direct_port": "x"}, "direct_port"), ({"ssl": "x"}, "ssl")],
)
def test_a_wrong_field_is_named(
    source: Database, add_connection: AddConnection, extra: dict[str, Any], field: str
) -> None:
    add_connection("wrong", source, conn_type="dblink", extra=extra)

    with pytest.raises(UsageError, match=field) as caught, DblinkHook(dblink_conn_id="wrong") as hook:
        hook.query("SELECT 1")
    assert "'wrong'" in str(caught.value)
    assert _password(source) not in str(caught.value)


# -- whose identity


def test_a_connection_without_a_credential_is_refused_before_connecting(
    source: Database, add_connection: AddConnection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:*:{_password(source)}\n")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSWORD", _password(source))
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    add_connection("bare", source, password=None, extra={"passfile": str(passfile)})

    with DblinkHook(dblink_conn_id="bare") as hook:
        for call in (lambda: hook.query("SELECT 1"), hook.get_conn, lambda: hook.connect("x", "bare")):
            with pytest.raises(CredentialError) as caught:
                call()
            assert caught.value.sqlstate == "2F003"
        assert hook.connect_u("x", "bare") == "OK"
        assert hook.query("SELECT 1", connname="x") == [(1,)]
    with DblinkHook(dblink_conn_id="bare", password_required=False) as hook:
        assert hook.query("SELECT 1") == [(1,)]
    add_connection("lifted", source, conn_type="dblink", password=None, extra={"password_required": False})
    with DblinkHook(dblink_conn_id="lifted") as hook:
        assert hook.query("SELECT 1") == [(1,)]
    with DblinkHook(dblink_conn_id="lifted", password_required=True) as hook, pytest.raises(CredentialError):
        hook.query("SELECT 1")


@pytest.mark.parametrize(
    "extra", [{"gssdelegation": 1}, {"sslcert": "/nowhere/c.pem"}], ids=["gss", "certificate"]
)
def test_another_credential_does_not_let_the_workers_password_in(
    pair: tuple[Server, Server],
    source: Database,
    monkeypatch: pytest.MonkeyPatch,
    extra: dict[str, Any],
) -> None:
    monkeypatch.setenv("PGPASSWORD", _password(source))
    params = {**source.params, "password": None, **extra}

    with Links() as links, pytest.raises(CredentialError):
        links.connect("x", Target("source", params))


@pytest.fixture
def trusting() -> Iterator[Database]:
    """Give a server that asks nobody for a password."""
    with servers("trusting") as (server,):
        (server.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\n")
        server.restart()
        yield Database("trusting", server, server.dbname)


def test_a_server_that_asks_for_no_password_is_refused(
    trusting: Database, add_connection: AddConnection
) -> None:
    add_connection("trusting", trusting)

    with DblinkHook(dblink_conn_id="trusting") as hook:
        with pytest.raises(CredentialError, match=r"pg_hba\.conf") as caught:
            hook.query("SELECT 1")
        assert caught.value.sqlstate == "2F003"
        assert trusting.wait_until_left() == []
        assert hook.connect_u("x", "trusting") == "OK"
    with DblinkHook(dblink_conn_id="trusting", password_required=False) as hook:
        assert hook.query("SELECT 1") == [(1,)]


# -- for DbApiHook and its users


def test_get_conn_is_new_each_time_and_never_a_links(source: Database) -> None:
    with DblinkHook(dblink_conn_id="source") as hook:
        hook.query("SELECT 1")
        with hook.get_conn() as first, hook.get_conn() as second:
            pids = {first.info.backend_pid, second.info.backend_pid, hook.link().connection.info.backend_pid}
            assert len(pids) == 3
            assert not first.autocommit
        assert hook.query("SELECT 1") == [(1,)]


def test_the_sql_operators_way_works(source: Database) -> None:
    source.execute("CREATE TABLE t (a int, b text[], c jsonb)")
    hook = DblinkHook(dblink_conn_id="source")

    rows = [(1, ["x", "y"], {"k": 1}), (2, [], None)]
    hook.insert_rows("t", rows, target_fields=["a", "b", "c"])
    hook.run("UPDATE t SET a = a + 1", autocommit=True)

    assert hook.get_records("SELECT a, b, c FROM t ORDER BY a") == [(2, ["x", "y"], {"k": 1}), (3, [], None)]
    assert hook.get_first("SELECT count(*) FROM t WHERE a > %s", parameters=(2,)) == (1,)


def test_the_cursor_of_the_connection_is_used(source: Database, add_connection: AddConnection) -> None:
    add_connection("dicts", source, extra={"cursor": "dictcursor"})

    assert DblinkHook(dblink_conn_id="dicts").get_first("SELECT 1 AS a") == {"a": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"extra": {"sslmode": "prefer", "connect_timeout": 5, "keepalives_idle": 30}},
        {"host": "127.0.0.1,localhost"},
        {"extra": {"target_session_attrs": "read-write"}, "host": "127.0.0.1,127.0.0.1"},
    ],
    ids=["plain", "options", "hosts", "hosts and attributes"],
)
def test_sqlalchemy_connects(source: Database, add_connection: AddConnection, fields: dict[str, Any]) -> None:
    add_connection("alchemy", source, **fields)
    engine = create_engine(DblinkHook(dblink_conn_id="alchemy").sqlalchemy_url)

    with engine.connect() as connection:
        assert connection.execute(text("SELECT current_database()")).scalar() == source.name
    engine.dispose()


def test_test_connection_tells_who_answers(source: Database) -> None:
    fine, message = DblinkHook(dblink_conn_id="source").test_connection()

    assert fine
    assert source.name in message
    assert source.server.role in message
    assert "superuser" not in message


# -- settings and poolers


def test_session_settings_are_applied(source: Database, add_connection: AddConnection) -> None:
    settings = {"work_mem": "7MB", "airflow_dblink.tag": "it's"}
    add_connection("tuned", source, conn_type="dblink", extra={"session_settings": settings})
    show = "SELECT current_setting('work_mem'), current_setting('airflow_dblink.tag')"

    with DblinkHook(dblink_conn_id="tuned") as hook:
        assert hook.query(show) == [("7MB", "it's")]
        assert hook.get_first(show) == ("7MB", "it's")
    with DblinkHook(dblink_conn_id="tuned", session_settings={"work_mem": "8MB"}) as hook:
        assert hook.query("SHOW work_mem") == [("8MB",)]


def test_a_wrong_setting_is_the_servers_error(source: Database) -> None:
    hook = DblinkHook(dblink_conn_id="source", session_settings={"work_mem": "much"})

    with hook, pytest.raises(RemoteError, match="work_mem") as caught:
        hook.query("SELECT 1")
    assert caught.value.sqlstate == "22023"


def test_session_settings_need_a_way_around_a_transaction_pooler(
    source: Database, warehouse: Database, add_connection: AddConnection
) -> None:
    extra: dict[str, Any] = {"pooling_mode": "transaction", "session_settings": {"work_mem": "7MB"}}
    add_connection("pooled", source, conn_type="dblink", extra=extra)
    with DblinkHook(dblink_conn_id="pooled") as hook, pytest.raises(UsageError, match="pooler"):
        hook.query("SELECT 1")

    # What the "pooler" leads to answers nobody: only the direct address is used.
    extra |= {"direct_host": source.server.host, "direct_port": source.server.port}
    add_connection("pooled", source, conn_type="dblink", host="no-such-host.invalid", port=1, extra=extra)
    with DblinkHook(dblink_conn_id="pooled") as hook:
        assert hook.query("SHOW work_mem") == [("7MB",)]


# -- memory


MEMORY = """
import json, sys
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.link.registry import Links
from tests.own_process import peak

with Links() as links:
    links.connect("x", Target("source", json.loads(sys.argv[1])))
    query = f"SELECT repeat('x', 1000) FROM generate_series(1, {sys.argv[2]})"
    rows = sum(len(batch) for batch in links.get("x").batches(query, None, 1000))
print(rows, peak())
"""


def test_batches_hold_one_batch_in_memory(source: Database) -> None:
    def peak_of(rows: int) -> int:
        fetched, peak = map(int, last_line(MEMORY, json.dumps(source.params), str(rows)).split())
        assert fetched == rows
        return peak

    assert peak_of(100_000) - peak_of(10_000) < 10_000_000  # of 90 MB more


# -- TLS (the embedded wheel has none)


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[Database, Path]]:
    """Give a server that takes TLS only, and the path of the certificate that signed its own."""
    with servers("secure", bindir=postgres_bindir()) as (server,):
        trusted = use_tls(server, tmp_path, "hostssl all all 127.0.0.1/32 scram-sha-256")
        yield Database("secure", server, server.dbname), trusted


def test_tls(tls: tuple[Database, Path], add_connection: AddConnection, tmp_path: Path) -> None:
    database, certificate = tls
    checked = {"sslrootcert": str(certificate)}
    for extra in (
        {"sslmode": "require"},
        {"sslmode": "verify-ca", **checked},
        {"sslmode": "verify-full", **checked},
    ):
        add_connection("secure", database, extra=extra)
        hook = DblinkHook(dblink_conn_id="secure")
        with hook:
            assert hook.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
        engine = create_engine(hook.sqlalchemy_url)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
        engine.dispose()

    for extra, reason in (
        ({"sslmode": "disable"}, "no pg_hba.conf entry"),
        ({"sslmode": "verify-ca", "sslrootcert": str(tmp_path / "none")}, "root certificate"),
    ):
        add_connection("secure", database, extra=extra)
        with DblinkHook(dblink_conn_id="secure") as hook, pytest.raises(TransientError, match=reason):
            hook.query("SELECT 1")


def test_the_application_name_of_a_connection_reaches_the_server(
    source: Database, add_connection: AddConnection
) -> None:
    add_connection("named", source, extra={"application_name": "mine"})

    with DblinkHook(dblink_conn_id="named") as hook:
        assert hook.query("SHOW application_name") == [("mine",)]
