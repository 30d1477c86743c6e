"""The rows that are new since the last look, by the transactions that wrote them.

A column of type ``xid8`` holds each row's transaction. What a snapshot shows is known exactly, so rows of
transactions that commit late are found late, but never missed: no such order exists for times or sequences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.catalog import get_relation

_SQL = statements("new_rows.sql")
_SNAPSHOT = re.compile(r"(\d{1,20}):(\d{1,20}):(?:\d{1,20}(?:,\d{1,20})*)?")
_HISTORY = ("system_identifier", "database", "timeline")


@dataclass(frozen=True)
class Seen:
    """A snapshot of a database whose rows have been read.

    :ivar snapshot: PostgreSQL's text of it: ``xmin:xmax:running,...``.
    """

    snapshot: str
    system_identifier: str
    database: str
    timeline: str

    @classmethod
    def of(cls, values: Any) -> Self:
        """Return the snapshot of :meth:`as_dict`, as it was kept.

        :raises UsageError: if it is none.
        """
        if isinstance(values, Mapping) and set(values) == set(cls.__dataclass_fields__):
            found = cls(**{name: str(value) for name, value in values.items()})
            if _SNAPSHOT.fullmatch(found.snapshot):
                return found
        raise UsageError("the kept watermark is no snapshot", hint="delete it from the asset's state")

    def as_dict(self) -> dict[str, str]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def xmax(self) -> int:
        """The first transaction id that it doesn't know."""
        found = _SNAPSHOT.fullmatch(self.snapshot)
        return int(found[2]) if found else 0


def look(source: Side, before: Seen | None) -> Seen:
    """Return the snapshot of the open transaction, or the current one.

    :param before: the one of the last look; it must be of the same history of transaction ids.
    :raises UsageError: if the server is a standby; if it was promoted or restored since.
    :raises RemoteError: the server's errors.
    """
    (row,) = source.ask(_SQL["snapshot"], action="reading the snapshot")
    if row["is_standby"]:
        raise UsageError(
            "the server is a standby, whose snapshots don't tell which transactions still run",
            source.conn_id,
            hint="read the primary",
        )
    now = Seen(*(str(row[name]) for name in ("snapshot", *_HISTORY)))
    if before is None:
        return now
    if changed := [name for name in _HISTORY if getattr(now, name) != getattr(before, name)]:
        raise _other_history(source, f"another {' and '.join(changed).replace('_', ' ')}")
    if now.xmax < before.xmax:
        raise _other_history(source, "transaction ids that are lower than before")
    return now


def _other_history(source: Side, why: str) -> UsageError:
    return UsageError(
        f"which rows are new can't be told: the server has {why}, as after a promotion or a restore",
        source.conn_id,
        hint="delete the watermark from the asset's state, and the next run reads all rows",
    )


def new_rows(
    source: Side,
    destination: Side,
    *,
    source_table: str,
    destination_table: str,
    xid_column: str,
    columns: Any,
    before: Seen | None,
) -> str:
    """Return the query for the new rows of a table; without *before* for all.

    :param xid_column: column of type ``xid8`` with the transaction that has written the row. It is left out
        if the destination has no such column.
    :param columns: columns to read, a list or a mapping; ``None`` for all.
    :raises UsageError: if a table or the column isn't there, or the column is of another type.
    :raises RemoteError: a server's errors.
    """
    table = get_relation(source, source_table)
    types = {column.name: column.type_name for column in table.columns}
    if xid_column not in types:
        raise UsageError(
            f"{table} has no column {xid_column!r}, named in xid_column",
            source.conn_id,
            "42703",
            hint=f"ALTER TABLE {table} ADD COLUMN {sql.Identifier(xid_column).as_string()} xid8"
            " DEFAULT pg_current_xact_id()",
        )
    if types[xid_column] != "xid8":
        raise UsageError(
            f"xid_column {xid_column!r} of {table} is of type {types[xid_column]}, and must be xid8",
            source.conn_id,
            "42804",
        )
    names = list(columns) if columns is not None else list(types)
    if columns is None:
        theirs = {column.name for column in get_relation(destination, destination_table).columns}
        names = [name for name in names if name != xid_column or name in theirs]
    query = sql.SQL("SELECT {} FROM {}").format(
        sql.SQL(", ").join(map(sql.Identifier, names)), table.identifier
    )
    if before is not None:
        is_new = sql.SQL(_SQL["is_new"])
        query += sql.SQL(" WHERE ") + is_new.format(
            xid=sql.Identifier(xid_column), snapshot=sql.Literal(before.snapshot)
        )
    return query.as_string(source.connection)
