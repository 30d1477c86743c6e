"""DblinkEventTrigger: tells an asset's Dags that events wait to be claimed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_dblink.core.errors import DblinkError, UsageError
from airflow_dblink.core.events.table import CHANNEL, SCHEMA, Events, EventTable
from airflow_dblink.core.events.waiting import explained, unclaimed
from airflow_dblink.core.gates.gates import Gates
from airflow_dblink.core.listen.back_off import back_off
from airflow_dblink.core.sqltext.names import demand_channel
from airflow_dblink.triggers.base import DblinkBaseTrigger

_MOST_S = 3.2e8
_NONE = "-"  # stands for no waiting events


class DblinkEventTrigger(DblinkBaseTrigger, BaseEventTrigger):
    """Fire while events wait to be claimed, for an :class:`~airflow.sdk.AssetWatcher`.

    The event that it fires carries no event of the table: it only says that some wait. A run claims them with
    :class:`~airflow_dblink.operators.events.DblinkClaimEventsOperator`. So nothing is lost when Airflow loses
    or doubles what a trigger fires, when a triggerer dies, or when the Dag is paused.

    It fires when the waiting events change, *min_interval* after the last time at the earliest, and every
    *refire_interval* while any wait. It never fails: whatever the server says, it asks again, ever more
    rarely, and writes why to the triggerer's log. All triggers of a connection share one session.

    :param conn_id: Airflow connection of the database.
    :param topic: the topic of the events.
    :param event_schema: schema of our event table.
    :param own_table: your own table instead of ours; *topic* is then needed only to choose among its rows.
    :param wake_channel: channel on which a NOTIFY tells of new events. Our table has its own.
    :param poll_interval: seconds after which it looks without a notification.
    :param refire_interval: seconds after which it fires again for events that nobody has claimed.
    :param min_interval: the least seconds from one firing to the next.
    :param password_required: dblink's credential rule, ``None``: the connection's setting.
    :raises UsageError: for a mistake in the arguments.
    """

    def __init__(
        self,
        conn_id: str,
        topic: str | None = None,
        *,
        event_schema: str = SCHEMA,
        own_table: EventTable | Mapping[str, Any] | None = None,
        wake_channel: str | None = None,
        poll_interval: float = 30.0,
        refire_interval: float = 60.0,
        min_interval: float = 5.0,
        password_required: bool | None = None,
    ) -> None:
        super().__init__(conn_id, password_required=password_required)
        own = EventTable.of(own_table) if isinstance(own_table, Mapping) else own_table
        if own is not None and not isinstance(own, EventTable):
            raise UsageError(f"own_table must be an EventTable, got {type(own).__name__}")
        self.events = Events(topic, event_schema, own)
        self.events.demand_topic()
        if wake_channel is None and own is None:
            wake_channel = CHANNEL
        if wake_channel is not None:
            demand_channel("wake_channel", wake_channel)
        for name, seconds in (
            ("poll_interval", poll_interval),
            ("refire_interval", refire_interval),
            ("min_interval", min_interval),
        ):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < _MOST_S:
                raise UsageError(f"{name} must be a number of seconds above 0, below 10 years")
        self.wake_channel = wake_channel
        self.poll_interval = poll_interval
        self.refire_interval = refire_interval
        self.min_interval = min_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments: names and numbers, nothing secret."""
        own = self.events.own
        return (
            "airflow_dblink.triggers.events.DblinkEventTrigger",
            {
                "conn_id": self.conn_id,
                "topic": self.events.topic,
                "event_schema": self.events.schema,
                "own_table": None if own is None else own.as_dict(),
                "wake_channel": self.wake_channel,
                "poll_interval": self.poll_interval,
                "refire_interval": self.refire_interval,
                "min_interval": self.min_interval,
                "password_required": self.password_required,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield an event whenever a run should look for events to claim; never end."""
        last = _NONE  # stands for the waiting events when it looked
        said = ""
        pauses = back_off()
        while True:
            try:
                async with asyncio.timeout(None if last == _NONE else self.refire_interval):
                    last = await self._changed(last)
            except TimeoutError:
                last = _NONE
                continue
            except DblinkError as error:
                why = str(explained(error, self.events, self.conn_id))
                if why != said:
                    self.log.error("Waiting for %s: %s", self.waits_for, why)
                    said = why
                await asyncio.sleep(next(pauses))
                continue
            pauses, said = back_off(), ""
            if last == _NONE:
                continue
            yield TriggerEvent({"conn_id": self.conn_id, "topic": self.events.topic})
            await asyncio.sleep(self.min_interval)

    async def _changed(self, last: str) -> str:
        """Wait until other events wait than at *last*, or none; return what stands for them."""
        owners = (await self.target()).trusted_owners
        question = unclaimed(self.events, last, trusted_owners=tuple(owners))
        topic = self.events.topic if self.wake_channel == CHANNEL else None
        gates = Gates.of(self.listener(), self.wake_channel, topic)
        return (await gates.wait(question, self.poll_interval)).text or _NONE

    @property
    def waits_for(self) -> str:
        """The awaited events, for the log."""
        topic = f" of topic {self.events.topic!r}" if self.events.topic is not None else ""
        return f"events{topic} in {self.events.table.name} on {self.conn_id}"

    async def cancel(self) -> None:
        """Do nothing: events stay where they are."""
