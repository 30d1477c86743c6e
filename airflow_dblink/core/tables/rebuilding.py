"""Indexes that are dropped before a load and built again after it, which is faster than row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.core.server.side import Side, own_path
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.pieces import Index, TableName, build_indexes, read_indexes, run_all

_SQL = statements("rebuilding.sql")
_DUPLICATE = "23505"


@dataclass(frozen=True)
class Facts:
    """What decides whether a table's indexes can be dropped and built again.

    :ivar is_plain: whether it is a table by itself: neither partitioned nor a partition, without inheritance.
    :ivar owns: whether the role owns it.
    :ivar may_create: whether the role may create in its schema.
    :ivar has_triggers: whether triggers fire for its new rows; they may look for rows by the indexes.
    :ivar has_event_triggers: whether the database calls somebody's functions for DDL.
    """

    is_plain: bool
    owns: bool
    may_create: bool
    has_triggers: bool
    has_event_triggers: bool


def facts(side: Side, table: Relation) -> Facts:
    """Return what decides whether indexes of *table* can be dropped and built again.

    :raises RemoteError: a server's errors.
    """
    return Facts(**side.ask(_SQL["facts"], {"oid": table.oid})[0])


def drop_indexes(side: Side, table: Relation) -> list[Index]:
    """Drop the indexes of *table* that can be built again, its keys too, and return them.

    Those stay that something else depends on, such as another table's foreign key.

    :raises RemoteError: a server's errors.
    """
    names = {str(row["name"]) for row in side.ask(_SQL["rebuildable"], {"oid": table.oid})}
    with own_path(side):  # definitions then name all schemas
        indexes = [index for index in read_indexes(side, table.oid) if index.name in names]
        run_all(side, [index.drop(TableName.of(table)) for index in indexes], "dropping indexes")
    return indexes


def build_again(side: Side, table: Relation, indexes: Sequence[Index]) -> None:
    """Build *indexes* as they were.

    :raises RemoteError: a server's errors: 23505 if rows have the same value of a unique key.
    """
    with own_path(side):
        for index in indexes:
            try:
                run_all(side, build_indexes([(index, None)], TableName.of(table)), "building an index")
            except RemoteError as error:
                hint = error.hint
                if error.sqlstate == _DUPLICATE:
                    hint = "several source rows have the same key: keep one per key (SELECT DISTINCT ON)"
                message = f"building index {index.name} of {table} after the load: {error.message}"
                raise error.but(message=message, hint=hint) from None
