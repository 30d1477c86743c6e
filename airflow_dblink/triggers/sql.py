"""DblinkSqlTrigger: waits in the triggerer until a query has the right answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import TriggerEvent

from airflow_dblink.core.errors import DblinkError
from airflow_dblink.core.gates.gates import Gates
from airflow_dblink.core.gates.question import deserialized
from airflow_dblink.triggers.base import DblinkBaseTrigger


class DblinkSqlTrigger(DblinkBaseTrigger):
    """Wait until a question has the answer that it waits for, and fire one event without any value.

    All triggers that wait in one triggerer for one connection share one session there, and equal questions
    are asked once. A server that can't be reached is asked again and again, and nothing fails meanwhile.

    :param conn_id: Airflow connection of the database.
    :param question: see :func:`~airflow_dblink.core.gates.question.serialized`. It holds the query with its
        parameters' values; Airflow encrypts the arguments of triggers in its database.
    :param poll_interval: seconds after which the question is asked without a notification.
    :param first_look: seconds after which it is asked for the first time.
    :param wake_channel: channel on which a notification lets the question be asked at once.
    :param password_required: dblink's credential rule, ``None``: the connection's setting.

    The event has a ``state``: ``answered``; or ``error`` if waiting can't help, with a ``message``.
    """

    def __init__(
        self,
        conn_id: str,
        question: Mapping[str, Any],
        poll_interval: float = 60.0,
        wake_channel: str | None = None,
        password_required: bool | None = None,
        first_look: float = 0.0,
    ) -> None:
        super().__init__(conn_id, password_required=password_required)
        self.question = question
        self.poll_interval = poll_interval
        self.wake_channel = wake_channel
        self.first_look = first_look

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments."""
        return (
            "airflow_dblink.triggers.sql.DblinkSqlTrigger",
            {
                "conn_id": self.conn_id,
                "question": dict(self.question),
                "poll_interval": self.poll_interval,
                "wake_channel": self.wake_channel,
                "password_required": self.password_required,
                "first_look": self.first_look,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the event once the question is answered."""
        gates = Gates.of(self.listener(), self.wake_channel)
        try:
            await gates.wait(deserialized(self.question), self.poll_interval, self.first_look)
        except DblinkError as error:
            yield TriggerEvent({"state": "error", "message": str(error)})
        else:
            yield TriggerEvent({"state": "answered"})

    @property
    def waits_for(self) -> str:
        """The awaited answer, for the log."""
        return f"the answer to a query on {self.conn_id}"

    async def cancel(self) -> None:
        """Do nothing: the question ends with the waiting."""
