"""dblink's asynchronous functions for jobs: the same names, with a job's handle in the link's place."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import Any, overload

from psycopg import sql as pgsql

from airflow_dblink.core.errors import RemoteError, TransientError, UsageError
from airflow_dblink.core.jobs.client import Jobs
from airflow_dblink.core.jobs.draft import draft
from airflow_dblink.core.jobs.job import Job, JobHandle
from airflow_dblink.core.jobs.send import Submission
from airflow_dblink.core.jobs.wait import wait_for_end
from airflow_dblink.core.link.link import Link
from airflow_dblink.core.link.messages import Row
from airflow_dblink.core.listen.listener import demand_session, listens_to
from airflow_dblink.core.server.bind import Params
from airflow_dblink.core.server.connection import Check, LinkConnection
from airflow_dblink.core.server.side import Side, begin
from airflow_dblink.core.server.target import Target, parse_session_settings
from airflow_dblink.hooks.parts.functions import Vocabulary
from airflow_dblink.hooks.parts.names_params import names_params

log = logging.getLogger(__name__)

#: A job's handle, which these functions take in the place of a link's name.
Handle = JobHandle | Mapping[str, str]

_POLL_S = 5.0


class JobVocabulary(Vocabulary):
    """The functions that take a job's handle as well; :class:`DblinkHook` opens the connections."""

    @abstractmethod
    def target(self, conn_id: str | None = None) -> Target:
        """Return the target of *conn_id*."""

    @abstractmethod
    def open_direct(self, conn_id: str) -> LinkConnection:
        """Return a new connection, around a pooler if possible."""

    @abstractmethod
    def submission(self, conn_id: str, name: str | None = None, *, cancels: bool = True) -> Submission:
        """Return the submission of one job of the running task."""

    _check: Check | None
    _submissions: list[Submission]

    @property
    @abstractmethod
    def _sent_names(self) -> list[str]:
        """The names of the jobs that the running try of the task has sent."""

    @names_params
    def send_job(
        self,
        sql: str,
        params: Params | None = None,
        *,
        conn_id: str | None = None,
        keep_result: bool = False,
        session_settings: Mapping[str, Any] | None = None,
        statement_timeout: timedelta | None = None,
        name: str | None = None,
    ) -> dict[str, str]:
        """Send *sql* as a job, which the server runs by itself; return its handle as soon as it is running.

        The job goes on whatever becomes of the task. When a retry of the task makes this call again, it takes
        the job over if that still runs or has succeeded; it sends a new one if the job failed, was cancelled
        or lost. A cleared task also sends a new one, if it had left the hook's ``with`` block without an
        error.

        :param sql: one or several statements, which are one transaction.
        :param conn_id: Airflow connection of the database; by default the hook's own.
        :param keep_result: keep the rows of *sql*, one query, for :meth:`get_result`, until
            :meth:`drop_result`.
        :param session_settings: run-time parameters, local to the job's transaction.
        :param statement_timeout: time after which the server ends the job.
        :param name: distinguishes this job from others of the task, across its tries. By default the
            statement itself does: give a name if the statement differs from try to try.
        :returns: the handle: ``conn_id``, ``job_id`` and ``schema``. The sensor, the operators and the
            functions here take it.
        :raises UsageError: if *sql* can't be a job, before it is sent; if this try has sent *name* before.
        :raises InstallationError: if the database isn't ready for jobs, and this role can't make it so.
        :raises OutcomeUnknownError: if the server doesn't know the job that an earlier try has sent.
        :raises RemoteError: the server's errors.

        Model: ``dblink_send_query``, whose query dies with its session.
        """
        conn_id = self.target(conn_id).conn_id
        submission = self.submission(conn_id, self._job_name(conn_id, sql, params, name), cancels=False)
        self._submissions.append(submission)
        settings = parse_session_settings(conn_id, session_settings)
        if statement_timeout is not None:
            settings["statement_timeout"] = f"{statement_timeout.total_seconds() * 1000:.0f}ms"
        limit = settings.pop("statement_timeout", None)
        if limit is not None:
            demand_session(self.target(conn_id), "statement_timeout of a job")
        sent = submission.submit(
            lambda connection: draft(
                connection,
                conn_id,
                sql,
                params,
                keep_result=keep_result,
                settings=settings,
                statement_timeout=limit,
            )
        )
        if sent.call is not None:
            sent.call.leave()
        return JobHandle(conn_id, str(sent.job_id), submission.schema).as_dict()

    def job(self, handle: Handle) -> Job:
        """Return the current state of a job.

        :raises UsageError: if there is no such job, or it is another role's.
        """
        with self._jobs(handle) as (jobs, known):
            return jobs.get(known.uuid)

    def cancel_job(self, handle: Handle) -> Job:
        """Cancel a job, wait up to three seconds for its end, and return its state then.

        :raises UsageError: if there is no such job, or it is another role's.
        :raises TransientError: if it still runs; the server was told to end its session.
        :raises RemoteError: the server's errors.
        """
        with self._jobs(handle) as (jobs, known):
            job = jobs.cancel(known.uuid)
        if not job.has_ended:
            raise TransientError(f"job {job.id} was told to end, but still runs", known.conn_id)
        return job

    def drop_result(self, handle: Handle) -> None:
        """Drop the kept rows of a job, if there are any.

        :raises UsageError: if there is no such job, or it is another role's.
        """
        with self._jobs(handle) as (jobs, known):
            jobs.drop_result(jobs.get(known.uuid))

    def prune_jobs(self, older_than: timedelta, *, conn_id: str | None = None) -> int:
        """Delete jobs that ended longer ago, with their results; return the number of deleted jobs.

        If a job can't be deleted, the others are deleted all the same.

        :param conn_id: Airflow connection of the database; by default the hook's own.
        :raises RemoteError: if some jobs can't be deleted: how many were deleted, and which weren't and why.
        :raises InstallationError: if a part of the job schema isn't trusted.
        :raises TransientError: if the connection is lost; earlier deletions stay.
        """
        target = self.target(conn_id)
        with closing(self.open_direct(target.conn_id)) as connection:
            return Jobs(connection, target.conn_id, target.job_schema).prune(older_than)

    # -- dblink's names

    def is_busy(self, connname: str | Handle | None = None) -> int:
        """Return 1 if :meth:`get_result` would wait, 0 if its result (or its first rows) is there.

        :param connname: a link, or a job's handle.
        :raises UsageError: 08003 if no link of that name is open; if there is no such job.

        Model: ``dblink_is_busy``.
        """
        if isinstance(connname, str | None):
            return super().is_busy(connname)
        return int(not self.job(connname).has_ended)

    @overload
    def get_result(
        self, connname: str | Handle | None = None, *, fail_on_error: bool = True, batch_rows: None = None
    ) -> list[Row]: ...

    @overload
    def get_result(
        self, connname: str | Handle | None = None, *, fail_on_error: bool = True, batch_rows: int
    ) -> Iterator[list[Row]]: ...

    def get_result(
        self,
        connname: str | Handle | None = None,
        *,
        fail_on_error: bool = True,
        batch_rows: int | None = None,
    ) -> list[Row] | Iterator[list[Row]]:
        """Return the rows of the next result of :meth:`send_query`, or the rows of a job; wait for its end.

        For a link, see :meth:`Vocabulary.get_result`. A job's rows can be read again and again. A job that
        keeps no result gives one tuple with its command tag, or ``OK`` if it has none.

        :param connname: a link, or a job's handle.
        :raises UsageError: if there is no such job, or its rows were dropped.
        :raises RemoteError: the job's error; with ``fail_on_error=False`` a warning in the log and no rows
            instead. 08006 if it was lost, 57014 if it was cancelled.

        Model: ``dblink_get_result``.
        """
        if isinstance(connname, str | None):
            if batch_rows is None:
                return super().get_result(connname, fail_on_error=fail_on_error)
            return super().get_result(connname, fail_on_error=fail_on_error, batch_rows=batch_rows)
        known = JobHandle.read(connname)
        job = self.wait_for_job(known)
        if (error := job.error(known.conn_id)) is not None:
            if fail_on_error:
                raise error
            log.warning("%s", error)
            return [] if batch_rows is None else iter(())
        if not job.keep_result:
            rows: list[Row] = [(job.command_tag or "OK",)]
            return rows if batch_rows is None else iter([rows])
        if batch_rows is None:
            return [row for batch in self._kept(known, job, 10_000) for row in batch]
        return self._kept(known, job, batch_rows)

    def cancel_query(self, connname: str | Handle | None = None) -> str:
        """Ask the server to cancel the link's running query, or a job.

        :param connname: a link, whose error you still have to read; or a job's handle. For a job this waits
            up to three seconds for its end; a job that has ended stays as it is.
        :returns: ``OK``; for a link whose server couldn't be asked, the reason as text.
        :raises UsageError: 08003 if no link of that name is open; if there is no such job.
        :raises RemoteError: for a job: the server's errors; if the job still runs.

        Model: ``dblink_cancel_query``.
        """
        if isinstance(connname, str | None):
            return super().cancel_query(connname)
        self.cancel_job(connname)
        return "OK"

    def error_message(self, connname: str | Handle | None = None) -> str:
        """Return the last message of the link, or the error of a job; ``OK`` if there is none.

        :param connname: a link, or a job's handle.
        :raises UsageError: 08003 if no link of that name is open; if there is no such job.

        Model: ``dblink_error_message``.
        """
        if isinstance(connname, str | None):
            return super().error_message(connname)
        known = JobHandle.read(connname)
        error = self.job(known).error(known.conn_id)
        if error is None:
            return "OK"
        lines = [f"ERROR:  {error.message}"]
        lines += [
            f"{label}:  {text}"
            for label, text in (("DETAIL", error.detail), ("HINT", error.hint), ("CONTEXT", error.context))
            if text
        ]
        return "\n".join(lines)

    def wait_for_job(self, handle: Handle, *, poll_s: float = _POLL_S) -> Job:
        """Wait until a job has ended, and return it; also wait for a server that is away for a while.

        :param poll_s: seconds after which the job's row is read without a notification.
        :raises UsageError: if there is no such job, or it is another role's.
        :raises RemoteError: the server's errors.
        """
        known = JobHandle.read(handle)
        return wait_for_end(
            lambda: self.open_direct(known.conn_id),
            known.conn_id,
            known.schema,
            known.uuid,
            listens=listens_to(self.target(known.conn_id)),
            poll_s=poll_s,
            check=self._check,
        )

    # -- behind them

    @contextmanager
    def result_link(self, handle: JobHandle, job: Job) -> Iterator[tuple[Link, pgsql.Composed]]:
        """Give a link that reads a kept result in the order of its rows and in our text forms, and its query.

        Nobody can replace the result meanwhile.

        :raises UsageError: if the job kept none, or it was dropped.
        :raises RemoteError: the server's errors.
        """
        demand_kept_rows(handle, job)
        connection = self.open_direct(handle.conn_id)
        link = Link(None, self.target(handle.conn_id), connection)
        try:
            # A synchronized scan begins in the middle of a big table, and would change the rows' order.
            settings = {"synchronize_seqscans": "off", "idle_in_transaction_session_timeout": "0"}
            side = Side(connection, handle.conn_id)
            begin(side, "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY", settings)
            query = Jobs(connection, handle.conn_id, handle.schema).locked_result(job)
            yield link, query
        finally:
            link.abort()

    @contextmanager
    def counted_result_query(self, handle: JobHandle, job: Job) -> Iterator[str]:
        """Give the query for a job's kept rows, for another connection; meanwhile all rows stay in the table.

        :raises UsageError: if the job kept no rows, or they were dropped.
        :raises RemoteError: if somebody has changed them.
        """
        with self.result_link(handle, job) as (link, query):
            ((rows,),) = link.query(pgsql.SQL("SELECT pg_catalog.count(*) FROM ({}) AS result").format(query))
            demand_all_rows(handle, job, rows)
            yield query.as_string(link.connection)

    def _kept(self, handle: JobHandle, job: Job, batch_rows: int) -> Iterator[list[Row]]:
        with self.result_link(handle, job) as (link, query):
            rows = 0
            for batch in link.batches(query, None, batch_rows):
                rows += len(batch)
                yield batch
            demand_all_rows(handle, job, rows)

    @contextmanager
    def _jobs(self, handle: object) -> Iterator[tuple[Jobs, JobHandle]]:
        known = JobHandle.read(handle)
        with closing(self.open_direct(known.conn_id)) as connection:
            yield Jobs(connection, known.conn_id, known.schema), known

    def _job_name(self, conn_id: str, sql: str, params: Params | None, name: str | None) -> str:
        """Return the name by which the next try finds this job again."""
        if name is None:
            # The order of jobs may differ from try to try; their statements hardly do.
            digest = sha256(repr((conn_id, sql, params)).encode(errors="replace")).hexdigest()[:16]
            name = f"{digest}_{sum(sent.startswith(digest) for sent in self._sent_names)}"
        elif name in self._sent_names:
            raise UsageError(f"this try has already sent a job named {name!r}", conn_id)
        self._sent_names.append(name)
        return name


def demand_kept_rows(handle: JobHandle, job: Job) -> None:
    """Raise if there are no rows of *job* to read.

    :raises UsageError: if it kept no rows, or they were dropped.
    """
    if job.result_table is None:
        why = "its result was dropped" if job.keep_result else "send it with keep_result=True"
        raise UsageError(f"job {job.id} has no rows to read: {why}", handle.conn_id)
    if job.result_schema is None:
        raise UsageError(
            f"job {job.id} has no rows to read: table {job.result_table} is gone, or belongs to a role that"
            " isn't trusted",
            handle.conn_id,
            hint="send the job anew",
        )


def demand_all_rows(handle: JobHandle, job: Job, rows: int) -> None:
    """Raise unless *rows* is the number of rows that the job wrote.

    :raises RemoteError: names both numbers.
    """
    if rows != job.row_count:
        raise RemoteError(
            f"table {job.result_table} holds {rows} rows, but job {job.id} wrote {job.row_count}",
            handle.conn_id,
            hint="somebody has changed it since: send the job anew",
        )
