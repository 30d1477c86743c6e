"""The two connections of a sync, their transactions, and the settings of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from airflow_dblink.core.link.messages import Wire
from airflow_dblink.core.server.side import Side, set_local
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.streams.pace import Pace
from airflow_dblink.core.sync.work import Progress

_SQL = statements("sync.sql")

BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
BEGIN_DRY = "BEGIN ISOLATION LEVEL REPEATABLE READ"
# Each side's transaction is idle while the other side works.
_PATIENCE = {"idle_in_transaction_session_timeout": "0"}
_WORK_MEM = "64MB"
# The destination's transaction holds a lock. So its server must notice by itself, in about two minutes, that
# the worker's machine is gone.
_KEEPALIVE = {"tcp_keepalives_idle": "60", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "6"}


@dataclass
class Session:
    """The two connections of a sync, in autocommit mode, and the settings of their transactions.

    :ivar link: the destination's connection, in the form that dblink's builders take.
    :ivar pace: the speed limit of rows, and the condition under which they wait; ``None`` for neither.
    :ivar progress: called often, with the progress of a stream of rows.
    """

    source: Side
    link: Wire
    source_settings: Mapping[str, str]
    destination_settings: Mapping[str, str]
    pace: Pace | None = None
    progress: Progress | None = None

    @cached_property
    def destination(self) -> Side:
        """The destination's connection, named by its Airflow connection."""
        return Side(self.link.connection, self.link.target.conn_id)

    def settings(self) -> dict[str, str]:
        """Return the destination's settings: its TimeZone is the source's, unless one was given."""
        zone = self.source.connection.info.parameter_status("TimeZone") or "UTC"
        given = self.destination_settings
        zones = {} if any(name.lower() == "timezone" for name in given) else {"timezone": zone}
        return {**_PATIENCE, **self._destination_memory, **_KEEPALIVE, **zones, **given}

    @cached_property
    def _source_memory(self) -> dict[str, str]:
        return _enough_memory(self.source)

    @cached_property
    def _destination_memory(self) -> dict[str, str]:
        return _enough_memory(self.destination)

    def begin_source(self) -> None:
        """Begin the source's snapshot."""
        self.source.run(BEGIN_READING, "beginning the source transaction")
        set_local(self.source, {**_PATIENCE, **self._source_memory, **self.source_settings})

    def begin_destination(self, begin: str) -> None:
        """Begin a transaction of the destination that changes nothing."""
        self.destination.run(begin, "checking the destination")
        set_local(self.destination, self.settings())


def _enough_memory(side: Side) -> dict[str, str]:
    """Return a work_mem that lets PostgreSQL hash the groups, since sorting is slower; nothing if set so."""
    less = side.ask(_SQL["has_less_memory"], {"wanted": _WORK_MEM}, "reading work_mem")[0]["less"]
    return {"work_mem": _WORK_MEM} if less else {}
