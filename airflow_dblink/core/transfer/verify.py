"""A look at what was loaded, before it is committed: does the destination have what the source gave.

Rows have no key here, so a table's checksum is the sum of its rows' hashes: unlike exclusive or, it sees
rows that are equal in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import psycopg
from psycopg import pq, sql
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many, send

from airflow_dblink.core.errors import UsageError, VerificationError, from_psycopg
from airflow_dblink.core.server.settings import set_config
from airflow_dblink.core.server.side import Side, demand
from airflow_dblink.core.streams.pump import Pumped
from airflow_dblink.core.tables.catalog import get_relation, types
from airflow_dblink.core.tables.checksum import agree
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.mapping import Pair
from airflow_dblink.core.tables.rewritten import demand_read
from airflow_dblink.core.tables.route import rounded

Verify = Literal["count", "checksum"]

_ACTION = "comparing checksums"
_MOST_NAMES = 20  # of columns, in an error


@dataclass(frozen=True)
class Load:
    """What was loaded, and where it came from.

    :ivar read: the text after FROM for what the source's COPY read; without an alias.
    :ivar target: the table that was loaded.
    :ivar name: the destination's name, for errors.
    :ivar is_all: whether the table has nothing but what was loaded.
    """

    read: sql.Composable
    target: sql.Identifier
    name: str
    pairs: Sequence[Pair]
    copy_format: str
    is_all: bool


def demand_verify(verify: str | None, mode: str) -> None:
    """Raise unless *verify* is known, and can be done after a load of that *mode*.

    :raises UsageError: says which modes it is for.
    """
    if verify is None:
        return
    if verify not in get_args(Verify):
        raise UsageError(f"verify must be count, checksum or None, got {verify!r}")
    if mode == "upsert":
        raise UsageError(
            "verify doesn't go together with mode='upsert', which merges rows into those that are there",
            hint="DblinkSyncOperator(delete=False) merges rows, and verifies what it has merged",
        )
    if verify == "checksum" and mode == "append":
        raise UsageError(
            "verify='checksum' compares whole tables, and mode='append' adds to rows that are there",
            hint="verify='count', or a mode after which the table has nothing but what came: replace, create,"
            " swap",
        )


def demand_readable(
    destination: Side, verify: str | None, mode: str, relation: Relation, pairs: Sequence[Pair]
) -> None:
    """Raise unless what *verify* asks of the destination can be known, and the role may read it.

    :raises UsageError: 42809 for a view; 42501, names the columns.
    """
    if verify is not None and relation.kind == "v":
        raise UsageError(
            f"{relation} is a view, and PostgreSQL doesn't say how many rows its trigger has kept",
            destination.conn_id,
            "42809",
            hint="name the table behind it, or leave verify out",
        )
    if verify is None or mode == "append":  # which compares what the two COPYs say
        return
    if verify == "count":
        may_count = any(column.may_select for column in relation.columns)
        demand(may_count, destination, f"permission denied: verify needs SELECT on {relation}")
        return
    given = {pair.destination for pair in pairs}
    unread = [c.name for c in relation.columns if c.name in given and not c.may_select]
    demand(
        not unread, destination, f"permission denied: verify needs SELECT on {relation} ({', '.join(unread)})"
    )


def verify_load(source: Side, destination: Side, load: Load, pumped: Pumped, verify: str) -> None:
    """Compare the destination with what the source gave, in the transactions that are open.

    :param pumped: what the two COPYs have said.
    :param verify: ``count`` or ``checksum``; the latter reads the source a second time, so the transaction
        there must be REPEATABLE READ.
    :raises VerificationError: says what differs, in numbers and names.
    :raises TransientError: if a table of the source was rewritten after its snapshot was taken.
    :raises RemoteError: what a server says.
    """
    _verify_counts(source, destination, load, pumped)
    if verify == "checksum":
        demand_read(source)
        _verify_checksum(source, destination, load, pumped)


def _verify_counts(source: Side, destination: Side, load: Load, pumped: Pumped) -> None:
    came = f"{source.conn_id!r} sent {pumped.sent} rows"
    if pumped.taken != pumped.sent:
        raise VerificationError(
            f"verification failed: {came}, and {load.name} kept {pumped.taken} of them; nothing is committed",
            destination.conn_id,
            hint="look for a trigger (BEFORE INSERT) that returns NULL; where that is right: verify=None",
        )
    if not load.is_all:
        return
    count = sql.SQL("SELECT pg_catalog.count(*) AS rows FROM {}").format(load.target)
    found = destination.fetch(count, "counting the rows")[0]["rows"]
    if found != pumped.sent:
        raise VerificationError(
            f"verification failed: {came}, and after the load {load.name} has {found}; nothing is committed",
            destination.conn_id,
            hint="look for a trigger (AFTER INSERT) that deletes or adds rows; where that is right:"
            " verify=None",
        )


def _verify_checksum(source: Side, destination: Side, load: Load, pumped: Pumped) -> None:
    columns, whole, single = _hashes(source, destination, load)
    with _same_time_zone(source, destination):
        here, there = _both(destination, source, whole)
        if here == there:
            return
        here_by_column, there_by_column = _both(destination, source, single)
    differing = [
        name for i, name in enumerate(columns) if here_by_column[f"c{i}"] != there_by_column[f"c{i}"]
    ]
    if here["rows"] != there["rows"]:
        why = f"which gave {there['rows']} rows when it was read again"
    elif not differing:
        why = "each column has the same values, but some stand in other rows"
    else:
        names = ", ".join(map(repr, differing[:_MOST_NAMES]))
        why = f"columns that differ: {names}" + (", ..." if len(differing) > _MOST_NAMES else "")
    raise VerificationError(
        f"verification failed: the checksum of the {pumped.sent} rows of {load.name} is not that of"
        f" {source.conn_id!r}: {why}; nothing is committed",
        destination.conn_id,
        hint="a trigger or the column's type (varchar(n) cuts blanks) changes what is written, or source_sql"
        " gives other values each time it is read (random(), LIMIT without ORDER BY): mend that, or leave the"
        " column out of columns, or verify='count'",
    )


def _hashes(
    source: Side, destination: Side, load: Load
) -> tuple[list[str], tuple[sql.Composed, sql.Composed], tuple[sql.Composed, sql.Composed]]:
    """Return the columns; the SELECTs of rows and checksum, the destination's first; those by column."""
    relation = get_relation(destination, load.target.as_string(destination.connection))
    kinds = {column.name: column.type for column in relation.columns}
    pairs = rounded(source, destination, relation.oid, load.pairs)
    here = types(destination, [kinds[pair.destination] for pair in pairs])
    there = types(source, [pair.source_type for pair in pairs])
    checksum = agree(source, destination)
    values = [
        checksum.canonical(
            sql.Identifier("part", pair.destination),
            here[kinds[pair.destination]],
            there[pair.source_type],
            load.copy_format,
        )
        for pair in pairs
    ]
    given = sql.SQL(", ").join(
        sql.SQL("given.{}{} AS {}").format(
            sql.Identifier(pair.source),
            sql.SQL(f"::{pair.cast}" if pair.cast else ""),
            sql.Identifier(pair.destination),
        )
        for pair in pairs
    )
    rows = (load.target, sql.SQL("(SELECT {} FROM {} AS given)").format(given, load.read))
    one = sql.SQL("pg_catalog.count(*) AS rows, pg_catalog.sum({})::pg_catalog.text AS hash")
    each = sql.SQL(", ").join(
        sql.SQL("pg_catalog.sum({})::pg_catalog.text AS {}").format(
            checksum.of([value]), sql.Identifier(f"c{i}")
        )
        for i, value in enumerate(values)
    )

    def selects(what: sql.Composed) -> tuple[sql.Composed, sql.Composed]:
        first, second = (sql.SQL("SELECT {} FROM {} AS part").format(what, each_rows) for each_rows in rows)
        return first, second

    return [pair.destination for pair in pairs], selects(one.format(checksum.of(values))), selects(each)


@contextmanager
def _same_time_zone(source: Side, destination: Side) -> Iterator[None]:
    """Let the destination write times as the source does, for types that are compared as text."""
    zone, own = (side.connection.info.parameter_status("TimeZone") for side in (source, destination))
    if not zone or not own or zone == own:
        yield
        return
    action = "setting up the transaction"
    destination.run(set_config([("timezone", zone)], local=True), action)
    yield
    destination.run(set_config([("timezone", own)], local=True), action)


def _both(
    destination: Side, source: Side, queries: tuple[sql.Composed, sql.Composed]
) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """Return the only row of each query; both servers work at the same time.

    :param queries: the destination's first.
    :raises RemoteError: what a server says; both connections are unusable then.
    """
    sides = (destination, source)
    for side, query in zip(sides, queries, strict=True):
        try:
            side.connection.pgconn.send_query(query.as_string(side.connection).encode())
            side.connection.wait(send(side.connection.pgconn))
        except psycopg.Error as error:
            raise from_psycopg(error, side.conn_id, _ACTION) from None
    first, second = (_row(side) for side in sides)
    return first, second


def _row(side: Side) -> dict[str, str | None]:
    try:
        result = side.connection.wait(fetch_many(side.connection.pgconn))[-1]
    except psycopg.Error as error:
        raise from_psycopg(error, side.conn_id, _ACTION) from None
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise from_psycopg(error_from_result(result, encoding="utf-8"), side.conn_id, _ACTION)
    values = [result.get_value(0, i) for i in range(result.nfields)]
    return {
        (result.fname(i) or b"").decode(): None if value is None else bytes(value).decode()
        for i, value in enumerate(values)
    }
