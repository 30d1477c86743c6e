"""The destination's temporary tables of a sync: their names, and conditions on their rows."""

from __future__ import annotations

from psycopg import sql

from airflow_dblink.core.streams.pump import End, Pumped, pump
from airflow_dblink.core.sync.comparison import Comparison
from airflow_dblink.core.sync.work import Part, Work, column, comma

THERE = sql.Identifier("pg_temp", "airflow_dblink_there")
PLAN = sql.Identifier("pg_temp", "airflow_dblink_plan")
ROWS = sql.Identifier("pg_temp", "airflow_dblink_rows")
_PLACE = sql.SQL("part.tableoid AS place_table, part.ctid AS place")
_NO_PLACE = sql.SQL("NULL::pg_catalog.oid AS place_table, NULL::pg_catalog.tid AS place")
#: Operations added to a plan to make way: a row is deleted; a deleted row is inserted again.
REMOVED, RENEWED = "R", "S"


def create_rows(work: Work) -> None:
    """Make the empty table for whole rows.

    :raises RemoteError: the destination's errors.
    """
    names = comma([column(f.name) for f in work.fields])
    work.destination.side.run(
        sql.SQL(
            "CREATE TEMP TABLE airflow_dblink_rows ON COMMIT DROP AS SELECT {} FROM {} AS part WITH NO DATA"
        ).format(names, work.target.identifier),
        "creating the staging table",
    )


def copy(
    work: Work, query: sql.Composed, into: sql.Composable, copy_format: str, total: int | None = None
) -> Pumped:
    """Move the rows of *query*, which the source runs, into a table of the destination.

    :param total: estimated number of rows, for the log.
    :raises RemoteError: a server's errors.
    :raises UsageError: if the pace's query can't be used.
    """
    name, progress = sql.Identifier(copy_format), work.progress
    return pump(
        End.of(work.source.side, sql.SQL("COPY ({}) TO STDOUT (FORMAT {})").format(query, name)),
        End.of(work.destination.side, sql.SQL("COPY {} FROM STDIN (FORMAT {})").format(into, name)),
        lambda rows, size: None if progress is None else progress(rows, size, total),
        work.pace,
    )


def there(work: Work, comparison: Comparison | None) -> sql.Composed:
    """Return the text after FROM for the source's keys and hashes."""
    if comparison is not None:
        return sql.SQL("{} AS there").format(THERE)
    return sql.SQL("({}) AS there").format(staged_keys(work))


def here(work: Work, comparison: Comparison | None) -> sql.Composed:
    """Return the SELECT of the destination's keys, hashes and places, of the groups that differ."""
    what = sql.SQL("{}, {}").format(keys_and_hash(work), place(work))
    if comparison is None:
        return work.destination.select(what)
    return comparison.select(work.destination, what)


def same_key(work: Work, left: str, right: str) -> sql.Composed:
    """Return the condition that two aliases' ``k0``, ``k1``, ... are the same key."""
    return sql.SQL(" AND ").join(
        key.same(column(f"k{i}", left), column(f"k{i}", right)) for i, key in enumerate(work.key)
    )


def place(work: Work) -> sql.SQL:
    """Return the columns with a row's place in the destination; NULL if the role can't read it."""
    return _PLACE if work.sees_places else _NO_PLACE


def same_row(work: Work, left: str, right: str) -> sql.SQL | sql.Composed:
    """Return the condition that two aliases, each with the plan's columns, mean the same row."""
    if not work.sees_places:
        return same_key(work, left, right)
    return sql.SQL(
        f"{left}.place OPERATOR(pg_catalog.=) {right}.place"
        f" AND {left}.place_table OPERATOR(pg_catalog.=) {right}.place_table"
    )


def named_keys(work: Work) -> list[sql.Composed]:
    """Return the key's columns of a row of a part, as ``k0``, ``k1``, ..."""
    return [
        sql.SQL("{} AS {}").format(column(key.name), sql.Identifier(f"k{i}"))
        for i, key in enumerate(work.key)
    ]


def keys_and_hash(work: Work) -> sql.Composed:
    """Return the key of a row of a part, as ``k0``, ``k1``, ..., and its hash ``h``."""
    return sql.SQL("{}, {} AS h").format(comma(named_keys(work)), work.row_hash)


def staged_keys(work: Work) -> sql.Composed:
    """Return the SELECT of the staged rows' keys and hashes."""
    staged = Part(work.destination.side, sql.SQL("{} AS part").format(ROWS), None, None, frozenset())
    return staged.select(keys_and_hash(work))


def as_array(operations: str) -> sql.Composed:
    """Return *operations* as an array of "char"."""
    return sql.SQL('{}::pg_catalog."char"[]').format(sql.Literal("{" + ",".join(operations) + "}"))


def matches(work: Work, alias: str) -> sql.Composed:
    """Return the condition that a row of *alias* has the key of the plan's row."""
    return sql.SQL(" AND ").join(
        field.same(column(field.name, alias), column(f"k{i}", "plan")) for i, field in enumerate(work.key)
    )
