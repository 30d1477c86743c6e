"""Fixtures of all tests: real servers, a new database each, and Airflow connections that lead there.

``source`` and ``warehouse`` are :class:`~tests.databases.Database`; ``AIRFLOW_CONN_SOURCE`` and
``AIRFLOW_CONN_WAREHOUSE`` lead to them. A test that leaves a session or an open transaction in one of
them fails. Other connections are made with ``add_connection``.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from tests.memory import use_memory

# Tests make thousands of databases, ten times faster in memory. A TMPDIR that is set is used instead.
use_memory()
# Airflow reads AIRFLOW_HOME at its first import, and must not find the developer's own home.
_home = tempfile.TemporaryDirectory(prefix="airflow_dblink_home_")  # removed with this process
os.environ["AIRFLOW_HOME"] = _home.name
# A shell's background job begins with SIGINT ignored, and so would every program that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from airflow_dblink.core.link.registry import Links  # noqa: E402
from airflow_dblink.embedded.server import Server, servers  # noqa: E402
from tests.databases import Database, new_database  # noqa: E402
from tests.debian import closing_line  # noqa: E402
from tests.logins import make_logins_cheap  # noqa: E402
from tests.stores import MemoryStore  # noqa: E402
from tests.versions import OTHER_VERSION  # noqa: E402

# The same examples each time, however slow the machine.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


class AddConnection(Protocol):
    """Sets an Airflow connection for one test."""

    def __call__(self, conn_id: str, database: Database | None = None, **fields: Any) -> str:
        """Make *conn_id* lead to *database*, with *fields* (conn_type, host, extra, ...) changed."""


@pytest.fixture(scope="session")
def pair() -> Iterator[tuple[Server, Server]]:
    """Two running servers, ``source`` and ``warehouse``, one pair for the session."""
    with servers("source", "warehouse", settings={"max_wal_size": "1GB"}) as (source, warehouse):
        for server in (source, warehouse):
            make_logins_cheap(server)
        yield source, warehouse


@pytest.fixture
def source(pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Give a new, empty database on the first server; Airflow connection ``source``."""
    with new_database(pair[0], "source") as database:
        monkeypatch.setenv("AIRFLOW_CONN_SOURCE", database.uri)
        yield database


@pytest.fixture
def warehouse(pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Give a new, empty database on the second server; Airflow connection ``warehouse``."""
    with new_database(pair[1], "warehouse") as database:
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", database.uri)
        yield database


@pytest.fixture
def add_connection(monkeypatch: pytest.MonkeyPatch) -> AddConnection:
    """Return a function that sets an Airflow connection for this test and returns its id."""

    def add(conn_id: str, database: Database | None = None, **fields: Any) -> str:
        connection: dict[str, Any] = {"conn_type": "postgres"}
        if database is not None:
            params = database.params
            connection |= {
                "host": params["host"],
                "port": int(params["port"]),
                "login": params["user"],
                "password": params["password"],
                "schema": params["dbname"],
            }
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({**connection, **fields}))
        return conn_id

    return add


@pytest.fixture
def links(source: Database, warehouse: Database) -> Iterator[Links]:
    """Give a registry of links, closed after the test and before the databases are dropped."""
    with Links() as registry:
        yield registry


@pytest.fixture
def is_paused(caplog: pytest.LogCaptureFixture) -> Callable[[], bool]:
    """Return a function that tells whether the log has said that rows wait."""
    caplog.set_level("INFO")
    return lambda: "Paused: pause_while is true on " in caplog.text


@pytest.fixture
def store() -> MemoryStore:
    """Return an empty store of task state."""
    return MemoryStore()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if CI skipped a test: its machine must have all programs that the tests need."""
    if os.environ.get("CI") and _skip_reasons(session.config) and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print one line about the tests that were skipped."""
    reasons = _skip_reasons(config)
    if line := closing_line(reasons):
        terminalreporter.write_line(line, yellow=True)
    for reason in reasons if os.environ.get("CI") else ():
        terminalreporter.write_line(f"skipped, which CI doesn't allow: {reason}", red=True)


def _skip_reasons(config: pytest.Config) -> list[str]:
    """Return the reasons of the skips in the process that reports the tests; in others an empty list."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):  # one of several processes that run tests
        return []
    reasons = [str(report.longrepr) for report in reporter.stats.get("skipped", ())]
    return [reason for reason in reasons if OTHER_VERSION not in reason]
