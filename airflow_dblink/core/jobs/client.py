"""Jobs of one database over one connection, in a worker: looking, cancelling, pruning, installing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import ClientCursor, sql
from psycopg.rows import dict_row

from airflow_dblink.core.errors import (
    RemoteError,
    UsageError,
    from_psycopg,
)
from airflow_dblink.core.jobs import steps
from airflow_dblink.core.jobs.install import VERSION, Installation, install_script
from airflow_dblink.core.jobs.job import Job, job_of, missing
from airflow_dblink.core.jobs.steps import Pause, Rows, Step, Steps
from airflow_dblink.core.jobs.trust import asking_failed
from airflow_dblink.core.server.connection import LinkConnection

log = logging.getLogger(__name__)

T = TypeVar("T")
_ALL = 2**31 - 1

_NAMED = 5


class Jobs:
    """The jobs in one database.

    :param connection: in autocommit mode, and idle.
    :param conn_id: for errors and logs.
    :param schema: schema of the job table.
    :param read_only: use only READ ONLY transactions; then jobs are read by :meth:`see`, not by :meth:`get`
        or :meth:`find`.
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
        """Return the state of the schema, in one round trip.

        :raises RemoteError: the server's errors.
        """
        row = self.run(Step(("installation",), {}, is_guarded=False))[0]
        return Installation.read(self.schema, row)

    def ready(self, *, keep_result: bool = False) -> Installation:
        """Return the installation; make or upgrade it first if that is needed and allowed.

        :raises InstallationError: if it is needed, and not allowed; the hint has the command for a DBA.
        :raises RemoteError: the server's errors.
        """
        found = self.installation()
        found.demand_usable(self.conn_id, keep_result=keep_result)
        if found.needs_install:
            self.install()
            found = self.installation()
            found.demand_usable(self.conn_id, keep_result=keep_result)
        return found

    def install(self, roles: Sequence[str] = (), *, results: bool = False) -> None:
        """Install the schema, or upgrade it; if it is up to date, nothing changes.

        :param roles: roles that get the right to send jobs.
        :param results: whether they get the right to keep results, too.
        :raises RemoteError: the server's errors; nothing is changed then.
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
        """Return the current state of a job; a job whose session is gone is given up as lost.

        :raises UsageError: if there is no such job, or it is another role's.
        :raises RemoteError: the server's errors.
        """
        if (job := self.find(job_id)) is None:
            raise missing(job_id, self.conn_id, self.schema)
        return job

    def find(self, job_id: UUID) -> Job | None:
        """Return the job as :meth:`get` does, ``None`` if there is none."""
        return self.drive(steps.look([job_id])).get(job_id)

    def see(self, job_id: UUID) -> Job | None:
        """Return the job as :meth:`find` does, but change nothing: a lost job's row isn't updated."""
        return self.drive(steps.see(job_id))

    def statement(self, job_id: UUID, *, most: int | None = None) -> str | None:
        """Return the job's statement as it was written, without its parameters' values.

        :param most: largest number of characters.
        """
        rows = self.run(Step(("statement",), {"id": job_id, "most": _ALL if most is None else most}))
        return str(rows[0]["statement"]) if rows else None

    def cancel(self, job_id: UUID) -> Job:
        """Cancel a job, wait up to three seconds for its end, and return its state then.

        A job that has ended stays as it is, so the result may well be a success.

        :raises UsageError: if there is no such job, or it is another role's.
        :raises RemoteError: the server's errors.
        """
        if (job := self.drive(steps.cancel(job_id))) is None:
            raise missing(job_id, self.conn_id, self.schema)
        return job

    def locked_result(self, job: Job) -> sql.Composed:
        """Lock the kept rows of a succeeded job until the end of the transaction; return the query for them.

        The owner is checked, since after a drop another role that may make tables there could take the name.

        :raises UsageError: if the table's owner isn't trusted.
        :raises RemoteError: the server's errors; 42P01 if the table is gone.
        """
        place = {"result_schema": job.result_schema or "", "result_table": job.result_table or ""}
        parts = {name: sql.Identifier(value) for name, value in place.items()}
        rows = self.run(Step(("lock_result", "result_is_trusted"), place, parts, is_guarded=False))
        if not rows or not rows[0]["is_trusted"]:
            raise UsageError(
                f"table {job.result_table} does not hold the result of job {job.id}",
                self.conn_id,
                hint="somebody has put it in the place of the result: send the job anew",
            )
        return sql.SQL("SELECT * FROM {}").format(sql.Identifier(*place.values()))

    def drop_result(self, job: Job) -> None:
        """Drop a job's kept rows, if there are any.

        :raises RemoteError: the server's errors.
        """
        if job.result_table is not None:
            names = ("forget_result",) if job.result_schema is None else ("drop_result", "forget_result")
            self.run(Step(names, {"id": job.id}, _tables([job.result_schema or ""], job.result_table)))

    # -- many

    def newest(
        self, *, states: Sequence[str] | None = None, dag_id: str | None = None, most: int = 100
    ) -> list[Job]:
        """Return the newest jobs that this role may see.

        :param most: largest number of jobs.
        :raises RemoteError: the server's errors.
        """
        params = {"states": list(states) if states else None, "dag_id": dag_id, "most": most}
        return [job_of(row) for row in self.run(Step(("list",), params))]

    def prune(self, older_than: timedelta) -> int:
        """Delete jobs that ended longer ago, and their results; return the number of deleted jobs.

        Jobs that were sent longer ago and never began are deleted, too. Running jobs stay. If a job
        can't be deleted, since a view reads its result for example, the others are deleted all the same.

        :raises RemoteError: if some jobs can't be deleted: how many were deleted, and which weren't and why.
        :raises InstallationError, TransientError: if the server can't be asked any more; deletions stay.
        """
        pruned = 0
        failures: dict[UUID, RemoteError] = {}
        left: list[UUID] = []  # so that they are not found again
        params = {"older_than": older_than, "most": 1000, "left": left}
        for row in self.run(Step(("running_since",), params)):
            with self._noting(failures, row["id"]):  # gives up a job whose session is gone
                self.run(Step(("give_up_lost",), {"ids": [row["id"]]}))
        while rows := self.run(Step(("prunable",), params)):
            for row in rows:
                deleted: Rows = []
                with self._noting(failures, row["id"]):
                    deleted = self._delete(row)
                if deleted:
                    pruned += 1
                else:
                    left.append(row["id"])
        if failures:
            raise _not_pruned(pruned, failures, self.conn_id)
        return pruned

    def _delete(self, row: Mapping[str, Any]) -> Rows:
        """Delete a job and its result in one transaction; return a row if the job is gone."""
        if not row["result_schemas"]:
            return self.run(Step(("delete",), {"id": row["id"]}))
        parts = _tables(row["result_schemas"], row["result_table"])
        return self.run(Step(("drop_result", "delete"), {"id": row["id"]}, parts))

    @contextmanager
    def _noting(self, failures: dict[UUID, RemoteError], job_id: UUID) -> Iterator[None]:
        """Note and log the error of one job; other errors, which end all work, are raised."""
        try:
            yield
        except RemoteError as error:
            if self.connection.closed:
                raise
            log.warning("Job %s: %s", job_id, error)
            failures.setdefault(job_id, error)

    # -- driving

    def run(self, step: Step) -> list[dict[str, Any]]:
        """Send *step* in a transaction of its own, and return the rows of its last statement.

        :raises InstallationError: if a part of the schema isn't trusted; nothing in it was touched then.
        :raises RemoteError: the server's errors.
        """
        try:
            with ClientCursor(self.connection, row_factory=dict_row) as cursor:
                message = step.message(
                    self.schema, self.connection.target.trusted_owners, read_only=self.read_only
                )
                cursor.execute(message, step.params)
                while cursor.nextset():
                    pass
                return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise asking_failed(error, self.conn_id, self.schema) from None

    def drive(self, procedure: Steps[T]) -> T:
        """Run *procedure* step by step, and return its result.

        :raises RemoteError: the server's errors.
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


def _tables(schemas: Sequence[str], table: str) -> dict[str, sql.Composable]:
    return {"tables": sql.SQL(", ").join(sql.Identifier(schema, table) for schema in schemas)}


def _not_pruned(pruned: int, failures: Mapping[UUID, RemoteError], conn_id: str) -> RemoteError:
    """Return the error that names the first jobs which couldn't be deleted."""
    named = [f"{job_id} ({error.message})" for job_id, error in list(failures.items())[:_NAMED]]
    more = f", and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
    return RemoteError(
        f"{pruned} jobs were deleted, but {len(failures)} could not be: {', '.join(named)}{more}",
        conn_id,
        next(iter(failures.values())).sqlstate,
        hint="remove first whatever keeps a result from being dropped (a view of it, another owner)",
    )


def task_params(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a job that name the task which sent it; ``None`` for parts that *task* lacks."""
    return {name: task.get(name) for name in ("dag_id", "task_id", "run_id", "map_index", "try_number")}
