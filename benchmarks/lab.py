"""The two servers, the tables in them, and the check that all rows have arrived."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from airflow_dblink.embedded.server import Server, servers
from benchmarks.measure import BenchmarkError

# An autovacuum that happens to run in one way's turn would be counted as its time.
_SETTINGS = {"autovacuum": "off"}

#: How many rows, and a hash that does not depend on their order.
Content = tuple[int, int | None]


@dataclass(frozen=True)
class Shape:
    """What the rows of a transfer look like.

    :ivar columns: names and types; the first column is the key.
    :ivar values: SQL for the columns of row ``i``.
    :ivar share: of the rows that are asked for; less for wide rows, which need as much room.
    """

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    values: str
    share: float = 1.0

    @property
    def table(self) -> str:
        """Name of the table, the same on both servers."""
        return f"bench_{self.name}"

    @property
    def definition(self) -> str:
        """The columns as SQL."""
        return ", ".join(f"{name} {kind}" for name, kind in self.columns)


MIXED = Shape(
    "mixed",
    "mixed types",
    (
        ("id", "bigint"),
        ("k", "integer"),
        ("s", "text"),
        ("ts", "timestamptz"),
        ("n", "numeric"),
        ("j", "jsonb"),
    ),
    "i, i * 7919 % 100000, md5(i::text), timestamptz '2024-01-01 00:00+00' + i * interval '1.7 s',"
    " (i * 31 % 1000000) / 100.0, jsonb_build_object('a', i % 100, 'b', 'x' || i % 1000)",
)
NARROW = Shape(
    "narrow",
    "rows of 200 bytes",
    (("id", "bigint"), ("payload", "text")),
    "i, repeat(md5(i::text), 5) || left(md5((-i)::text), 8)",
)
WIDE = Shape(
    "wide",
    "rows of 2 kB",
    (("id", "bigint"), ("payload", "text")),
    "i, repeat(md5(i::text), 61)",  # just short enough to be stored as it is, not compressed
    share=0.25,
)
SHAPES = (MIXED, NARROW, WIDE)


@dataclass(frozen=True)
class Lab:
    """The source and the destination server."""

    source: Server
    destination: Server

    @property
    def version(self) -> str:
        """PostgreSQL's version."""
        return str(self.rows(self.source, "SHOW server_version")[0][0]).split()[0]

    def rows(self, server: Server, query: str, *, superuser: bool = False) -> list[tuple[Any, ...]]:
        """Run *query* by itself; the rows of its result."""
        with psycopg.connect(server.conninfo(superuser=superuser), autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def fill(self, shape: Shape, rows: int) -> None:
        """Make the full table in the source and the empty one in the destination."""
        key = shape.columns[0][0]
        create = f"CREATE TABLE {shape.table} ({shape.definition}, PRIMARY KEY ({key}))"
        for server in (self.source, self.destination):
            self.rows(server, create)
        self.rows(
            self.source,
            f"INSERT INTO {shape.table} SELECT {shape.values} FROM generate_series(1::bigint, {rows}) AS i",  # noqa: S608 - constants
        )
        self.rows(self.source, f"VACUUM (FREEZE, ANALYZE) {shape.table}")
        self.rows(self.source, "CHECKPOINT", superuser=True)

    def drop(self, table: str) -> None:
        """Drop the table on both servers: the next shape may need the room."""
        for server in (self.source, self.destination):
            self.rows(server, f"DROP TABLE IF EXISTS {table}")

    def reset(self, table: str) -> None:
        """Empty the destination's table and write out what is left of the last run."""
        self.rows(self.destination, f"TRUNCATE {table}")
        self.rows(self.destination, "CHECKPOINT", superuser=True)

    def content(self, server: Server, query: str) -> Content:
        """Return the number of rows of *query* and a hash of every one of their bytes."""
        count = "SELECT count(*), bit_xor(hashtextextended(bench_row::text, 0)) FROM ({}) AS bench_row"
        conninfo = make_conninfo(server.conninfo(), options="-c timezone=UTC")
        with psycopg.connect(conninfo) as connection:
            row = connection.execute(sql.SQL(count).format(sql.SQL(query))).fetchone()
        if row is None:
            raise BenchmarkError(f"no answer about {query}")
        return row[0], row[1]

    def expect(self, table: str, content: Content, way: str) -> None:
        """Check that *table* of the destination holds *content*.

        :raises BenchmarkError: if rows are missing, doubled or changed.
        """
        found = self.content(self.destination, f"TABLE {table}")
        if found != content:
            raise BenchmarkError(
                f"{way}: {table} has {found[0]:,} rows, hash {found[1]}, not {content[0]:,}, {content[1]}"
            )

    def environment(self) -> dict[str, str]:
        """Return the connections as Airflow reads them."""
        return {
            "AIRFLOW_CONN_BENCH_SOURCE": self.source.airflow_uri(),
            "AIRFLOW_CONN_BENCH_DESTINATION": self.destination.airflow_uri(),
        }


@contextmanager
def laboratory() -> Iterator[Lab]:
    """Run the two servers, with dblink and postgres_fdw ready in the destination."""
    with servers("source", "destination", settings=_SETTINGS) as (source, destination):
        lab = Lab(source, destination)
        lab.rows(source, "CREATE EXTENSION dblink", superuser=True)
        for statement in _link_by_fdw(source, destination):
            with psycopg.connect(destination.conninfo(superuser=True), autocommit=True) as connection:
                connection.execute(statement)
        yield lab


def _link_by_fdw(source: Server, destination: Server) -> list[sql.SQL | sql.Composed]:
    role = sql.Identifier(destination.role)
    return [
        sql.SQL("CREATE EXTENSION dblink"),
        sql.SQL("CREATE EXTENSION postgres_fdw"),
        sql.SQL(
            "CREATE SERVER bench FOREIGN DATA WRAPPER postgres_fdw"
            " OPTIONS (host {}, port {}, dbname {}, fetch_size '10000')"
        ).format(source.host, str(source.port), source.dbname),
        sql.SQL("CREATE USER MAPPING FOR {} SERVER bench OPTIONS (user {}, password {})").format(
            role, source.role, source.role_password
        ),
        sql.SQL("GRANT USAGE ON FOREIGN SERVER bench TO {}").format(role),
    ]
