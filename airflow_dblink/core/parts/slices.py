"""What a table is cut into: ranges of its pages, by ``ctid``, partition by partition.

A range is read from its own pages alone (a TID range scan). Together the ranges of a table are all of its
pages, whatever is added later: the last one is open. So they give each row of the snapshot once, as long as
nobody rewrites the table. Whoever does gives it another file, which :func:`demand_same_file` finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

from psycopg import sql

from airflow_dblink.core.errors import LoadLostError, UsageError
from airflow_dblink.core.parts.key import ANEW
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.mapping import Pair

_SQL = statements("parts_slices.sql")

#: Of a part, by default.
PART_BYTES = 1024**3
MAX_PARTS = 200
_LEAST_BYTES = 8 * 1024**2  # a task takes seconds to begin: a smaller part gains nothing
_GROWTH = 1.25


@dataclass(frozen=True)
class Leaf:
    """A table that holds rows: the source itself, or one of its partitions or children."""

    oid: int
    schema_name: str
    name: str
    is_foreign: bool
    is_heap: bool
    filenode: int | None
    bytes: int
    pages: int
    may_select: bool
    row_security: bool

    def __str__(self) -> str:
        return f"{self.schema_name}.{self.name}"


@dataclass(frozen=True)
class Piece:
    """A range of one leaf's pages.

    :ivar leaf: the leaf's oid.
    :ivar filenode: of the leaf, when its pages were counted.
    :ivar first: the first page.
    :ivar end: the first page after it; ``None``: the range is open.
    """

    leaf: int
    filenode: int
    first: int = 0
    end: int | None = None

    @classmethod
    def of(cls, stored: Any) -> Self:
        """Return the piece that :attr:`stored` gave.

        :raises UsageError: if it is none: somebody has changed the ledger.
        """
        match stored:
            case [int(), int(), int(), int() | None] if not any(
                isinstance(each, bool) or (each or 0) < 0 for each in stored
            ):
                return cls(*stored)
        raise UsageError("the ledger of the load holds something else than ranges of pages")

    @property
    def stored(self) -> list[int | None]:
        """The piece as JSON."""
        return [self.leaf, self.filenode, self.first, self.end]


Part = tuple[Piece, ...]


def leaves_of(source: Side, table: Relation) -> list[Leaf]:
    """Return the tables that hold the rows of *table*.

    :raises UsageError: if one of them can't be read by its pages.
    """
    if table.kind not in ("r", "p", "m"):
        raise UsageError(
            f"{table} is {table.kind_name}, and has no pages to be cut into parts",
            source.conn_id,
            "42809",
            hint="name a column whose values cut it (part_column), or copy it as a whole with"
            " DblinkTransferOperator",
        )
    leaves = [Leaf(**row) for row in source.ask(_SQL["leaves"], {"oid": table.oid})]
    for leaf in leaves:
        _demand_readable(source, table, leaf)
    return leaves


def _demand_readable(source: Side, table: Relation, leaf: Leaf) -> None:
    if leaf.is_foreign:
        raise UsageError(
            f"{leaf}, a partition of {table}, is a foreign table: its rows aren't in the snapshot",
            source.conn_id,
            "42809",
            hint="copy the table as a whole with DblinkTransferOperator",
        )
    if not leaf.may_select:
        raise UsageError(
            f"permission denied: no SELECT on {leaf}",
            source.conn_id,
            "42501",
            hint="grant it to the connection's role: parts are read from each partition by itself, and by the"
            " places of rows (ctid), which needs SELECT on the whole table",
        )
    if leaf.oid != table.oid and (leaf.row_security or table.row_security):
        raise UsageError(
            f"row-level security limits which rows of {table} are read, and parts are read from"
            f" {leaf} by itself",
            source.conn_id,
            "42501",
            hint="use a role that is not limited, or copy the table as a whole with DblinkTransferOperator",
        )


def cut(
    leaves: Iterable[Leaf], *, part_bytes: int = PART_BYTES, min_parts: int = 1, max_parts: int = MAX_PARTS
) -> list[Part]:
    """Return the parts of a table, each about as large as the others; small leaves share one.

    :param part_bytes: how large a part is at most, TOAST included; larger only if there would be more
        than *max_parts*.
    :param min_parts: so many parts at least, unless they would be smaller than 8 MB for that.
    :param max_parts: so many parts at most.
    """
    leaves = list(leaves)
    total = sum(leaf.bytes for leaf in leaves)
    size = size_of_part(total, part_bytes=part_bytes, min_parts=min_parts, max_parts=max_parts)
    while len(parts := _cut(leaves, size)) > max_parts:
        size = ceil(size * _GROWTH)
    return parts


def size_of_part(total: int, *, part_bytes: int, min_parts: int, max_parts: int) -> int:
    """Return how many of *total* bytes a part has; see :func:`cut`."""
    size = min(part_bytes, max(ceil(total / min_parts), _LEAST_BYTES))
    return max(size, ceil(total / max_parts))


def _cut(leaves: Sequence[Leaf], size: int) -> list[Part]:
    parts: list[Part] = []
    shared: list[Piece] = []
    room = size
    for leaf in leaves:
        pieces = _pieces(leaf, size)
        if len(pieces) > 1:
            parts += [(piece,) for piece in pieces]
            continue
        if shared and leaf.bytes > room:
            parts.append(tuple(shared))
            shared, room = [], size
        shared += pieces
        room -= leaf.bytes
    return [*parts, tuple(shared)] if shared else parts


def _pieces(leaf: Leaf, size: int) -> list[Piece]:
    count = min(ceil(leaf.bytes / size), leaf.pages) if leaf.is_heap else 1
    count = max(count, 1)
    begins = [number * leaf.pages // count for number in range(count)]
    ends = [*begins[1:], None]
    return [Piece(leaf.oid, leaf.filenode or 0, first, end) for first, end in zip(begins, ends, strict=True)]


def name_of(source: Side, piece: Piece) -> sql.Identifier:
    """Return the qualified name of the piece's table.

    :raises LoadLostError: if it is gone.
    """
    found = source.ask(_SQL["leaf"], {"oid": piece.leaf})
    if not found:
        raise _rewritten(source, f"the table with oid {piece.leaf}", "was dropped")
    return sql.Identifier(found[0]["schema_name"], found[0]["name"])


def demand_same_file(source: Side, piece: Piece, name: sql.Identifier) -> None:
    """Raise unless the table that was read still has the file whose pages were counted.

    To be asked in the transaction that has read it, whose lock keeps everybody from rewriting it since then.

    :raises LoadLostError: if it was truncated or rewritten.
    """
    text = name.as_string(source.connection)
    (now,) = source.ask(_SQL["file"], {"name": text})
    if (now["oid"], now["filenode"] or 0) != (piece.leaf, piece.filenode):
        raise _rewritten(source, text, "was truncated, rewritten (VACUUM FULL, CLUSTER, ALTER) or replaced")


def _rewritten(source: Side, table: str, what: str) -> LoadLostError:
    return lost(source, f"{table} {what} since the load was planned, and its rows have other places now")


def lost(source: Side, message: str) -> LoadLostError:
    """Return the error of a load that can't go on with this source."""
    return LoadLostError(
        message,
        source.conn_id,
        "55000",
        hint=f"the destination is as it was: {ANEW}",
    )


def copy_out(piece: Piece, name: sql.Identifier, pairs: Sequence[Pair], copy_format: str) -> sql.Composed:
    """Return the COPY of the piece's rows.

    :param name: of the piece's table.
    """
    bounds = [(">=", piece.first)] if piece.first else []
    bounds += [("<", piece.end)] if piece.end is not None else []
    where = sql.SQL(" AND ").join(
        sql.SQL("source.ctid OPERATOR(pg_catalog.{}) {}::pg_catalog.tid").format(
            sql.SQL(operator), f"({page},0)"
        )
        for operator, page in bounds
    )
    return sql.SQL("COPY (SELECT {} FROM ONLY {} AS source{}{}) TO STDOUT (FORMAT {})").format(
        values_of(pairs), name, sql.SQL(" WHERE " if bounds else ""), where, sql.Identifier(copy_format)
    )


def values_of(pairs: Sequence[Pair]) -> sql.Composable:
    """Return the values that a COPY of *source* gives, as a list."""
    return sql.SQL(", ").join(
        sql.SQL("source.{}{}").format(
            sql.Identifier(pair.source), sql.SQL(f"::{pair.cast}" if pair.cast else "")
        )
        for pair in pairs
    )
