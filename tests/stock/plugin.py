"""Plugin of pytest: runs the providers' tests with DblinkHook instead of PostgresHook.

``AIRFLOW_DBLINK_STOCK_HOOK`` chooses the hook, ``stock`` or ``ours``; ``AIRFLOW_DBLINK_STOCK_OUTCOMES`` names
the file for each test's outcome.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.providers.postgres.hooks import postgres
from airflow.sdk.bases.hook import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from psycopg.conninfo import conninfo_to_dict

from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.hooks.dblink import DblinkHook
from tests.stock import helpers

HOOK, OUTCOMES = "AIRFLOW_DBLINK_STOCK_HOOK", "AIRFLOW_DBLINK_STOCK_OUTCOMES"

_outcomes: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Put everything in its place before the tests are imported."""
    for marker in ("backend(name)", "db_test"):
        config.addinivalue_line("markers", marker)
    helpers.install()
    if os.environ[HOOK] == "ours":
        postgres.PostgresHook = DblinkHook  # type: ignore[misc]
        LinkConnection.connect = classmethod(_connect)  # type: ignore[method-assign, assignment, arg-type]


_real_connect = LinkConnection.connect.__func__  # type: ignore[attr-defined]


def _connect(cls: type[LinkConnection], conninfo: str, **options: Any) -> Any:
    """Call a mock of psycopg's connect with the arguments that the stock hook would give.

    The stock hook gives single arguments; ours gives a connection string with more options in it.
    """
    if not hasattr(psycopg.Connection.connect, "assert_called"):
        return _real_connect(cls, conninfo, **options)
    given: dict[str, Any] = conninfo_to_dict(conninfo)
    for own in ("application_name", "client_encoding"):
        given.pop(own, None)
    given = {"host": None, "port": None, **{k: int(v) if v.isdigit() else v for k, v in given.items()}}
    if "row_factory" in options:
        given["row_factory"] = options["row_factory"]
    return psycopg.Connection.connect(**given)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember how the test ended; a failure of its setup or teardown is its own."""
    bad = report.failed
    if report.when == "call" or bad or report.skipped:
        outcome = "failed" if bad else report.outcome
        if _outcomes.get(report.nodeid) != "failed":
            _outcomes[report.nodeid] = outcome


def pytest_sessionfinish() -> None:
    """Write the outcomes."""
    Path(os.environ[OUTCOMES]).write_text(json.dumps(_outcomes))


@pytest.fixture
def dag_maker() -> helpers.DagMaker:
    """Return the maker of a Dag."""
    return helpers.DagMaker()


@pytest.fixture
def create_connection_without_db(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes an Airflow connection known."""

    def create(connection: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{connection.conn_id.upper()}", connection.as_json())

    return create


@pytest.fixture
def sdk_connection_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no connection be found."""

    def missing(conn_id: str) -> Any:
        raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined")

    monkeypatch.setattr(BaseHook, "get_connection", missing)


@pytest.fixture
def reset_logging_config() -> None:
    """Leave logging as it is."""
