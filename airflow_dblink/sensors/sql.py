"""DblinkSqlSensor: wait until a query has the right answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.sensor import PokeReturnValue
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import DblinkError, RemoteError, UsageError
from airflow_dblink.core.gates.question import (
    MOST_BYTES,
    Answer,
    Question,
    ask,
    may_pass,
    one_query,
    serialized,
)
from airflow_dblink.core.server.bind import Params, bind
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.server.target import parse_session_settings
from airflow_dblink.core.sqltext.names import demand_channel
from airflow_dblink.core.sqltext.rules import demand_parameters
from airflow_dblink.operators.common.arguments import (
    demand_text,
    demand_timedelta,
    flag,
    or_none,
    whole_number,
)
from airflow_dblink.operators.common.known import check_known, constructing
from airflow_dblink.operators.common.templates import SqlTemplates
from airflow_dblink.sensors.base import DblinkBaseSensor
from airflow_dblink.triggers.sql import DblinkSqlTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

Criterion = Callable[[Any], bool]

# Asked where the user's question isn't known, since its parameters are written for the server: is it there?
_IS_THERE = Question("SELECT true")
_LONGEST_S = 2_147_483.0  # PostgreSQL's limit
QUERY_TIMEOUT = timedelta(seconds=5)


class DblinkSqlSensor(DblinkBaseSensor, SqlTemplates):
    """Wait until the first value of a query is true, or another condition on its rows holds.

    A value is true unless it is NULL, false, a number 0, an empty text, array or ``bytea``, or JSON's forms
    of these. No row means: not yet.

    In the triggerer all waiting sensors of one connection share one session, and equal queries are asked
    once. Each is asked in a read-only transaction, under *query_timeout*. A query that takes too long, waits
    for a lock, or finds the server away is asked again. All other errors of the server fail the sensor at
    once, and no retry follows.

    :param conn_id: Airflow connection of type ``postgres`` or ``dblink``. (templated)
    :param sql: one query, or the path of a ``.sql`` file. (templated)
    :param parameters: values for ``%s`` or ``%(name)s`` in *sql*. (templated)
    :param min_rows: wait until the query gives at least so many rows; its values don't matter then.
        (templated)
    :param equals: wait for this first value: a text (compared with PostgreSQL's text of the value), number or
        bool. (templated)
    :param success: a function of the first value, typed by psycopg: true opens the gate. Runs in the worker,
        so it doesn't go together with *deferrable*.
    :param failure: the same: true fails the sensor. Called before *success*.
    :param failure_sql: a query, or the path of a ``.sql`` file, that is asked first: if its first value is
        true, the sensor fails at once. It takes no *parameters*. (templated)
    :param fail_on_empty: fail if the query gives no row.
    :param query_timeout: time that each query may take; then it is asked later again.
    :param wake_channel: name of a channel: a NOTIFY on it lets the triggerer ask at once. Not through a
        pooler in transaction mode, and not on a standby: there the triggerer only polls, and its log says
        so. (templated)
    :param session_settings: run-time parameters by name, local to the query's transaction. (templated)
    :param deferrable: wait in the triggerer, after one poke; by default Airflow's
        ``[operators] default_deferrable``, but not with *success* and *failure*.
    :param password_required: dblink's credential rule, ``None``: the connection's setting.
    :param kwargs: arguments of :class:`~airflow.sdk.BaseSensorOperator`. ``poke_interval``: seconds from one
        answer to the next question.

    :returns: (XCom) the first value, as a JSON value (see :mod:`airflow_dblink.core.streams.to_json`), if it
        has at most 64 kB; with *min_rows* the number of rows that were counted.
    :raises AirflowFailException: for a mistake in the arguments; for errors of the server that waiting can't
        help; if *failure*, *failure_sql* or *fail_on_empty* says so. ``soft_fail`` and ``never_fail`` make it
        a skip.
    :raises AirflowSensorTimeout: after ``timeout``.
    """

    template_fields: Sequence[str] = (
        "conn_id",
        "sql",
        "parameters",
        "min_rows",
        "equals",
        "failure_sql",
        "wake_channel",
        "session_settings",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "sql": "postgresql",
        "failure_sql": "postgresql",
        "parameters": "json",
        "session_settings": "json",
    }
    ui_color = "#d9ead3"
    _is_again = False

    def __init__(
        self,
        *,
        conn_id: str,
        sql: str,
        parameters: Params | None = None,
        min_rows: int | str | None = None,
        equals: str | int | float | bool | None = None,
        success: Criterion | None = None,
        failure: Criterion | None = None,
        failure_sql: str | None = None,
        fail_on_empty: bool = False,
        query_timeout: timedelta = QUERY_TIMEOUT,
        wake_channel: str | None = None,
        session_settings: Mapping[str, Any] | None = None,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        needs_worker = success is not None or failure is not None
        chosen = {} if deferrable is None and not needs_worker else {"deferrable": bool(deferrable)}
        super().__init__(**chosen, **kwargs)
        self._note_params(kwargs)
        self.conn_id = conn_id
        self.sql = sql
        self.parameters = parameters
        self.min_rows = min_rows
        self.equals = equals
        self.success = success
        self.fails = failure  # :attr:`failure` is the class of our errors
        self.failure_sql = failure_sql
        self.query_timeout = query_timeout
        self.wake_channel = wake_channel
        self.session_settings = session_settings
        with constructing(self):
            self.fail_on_empty = flag("fail_on_empty", fail_on_empty)
            if self.deferrable and needs_worker:
                raise UsageError(
                    "success and failure are called in the worker, but deferrable=True waits elsewhere",
                    hint="write the condition into sql, or use equals or min_rows; or mode='reschedule'",
                )
            demand_timedelta("query_timeout", query_timeout)
            for name, criterion in (("success", success), ("failure", failure)):
                if criterion is not None and not callable(criterion):
                    raise UsageError(f"{name} must be a function, got {type(criterion).__name__}")
        check_known(self)

    def _check_early(self) -> None:
        demand_text("conn_id", self.conn_id)
        demand_text("sql", self.sql)
        for name in ("failure_sql", "wake_channel"):
            if getattr(self, name) is not None:
                demand_text(name, getattr(self, name))
        if self.wake_channel is not None:
            demand_channel("wake_channel", self.wake_channel)
        if not 0 < self.query_timeout.total_seconds() < _LONGEST_S:
            raise UsageError(f"query_timeout must be above 0 and below 24 days, got {self.query_timeout}")
        criteria = [name for name in ("min_rows", "equals", "success") if getattr(self, name) is not None]
        if len(criteria) > 1:
            raise UsageError(f"give one of min_rows, equals and success, got {' and '.join(criteria)}")
        if self.min_rows is not None and self.fails is not None:
            raise UsageError("failure is called with the first value, and min_rows reads none")
        if not isinstance(self.equals, str | int | float | None):
            kind = type(self.equals).__name__
            raise UsageError(f"equals must be a text, a number or a bool, got {kind}")
        self._question(self.sql).demand_sendable(self.conn_id)

    def _question(self, query: str) -> Question:
        rows = or_none(self.min_rows)
        return Question(
            query,
            failure=self.failure_sql,
            min_rows=None if rows is None else whole_number("min_rows", rows, least=1),
            equals=self.equals,
            fail_on_empty=self.fail_on_empty,
            timeout_s=self.query_timeout.total_seconds(),
            settings=tuple(parse_session_settings(self.conn_id, self.session_settings).items()),
        )

    # -- waiting

    def execute_complete(self, context: Context, event: Mapping[str, Any], until: float) -> Any:
        """Go on after the triggerer's event, and ask again."""
        self._is_again = True
        return super().execute_complete(context, event, until)

    def _trigger(self) -> DblinkSqlTrigger:
        # At first, something may have changed since the worker asked. Later the triggerer was sure of the
        # answer, but the worker wasn't, or can't reach the server: no worker is started again at once.
        is_doubtful = self._is_again or self._asked is _IS_THERE
        return DblinkSqlTrigger(
            conn_id=self.conn_id,
            question=serialized(self._asked),
            poll_interval=self.poke_interval,
            wake_channel=self.wake_channel,
            password_required=self.password_required,
            first_look=self.poke_interval if is_doubtful else 0.0,
        )

    def poke(self, context: Context) -> PokeReturnValue:
        """Ask once, and return whether the answer is right.

        :raises AirflowFailException: if waiting can't help.
        """
        self._asked = _IS_THERE
        try:
            self._check_early()
            answer = self._ask()
        except DblinkError as error:
            if not may_pass(error):
                raise AirflowFailException(str(error)) from None
            self.log.warning("%s", error)
            return PokeReturnValue(is_done=False)
        self._demand_hope(answer)
        if self.success is not None:
            is_done = bool(answer.rows and self.success(answer.typed))
        else:
            is_done = self._asked.is_answered(answer)
        self.log.info("%s: %s", self.conn_id, "the answer is right" if is_done else "not yet")
        if is_done and answer.is_too_long:
            self.log.warning("The first value has more than %s bytes: XCom doesn't get it.", MOST_BYTES)
        value = answer.rows if self._asked.min_rows is not None else answer.value
        return PokeReturnValue(is_done=is_done, xcom_value=value)

    def _ask(self) -> Answer:
        with self._hook(self.conn_id) as hook:
            link = hook.link()
            query = one_query(self.sql, "sql", self.conn_id)
            if self.parameters is not None:
                query = bind(link.connection, self.conn_id, query, self.parameters)
            self._asked = self._question(query.text)
            typed = self.success is not None or self.fails is not None
            try:
                return ask(Side(link.connection, self.conn_id), self._asked, query, typed=typed)
            except RemoteError:
                if self.parameters is None:
                    demand_parameters("sql", self.sql, "parameters", self.conn_id)
                raise

    def _demand_hope(self, answer: Answer) -> None:
        if answer.has_failed:
            raise AirflowFailException(f"{self.conn_id}: failure_sql is true")
        if self._asked.has_failed(answer):
            raise AirflowFailException(f"{self.conn_id}: sql gives no row, and fail_on_empty is set")
        if self.fails is not None and answer.rows and self.fails(answer.typed):
            raise AirflowFailException(f"{self.conn_id}: failure is true for the first value")
