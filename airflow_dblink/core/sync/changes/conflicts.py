"""Rows that stand in the way: they hold a value of another unique key that a source row will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sync.spec import DELETE, UPDATE
from airflow_dblink.core.sync.staged import (
    PLAN,
    REMOVED,
    RENEWED,
    ROWS,
    as_array,
    matches,
    named_keys,
    place,
    same_row,
)
from airflow_dblink.core.sync.work import Field, Work, column, comma
from airflow_dblink.core.tables.catalog import unique_indexes
from airflow_dblink.core.tables.entries import UniqueIndex

_SQL = statements("sync_rows.sql")


def make_way(work: Work) -> tuple[int, int]:
    """Delete rows that hold a value of another unique key which a source row will take.

    A deleted row that the plan updates (two rows swap their values) is inserted anew afterwards.

    :returns: number of rows inserted anew, and number of rows deleted for good.
    :raises UsageError: if a row would lose values that aren't in *columns*.
    :raises RemoteError: the destination's errors.
    """
    given = {field.name for field in work.fields}
    key = {field.name for field in work.key}
    renewed = displaced = 0
    for index in unique_indexes(work.destination.side, work.target):
        columns = index.columns
        if set(columns) != key and set(columns) <= given:
            standing = _standing(work, index)
            renewed += _renew(work, standing, columns)
            displaced += _displace(work, standing)
    return renewed, displaced


def _standing(work: Work, index: UniqueIndex) -> sql.Composed:
    """Return the SELECT of the keys and places of rows that hold a value which another row will take."""
    by_name = {field.name: field for field in work.fields}
    same = [
        _is_taken(by_name[name], index, collation)
        for name, collation in zip(index.columns, index.collations, strict=True)
    ]
    keys = [column(field.name) for field in work.key]
    named = [sql.SQL("{} AS {}").format(key, sql.Identifier(f"k{i}")) for i, key in enumerate(keys)]
    return sql.SQL(_SQL["standing"]).format(
        named=comma(named),
        place=place(work),
        rows=ROWS,
        plan=PLAN,
        given=matches(work, "given"),
        on=sql.SQL("plan.op OPERATOR(pg_catalog.=) ANY ({})").format(
            as_array(work.spec.operations + RENEWED)
        ),
        target=work.target.identifier,
        same=sql.SQL(" AND ").join(same),
        itself=sql.SQL(" AND ").join(
            field.same(column(field.name), column(field.name, "given")) for field in work.key
        ),
    )


def _is_taken(field: Field, index: UniqueIndex, collation: str | None) -> sql.Composed:
    """Return the condition that *index* finds two rows' values of *field* equal."""
    part, given = column(field.name), column(field.name, "given")
    equal = replace(field, collation=collation).same(part, given)
    if not index.nulls_are_equal:
        return equal
    return sql.SQL("({} OR {} IS NULL AND {} IS NULL)").format(equal, part, given)


def _renew(work: Work, standing: sql.Composed, columns: Sequence[str]) -> int:
    destination = work.destination.side
    if UPDATE not in work.spec.operations:
        return 0
    renewed = destination.run(
        sql.SQL(_SQL["renew"]).format(plan=PLAN, standing=standing, same=same_row(work, "plan", "standing")),
        "making way for unique values",
    )
    if renewed and (lost := work.not_synced):
        raise UsageError(
            f"rows of {work.target} swap values of ({', '.join(columns)}) and would be inserted anew, without"
            f" {', '.join(lost)}",
            destination.conn_id,
            hint="name all columns, or make the unique constraint DEFERRABLE",
        )
    names = comma([column(f"k{i}", "plan") for i in range(len(work.key))])
    add = sql.SQL(_SQL["remove_renewed"])
    same = same_row(work, "plan", "twin")
    destination.run(add.format(plan=PLAN, names=names, same=same), "making way for unique values")
    return renewed


def _demand_given_once(work: Work, standing: sql.Composed) -> None:
    """Raise if a row to delete is unchanged in the source: then the source itself has the value twice."""
    part = work.destination
    equal = sql.SQL(_SQL["given_twice"]).format(
        standing=standing,
        rows=part.select(comma([*named_keys(work), place(work)])),
        same=same_row(work, "here", "standing"),
        plan=PLAN,
        planned=same_row(work, "plan", "standing"),
    )
    if part.side.fetch(equal, "making way for unique values"):
        raise UsageError(
            f"two source rows have the same value of a unique constraint of {work.target}",
            work.source.side.conn_id,
            "23505",
            hint="the destination can hold only one of them: correct the source, or leave one out (where)",
        )


def _displace(work: Work, standing: sql.Composed) -> int:
    _demand_given_once(work, standing)
    gone = REMOVED + (DELETE if DELETE in work.spec.operations else "")
    return work.destination.side.run(
        sql.SQL(
            "INSERT INTO {plan} SELECT 'R', 0, {keys}, NULL, NULL, standing.place_table, standing.place"
            " FROM ({standing}) AS standing"
            " WHERE NOT EXISTS (SELECT FROM {plan} AS plan"
            " WHERE {same} AND plan.op OPERATOR(pg_catalog.=) ANY ({gone}))"
        ).format(
            plan=PLAN,
            keys=comma([column(f"k{i}", "standing") for i in range(len(work.key))]),
            standing=standing,
            same=same_row(work, "plan", "standing"),
            gone=as_array(gone),
        ),
        "making way for unique values",
    )
