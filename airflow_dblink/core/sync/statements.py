"""The plan as dblink's statements, made by the builders from the staged rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from psycopg import sql

from airflow_dblink.core.builders import render_delete, render_insert, render_update
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.keyed_rows import Render, literals, queried_keys, statements_of_query
from airflow_dblink.core.literals import Text
from airflow_dblink.core.shape import Positions, Shape, with_shape
from airflow_dblink.core.sync.apply import as_array
from airflow_dblink.core.sync.part import Work, column, comma
from airflow_dblink.core.sync.permissions import demand_nameable
from airflow_dblink.core.sync.plan import PLAN
from airflow_dblink.core.sync.spec import DELETE, INSERT, UPDATE
from airflow_dblink.core.wire import Wire

_STATEMENTS_AT_ONCE = 1_000


def statements_of_plan(work: Work, link: Wire, *, runs: bool = False) -> Iterator[str]:
    """Yield the plan as dblink's statements, deletes first, for the operations that are on.

    :param runs: they are for us to run: a stranger's operators don't get into them.
    :raises UsageError: if they can't name the key.
    :raises RemoteError: what the destination says.
    """
    demand_nameable(work)
    _demand_one_each(work)
    renders: dict[str, Render] = {INSERT: render_insert, UPDATE: render_update, DELETE: _render_delete}
    positions = tuple([*map(work.fields.index, work.key)])
    names = comma([sql.Identifier(f"k{i}") for i in range(len(work.key))])
    for operation in (op for op in (DELETE, UPDATE, INSERT) if op in work.spec.operations):
        after = 0
        while True:
            bounds = sql.SQL(
                "SELECT n FROM {} WHERE op OPERATOR(pg_catalog.=) {} AND n OPERATOR(pg_catalog.>) {}"
                " ORDER BY n LIMIT {}"
            ).format(PLAN, sql.Literal(operation), sql.Literal(after), sql.Literal(_STATEMENTS_AT_ONCE))
            rows = work.destination.side.fetch(bounds, "reading the plan")
            if not rows:
                break
            keys = sql.SQL(
                "SELECT {} FROM {} WHERE op OPERATOR(pg_catalog.=) {} AND n OPERATOR(pg_catalog.>=) {}"
                " AND n OPERATOR(pg_catalog.<=) {} ORDER BY n"
            ).format(
                names, PLAN, sql.Literal(operation), sql.Literal(rows[0]["n"]), sql.Literal(rows[-1]["n"])
            )
            yield from _statements(work, link, positions, keys, renders[operation], runs=runs)
            after = rows[-1]["n"]


def _demand_one_each(work: Work) -> None:
    """Refuse to write rows by keys that others have, too: dblink's statements say no more than the key.

    :raises UsageError: 21000.
    """
    if work.key_is_sure and not any(field.collation for field in work.key):
        return
    same = [
        field.kind.equals(column(field.name), column(f"k{i}", "plan")) for i, field in enumerate(work.key)
    ]
    query = sql.SQL(
        "SELECT 1 AS one FROM {plan} AS plan JOIN {target} AS part ON {same}"
        " WHERE plan.op IN ('U', 'D') AND plan.op = ANY ({operations})"
        " GROUP BY plan.n HAVING pg_catalog.count(*) > 1 LIMIT 1"
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
    """Apply the plan by dblink's statements, one by one; returns what :func:`apply_set` does.

    :raises RemoteError: what the destination says.
    """
    done = {"deleted": 0, "updated": 0, "inserted": 0}
    kinds = {"DELETE": "deleted", "UPDATE": "updated", "INSERT": "inserted"}
    for statement in statements_of_plan(work, link, runs=True):
        count = work.destination.side.run(statement, "applying a statement")
        done[kinds[statement[:6]]] += count
    return done
