"""DblinkJobTrigger: waits in the triggerer for the end of a remote job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any
from uuid import UUID
from weakref import WeakSet

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_dblink.core.errors import DblinkError, RemoteError, TransientError, UsageError
from airflow_dblink.core.jobs.job import SCHEMA
from airflow_dblink.core.jobs.watch import Watcher, acancel
from airflow_dblink.core.server.target import Target
from airflow_dblink.hooks.dblink import DblinkHook

_NAME = "airflow-dblink triggerer"
_FIRST_LOOK_S = 5.0  # of a server that is away

_warmed_up: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
_tasks: set[asyncio.Task[None]] = set()


def _kept(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Return the running task of *work*; the event loop alone would not keep it."""
    task = asyncio.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


class DblinkJobTrigger(BaseTrigger):
    """Wait until a job has ended, and fire one small event: its id and its state.

    All that wait in one triggerer for jobs of one connection share one session there, which listens for
    their ends and looks at all of them with one query every *poll_interval* seconds. A server that can't be
    reached is tried again and again, and nothing fails meanwhile. A restart of the triggerer, or
    its move to another one, changes nothing: whoever waits next looks first.

    :param conn_id: Airflow connection of the database that the job runs in.
    :param job_id: the job's id.
    :param schema: schema of the job table.
    :param poll_interval: seconds.
    :param cancel_on_kill: cancel the job when a user marks the waiting task as failed or success, or
        clears it.
    :param password_required: dblink's credential rule, ``None``: what the connection says.
    :param deadline: seconds since 1970, when the task's ``execution_timeout`` is over: the job is then
        cancelled, and the event's state is ``timeout``.

    The event has ``job_id`` and ``state``: ``succeeded``, ``failed``, ``cancelled``, ``lost``; ``missing`` if
    there is no such job, ``timeout``, or ``error`` where waiting can't help, with a ``message``, and
    ``is_mistake`` if it is the user's.
    """

    def __init__(
        self,
        conn_id: str,
        job_id: str,
        schema: str = SCHEMA,
        poll_interval: float = 10.0,
        cancel_on_kill: bool = True,
        password_required: bool | None = None,
        deadline: float | None = None,
    ) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.job_id = job_id
        self.schema = schema
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.password_required = password_required
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments: ids and numbers, nothing secret."""
        return (
            "airflow_dblink.triggers.job.DblinkJobTrigger",
            {
                "conn_id": self.conn_id,
                "job_id": self.job_id,
                "schema": self.schema,
                "poll_interval": self.poll_interval,
                "cancel_on_kill": self.cancel_on_kill,
                "password_required": self.password_required,
                "deadline": self.deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the event once the job has ended."""
        yield TriggerEvent({"job_id": self.job_id, **await self._end()})

    async def _end(self) -> dict[str, Any]:
        get_target = self._target
        key = (self.conn_id, self.schema, self.password_required)
        watcher = Watcher.shared(key, lambda: Watcher(get_target, self.schema, _NAME))
        _kept(self._warm_up(watcher.has_looked))
        left = None if self.deadline is None else self.deadline - time.time()
        try:
            async with asyncio.timeout(left):
                job = await watcher.wait(UUID(self.job_id), self.poll_interval)
        except TimeoutError:
            try:
                await self._cancel()
            except DblinkError as error:  # the worker tries again
                self.log.warning("Cancelling job %s failed: %s", self.job_id, error)
            return {"state": "timeout"}
        except DblinkError as error:
            return {"state": "error", "message": str(error), "is_mistake": isinstance(error, UsageError)}
        return {"state": job.state if job else "missing"}

    async def on_kill(self) -> None:
        """Cancel the job, unless the task is still waiting for it elsewhere."""
        if self.cancel_on_kill:
            # Airflow repeats the kill every second, which cancels what awaits here: not the task itself.
            await asyncio.shield(_kept(self._kill()))

    async def _kill(self) -> None:
        # A triggerer that was cut off for a while is told the same when another one has taken over.
        try:
            state = await self._task_state()
        except Exception as error:  # noqa: BLE001 - whatever keeps the answer away: a restart never cancels
            self.log.warning(
                "No answer whether the task still waits: job %s goes on (%s).", self.job_id, error
            )
            return
        if state == "deferred":
            self.log.info("The task still waits for job %s: not cancelled.", self.job_id)
            return
        try:
            await self._cancel()
        except DblinkError as error:
            self.log.warning("Cancelling job %s failed: %s", self.job_id, error)

    async def _task_state(self) -> str | None:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        ti = self.task_instance
        if ti is None:
            return None
        map_index = ti.map_index if ti.map_index is not None and ti.map_index >= 0 else None
        states = await sync_to_async(RuntimeTaskInstance.get_task_states, thread_sensitive=False)(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=map_index
        )
        return next((state for run in states.values() for state in run.values()), None)

    async def _warm_up(self, first_look: asyncio.Event) -> None:
        """Ask once for a task's state: the first answer in a triggerer takes seconds, and a kill has few.

        After the first look, since Airflow answers one question after the other: that for the connection,
        and the event of a job that has ended by now, must not wait for this one.
        """
        loop = asyncio.get_running_loop()
        if loop not in _warmed_up:
            _warmed_up.add(loop)
            with suppress(TimeoutError):
                await asyncio.wait_for(first_look.wait(), _FIRST_LOOK_S)
            with suppress(Exception):  # only a rehearsal
                await self._task_state()

    async def _cancel(self) -> None:
        target = await self._target()
        job = await acancel(target, _NAME, self.schema, UUID(self.job_id))
        self.log.info(
            "Cancelled job %s on %s: %s", self.job_id, self.conn_id, job.state if job else "missing"
        )

    async def _target(self) -> Target:
        hook = DblinkHook(dblink_conn_id=self.conn_id, password_required=self.password_required)
        try:
            return await hook.atarget()
        except DblinkError:
            raise
        except AirflowNotFoundException as error:
            # No mistake for sure: Airflow says so, too, while a secrets backend is away.
            raise RemoteError(str(error), self.conn_id) from None
        except Exception as error:  # Airflow's own database or API may be away, too
            why = f"Airflow gives no connection now ({type(error).__name__})"
            raise TransientError(why, self.conn_id) from error
