"""Waiting for the ends of many jobs in one event loop.

All waiters for jobs of one job table in one event loop share a :class:`Watcher`, a subject of the
database's :class:`~airflow_dblink.core.listen.listener.Listener`. One query reads all awaited jobs. While a
database is away, no wait ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import AsyncClientCursor, pq, waiting
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many
from psycopg.rows import dict_row

from airflow_dblink.core.errors import DblinkError, TransientError, from_psycopg
from airflow_dblink.core.jobs import steps
from airflow_dblink.core.jobs.job import Job, standby
from airflow_dblink.core.jobs.steps import CALL_AGAIN_AFTER_S, CHANNEL, Pause, Step, Steps, until_claimed
from airflow_dblink.core.jobs.trust import asking_failed, distrust_of, guarded_call
from airflow_dblink.core.listen.listener import ANSWER_S, Connection, Listener, Session, answer_within
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.login import aconnect
from airflow_dblink.core.server.settings import set_config
from airflow_dblink.core.server.target import Target

log = logging.getLogger(__name__)

T = TypeVar("T")

_CALLS_AT_ONCE = 4


class Watcher:
    """The jobs of one job table that one event loop waits for; a :class:`Subject` of *listener*.

    :param schema: schema of the job table.
    """

    channel = CHANNEL

    def __init__(self, listener: Listener, schema: str) -> None:
        self.schema = schema
        self._listener = listener
        self._waiting: dict[UUID, set[asyncio.Future[Job | None]]] = {}
        self._to_look_at: set[UUID] = set()
        self._polls: dict[asyncio.Future[Job | None], float] = {}
        self._calls: dict[UUID, asyncio.Task[None]] = {}
        listener.subjects.append(self)

    @classmethod
    def of(cls, listener: Listener, schema: str) -> Watcher:
        """Return the *listener*'s watcher for the jobs in *schema*; make it if there is none."""
        for subject in listener.subjects:
            if isinstance(subject, Watcher) and subject.schema == schema:
                return subject
        return cls(listener, schema)

    async def wait(self, job_id: UUID, poll_s: float) -> Job | None:
        """Wait until the job has ended and return it, ``None`` if there is no such job.

        :param poll_s: seconds after which its row is read without a notification; the shortest of all counts.
        :raises DblinkError: if waiting can't help: mistakes in the connection, missing rights.
        """
        future: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, set()).add(future)
        self._polls[future] = poll_s
        self._look_at([job_id])
        try:
            return await future
        finally:
            del self._polls[future]
            futures = self._waiting.get(job_id, set())
            futures.discard(future)
            if not futures:
                self._waiting.pop(job_id, None)
            if not self._waiting:
                self._listener.wake()

    # -- as a subject

    def __str__(self) -> str:
        return f"{len(self._waiting)} jobs"

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    @property
    def poll_s(self) -> float:
        """Seconds after which all jobs are read."""
        return min(self._polls.values(), default=0.0)

    @property
    def wants_a_look(self) -> bool:
        """Whether jobs are to be read."""
        return bool(self._to_look_at)

    def told(self, payload: str) -> None:
        """Note that the job with the id in *payload* is to be read."""
        with suppress(ValueError):  # anybody may notify
            if (job_id := UUID(payload)) in self._waiting:
                self._look_at([job_id])

    def look_at_all(self, *, is_new: bool) -> None:
        """Note that all jobs are to be read, in the round that has begun."""
        self._to_look_at.update(self._waiting)

    async def look(self, session: Session) -> None:
        """Read the noted jobs, and end the waiting for those that have ended.

        An error that waiting can't help ends the waiting of all who waited when the question was asked. Those
        who came later ask again: the schema may have been installed since.
        """
        ids = [job_id for job_id in self._to_look_at if job_id in self._waiting]
        self._to_look_at.clear()
        if not ids:
            return
        asking = {future for futures in self._waiting.values() for future in futures}
        try:
            jobs = await adrive(
                session.connection, session.target, self.schema, steps.look(ids), answer_s=session.answer_s
            )
        except TransientError:
            raise
        except DblinkError as error:
            self._fail(asking, error)
            return
        for job_id in ids:
            self._seen(job_id, jobs.get(job_id), session)

    def fail(self, error: Exception) -> None:
        """End the waiting for all jobs with *error*."""
        self._fail({future for futures in self._waiting.values() for future in futures}, error)

    def _fail(self, asking: set[asyncio.Future[Job | None]], error: Exception) -> None:
        for job_id, futures in [*self._waiting.items()]:
            for future in futures & asking:
                if not future.done():
                    future.set_exception(error)
            futures -= asking
            if not futures:
                del self._waiting[job_id]

    def standby(self, conn_id: str) -> DblinkError:
        """Return the error for a standby."""
        return standby(conn_id)

    # -- jobs that were read

    def _look_at(self, job_ids: Iterable[UUID]) -> None:
        self._to_look_at.update(job_ids)
        self._listener.wake()

    def _seen(self, job_id: UUID, job: Job | None, session: Session) -> None:
        if job is None or job.has_ended:
            for future in self._waiting.pop(job_id, set()):
                if not future.done():
                    future.set_result(job)
        elif (
            job.state == "sent"
            and job.age_s > CALL_AGAIN_AFTER_S
            and job_id not in self._calls
            and len(self._calls) < _CALLS_AT_ONCE
        ):
            log.warning("Job %s was sent %.0f s ago, and nobody runs it: calling it.", job_id, job.age_s)
            self._calls[job_id] = task = asyncio.create_task(self._call(session, job))
            task.add_done_callback(lambda _: self._calls.pop(job_id))

    async def _call(self, session: Session, job: Job) -> None:
        name, answer_s = session.application_name, session.answer_s
        try:
            await acall(session.target, name, self.schema, job, answer_s=answer_s)
        except (DblinkError, psycopg.Error, OSError) as error:
            reason = without_credentials(str(error).strip())
            log.warning("Calling job %s on %s failed: %s", job.id, session.target.conn_id, reason)


async def acall(
    target: Target, application_name: str, schema: str, job: Job, *, answer_s: float = ANSWER_S
) -> None:
    """Call the procedure that runs a job, and return when the job is seen running.

    :param answer_s: seconds that each answer of the server may take.
    :raises DblinkError: if there is no connection, or no answer.
    :raises psycopg.Error: if the connection is lost.
    """
    connection = await aconnect(target, application_name=application_name, direct=True)
    notices: list[Any] = []
    connection.add_notice_handler(notices.append)
    try:
        if job.statement_timeout is not None:
            setting = set_config([("statement_timeout", job.statement_timeout)], local=False)
            async with answer_within(connection, target.conn_id, answer_s):
                await connection.execute(setting)
        message = guarded_call(schema, str(job.id), target.trusted_owners)
        connection.pgconn.send_query(message.encode())
        claimed = until_claimed(connection.pgconn, notices, time.monotonic() + steps.CLAIM_S)
        # Not the connection's own wait, which cancels the running statement when the triggerer is stopped.
        ended = await waiting.wait_async(claimed, connection.pgconn.socket, steps.LOOK_S)
        if ended and not notices:
            async with answer_within(connection, target.conn_id, answer_s):
                results = await connection.wait(fetch_many(connection.pgconn))
            for result in results:
                if result.status == pq.ExecStatus.FATAL_ERROR:
                    failure = error_from_result(result, encoding=connection.info.encoding)
                    raise distrust_of(failure, target.conn_id, schema) or from_psycopg(
                        failure, target.conn_id, "calling the job"
                    )
    finally:
        await connection.close()


async def acancel(
    target: Target, application_name: str, schema: str, job_id: UUID, *, answer_s: float = ANSWER_S
) -> Job | None:
    """Cancel a job, wait up to three seconds for its end, and return its state then.

    :param answer_s: seconds that each answer of the server may take.
    :returns: ``None`` if there is no such job.
    :raises DblinkError: if there is no connection, or no answer; the server's errors.
    """
    async with await aconnect(target, application_name=application_name, direct=True) as connection:
        return await adrive(connection, target, schema, steps.cancel(job_id), answer_s=answer_s)


async def adrive(
    connection: Connection, target: Target, schema: str, procedure: Steps[T], *, answer_s: float = ANSWER_S
) -> T:
    """Run *procedure* step by step, and return its result.

    :param answer_s: seconds that each answer of the server may take; the connection is closed then.
    :raises RemoteError: the server's errors.
    :raises TransientError: 08006 if it doesn't answer.
    """
    rows: list[dict[str, Any]] = []
    try:
        step = next(procedure)
        while True:
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            else:
                async with answer_within(connection, target.conn_id, answer_s):
                    rows = await _arun(connection, target, schema, step)
            step = procedure.send(rows)
    except StopIteration as done:
        result: T = done.value
        return result


async def _arun(connection: Connection, target: Target, schema: str, step: Step) -> list[dict[str, Any]]:
    try:
        async with AsyncClientCursor(connection, row_factory=dict_row) as cursor:
            await cursor.execute(step.message(schema, target.trusted_owners), step.params)
            while cursor.nextset():
                pass
            return await cursor.fetchall() if cursor.description else []
    except psycopg.Error as error:
        raise asking_failed(error, target.conn_id, schema) from None
