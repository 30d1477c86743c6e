"""Sends a job, once across retries and killed workers.

First an id is made and stored for the next try, then the row is inserted, and last the procedure is called.
So if a process dies in between, the next try knows the job's id, and the row's primary key and state prevent
that the job is sent or run twice.

The stored state, as JSON: ``job_id``; ``server`` (see :class:`Installation`); ``sent``: whether the row is
known to be there; and ``life`` and ``ended`` of :mod:`airflow_dblink.core.once.tries`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from airflow_dblink.core.errors import OutcomeUnknownError, TransientError
from airflow_dblink.core.jobs.call import Call, call
from airflow_dblink.core.jobs.client import Jobs, task_params
from airflow_dblink.core.jobs.draft import Draft
from airflow_dblink.core.jobs.install import Installation
from airflow_dblink.core.jobs.job import Job, standby
from airflow_dblink.core.jobs.steps import Step
from airflow_dblink.core.once.tries import Left, Store, Tries
from airflow_dblink.core.server.connection import LinkConnection

log = logging.getLogger(__name__)

KEY = "airflow_dblink_job"


@dataclass(frozen=True)
class Sent:
    """A sent job.

    :ivar job: its state, if an earlier try had sent it and it had begun.
    :ivar call: the running call, if this try made it. Leave it, or wait for its end.
    """

    job_id: UUID
    job: Job | None = None
    call: Call | None = None


def _job_id(left: Left) -> UUID:
    return UUID(left.facts["job_id"])


def _can_be_read(left: Left) -> bool:
    """Return whether the value has the form that a try stores; users may have changed it since."""
    job_id, server, sent = (left.facts.get(name) for name in ("job_id", "server", "sent"))
    try:
        UUID(job_id)
    except (AttributeError, TypeError, ValueError):
        return False
    return isinstance(server, Mapping) and isinstance(sent, bool)


@dataclass
class Submission:
    """One job of one task, sent once, however many tries the task takes.

    :ivar open: opens a connection to the target, around a pooler if possible.
    :ivar store: survives the process; refuses a superseded try, which makes it the fence.
    :ivar task: ``dag_id``, ``task_id``, ``run_id``, ``map_index``, ``try_number``.
    :ivar key: key in the store, a different one for each job of a task.
    :ivar life: as in :class:`~airflow_dblink.core.once.transaction.Once`.
    :ivar cancels: whether a cleared task cancels its running job; otherwise the job is taken over.
    """

    conn_id: str
    schema: str
    open: Callable[[], LinkConnection]
    store: Store
    task: Mapping[str, Any] = field(default_factory=dict)
    key: str = KEY
    life: int = 0
    cancels: bool = True
    _left: Left | None = None

    def submit(self, make: Callable[[LinkConnection], Draft]) -> Sent:
        """Send the job, or find the one that an earlier try has sent.

        An earlier job is taken if it has succeeded or still runs. If it failed, was cancelled or
        lost, a new one is sent, which names it in ``replaces``. Returns as soon as the job is seen
        running.

        :param make: checks and returns the draft; only called if a job has to be sent.
        :raises UsageError: from *make*; nothing is sent then.
        :raises InstallationError: if the database isn't ready for jobs, and this role can't make it so.
        :raises OutcomeUnknownError: if the server doesn't know the job that an earlier try has sent, or the
            stored id belongs to another task's job.
        :raises RemoteError: the server's errors.
        :raises Exception: the store's error for a superseded try; nothing is sent then.
        """
        connection = self.open()
        try:
            jobs = Jobs(connection, self.conn_id, self.schema)
            left, earlier = self._earlier(jobs)
            if left is not None:
                self._left = left
            if earlier is not None and earlier.state in ("running", "succeeded"):
                connection.close()
                return Sent(earlier.id, earlier)
            if earlier is not None and earlier.state == "sent":
                job_id, statement_timeout = earlier.id, earlier.statement_timeout
            else:
                draft = make(connection)
                # An id was stored, but its row is missing: any other try would insert the same row.
                job_id = _job_id(left) if left and earlier is None else uuid.uuid4()
                statement_timeout = draft.statement_timeout
                self._insert(jobs, draft, job_id, earlier.id if earlier else None)
            started = call(connection, self.conn_id, self.schema, job_id, statement_timeout)
            if not started.claimed:
                self._demand_begun(job_id)
            if self._left is not None:
                self._left = self._tries.amend(self.key, self._left, sent=True)
        except BaseException:
            connection.close()
            raise
        return Sent(job_id, None, started)

    def finish(self) -> None:
        """Note that the task is about to succeed: if it is cleared later, it sends a new job."""
        left = self._left or self._tries.left(self.key)
        self._left = self._tries.leave(self.key, left.facts if left else {}, ended=True)

    def has_sent(self, job: Job) -> bool:
        """Return whether this task has sent the job: users who may write its state could put any id there."""
        ours = {name: value for name, value in task_params(self.task).items() if name != "try_number"}
        return all(getattr(job, name) == value for name, value in ours.items())

    @property
    def job_id(self) -> UUID | None:
        """The id of the job that this task has sent, or was about to send."""
        left = self._left or self._tries.left(self.key)
        return _job_id(left) if left and _can_be_read(left) else None

    @property
    def _tries(self) -> Tries:
        return Tries(self.store, self.life)

    def _earlier(self, jobs: Jobs) -> tuple[Left | None, Job | None]:
        """Return the value that an earlier try has left, and its job; ``None`` for both to begin anew."""
        left = self._tries.left(self.key)
        if left is None or (left.ended and left.is_cleared and not _can_be_read(left)):
            return None, None
        if not _can_be_read(left):
            raise self._unknown(left, "its stored state can't be read")
        found = jobs.installation()
        if left.is_cleared and self._is_done_with(jobs, left, found):
            return None, None
        return left, self._earlier_job(jobs, left, found)

    def _is_done_with(self, jobs: Jobs, left: Left, found: Installation) -> bool:
        """Return whether a cleared task begins anew; cancel its running job if :attr:`cancels`."""
        # This try may begin before the earlier one's process knows of the clearing.
        here = found.server == left.facts["server"] and found.version is not None
        job = jobs.find(_job_id(left)) if here else None
        if job is None or job.has_ended or not self.has_sent(job):
            return bool(left.ended)  # the user has seen the end
        if self.cancels:
            log.info("The task was cleared: cancelling job %s.", job.id)
            jobs.cancel(job.id)
        return False

    def _earlier_job(self, jobs: Jobs, left: Left, found: Installation) -> Job | None:
        job_id = _job_id(left)
        if found.server != left.facts["server"]:
            raise self._unknown(left, "another server or database answers now")
        if found.is_standby:
            raise standby(self.conn_id)
        job = jobs.find(job_id) if found.version is not None else None
        if job is None and left.facts["sent"]:
            raise self._unknown(left, "the server no longer knows it")
        if job is not None and not self.has_sent(job):
            raise self._unknown(left, "its stored id is another task's job")
        if job is not None and job.state == "running" and job.cancel_requested_at is not None:
            job = jobs.cancel(job_id)
            if not job.has_ended:
                raise TransientError(
                    f"job {job_id} of an earlier try is being cancelled, and still runs", self.conn_id
                )
        if job is not None:
            log.info("Job %s of an earlier try on %s: %s.", job_id, self.conn_id, job.state)
        return job

    def _insert(self, jobs: Jobs, draft: Draft, job_id: UUID, replaces: UUID | None) -> None:
        found = jobs.ready(keep_result=draft.keep_result)
        facts = {"job_id": str(job_id), "server": dict(found.server), "sent": False}
        self._left = self._tries.leave(self.key, facts)
        jobs.run(
            Step(
                ("insert",),
                {
                    **task_params(self.task),
                    "id": job_id,
                    "replaces": replaces,
                    "statement": draft.statement,
                    "bound_statement": draft.bound_statement,
                    "is_query": draft.is_query,
                    "keep_result": draft.keep_result,
                    "command": draft.command,
                    "settings": Jsonb(dict(draft.settings)),
                    "statement_timeout": draft.statement_timeout,
                },
            )
        )

    def _demand_begun(self, job_id: UUID) -> None:
        """Raise if no other call has begun the job either.

        :raises TransientError: a retry calls it again.
        :raises UsageError: if its row is gone.
        """
        with closing(self.open()) as connection:
            if Jobs(connection, self.conn_id, self.schema).get(job_id).state == "sent":
                raise TransientError(f"job {job_id} was sent, but its call did not begin it", self.conn_id)

    def _unknown(self, left: Left, why: str) -> OutcomeUnknownError:
        # Clearing the task then sends a new one.
        self._left = self._tries.leave(self.key, left.facts, ended=True)
        job = f"job {_job_id(left)}" if _can_be_read(left) else "a job"
        return OutcomeUnknownError(
            f"{job} of an earlier try may have run, but {why}",
            self.conn_id,
            hint="look whether its effect is there: if so, mark the task as success; if not, clear it",
        )
