"""The two connections of a sync, their transactions, and the settings of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from psycopg import sql

from airflow_dblink.core.link.messages import Wire
from airflow_dblink.core.server.settings import Settings
from airflow_dblink.core.server.side import Side, begin
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.streams.pace import Pace
from airflow_dblink.core.sync.work import Progress

_SQL = statements("sync.sql")

BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
BEGIN_DRY = "BEGIN ISOLATION LEVEL REPEATABLE READ"
# Each side's transaction is idle while the other side works.
_PATIENCE = {"idle_in_transaction_session_timeout": "0"}
# So much lets PostgreSQL hash the groups; sorting is slower. A server that has more keeps it.
_ENOUGH_MEMORY = {"work_mem": sql.SQL(_SQL["enough_memory"])}
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

    def settings(self) -> dict[str, str | sql.Composable]:
        """Return the destination's settings: its TimeZone is the source's, unless one was given."""
        zone = self.source.connection.info.parameter_status("TimeZone") or "UTC"
        given = self.destination_settings
        zones = {} if any(name.lower() == "timezone" for name in given) else {"timezone": zone}
        return {**_PATIENCE, **_ENOUGH_MEMORY, **_KEEPALIVE, **zones, **given}

    def begin_source(self) -> None:
        """Begin the source's snapshot."""
        settings: Settings = {**_PATIENCE, **_ENOUGH_MEMORY, **self.source_settings}
        begin(self.source, BEGIN_READING, settings, "beginning the source transaction")

    def begin_destination(self, statement: str) -> str:
        """Begin a transaction of the destination that changes nothing; return its snapshot."""
        action = "checking the destination"
        asked = [sql.SQL(_SQL["snapshot"])]
        ((found,),) = begin(self.destination, statement, self.settings(), action, asked)
        return str(found["snapshot"])
