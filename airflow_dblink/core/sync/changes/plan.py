"""The rows that differ, found inside the destination: keys and hashes come from the source, no values.

Three temporary tables of the destination's transaction: ``airflow_dblink_there`` has the source's keys
with their rows' hashes, ``airflow_dblink_plan`` what is to be done, ``airflow_dblink_rows`` whole
rows of the source. Keys have the destination's types, so its own ``=`` says which row is which. A row that
is to be changed or deleted is known by its place: no writer moves it while the table is locked, and its key
may be another row's as well, that nobody has asked for (an inheritance child's, outside of *where*). A role
with SELECT on columns alone can't read places: then it is known by its key, which no other row may have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.streams.pump import End, Pumped, pump
from airflow_dblink.core.sync.compare.groups import Comparison
from airflow_dblink.core.sync.prepare import null_key
from airflow_dblink.core.sync.spec import DELETE, INSERT, UPDATE
from airflow_dblink.core.sync.work import Part, Work, column, comma

THERE = sql.Identifier("pg_temp", "airflow_dblink_there")
PLAN = sql.Identifier("pg_temp", "airflow_dblink_plan")
ROWS = sql.Identifier("pg_temp", "airflow_dblink_rows")

_PLACE = sql.SQL("part.tableoid AS place_table, part.ctid AS place")
_NO_PLACE = sql.SQL("NULL::pg_catalog.oid AS place_table, NULL::pg_catalog.tid AS place")
_FEW = 0.2  # of the rows: below it an index finds them faster than a scan

_MAKE_PLAN = """\
CREATE TEMP TABLE airflow_dblink_plan ON COMMIT DROP AS
SELECT CASE WHEN here.h IS NULL THEN 'I' WHEN there.h IS NULL THEN 'D' ELSE 'U' END::pg_catalog."char" AS op,
       pg_catalog.row_number() OVER () AS n, {keys}, here.h AS old, there.h AS new,
       here.place_table, here.place
  FROM {there} {join} ({here}) AS here ON {same}
 WHERE (here.h OPERATOR(pg_catalog.=) there.h) IS NOT TRUE"""
_COUNTS = """\
SELECT pg_catalog.count(*) FILTER (WHERE op OPERATOR(pg_catalog.=) 'I') AS missing,
       pg_catalog.count(*) FILTER (WHERE op OPERATOR(pg_catalog.=) 'U') AS changed,
       pg_catalog.count(*) FILTER (WHERE op OPERATOR(pg_catalog.=) 'D') AS extra
  FROM {plan}"""
_DIGEST = "SELECT pg_catalog.bit_xor({first}) AS first, pg_catalog.bit_xor({second}) AS second FROM {plan}"


@dataclass(frozen=True)
class Plan:
    """What differs.

    :ivar missing: rows that only the source has.
    :ivar changed: rows that both have, with other values.
    :ivar extra: rows that only the destination has.
    :ivar digest: of all keys, and of the rows' contents on both sides.
    :ivar first_keys: some keys of each kind, as text, of which the first 100 characters.
    """

    missing: int = 0
    changed: int = 0
    extra: int = 0
    digest: str = ""
    first_keys: Mapping[str, list[list[str]]] = field(default_factory=dict)

    def done(self, operations: str) -> int:
        """Return how many rows *operations* will touch."""
        given = {INSERT: self.missing, UPDATE: self.changed, DELETE: self.extra}
        return sum(given[operation] for operation in operations)


def stage_hashes(work: Work, comparison: Comparison) -> Pumped:
    """Fetch keys and hashes of the source's rows in the groups that differ.

    :raises RemoteError: what a server says.
    """
    destination = work.destination.side
    empty = sql.SQL("CREATE TEMP TABLE airflow_dblink_there ON COMMIT DROP AS {} WITH NO DATA")
    shape = sql.SQL("SELECT {}, 0::bigint AS h FROM {} AS part").format(
        comma(named_keys(work)), work.target.identifier
    )
    destination.run(empty.format(shape), "creating the table of hashes")
    found = comparison.grouping.select(
        work.source, _keys_and_hash(work), comparison.differing, few=is_few(comparison)
    )
    moved = copy(work, found, THERE, work.key_format)
    destination.run(sql.SQL("ANALYZE {}").format(THERE), "analyzing the hashes")
    if not _is_trusted(work):
        _demand_unique_key(work, sql.SQL("{} AS there").format(THERE))
    return moved


def is_few(comparison: Comparison) -> bool:
    """Return whether the rows that differ are best found by an index."""
    return comparison.differing_rows < comparison.rows * _FEW


def create_rows(work: Work) -> None:
    """Make the empty table for whole rows.

    :raises RemoteError: what the destination says.
    """
    names = comma([column(f.name) for f in work.fields])
    work.destination.side.run(
        sql.SQL(
            "CREATE TEMP TABLE airflow_dblink_rows ON COMMIT DROP AS SELECT {} FROM {} AS part WITH NO DATA"
        ).format(names, work.target.identifier),
        "creating the staging table",
    )


def stage_all(work: Work) -> Pumped:
    """Fetch all rows of the source's part.

    :raises UsageError: if one has NULL in its key, or two have the same key.
    :raises RemoteError: what a server says.
    """
    create_rows(work)
    moved = copy(
        work, work.source.select(comma([column(f.name) for f in work.fields])), ROWS, work.row_format
    )
    destination = work.destination.side
    destination.run(sql.SQL("ANALYZE {}").format(ROWS), "analyzing the staging table")
    if (null := work.key_is_null) is not None:
        rows = sql.SQL("SELECT 1 AS one FROM {} AS part WHERE {} LIMIT 1").format(ROWS, null)
        if destination.fetch(rows, "checking the key"):
            raise null_key(work, work.source.side)
    if not _is_trusted(work):
        _demand_unique_key(work, sql.SQL("({}) AS there").format(_staged_keys(work)))
    return moved


def copy(work: Work, query: sql.Composed, into: sql.Composable, copy_format: str) -> Pumped:
    """Move the rows of *query*, which the source runs, into a table of the destination.

    :raises RemoteError: what a server says.
    """
    name = sql.Identifier(copy_format)
    return pump(
        End.of(work.source.side, sql.SQL("COPY ({}) TO STDOUT (FORMAT {})").format(query, name)),
        End.of(work.destination.side, sql.SQL("COPY {} FROM STDIN (FORMAT {})").format(into, name)),
        lambda rows, size: None,
    )


def make_plan(work: Work, comparison: Comparison | None) -> Plan:
    """Find the rows that differ, after :func:`stage_hashes` or, without *comparison*, :func:`stage_all`.

    :raises UsageError: if several rows of the destination have the same key.
    :raises RemoteError: what the destination says.
    """
    destination = work.destination.side
    if not work.key_is_sure:
        _demand_one_here(work, comparison)
    numbers = range(len(work.key))
    keys = [sql.SQL("coalesce(there.{0}, here.{0}) AS {0}").format(sql.Identifier(f"k{i}")) for i in numbers]
    destination.run(
        sql.SQL(_MAKE_PLAN).format(
            keys=comma(keys),
            there=there(work, comparison),
            join=sql.SQL("LEFT JOIN" if work.spec.is_incremental else "FULL JOIN"),
            here=here(work, comparison),
            same=same_key(work, "there", "here"),
        ),
        "finding the rows that differ",
    )
    destination.run(sql.SQL("ANALYZE {}").format(PLAN), "analyzing the plan")
    counts = destination.fetch(sql.SQL(_COUNTS).format(plan=PLAN), "counting the rows that differ")[0]
    return Plan(**counts, digest=digest(work), first_keys=_first_keys(work))


def digest(work: Work) -> str:
    """Return a hash of all that the plan says: keys, what is done, and the rows' contents on both sides.

    :raises RemoteError: what the destination says.
    """
    texts = [sql.SQL("{}::pg_catalog.text").format(sql.Identifier(f"k{i}")) for i in range(len(work.key))]
    entry = [sql.SQL("op::pg_catalog.text"), *texts, sql.SQL("old"), sql.SQL("new")]
    found = work.destination.side.fetch(
        sql.SQL(_DIGEST).format(
            first=work.checksum.of(entry, salt=2), second=work.checksum.of(entry, salt=3), plan=PLAN
        ),
        "reading the plan",
    )[0]
    return "".join(f"{(found[part] or 0) % 2**64:016x}" for part in ("first", "second"))


def there(work: Work, comparison: Comparison | None) -> sql.Composed:
    """Return what stands after FROM for the source's keys and hashes."""
    if comparison is not None:
        return sql.SQL("{} AS there").format(THERE)
    return sql.SQL("({}) AS there").format(_staged_keys(work))


def here(work: Work, comparison: Comparison | None) -> sql.Composed:
    """Return the SELECT of the destination's keys, hashes and places, of the groups that differ."""
    what = sql.SQL("{}, {}").format(_keys_and_hash(work), place(work))
    if comparison is None:
        return work.destination.select(what)
    return comparison.grouping.select(work.destination, what, comparison.differing, few=is_few(comparison))


def same_key(work: Work, left: str, right: str) -> sql.Composed:
    """Return the condition that two aliases' ``k0``, ``k1``, ... are the same key."""
    return sql.SQL(" AND ").join(
        key.same(column(f"k{i}", left), column(f"k{i}", right)) for i, key in enumerate(work.key)
    )


def place(work: Work) -> sql.SQL:
    """Return the columns that say where a row of the destination lies; NULL where the role can't see it."""
    return _PLACE if work.sees_places else _NO_PLACE


def same_row(work: Work, left: str, right: str) -> sql.SQL | sql.Composed:
    """Return the condition that two aliases, each of the plan or of its form, mean one row."""
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


def _keys_and_hash(work: Work) -> sql.Composed:
    return sql.SQL("{}, {} AS h").format(comma(named_keys(work)), work.row_hash)


def _staged_keys(work: Work) -> sql.Composed:
    staged = Part(work.destination.side, sql.SQL("{} AS part").format(ROWS), None, None, frozenset())
    return staged.select(_keys_and_hash(work))


def _has_twice(work: Work, rows: sql.Composed, alias: str) -> bool:
    names = comma([key.collated(column(f"k{i}", alias)) for i, key in enumerate(work.key)])
    twice = sql.SQL(
        "SELECT 1 AS one FROM {} GROUP BY {} HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 1 LIMIT 1"
    )
    return bool(work.destination.side.fetch(twice.format(rows, names), "checking the key"))


def _demand_one_here(work: Work, comparison: Comparison | None) -> None:
    """Refuse a key that two rows have: a unique index is of one table alone, and may have its own ``=``."""
    if _has_twice(work, sql.SQL("({}) AS here").format(here(work, comparison)), "here"):
        raise UsageError(
            f"several rows of {work.target} and its inheritance children have the same key"
            f" ({work.key_names})",
            work.destination.side.conn_id,
            "21000",
            hint="delete all but one of each, or sync the tables one by one",
        )


def _is_trusted(work: Work) -> bool:
    """Return whether the source's own unique index says that keys are unique here, too."""
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
