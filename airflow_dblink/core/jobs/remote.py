"""Jobs of one database over one connection, in a worker: looking, cancelling, pruning, installing."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import ClientCursor, sql
from psycopg.rows import dict_row

from airflow_dblink.core.connection import LinkConnection
from airflow_dblink.core.errors import RemoteError, TransientError, from_psycopg
from airflow_dblink.core.jobs import steps
from airflow_dblink.core.jobs.install import VERSION, Installation, install_script
from airflow_dblink.core.jobs.job import Job, job_of, missing
from airflow_dblink.core.jobs.steps import Pause, Step, Steps

log = logging.getLogger(__name__)

T = TypeVar("T")
_ALL = 2**31 - 1


class Jobs:
    """The jobs in one database.

    :param connection: in autocommit mode, and idle.
    :param conn_id: for errors and logs.
    :param schema: where the job table is.
    :param read_only: every transaction is; then :meth:`see` is for looking, :meth:`get` and :meth:`find`
        are not.
    """

    def __init__(
        self, connection: LinkConnection, conn_id: str, schema: str, *, read_only: bool = False
    ) -> None:
        self.connection = connection
        self.conn_id = conn_id
        self.schema = schema
        self.read_only = read_only

    # -- installation

    def installation(self) -> Installation:
        """Return what is there of the schema: one round trip.

        :raises RemoteError: what the server says.
        """
        row = self.run(Step(("installation",), {"schema": self.schema}))[0]
        return Installation.read(self.schema, row)

    def ready(self, *, keep_result: bool = False) -> Installation:
        """Return the installation, which is made or upgraded first where it has to be and may be.

        :raises InstallationError: if this role can't; the hint has the command for a DBA.
        :raises RemoteError: what the server says.
        """
        found = self.installation()
        if not found.is_ready(self.conn_id, keep_result=keep_result):
            self.install()
            found = self.installation()
            found.is_ready(self.conn_id, keep_result=keep_result)
        return found

    def install(self, roles: Sequence[str] = (), *, results: bool = False) -> None:
        """Install the schema, or upgrade it; harmless where it is up to date.

        :param roles: roles that get the right to send jobs.
        :param results: and to keep their results.
        :raises RemoteError: what the server says; nothing is changed then.
        """
        script = install_script(self.schema, roles, results=results)
        log.info("Installing version %s of schema %s on %s", VERSION, self.schema, self.conn_id)
        try:
            self.connection.execute(script.encode())
        except psycopg.Error as error:
            if not self.connection.closed:
                self.connection.execute("ROLLBACK")
            raise from_psycopg(error, self.conn_id, f"installing schema {self.schema}") from None

    # -- one job

    def get(self, job_id: UUID) -> Job:
        """Return a job as it is now; one whose session is gone is given up as lost.

        :raises UsageError: if there is no such job, or it is another role's.
        :raises RemoteError: what the server says.
        """
        if (job := self.find(job_id)) is None:
            raise missing(job_id, self.conn_id, self.schema)
        return job

    def find(self, job_id: UUID) -> Job | None:
        """Return the job as :meth:`get` does, ``None`` if there is none."""
        return self.drive(steps.look([job_id])).get(job_id)

    def see(self, job_id: UUID) -> Job | None:
        """Return the job as :meth:`find` does, and change nothing: one that is lost is only said to be."""
        return self.drive(steps.see(job_id))

    def statement(self, job_id: UUID, *, most: int | None = None) -> str | None:
        """Return what the job runs, as it was written: without its parameters' values.

        :param most: only so many characters of it.
        """
        rows = self.run(Step(("statement",), {"id": job_id, "most": _ALL if most is None else most}))
        return str(rows[0]["statement"]) if rows else None

    def cancel(self, job_id: UUID) -> Job:
        """Cancel a job and wait up to three seconds for its end; returns it as it is then.

        One that has ended stays as it is: it may well have succeeded.

        :raises UsageError: if there is no such job, or it is another role's.
        :raises RemoteError: what the server says.
        """
        if (job := self.drive(steps.cancel(job_id))) is None:
            raise missing(job_id, self.conn_id, self.schema)
        return job

    def result_query(self, job: Job) -> sql.Composed:
        """Return the query of a succeeded job's kept rows."""
        return sql.SQL("SELECT * FROM {}").format(sql.Identifier(self.schema, job.result_table or ""))

    def drop_result(self, job: Job) -> None:
        """Drop a job's kept rows; harmless where there are none.

        :raises RemoteError: what the server says.
        """
        if job.result_table is not None:
            part = {"result_table": sql.Identifier(job.result_table)}
            self.run(Step(("drop_result", "forget_result"), {"id": job.id}, part))

    # -- many

    def newest(
        self, *, states: Sequence[str] | None = None, dag_id: str | None = None, most: int = 100
    ) -> list[Job]:
        """Return the newest jobs that this role may see.

        :param most: not more than so many.
        :raises RemoteError: what the server says.
        """
        params = {"states": list(states) if states else None, "dag_id": dag_id, "most": most}
        return [job_of(row) for row in self.run(Step(("list",), params))]

    def prune(self, older_than: timedelta) -> int:
        """Delete jobs that ended longer ago, and their results; returns how many.

        So goes what was sent longer ago and never begun. What runs stays, however long it does.

        :raises RemoteError: what the server says; what was deleted before stays so.
        """
        pruned = 0
        params = {"older_than": older_than, "most": 1000}
        running = [row["id"] for row in self.run(Step(("running_since",), params))]
        self.drive(steps.look(running))  # gives up those whose session is gone
        while rows := self.run(Step(("prunable",), params)):
            for row in rows:
                delete = Step(("delete",), {"id": row["id"]})
                if row["result_table"] is not None:
                    part = {"result_table": sql.Identifier(row["result_table"])}
                    delete = Step(("drop_result", "delete"), {"id": row["id"]}, part)
                self.run(delete)
            pruned += len(rows)
        return pruned

    # -- driving

    def run(self, step: Step) -> list[dict[str, Any]]:
        """Say it to the server, in a transaction of its own; returns the rows of the last statement.

        :raises RemoteError: what the server says.
        """
        try:
            with ClientCursor(self.connection, row_factory=dict_row) as cursor:
                cursor.execute(step.message(self.schema, read_only=self.read_only), step.params)
                while cursor.nextset():
                    pass
                return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise asking_failed(error, self.conn_id) from None

    def drive(self, procedure: Steps[T]) -> T:
        """Do what *procedure* says, step by step.

        :raises RemoteError: what the server says.
        """
        rows: list[dict[str, Any]] = []
        try:
            step = next(procedure)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                else:
                    rows = self.run(step)
                step = procedure.send(rows)
        except StopIteration as done:
            result: T = done.value
            return result


def asking_failed(error: psycopg.Error, conn_id: str) -> RemoteError:
    """Return the error for a question about jobs that the server didn't answer.

    A limit of the role's, a lock, somebody's cancel pass: who waits for a job asks again.
    """
    ours = from_psycopg(error, conn_id, "asking for jobs")
    return TransientError(*ours.args) if ours.sqlstate in ("57014", "55P03") else ours


def task_params(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a job that say which task sent it; ``None`` where *task* doesn't."""
    return {name: task.get(name) for name in ("dag_id", "task_id", "run_id", "map_index", "try_number")}
