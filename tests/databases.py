"""A new, empty database on a running server, as the tests see it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Composed, Identifier

from airflow_dblink.core.server.target import Target
from airflow_dblink.embedded.server import Server

Row = tuple[Any, ...]

_LEFT_OVER = """
SELECT pid, application_name, state, query FROM pg_stat_activity
 WHERE datname = %s AND backend_type IN ('client backend', 'parallel worker')
"""
_PREPARED = "SELECT gid FROM pg_prepared_xacts WHERE database = %s"
_LEAVES_S = 25.0  # pg_stat_activity shows a closed session until its backend has ended
# One open superuser session per server, in the database postgres: a login per question costs more than the
# question. These sessions end with this process.
_ADMINS: dict[Server, psycopg.Connection] = {}


@dataclass(frozen=True)
class Database:
    """One database, owned by the job role, which isn't superuser.

    :ivar conn_id: id of the Airflow connection that leads here (``AIRFLOW_CONN_...`` is set).
    :ivar server: its server.
    :ivar name: its name on the server.
    """

    conn_id: str
    server: Server
    name: str

    @property
    def conninfo(self) -> str:
        """Connection string for libpq of the job role, password included."""
        return self.server.conninfo(dbname=self.name)

    @property
    def admin_conninfo(self) -> str:
        """Connection string for libpq of the superuser."""
        return self.server.conninfo(dbname=self.name, superuser=True)

    @property
    def params(self) -> dict[str, Any]:
        """Parameters for libpq of the job role."""
        return dict(conninfo_to_dict(self.conninfo))

    @property
    def target(self) -> Target:
        """The target for the core's connections."""
        return Target(self.conn_id, self.params)

    @property
    def uri(self) -> str:
        """Value of an ``AIRFLOW_CONN_...`` variable, of type ``postgres``."""
        role, password = (quote(part, safe="") for part in (self.server.role, self.server.role_password))
        return f"postgres://{role}:{password}@{self.server.host}:{self.server.port}/{self.name}"

    def execute(self, statement: str, *params: Any) -> str:
        """Run *statement* as the job role, committed at once; return the command tag."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            return connection.execute(statement.encode(), params or None).statusmessage or ""

    def rows(self, query: str, *params: Any) -> list[Row]:
        """Return the rows of *query*, run as the job role."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            return connection.execute(query.encode(), params or None).fetchall()

    def admin(self, statement: str, *params: Any) -> list[Row]:
        """Run *statement* as the superuser, committed at once; return its rows, if it has any."""
        with psycopg.connect(self.admin_conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

    def sessions(self) -> list[Row]:
        """Return (pid, application_name, state, query) of the sessions in this database."""
        return _admin(self.server).execute(_LEFT_OVER, (self.name,)).fetchall()

    def wait_until_left(self, timeout_s: float = _LEAVES_S) -> list[Row]:
        """Wait until no session is in this database; return those that are left after *timeout_s*."""
        deadline = time.monotonic() + timeout_s
        while self.sessions() and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.sessions()  # once more: this process may have stood still meanwhile


def _admin(server: Server) -> psycopg.Connection:
    """Return the open superuser session of *server*, or a new one if the server was down meanwhile."""
    admin = _ADMINS.get(server)
    if admin is not None and not admin.closed:
        try:
            admin.execute("")
            return admin
        except psycopg.OperationalError:
            admin.close()
    admin = psycopg.connect(server.conninfo(dbname="postgres", superuser=True), autocommit=True)
    _ADMINS[server] = admin
    return admin


def _insist(server: Server, statement: Composed) -> None:
    """Run *statement* again while an autovacuum worker doesn't end within PostgreSQL's own five seconds."""
    for tries_left in (3, 2, 1, 0):
        try:
            _admin(server).execute(statement)
            return
        except psycopg.errors.ObjectInUse:
            if not tries_left:
                raise


@contextmanager
def new_database(server: Server, conn_id: str) -> Iterator[Database]:
    """Make an empty database; drop it afterwards, by force, and fail if a session was left in it."""
    name = f"{conn_id}_{uuid4().hex[:12]}"
    identifier = Identifier(name)
    create = SQL("CREATE DATABASE {} OWNER {}").format(identifier, Identifier(server.role))
    _insist(server, create)
    database = Database(conn_id, server, name)
    try:
        yield database
    finally:
        left = database.wait_until_left()
        prepared = _admin(server).execute(_PREPARED, (name,)).fetchall()
        _insist(server, SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))
    assert not left, f"sessions left in {name}: {left}"
    assert not prepared, f"prepared transactions left in {name}: {prepared}"
