"""A second look before the commit: is the destination what it should be."""

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
    " changes what is written: triggers='disable', or leave the column out of columns"
)
_NOT_WRITTEN = (
    "where names {}, which columns leaves out: a row that is inserted has the default there, and need not"
    " belong to the part then. Add it to columns, or let only rows be updated and deleted: insert=False"
)
_WHAT = {INSERT: "is missing", UPDATE: "differs", DELETE: "is still there"}


def verify_load(work: Work, comparison: Comparison) -> None:
    """Look whether the whole part is as the source's.

    :param comparison: of the two, after the load.
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
    """Look whether as many rows were written as the plan says.

    Fewer may be a trigger's or a policy's doing, or that of a foreign key which was faster; whether the rows
    are right then, :func:`verify` says.

    :param expected: rows inserted, updated and deleted by the plan.
    :param done: likewise, as the server has counted them.
    :raises VerificationError: if not.
    :raises RemoteError: what the destination says.
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
    """Return the rows among which others may change than those that are written; ``None`` if none may.

    By a trigger, by a foreign key that cascades, or to make way. With one that comes back to the table
    that may be rows outside of *where*, too.

    :raises RemoteError: what the destination says.
    """
    side, spec, part = work.destination.side, work.spec, work.destination
    if spec.is_incremental:  # looks at what is new, and no more
        return None
    cascades = side.ask(_SQL["cascading_references"], {"oid": work.target.oid})
    if any(row["comes_back"] for row in cascades):
        return replace(part, where=None)
    triggers = spec.triggers == "fire" and side.ask(_SQL["triggers"], {"oid": work.target.oid})
    return part if triggers or cascades or spec.on_conflict == "replace" else None


def fingerprint(work: Work, part: Part) -> tuple[int, int]:
    """Return count and hash of those rows of *part* that the plan does not write.

    :raises RemoteError: what the destination says.
    """
    what = sql.SQL("pg_catalog.count(*) AS rows, pg_catalog.bit_xor({}) AS hash").format(work.row_hash)
    rows = part.select(what, _unwritten(work))
    found = part.side.fetch(rows, "looking at the rows that stay as they are")[0]
    return int(found["rows"]), int(found["hash"] or 0)


def _unwritten(work: Work) -> sql.Composed:
    """Return the condition that a row is none of those that the plan writes, before it does and after."""

    def named(operations: str) -> sql.Composed:
        exists = sql.SQL(
            "EXISTS (SELECT FROM {} AS plan WHERE plan.op OPERATOR(pg_catalog.=) ANY ({}) AND {})"
        )
        return exists.format(PLAN, as_array(operations), matches(work, "part"))

    where, operations = work.destination.where, work.spec.operations + RENEWED
    if where is None or work.key_is_sure:
        return sql.SQL("NOT {}").format(named(operations + REMOVED))
    # A row outside of where may have the key of one that is written; only what makes way is of both.
    given = sql.SQL("NOT (({}\n) AND {}) IS TRUE AND NOT {}")
    return given.format(where, named(operations), named(REMOVED))


def verify_bystanders(work: Work, part: Part, before: tuple[int, int]) -> None:
    """Look whether the rows that the plan does not write are what they were.

    :param before: their :func:`fingerprint` then.
    :raises VerificationError: if not.
    :raises RemoteError: what the destination says.
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
    """Look again at all rows that were compared one by one, as they are now.

    Where all rows were, and no trigger may have touched others: at those that the plan names.

    :raises VerificationError: names the first row's key, and its group, that isn't what it should be.
    :raises RemoteError: what the destination says.
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
    """Return what stands after FROM for the rows that the plan writes."""
    keys = comma([sql.Identifier(f"k{i}") for i in range(len(work.key))])
    rows = sql.SQL(
        "(SELECT {}, new AS h FROM {} WHERE op OPERATOR(pg_catalog.=) ANY ({}) AND new IS NOT NULL) AS there"
    )
    return rows.format(keys, PLAN, as_array(work.spec.operations + RENEWED))


def _touched(work: Work) -> sql.Composed:
    """Return the SELECT of the destination's rows that the plan changes: nothing else has changed."""
    # Not DISTINCT keys: to a type's own equality they may be fewer than to the "=" of the search_path.
    rows = sql.SQL(
        "SELECT found.* FROM ({}) AS found"
        " WHERE EXISTS (SELECT FROM {} AS touched WHERE touched.op OPERATOR(pg_catalog.=) ANY ({}) AND {})"
    )
    changes = as_array(work.spec.operations + REMOVED + RENEWED)
    return rows.format(here(work, None), PLAN, changes, same_key(work, "found", "touched"))


def _place(work: Work, comparison: Comparison | None, row: Mapping[str, Any]) -> str:
    """Return where a row is: its group and, unless no keys are to be named, its key."""
    found = []
    if comparison is not None and comparison.grouping.field is not None:
        number = int(row[f"k{work.key.index(comparison.grouping.field)}"]) >> comparison.grouping.shift
        found.append(f"group {comparison.grouping.name(number)}")
    if work.spec.sample_keys or not found:
        values = ", ".join(str(row[f"k{i}"]) for i in range(len(work.key)))
        found.append(f"key {work.key_names} = {values}" if work.spec.sample_keys else f"key {work.key_names}")
    return ", ".join(found)
