"""The same calls to this package and to PostgreSQL's own dblink, and the answers of both.

:class:`Ours` and :class:`Dblinks` have the same methods, one per function of dblink. A scenario is a list of
calls. :func:`outcome` makes a call and returns its outcome for a comparison; :func:`after` returns the
effects that the calls left behind.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import sql

from airflow_dblink.core.builders import statements
from airflow_dblink.core.errors import DblinkError
from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.server.target import Target
from tests.databases import Database

Outcome = tuple[Any, ...]
Call = tuple[Any, ...]

#: Column definition lists; only the extension needs them.
ONE = "a int"
TAG = "tag text"

CONNECT = ("connect", "x")
TABLE = ("exec", "CREATE TABLE t (a int PRIMARY KEY)")

TIMEOUT_S = 60.0  # no call takes that long, unless it hangs
LOG = "airflow_dblink"
# dblink hides the server's own notices, and we log them.
_SERVERS_MESSAGES = "airflow_dblink.core.server.notices"
# dblink's own errors and libpq's, to which we add a hint.
_HINTED = ("08003", "08006", "22023", "2202E", "25P02", "42710", "2F003", "XX000")
# dblink's own notices. Ours are warnings in the log, with no SQLSTATE or another one.
_PLAIN_NOTICES = ("00000", "42622")


class _Heard(logging.Handler):
    """Warnings that stand for dblink's notices."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notices: list[Outcome] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _SERVERS_MESSAGES:
            return
        error = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if isinstance(error, DblinkError) and not error.message.startswith("could not send query"):
            self.notices.append((error.sqlstate, error.message, error.detail, error.context))
        else:
            message = error.message if isinstance(error, DblinkError) else record.getMessage()
            self.notices.append((None, message, None, None))


class _Side(ABC):
    """Events on the server that neither side causes: NOTIFY, the end of a session."""

    database: Database
    _pids: dict[int, str | None]

    def notify(self, statement: str) -> None:
        """Run *statement*, a NOTIFY, in another session."""
        self.database.execute(statement)

    def terminate(self, name: str | None = "x") -> bool:
        """End the link's session."""
        ended = self.database.admin(
            "SELECT pg_terminate_backend(p, 60000) FROM unnest(%s::int[]) p", self._of(name)
        )
        return bool(ended) and all(row[0] for row in ended)

    def lose(self, name: str | None = "x") -> bool:
        """End the link's session, and wait until the link has noticed it."""
        self.terminate(name)
        with suppress(DblinkError, psycopg.Error):
            self.query("SELECT 1", ONE, name)
        return True

    def working(self, name: str = "x") -> bool:
        """Wait until the server runs a statement of the link."""
        active = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s) AND state = 'active'"
        wait_until(lambda: self.database.admin(active, self._of(name)) == [(1,)])
        return True

    def left(self) -> bool:
        """Wait until no link has a session any more."""
        wait_until(lambda: not self.database.admin(_REMOTE, self.database.server.role))
        return True

    def ready(self, name: str = "x") -> int:
        """Poll until the next result is there."""
        wait_until(lambda: self.is_busy(name) == 0)
        return 0

    @abstractmethod
    def query(self, text: str, columns: str, name: str | None = "x", fail: bool = True) -> list[Any]: ...

    @abstractmethod
    def is_busy(self, name: str = "x") -> int: ...

    def _of(self, name: str | None) -> list[int]:
        return [pid for pid, of in self._pids.items() if of == name]


class Ours(_Side):
    """dblink's functions in this package."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.links = Links()
        self._heard = _Heard()
        self.notices = self._heard.notices
        self._pids: dict[int, str | None] = {}

    def __enter__(self) -> Ours:
        logging.getLogger(LOG).addHandler(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(LOG).removeHandler(self._heard)
        self.links.close_all()

    def connect(self, name: str | None, target: Target | None = None) -> str:
        done = self.links.connect(name, target or self.database.target)
        self._pids[self.links.get(name).pgconn.backend_pid] = name
        return done

    def disconnect(self, name: str | None) -> str:
        return self.links.disconnect(name)

    def connections(self) -> list[str]:
        return sorted(self.links.names())

    def query(self, text: str, columns: str, name: str | None = "x", fail: bool = True) -> list[Any]:
        return self.links.get(name).query(text, fail_on_error=fail)

    def exec(self, text: str, name: str | None = "x", fail: bool = True) -> str:
        return self.links.get(name).exec(text, fail_on_error=fail)

    def open(self, cursor: str, text: str, name: str | None = "x", fail: bool = True) -> str:
        return self.links.get(name).open(cursor, text, fail_on_error=fail)

    def fetch(
        self, cursor: str, count: int, columns: str, name: str | None = "x", fail: bool = True
    ) -> list[Any]:
        return self.links.get(name).fetch(cursor, count, fail_on_error=fail)

    def close(self, cursor: str, name: str | None = "x", fail: bool = True) -> str:
        return self.links.get(name).close(cursor, fail_on_error=fail)

    def message(self, name: str | None = "x") -> str:
        return self.links.get(name).error_message()

    def query_once(self, text: str, columns: str, fail: bool = True) -> list[Any]:
        with self.links.one_shot(self.database.target) as link:
            return link.query(text, fail_on_error=fail)

    def exec_once(self, text: str, fail: bool = True) -> str:
        with self.links.one_shot(self.database.target) as link:
            return link.exec(text, fail_on_error=fail)

    def send(self, text: str, name: str = "x") -> int:
        return self.links.get(name).pending.send(text)

    def is_busy(self, name: str = "x") -> int:
        return self.links.get(name).pending.is_busy()

    def result(self, columns: str, name: str = "x", fail: bool = True) -> list[Any]:
        return self.links.get(name).pending.result(fail_on_error=fail)

    def cancel(self, name: str = "x") -> str:
        return self.links.get(name).pending.cancel()

    def get_notify(self, name: str | None = "x") -> list[Outcome]:
        found = self.links.get(name).get_notify()
        return [(n.notify_name, self._pids.get(n.be_pid, "other"), n.extra) for n in found]

    # -- keys and builders: of the link's table here, of the session's own in dblink

    def pkey(self, relname: str) -> list[Any]:
        return [tuple(field) for field in statements.get_pkey(self.links.get("x"), relname)]

    def build(self, kind: str, relname: str, attnums: list[int], *keys: list[str]) -> str:
        build = getattr(statements, f"build_sql_{kind}")
        return str(build(self.links.get("x"), relname, attnums, *keys))


# Not in the schema public, which is emptied after every test.
_EXTENSION = """
SET client_min_messages = warning;
CREATE SCHEMA IF NOT EXISTS extension;
CREATE EXTENSION IF NOT EXISTS dblink SCHEMA extension;
RESET client_min_messages;
SET search_path = public, extension
"""


class Dblinks(_Side):
    """dblink's functions in the extension, called by SQL from a superuser's session."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.notices: list[Outcome] = []
        self._pids: dict[int, str | None] = {}

    def __enter__(self) -> Dblinks:
        self.session = psycopg.connect(self.database.admin_conninfo, autocommit=True)
        self.session.execute(_EXTENSION)
        self.session.add_notice_handler(self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def _notice(self, diag: psycopg.errors.Diagnostic) -> None:
        if diag.sqlstate in _PLAIN_NOTICES:
            self.notices.append((None, _once(diag.message_primary), None, None))
        else:
            message = _once(diag.message_primary)
            self.notices.append((diag.sqlstate, message, diag.message_detail, diag.context))

    def call(self, function: str, *arguments: Any, columns: str = "") -> list[Any]:
        """Return the rows of ``dblink<function>(...)``; an argument that is None is left out."""
        values = sql.SQL(", ").join(map(sql.Literal, (a for a in arguments if a is not None)))
        text = sql.SQL("SELECT * FROM dblink{}({}) {}").format(
            sql.SQL(function), values, sql.SQL(f"AS t({columns})" if columns else "")
        )
        return self.session.execute(text).fetchall()

    def connect(self, name: str | None, target: Target | None = None) -> str:
        conninfo = target.conninfo() if target else self.database.conninfo
        done = str(self.call("_connect", name, conninfo)[0][0])
        pid = self.call("", name, "SELECT pg_backend_pid()", columns=ONE)[0][0]
        self._pids[pid] = name
        return done

    def disconnect(self, name: str | None) -> str:
        return str(self.call("_disconnect", name)[0][0])

    def connections(self) -> list[str]:
        return sorted(self.call("_get_connections")[0][0] or [])

    def query(self, text: str, columns: str, name: str | None = "x", fail: bool = True) -> list[Any]:
        return self.call("", name, text, fail, columns=columns)

    def exec(self, text: str, name: str | None = "x", fail: bool = True) -> str:
        return str(self.call("_exec", name, text, fail)[0][0])

    def open(self, cursor: str, text: str, name: str | None = "x", fail: bool = True) -> str:
        return str(self.call("_open", name, cursor, text, fail)[0][0])

    def fetch(
        self, cursor: str, count: int, columns: str, name: str | None = "x", fail: bool = True
    ) -> list[Any]:
        return self.call("_fetch", name, cursor, count, fail, columns=columns)

    def close(self, cursor: str, name: str | None = "x", fail: bool = True) -> str:
        return str(self.call("_close", name, cursor, fail)[0][0])

    def message(self, name: str | None = "x") -> str:
        return str(self.call("_error_message", name)[0][0])

    def query_once(self, text: str, columns: str, fail: bool = True) -> list[Any]:
        return self.call("", self.database.conninfo, text, fail, columns=columns)

    def exec_once(self, text: str, fail: bool = True) -> str:
        return str(self.call("_exec", self.database.conninfo, text, fail)[0][0])

    def send(self, text: str, name: str = "x") -> int:
        return int(self.call("_send_query", name, text)[0][0])

    def is_busy(self, name: str = "x") -> int:
        return int(self.call("_is_busy", name)[0][0])

    def result(self, columns: str, name: str = "x", fail: bool = True) -> list[Any]:
        return self.call("_get_result", name, fail, columns=columns)

    def cancel(self, name: str = "x") -> str:
        return str(self.call("_cancel_query", name)[0][0])

    def get_notify(self, name: str | None = "x") -> list[Outcome]:
        found = self.call("_get_notify", name)
        return [(channel, self._pids.get(pid, "other"), extra) for channel, pid, extra in found]

    def pkey(self, relname: str) -> list[Any]:
        return self.call("_get_pkey", relname)

    def build(self, kind: str, relname: str, attnums: list[int], *keys: list[str]) -> str:
        numbers = " ".join(map(str, attnums))
        return str(self.call(f"_build_sql_{kind}", relname, numbers, len(attnums), *keys)[0][0])


Side = Ours | Dblinks


def outcome(side: Side, call: Call) -> Outcome:
    """Make *call* and return its outcome: its value or its error, and the notices."""
    function, *arguments = call
    side.notices.clear()
    try:
        result: Outcome = ("value", getattr(side, function)(*arguments))
    except DblinkError as error:
        hint = None if error.sqlstate in _HINTED else error.hint
        result = (error.sqlstate, error.message, error.detail, hint, error.context)
    except psycopg.Error as error:
        diag = error.diag
        result = (
            diag.sqlstate,
            _once(diag.message_primary),
            diag.message_detail,
            diag.message_hint,
            diag.context,
        )
    return (*result, *side.notices)


def _once(message: str | None) -> str | None:
    """Return libpq's *message* with each line once: libpq adds the same line for every refused call."""
    return message and "\n".join(dict.fromkeys(message.splitlines()))


_REMOTE = "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"


def after(side: Side) -> Outcome:
    """Return the effects that the calls left: the rows of table t and the state of the remote sessions."""
    database = side.database
    with psycopg.connect(database.admin_conninfo, autocommit=True) as admin:
        states = sorted(admin.execute(_REMOTE, (database.server.role,)).fetchall())
        found = admin.execute("SELECT to_regclass('public.t')").fetchone() != (None,)
        return (states, admin.execute("SELECT * FROM t ORDER BY 1").fetchall() if found else None)


def same(scenario: list[Call], ours: Ours, dblinks: Dblinks) -> None:
    """Assert that both sides answer every call of *scenario* alike, and leave the same effects."""
    for step, call in enumerate(scenario, 1):
        own, theirs = outcome(ours, call), outcome(dblinks, call)
        assert own == theirs, f"step {step}, {call}:\nours:   {own}\ndblink: {theirs}"
    deadline = time.monotonic() + TIMEOUT_S  # a closed session is seen until its backend has ended
    while after(ours) != after(dblinks) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = (after(ours), after(dblinks))
    assert left[0] == left[1], f"afterwards:\nours:   {left[0]}\ndblink: {left[1]}"


def state(database: Database) -> str:
    """Return the state of the one session of the job role, as pg_stat_activity has it."""
    found: list[Any] = []

    def is_alone() -> bool:  # a closed session is seen until its backend has ended
        found[:] = database.admin(_REMOTE, database.server.role)
        return len(found) == 1

    wait_until(is_alone)
    return str(found[0][0])


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until *condition* is true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


# -- a database that serves a whole module: making one takes longer than most tests

_EMPTY = """
DROP SCHEMA IF EXISTS public, "MySchema" CASCADE;
CREATE SCHEMA public AUTHORIZATION pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC
"""


@contextmanager
def emptied(database: Database) -> Iterator[Database]:
    """Lend *database* to one test; empty it afterwards, and fail if a session was left in it."""
    try:
        yield database
    finally:
        left = database.wait_until_left()
        for session in left:
            database.admin("SELECT pg_terminate_backend(%s, 5000)", session[0])
        database.admin(_EMPTY)
    assert not left, f"sessions left in {database.name}: {left}"
