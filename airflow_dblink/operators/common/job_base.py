"""The bases of operators that send jobs, and wait for them."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferralTimeout

from airflow_dblink.core.errors import (
    DblinkError,
    RemoteError,
    StoppedError,
    UsageError,
)
from airflow_dblink.core.jobs.client import Jobs
from airflow_dblink.core.jobs.draft import Draft, demand_statement, draft
from airflow_dblink.core.jobs.job import Job, JobHandle, missing
from airflow_dblink.core.jobs.send import Sent, Submission
from airflow_dblink.core.listen.listener import demand_session, listens_to
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.connection import LinkConnection, time_limit
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.target import parse_session_settings
from airflow_dblink.exceptions import DblinkTaskKilledError
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.links.job import DblinkJobLink, job_url, page_note
from airflow_dblink.operators.common.arguments import demand_seconds, demand_timedelta
from airflow_dblink.operators.common.known import constructing
from airflow_dblink.operators.common.sql import SqlOperator
from airflow_dblink.triggers.job import DblinkJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

_CANCEL_S = 10.0  # of a server that doesn't answer
# The trigger applies the limit itself; Airflow's own limit is for the case that no triggerer runs.
_TRIGGERER_GRACE = timedelta(seconds=30)
_QUERY_CANCELED = "57014"


class JobSendingOperator(SqlOperator):
    """Base of the operators that can send a job; not one itself.

    :param job_schema: schema of the job table; by default the connection's setting.
    :param cancel_on_kill: cancel the job when a user kills the task, marks or clears it.
    """

    def __init__(
        self,
        *,
        job_schema: str | None = None,
        cancel_on_kill: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_schema = job_schema
        self.cancel_on_kill = cancel_on_kill
        self.job_handle: JobHandle | None = None  # for the link

    def _check_early(self) -> None:
        self._demand_values("conn_id", "sql")
        demand_statement(self.sql, self.conn_id)

    def _hook(self, conn_id: str) -> DblinkHook:
        return DblinkHook(
            dblink_conn_id=conn_id,
            password_required=self.password_required,
            job_schema=self.job_schema,
            check=self._check,
        )

    def _submit(
        self,
        context: Context,
        hook: DblinkHook,
        submission: Submission,
        *,
        keep_result: bool,
        ends_with_task: bool,
    ) -> Sent:
        """Send the job, or find the job of an earlier try.

        :param ends_with_task: whether the task's ``execution_timeout`` also limits the job.
        """
        sent = submission.submit(
            lambda connection: self._draft(
                connection, hook, keep_result=keep_result, ends_with_task=ends_with_task
            )
        )
        self.job_handle = JobHandle(self.conn_id, str(sent.job_id), submission.schema)
        self.log.info(
            "Job %s on %s: %s%s",
            sent.job_id,
            self.conn_id,
            "taken over" if sent.job else "running",
            page_note(self.dag_id, self.job_handle),
        )
        # Now, and not at the task's end: people want to see the job while they wait.
        context["ti"].xcom_push(DblinkJobLink().xcom_key, job_url(self.dag_id, self.job_handle))
        return sent

    def _draft(
        self, connection: LinkConnection, hook: DblinkHook, *, keep_result: bool, ends_with_task: bool
    ) -> Draft:
        if ends_with_task:
            settings = self._settings(connection, self.conn_id)
        else:
            settings = parse_session_settings(self.conn_id, self.session_settings)
            if self.statement_timeout is not None:
                settings["statement_timeout"] = f"{self.statement_timeout.total_seconds() * 1000:.0f}ms"
        limit = settings.pop("statement_timeout", None)
        target = hook.target(self.conn_id)
        if self._has_own_limit:
            demand_session(target, "statement_timeout of a job")
        elif not listens_to(target):  # the limit is only execution_timeout, which is also applied here
            limit = None
        return draft(
            connection,
            self.conn_id,
            self.sql,
            self.parameters,
            keep_result=keep_result,
            settings=settings,
            statement_timeout=limit,
        )

    @property
    def _has_own_limit(self) -> bool:
        return self.statement_timeout is not None or "statement_timeout" in (self.session_settings or {})

    @contextmanager
    def _cancelling(self, context: Context, hook: DblinkHook, submission: Submission) -> Iterator[None]:
        """Cancel the job on a user's kill and on ``execution_timeout``, and on nothing else.

        A worker's restart doesn't cancel it; nor does an ordinary error, which may be a superseded try's.
        """
        try:
            yield
        except StoppedError:
            job_id = submission.job_id
            if job_id is None:
                raise
            # A user's kill comes through Airflow's API. If the API doesn't answer now, an outage stops us.
            if not self.cancel_on_kill or self._is_marked_running(context, without_answer=True):
                raise DblinkTaskKilledError(
                    f"the task was told to stop; job {job_id} goes on, and the next try takes it over"
                ) from None
            self._cancel(hook, submission)
            raise
        except AirflowTaskTimeout:
            self._cancel(hook, submission)
            raise

    def _cancel(self, hook: DblinkHook, submission: Submission) -> None:
        """Cancel the job within a few seconds; never raises."""
        job_id = submission.job_id
        if job_id is None:
            return
        try:
            # A new connection, since the hook's would stop by its check.
            with connect(
                hook.target(),
                application_name="airflow-dblink cancel",
                direct=True,
                check=time_limit(self.conn_id, _CANCEL_S),
            ) as connection:
                jobs = Jobs(connection, self.conn_id, submission.schema)
                if not submission.has_sent(jobs.get(job_id)):
                    raise UsageError("it is another task's", self.conn_id)
                job = jobs.cancel(job_id)
            self.log.info("Cancelled job %s on %s: %s", job_id, self.conn_id, job.state)
        except Exception as error:  # noqa: BLE001 - the error that ended the task matters more
            self.log.warning("Cancelling job %s failed: %s", job_id, without_credentials(str(error)))


class JobWaitingOperator(JobSendingOperator):
    """Base of the operators that can send a job and wait for its end; not one itself.

    :param deferrable: wait in the triggerer.
    :param poll_interval: seconds after which the job's row is read without a notification.
    :param grace_period: time that the worker waits for the job's end before the task defers.
    :raises AirflowFailException: if *poll_interval* is no number above 0, or *grace_period* no timedelta.
    """

    def __init__(
        self,
        *,
        deferrable: bool,
        poll_interval: float = 10.0,
        grace_period: timedelta = timedelta(seconds=5),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        with constructing(self):
            demand_seconds("poll_interval", poll_interval)
            demand_timedelta("grace_period", grace_period)
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.grace_period = grace_period

    @abstractmethod
    def _result(self, context: Context, hook: DblinkHook, job: Job) -> Any:
        """Return the task's result, once the job has succeeded."""

    def _send_and_wait(self, context: Context, *, keep_result: bool) -> Any:
        began = time.time()
        with self._errors_for_airflow(), self._hook(self.conn_id) as hook:
            submission = hook.submission(self.conn_id, cancels=self.cancel_on_kill)
            with self._cancelling(context, hook, submission):
                sent = self._submit(context, hook, submission, keep_result=keep_result, ends_with_task=True)
                if sent.call is not None:
                    sent.call.wait(self.grace_period.total_seconds())
                    sent.call.leave()
                job = self._ended_job(hook)
                if job is None:
                    if self.deferrable:
                        self._demand_wanted(context)
                        self._defer(began)
                    job = hook.wait_for_job(self._handle, poll_s=self.poll_interval)
            return self._ended(context, hook, submission, job)

    def _demand_wanted(self, context: Context) -> None:
        """Raise if a user has stopped the task: while it defers, Airflow doesn't tell it any more.

        :raises StoppedError: if a user has stopped it.
        """
        self._check()
        if not self._is_marked_running(context, without_answer=True):
            raise StoppedError("the task was told to stop")

    @property
    def _handle(self) -> JobHandle:
        if self.job_handle is None:
            raise UsageError("no job was sent", self.conn_id)
        return self.job_handle

    def _ended_job(self, hook: DblinkHook) -> Job | None:
        """Return the job if it has ended, ``None`` if it still runs or the server can't be asked."""
        try:
            job = hook.job(self._handle)
            return job if job.has_ended else None
        except DblinkError as error:
            if not isinstance(error, UsageError) and not isinstance(error, StoppedError):
                self.log.warning("%s", error)
                return None
            raise

    def _defer(self, began: float) -> None:
        handle = self._handle
        limit = self.execution_timeout
        self.log.info("Job %s still runs: waiting in the triggerer.", handle.job_id)
        self.defer(
            trigger=DblinkJobTrigger(
                conn_id=handle.conn_id,
                job_id=handle.job_id,
                schema=handle.schema,
                poll_interval=self.poll_interval,
                cancel_on_kill=self.cancel_on_kill,
                password_required=self.password_required,
                deadline=None if limit is None else began + limit.total_seconds(),
            ),
            method_name="execute_complete",
            kwargs={"handle": handle.as_dict()},
            timeout=None if limit is None else limit + _TRIGGERER_GRACE,
        )

    def execute_complete(self, context: Context, event: Mapping[str, Any], handle: Mapping[str, str]) -> Any:
        """Go on after the triggerer's event; the job's row tells how it ended."""
        self.job_handle = JobHandle.read(handle)
        state = event["state"]
        with self._errors_for_airflow(), self._hook(self.conn_id) as hook:
            submission = hook.submission(self.conn_id, cancels=self.cancel_on_kill)
            if state == "timeout":
                self._cancel(hook, submission)  # once more, in case the triggerer failed to cancel it
                raise AirflowTaskTimeout(
                    f"execution_timeout is over: job {self.job_handle.job_id} was cancelled"
                )
            if state == "error":
                kind = UsageError if event.get("is_mistake", True) else RemoteError
                raise kind(str(event.get("message")))
            if state == "missing":
                raise missing(self.job_handle.job_id, self.conn_id, self.job_handle.schema)
            with self._cancelling(context, hook, submission):
                job = self._ended_job(hook)
                if job is None:
                    job = hook.wait_for_job(self._handle, poll_s=self.poll_interval)
            return self._ended(context, hook, submission, job)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Cancel the job if waiting took longer than ``execution_timeout``, and no triggerer has done so."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            with suppress(Exception), self._hook(self.conn_id) as hook:
                submission = hook.submission(self.conn_id, cancels=self.cancel_on_kill)
                if submission.job_id is not None:  # for the link
                    self.job_handle = JobHandle(self.conn_id, str(submission.job_id), submission.schema)
                self._cancel(hook, submission)
            over = f"execution_timeout ({self.execution_timeout}) is over, and no triggerer has ended the job"
            raise TaskDeferralTimeout(f"{error}: {over}") from None

    def _ended(self, context: Context, hook: DblinkHook, submission: Submission, job: Job) -> Any:
        if (error := job.error(self.conn_id)) is not None:
            raise self._explained(job, error)
        self.log.info("Job %s on %s succeeded: %s", job.id, self.conn_id, job.command_tag or "OK")
        result = self._result(context, hook, job)
        self._check()
        submission.finish()
        self._tell_assets(context, {"command_tag": job.command_tag, "row_count": job.row_count})
        return result

    def _explained(self, job: Job, error: RemoteError) -> RemoteError:
        """Tell where the server's time limit came from; it applies if no worker or triggerer is in time."""
        limit = self.execution_timeout
        if job.state != "failed" or job.sqlstate != _QUERY_CANCELED or limit is None or self._has_own_limit:
            return error
        if job.statement_timeout is None or job.ended_at is None or job.started_at is None:
            return error
        if job.ended_at - job.started_at < limit or error.hint:  # somebody else has cancelled it
            return error
        return error.but(hint=f"the server's time limit follows from execution_timeout ({limit})")
