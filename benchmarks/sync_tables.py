"""Two tables that differ by so and so much, and the destination's as it was before a sync."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import psycopg
from psycopg import sql

from airflow_dblink.embedded.server import Server
from benchmarks.lab import MIXED, Content, Lab, Shape

_WAS = "_as_it_was"
# Keys that are hit without a rule: a millionth each.
_SCATTERED = "abs(hashint8extended(i, 1) % 1000000)"


@dataclass(frozen=True)
class Difference:
    """What differs between the two tables: a third each is to be updated, missing and extra.

    :ivar share: of the rows.
    :ivar clustered: whether the keys follow each other.
    :ivar key_type: ``bigint``, or ``text`` for keys that have no ranges.
    :ivar rows: what they look like otherwise; column k is what an update changes.
    """

    name: str
    title: str
    share: float
    clustered: bool = False
    key_type: str = "bigint"
    rows: Shape = MIXED

    @cached_property
    def shape(self) -> Shape:
        """The columns, with a key of that type."""
        key = "md5(i::text)" if self.key_type == "text" else "i"
        return replace(
            self.rows,
            name=f"sync_{self.name}",
            columns=(("id", self.key_type), *self.rows.columns[1:]),
            values=key + self.rows.values.removeprefix("i"),
        )

    @property
    def table(self) -> str:
        """Name of the table, the same on both servers."""
        return self.shape.table

    def kind(self, rows: int) -> str:
        """Return SQL that says of key ``i`` whether it is to be (I)nserted, (U)pdated or (D)eleted."""
        if not self.share:
            return "'='"
        if self.clustered:
            first, many = rows // 2, max(3, round(rows * self.share))
            return (
                f"CASE WHEN i BETWEEN {first} AND {first + many - 1}"
                " THEN (ARRAY['I', 'U', 'D'])[i % 3 + 1] ELSE '=' END"
            )
        each = self.share * 1_000_000 / 3
        return (
            f"CASE WHEN {_SCATTERED} < {each:.0f} THEN 'I' WHEN {_SCATTERED} < {2 * each:.0f} THEN 'U'"
            f" WHEN {_SCATTERED} < {3 * each:.0f} THEN 'D' ELSE '=' END"
        )


@dataclass(frozen=True)
class Counts:
    """How many rows a sync has to insert, update and delete."""

    inserted: int
    updated: int
    deleted: int

    @property
    def all(self) -> int:
        """All together."""
        return self.inserted + self.updated + self.deleted


@dataclass(frozen=True)
class Tables:
    """The two tables of a difference, filled.

    :ivar content: the source's.
    :ivar size: bytes of the source's rows, as a binary COPY has them.
    """

    lab: Lab
    difference: Difference
    content: Content
    counts: Counts
    size: int

    def restore(self) -> None:
        """Make the destination's table what it was, down to its pages: no run sees what another has left.

        As autovacuum leaves a table, and with nothing to do for the checkpointer.
        """
        table = self.difference.table
        self.lab.rows(
            self.lab.destination,
            f"SET synchronize_seqscans = off; TRUNCATE {table}; INSERT INTO {table} TABLE {table}{_WAS}",
        )
        self.lab.rows(self.lab.destination, f"VACUUM (FREEZE, ANALYZE) {table}")
        self.lab.rows(self.lab.destination, "CHECKPOINT", superuser=True)

    def expect(self, way: str) -> None:
        """Check that the destination is what the source is, byte for byte."""
        self.lab.expect(self.difference.table, self.content, way)

    def drop(self) -> None:
        """Drop all."""
        self.lab.drop(self.difference.table)
        self.lab.drop(self.difference.table + _WAS)


@contextmanager
def filled(lab: Lab, difference: Difference, rows: int) -> Iterator[Tables]:
    """Make the two tables, and drop them in the end."""
    tables = _make(lab, difference, rows)
    try:
        yield tables
    finally:
        tables.drop()


def _make(lab: Lab, difference: Difference, rows: int) -> Tables:
    """Fill both sides: each has about *rows* rows."""
    shape, kind = difference.shape, difference.kind(rows)
    for server in (lab.source, lab.destination):
        lab.rows(server, f"CREATE TABLE {shape.table} ({shape.definition}, PRIMARY KEY (id))")
    lab.rows(
        lab.destination,
        f"CREATE UNLOGGED TABLE {shape.table}{_WAS} ({shape.definition}) WITH (autovacuum_enabled = off)",
    )
    numbers = f"generate_series(1::bigint, {round(rows / (1 - difference.share / 3))}) AS i"
    lab.rows(
        lab.source,
        f"INSERT INTO {shape.table} SELECT {shape.values} FROM {numbers} WHERE {kind} <> 'D'",  # noqa: S608
    )
    names = [name for name, _ in shape.columns]
    old = ["CASE kind WHEN 'U' THEN k + 1 ELSE k END" if name == "k" else name for name in names]
    rows_there = f"SELECT {shape.values}, {kind} FROM {numbers}"  # noqa: S608 - constants
    lab.rows(
        lab.destination,
        f"INSERT INTO {shape.table}{_WAS} SELECT {', '.join(old)}"  # noqa: S608 - constants
        f" FROM ({rows_there}) AS rows ({', '.join(names)}, kind) WHERE kind <> 'I'",
    )
    kinds = f"SELECT kind, count(*) FROM (SELECT {kind} FROM {numbers}) AS kinds (kind) GROUP BY kind"  # noqa: S608
    count = dict(lab.rows(lab.source, kinds))
    lab.rows(lab.source, f"VACUUM (FREEZE, ANALYZE) {shape.table}")
    lab.rows(lab.source, "CHECKPOINT", superuser=True)
    tables = Tables(
        lab,
        difference,
        lab.content(lab.source, f"TABLE {shape.table}"),
        Counts(count.get("I", 0), count.get("U", 0), count.get("D", 0)),
        size_of(lab.source, shape.table),
    )
    tables.restore()
    return tables


def size_of(server: Server, table: str) -> int:
    """Return the bytes of a binary COPY of the table."""
    statement = sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(sql.Identifier(table))
    with (
        psycopg.connect(server.conninfo()) as connection,
        connection.cursor() as cursor,
        cursor.copy(statement) as copy,
    ):
        return sum(len(block) for block in copy)
