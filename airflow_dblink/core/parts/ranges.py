"""What has no pages of its own, a view or a query, is cut into ranges of a column's values.

Each range is read by a query of its own, all of them by one snapshot. So together they give each row once, as
long as the source gives the same rows each time that it is asked. The rows are counted when the load is
planned, and in the end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Self

from psycopg import sql

from airflow_dblink.core.errors import LoadLostError, RemoteError, UsageError
from airflow_dblink.core.parts.slices import Piece, lost, size_of_part, values_of
from airflow_dblink.core.server.side import Side, own_path
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.catalog import describe
from airflow_dblink.core.tables.entries import ResultColumn
from airflow_dblink.core.tables.mapping import Pair

log = logging.getLogger(__name__)

_SQL = statements("parts_ranges.sql")

#: For the transactions that read ranges: without it a scan begins where another one is, and LIMIT and window
#: functions without a whole order give other rows each time.
SAME_EACH_TIME = {"synchronize_seqscans": "off"}
_SAMPLE_ROWS = 100_000
_STEPS = 1000  # as many ranges at most
_LEAST_SAMPLE = 1_000
_UNORDERED = ("42883", "42704", "42809")  # no such operator, no arrays of the type, no operator of an order
_NOT_ALLOWED = "42501"
_TOO_LARGE = "54000"
_UNREAD = ("0A", "22")  # classes: a type without input, another text than its output
_MOST_NAMED = 20
_LOCKABLE = ("r", "p", "v")  # by LOCK TABLE


@dataclass(frozen=True)
class Range:
    """The rows between two values of a column.

    :ivar first: the first value, as text; ``None``: the range is open, and has the rows without a value.
    :ivar end: the first value after it; ``None``: the range is open.
    """

    column: str
    first: str | None = None
    end: str | None = None

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Return the range that :attr:`stored` gave.

        :raises UsageError: if it is none: somebody has changed the ledger.
        """
        match dict(stored):
            case {"column": str(), "first": str() | None, "end": str() | None, **rest} if not rest:
                return cls(**stored)
        raise UsageError("the ledger of the load holds something else than ranges of values")

    @property
    def stored(self) -> dict[str, str | None]:
        """The range as JSON."""
        return asdict(self)

    def where(self) -> sql.Composable:
        """Return the WHERE of its rows; nothing if it is open on both sides."""
        column = sql.SQL("source.{}").format(sql.Identifier(self.column))
        bounds = []
        if self.first is not None:
            bounds.append(sql.SQL("{} OPERATOR(pg_catalog.>=) {}").format(column, sql.Literal(self.first)))
        if self.end is not None:
            bounds.append(sql.SQL("{} OPERATOR(pg_catalog.<) {}").format(column, sql.Literal(self.end)))
        if self.first is None and bounds:
            bounds = [sql.SQL("({} OR {} IS NULL)").format(*bounds, column)]
        return sql.SQL(" WHERE " if bounds else "") + sql.SQL(" AND ").join(bounds)


Part = tuple[Piece | Range, ...]


def piece_of(stored: Any) -> Piece | Range:
    """Return a piece of either kind, as it is stored in the ledger.

    :raises UsageError: if it is none.
    """
    return Range.of(stored) if isinstance(stored, Mapping) else Piece.of(stored)


@dataclass(frozen=True)
class Ranges:
    """What a view or a query is cut into.

    :ivar rows: how many there are.
    :ivar bytes: about how large they are.
    :ivar files: of each table that was read, by its oid.
    """

    parts: list[Range]
    rows: int
    bytes: int
    files: dict[int, int]


def cut_by_values(
    source: Side,
    read: sql.Composable,
    column: str,
    copied: Sequence[str],
    *,
    part_bytes: int,
    min_parts: int,
    max_parts: int,
) -> Ranges:
    """Cut what is *read* into ranges of about as many rows; *column* of all of them is read for that.

    :param source: in a transaction that reads the snapshot.
    :param read: the text after FROM.
    :param copied: names of the columns whose sizes count.
    :raises UsageError: if the column's values can't be bounds of ranges, or a foreign table is read.
    :raises LoadLostError: if a table was rewritten since the snapshot was taken.
    :raises RemoteError: what the server says.
    """
    scan = _plan(source, _question(read, column, copied, 1.0), column)["Plans"]
    expected = sum(each["Plan Rows"] for each in scan if each["Parent Relationship"] == "Outer")
    found = _asked(source, read, column, copied, _share(expected))
    if found["sampled"] < min(found["rows"], _LEAST_SAMPLE):  # the planner had expected far more rows
        found = _asked(source, read, column, copied, _share(found["rows"]))
    files = _files(source)
    size = int(found["rows"] * float(found["width"] or 1))
    of_part = size_of_part(size, part_bytes=part_bytes, min_parts=min_parts, max_parts=max_parts)
    count = min(max(ceil(size / of_part), 1), max_parts, _STEPS)
    ranges = _ranges(column, found["bounds"] or [], count)
    _try_bounds(source, read, ranges)
    return Ranges(ranges, found["rows"], size, files)


def _share(rows: int) -> float:
    return min(1.0, _SAMPLE_ROWS / max(rows, 1))


def _question(read: sql.Composable, column: str, copied: Sequence[str], share: float) -> sql.Composed:
    """Return the query that counts the rows, and by a sample of them finds bounds and the width of a row."""
    width = sql.SQL(" OPERATOR(pg_catalog.+) ").join(
        sql.SQL("coalesce(pg_catalog.pg_column_size(source.{}), 0)").format(sql.Identifier(name))
        for name in copied
    )
    sampled = sql.SQL("FILTER (WHERE pg_catalog.random() OPERATOR(pg_catalog.<) {})").format(
        sql.Literal(share)
    )
    return sql.SQL(
        "SELECT pg_catalog.count(*) AS rows, pg_catalog.count(*) {sampled} AS sampled,"
        " pg_catalog.avg({width}) {sampled} AS width,"
        " (pg_catalog.percentile_disc({steps}::pg_catalog.float8[])"
        " WITHIN GROUP (ORDER BY source.{column} USING OPERATOR(pg_catalog.<)) {sampled})::pg_catalog.text[]"
        " AS bounds FROM {read} AS source"
    ).format(
        sampled=sampled,
        width=width if copied else sql.SQL("1"),
        steps=[step / _STEPS for step in range(1, _STEPS)],
        column=sql.Identifier(column),
        read=read,
    )


def _asked(
    source: Side, read: sql.Composable, column: str, copied: Sequence[str], share: float
) -> dict[str, Any]:
    try:
        (found,) = source.fetch(
            _question(read, column, copied, share), f"cutting the source by part_column {column!r}"
        )
    except RemoteError as error:
        if error.sqlstate != _TOO_LARGE:
            raise
        raise _no_bounds(source, column, error, "are too large") from None
    return found


def _plan(source: Side, question: sql.Composed, column: str) -> dict[str, Any]:
    explain = sql.SQL("EXPLAIN (FORMAT JSON) {}").format(question)
    found = source.fetch(explain, f"looking for part_column {column!r}")
    plan: dict[str, Any] = found[0]["QUERY PLAN"][0]["Plan"]
    return plan


def _ranges(column: str, steps: Sequence[str], count: int) -> list[Range]:
    """Return *count* ranges, or fewer if many rows have one value."""
    bounds = [steps[i * len(steps) // count] for i in range(1, count)] if steps else []
    bounds = list(dict.fromkeys(bounds))
    return [Range(column, first, end) for first, end in zip([None, *bounds], [*bounds, None], strict=True)]


def _try_bounds(source: Side, read: sql.Composable, ranges: Sequence[Range]) -> None:
    """Let the parser read the bounds: a type's text need not be what it reads."""
    if len(ranges) == 1:
        return
    explain = sql.SQL("EXPLAIN SELECT FROM {} AS source{}").format(read, ranges[-1].where())
    try:
        source.fetch(explain, "trying the bounds of a range")
    except RemoteError as error:
        if (error.sqlstate or "")[:2] not in _UNREAD:
            raise
        raise _no_bounds(source, ranges[0].column, error, "can't be bounds") from None


def _no_bounds(source: Side, column: str, error: RemoteError, why: str) -> UsageError:
    return UsageError(
        f"part_column {column!r} can't be cut into ranges: its values {why}",
        source.conn_id,
        error.sqlstate,
        hint="name a column of numbers, times or texts",
    )


def lockable(
    source: Side, read: sql.Composable, columns: Sequence[ResultColumn], column: str
) -> list[sql.Identifier]:
    """Return the tables and views that must be locked so that nobody changes what is *read*.

    :param source: in a transaction that has read no other table.
    :param columns: of what is read.
    :raises UsageError: if there is no such *column*, or its values have no order, or it is a window
        function's; names the foreign tables that are read.
    :raises RemoteError: what the server says.
    """
    named = [each for each in columns if each.name == column]
    if len(named) != 1:
        what = "has several columns" if named else "has no column"
        raise UsageError(
            f"the source {what} {column!r}, which part_column names",
            source.conn_id,
            "42702" if named else "42703",
            hint=f"its columns are {_named([each.name for each in columns])}",
        )
    try:
        plan = _plan(source, _question(read, column, (), 1.0), column)
    except RemoteError as error:
        if error.sqlstate not in _UNORDERED:
            raise
        raise _no_bounds(source, column, error, "have no order of PostgreSQL's own") from None
    if "WindowAgg" in _nodes(plan) and _is_computed(source, named[0].table, named[0].number):
        raise UsageError(
            f"part_column {column!r} is computed, perhaps by a window function, and parts may number rows"
            " otherwise than each other",
            source.conn_id,
            hint="name a column of a table, which the source passes on as it is",
        )
    tables = tables_read(source)
    locked = [table for table in tables if table["may_lock"] and table["kind"] in _LOCKABLE]
    has_view = any(table["kind"] == "v" for table in locked)  # its lock is also that of the tables behind it
    others = [table for table in tables if not table["may_lock"] and not table["is_partition"]]
    free = [] if has_view else [table["name"] for table in others]
    free += [table["name"] for table in tables if table["kind"] == "m" and table["may_lock"]]
    if free:
        log.warning(
            "%s: can't be locked, and the load fails if somebody rewrites it: %s",
            source.conn_id,
            _named(free),
        )
    return [sql.Identifier(table["schema_name"], table["table_name"]) for table in locked]


def _named(names: Sequence[str]) -> str:
    """Return the names as a list for readers, which ends after some."""
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _nodes(plan: Mapping[str, Any]) -> set[str]:
    """Return the kinds of all nodes of a plan."""
    return {str(plan["Node Type"])}.union(*(_nodes(each) for each in plan.get("Plans", ())))


def _is_computed(source: Side, table: int, number: int) -> bool:
    """Return whether a column is computed, and not that of a table, perhaps through views.

    :param table: oid of the relation that it comes from, 0 if it is computed.
    :param number: of the column there.
    """
    while table:
        with own_path(source):  # under which the definition names all schemas
            (view,) = source.ask(_SQL["view"], {"oid": table})
            if view["definition"] is None:
                break
            columns = _columns_of(source, view["definition"])
        if columns is None:
            return False
        column = columns[number - 1]
        table, number = column.table, column.number
    return not table


def _columns_of(source: Side, definition: str) -> list[ResultColumn] | None:
    """Return the columns of a view's definition; ``None`` if the role may not use what is behind it."""
    action = "reading a view's definition"
    source.run("SAVEPOINT airflow_dblink_view", action)
    try:
        columns = describe(source, sql.SQL(definition), action)
    except RemoteError as error:
        if error.sqlstate != _NOT_ALLOWED:
            raise
        source.run("ROLLBACK TO SAVEPOINT airflow_dblink_view", action)
        return None
    source.run("RELEASE SAVEPOINT airflow_dblink_view", action)
    return columns


def tables_read(source: Side) -> list[dict[str, Any]]:
    """Return what the open transaction has read or planned to read.

    :raises UsageError: names the foreign tables among it.
    """
    tables = source.ask(_SQL["read"])
    foreign = [table["name"] for table in tables if table["kind"] == "f"]
    if foreign:
        raise UsageError(
            f"foreign tables are read, whose rows aren't in the snapshot: {_named(foreign)}",
            source.conn_id,
            "42809",
            hint="copy it as a whole with DblinkTransferOperator",
        )
    return tables


def _files(source: Side) -> dict[int, int]:
    """Return the files of what was read, which must be those of the snapshot."""
    tables = tables_read(source)
    for table in tables:
        if table["filenode"] != table["planned"]:
            raise _rewritten(source, table)
    return {table["oid"]: table["filenode"] for table in tables}


def demand_same_files(source: Side, files: Mapping[int, int]) -> None:
    """Raise unless what was read are tables that were read when the load was planned, with the same *files*.

    A table that was truncated looks empty in every snapshot. A partition may have been left out this time, or
    be new: the snapshot has no row of it, or the count will tell.

    :raises LoadLostError: names the table.
    """
    for table in tables_read(source):
        if table["oid"] not in files and table["root"] not in files:
            raise lost(source, f"{table['name']} is read, and was not when the load was planned")
        if files.get(table["oid"], table["planned"] or table["filenode"]) != table["filenode"]:
            raise _rewritten(source, table)


def _rewritten(source: Side, table: Mapping[str, Any]) -> LoadLostError:
    return lost(source, f"{table['name']} was truncated or rewritten since the load was planned")


def copy_range(part: Range, read: sql.Composable, pairs: Sequence[Pair], copy_format: str) -> sql.Composed:
    """Return the COPY of the range's rows.

    :param read: the text after FROM.
    """
    return sql.SQL("COPY (SELECT {} FROM {} AS source{}) TO STDOUT (FORMAT {})").format(
        values_of(pairs), read, part.where(), sql.Identifier(copy_format)
    )
