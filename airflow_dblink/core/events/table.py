"""Event tables: ours, or a user's own whose columns are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.installed.trust import Installed
from airflow_dblink.core.sqltext.names import demand_characters, demand_identifier, split_identifier

#: Schema of our event table, unless another one is chosen.
SCHEMA = "airflow_dblink_events"
#: The channel on which our table tells of new events; the payload is their topic.
CHANNEL = "airflow_dblink_event"
_TOPIC_BYTES = 200
_NEEDED = ("id", "claimed_by")


@dataclass(frozen=True)
class EventTable:
    """A table whose rows are events: rows without a claim are waiting.

    :ivar name: the table's name, as in SQL.
    :ivar id: column that identifies an event, and orders them. Its type needs PostgreSQL's own ``=``.
    :ivar claimed_by: text column for the run that has claimed the event; NULL until then.
    :ivar claimed_at: timestamp column for the moment of the claim.
    :ivar done_at: timestamp column for the moment at which the run has acknowledged it.
    :ivar topic: column by which events are chosen.
    """

    name: str
    id: str = "id"
    claimed_by: str = "claimed_by"
    claimed_at: str | None = None
    done_at: str | None = None
    topic: str | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None and each.name not in ("name", *_NEEDED):
                continue
            if not isinstance(value, str) or not value:
                raise UsageError(f"{each.name} of an event table must be a name, got {value!r}")
            demand_characters(f"{each.name} of an event table", value)
        split_identifier("name of an event table", self.name)

    def as_dict(self) -> dict[str, Any]:
        """Return the table as JSON values, which :meth:`of` accepts."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the table of :meth:`as_dict`.

        :raises UsageError: names what is unknown, or missing.
        """
        known = {each.name for each in fields(cls)}
        if unknown := [name for name in values if name not in known]:
            raise UsageError(f"an event table has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
        if "name" not in values:
            raise UsageError("name of an event table is missing")
        return cls(**values)


@dataclass(frozen=True)
class Events:
    """The events of a topic, or of all topics, in one table.

    :ivar topic: ``None`` for all events.
    :ivar own: a user's own table; ``None``: ours in :attr:`schema`.
    """

    topic: str | None = None
    schema: str = SCHEMA
    own: EventTable | None = None

    def __post_init__(self) -> None:
        if self.own is not None and self.topic is not None and self.own.topic is None:
            raise UsageError(
                f"topic is given, but table {self.own.name} has no column for it",
                hint="name that column: EventTable(..., topic='...')",
            )
        if self.topic is not None:
            demand_topic(self.topic)
        demand_identifier("event_schema", self.schema)

    def demand_topic(self) -> None:
        """Raise unless the waiting events can be found by an index: in our table by their topic.

        :raises UsageError: if there is no topic.
        """
        if self.own is None and self.topic is None:
            raise UsageError("topic is missing", hint="name the topic whose events are wanted")

    @property
    def table(self) -> EventTable:
        """The table and its columns."""
        if self.own is not None:
            return self.own
        name = self.installed.identifier.as_string()
        return EventTable(name, claimed_at="claimed_at", done_at="done_at", topic="topic")

    @property
    def installed(self) -> Installed:
        """Our table."""
        return Installed("events", self.schema, "event", "event_schema")

    def parts(self) -> dict[str, sql.Composable]:
        """Return the names and parts for the statements of ``events.sql``."""
        table = self.table
        of_topic: sql.Composable = sql.SQL("")
        if self.topic is not None and table.topic is not None:
            of_topic = sql.SQL(" AND e.{}::pg_catalog.text OPERATOR(pg_catalog.=) {}").format(
                sql.Identifier(table.topic), sql.Literal(self.topic)
            )
        is_unclaimed = sql.SQL("e.{} IS NULL").format(sql.Identifier(table.claimed_by)) + of_topic
        if self.own is not None and table.done_at is not None:
            is_unclaimed += sql.SQL(" AND e.{} IS NULL").format(sql.Identifier(table.done_at))
        # An event that was claimed and given back meanwhile has another version. Views have no versions.
        mark = sql.SQL("e.{}::pg_catalog.text").format(sql.Identifier(table.id))
        if self.own is None:
            mark += sql.SQL(" OPERATOR(pg_catalog.||) ':' OPERATOR(pg_catalog.||) e.xmin::pg_catalog.text")
        return {
            "table": sql.Identifier(*split_identifier("table", table.name)),
            "id": sql.Identifier(table.id),
            "claimed_by": sql.Identifier(table.claimed_by),
            "is_unclaimed": is_unclaimed,
            "of_topic": of_topic,
            "mark": mark,
            "channel": sql.Literal(CHANNEL),
        }


def demand_topic(topic: Any) -> None:
    """Raise unless *topic* can be a topic of our table.

    :raises UsageError: tells its type, or its size.
    """
    if not isinstance(topic, str):
        raise UsageError(f"topic must be text, got {type(topic).__name__}")
    demand_characters("topic", topic)
    if not 0 < (size := len(topic.encode())) <= _TOPIC_BYTES:
        raise UsageError(f"topic must have 1 to {_TOPIC_BYTES} bytes, got {size} bytes")
