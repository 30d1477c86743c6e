"""The base of operators whose work is one transaction, done exactly once whatever is killed or retried."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from airflow_dblink.core.errors import DblinkError, StoppedError
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.server.connection import LinkConnection, time_limit
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.target import parse_session_settings
from airflow_dblink.core.sqltext.user_text import UserText
from airflow_dblink.exceptions import DblinkTaskKilledError
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.hooks.parts.task import task_key, task_name
from airflow_dblink.operators.common.arguments import demand_timedelta
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.common.known import constructing

if TYPE_CHECKING:
    from airflow.sdk import Context

_END_AWAITED_S = 10.0  # of a server that doesn't answer


class ExactlyOnceOperator(DblinkBaseOperator):
    """Base of the operators whose work is one transaction; not one itself.

    :param orphan_timeout: time that a try waits for the transaction of a killed try, before it cancels that
        and does the work again.
    :raises AirflowFailException: if it is no timedelta.
    """

    def __init__(self, *, orphan_timeout: timedelta = timedelta(hours=1), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with constructing(self):
            demand_timedelta("orphan_timeout", orphan_timeout)
        self.orphan_timeout = orphan_timeout

    def _once(self, context: Context, connection: LinkConnection, conn_id: str) -> Once:
        ti = context["ti"]
        return Once(
            connection,
            conn_id,
            context["task_state_store"],
            # Clearing a finished task raises max_tries: retries within one life don't.
            life=ti.max_tries,
            orphan_timeout_s=self.orphan_timeout.total_seconds(),
            task=task_key(ti),
            application_name=parse_session_settings(conn_id, self.session_settings).get("application_name"),
        )

    def _recall(self, context: Context, hook: DblinkHook, once: Once) -> dict[str, Any] | None:
        """Return the result that an earlier try committed; a kill while it still runs ends it, too."""
        try:
            return once.recall()
        except BaseException as error:
            killed = isinstance(error, StoppedError) and not self._is_still_wanted(context)
            timed_out = not isinstance(error, Exception)  # AirflowTaskTimeout
            if once.awaited is not None and (killed or timed_out):
                # The waiting connection may be in the middle of a statement.
                limit = time_limit(hook.conn_id, _END_AWAITED_S)
                with (
                    suppress(DblinkError, psycopg.Error),
                    connect(hook.target(), application_name=task_name(), check=limit) as connection,
                ):
                    replace(once, connection=connection).end_awaited()
            raise

    def _is_still_wanted(self, context: Context) -> bool:
        """Return whether a next try will take over: no user has killed the task, and it has a try left."""
        ti = context["ti"]
        return ti.try_number <= ti.max_tries and self._is_marked_running(context)

    def _run_as_one(self, context: Context, once: Once, script: UserText) -> list[str]:
        """Run *script* and commit, as one message; a worker that is only restarted leaves it to the next try.

        :returns: the command tags.
        """
        try:
            return once.run(script)
        except StoppedError:
            if self._is_still_wanted(context):
                once.connection.close()  # without a cancel: the next try adopts the transaction
                raise DblinkTaskKilledError(
                    f"the worker is stopping; transaction {once.xid} goes on, the next try takes it over"
                ) from None
            raise
