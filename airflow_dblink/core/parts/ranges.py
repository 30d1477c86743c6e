"""What has no pages of its own, a view or a query, is cut into ranges of a column's values.

Each range is read by a query of its own, all of them by one snapshot. So together they give each row once, as
long as the source gives the same rows each time that it is asked. Whether it does is seen in the end, since
the rows are counted when the load is planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Self

from psycopg import sql

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.parts.slices import Piece, lost, size_of_part, values_of
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.mapping import Pair
from airflow_dblink.core.transfer.plan import Plan

_SQL = statements("parts_slices.sql")

_SAMPLE_ROWS = 100_000
_STEPS = 1000  # as many ranges at most
_UNFIT = ("42883", "42704", "42809")  # no such operator, no arrays of this type, no operator of an order
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
        """Return the condition of its rows."""
        column = sql.SQL("source.{}").format(sql.Identifier(self.column))
        bounds = []
        if self.first is not None:
            bounds.append(sql.SQL("{} OPERATOR(pg_catalog.>=) {}").format(column, sql.Literal(self.first)))
        if self.end is not None:
            bounds.append(sql.SQL("{} OPERATOR(pg_catalog.<) {}").format(column, sql.Literal(self.end)))
        if self.first is None and bounds:
            bounds = [sql.SQL("({} OR {} IS NULL)").format(*bounds, column)]
        return sql.SQL(" AND ").join(bounds)


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
    source: Side, work: Plan, column: str, *, part_bytes: int, min_parts: int, max_parts: int
) -> Ranges:
    """Cut what *work* reads into ranges of about as many rows; this reads *column* of all of them.

    :param source: in a transaction that reads the snapshot.
    :raises UsageError: if there is no such column, its values have no order, or a foreign table is read,
        whose rows aren't in the snapshot.
    :raises RemoteError: what the server says.
    """
    plan = _planned(source, work)
    tables = tables_read(source)
    share = min(1.0, _SAMPLE_ROWS / max(plan["Plan Rows"], 1))
    query = sql.SQL(
        "SELECT pg_catalog.count(*) AS rows, (pg_catalog.percentile_disc({steps}::pg_catalog.float8[])"
        " WITHIN GROUP (ORDER BY source.{column} USING OPERATOR(pg_catalog.<))"
        " FILTER (WHERE pg_catalog.random() OPERATOR(pg_catalog.<) {share}))::pg_catalog.text[] AS bounds"
        " FROM {read} AS source"
    ).format(
        steps=[step / _STEPS for step in range(1, _STEPS)],
        column=sql.Identifier(column),
        share=sql.Literal(share),
        read=work.read,
    )
    try:
        (found,) = source.fetch(query, f"cutting the source by part_column {column!r}")
    except RemoteError as error:
        if error.sqlstate not in _UNFIT:
            raise
        raise UsageError(
            f"part_column {column!r} can't be cut into ranges: its values have no order of PostgreSQL's own",
            source.conn_id,
            error.sqlstate,
            hint="name a column of numbers, times or texts",
        ) from None
    size = found["rows"] * max(plan["Plan Width"], 1)
    of_part = size_of_part(size, part_bytes=part_bytes, min_parts=min_parts, max_parts=max_parts)
    count = min(max(ceil(size / of_part), 1), max_parts, _STEPS)
    return Ranges(_ranges(column, found["bounds"] or [], count), found["rows"], size, _files(tables))


def _planned(source: Side, work: Plan) -> Mapping[str, Any]:
    """Return the planner's estimate of what is copied."""
    names = sql.SQL(", ").join(sql.Identifier(pair.source) for pair in work.pairs)
    explain = sql.SQL("EXPLAIN (FORMAT JSON) SELECT {} FROM {} AS source").format(names, work.read)
    found = source.fetch(explain, "estimating the rows")
    plan: Mapping[str, Any] = found[0]["QUERY PLAN"][0]["Plan"]
    return plan


def _ranges(column: str, steps: Sequence[str], count: int) -> list[Range]:
    """Return *count* ranges, or fewer if many rows have one value."""
    bounds = [steps[i * len(steps) // count] for i in range(1, count)] if steps else []
    bounds = list(dict.fromkeys(bounds))
    return [Range(column, first, end) for first, end in zip([None, *bounds], [*bounds, None], strict=True)]


def lockable(source: Side, read: sql.Composable, column: str) -> list[sql.Identifier]:
    """Return the tables and views that must be locked so that nobody changes what is *read*.

    :param source: in a transaction that has read no other table.
    :raises RemoteError: what the server says, of the *column*, too.
    :raises UsageError: names the foreign tables among them.
    """
    explain = sql.SQL("EXPLAIN SELECT source.{} FROM {} AS source").format(sql.Identifier(column), read)
    source.fetch(explain, f"looking for part_column {column!r}")
    return [
        sql.Identifier(table["schema_name"], table["name"])
        for table in tables_read(source)
        if table["may_select"] and table["kind"] in _LOCKABLE
    ]


def tables_read(source: Side) -> list[dict[str, Any]]:
    """Return what the open transaction has read or planned to read.

    :raises UsageError: names the foreign tables among it.
    """
    tables = source.ask(_SQL["read"])
    foreign = [f"{table['schema_name']}.{table['name']}" for table in tables if table["kind"] == "f"]
    if foreign:
        raise UsageError(
            f"foreign tables are read, whose rows aren't in the snapshot: {', '.join(foreign)}",
            source.conn_id,
            "42809",
            hint="copy it as a whole with DblinkTransferOperator",
        )
    return tables


def _files(tables: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    return {table["oid"]: table["filenode"] for table in tables if table["filenode"] is not None}


def demand_same_files(source: Side, files: Mapping[int, int]) -> None:
    """Raise unless the tables that were read have the *files* that they had when the load was planned.

    A table that was truncated looks empty in every snapshot. A partition may have been left out this time.

    :raises LoadLostError: names the table.
    """
    for table in tables_read(source):
        if files.get(table["oid"], table["filenode"]) != table["filenode"]:
            name = f"{table['schema_name']}.{table['name']}"
            raise lost(source, f"{name} was truncated or rewritten since the load was planned")


def copy_range(part: Range, read: sql.Composable, pairs: Sequence[Pair], copy_format: str) -> sql.Composed:
    """Return the COPY of the range's rows.

    :param read: the text after FROM.
    """
    bounds = part.where()
    return sql.SQL("COPY (SELECT {} FROM {} AS source{}{}) TO STDOUT (FORMAT {})").format(
        values_of(pairs),
        read,
        sql.SQL(" WHERE " if part.first is not None or part.end is not None else ""),
        bounds,
        sql.Identifier(copy_format),
    )
