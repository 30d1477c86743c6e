"""Groups of keys, compared by their checksums inside the servers: one scan per side, both at once.

A group is a range of an integer key column, or, for all other keys, a bucket of the key's hash. For buckets
the servers need not agree on any order or collation. A range keeps neighbouring keys together, and an index
finds its rows; a bucket's rows need a second scan.

The client receives blocks of 64 groups, 14 bytes per group, and unpacks only blocks that differ.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import psycopg
from psycopg import pq, sql
from psycopg.errors import error_from_result
from psycopg.generators import fetch, send

from airflow_dblink.core.errors import from_psycopg
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sync.comparison import Comparison, Grouping
from airflow_dblink.core.sync.work import Field, Part, Work, column, null_key

_SQL = statements("sync.sql")
_ROWS_SQL = statements("sync_rows.sql")

#: Rows that a group should have. With fewer, equal tables cost more bytes, and each difference costs less.
ROWS_PER_GROUP = 32
_BLOCK_BITS = 6
# Number in the block, number of rows, checksum. Two equal rows cancel out in a checksum, so rows are counted.
_GROUP = struct.Struct(">hiq")
_COUNT_MAX = 2**31 - 1
_UNEVEN = 16  # times ROWS_PER_GROUP: if a range may have more rows, buckets are better
_ACTION = "comparing checksums"


def choose(work: Work, rows: int) -> Grouping:
    """Return the grouping of the keys.

    :param rows: estimated number of rows in the destination's part.
    :raises RemoteError: the destination's errors.
    """
    part, rows = _larger(work, rows)
    for candidate in work.key:
        if not candidate.is_integer:
            continue
        shift, largest = _shift(_bounds(work, part, candidate), rows)
        if largest <= ROWS_PER_GROUP * _UNEVEN:
            number = sql.SQL("({}::bigint OPERATOR(pg_catalog.>>) {})").format(
                column(candidate.name), sql.Literal(shift)
            )
            return Grouping(_or_null(work, number), candidate, shift)
    buckets = 1 << max(0, math.ceil(math.log2(max(1, rows / ROWS_PER_GROUP))))
    number = sql.SQL("({} OPERATOR(pg_catalog.&) {}::bigint)").format(work.key_hash, sql.Literal(buckets - 1))
    return Grouping(_or_null(work, number), buckets=buckets)


def _larger(work: Work, rows: int) -> tuple[Part, int]:
    """Return the side with more rows, whose keys decide the groups, and its estimated number of rows.

    :param rows: estimated number of rows in the destination's part.
    """
    source = work.source
    if source.relation is None or source.relation.kind not in ("r", "p"):
        return work.destination, rows  # a guess at a query's rows may be far off
    explain = sql.SQL("EXPLAIN (FORMAT JSON) {}").format(source.select(sql.SQL("1")))
    planned = source.side.fetch(explain, "estimating the rows")[0]["QUERY PLAN"][0]["Plan"]["Plan Rows"]
    return (source, int(planned)) if planned > rows else (work.destination, rows)


def _shift(bounds: Sequence[int], rows: int) -> tuple[int, float]:
    """Return the shift for the smallest ranges that aren't too many, and the most rows that a range may have.

    :param bounds: keys, with equally many rows between any two neighbours; they show how gaps between keys
        differ.
    """
    between = rows / (len(bounds) - 1)
    widths = [high - low + 1 for low, high in pairwise(bounds)]
    wanted = max(1.0, rows / ROWS_PER_GROUP * 1.5)
    shift = next(
        (
            shift
            for shift in range(63)
            if sum(min(between, (w >> shift) + 1) for w in widths) <= wanted + len(widths)
        ),
        63,
    )
    return shift, max(between / ((width >> shift) + 1) for width in widths)


def _or_null(work: Work, number: sql.Composed) -> sql.Composed:
    if (null := work.key_is_null) is None:
        return number
    return sql.SQL("CASE WHEN {} THEN NULL ELSE {} END").format(null, number)


def _bounds(work: Work, part: Part, candidate: Field) -> list[int]:
    """Return the histogram bounds in the planner's statistics, or else the lowest and the highest value."""
    side, name = part.side, column(candidate.name)
    if part.relation is not None and part.where is None and candidate.pair.cast is None:
        in_table = candidate.pair.source if part is work.source else candidate.pair.destination
        known = {"oid": part.relation.oid, "name": in_table}
        found = side.ask(_SQL["histogram"], known, _ACTION)
        if found and found[0]["bounds"]:
            return [int(bound) for bound in found[0]["bounds"]]
    what = sql.SQL("pg_catalog.min({0})::bigint AS low, pg_catalog.max({0})::bigint AS high").format(name)
    ends = side.fetch(part.select(what), "reading the key's bounds")[0]
    return [0, 0] if ends["low"] is None else [int(ends["low"]), int(ends["high"])]


def compare(work: Work, grouping: Grouping) -> Comparison:
    """Compare both sides group by group.

    :raises UsageError: if a row has NULL in its key.
    :raises RemoteError: a server's errors.
    """
    comparison = Comparison(grouping)
    streams = [_Blocks(work, part, grouping) for part in (work.source, work.destination)]
    for stream in streams:  # both servers work at the same time
        stream.start()
    source, destination = (iter(stream) for stream in streams)
    mine, theirs = next(source, None), next(destination, None)
    while mine or theirs:
        number = min(block.number for block in (mine, theirs) if block)
        left = mine if mine and mine.number == number else None
        right = theirs if theirs and theirs.number == number else None
        _compare_block(comparison, number, left, right)
        mine = next(source, None) if left else mine
        theirs = next(destination, None) if right else theirs
    comparison.size = sum(stream.size for stream in streams)
    return comparison


@dataclass(frozen=True)
class _Block:
    number: int
    rows: int
    groups: bytes

    def entries(self) -> dict[int, tuple[int, int]]:
        return {offset: (rows, value) for offset, rows, value in _GROUP.iter_unpack(self.groups)}


def _compare_block(
    comparison: Comparison, number: int, source: _Block | None, destination: _Block | None
) -> None:
    comparison.source_rows += source.rows if source else 0
    comparison.destination_rows += destination.rows if destination else 0
    if source and destination and source.groups == destination.groups:
        comparison.groups += len(source.groups) // _GROUP.size
        return
    left = source.entries() if source else {}
    right = destination.entries() if destination else {}
    offsets = sorted({*left, *right})
    comparison.groups += len(offsets)
    for offset in offsets:
        if left.get(offset) != right.get(offset):
            comparison.differing.append((number << _BLOCK_BITS) + offset)
            rows = (side[offset][0] for side in (left, right) if offset in side)
            comparison.differing_rows += max(rows)


class _Blocks:
    """One side's checksums, in the order of the groups, read as a stream from its server."""

    def __init__(self, work: Work, part: Part, grouping: Grouping) -> None:
        self._work = work
        self._side: Side = part.side
        rows = part.select(sql.SQL("{} AS g, {} AS h").format(grouping.number, grouping.row_hash(work)))
        self._query = sql.SQL(_ROWS_SQL["groups"]).format(
            bits=sql.Literal(_BLOCK_BITS),
            mask=sql.Literal((1 << _BLOCK_BITS) - 1),
            most=sql.Literal(_COUNT_MAX),
            rows=rows,
        )
        self.size = 0

    def start(self) -> None:
        connection = self._side.connection
        pgconn = connection.pgconn
        text = self._query.as_string(connection).encode()
        pgconn.send_query_params(text, None, result_format=pq.Format.BINARY)
        pgconn.set_single_row_mode()
        try:
            connection.wait(send(pgconn))
        except psycopg.Error as error:
            raise from_psycopg(error, self._side.conn_id, _ACTION) from None

    def __iter__(self) -> Iterator[_Block]:
        while (result := self._next()) is not None:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                error = error_from_result(result, encoding="utf-8")
                raise from_psycopg(error, self._side.conn_id, _ACTION)
            for row in range(result.ntuples):
                number, rows, groups = (result.get_value(row, i) for i in range(3))
                if number is None:
                    raise null_key(self._work, self._side)
                block = _Block(
                    int.from_bytes(number, signed=True),
                    int.from_bytes(rows or b"", signed=True),
                    bytes(groups or b""),
                )
                self.size += len(block.groups) + 2 * 8
                yield block

    def _next(self) -> pq.abc.PGresult | None:
        connection = self._side.connection
        if connection.check:  # wait() doesn't call it while data is always at hand
            connection.check()
        try:
            result: pq.abc.PGresult | None = connection.wait(fetch(connection.pgconn))
        except psycopg.Error as error:
            raise from_psycopg(error, self._side.conn_id, _ACTION) from None
        return result
