"""The verification before the commit: the rows must be right, and all other rows unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import VerificationError
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sync.comparison import Comparison
from airflow_dblink.core.sync.moving import in_where
from airflow_dblink.core.sync.spec import DELETE, INSERT, UPDATE
from airflow_dblink.core.sync.staged import PLAN, REMOVED, RENEWED, as_array, here, matches, same_key, there
from airflow_dblink.core.sync.work import Part, Work, comma

_SQL = statements("sync.sql")
_ROWS_SQL = statements("sync_rows.sql")

_VERIFY_HINT = (
    "a trigger, a cascading foreign key, a row security policy or a column's type (varchar(n) cuts blanks)"
    " changes the written rows: triggers='disable', or leave the column out of columns"
)
_NOT_WRITTEN = (
    "where names {}, which columns leaves out: an inserted row has the default there, so where may not select"
    " it. Add it to columns, or only update and delete rows: insert=False"
)
_WHAT = {INSERT: "is missing", UPDATE: "differs", DELETE: "is still there"}


def verify_load(work: Work, comparison: Comparison) -> None:
    """Raise unless the destination's part is equal to the source's.

    :param comparison: the comparison of the two, made after the load.
    :raises VerificationError: names the first group that differs.
    """
    if comparison.differing:
        group = comparison.grouping.name(comparison.differing[0])
        raise VerificationError(
            f"verification failed: after the changes {work.target} differs ({group}); all is rolled back",
            work.destination.side.conn_id,
            hint=_hint(work),
        )


def verify_counts(work: Work, expected: Mapping[str, int], done: Mapping[str, int]) -> None:
    """Raise unless as many rows were written as the plan says.

    Fewer are allowed if a trigger, a policy or a cascading foreign key may be the reason; :func:`verify` then
    decides whether the rows are right.

    :param expected: rows inserted, updated and deleted by the plan.
    :param done: the same numbers, as the server has counted them.
    :raises VerificationError: names the numbers.
    :raises RemoteError: the destination's errors.
    """
    for name, wanted in expected.items():
        if done[name] > wanted or (done[name] < wanted and not _may_do_less(work)):
            raise VerificationError(
                f"verification failed: {done[name]} rows of {work.target} were {name}, and the plan has"
                f" {wanted}; all is rolled back",
                work.destination.side.conn_id,
                hint="several rows may have the same key: look for unique indexes that are not valid",
            )


def _may_do_less(work: Work) -> bool:
    side = work.destination.side
    if work.target.row_security or (
        work.spec.triggers == "fire" and side.ask(_SQL["triggers"], {"oid": work.target.oid})
    ):
        return True
    return any(row["comes_back"] for row in side.ask(_SQL["cascading_references"], {"oid": work.target.oid}))


def _hint(work: Work, operation: str = INSERT) -> str:
    if operation == INSERT and work.spec.insert and (names := in_where(work.spec.where, work.not_synced)):
        return _NOT_WRITTEN.format(", ".join(names))
    return _VERIFY_HINT


def bystanders(work: Work) -> Part | None:
    """Return the part in which rows may change that the plan doesn't name; ``None`` if no such row can.

    A trigger, a cascading foreign key, or making way may change them. A cascade that leads back to the table
    may also change rows outside of *where*.

    :raises RemoteError: the destination's errors.
    """
    side, spec, part = work.destination.side, work.spec, work.destination
    if spec.is_incremental:  # such a sync is only responsible for the new rows
        return None
    cascades = side.ask(_SQL["cascading_references"], {"oid": work.target.oid})
    if any(row["comes_back"] for row in cascades):
        return replace(part, where=None)
    triggers = spec.triggers == "fire" and side.ask(_SQL["triggers"], {"oid": work.target.oid})
    return part if triggers or cascades or spec.on_conflict == "replace" else None


def fingerprint(work: Work, part: Part) -> tuple[int, int]:
    """Return the count and the hash of the rows of *part* that the plan does not write.

    :raises RemoteError: the destination's errors.
    """
    what = sql.SQL("pg_catalog.count(*) AS rows, pg_catalog.bit_xor({}) AS hash").format(work.row_hash)
    rows = part.select(what, _unwritten(work))
    found = part.side.fetch(rows, "looking at the rows that stay as they are")[0]
    return int(found["rows"]), int(found["hash"] or 0)


def _unwritten(work: Work) -> sql.Composed:
    """Return the condition that the plan doesn't write a row; it holds before the changes and after them."""

    def named(operations: str) -> sql.Composed:
        exists = sql.SQL(
            "EXISTS (SELECT FROM {} AS plan WHERE plan.op OPERATOR(pg_catalog.=) ANY ({}) AND {})"
        )
        return exists.format(PLAN, as_array(operations), matches(work, "part"))

    where, operations = work.destination.where, work.spec.operations + RENEWED
    if where is None or work.key_is_sure:
        return sql.SQL("NOT {}").format(named(operations + REMOVED))
    # A row outside of where may have the key of a written row, and isn't written. A row that makes way is
    # written, inside or outside of where.
    given = sql.SQL("NOT (({}\n) AND {}) IS TRUE AND NOT {}")
    return given.format(where, named(operations), named(REMOVED))


def verify_bystanders(work: Work, part: Part, before: tuple[int, int]) -> None:
    """Raise if rows that the plan does not write have changed.

    :param before: their :func:`fingerprint` before the changes.
    :raises VerificationError: names their numbers before and after.
    :raises RemoteError: the destination's errors.
    """
    after = fingerprint(work, part)
    if after == before:
        return
    raise VerificationError(
        f"verification failed: the changes changed other rows of {work.target} as well ({before[0]} rows"
        f" before, {after[0]} after); all is rolled back",
        part.side.conn_id,
        hint=_VERIFY_HINT,
    )


def verify(work: Work, comparison: Comparison | None) -> None:
    """Compare again all rows that were compared one by one, as they are now.

    If these were all rows of the part, and no trigger can have touched others, only the plan's rows are
    compared again.

    :raises VerificationError: names the first wrong row's key and group.
    :raises RemoteError: the destination's errors.
    """
    operations = work.spec.operations
    if work.spec.is_incremental:
        operations = operations.replace(DELETE, "")
    all_of_them = comparison is not None or bool(
        work.destination.side.ask(_SQL["triggers"], {"oid": work.target.oid})
    )
    query = sql.SQL(_ROWS_SQL["left_over"]).format(
        keys=comma(
            [
                sql.SQL("coalesce(there.{0}, here.{0})::pg_catalog.text AS {0}").format(
                    sql.Identifier(f"k{i}")
                )
                for i in range(len(work.key))
            ]
        ),
        there=there(work, comparison) if all_of_them else _planned(work),
        join=sql.SQL("LEFT JOIN" if work.spec.is_incremental else "FULL JOIN"),
        here=here(work, comparison) if all_of_them else _touched(work),
        same=same_key(work, "there", "here"),
        operations=sql.SQL("{}::pg_catalog.text[]").format(sql.Literal([*operations])),
    )
    found = work.destination.side.fetch(query, "verifying the changes")
    if not found:
        return
    raise VerificationError(
        f"verification failed: after the changes a row of {work.target} {_WHAT[found[0]['op']]}"
        f" ({_place(work, comparison, found[0])}); all is rolled back",
        work.destination.side.conn_id,
        hint=_hint(work, found[0]["op"]),
    )


def _planned(work: Work) -> sql.Composed:
    """Return the text after FROM for the rows that the plan writes."""
    keys = comma([sql.Identifier(f"k{i}") for i in range(len(work.key))])
    rows = sql.SQL(
        "(SELECT {}, new AS h FROM {} WHERE op OPERATOR(pg_catalog.=) ANY ({}) AND new IS NOT NULL) AS there"
    )
    return rows.format(keys, PLAN, as_array(work.spec.operations + RENEWED))


def _touched(work: Work) -> sql.Composed:
    """Return the SELECT of the destination's rows that the plan changes: nothing else has changed."""
    # Not DISTINCT keys: a type's own equality may merge keys that the "=" of the search_path tells apart.
    rows = sql.SQL(
        "SELECT found.* FROM ({}) AS found"
        " WHERE EXISTS (SELECT FROM {} AS touched WHERE touched.op OPERATOR(pg_catalog.=) ANY ({}) AND {})"
    )
    changes = as_array(work.spec.operations + REMOVED + RENEWED)
    return rows.format(here(work, None), PLAN, changes, same_key(work, "found", "touched"))


def _place(work: Work, comparison: Comparison | None, row: Mapping[str, Any]) -> str:
    """Return the place of a row, for errors: its group and, unless *sample_keys* is 0, its key."""
    found = []
    if comparison is not None and comparison.grouping.field is not None:
        number = int(row[f"k{work.key.index(comparison.grouping.field)}"]) >> comparison.grouping.shift
        found.append(f"group {comparison.grouping.name(number)}")
    if work.spec.sample_keys or not found:
        values = ", ".join(str(row[f"k{i}"]) for i in range(len(work.key)))
        found.append(f"key {work.key_names} = {values}" if work.spec.sample_keys else f"key {work.key_names}")
    return ", ".join(found)
