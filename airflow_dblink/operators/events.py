"""Operators for events: claim them for a run, acknowledge them, give them back; and NOTIFY."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import XComArg
from airflow.sdk.exceptions import AirflowSkipException

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.events.claims import acknowledge, claim_ids, claim_key, release
from airflow_dblink.core.events.table import SCHEMA, Events, EventTable
from airflow_dblink.core.server.settings import Settings
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sqltext.names import demand_characters, demand_notification
from airflow_dblink.hooks.parts.task import task_key
from airflow_dblink.operators.common.arguments import demand_text, flag, or_none, whole_number
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.common.known import check_known, constructing
from airflow_dblink.operators.execute import DblinkExecOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

_MOST = 10_000  # their ids go to XCom


class DblinkEventsBaseOperator(DblinkBaseOperator):
    """Base of the operators on an event table; not one itself.

    :param conn_id: Airflow connection of type ``postgres`` or ``dblink``. (templated)
    :param event_schema: schema of our event table. (templated)
    :param own_table: your own table instead of ours.
    :raises AirflowFailException: if *own_table* is no :class:`~airflow_dblink.core.events.table.EventTable`.
    """

    template_fields: Sequence[str] = ("conn_id", "event_schema", "session_settings")
    template_fields_renderers: ClassVar[dict[str, str]] = {"session_settings": "json"}
    ui_color = "#fde9c9"
    topic: str | None = None

    def __init__(
        self,
        *,
        conn_id: str,
        event_schema: str = SCHEMA,
        own_table: EventTable | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        with constructing(self):
            if own_table is not None and not isinstance(own_table, EventTable):
                raise UsageError(f"own_table must be an EventTable, got {type(own_table).__name__}")
        self.conn_id = conn_id
        self.event_schema = event_schema
        self.own_table = own_table

    def _check_early(self) -> None:
        self._demand_values("conn_id", "event_schema")
        self._events()

    def _events(self) -> Events:
        return Events(or_none(self.topic), self.event_schema, self.own_table)

    @contextmanager
    def _side(self) -> Iterator[tuple[Side, Settings]]:
        with self._errors_for_airflow():
            self._check_early()
            with self._hook(self.conn_id) as hook:
                connection = hook.link().connection
                yield Side(connection, self.conn_id), self._settings(connection, self.conn_id)


class DblinkClaimEventsOperator(DblinkEventsBaseOperator):
    """Claim waiting events for this run: each event for one run, and the same ones again for a retry.

    An event that another transaction has locked is left to a later run. A cleared task gets the events that
    it had claimed before, also those that are done. So two runs never share an event, and none is
    forgotten: an event whose run fails stays claimed by it, until the run is cleared or the event is
    released.

    :param conn_id: Airflow connection of type ``postgres`` or ``dblink``. (templated)
    :param topic: the topic of the events; with *own_table* only needed to choose among its rows. (templated)
    :param limit: largest number of events, at most 10,000; the oldest are claimed. (templated)
    :param skip_when_empty: skip this task, and those after it, if no event waits.
    :param event_schema: schema of our event table. (templated)
    :param own_table: your own table instead of ours.
    :param kwargs: arguments of the base operator.

    :returns: (XCom) the ids of the claimed events in order, as integers or as PostgreSQL's texts: a task can
        be mapped over them. XCom ``claimed_by`` is the key of the claim, the value in the events' column of
        that name; see :attr:`claimed_by`.
    :raises AirflowSkipException: if no event waits, with *skip_when_empty*.
    :raises AirflowFailException: for mistakes in the arguments; if the event table isn't there, or isn't
        trusted.
    :raises RemoteError: the server's errors; nothing is claimed then.
    """

    template_fields: Sequence[str] = (*DblinkEventsBaseOperator.template_fields, "topic", "limit")

    def __init__(
        self,
        *,
        topic: str | None = None,
        limit: int | str = 1_000,
        skip_when_empty: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.topic = topic
        self.limit = limit
        with constructing(self):
            self.skip_when_empty = flag("skip_when_empty", skip_when_empty)
        check_known(self)

    @property
    def claimed_by(self) -> Any:
        """The key of the claim, for the arguments of later tasks: an :class:`~airflow.sdk.XComArg`."""
        return XComArg(self, key="claimed_by")

    def _check_early(self) -> None:
        if self.own_table is None or self.topic is not None:
            demand_text("topic", self.topic)
        super()._check_early()
        if self._most() > _MOST:
            raise UsageError(
                f"limit is at most {_MOST}, got {self.limit}",
                hint="the asset's next event starts a run for the other events",
            )

    def _most(self) -> int:
        return whole_number("limit", self.limit, least=1)

    def execute(self, context: Context) -> list[int | str]:
        """Claim events, and return their ids."""
        key = claim_key(task_key(context["ti"]))
        context["ti"].xcom_push("claimed_by", key)  # before the claim: a release needs it, whatever happens
        with self._side() as (side, settings):
            ids = claim_ids(side, self._events(), key, most=self._most(), settings=settings)
        self.log.info("%s: claimed %s events as %s", self.conn_id, len(ids), key)
        if not ids and self.skip_when_empty:
            raise AirflowSkipException("no event waits")
        return ids


class DblinkAckEventsOperator(DblinkEventsBaseOperator):
    """Note that a claim's events are done, as the last task of a run that has used them.

    Events that are done are never claimed again, except by the same task when it is cleared.

    :param conn_id: Airflow connection of type ``postgres`` or ``dblink``. (templated)
    :param claimed_by: the claim: ``claim.claimed_by`` of the claiming task. (templated)
    :param event_schema: schema of our event table. (templated)
    :param own_table: your own table instead of ours.
    :param kwargs: arguments of the base operator.

    :returns: (XCom) the number of events that weren't done before.
    :raises AirflowFailException: for mistakes in the arguments; if the event table isn't there, or isn't
        trusted, or has no column for it.
    :raises RemoteError: the server's errors; nothing is changed then.
    """

    template_fields: Sequence[str] = (*DblinkEventsBaseOperator.template_fields, "claimed_by")
    _finish = staticmethod(acknowledge)
    _said = "done"

    def __init__(self, *, claimed_by: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.claimed_by = claimed_by
        check_known(self)

    def _check_early(self) -> None:
        super()._check_early()
        demand_text("claimed_by", self.claimed_by)
        demand_characters("claimed_by", self.claimed_by)

    def execute(self, context: Context) -> int:
        """Finish the claim, and return the number of events."""
        with self._side() as (side, settings):
            number = self._finish(side, self._events(), self.claimed_by, settings=settings)
        self.log.info("%s: %s events of %s are %s", self.conn_id, number, self.claimed_by, self._said)
        return number


class DblinkReleaseEventsOperator(DblinkAckEventsOperator):
    """Give a claim's events back, so that another run can claim them; those that are done stay so.

    With ``trigger_rule="one_failed"`` it gives back the events of a run that has failed. An event that makes
    every run fail then comes again and again: without this task it waits for somebody to look at it (see
    ``airflow dblink list-events``).

    :param conn_id: Airflow connection of type ``postgres`` or ``dblink``. (templated)
    :param claimed_by: the claim: ``claim.claimed_by`` of the claiming task. (templated)
    :param event_schema: schema of our event table. (templated)
    :param own_table: your own table instead of ours.
    :param kwargs: arguments of the base operator.

    :returns: (XCom) the number of events that were given back.
    :raises AirflowFailException: for mistakes in the arguments; if the event table isn't there, or isn't
        trusted.
    :raises RemoteError: the server's errors; nothing is changed then.
    """

    _finish = staticmethod(release)
    _said = "given back"


class DblinkNotifyOperator(DblinkExecOperator):
    """Send a notification, exactly once across retries and killed workers.

    Only sessions that listen at that moment hear it. To lose nothing, emit an event.

    :param conn_id: Airflow connection of type ``postgres`` or ``dblink``. (templated)
    :param channel: name of the channel: 1 to 63 bytes, case matters. (templated)
    :param payload: text of at most 7,999 bytes. (templated)
    :param kwargs: arguments of :class:`~airflow_dblink.operators.execute.DblinkExecOperator`, without *sql*
        and *parameters*.

    :returns: (XCom) ``SELECT 1``; ``COMMIT`` if an earlier try had sent it.
    :raises AirflowFailException: if *channel* or *payload* is too long; nothing is sent then.
    :raises RemoteError: the server's errors; nothing is sent then.
    """

    template_fields: Sequence[str] = ("conn_id", "channel", "payload", "session_settings")

    def __init__(self, *, channel: str, payload: str = "", **kwargs: Any) -> None:
        self.channel = channel
        self.payload = payload
        super().__init__(
            sql="SELECT pg_catalog.pg_notify(%(channel)s, %(payload)s)",
            parameters={"channel": channel, "payload": payload},
            **kwargs,
        )

    def _check_early(self) -> None:
        demand_text("channel", self.channel)
        if not isinstance(self.payload, str):
            raise UsageError(f"payload must be text, got {type(self.payload).__name__}")
        demand_notification(self.channel, self.payload)
        super()._check_early()

    def execute(self, context: Context) -> str:
        """Send the notification, and commit."""
        self.parameters = {"channel": self.channel, "payload": self.payload}  # rendered by now
        return super().execute(context)
