"""Two tables that differ, and ways to act at a chosen moment of the sync that makes them equal."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from airflow_dblink.core.server.side import Side
from airflow_dblink.embedded.server import Server
from tests.databases import Database
from tests.stores import MemoryStore
from tests.syncs import sync
from tests.transfers import meanwhile

ITEM = "CREATE TABLE item (id bigint PRIMARY KEY, k int NOT NULL, s text) WITH (autovacuum_enabled = off)"
FILL = "INSERT INTO item SELECT i, i % 100, md5(i::text) FROM generate_series(1, 3000) AS i"
# Missing 3, changed 3, extra 2.
DIFFER = """
DELETE FROM item WHERE id % 1000 = 1;
UPDATE item SET s = 'stale secret' WHERE id % 1000 = 2;
INSERT INTO item VALUES (-5, 0, 'extra secret'), (100000, 0, NULL) ON CONFLICT DO NOTHING
"""
# Records the transactions that change the table, by a trigger.
COUNTED = """
CREATE TABLE applied (xid text PRIMARY KEY);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO applied VALUES (pg_current_xact_id()::text) ON CONFLICT DO NOTHING; RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON item FOR EACH STATEMENT EXECUTE FUNCTION note()
"""
#: Ends a session that makes a sync wait, if nobody does; :func:`meanwhile` needs less time.
GIVES_UP = "SET idle_session_timeout = '180s'; SET idle_in_transaction_session_timeout = '180s'"
#: Passes once the gate is open.
GATE = "pg_advisory_xact_lock_shared(7)"
#: The source's rows, once the source's gate is open.
GATED = f"SELECT item.* FROM item, (SELECT {GATE}) AS gate (passed)"  # noqa: S608 - ours
#: A row is written once the destination's gate is open.
GATED_ROWS = f"""
CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM {GATE}; RETURN NEW; END $$;
CREATE TRIGGER pass BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION pass()
"""
#: Constraints are checked, after the changes and before they are verified, once the gate is open.
GATED_CHECK = f"""
CREATE FUNCTION pass_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM {GATE}; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER pass_late AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION pass_late()
"""


def fill(source: Database, warehouse: Database, differ: str = DIFFER) -> None:
    """Make table item on both sides, and the difference on the second."""
    for database in (source, warehouse):
        database.execute(f"{ITEM}; {FILL}; ANALYZE item")
    if differ:
        warehouse.execute(differ)


def rows(database: Database, table: str = "item") -> list[tuple[Any, ...]]:
    """Return all rows of *table*, in order."""
    return database.rows(f"SELECT * FROM {table} ORDER BY 1")  # noqa: S608 - the tests' own name


def applied(database: Database) -> list[str]:
    """Return the transactions that have changed the table, see :data:`COUNTED`."""
    return [xid for (xid,) in database.admin("SELECT xid FROM applied ORDER BY xid::bigint")]


@contextmanager
def closed_gate(database: Database) -> Iterator[Callable[[], None]]:
    """Keep the gate of *database* closed; give the function that opens it."""
    with psycopg.connect(database.admin_conninfo, autocommit=True) as holder:
        holder.execute(GIVES_UP)
        holder.execute("SELECT pg_advisory_lock(7)")

        def open_gate() -> None:
            holder.execute("SELECT pg_advisory_unlock(7)")

        yield open_gate


@contextmanager
def at_gate(database: Database, action: Callable[[], object]) -> Iterator[None]:
    """Keep the gate of *database* closed until somebody waits there, do *action* then, and open it."""
    with closed_gate(database) as open_gate:

        def act() -> None:
            try:
                action()
            finally:
                open_gate()

        with meanwhile(act, lambda: waiting_at_gate(database)):
            yield


def waiting_at_gate(database: Database) -> list[tuple[Any, ...]]:
    """Return the process ids of the sessions that wait at the gate."""
    return database.admin(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    )


def waiting(database: Database, statement: str) -> list[tuple[Any, ...]]:
    """Return the sessions that wait for a lock on a table in a statement that begins with *statement*."""
    return database.admin(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'relation'"
        " AND starts_with(query, %s)",
        statement,
    )


def wait_until_left(database: Database, timeout_s: float = 25.0) -> list[tuple[Any, ...]]:
    """Wait until no session of the job role is left; return those that are left after *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    query = (
        "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"
    )
    while database.admin(query, database.server.role) and time.monotonic() < deadline:
        time.sleep(0.02)
    return database.admin(query, database.server.role)


def end_sessions(database: Database) -> None:
    """Terminate the sessions of the job role."""
    database.admin(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND usename = %s",
        database.server.role,
    )


class Meanwhile(MemoryStore):
    """A store whose *nth* ``set`` first calls an action, and waits for its end."""

    def __init__(self, action: Callable[[], object], nth: int = 1) -> None:
        super().__init__()
        self._action, self._nth = action, nth

    def set(self, key: str, value: Any) -> None:
        if self._sets + 1 == self._nth:
            self._action()
        super().set(key, value)


@contextmanager
def before_each_statement(act: Callable[[Side, str], object]) -> Iterator[None]:
    """Call *act* with the side and the action before each statement."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("run", "fetch"):
            original = getattr(Side, name)

            def wrapped(self: Side, statement: Any, action: str, original: Any = original) -> Any:
                act(self, action)
                return original(self, statement, action)

            patch.setattr(Side, name, wrapped)
        yield


class FileStore(MemoryStore):
    """A store that outlives its process, as Airflow's does."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if path.exists():
            self._texts = json.loads(path.read_text())

    def set(self, key: str, value: Any) -> None:
        """Keep *value*, completely or not at all."""
        super().set(key, value)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(self._texts))
        fresh.replace(self._path)


_COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
_RESET = struct.pack("ii", 1, 0)


class Network:
    """A network between us and a server: it may be cut, fall silent, or lose the answer to a COMMIT."""

    def __init__(self, server: Server, *, loses_commit: bool = False) -> None:
        self._address = (server.host, server.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._loses_commit = loses_commit
        self._cut, self._silent = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._serve)]

    @property
    def port(self) -> int:
        """The port to which clients connect."""
        return int(self._listener.getsockname()[1])

    def cut(self) -> None:
        """Reset all connections, also later ones."""
        self._cut.set()

    def fall_silent(self) -> None:
        """Stop passing data on, in both directions; all connections stay open."""
        self._silent.set()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._threads.append(threading.Thread(target=self._connect, args=(client,)))
            self._threads[-1].start()

    def _connect(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._address) as server, suppress(ConnectionError):
            self._pass_on(client, server)
            for end in (client, server):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        while not self._cut.is_set():
            ready, _, _ = select.select([client, server], [], [], 0.01)
            if self._silent.is_set():
                self._cut.wait(0.01)
                continue
            for end in ready:
                data = end.recv(65_536)
                if not data:
                    return
                (server if end is client else client).sendall(data)
                if self._loses_commit and end is client and _COMMIT in data:
                    server.recv(65_536)
                    return


def run_in_process(path: str, environ: dict[str, str], arguments: dict[str, Any]) -> None:
    """Run a sync whose state is in the file *path*; for a child process, which may be killed."""
    os.environ.update(environ)
    sync(store=FileStore(Path(path)), **arguments)
