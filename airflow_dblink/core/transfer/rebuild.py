"""A load drops the destination's indexes and builds them after it, where that is allowed and faster."""

from __future__ import annotations

import logging

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side, demand
from airflow_dblink.core.tables.catalog import get_relation
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.pieces import Index
from airflow_dblink.core.tables.rebuilding import build_again, drop_indexes, facts

log = logging.getLogger(__name__)

#: Up to so many rows a load is as fast with the indexes there.
FEW_ROWS = 10_000


def demand_rebuild(rebuild: bool | None, mode: str, *, lock: bool) -> None:
    """Raise unless *rebuild* is a flag or ``None``, and goes together with the mode.

    :raises UsageError: says what to do.
    """
    if rebuild is None or rebuild is False:
        return
    if rebuild is not True:
        raise UsageError(f"rebuild_indexes must be True, False or None, got {rebuild!r}")
    if mode not in ("replace", "append"):
        raise UsageError(
            f"rebuild_indexes=True is for mode='replace' and 'append', not for {mode!r}",
            hint="leave rebuild_indexes out",
        )
    if mode == "append" and not lock:
        raise UsageError(
            "rebuild_indexes=True with mode='append' keeps all others out until the load has ended, and needs"
            " lock=True for that",
            hint="set lock=True, or leave rebuild_indexes out",
        )


def demand_rebuildable(destination: Side, relation: Relation, rebuild: bool | None) -> None:
    """Raise if *rebuild* is true, and the role can't build this table's indexes.

    :raises UsageError: names the table.
    """
    if not rebuild:
        return
    found = facts(destination, relation)
    if not found.is_plain:
        raise UsageError(
            f"rebuild_indexes=True needs a plain table, and {relation} is {relation.kind_name}, or has"
            " partitions, parents or children",
            destination.conn_id,
            "42809",
            hint="leave rebuild_indexes out",
        )
    for granted, what in ((found.owns, f"owner of {relation}"), (found.may_create, "CREATE on its schema")):
        demand(granted, destination, f"permission denied: rebuild_indexes needs {what}")


class Rebuild:
    """The indexes that are away while rows are loaded into a table.

    :ivar indexes: none if all stay.
    """

    def __init__(self, destination: Side, target: sql.Identifier) -> None:
        self._destination = destination
        self._target = target
        self._relation: Relation | None = None
        self.indexes: list[Index] = []

    def begin(self, rebuild: bool | None, rows: int) -> None:
        """Drop the indexes where that is wanted; the table is locked, and empty.

        :param rebuild: ``None``: if no trigger could notice, and it is worth it.
        :param rows: about how many will come.
        :raises RemoteError: what the server says.
        """
        if rebuild is False or (rebuild is None and rows <= FEW_ROWS):
            return
        # By its name: pre_sql may have made it anew.
        relation = get_relation(self._destination, self._target.as_string(self._destination.connection))
        found = facts(self._destination, relation)
        if not (found.is_plain and found.owns and found.may_create):
            return
        if rebuild is None and (found.has_triggers or found.has_event_triggers):
            return
        self._relation = relation
        self.indexes = drop_indexes(self._destination, relation)
        if self.indexes:
            names = ", ".join(index.name for index in self.indexes)
            log.info("Indexes of %s that are built after the load: %s", relation, names)

    def end(self) -> None:
        """Build the indexes again, as they were.

        :raises RemoteError: what the server says: 23505 if rows have the same value of a unique key.
        """
        if self._relation is not None:
            build_again(self._destination, self._relation, self.indexes)


def planned_rows(source: Side, table: Relation | None, query: sql.Composable) -> int:
    """Return about how many rows the source's planner expects.

    :param query: what is read if there is no *table*, of which the role may not see all columns.
    :raises RemoteError: what the server says.
    """
    read = sql.SQL("SELECT 1 FROM {}").format(table.identifier) if table else query
    explain = sql.SQL("EXPLAIN (FORMAT JSON) {}").format(read)
    found = source.fetch(explain, "estimating the rows")
    return int(found[0]["QUERY PLAN"][0]["Plan"]["Plan Rows"])
