"""DblinkJobTrigger: waits in the triggerer for the end of a remote job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from airflow.triggers.base import TriggerEvent

from airflow_dblink.core.errors import DblinkError, UsageError
from airflow_dblink.core.jobs.job import SCHEMA
from airflow_dblink.core.jobs.watch import Watcher, acancel
from airflow_dblink.triggers.base import APPLICATION_NAME, DblinkBaseTrigger


class DblinkJobTrigger(DblinkBaseTrigger):
    """Wait until a job has ended, and fire one small event: its id and its state.

    All triggers that wait in one triggerer for jobs of one connection share one session there. It listens for
    the jobs' ends, and reads all their rows with one query every *poll_interval* seconds. A server that can't
    be reached is asked again and again, and nothing fails meanwhile. The triggerer may be restarted, or the
    trigger moved to another one: the new trigger first reads the job's row.

    :param conn_id: Airflow connection of the database in which the job runs.
    :param job_id: the job's id.
    :param schema: schema of the job table.
    :param poll_interval: seconds after which the job's row is read without a notification.
    :param cancel_on_kill: cancel the job when a user marks the waiting task as failed or success, or
        clears it.
    :param password_required: dblink's credential rule, ``None``: the connection's setting.
    :param deadline: the moment when the task's ``execution_timeout`` is over, in seconds since 1970: the job
        is then cancelled, and the event's state is ``timeout``.

    The event has ``job_id`` and ``state``: ``succeeded``, ``failed``, ``cancelled``, ``lost``; ``missing`` if
    there is no such job; ``timeout``; or ``error`` if waiting can't help. An ``error`` has a ``message``, and
    ``is_mistake``: whether it is the user's mistake.
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
        super().__init__(conn_id, cancel_on_kill=cancel_on_kill, password_required=password_required)
        self.job_id = job_id
        self.schema = schema
        self.poll_interval = poll_interval
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
        watcher = Watcher.of(self.listener(), self.schema)
        left = None if self.deadline is None else self.deadline - time.time()
        try:
            async with asyncio.timeout(left):
                job = await watcher.wait(UUID(self.job_id), self.poll_interval)
        except TimeoutError:
            try:
                await self.cancel()
            except DblinkError as error:  # the worker tries again
                self.log.warning("Cancelling job %s failed: %s", self.job_id, error)
            return {"state": "timeout"}
        except DblinkError as error:
            return {"state": "error", "message": str(error), "is_mistake": isinstance(error, UsageError)}
        return {"state": job.state if job else "missing"}

    @property
    def waits_for(self) -> str:
        """The job, for the log."""
        return f"job {self.job_id}"

    async def cancel(self) -> None:
        """Cancel the job.

        :raises DblinkError: if it can't be cancelled.
        """
        job = await acancel(await self.target(), APPLICATION_NAME, self.schema, UUID(self.job_id))
        state = job.state if job else "missing"
        self.log.info("Cancelled job %s on %s: %s", self.job_id, self.conn_id, state)
