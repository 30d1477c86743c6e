"""Operators of remote jobs: send, get the result, cancel, and all in one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.configuration import conf

from airflow_dblink.core.errors import DblinkError, StoppedError, UsageError
from airflow_dblink.core.jobs.job import Job, JobHandle
from airflow_dblink.core.once.transaction import KEY as ONCE_KEY
from airflow_dblink.core.once.tries import Tries
from airflow_dblink.core.sqltext.names import demand_columns
from airflow_dblink.core.transfer.plan import Spec
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.hooks.parts.job_functions import demand_kept_rows
from airflow_dblink.links.job import DblinkJobLink, page_note
from airflow_dblink.operators.common.arguments import demand_seconds, flag
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.common.handles import TakesHandle, handles_of
from airflow_dblink.operators.common.job_base import JobSendingOperator, JobWaitingOperator
from airflow_dblink.operators.common.kept_rows import delivered
from airflow_dblink.operators.common.known import check_known, constructing
from airflow_dblink.operators.common.moving import MovingOperator
from airflow_dblink.operators.common.rows import RowDestination

if TYPE_CHECKING:
    from airflow.sdk import Context

_RENDERERS = {"sql": "postgresql", "parameters": "json", "session_settings": "json"}


class DblinkSendQueryOperator(JobSendingOperator):
    """Send SQL to a database as a remote job, and succeed as soon as it is running.

    The job belongs to the server: it survives this task, its worker, and Airflow. A retry of this
    task finds the job that an earlier try has sent, and sends no second one. The server runs all of
    *sql* in one transaction; a sensor or :class:`DblinkGetResultOperator` waits for it.

    :param conn_id: Airflow connection of the database in which the job runs. (templated)
    :param sql: one statement, several, or the path of a ``.sql`` file; without BEGIN, COMMIT, VACUUM and
        the like. (templated)
    :param parameters: values for ``%s`` or ``%(name)s`` in *sql*. (templated)
    :param keep_result: keep the rows of *sql*, one query, in a table on the server until they are dropped.
    :param statement_timeout: time after which the server ends the job.
    :param kwargs: arguments of the base operators: ``job_schema``, ``cancel_on_kill``, ``session_settings``,
        ``password_required``.

    :returns: (XCom) the job's handle: ``conn_id``, ``job_id``, ``schema``.
    :raises AirflowFailException: for mistakes found before anything is sent, for a database that isn't
        ready for jobs (the message tells how to get the SQL for a DBA), and if the server can't tell whether
        an earlier try's job has run. No retry helps.
    :raises RemoteError: the server's errors.
    :raises TransientError: the same, if a retry may help; it finds the job, if it was sent.
    :raises DblinkTaskKilledError: after a kill; the job is cancelled, if it was a user's.

    Model: ``dblink_send_query``.
    """

    template_fields: Sequence[str] = ("conn_id", "sql", "parameters", "session_settings")
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = _RENDERERS
    operator_extra_links = (DblinkJobLink(),)
    ui_color = "#e0dcf3"

    def __init__(self, *, keep_result: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keep_result = keep_result
        check_known(self)

    def execute(self, context: Context) -> dict[str, str]:
        """Send the job; its handle becomes the XCom return value."""
        with self._errors_for_airflow():
            self._check_early()
        with self._errors_for_airflow(), self._hook(self.conn_id) as hook:
            submission = hook.submission(self.conn_id, cancels=self.cancel_on_kill)
            with self._cancelling(context, hook, submission):
                sent = self._submit(
                    context, hook, submission, keep_result=self.keep_result, ends_with_task=False
                )
                if sent.call is not None:
                    sent.call.leave()
                self._check()
            submission.finish()
            return JobHandle(self.conn_id, str(sent.job_id), submission.schema).as_dict()


class DblinkJobOperator(RowDestination, JobWaitingOperator):
    """Run SQL in a database as a remote job, wait for its end, and hand on its rows: in one task.

    The job survives the worker, the triggerer and the scheduler. A retry waits for a job that still runs,
    and takes the result of one that has succeeded; it sends a new job only if the earlier one failed, was
    cancelled, or lost (its session ended before it could commit). So the job's effects are there once.

    With *handler*, *path* or *max_xcom_rows* the rows of a query are kept on the server until they are
    handed on, then dropped; without them the server discards the rows.

    :param conn_id: Airflow connection of the database in which the job runs. (templated)
    :param sql: one statement, several, or the path of a ``.sql`` file; without BEGIN, COMMIT, VACUUM and
        the like. (templated)
    :param parameters: values for ``%s`` or ``%(name)s`` in *sql*. (templated)
    :param deferrable: wait in the triggerer; by default Airflow's ``[operators] default_deferrable``.
    :param handler: called with each batch of rows, a list of tuples.
    :param path: URL of a CSV file on Airflow's object storage. (templated)
    :param path_conn_id: Airflow connection of the object storage. (templated)
    :param header: whether the file begins with the column names.
    :param csv_options: options of PostgreSQL's COPY: ``delimiter``, ``null``, ``quote``, ``escape``.
    :param max_xcom_rows: push the rows as a list of lists, if there are at most this many.
    :param max_xcom_bytes: limit for the rows in XCom, as JSON; if they take more, the task fails.
    :param batch_rows: rows per batch.
    :param keep_result: leave the rows of a query on the server, for other readers.
    :param kwargs: arguments of the base operators: ``poll_interval`` (seconds), ``grace_period``,
        ``job_schema``, ``cancel_on_kill``, ``session_settings``, ``statement_timeout``,
        ``password_required``, ``base_path``, ``file_mode``.

    :returns: (XCom) the job's handle (``conn_id``, ``job_id``, ``schema``), ``command_tag`` (``None`` if the
        last statement has no row count) and ``row_count``; if the rows are handed on, also the fields of
        :class:`~airflow_dblink.operators.fetch.DblinkFetchOperator`.
    :raises AirflowFailException: as :class:`DblinkSendQueryOperator`.
    :raises RemoteError: the job's error, with the server's own SQLSTATE, message, detail, hint and context;
        57014 if somebody cancelled the job. A retry sends a new job.
    :raises TransientError: the same, if a retry may help; 08006 if the job was lost.
    :raises AirflowTaskTimeout: after ``execution_timeout``; the job is cancelled.
    :raises DblinkTaskKilledError: after a kill; the job is cancelled, if it was a user's.
    """

    template_fields: Sequence[str] = (
        "conn_id",
        "sql",
        "parameters",
        "path",
        "path_conn_id",
        "session_settings",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = _RENDERERS
    operator_extra_links = (DblinkJobLink(),)
    ui_color = "#e0dcf3"

    def __init__(
        self,
        *,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        keep_result: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(deferrable=deferrable, **kwargs)
        self.keep_result = keep_result
        check_known(self)

    def _check_early(self) -> None:
        super()._check_early()
        sink = self._row_sink(self.conn_id)
        if sink.given:
            sink.demand_place()

    def execute(self, context: Context) -> Any:
        """Send the job and wait for its end, in the triggerer if it takes longer."""
        with self._errors_for_airflow():
            self._check_early()
            sink = self._row_sink(self.conn_id)
            sink.demand_file()
        return self._send_and_wait(context, keep_result=self.keep_result or bool(sink.given))

    def _result(self, context: Context, hook: DblinkHook, job: Job) -> dict[str, Any]:
        result = {**self._handle.as_dict(), "command_tag": job.command_tag, "row_count": job.row_count}
        sink = self._row_sink(self.conn_id)
        if sink.given:
            drop = not self.keep_result
            result |= delivered(self, context, hook, self._handle, job, sink, drop=drop)
        return result


class DblinkGetResultOperator(RowDestination, MovingOperator, TakesHandle):
    """Wait for a job, and hand on the rows that it kept: to a function, a file, a table, or XCom.

    Exactly one of *handler*, *path*, *max_xcom_rows* and *destination_table* takes the rows. They come in the
    order in which the query returned them. COPY loads them into a table exactly once; a retry calls a
    function again from the first batch.

    :param handle: return value of :class:`DblinkSendQueryOperator`, or a job's id with *conn_id*. (templated)
    :param conn_id: Airflow connection of the job's database: needed for an id alone, and for a handle that a
        template gives; a handle of another connection is refused. (templated)
    :param job_schema: schema of the job table; a handle of another schema is refused. For an id alone, and
        for a handle from a template, the default is the connection's schema.
    :param handler: called with each batch, a list of tuples typed by psycopg.
    :param path: URL of a CSV file on Airflow's object storage, as in
        :class:`~airflow_dblink.operators.fetch.DblinkFetchOperator`. (templated)
    :param path_conn_id: Airflow connection of the object storage. (templated)
    :param header: whether the file begins with the column names.
    :param csv_options: options of PostgreSQL's COPY: ``delimiter``, ``null``, ``quote``, ``escape``.
    :param max_xcom_rows: push the rows as a list of lists, if there are at most this many.
    :param max_xcom_bytes: limit for the rows in XCom, as JSON; if they take more, the task fails.
    :param batch_rows: rows per batch.
    :param destination_conn_id: Airflow connection of the destination. (templated)
    :param destination_table: table for the rows, its name as in SQL. (templated)
    :param mode: ``append`` (only adds rows, so a second load of the same keys fails), ``replace``, ``upsert``
        or ``create``, as in :class:`~airflow_dblink.operators.transfer.DblinkTransferOperator`. (templated)
    :param key: columns of a unique index for ``upsert``. (templated)
    :param allow_empty_source: let a result without rows empty the destination in mode ``replace``.
        (templated)
    :param drop_result: drop the rows on the server once they are handed on.
    :param poll_interval: seconds after which the job's row is read without a notification.
    :param orphan_timeout: time that a try waits for the load of a killed try.
    :param kwargs: arguments of the base operator; ``base_path`` and ``file_mode`` as in the fetch operator.

    :returns: (XCom) the fetch operator's fields, or the transfer operator's with *destination_table*.
    :raises AirflowFailException: if there is no such job, it kept no rows, or they were dropped; for
        mistakes found before anything is read.
    :raises RemoteError: the job's error, with the server's own SQLSTATE; a server's errors.
    :raises TransientError: the same, if a retry may help; 08006 if the job was lost.
    :raises DblinkTaskKilledError: after a kill; the job goes on.

    Model: ``dblink_get_result``.
    """

    template_fields: Sequence[str] = (
        "handle",
        "conn_id",
        "path",
        "path_conn_id",
        "destination_conn_id",
        "destination_table",
        "mode",
        "key",
        "allow_empty_source",
        "session_settings",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"handle": "json", "session_settings": "json"}
    operator_extra_links = (DblinkJobLink(),)
    ui_color = "#e3f0d8"

    def __init__(
        self,
        *,
        destination_conn_id: str | None = None,
        destination_table: str | None = None,
        key: Sequence[str] | None = None,
        drop_result: bool = False,
        poll_interval: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.destination_conn_id = destination_conn_id
        self.destination_table = destination_table
        self.key = key
        self.drop_result = drop_result
        with constructing(self):
            demand_seconds("poll_interval", poll_interval)
        self.poll_interval = poll_interval
        self.job_handle: JobHandle | None = None  # for the link
        self._note_given(destination_conn_id=destination_conn_id, destination_table=destination_table)
        check_known(self)

    def _check_early(self) -> None:
        self._demand_values()
        demand_columns("key", self.key)
        sink = self._row_sink(self.conn_id)
        if self.destination_table is None and self.destination_conn_id is None:
            sink.demand_place()
        elif sink.given or self.destination_table is None or self.destination_conn_id is None:
            raise UsageError(
                "rows go to destination_table of destination_conn_id (give both), or to one of handler,"
                " path and max_xcom_rows"
            )
        else:
            flag("allow_empty_source", self.allow_empty_source)
            Spec(destination_table="x", source_table="x", mode=self.mode, key=self.key).check()

    def execute(self, context: Context) -> dict[str, Any]:
        """Hand on the rows; their count becomes the XCom return value."""
        with self._errors_for_airflow():
            self._check_early()
            handle = self.job_handle = self._read_handle()
            sink = self._row_sink(handle.conn_id)
            sink.demand_file()
            page = page_note(self.dag_id, handle)
            self.log.info("Getting the result of job %s on %s%s", handle.job_id, handle.conn_id, page)
            with self._hook(handle.conn_id) as hook:
                job = hook.wait_for_job(handle, poll_s=self.poll_interval)
                if (error := job.error(handle.conn_id)) is not None:
                    raise error
                if self.destination_table is None:
                    result = delivered(self, context, hook, handle, job, sink, drop=self.drop_result)
                else:
                    result = self._to_table(context, hook, handle, job)
                    if self.drop_result:
                        hook.drop_result(handle)
                self._tell_assets(context, result)
                return result

    def _to_table(self, context: Context, hook: DblinkHook, handle: JobHandle, job: Job) -> dict[str, Any]:
        """Load the rows into the destination; if an earlier try has loaded them, they may be dropped."""
        table, conn_id = self.destination_table, self.destination_conn_id
        if table is None or conn_id is None:
            raise UsageError("no destination", handle.conn_id)
        loaded = Tries(context["task_state_store"], context["ti"].max_tries).left(ONCE_KEY)
        with ExitStack() as held:
            query = ""
            if job.result_table is not None:
                query = held.enter_context(hook.counted_result_query(handle, job))
            elif loaded is None or loaded.is_cleared:
                demand_kept_rows(handle, job)
            spec = Spec(
                destination_table=table,
                source_sql=query,
                mode=self.mode,
                key=self.key,
                allow_empty_source=flag("allow_empty_source", self.allow_empty_source),
            )
            return self._move(context, handle.conn_id, conn_id, spec)


class DblinkCancelQueryOperator(DblinkBaseOperator, TakesHandle):
    """Cancel jobs that still run, and leave alone those that have ended; made for teardown.

    A running job's session gets ``pg_cancel_backend`` and, if that doesn't end the job within seconds,
    ``pg_terminate_backend``. A job that hasn't begun never will.

    :param handle: return value of :class:`DblinkSendQueryOperator`, a list of these, or a job's id with
        *conn_id*; ``None``, the output of a task that has sent nothing, is fine, too. (templated)
    :param conn_id: as in :class:`DblinkGetResultOperator`. (templated)
    :param job_schema: as in :class:`DblinkGetResultOperator`.
    :param kwargs: arguments of the base operator.

    :returns: (XCom) the state of each job after that, by the job's id.
    :raises AirflowFailException: if there is no such job; the other jobs have been cancelled then.
    :raises RemoteError: the server's errors; TransientError if a retry may help, or a job still runs.

    Model: ``dblink_cancel_query``.
    """

    template_fields: Sequence[str] = ("handle", "conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"handle": "json"}
    ui_color = "#f3d7d7"

    def execute(self, context: Context) -> dict[str, str]:
        """Cancel; the states become the XCom return value."""
        with self._errors_for_airflow():
            states: dict[str, str] = {}
            failures: list[DblinkError] = []
            for handle in self._handles():
                try:
                    with self._hook(handle.conn_id) as hook:
                        job = hook.cancel_job(handle)
                except StoppedError:
                    raise
                except DblinkError as error:  # the other jobs must be cancelled all the same
                    self.log.warning("%s", error)
                    failures.append(error)
                else:
                    self.log.info("Job %s on %s: %s", job.id, handle.conn_id, job.state)
                    states[handle.job_id] = job.state
            if failures:
                raise next((error for error in failures if error.retryable), failures[0])
            return states

    def _handles(self) -> list[JobHandle]:
        if self.handle is None or self.handle in ("", "None"):
            self.log.info("No job was sent: nothing to cancel.")
            return []
        return [
            self._handle_of(handle, rendered=rendered)
            for handle, rendered in handles_of(self.given_handle, self.handle)
            if handle is not None
        ]
