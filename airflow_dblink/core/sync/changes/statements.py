"""The plan as dblink's statements, made by the builders from the staged rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO

from psycopg import sql

from airflow_dblink.core.builders.lookup import (
    Render,
    literals,
    queried_keys,
    query_of_statements,
    statements_of_query,
)
from airflow_dblink.core.builders.relation_cache import Positions, Shape, with_shape
from airflow_dblink.core.builders.statements import render_delete, render_insert, render_update
from airflow_dblink.core.builders.values import Text
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link.messages import Wire
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sync.permissions import demand_nameable
from airflow_dblink.core.sync.spec import DELETE, INSERT, UPDATE
from airflow_dblink.core.sync.staged import PLAN, ROWS, as_array, matches
from airflow_dblink.core.sync.work import Work, column, comma

_SQL = statements("sync_rows.sql")

_STATEMENTS_AT_ONCE = 1_000
_BYTES_AT_ONCE = 4 * 1024 * 1024  # and one more row; a larger row is fetched in pieces
_PIECE_BYTES = 1024 * 1024
# Types whose texts are short.
_SHORT = frozenset(
    {
        *("bool", "int2", "int4", "int8", "oid", "date", "uuid", "float4", "float8"),
        *("time", "timetz", "timestamp", "timestamptz", "interval"),
    }
)
_LONG = frozenset({"text", "varchar", "bytea"})  # the size of their values is known without reading them
_LARGE = sql.Identifier("pg_temp", "airflow_dblink_statement")


def statements_of_plan(work: Work, link: Wire, *, runs: bool = False) -> Iterator[bytes]:
    """Yield the plan as dblink's statements, deletes first, for the operations that are on.

    :param runs: whether we run them ourselves; then they can't use a stranger's operators.
    :raises UsageError: if they can't name the key.
    :raises RemoteError: the destination's errors.
    """
    demand_nameable(work)
    _demand_one_each(work)
    renders: dict[str, Render] = {INSERT: render_insert, UPDATE: render_update, DELETE: _render_delete}
    positions = tuple([*map(work.fields.index, work.key)])
    names = comma([sql.Identifier(f"k{i}") for i in range(len(work.key))])
    encoding = link.connection.info.encoding
    for operation in (op for op in (DELETE, UPDATE, INSERT) if op in work.spec.operations):
        for first, last, size in _together(work, operation):
            keys = sql.SQL(
                "SELECT {} FROM {} WHERE op OPERATOR(pg_catalog.=) {} AND n OPERATOR(pg_catalog.>=) {}"
                " AND n OPERATOR(pg_catalog.<=) {} ORDER BY n"
            ).format(names, PLAN, sql.Literal(operation), sql.Literal(first), sql.Literal(last))
            given = (work, link, positions, keys, renders[operation])
            if size > _BYTES_AT_ONCE and (large := _large_statement(*given, runs=runs)) is not None:
                yield large
                continue
            for statement in _statements(*given, runs=runs):
                yield statement.encode(encoding)


def _together(work: Work, operation: str) -> Iterator[tuple[int, int, int]]:
    """Yield the first and the last number of rows of the plan that are fetched at once, and their size."""
    destination, size = work.destination.side, _size(work)
    largest = sql.SQL("SELECT pg_catalog.max({}) AS size FROM {} AS given").format(size, ROWS)
    found = destination.fetch(largest, "reading the staging table")[0]["size"] if operation != DELETE else 0
    is_small = (found or 0) * _STATEMENTS_AT_ONCE <= _BYTES_AT_ONCE
    statement, after = sql.SQL(_SQL["numbers" if is_small else "numbers_and_sizes"]), 0
    while True:
        bounds = statement.format(
            plan=PLAN,
            operation=sql.Literal(operation),
            after=sql.Literal(after),
            most=sql.Literal(_STATEMENTS_AT_ONCE),
            size=size,
            rows=ROWS,
            given=matches(work, "given"),
        )
        rows = destination.fetch(bounds, "reading the plan")
        if not rows:
            return
        yield from _cut([(row["n"], row["size"] or 0) for row in rows])
        after = rows[-1]["n"]


def _cut(rows: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield pieces of *rows* (numbers and sizes) that have no more bytes than may be fetched at once."""
    first, last, total = rows[0][0], rows[0][0], rows[0][1]
    for number, size in rows[1:]:
        if total + size > _BYTES_AT_ONCE:
            yield first, last, total
            first, total = number, 0
        last, total = number, total + size
    yield first, last, total


def _size(work: Work) -> sql.Composed:
    """Return the size in bytes of a staged row's texts, for types that may be long."""
    found: list[sql.Composable] = [sql.SQL("0::pg_catalog.int8")]
    for field in work.fields:
        name, kind = column(field.name, "given"), field.kind.base_name
        if kind not in _SHORT:
            value = name if kind in _LONG else sql.SQL("{}::pg_catalog.text").format(name)
            found.append(sql.SQL("coalesce(pg_catalog.octet_length({}), 0)").format(value))
    return sql.SQL(" OPERATOR(pg_catalog.+) ").join(found)


def _large_statement(
    work: Work, link: Wire, positions: tuple[int, ...], keys: sql.Composed, render: Render, *, runs: bool
) -> bytes | None:
    """Return the one statement for *keys*, fetched in pieces, which take less memory than one large text.

    :returns: ``None`` if one query can't make it.
    """
    side, query = work.destination.side, sql.SQL(keys.as_string(link.connection))
    target = work.target.identifier.as_string(link.connection)

    def make(staged: Shape) -> sql.Composed | None:
        return query_of_statements(link, replace(staged, name=target, runs=runs), positions, query, render)

    made = with_shape(link, "pg_temp.airflow_dblink_rows", make)
    if made is None:
        return None
    kept = "CREATE TEMP TABLE airflow_dblink_statement (whole pg_catalog.bytea) ON COMMIT DROP;"
    kept += " ALTER TABLE pg_temp.airflow_dblink_statement ALTER whole SET STORAGE EXTERNAL"  # read by pieces
    side.run(kept, "making a statement")
    count = side.run(sql.SQL(_SQL["encode_statement"]).format(large=_LARGE, made=made), "making a statement")
    whole = BytesIO()  # which gives its bytes without a copy
    while count == 1:
        piece = sql.SQL("SELECT pg_catalog.substring(whole, {}, {}) AS piece FROM {}").format(
            sql.Literal(whole.tell() + 1), sql.Literal(_PIECE_BYTES), _LARGE
        )
        if not (part := side.fetch(piece, "reading a statement")[0]["piece"]):
            break
        whole.write(part)
    side.run(sql.SQL("DROP TABLE {}").format(_LARGE), "reading a statement")
    return whole.getvalue() if count == 1 else None


def _demand_one_each(work: Work) -> None:
    """Raise if other rows have the keys of the plan, too: dblink's statements only name the key.

    :raises UsageError: 21000.
    """
    if work.key_is_sure and not any(field.collation for field in work.key):
        return
    same = [
        field.kind.equals(column(field.name), column(f"k{i}", "plan")) for i, field in enumerate(work.key)
    ]
    query = sql.SQL(
        "SELECT 1 AS one FROM {plan} AS plan JOIN {target} AS part ON {same}"
        " WHERE plan.op OPERATOR(pg_catalog.=) ANY ('{{U,D}}')"
        " AND plan.op OPERATOR(pg_catalog.=) ANY ({operations})"
        " GROUP BY plan.n HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 1 LIMIT 1"
    ).format(
        plan=PLAN,
        target=work.target.identifier,
        same=sql.SQL(" AND ").join(same),
        operations=as_array(work.spec.operations),
    )
    if work.destination.side.fetch(query, "checking the key"):
        raise UsageError(
            f"a row of {work.target} that is to be updated or deleted has its key ({work.key_names}) in"
            " common with another one, and dblink's statements would write both: they name the key alone",
            work.destination.side.conn_id,
            "21000",
            hint="use apply='set', without statements_path",
        )


def _statements(
    work: Work, link: Wire, positions: tuple[int, ...], keys: sql.Composed, render: Render, *, runs: bool
) -> list[str]:
    target = work.target.identifier.as_string(link.connection)
    query = sql.SQL(keys.as_string(link.connection))

    def make(staged: Shape) -> list[str]:
        # Read from the staged rows, written to the table.
        shape = replace(staged, name=target, runs=runs)
        if render is _render_delete:
            found = queried_keys(link, shape, query, len(positions))
            return [render_delete(shape, positions, literals(key)) for key in found.rows]
        return statements_of_query(link, shape, positions, query, render)

    return with_shape(link, "pg_temp.airflow_dblink_rows", make)


def _render_delete(shape: Shape, positions: Positions, values: Sequence[str], key: Sequence[Text]) -> str:
    return render_delete(shape, positions, key)


def apply_statements(work: Work, link: Wire) -> dict[str, int]:
    """Apply the plan by dblink's statements, one by one; return the same numbers as :func:`apply_set`.

    :raises RemoteError: the destination's errors.
    """
    done = {"deleted": 0, "updated": 0, "inserted": 0}
    kinds = {b"DELETE": "deleted", b"UPDATE": "updated", b"INSERT": "inserted"}
    for statement in statements_of_plan(work, link, runs=True):
        count = work.destination.side.run(statement, "applying a statement")
        done[kinds[statement[:6]]] += count
    return done
