"""The base of our triggers: the connection, its listener, and the question whether the task still waits."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger
from asgiref.sync import sync_to_async

from airflow_dblink.core.errors import DblinkError, RemoteError, TransientError
from airflow_dblink.core.listen.listener import Listener
from airflow_dblink.core.server.target import Target
from airflow_dblink.hooks.dblink import DblinkHook

#: Name of a triggerer's sessions in ``pg_stat_activity``.
APPLICATION_NAME = "airflow-dblink triggerer"
_FIRST_LOOK_S = 5.0  # longest wait for the first look, if the server is away
_EVENT_S = 3.0  # until Airflow has an event: the triggerer's two loops run about once a second

_warmed_up: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
_tasks: set[asyncio.Task[None]] = set()


def kept(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Return the running task of *work*; the event loop alone would not keep it."""
    task = asyncio.create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


class DblinkBaseTrigger(BaseTrigger):
    """Base of the triggers that wait for something in a database; not one itself.

    :param conn_id: Airflow connection of that database.
    :param cancel_on_kill: call :meth:`cancel` when a user marks the waiting task as failed or success, or
        clears it.
    :param password_required: dblink's credential rule, ``None``: the connection's setting.
    """

    def __init__(
        self, conn_id: str, *, cancel_on_kill: bool = False, password_required: bool | None = None
    ) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.cancel_on_kill = cancel_on_kill
        self.password_required = password_required

    @property
    @abstractmethod
    def waits_for(self) -> str:
        """The awaited work, for the log."""

    @abstractmethod
    async def cancel(self) -> None:
        """Cancel the awaited work.

        :raises DblinkError: if it can't be cancelled.
        """

    # -- the database

    def listener(self) -> Listener:
        """Return the session that all triggers of this connection share in this event loop."""
        target = self.target
        key = (self.conn_id, self.password_required)
        listener = Listener.shared(key, lambda: Listener(target, APPLICATION_NAME))
        loop = asyncio.get_running_loop()
        if self.cancel_on_kill and loop not in _warmed_up:
            _warmed_up.add(loop)
            kept(self._warm_up(listener))
        return listener

    async def target(self) -> Target:
        """Return the connection's target.

        :raises UsageError: names the mistake in the connection.
        :raises RemoteError: if Airflow knows no such connection; or says so, while a secrets backend is away.
        :raises TransientError: if Airflow can't return the connection now.
        """
        hook = DblinkHook(dblink_conn_id=self.conn_id, password_required=self.password_required)
        try:
            return await hook.atarget()
        except DblinkError:
            raise
        except AirflowNotFoundException as error:
            raise RemoteError(str(error), self.conn_id) from None
        except Exception as error:  # Airflow's own database or API may be away, too
            why = f"Airflow gives no connection now ({type(error).__name__})"
            raise TransientError(why, self.conn_id) from error

    # -- is it still wanted?

    async def on_kill(self) -> None:
        """Cancel the awaited work, unless the task still waits for it in another triggerer."""
        if self.cancel_on_kill:
            # Airflow repeats the kill every second, and so cancels this await; the shield keeps the task.
            await asyncio.shield(kept(self._kill()))

    async def _kill(self) -> None:
        # A triggerer that was cut off for a while also gets a kill when another one has taken over.
        try:
            state = await self._task_state()
        except Exception as error:  # noqa: BLE001 - any error: it may be a restart, which never cancels
            self.log.warning(
                "No answer whether the task still waits: %s goes on (%s).", self.waits_for, error
            )
            return
        if state == "deferred":
            self.log.info("The task still waits for %s: not cancelled.", self.waits_for)
            return
        try:
            await self.cancel()
        except DblinkError as error:
            self.log.warning("Cancelling %s failed: %s", self.waits_for, error)

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

    async def _warm_up(self, listener: Listener) -> None:
        """Ask once for a task's state: a triggerer's first answer takes seconds, and a kill has only a few.

        It asks after the first look and its event, since Airflow answers one question after the other, and
        takes no event meanwhile. If nobody waits any more, it leaves the question to the next waiter.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(listener.has_looked.wait(), _FIRST_LOOK_S)
        await asyncio.sleep(_EVENT_S)
        if not listener.is_waited_for:
            _warmed_up.discard(asyncio.get_running_loop())
            return
        with suppress(Exception):  # only a rehearsal
            await self._task_state()
