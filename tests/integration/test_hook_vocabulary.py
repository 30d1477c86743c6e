"""The hook's functions beyond what links do by themselves: where names lead, and Airflow's stats."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics.stats_utils import get_stats_factory

from airflow_dblink.core.errors import CredentialError, DblinkError, TransientError, UsageError
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.fetch import DblinkFetchOperator
from tests.conftest import AddConnection
from tests.databases import Database


@pytest.fixture
def hook(source: Database, warehouse: Database) -> Iterator[DblinkHook]:
    with DblinkHook(dblink_conn_id="warehouse") as hook:
        yield hook


DATABASE = "SELECT current_database()"


# -- connection strings


def test_connect_takes_a_connection_string_or_a_uri(hook: DblinkHook, source: Database) -> None:
    assert hook.connect("string", source.conninfo) == "OK"
    assert hook.connect("uri", source.uri) == "OK"
    assert hook.connect(None, source.uri.replace("postgres://", "postgresql://")) == "OK"

    for connname in ("string", "uri", None):
        assert hook.query(DATABASE, connname=connname) == [(source.name,)]


def test_a_connection_string_is_under_the_credential_rule(
    hook: DblinkHook, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = source.params
    monkeypatch.setenv("PGPASSWORD", params.pop("password"))
    without = " ".join(f"{key}={value}" for key, value in params.items())

    calls: list[Callable[[], Any]] = [
        lambda: hook.connect("x", without),
        lambda: hook.query("SELECT 1", connname=without),
    ]
    for call in calls:
        with pytest.raises(CredentialError, match="password or GSSAPI delegated credentials required"):
            call()
    assert hook.connect_u("x", without) == "OK"
    assert hook.query(DATABASE, connname="x") == [(source.name,)]


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=localhost password=ge heim",
        "host=localhost password='ge heim",
        "host=localhost password=geheim nonsense=1",
        "postgresql://user:ge%heim@localhost/db",
        "postgresql://user:geheim@localhost:port/db",
        "postgresql://user:geheim@localhost/db?nonsense=1",
        "postgresql://user:geheim@[::1/db",
        "postgresql://user:ge@heim@localhost/db",
        "postgresql://user:ge/heim@localhost/db",
        "postgresql://user:geheim/1@localhost/db",
        "postgresql+psycopg2://user:geheim@localhost/db",
        " postgresql://user:geheim@localhost/db",
        "host=localhost password=x geheim=x",
        "host=localhost password=x\0geheim",
    ],
)
def test_an_unreadable_connection_string_is_told_without_its_password(
    hook: DblinkHook, conninfo: str
) -> None:
    calls: list[Callable[[], str]] = [
        lambda: hook.connect("x", conninfo),
        lambda: hook.exec("SELECT 1", connname=conninfo),
    ]
    for call in calls:
        with pytest.raises(DblinkError) as caught:
            call()
        assert caught.value.sqlstate == "08001"
        assert "heim" not in str(caught.value)
        assert "heim" not in str(caught.value.args)


def test_a_string_that_leads_nowhere_is_told_without_its_password(hook: DblinkHook) -> None:
    with pytest.raises(TransientError, match=r"'127.0.0.1:1/crm'.*could not establish") as caught:
        hook.connect("x", "postgresql://user:geheim@127.0.0.1:1/crm")
    assert "refused" in str(caught.value)
    assert "geheim" not in str(caught.value.args)


def test_a_connection_string_never_reaches_the_connection_store(
    hook: DblinkHook, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(DblinkHook, "target", lambda _, conn_id=None: asked.append(conn_id))

    hook.connect("x", source.conninfo)
    hook.connect("y", source.uri)
    hook.query("SELECT 1", connname=source.uri)
    with pytest.raises(UsageError, match="not available"):
        hook.fetch("c", 1, connname=source.conninfo)

    assert asked == []


# -- names


def test_an_unknown_name_tells_what_is_open_and_what_airflow_knows(hook: DblinkHook) -> None:
    hook.connect("crm", "source")

    for call in (
        lambda: hook.connect("x", "nope"),
        lambda: hook.query("SELECT 1", connname="nope"),
        lambda: hook.exec("SELECT 1", connname="nope"),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert (caught.value.sqlstate, caught.value.message) == ("08001", "could not establish connection")
        assert caught.value.detail == 'missing "=" after "nope" in connection info string'
        assert caught.value.hint == "there is no Airflow connection 'nope' either; open named links: 'crm'"

    for function in ("fetch", "is_busy", "get_result", "cancel_query", "error_message", "get_notify"):
        call = getattr(hook, function)
        with pytest.raises(UsageError) as caught:
            call("c", 1, connname="nope") if function == "fetch" else call("nope")
        assert (caught.value.sqlstate, caught.value.message) == ("08003", 'connection "nope" not available')
        assert caught.value.hint == "open named links: 'crm'; there is no Airflow connection 'nope' either"


def test_a_name_that_is_almost_a_links_is_asked_for(hook: DblinkHook) -> None:
    hook.connect("warehouse_crm", "source")
    hook.connect("other", "source")

    calls: list[Any] = [
        lambda: hook.get_result("warehose_crm"),
        lambda: hook.query("SELECT 1", connname="warehose_crm"),
    ]
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert "open named links: 'warehouse_crm', 'other' (did you mean 'warehouse_crm'?)" in str(
            caught.value
        )


def test_parameters_in_place_of_params_are_told(hook: DblinkHook) -> None:
    given: dict[str, Any] = {"parameters": [1]}
    functions: list[Any] = [hook.query, hook.exec, hook.batches, hook.send_query, hook.send_job]
    for function in functions:
        with pytest.raises(UsageError, match=f"{function.__name__} takes params, not parameters") as caught:
            function("SELECT %s", **given)
        assert "params=[...]" in str(caught.value.hint)
    with pytest.raises(UsageError, match="open takes params, not parameters"):
        hook.open("c", "SELECT %s", **given)


def test_a_literal_percent_sign_among_parameters_is_shown(hook: DblinkHook) -> None:
    with pytest.raises(UsageError, match="do not fit the placeholders") as caught:
        hook.query("SELECT %s\n WHERE 'ab' LIKE 'a%'", [1])
    assert caught.value.place == "LINE 2, column 20:  WHERE 'ab' LIKE 'a%'\n" + " " * 38 + "^"
    assert caught.value.hint == "write %% for a percent sign where parameters are given"
    assert hook.query("SELECT %s WHERE 'ab' LIKE 'a%%'", [1]) == [(1,)]


def test_a_connections_id_in_place_of_a_link_is_told(hook: DblinkHook) -> None:
    with pytest.raises(UsageError, match="'source' is an Airflow connection: open a link to it"):
        hook.open("c", "SELECT 1", connname="source")


def test_a_duplicate_name_is_told_before_a_string_that_makes_no_sense(hook: DblinkHook) -> None:
    hook.connect("x", "source")

    with pytest.raises(UsageError, match="duplicate connection name"):
        hook.connect("x", "garbage")


@pytest.mark.parametrize("connname", [5, b"x", True])
def test_a_name_is_text(hook: DblinkHook, connname: Any) -> None:
    with pytest.raises(UsageError, match="connname must be text"):
        hook.connect(connname, "source")


@pytest.mark.parametrize("operator", [DblinkExecOperator, DblinkFetchOperator])
def test_an_operator_takes_no_link_and_says_why(operator: type[DblinkBaseOperator]) -> None:
    says = r"takes no connname \('crm'\): a link ends with the task"
    with pytest.raises(AirflowFailException, match=says) as caught:
        operator(task_id="late", conn_id="source", sql="SELECT 1", connname="crm")
    assert "DblinkHook in a @task" in str(caught.value)


def test_an_empty_name_or_id_is_never_the_hooks_own(hook: DblinkHook) -> None:
    for call in (lambda: hook.connect("x", ""), lambda: hook.query("SELECT 1", connname="")):
        with pytest.raises(CredentialError):
            call()
    hook.connect("", "source")
    assert hook.get_connections() == [""]


def test_a_password_is_no_name(hook: DblinkHook, caplog: pytest.LogCaptureFixture) -> None:
    secret = "postgresql://user:geheim@localhost/" + 80 * "x"
    calls: list[Callable[[], Any]] = [
        lambda: hook.connect(secret, "source"),
        lambda: hook.open("c", "SELECT 1", connname="host=h password=geheim"),
        lambda: hook.get_notify(secret),
    ]
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert "geheim" not in str(caught.value.args)
    assert "geheim" not in caplog.text


@pytest.mark.parametrize("statement", [5, b"SELECT 1", ["SELECT 1"]])
def test_a_statement_is_text(hook: DblinkHook, statement: Any) -> None:
    for call in (hook.query, hook.exec, hook.send_query, hook.batches):
        with pytest.raises(UsageError, match="sql must be text"):
            call(statement)


def test_the_link_goes_by_keyword_and_the_error_says_so(hook: DblinkHook) -> None:
    with pytest.raises(UsageError, match="params must be a list or a mapping, got str") as caught:
        hook.query("SELECT 1", "crm")
    assert "connname=" in str(caught.value)


def test_the_hooks_own_address_is_not_that_of_other_links(
    source: Database, warehouse: Database, add_connection: AddConnection
) -> None:
    other: dict[str, Any] = {
        "direct_port": source.server.port,
        "pooling_mode": "transaction",
        "options": "-c work_mem=2MB",
    }
    settings = {"lock_timeout": "7s"}
    with DblinkHook(dblink_conn_id="source", session_settings=settings, **other) as hook:
        hook.connect("w", "warehouse")
        hook.connect("string", warehouse.conninfo)
        for connname in ("w", "string"):
            assert hook.query(DATABASE, connname=connname) == [(warehouse.name,)]
            assert hook.query("SHOW work_mem", connname=connname) != [("2MB",)]
            assert hook.query("SHOW lock_timeout", connname=connname) == [("7s",)]
        assert hook.query("SHOW work_mem") == [("2MB",)]


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"takes no statement_timeout.*session_settings"):
        DblinkHook(dblink_conn_id="source", statement_timeout="1s")
    with pytest.raises(TypeError, match=r"takes no postgres_conn_id.*dblink_conn_id"):
        DblinkHook(postgres_conn_id="source")
    hook = DblinkHook(
        dblink_conn_id="source",
        database="d",
        options="-c work_mem=1MB",
        enable_log_db_messages=True,
        log_sql=False,
        sqlalchemy_scheme="postgresql+psycopg",
        sslmode="prefer",
        escape_column_names=True,
        insert_statement_format="INSERT INTO {} {} VALUES ({})",
    )
    assert (hook.schema, hook.sqlalchemy_scheme) == ("d", "postgresql+psycopg")


def test_notifications_are_refused_where_a_pooler_loses_them(
    source: Database, add_connection: AddConnection
) -> None:
    add_connection("pooled", source, conn_type="dblink", extra={"pooling_mode": "transaction"})
    with (
        DblinkHook(dblink_conn_id="pooled") as hook,
        pytest.raises(UsageError, match="pooler in transaction mode"),
    ):
        hook.get_notify()


# -- connections for one call


def test_query_and_exec_connect_for_one_call(hook: DblinkHook, source: Database) -> None:
    assert hook.exec("CREATE TABLE t (a int)", connname="source") == "CREATE TABLE"
    assert hook.exec("BEGIN; INSERT INTO t VALUES (1)", connname=source.conninfo) == "INSERT 0 1"
    assert hook.exec("INSERT INTO t VALUES (2)", connname=source.uri) == "INSERT 0 1"

    assert hook.query("SELECT a FROM t", connname="source") == [(2,)]
    assert hook.get_connections() == []
    assert source.wait_until_left() == []


def test_a_link_comes_before_a_connection_of_the_same_name(hook: DblinkHook, warehouse: Database) -> None:
    hook.connect("source", "warehouse")
    hook.connect("host=nowhere", "warehouse")

    assert hook.query(DATABASE, connname="source") == [(warehouse.name,)]
    assert hook.query(DATABASE, connname="host=nowhere") == [(warehouse.name,)]


# -- asynchronous queries on several links


def test_three_databases_work_at_the_same_time(
    hook: DblinkHook, source: Database, warehouse: Database
) -> None:
    with psycopg.connect(source.conninfo) as one, psycopg.connect(warehouse.conninfo) as other:
        for holder in (one, other):  # until both transactions end
            holder.execute("SELECT pg_advisory_xact_lock(1)")
        for connname, conn_id in (("a", "source"), ("b", "warehouse"), ("c", "source")):
            hook.connect(connname, conn_id)
            query = "SELECT %s FROM pg_advisory_xact_lock_shared(1)"
            assert hook.send_query(query, [connname], connname=connname) == 1
        assert [hook.is_busy(connname) for connname in hook.get_connections()] == [1, 1, 1]

    assert [hook.get_result(connname) for connname in hook.get_connections()] == [
        [("a",)],
        [("b",)],
        [("c",)],
    ]
    assert [hook.get_result(connname) for connname in hook.get_connections()] == [[], [], []]


def test_a_result_comes_in_batches(hook: DblinkHook) -> None:
    hook.send_query("SELECT g FROM generate_series(1, 7) g; SELECT 8")

    assert list(hook.get_result(batch_rows=3)) == [[(1,), (2,), (3,)], [(4,), (5,), (6,)], [(7,)]]
    assert list(hook.get_result(batch_rows=3)) == [[(8,)]]
    assert list(hook.get_result(batch_rows=3)) == []


def test_a_running_query_is_cancelled_when_the_block_is_left_by_an_exception(source: Database) -> None:
    def fail() -> None:
        with DblinkHook(dblink_conn_id="source") as hook:
            hook.send_query("SELECT pg_sleep(60)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert source.wait_until_left() == []


def test_notifications_tell_channel_backend_and_payload(hook: DblinkHook, warehouse: Database) -> None:
    hook.exec("LISTEN done")
    ours = hook.query("SELECT pg_backend_pid()")[0][0]
    hook.exec("NOTIFY done, 'orders'")

    assert hook.get_notify() == [("done", ours, "orders")]
    assert hook.get_notify() == []


# -- Airflow's stats


class StatsD:
    """What StatsD would be told, by UDP."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener

    def told(self) -> list[tuple[str, float]]:
        """Return (name with tags, milliseconds) of the timers since the last call."""
        self.listener.settimeout(0.2)
        lines: list[str] = []
        with suppress(TimeoutError):
            while True:
                lines.append(self.listener.recv(65536).decode())
        return [(name, float(ms.removesuffix("|ms"))) for name, ms in (line.split(":") for line in lines)]


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[StatsD]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        for option, value in {
            "STATSD_ON": "True",
            "STATSD_PORT": str(listener.getsockname()[1]),
            "STATSD_INFLUXDB_ENABLED": "True",  # tags
        }.items():
            monkeypatch.setenv(f"AIRFLOW__METRICS__{option}", value)
        stats.initialize(factory=get_stats_factory(), export_legacy_names=True)  # as a task's process does
        yield StatsD(listener)
    monkeypatch.undo()
    stats.initialize(factory=get_stats_factory(), export_legacy_names=True)


def test_waits_are_timers_tagged_with_the_connection(
    source: Database, warehouse: Database, statsd: StatsD, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, logger="airflow_dblink"),
        DblinkHook(dblink_conn_id="warehouse") as hook,
    ):
        hook.connect("crm", "source")
        hook.query("SELECT pg_sleep(1)", connname="crm")
        hook.exec("SET work_mem = '1MB'", connname="source")
        hook.get_first("SELECT 1")

    told = statsd.told()
    assert [name for name, _ in told] == [
        "airflow.DblinkConnect,conn_id=source",
        "airflow.DblinkGetResult,conn_id=source",
        "airflow.DblinkGetConnect,conn_id=source",
        "airflow.DblinkGetResult,conn_id=source",
        "airflow.DblinkGetConnect,conn_id=warehouse",
    ]
    assert told[1][1] >= 500  # in ms; the server may have slept for a while before anybody waits for it
    messages = [r.getMessage() for r in caplog.records if r.name == "airflow_dblink.core.server.wait_events"]
    assert [message.split(" took ")[0] for message in messages] == [
        "source: DblinkConnect",
        "source: DblinkGetResult",
        "source: DblinkGetConnect",
        "source: DblinkGetResult",
        "warehouse: DblinkGetConnect",
    ]


def test_a_connect_that_fails_is_timed_too(source: Database, statsd: StatsD) -> None:
    with DblinkHook(dblink_conn_id="source") as hook, pytest.raises(TransientError):
        hook.connect("x", "postgresql://user:geheim@127.0.0.1:1/crm")

    assert [name for name, _ in statsd.told()] == ["airflow.DblinkConnect,conn_id=127.0.0.1_1_crm"]
