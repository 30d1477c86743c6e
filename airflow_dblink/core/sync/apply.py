"""The plan, applied and verified in the destination's transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from psycopg import sql

from airflow_dblink.core.builders import render_delete, render_insert, render_update
from airflow_dblink.core.errors import DblinkError, UsageError
from airflow_dblink.core.keyed_rows import Render, literals, queried_keys, statements_of_query
from airflow_dblink.core.literals import Text
from airflow_dblink.core.shape import Positions, Shape, with_shape
from airflow_dblink.core.sync.groups import Comparison
from airflow_dblink.core.sync.part import Work, column, comma
from airflow_dblink.core.sync.plan import (
    PLAN,
    ROWS,
    Plan,
    copy,
    create_rows,
    here,
    is_few,
    same_key,
    there,
)
from airflow_dblink.core.sync.prepare import rows_of
from airflow_dblink.core.sync.spec import DELETE, INSERT, UPDATE
from airflow_dblink.core.wire import Wire

_KEYS_AT_ONCE = 50_000
_STATEMENTS_AT_ONCE = 1_000
_SHARE_BY_KEY = 0.25  # of the rows in groups that differ: beyond it the groups are fetched whole

# One statement, so that PostgreSQL checks foreign keys when all is done, in whatever order; but a unique
# value must be given up before it is taken: each part waits for the one before it.
_APPLY = """\
WITH d AS (DELETE FROM {target} AS part USING {plan} AS plan
            WHERE plan.op IN ('D', 'R') AND {on} AND {key} RETURNING 1),
     u AS (UPDATE {target} AS part SET {assignments} FROM {plan} AS plan JOIN {rows} AS given ON {given}
            WHERE plan.op = 'U' AND {on} AND {key} AND (SELECT pg_catalog.count(*) FROM d) >= 0 RETURNING 1),
     i AS (INSERT INTO {target} ({names}) OVERRIDING SYSTEM VALUE
           SELECT {values} FROM {plan} AS plan JOIN {rows} AS given ON {given}
            WHERE plan.op IN ('I', 'S') AND {on} AND (SELECT pg_catalog.count(*) FROM u) >= 0 RETURNING 1)
SELECT (SELECT pg_catalog.count(*) FROM d) AS deleted, (SELECT pg_catalog.count(*) FROM u) AS updated,
       (SELECT pg_catalog.count(*) FROM i) AS inserted"""
_LEFT = """\
SELECT CASE WHEN here.h IS NULL THEN 'I' WHEN there.h IS NULL THEN 'D' ELSE 'U' END AS op, {keys}
  FROM {there} {join} ({here}) AS here ON {same}
 WHERE here.h IS DISTINCT FROM there.h
   AND CASE WHEN here.h IS NULL THEN 'I' WHEN there.h IS NULL THEN 'D' ELSE 'U' END = ANY ({operations})
 LIMIT 1"""
# What make_way() adds to a plan: a row that is deleted to make way, and one that is then inserted again.
REMOVED, RENEWED = "R", "S"
_WHAT = {INSERT: "is missing", UPDATE: "differs", DELETE: "is still there"}


class VerificationError(DblinkError):
    """The destination is not what it should be after the changes; all was rolled back."""


def stage_rows(work: Work, plan: Plan, comparison: Comparison) -> int:
    """Fetch the source's rows that are to be inserted or update others; returns bytes.

    :raises RemoteError: what a server says.
    """
    create_rows(work)
    operations = work.spec.operations.replace(DELETE, "")
    wanted = plan.done(operations)
    if not wanted:
        return 0
    values = comma([column(field.name) for field in work.fields])
    if wanted > max(_KEYS_AT_ONCE, comparison.differing_rows * _SHARE_BY_KEY):
        few = is_few(comparison)
        query = comparison.grouping.select(work.source, values, comparison.differing, few=few)
        size = copy(work, query, ROWS, work.row_format).size
    else:
        size = sum(
            copy(work, _by_keys(work, values, keys), ROWS, work.row_format).size
            for keys in _wanted_keys(work, operations)
        )
    work.destination.side.run(sql.SQL("ANALYZE {}").format(ROWS), "analyzing the staging table")
    return size


def _wanted_keys(work: Work, operations: str) -> Iterator[list[list[str]]]:
    """Yield the keys to be fetched as columns of texts."""
    names = [sql.Identifier(f"k{i}") for i in range(len(work.key))]
    texts = comma([sql.SQL("{0}::text AS {0}").format(name) for name in names])
    after = 0
    while True:
        query = sql.SQL("SELECT n, {} FROM {} WHERE n > {} AND op = ANY ({}) ORDER BY n LIMIT {}").format(
            texts, PLAN, sql.Literal(after), _operations(operations), sql.Literal(_KEYS_AT_ONCE)
        )
        rows = work.destination.side.fetch(query, "reading the plan")
        if not rows:
            return
        yield [[row[f"k{i}"] for row in rows] for i in range(len(work.key))]
        after = rows[-1]["n"]


def _by_keys(work: Work, values: sql.Composed, keys: list[list[str]]) -> sql.Composed:
    names = [sql.Identifier("wanted", f"k{i}") for i in range(len(keys))]
    arrays = [sql.SQL("pg_catalog.unnest({}::text[])").format(sql.Literal(texts)) for texts in keys]
    same = [
        sql.SQL("{} = {}::{}").format(
            column(field.name), name, sql.SQL(field.pair.cast or field.pair.type_name)
        )
        for field, name in zip(work.key, names, strict=True)
    ]
    part = work.source
    where = sql.SQL(" WHERE ({}\n)").format(part.where) if part.where else sql.SQL("")
    # The condition's names are those of the part alone.
    rows = sql.SQL("(SELECT * FROM {}{}) AS part").format(part.rows, where) if part.where else part.rows
    return sql.SQL("SELECT {} FROM {} JOIN ROWS FROM ({}) AS wanted ({}) ON {}").format(
        values,
        rows,
        comma(arrays),
        comma([sql.Identifier(f"k{i}") for i in range(len(keys))]),
        sql.SQL(" AND ").join(same),
    )


def _operations(operations: str) -> sql.Composed:
    return sql.SQL('{}::"char"[]').format(sql.Literal("{" + ",".join(operations) + "}"))


def apply_set(work: Work) -> dict[str, int]:
    """Apply the plan in one statement; returns ``deleted``, ``updated``, ``inserted``.

    :raises RemoteError: what the destination says.
    """
    destination = work.destination.side
    names = [sql.Identifier(field.name) for field in work.fields]
    # Of a key only what may differ and be "=" all the same: 1.0 and 1.00.
    changing = [field for field in work.fields if field not in work.key or not field.is_exact]
    assignments = [
        sql.SQL("{} = {}").format(sql.Identifier(field.name), column(field.name, "given"))
        for field in changing or work.fields
    ]
    counts = destination.fetch(
        sql.SQL(_APPLY).format(
            target=work.target.identifier,
            plan=PLAN,
            rows=ROWS,
            on=sql.SQL("plan.op = ANY ({})").format(_operations(work.spec.operations + REMOVED + RENEWED)),
            key=_matches(work, "part"),
            given=_matches(work, "given"),
            assignments=comma(assignments),
            names=comma(names),
            values=comma([column(field.name, "given") for field in work.fields]),
        ),
        "applying the changes",
    )[0]
    return dict(counts)


def _matches(work: Work, alias: str) -> sql.Composed:
    """Return the condition that a row of *alias* is the plan's."""
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(column(field.name, alias), column(f"k{i}", "plan"))
        for i, field in enumerate(work.key)
    )


def statements_of_plan(work: Work, link: Wire) -> Iterator[str]:
    """Yield the plan as dblink's statements, deletes first, for the operations that are on.

    :raises RemoteError: what the destination says.
    """
    renders: dict[str, Render] = {INSERT: render_insert, UPDATE: render_update, DELETE: _render_delete}
    positions = tuple([*map(work.fields.index, work.key)])
    names = comma([sql.Identifier(f"k{i}") for i in range(len(work.key))])
    for operation in (op for op in (DELETE, UPDATE, INSERT) if op in work.spec.operations):
        after = 0
        while True:
            bounds = sql.SQL("SELECT n FROM {} WHERE op = {} AND n > {} ORDER BY n LIMIT {}").format(
                PLAN, sql.Literal(operation), sql.Literal(after), sql.Literal(_STATEMENTS_AT_ONCE)
            )
            rows = work.destination.side.fetch(bounds, "reading the plan")
            if not rows:
                break
            keys = sql.SQL("SELECT {} FROM {} WHERE op = {} AND n BETWEEN {} AND {} ORDER BY n").format(
                names, PLAN, sql.Literal(operation), sql.Literal(rows[0]["n"]), sql.Literal(rows[-1]["n"])
            )
            yield from _statements(work, link, positions, keys, renders[operation])
            after = rows[-1]["n"]


def _statements(
    work: Work, link: Wire, positions: tuple[int, ...], keys: sql.Composed, render: Render
) -> list[str]:
    target = work.target.identifier.as_string(link.connection)
    query = sql.SQL(keys.as_string(link.connection))

    def make(staged: Shape) -> list[str]:
        # Read from the staged rows, written to the table.
        shape = replace(staged, name=target)
        if render is _render_delete:
            found = queried_keys(link, shape, query, len(positions))
            return [render_delete(shape, positions, literals(key)) for key in found.rows]
        return statements_of_query(link, shape, positions, query, render)

    return with_shape(link, "pg_temp.airflow_dblink_rows", make)


def _render_delete(shape: Shape, positions: Positions, values: Sequence[str], key: Sequence[Text]) -> str:
    return render_delete(shape, positions, key)


def apply_statements(work: Work, link: Wire) -> dict[str, int]:
    """Apply the plan by dblink's statements, one by one; returns what :func:`apply_set` does.

    :raises RemoteError: what the destination says.
    """
    done = {"deleted": 0, "updated": 0, "inserted": 0}
    kinds = {"DELETE": "deleted", "UPDATE": "updated", "INSERT": "inserted"}
    for statement in statements_of_plan(work, link):
        count = work.destination.side.run(statement, "applying a statement")
        done[kinds[statement[:6]]] += count
    return done


def make_way(work: Work) -> tuple[int, int]:
    """Delete the rows that hold a value of another unique key which one of the source's rows will take.

    Those that are to be updated themselves (two rows swap their values) are then inserted anew.

    :returns: rows inserted anew, and rows that are gone for good.
    :raises UsageError: if a row would lose what isn't in *columns*.
    :raises RemoteError: what the destination says.
    """
    given = {field.name for field in work.fields}
    key = {field.name for field in work.key}
    renewed = displaced = 0
    for row in rows_of(work.destination.side, "unique_constraints", work.target):
        columns = [str(name) for name in row["columns"]]
        if set(columns) != key and set(columns) <= given:
            standing = _standing(work, columns)
            renewed += _renew(work, standing, columns)
            displaced += _displace(work, standing)
    return renewed, displaced


def _standing(work: Work, columns: list[str]) -> sql.Composed:
    """Return the SELECT of the keys of rows that hold what another row will take."""
    same = [sql.SQL("{} = {}").format(column(name), column(name, "given")) for name in columns]
    keys = [column(field.name) for field in work.key]
    named = [sql.SQL("{} AS {}").format(key, sql.Identifier(f"k{i}")) for i, key in enumerate(keys)]
    return sql.SQL(
        "SELECT DISTINCT {named} FROM {rows} AS given"
        " JOIN {plan} AS plan ON {given} AND plan.op IN ('I', 'U', 'S') AND {on}"
        " JOIN {target} AS part ON {same} AND ROW({keys}) IS DISTINCT FROM ROW({theirs})"
    ).format(
        named=comma(named),
        rows=ROWS,
        plan=PLAN,
        given=_matches(work, "given"),
        on=sql.SQL("plan.op = ANY ({})").format(_operations(work.spec.operations + RENEWED)),
        target=work.target.identifier,
        same=sql.SQL(" AND ").join(same),
        keys=comma(keys),
        theirs=comma([column(field.name, "given") for field in work.key]),
    )


def _renew(work: Work, standing: sql.Composed, columns: list[str]) -> int:
    destination = work.destination.side
    if UPDATE not in work.spec.operations:
        return 0
    renewed = destination.run(
        sql.SQL("UPDATE {} AS plan SET op = 'S' FROM ({}) AS standing WHERE {} AND plan.op = 'U'").format(
            PLAN, standing, same_key(work, "plan", "standing")
        ),
        "making way for unique values",
    )
    if renewed and (lost := _not_synced(work)):
        raise UsageError(
            f"rows of {work.target} swap values of ({', '.join(columns)}) and would be inserted anew, without"
            f" {', '.join(lost)}",
            destination.conn_id,
            hint="name all columns, or make the unique constraint DEFERRABLE",
        )
    names = comma([column(f"k{i}", "plan") for i in range(len(work.key))])
    add = sql.SQL(
        "INSERT INTO {plan} SELECT 'R', 0, {names}, NULL, NULL FROM {plan} AS plan WHERE op = 'S'"
        " AND NOT EXISTS (SELECT FROM {plan} AS twin WHERE twin.op = 'R' AND {same})"
    )
    same = same_key(work, "plan", "twin")
    destination.run(add.format(plan=PLAN, names=names, same=same), "making way for unique values")
    return renewed


def _displace(work: Work, standing: sql.Composed) -> int:
    gone = REMOVED + (DELETE if DELETE in work.spec.operations else "")
    return work.destination.side.run(
        sql.SQL(
            "INSERT INTO {plan} SELECT 'R', 0, {keys}, NULL, NULL FROM ({standing}) AS standing"
            " WHERE NOT EXISTS (SELECT FROM {plan} AS plan WHERE {same} AND plan.op = ANY ({gone}))"
        ).format(
            plan=PLAN,
            keys=comma([column(f"k{i}", "standing") for i in range(len(work.key))]),
            standing=standing,
            same=same_key(work, "plan", "standing"),
            gone=_operations(gone),
        ),
        "making way for unique values",
    )


def _not_synced(work: Work) -> list[str]:
    given = {field.name for field in work.fields}
    return [c.name for c in work.target.columns if c.name not in given and not c.generated]


def verify(work: Work, comparison: Comparison | None) -> None:
    """Look again at all rows that were compared one by one, as they are now.

    :raises VerificationError: names the first row's key, and its group, that isn't what it should be.
    :raises RemoteError: what the destination says.
    """
    operations = work.spec.operations
    if work.spec.is_incremental:
        operations = operations.replace(DELETE, "")
    query = sql.SQL(_LEFT).format(
        keys=comma(
            [
                sql.SQL("coalesce(there.{0}, here.{0})::text AS {0}").format(sql.Identifier(f"k{i}"))
                for i in range(len(work.key))
            ]
        ),
        there=there(work, comparison),
        join=sql.SQL("LEFT JOIN" if work.spec.is_incremental else "FULL JOIN"),
        here=here(work, comparison),
        same=same_key(work, "there", "here"),
        operations=sql.SQL("{}::text[]").format(sql.Literal([*operations])),
    )
    found = work.destination.side.fetch(query, "verifying the changes")
    if not found:
        return
    row = found[0]
    key = ", ".join(str(row[f"k{i}"]) for i in range(len(work.key)))
    group = ""
    if comparison is not None and comparison.grouping.field is not None:
        index = work.key.index(comparison.grouping.field)
        number = int(row[f"k{index}"]) >> comparison.grouping.shift
        group = f" (group: {comparison.grouping.name(number)})"
    raise VerificationError(
        f"verification failed: after the changes the row of {work.target} with key ({work.key_names})"
        f" = ({key}){group} {_WHAT[row['op']]}; all is rolled back",
        work.destination.side.conn_id,
        hint="a trigger, a row security policy or a column's own rule changes what is written:"
        " triggers='disable', or leave the column out of columns",
    )
