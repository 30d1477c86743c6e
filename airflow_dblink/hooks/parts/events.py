"""Events and notifications from Python code, in a task or outside of one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from airflow.sdk import get_current_context

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.events.admin import install
from airflow_dblink.core.events.claims import Rows, acknowledge, claim_key, claim_rows, release
from airflow_dblink.core.events.table import SCHEMA, Events, EventTable
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sqltext.names import demand_no_text, demand_notification
from airflow_dblink.hooks.parts.task import task_key


class EventSide:
    """Functions for events; :class:`DblinkHook` opens the connections."""

    dblink_conn_id: str

    @abstractmethod
    def open_direct(self, conn_id: str) -> LinkConnection:
        """Return a new connection, around a pooler if possible."""

    @contextmanager
    def _event_side(self, conn_id: str | None) -> Iterator[Side]:
        place = conn_id or self.dblink_conn_id
        with closing(self.open_direct(place)) as connection:
            yield Side(connection, place)

    def install_events(
        self,
        *,
        event_schema: str = SCHEMA,
        emit: Sequence[str] = (),
        claim: Sequence[str] = (),
        conn_id: str | None = None,
    ) -> None:
        """Install the event table, or upgrade it; if it is up to date, nothing changes.

        It needs CREATE on the database; ``airflow dblink install-events --print`` gives a DBA the SQL.

        :param event_schema: schema for the table and its functions.
        :param emit: roles that emit events, and don't own the schema.
        :param claim: roles that read, claim and prune events.
        :param conn_id: Airflow connection of the database; by default the hook's own.
        :raises UsageError: for a mistake in the arguments.
        :raises RemoteError: the server's errors; nothing is changed then.
        """
        demand_no_text("emit", emit, "a list of roles")
        demand_no_text("claim", claim, "a list of roles")
        schema = Events(schema=event_schema).schema
        with self._event_side(conn_id) as side:
            install(side, schema, emit=emit, claim=claim)

    def claim_events(
        self,
        topic: str | None = None,
        *,
        limit: int = 1_000,
        claimed_by: str | None = None,
        event_schema: str = SCHEMA,
        own_table: EventTable | None = None,
        conn_id: str | None = None,
    ) -> Rows:
        """Claim waiting events, and return them with all their columns, in the order of their ids.

        A retry of the task gets the same events. See
        :class:`~airflow_dblink.operators.events.DblinkClaimEventsOperator`.

        :param topic: the topic of the events; with *own_table* only needed to choose among its rows.
        :param limit: largest number of events that are claimed.
        :param claimed_by: the key of the claim; by default the running task's:
            ``dag_id/run_id/task_id/map_index``. With a key that has claimed events of the topic before, these
            are returned, and no new ones.
        :param event_schema: schema of our event table.
        :param own_table: your own table instead of ours.
        :param conn_id: Airflow connection of the database; by default the hook's own.
        :raises UsageError: for a mistake in the arguments; if the event table isn't there, or isn't trusted.
        :raises RemoteError: the server's errors; nothing is claimed then.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise UsageError(f"limit must be an integer of at least 1, got {limit!r}")
        events = Events(topic, event_schema, own_table)
        key = claimed_by or _own_key()
        with self._event_side(conn_id) as side:
            return claim_rows(side, events, key, most=limit, settings={})

    def ack_events(
        self,
        claimed_by: str | None = None,
        *,
        event_schema: str = SCHEMA,
        own_table: EventTable | None = None,
        conn_id: str | None = None,
    ) -> int:
        """Note that a claim's events are done, and return how many weren't before.

        :param claimed_by: the key of the claim; by default the running task's.
        :raises UsageError: as :meth:`claim_events`; if the table has no column for it.
        :raises RemoteError: the server's errors; nothing is changed then.
        """
        return self._finish(acknowledge, claimed_by, event_schema, own_table, conn_id)

    def release_events(
        self,
        claimed_by: str | None = None,
        *,
        event_schema: str = SCHEMA,
        own_table: EventTable | None = None,
        conn_id: str | None = None,
    ) -> int:
        """Give back a claim's events that aren't done, and return how many.

        :param claimed_by: the key of the claim; by default the running task's.
        :raises UsageError: as :meth:`claim_events`.
        :raises RemoteError: the server's errors; nothing is changed then.
        """
        return self._finish(release, claimed_by, event_schema, own_table, conn_id)

    def _finish(
        self,
        how: Callable[..., int],
        claimed_by: str | None,
        event_schema: str,
        own_table: EventTable | None,
        conn_id: str | None,
    ) -> int:
        events = Events(None, event_schema, own_table)
        with self._event_side(conn_id) as side:
            return how(side, events, claimed_by or _own_key(), settings={})

    def notify(self, channel: str, payload: str = "", *, conn_id: str | None = None) -> None:
        """Send a notification in a transaction of its own: a retry of the task sends it again.

        :param channel: name of the channel: 1 to 63 bytes.
        :param payload: text of at most 7,999 bytes.
        :param conn_id: Airflow connection of the database; by default the hook's own.
        :raises UsageError: if one of them is too long.
        :raises RemoteError: the server's errors.
        """
        demand_notification(channel, payload)
        with self._event_side(conn_id) as side:
            values = {"channel": channel, "payload": payload}
            side.ask("SELECT pg_notify(%(channel)s, %(payload)s)", values, "notifying")


def _own_key() -> str:
    try:
        return claim_key(task_key(get_current_context()["ti"]))
    except RuntimeError:
        raise UsageError("claimed_by is missing: outside of a task there is no key to claim with") from None
