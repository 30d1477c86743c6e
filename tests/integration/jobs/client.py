"""Sends jobs in these tests: it calls the core as operators, sensor and trigger do, in short."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.types.json import Jsonb

from airflow_dblink.core.jobs.client import Jobs, task_params
from airflow_dblink.core.jobs.draft import Draft, draft
from airflow_dblink.core.jobs.install import install_script
from airflow_dblink.core.jobs.job import SCHEMA, Job
from airflow_dblink.core.jobs.send import Sent, Submission
from airflow_dblink.core.jobs.steps import Step
from airflow_dblink.core.jobs.wait import wait_for_end
from airflow_dblink.core.listen.listener import listens_to
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.target import Target
from tests.databases import Database, Row
from tests.integration.tasks import TASK
from tests.stores import MemoryStore

#: The task that sends the jobs.
TRY = {**TASK, "try_number": 1}
#: A job that runs until it is cancelled.
SLEEP = "SELECT pg_sleep(600)"
#: An effect in the table that the fixture ``client`` makes; :func:`effects` counts them.
EFFECT = "INSERT INTO effect VALUES (1)"
SLOW_EFFECT = f"SELECT pg_sleep(0.5); {EFFECT}"
#: A job waits here while :func:`held` holds the gate shut.
GATE = "SELECT pg_advisory_xact_lock_shared(1)"


class Client:
    """One role on one target; its connections are closed after the test.

    :ivar schema: schema of the job table.
    :ivar opened: its connections.
    """

    def __init__(self, target: Target, schema: str = SCHEMA) -> None:
        self.target = target
        self.schema = schema
        self.opened: list[LinkConnection] = []
        self._jobs: Jobs | None = None

    def open(self, check: Callable[[], None] | None = None) -> LinkConnection:
        """Return a new connection, around a pooler if possible."""
        self.opened.append(connect(self.target, direct=True, check=check))
        return self.opened[-1]

    def close(self) -> None:
        for connection in self.opened:
            connection.close()

    @property
    def jobs(self) -> Jobs:
        """The jobs over one connection, which is opened again after it was lost."""
        if self._jobs is None or self._jobs.connection.closed:
            self._jobs = Jobs(self.open(), self.target.conn_id, self.schema)
        return self._jobs

    def draft(self, sql: str, params: Any = None, **options: Any) -> Draft:
        return draft(self.jobs.connection, self.target.conn_id, sql, params, **options)

    def submission(
        self, store: MemoryStore | None = None, *, life: int = 0, task: Mapping[str, Any] | None = None
    ) -> Submission:
        return Submission(
            self.target.conn_id,
            self.schema,
            self.open,
            MemoryStore() if store is None else store,
            task or TRY,
            life=life,
        )

    def submit(
        self, sql: str, params: Any = None, *, store: MemoryStore | None = None, life: int = 0, **options: Any
    ) -> Sent:
        """Send a job, or find the job in *store*; the caller has to leave its call."""
        return self.submission(store, life=life).submit(
            lambda connection: draft(connection, self.target.conn_id, sql, params, **options)
        )

    def send(self, sql: str, params: Any = None, **options: Any) -> UUID:
        """Send a job and leave it to the server; *options* are those of :meth:`submit`."""
        sent = self.submit(sql, params, **options)
        if sent.call is not None:
            sent.call.leave()
        return sent.job_id

    def wait(self, job_id: UUID, *, poll_s: float = 0.2) -> Job:
        """Wait for a job's end, a minute at most."""
        deadline = time.monotonic() + 120

        def check() -> None:
            assert time.monotonic() < deadline, f"job {job_id} does not end"

        return wait_for_end(
            lambda: self.open(check),
            self.target.conn_id,
            self.schema,
            job_id,
            listens=listens_to(self.target),
            poll_s=poll_s,
            check=check,
        )

    def run(self, sql: str, params: Any = None, **options: Any) -> Job:
        """Send a job, leave, and wait for its end."""
        return self.wait(self.send(sql, params, **options))

    def kept(self, job: Job) -> list[Row]:
        """Return the rows that a job has kept."""
        with self.jobs.connection.transaction():
            return self.jobs.connection.execute(self.jobs.locked_result(job)).fetchall()

    def insert(self, sql: str, *, sent_s_ago: float = 0.0, **columns: Any) -> UUID:
        """Insert the row of a job that nobody calls, as a sender that dies before its call leaves it."""
        self.jobs.ready()
        made = self.draft(sql)
        params: dict[str, Any] = {
            **task_params(TRY),
            **vars(made),
            "settings": Jsonb({}),
            "id": uuid4(),
            "replaces": None,
            **columns,
        }
        self.jobs.run(Step(("insert",), params))
        self.jobs.connection.execute(
            psycopg.sql.SQL("UPDATE {} SET sent_at = now() - make_interval(secs => %s) WHERE id = %s").format(
                psycopg.sql.Identifier(self.schema, "job")
            ),
            [sent_s_ago, params["id"]],
        )
        return UUID(str(params["id"]))

    def call(self, job_id: UUID) -> str:
        """Run the procedure on a connection of its own; return the command tag."""
        connection = self.open()
        with suppress(psycopg.OperationalError):  # for tests that close it in between
            return connection.execute(self.call_text(job_id).encode()).statusmessage or ""
        return ""

    def call_text(self, job_id: UUID) -> str:
        return f"CALL \"{self.schema}\".run('{job_id}')"

    def column(self, job_id: UUID, name: str) -> Any:
        """Return a column's value in the table, also of columns that :class:`Job` leaves out."""
        query = f'SELECT {name} FROM "{self.schema}".job WHERE id = %s'  # noqa: S608 - the test's own
        row = self.jobs.connection.execute(query.encode(), [job_id]).fetchone()
        return row[0] if row else None


def effects(database: Database) -> int:
    """Return the number of commits of :data:`EFFECT`."""
    return int(database.rows("SELECT count(*) FROM effect")[0][0])


def role_of(target: Target) -> str:
    return str(target.params["user"])


def dba_installs(database: Database, *roles: Target, results: bool = False) -> None:
    """Run the SQL of ``airflow dblink sql`` as a DBA does; and let all roles write effects."""
    database.admin(install_script(SCHEMA, [role_of(role) for role in roles], results=results))
    database.admin("GRANT INSERT ON effect TO PUBLIC")


def until(what: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait until *what* returns a true value, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def backend(database: Database, pid: int | None) -> list[Row]:
    """Return (state, query) of the session with that process id; an empty list if it is gone."""
    return database.admin("SELECT state, query FROM pg_stat_activity WHERE pid = %s", pid)


def sleeps(database: Database, pid: int | None) -> bool:
    """Return whether the session with that process id is in ``pg_sleep``."""
    query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    return bool(database.admin(query, pid))


@contextmanager
def held(database: Database) -> Iterator[str]:
    """Hold :data:`GATE` shut until the block ends; give SQL that passes the gate and then has its effect."""
    with psycopg.connect(database.admin_conninfo) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(1)")
        yield f"{GATE}; {EFFECT}"


def gated(database: Database) -> int:
    """Return the number of sessions that wait at :data:`GATE`."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event = 'advisory'"
    return int(database.admin(query, database.name)[0][0])


def lookers(database: Database) -> int:
    """Return the number of sessions that are idle since they read jobs, as waiting sessions are."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state = 'idle'"
    query += " AND query LIKE '%%airflow_dblink jobs: %%look%%'"
    return int(database.admin(query, database.name)[0][0])


def start(connection: LinkConnection, sql: str) -> None:
    """Send *sql* to the server and don't wait for its answer."""
    connection.pgconn.send_query(sql.encode())
    while connection.pgconn.flush():
        pass


def end_with_fin(connection: LinkConnection) -> None:
    """Close the connection as the death of a worker's process does: a FIN without a Terminate message."""
    sock = socket.socket(fileno=connection.pgconn.socket)
    sock.shutdown(socket.SHUT_RDWR)
    sock.detach()
    connection.close()


def end_with_rst(connection: LinkConnection) -> None:
    """Close the connection's socket with a RST, as the end of a worker's machine does."""
    sock = socket.socket(fileno=connection.pgconn.socket)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.detach()
    connection.close()
