"""Applies the plan in the destination's transaction: all changes are one statement."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sync.comparison import Comparison
from airflow_dblink.core.sync.outcome import Plan
from airflow_dblink.core.sync.spec import DELETE
from airflow_dblink.core.sync.staged import PLAN, REMOVED, RENEWED, ROWS, as_array, copy, create_rows, matches
from airflow_dblink.core.sync.work import Field, Work, column, comma

_SQL = statements("sync_rows.sql")

_KEYS_AT_ONCE = 50_000
_KEYS_BYTES_AT_ONCE = 4 * 1024 * 1024  # and one more key, however long
_SHARE_BY_KEY = 0.25  # of the rows in groups that differ; for a larger share whole groups are fetched
# The key finds a row, by an index if that is best; the place identifies it. Functions compare the place,
# since two conditions with operators would let the planner expect no rows at all.
_AT_PLACE = sql.SQL(
    "pg_catalog.tideq(part.ctid, plan.place) AND pg_catalog.oideq(part.tableoid, plan.place_table)"
)
# Replaces a switched-off operation: the real statement would still need its privilege and readable columns.
_NOTHING = "SELECT 1 WHERE false"


def stage_rows(work: Work, plan: Plan, comparison: Comparison) -> int:
    """Fetch the source's rows for INSERT and UPDATE; return the number of bytes.

    :raises RemoteError: a server's errors.
    """
    create_rows(work)
    operations = work.spec.operations.replace(DELETE, "")
    wanted = plan.done(operations)
    if not wanted:
        return 0
    values = comma([column(field.name) for field in work.fields])
    if wanted > max(_KEYS_AT_ONCE, comparison.differing_rows * _SHARE_BY_KEY):
        size = copy(work, comparison.select(work.source, values), ROWS, work.row_format).size
    else:
        size = sum(
            copy(work, _by_keys(work, values, keys), ROWS, work.row_format).size
            for keys in _wanted_keys(work, operations)
        )
    work.destination.side.run(sql.SQL("ANALYZE {}").format(ROWS), "analyzing the staging table")
    return size


def _wanted_keys(work: Work, operations: str) -> Iterator[list[list[str]]]:
    """Yield the keys of the rows to fetch, as columns of texts."""
    names = [sql.Identifier(f"k{i}") for i in range(len(work.key))]
    after = 0
    while True:
        query = sql.SQL(_SQL["wanted_keys"]).format(
            texts=comma([sql.SQL("{0}::pg_catalog.text AS {0}").format(name) for name in names]),
            names=comma(names),
            plan=PLAN,
            after=sql.Literal(after),
            operations=as_array(operations),
            most=sql.Literal(_KEYS_AT_ONCE),
            most_bytes=sql.Literal(_KEYS_BYTES_AT_ONCE),
        )
        rows = work.destination.side.fetch(query, "reading the plan")
        if not rows:
            return
        yield [[row[f"k{i}"] for row in rows] for i in range(len(work.key))]
        after = rows[-1]["n"]


def _by_keys(work: Work, values: sql.Composed, keys: list[list[str]]) -> sql.Composed:
    names = [sql.Identifier("wanted", f"k{i}") for i in range(len(keys))]
    texts = sql.SQL("pg_catalog.unnest({}::pg_catalog.text[])")
    arrays = [texts.format(sql.Literal(column_texts)) for column_texts in keys]
    same = [_is_wanted(field, name) for field, name in zip(work.key, names, strict=True)]
    part = work.source
    where = sql.SQL(" WHERE ({}\n)").format(part.where) if part.where else sql.SQL("")
    # A subquery, so that the condition's names can only mean columns of the part.
    rows = sql.SQL("(SELECT * FROM {}{}) AS part").format(part.rows, where) if part.where else part.rows
    wanted = sql.SQL("ROWS FROM ({}) AS wanted ({})").format(
        comma(arrays), comma([sql.Identifier(f"k{i}") for i in range(len(keys))])
    )
    # Not a join: the source's citext finds 'a' and 'A' equal, and each key would give both rows.
    return sql.SQL("SELECT {} FROM {} WHERE EXISTS (SELECT FROM {} WHERE {})").format(
        values, rows, wanted, sql.SQL(" AND ").join(same)
    )


def _is_wanted(field: Field, wanted: sql.Identifier) -> sql.Composed:
    """Return the condition that the source's key column equals a text from the destination."""
    value = sql.SQL("{}::{}").format(wanted, sql.SQL(field.pair.cast or field.pair.type_name))
    if field.pair.cast is None:
        return field.source_kind.equals(column(field.name), value)
    # A type of pg_catalog, or text.
    return sql.SQL("{} OPERATOR(pg_catalog.=) {}").format(column(field.name), value)


def apply_set(work: Work) -> dict[str, int]:
    """Apply the plan in one statement; return the numbers ``deleted``, ``updated``, ``inserted``.

    :raises RemoteError: the destination's errors.
    """
    spec, destination = work.spec, work.destination.side
    # Key columns are updated only if equal values may differ: 1.0 and 1.00.
    changing = [field for field in work.fields if field not in work.key or not field.is_exact]
    replaces = spec.on_conflict == "replace"
    statement = _SQL["apply"].format(
        delete=_SQL["apply_delete"] if replaces or (spec.delete and not spec.is_incremental) else _NOTHING,
        update=_SQL["apply_update"] if spec.update and changing else _NOTHING,
        insert=_SQL["apply_insert"] if replaces or spec.insert else _NOTHING,
    )
    assignments = [
        sql.SQL("{} = {}").format(sql.Identifier(field.name), column(field.name, "given"))
        for field in changing
    ]
    counts = destination.fetch(
        sql.SQL(statement).format(
            target=work.target.identifier,
            plan=PLAN,
            rows=ROWS,
            on=sql.SQL("plan.op OPERATOR(pg_catalog.=) ANY ({})").format(
                as_array(spec.operations + REMOVED + RENEWED)
            ),
            there=_is_row_of_plan(work),
            given=matches(work, "given"),
            assignments=comma(assignments),
            names=comma([sql.Identifier(field.name) for field in work.fields]),
            values=comma([column(field.name, "given") for field in work.fields]),
        ),
        "applying the changes",
    )[0]
    return dict(counts)


def _is_row_of_plan(work: Work) -> sql.Composed:
    """Return the condition that a row of the table is the plan's row itself."""
    key = matches(work, "part")
    return sql.SQL("{} AND {}").format(key, _AT_PLACE) if work.sees_places else key
