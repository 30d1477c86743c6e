"""The same call through PostgresHook and through DblinkHook, on one database, and its outcome."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import BaseOperator
from airflow.sdk.execution_time.context import set_current_context
from psycopg import sql

from airflow_dblink.hooks.dblink import DblinkHook
from tests.databases import Database
from tests.integration.tasks import context

Call = Callable[["Side"], Any]

#: All calls by their names, which are the functions' in plain words.
CALLS: dict[str, Call] = {}

SEED = """
CREATE TABLE item (id int PRIMARY KEY, name text, price numeric(8, 2), made timestamptz);
INSERT INTO item SELECT n, 'item ' || n, n * 1.5, timestamptz '2026-01-01 00:00+00' + n * interval '1 day'
  FROM generate_series(1, 5) n;
CREATE TABLE pair (a int, b int, "Full Name" text, PRIMARY KEY (b, a));
CREATE TABLE bare (id int, name text);
"""
_RESET = "DROP SCHEMA public CASCADE; CREATE SCHEMA public;" + SEED
# PostgresHook leaves some connections to the garbage collector, and others open.
_END = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"


def call(function: Call) -> Call:
    """Make *function* one of the calls."""
    add(function.__name__.strip("_").replace("_", " "), function)
    return function


def add(name: str, function: Call) -> None:
    """Make *function* one of the calls, by a name of its own."""
    assert name not in CALLS, name
    CALLS[name] = function


@dataclass
class Side:
    """One of the two hooks, whose Airflow connection ``shop`` leads to the database."""

    hook_class: type[PostgresHook]
    database: Database
    folder: Path
    patch: pytest.MonkeyPatch
    opened: list[Any] = field(default_factory=list)

    def connection(self, conn_id: str = "shop", **fields: Any) -> str:
        """Make *conn_id* lead to the database, with *fields* changed; returns it."""
        params = self.database.params
        given = {
            "conn_type": self.hook_class.conn_type,
            "host": params["host"],
            "port": int(params["port"]),
            "login": params["user"],
            "password": params["password"],
            "schema": params["dbname"],
        }
        self.patch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({**given, **fields}))
        return conn_id

    def hook(self, fields: dict[str, Any] | None = None, **arguments: Any) -> Any:
        """Return a new hook with *arguments*; *fields* are the Airflow connection's."""
        arguments.setdefault(self.hook_class.conn_name_attr, self.connection(**(fields or {})))
        return self.hook_class(**arguments)

    def conn(self, fields: dict[str, Any] | None = None, **arguments: Any) -> Any:
        """Return a new connection of a new hook, closed after the call."""
        made = self.hook(fields, **arguments).get_conn()
        self.opened.append(made.close)
        return made

    def engine(self, hook: Any, **arguments: Any) -> Any:
        """Return an engine of *hook*, disposed of after the call."""
        made = hook.get_sqlalchemy_engine(**arguments)
        self.opened.append(made.dispose)
        return made

    def execute(self, operator: BaseOperator) -> Any:
        """Execute *operator* as the task runner does."""
        operator.prepare_template()
        with set_current_context(context(dag_id="dag", task_id=operator.task_id)) as now:
            return operator.execute(now)

    def file(self, content: bytes | None = None) -> str:
        """Return the path of a file with that content, or of none."""
        path = self.folder / "file"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        return str(path)

    def finish(self) -> None:
        """Close what the call opened."""
        for close in self.opened:
            close()
        self.opened.clear()


@dataclass(frozen=True)
class Outcome:
    """The value or the error of a call, and the rows that it left."""

    value: Any
    error: Exception | None
    tables: Any

    def is_like(self, stock: Outcome) -> bool:
        """Whether a program made for *stock* still works: it gets the same value, or an error it catches."""
        if (self.error is None) != (stock.error is None) or self.tables != stock.tables:
            return False
        if stock.error is None:
            return repr(self.value) == repr(stock.value)
        state = getattr(stock.error, "sqlstate", None)
        return isinstance(self.error, type(stock.error)) and state in (
            None,
            getattr(self.error, "sqlstate", None),
        )


def outcome(name: str, side: Side) -> Outcome:
    """Make one call on freshly filled tables."""
    side.database.execute(_RESET)
    value, error = None, None
    try:
        value = CALLS[name](side)
    except Exception as raised:  # noqa: BLE001 - an error is an outcome, too
        error = raised.with_traceback(None)
    finally:
        side.finish()
    return Outcome(value, error, _left(side.database))


def _left(database: Database) -> dict[str, list[Any]]:
    """End all sessions, and return the rows of all tables."""
    with psycopg.connect(database.admin_conninfo, autocommit=True) as admin:
        admin.execute(_END)
        names = sorted(row[0] for row in admin.execute(_TABLES))
        rows = sql.SQL("SELECT t::text FROM {} t ORDER BY 1")
        return {name: admin.execute(rows.format(sql.Identifier("public", name))).fetchall() for name in names}


def both(database: Database, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Side, Side]:
    """Return the stock hook's side and ours."""
    return Side(PostgresHook, database, folder, patch), Side(DblinkHook, database, folder, patch)
