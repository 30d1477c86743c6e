"""The base of all operators: connecting, time limits, and the end of a task that is told to stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import OutcomeUnknownError, StoppedError, UsageError
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.target import parse_session_settings
from airflow_dblink.exceptions import DblinkTaskKilledError
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.common.arguments import demand_text, demand_timedelta, flag
from airflow_dblink.operators.common.facts import facts_of, tell_assets
from airflow_dblink.operators.common.known import constructing
from airflow_dblink.operators.common.templates import SqlTemplates

if TYPE_CHECKING:
    from airflow.sdk import Context

# The client's own time-out comes first and gives the better error; the server's is for when
# the worker is gone.
_SERVER_LIMIT_GRACE_S = 2.0
_STATE_ANSWER_S = 1.5  # of the 5 s between SIGTERM and SIGKILL
_MAX_LIMIT_MS = 2_147_483_647  # of PostgreSQL's time-outs: 24 days
_TRANSACTION_TIMEOUT_SINCE = 170000


class DblinkBaseOperator(SqlTemplates):
    """Base of the operators; not one itself.

    :param session_settings: run-time parameters by name, local to the task's transaction. (templated)
    :param statement_timeout: time after which the server ends a statement; by default ``execution_timeout``.
    :param password_required: dblink's credential rule, ``None``: the connection's setting.
    :param emit_when_changed: emit no event for the assets in ``outlets`` if nothing has changed, as far as
        the result tells. Events hold the result's numbers (``extra``).
    :param connname: always refused, since a link ends with the task that opened it.
    :raises AirflowFailException: if *connname* is given, *statement_timeout* is no timedelta, or
        *emit_when_changed* no bool.
    """

    ui_color = "#d7e6f3"
    _killed = False
    _given: Sequence[str] = ()
    _done: Mapping[str, Any] = MappingProxyType({})  # facts of the result, for lineage

    def __init__(
        self,
        *,
        session_settings: Mapping[str, Any] | None = None,
        statement_timeout: timedelta | None = None,
        password_required: bool | None = None,
        emit_when_changed: bool = False,
        connname: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._note_params(kwargs)
        with constructing(self):
            self.emit_when_changed = flag("emit_when_changed", emit_when_changed)
            if connname is not None:
                raise UsageError(
                    f"an operator takes no connname ({connname!r}): a link ends with the task that opened it,"
                    " and an operator is a task of its own",
                    hint="name the Airflow connection; for several calls on a link use DblinkHook in a @task",
                )
            if statement_timeout is not None:
                demand_timedelta("statement_timeout", statement_timeout)
        self.session_settings = session_settings
        self.statement_timeout = statement_timeout
        self.password_required = password_required

    # -- templates

    def _note_given(self, **texts: object) -> None:
        """Note which of these texts are given, even if a template leaves them empty."""
        self._given = [*self._given, *(name for name, text in texts.items() if text is not None)]

    def _demand_values(self, *always: str) -> None:
        """Raise if a needed text, or one that was given, has no value.

        :raises UsageError: names the first one.
        """
        for name in (*always, *self._given):
            demand_text(name, getattr(self, name))

    def _check_early(self) -> None:
        """Raise for mistakes that can be seen without a server or any other system.

        :raises UsageError: names the argument.
        """

    # -- running

    def on_kill(self) -> None:
        """Note that the task is to stop; every wait checks this ten times a second.

        It is called inside a signal handler, also by a worker that is only restarted. So :meth:`execute`
        decides what to cancel.
        """
        self._killed = True

    def _check(self) -> None:
        if self._killed:
            raise StoppedError("the task was told to stop")

    def _tell_assets(
        self, context: Context, result: Mapping[str, Any], *, changed: bool | None = None
    ) -> None:
        """Let the events of the task's outlets say what it has done; see :func:`.facts.tell_assets`."""
        self._done = facts_of(result)
        tell_assets(context, result, when_changed=self.emit_when_changed, changed=changed)

    @contextmanager
    def _errors_for_airflow(self) -> Iterator[None]:
        """Turn the core's errors into Airflow's, which prevent a retry if it can't help."""
        try:
            yield
            if self._killed:  # stopped at the very end: never a success
                raise DblinkTaskKilledError("the task was told to stop")
        except StoppedError as error:
            raise DblinkTaskKilledError(str(error)) from None
        except (UsageError, OutcomeUnknownError) as error:
            raise AirflowFailException(str(error)) from None

    def _hook(self, conn_id: str) -> DblinkHook:
        return DblinkHook(dblink_conn_id=conn_id, password_required=self.password_required, check=self._check)

    def _settings(self, connection: LinkConnection, conn_id: str, **more: str) -> dict[str, str]:
        """Return the run-time parameters of the task's transaction, time limits among them."""
        settings = {**more, **parse_session_settings(conn_id, self.session_settings)}
        limit = self.statement_timeout.total_seconds() if self.statement_timeout else None
        if self.execution_timeout is not None:
            total = self.execution_timeout.total_seconds() + _SERVER_LIMIT_GRACE_S
            limit = total if limit is None else min(limit, total)
            # statement_timeout counts each statement of a message alone.
            if connection.info.server_version >= _TRANSACTION_TIMEOUT_SINCE:
                settings.setdefault("transaction_timeout", _milliseconds(total))
        if limit is not None:
            settings.setdefault("statement_timeout", _milliseconds(limit))
        return settings

    def _is_marked_running(self, context: Context, *, without_answer: bool = False) -> bool:
        """Return whether Airflow still has the task as running: then no user has told it to stop.

        A thread asks, since SIGKILL follows SIGTERM after 5 s, and a kill must cancel in time.

        :param without_answer: the result if no answer comes in time.
        """
        ti = context["ti"]
        with_index = None if ti.map_index is None or ti.map_index < 0 else ti.map_index

        def ask() -> bool:
            states = ti.get_task_states(
                dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=with_index
            )
            return any(state == "running" for run in states.values() for state in run.values())

        executor = ThreadPoolExecutor(1, thread_name_prefix="task-state")
        try:
            return executor.submit(ask).result(timeout=_STATE_ANSWER_S)
        except Exception as error:  # noqa: BLE001 - any error means "no answer"
            self.log.warning("No answer whether the task is still wanted (%s).", type(error).__name__)
            return without_answer
        finally:
            executor.shutdown(wait=False)


def _milliseconds(seconds: float) -> str:
    return f"{min(seconds * 1000, _MAX_LIMIT_MS):.0f}ms"
