"""Finds the rows that differ, inside the destination: the source sends keys and hashes, but no values.

The destination's transaction has three temporary tables: ``airflow_dblink_there`` has the source's keys
and their rows' hashes, ``airflow_dblink_plan`` the changes, ``airflow_dblink_rows`` whole
rows of the source. Keys have the destination's types, so its own ``=`` decides which rows belong together.
A row to change or delete is identified by its place: no writer moves it while the table is locked. Its key
isn't enough, since a row that isn't selected may have the same one (an inheritance child's, outside of
*where*). A role with SELECT on single columns can't read places; then the key identifies the row, and no
other row may have it.
"""

from __future__ import annotations

from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.streams.pump import Pumped
from airflow_dblink.core.sync.comparison import Comparison
from airflow_dblink.core.sync.outcome import Plan
from airflow_dblink.core.sync.spec import DELETE, INSERT, UPDATE
from airflow_dblink.core.sync.staged import (
    PLAN,
    ROWS,
    THERE,
    copy,
    create_rows,
    here,
    keys_and_hash,
    named_keys,
    same_key,
    staged_keys,
    there,
)
from airflow_dblink.core.sync.work import Work, column, comma, null_key

_SQL = statements("sync_rows.sql")


def stage_hashes(work: Work, comparison: Comparison) -> Pumped:
    """Fetch keys and hashes of the source's rows in the groups that differ.

    :raises RemoteError: a server's errors.
    """
    destination = work.destination.side
    empty = sql.SQL("CREATE TEMP TABLE airflow_dblink_there ON COMMIT DROP AS {} WITH NO DATA")
    shape = sql.SQL("SELECT {}, 0::bigint AS h FROM {} AS part").format(
        comma(named_keys(work)), work.target.identifier
    )
    destination.run(empty.format(shape), "creating the table of hashes")
    moved = copy(work, comparison.select(work.source, keys_and_hash(work)), THERE, work.key_format)
    destination.run(sql.SQL("ANALYZE {}").format(THERE), "analyzing the hashes")
    if not _is_trusted(work):
        _demand_unique_key(work, sql.SQL("{} AS there").format(THERE))
    return moved


def stage_all(work: Work) -> Pumped:
    """Fetch all rows of the source's part.

    :raises UsageError: if a row has NULL in its key, or two rows have the same key.
    :raises RemoteError: a server's errors.
    """
    create_rows(work)
    whole = work.source.select(comma([column(field.name) for field in work.fields]))
    moved = copy(work, whole, ROWS, work.row_format, work.estimated_rows)
    destination = work.destination.side
    destination.run(sql.SQL("ANALYZE {}").format(ROWS), "analyzing the staging table")
    if (null := work.key_is_null) is not None:
        rows = sql.SQL("SELECT 1 AS one FROM {} AS part WHERE {} LIMIT 1").format(ROWS, null)
        if destination.fetch(rows, "checking the key"):
            raise null_key(work, work.source.side)
    if not _is_trusted(work):
        _demand_unique_key(work, sql.SQL("({}) AS there").format(staged_keys(work)))
    return moved


def make_plan(work: Work, comparison: Comparison | None) -> Plan:
    """Find the rows that differ, after :func:`stage_hashes` or, without *comparison*, :func:`stage_all`.

    :raises UsageError: if several rows of the destination have the same key.
    :raises RemoteError: the destination's errors.
    """
    destination = work.destination.side
    if not work.key_is_sure:
        _demand_one_here(work, comparison)
    numbers = range(len(work.key))
    keys = [sql.SQL("coalesce(there.{0}, here.{0}) AS {0}").format(sql.Identifier(f"k{i}")) for i in numbers]
    destination.run(
        sql.SQL(_SQL["make_plan"]).format(
            keys=comma(keys),
            there=there(work, comparison),
            join=sql.SQL("LEFT JOIN" if work.spec.is_incremental else "FULL JOIN"),
            here=here(work, comparison),
            same=same_key(work, "there", "here"),
        ),
        "finding the rows that differ",
    )
    destination.run(sql.SQL("ANALYZE {}").format(PLAN), "analyzing the plan")
    counts = destination.fetch(
        sql.SQL(_SQL["count_plan"]).format(plan=PLAN), "counting the rows that differ"
    )[0]
    return Plan(**counts, digest=digest(work), first_keys=_first_keys(work))


def digest(work: Work) -> str:
    """Return a hash of the whole plan: keys, operations, and the rows' contents on both sides.

    :raises RemoteError: the destination's errors.
    """
    texts = [sql.SQL("{}::pg_catalog.text").format(sql.Identifier(f"k{i}")) for i in range(len(work.key))]
    entry = [sql.SQL("op::pg_catalog.text"), *texts, sql.SQL("old"), sql.SQL("new")]
    found = work.destination.side.fetch(
        sql.SQL(_SQL["digest_plan"]).format(
            first=work.checksum.of(entry, salt=2), second=work.checksum.of(entry, salt=3), plan=PLAN
        ),
        "reading the plan",
    )[0]
    return "".join(f"{(found[part] or 0) % 2**64:016x}" for part in ("first", "second"))


def _has_twice(work: Work, rows: sql.Composed, alias: str) -> bool:
    names = comma([key.collated(column(f"k{i}", alias)) for i, key in enumerate(work.key)])
    twice = sql.SQL(
        "SELECT 1 AS one FROM {} GROUP BY {} HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 1 LIMIT 1"
    )
    return bool(work.destination.side.fetch(twice.format(rows, names), "checking the key"))


def _demand_one_here(work: Work, comparison: Comparison | None) -> None:
    """Raise if two rows have the same key: a unique index covers one table, and may have its own ``=``."""
    if _has_twice(work, sql.SQL("({}) AS here").format(here(work, comparison)), "here"):
        raise UsageError(
            f"several rows of {work.target} and its inheritance children have the same key"
            f" ({work.key_names})",
            work.destination.side.conn_id,
            "21000",
            hint="delete all but one of each, or sync the tables one by one",
        )


def _is_trusted(work: Work) -> bool:
    """Return whether the source's own unique index guarantees that keys are unique here, too."""
    return work.trusted_key and all(key.is_exact for key in work.key)


def _demand_unique_key(work: Work, there_rows: sql.Composed) -> None:
    if _has_twice(work, there_rows, "there"):
        raise UsageError(
            f"several source rows have the same key ({work.key_names}) of {work.target}",
            work.source.side.conn_id,
            "21000",
            hint="keep one row per key, e.g. with SELECT DISTINCT ON in source_sql; keys are the same where"
            " the destination's column says so (its collation, its type)",
        )


def _first_keys(work: Work) -> dict[str, list[list[str]]]:
    if not work.spec.sample_keys:
        return {}
    names = [sql.Identifier(f"k{i}") for i in range(len(work.key))]
    found: dict[str, list[list[str]]] = {}
    for kind, operation in (("missing", INSERT), ("changed", UPDATE), ("extra", DELETE)):
        query = sql.SQL(
            "SELECT ARRAY[{}] AS key FROM {} WHERE op OPERATOR(pg_catalog.=) {} ORDER BY {} LIMIT {}"
        ).format(
            comma([sql.SQL("pg_catalog.left({}::pg_catalog.text, 100)").format(name) for name in names]),
            PLAN,
            sql.Literal(operation),
            comma(names),
            sql.Literal(work.spec.sample_keys),
        )
        rows: list[dict[str, Any]] = work.destination.side.fetch(query, "reading the plan")
        found[kind] = [row["key"] for row in rows]
    return found
