"""Waiting for the ends of many jobs in one event loop, over one connection per database.

All who wait for jobs of one database in one event loop share a :class:`Watcher`: it listens for the
ends, and looks at all jobs that are waited for with one query, at first, every *poll* seconds, and
after each reconnect. A database that is away is no end of anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any, ClassVar, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncClientCursor, AsyncConnection, pq, waiting
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many
from psycopg.rows import TupleRow, dict_row

from airflow_dblink.core.errors import (
    DblinkError,
    TransientError,
    UsageError,
    from_psycopg,
)
from airflow_dblink.core.jobs import steps
from airflow_dblink.core.jobs.job import Job, standby
from airflow_dblink.core.jobs.steps import (
    CALL_AGAIN_AFTER_S,
    LISTEN,
    Pause,
    Step,
    Steps,
    back_off,
    until_claimed,
)
from airflow_dblink.core.jobs.trust import asking_failed, distrust_of, guarded_call
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.login import aconnect
from airflow_dblink.core.server.target import Target

log = logging.getLogger(__name__)

T = TypeVar("T")
Connection = AsyncConnection[TupleRow]
GetTarget = Callable[[], Awaitable[Target]]

_CLAIM_S = 30.0
_CALLS_AT_ONCE = 4
_LOOK_S = 0.1
_ANSWER_S = 60.0


class Watcher:
    """What one event loop waits for in one database.

    :ivar has_looked: set once it has looked at jobs for the first time.
    :param get_target: asked before each connecting, so that a changed password is picked up.
    :param schema: where the job table is.
    :param application_name: what ``pg_stat_activity`` shows of it.
    :param answer_s: seconds after which a server that doesn't answer is left, and connected to anew.
    """

    _of_loops: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Watcher]]] = (
        WeakKeyDictionary()
    )

    def __init__(
        self, get_target: GetTarget, schema: str, application_name: str, *, answer_s: float = _ANSWER_S
    ) -> None:
        self._get_target = get_target
        self._schema = schema
        self._application_name = application_name
        self._answer_s = answer_s
        self._waiting: dict[UUID, set[asyncio.Future[Job | None]]] = {}
        self._to_look_at: set[UUID] = set()
        self.has_looked = asyncio.Event()
        self._wake = asyncio.Event()
        self._nobody_waits = asyncio.Event()
        self._polls: dict[asyncio.Future[Job | None], float] = {}
        self._task: asyncio.Task[None] | None = None
        self._calls: dict[UUID, asyncio.Task[None]] = {}

    @classmethod
    def shared(cls, key: Hashable, make: Callable[[], Watcher]) -> Watcher:
        """Return the running loop's watcher under *key*, which is made if there is none."""
        watchers = cls._of_loops.setdefault(asyncio.get_running_loop(), {})
        if key not in watchers:
            watchers[key] = make()
        return watchers[key]

    async def wait(self, job_id: UUID, poll_s: float) -> Job | None:
        """Wait until the job has ended and return it, ``None`` if there is no such job.

        :param poll_s: seconds after which it is looked at without being told; the shortest of all holds.
        :raises DblinkError: what no waiting mends: the connection's mistakes, missing rights.
        """
        future: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, set()).add(future)
        self._nobody_waits.clear()
        self._polls[future] = poll_s
        self._look_at([job_id])
        if self._task is None or self._task.done():
            # Not in the context of whoever came first: its log isn't everybody's.
            self._task = asyncio.create_task(self._run(), context=Context())
        try:
            return await future
        finally:
            del self._polls[future]
            futures = self._waiting.get(job_id, set())
            futures.discard(future)
            if not futures:
                self._waiting.pop(job_id, None)
            if not self._waiting:
                self._nobody_waits.set()
                self._wake.set()  # the task then ends by itself

    @property
    def _poll_s(self) -> float:
        return min(self._polls.values(), default=0.0)

    # -- one task for all

    async def _run(self) -> None:
        pauses = back_off()
        while self._waiting:
            try:
                target = await self._get_target()
                connection = await aconnect(target, application_name=self._application_name, direct=True)
                try:
                    async for _ in self._looks(connection, target):
                        pauses = back_off()
                finally:  # at once: no ROLLBACK over a network that may have gone
                    await connection.close()
            except (TransientError, psycopg.OperationalError, OSError) as error:
                reason = without_credentials(str(error).strip())
                log.warning("Waiting for %s jobs: %s", len(self._waiting), reason)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._nobody_waits.wait(), next(pauses))
            except DblinkError as error:
                self._fail(error)
            except Exception as error:
                log.exception("Waiting for jobs failed")
                self._fail(error)
        self._task = None

    async def _looks(self, connection: Connection, target: Target) -> AsyncIterator[None]:
        """Look at what is waited for, whenever there is reason to, until nothing is."""
        loop = asyncio.get_running_loop()
        listens = listens_to(target)
        if listens:
            connection.add_notify_handler(lambda note: self._told(note.payload))
            await self._say(connection, LISTEN, target.conn_id)
        self._look_at(self._waiting)
        looked_at_all = loop.time()
        while self._waiting:
            ids = [job_id for job_id in self._to_look_at if job_id in self._waiting]
            self._to_look_at.clear()
            self._wake.clear()
            if ids:
                jobs = await adrive(
                    connection, target, self._schema, steps.look(ids), answer_s=self._answer_s
                )
                for job_id in ids:
                    self._seen(job_id, jobs.get(job_id), target)
            self.has_looked.set()
            yield None
            if self._waiting and not self._to_look_at:
                await self._until_woken(connection, looked_at_all + self._poll_s - loop.time())
            # Also where somebody tells something all the time: not all ends are told.
            if loop.time() >= looked_at_all + self._poll_s:
                self._look_at(self._waiting)
                looked_at_all = loop.time()

    def _seen(self, job_id: UUID, job: Job | None, target: Target) -> None:
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
            self._calls[job_id] = task = asyncio.create_task(self._call(target, job))
            task.add_done_callback(lambda _: self._calls.pop(job_id))

    def _fail(self, error: Exception) -> None:
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        self._waiting.clear()

    # -- waking up

    def _look_at(self, job_ids: Iterable[UUID]) -> None:
        self._to_look_at.update(job_ids)
        self._wake.set()

    def _told(self, payload: str) -> None:
        with suppress(ValueError):  # anybody may notify
            if (job_id := UUID(payload)) in self._waiting:
                self._look_at([job_id])

    async def _until_woken(self, connection: Connection, seconds: float) -> None:
        """Wait for a notification or a new job to look at, but not longer than so many *seconds*."""
        loop, pgconn = asyncio.get_running_loop(), connection.pgconn
        self._take_notifications(pgconn)  # what came with the last answer
        descriptor = pgconn.socket
        loop.add_reader(descriptor, self._wake.set)
        try:
            await asyncio.wait_for(self._wake.wait(), max(seconds, 0.0))
        except TimeoutError:
            return
        finally:
            loop.remove_reader(descriptor)
        pgconn.consume_input()
        self._take_notifications(pgconn)

    def _take_notifications(self, pgconn: pq.abc.PGconn) -> None:
        while (note := pgconn.notifies()) is not None:
            self._told(note.extra.decode(errors="replace"))

    # -- the server

    async def _say(self, connection: Connection, statement: bytes, conn_id: str) -> None:
        try:
            async with _answer_within(connection, conn_id, self._answer_s):
                await connection.execute(statement)
        except psycopg.errors.ReadOnlySqlTransaction:  # LISTEN is refused by standbys alone
            raise standby(conn_id) from None
        except psycopg.Error as error:
            raise from_psycopg(error, conn_id, "waiting for jobs") from None

    async def _call(self, target: Target, job: Job) -> None:
        try:
            await acall(target, self._application_name, self._schema, job, answer_s=self._answer_s)
        except (DblinkError, psycopg.Error, OSError) as error:
            log.warning("Calling job %s failed: %s", job.id, error)


def listens_to(target: Target) -> bool:
    """Return whether a session of *target* hears notifications: not through a pooler in transaction mode."""
    return target.pooling_mode != "transaction" or target.has_direct_address


def demand_session(target: Target, what: str) -> None:
    """Refuse what needs a session of its own, where there is none.

    :raises UsageError: names *what*, and the field of the connection that would help.
    """
    if not listens_to(target):
        raise UsageError(
            f"{what} does not survive a pooler in transaction mode",
            target.conn_id,
            hint="set direct_host or direct_port in the connection; or the role's own setting",
        )


async def acall(
    target: Target, application_name: str, schema: str, job: Job, *, answer_s: float = _ANSWER_S
) -> None:
    """Call the procedure that runs a job, and return when the job is seen running.

    :param answer_s: seconds that each answer of the server may take.
    :raises DblinkError: where no connection comes about, or no answer.
    :raises psycopg.Error: if the connection is lost.
    """
    connection = await aconnect(target, application_name=application_name, direct=True)
    notices: list[Any] = []
    connection.add_notice_handler(notices.append)
    try:
        if job.statement_timeout is not None:
            setting = "SELECT pg_catalog.set_config('statement_timeout', %s, false)"
            async with _answer_within(connection, target.conn_id, answer_s):
                await connection.execute(setting, [job.statement_timeout])
        message = guarded_call(schema, str(job.id), target.trusted_owners)
        connection.pgconn.send_query(message.encode())
        claimed = until_claimed(connection.pgconn, notices, time.monotonic() + _CLAIM_S)
        # Not the connection's own wait: it cancels what runs when the triggerer is stopped.
        ended = await waiting.wait_async(claimed, connection.pgconn.socket, _LOOK_S)
        if ended and not notices:
            async with _answer_within(connection, target.conn_id, answer_s):
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
    target: Target, application_name: str, schema: str, job_id: UUID, *, answer_s: float = _ANSWER_S
) -> Job | None:
    """Cancel a job and wait up to three seconds for its end; returns it as it is then.

    :param answer_s: seconds that each answer of the server may take.
    :returns: ``None`` if there is no such job.
    :raises DblinkError: where no connection comes about, or no answer, and what the server says.
    """
    async with await aconnect(target, application_name=application_name, direct=True) as connection:
        return await adrive(connection, target, schema, steps.cancel(job_id), answer_s=answer_s)


async def adrive(
    connection: Connection, target: Target, schema: str, procedure: Steps[T], *, answer_s: float = _ANSWER_S
) -> T:
    """Do what *procedure* says, step by step.

    :param answer_s: seconds that each answer of the server may take; the connection is closed then.
    :raises RemoteError: what the server says.
    :raises TransientError: 08006 if it says nothing.
    """
    rows: list[dict[str, Any]] = []
    try:
        step = next(procedure)
        while True:
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            else:
                async with _answer_within(connection, target.conn_id, answer_s):
                    rows = await _arun(connection, target, schema, step)
            step = procedure.send(rows)
    except StopIteration as done:
        result: T = done.value
        return result


@asynccontextmanager
async def _answer_within(connection: Connection, conn_id: str, seconds: float) -> AsyncIterator[None]:
    """Bound the wait for an answer; no answer closes the connection.

    :raises TransientError: 08006.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TransientError(f"the server did not answer within {seconds:.0f} s", conn_id, "08006") from None
    except asyncio.CancelledError:
        await connection.close()
        raise


async def _arun(connection: Connection, target: Target, schema: str, step: Step) -> list[dict[str, Any]]:
    try:
        async with AsyncClientCursor(connection, row_factory=dict_row) as cursor:
            await cursor.execute(step.message(schema, target.trusted_owners), step.params)
            while cursor.nextset():
                pass
            return await cursor.fetchall() if cursor.description else []
    except psycopg.Error as error:
        raise asking_failed(error, target.conn_id, schema) from None
