"""The watermark: it selects the rows that an incremental sync reads, and moves on afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from psycopg import sql

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sync.moving import OF_THE_TEXT
from airflow_dblink.core.sync.spec import Spec
from airflow_dblink.core.sync.work import Work, column
from airflow_dblink.core.tables.catalog import types
from airflow_dblink.core.tables.entries import ResultColumn, Type
from airflow_dblink.core.tables.mapping import Pair

_WITH_INFINITY = {"date", "timestamp", "timestamptz", "interval", "numeric", "float4", "float8"}
_LOWEST = {"int2": -(2**15), "int4": -(2**31), "int8": -(2**63)}


def window(
    source: Side, spec: Spec, offered: Sequence[ResultColumn], pairs: Sequence[Pair]
) -> list[sql.Composable]:
    """Return the conditions for ``watermark - overlap <= column < until``; the server parses the values."""
    if spec.watermark_column is None:
        return []
    offer = next((offer for offer in offered if offer.name == spec.watermark_column), None)
    if offer is None:
        raise UsageError(
            f"the source has no column {spec.watermark_column!r}, named in watermark_column",
            source.conn_id,
            "42703",
            hint=f"it has: {', '.join(offer.name for offer in offered)}",
        )
    _demand_highest(source, offer)
    name, column_type = watermark(spec, pairs), sql.SQL(offer.type_name)
    kind, overlap = types(source, [offer.type])[offer.type], spec.watermark_overlap
    of_type = f"{offer.type_name}, the type of watermark_column {offer.name!r}"
    found: list[sql.Composable] = []
    if overlap is not None:
        _demand_overlap(source, spec, offer, kind)
    if spec.watermark_from is not None:
        low: sql.Composable = sql.SQL("{}::{}").format(sql.Literal(spec.watermark_from), column_type)
        problem = f"the stored watermark, {spec.watermark_from!r}, is no {of_type}"
        _demand_value(source, low, problem, "if the type is another now, delete it from the asset's state")
        if overlap is not None:
            low = _lowered(spec, offer, kind, low)
            _demand_value(source, low, f"watermark_overlap={overlap!r} leads below {of_type}", "give less")
        found.append(_above(kind, name, low, _minus_infinity(source, kind)))
    if spec.watermark_until is not None:
        high = sql.SQL("{}::{}").format(sql.Literal(spec.watermark_until), column_type)
        _demand_value(source, high, f"watermark_until={spec.watermark_until!r} is no {of_type}")
        found.append(kind.compare(name, "<", high))
    return found


def _demand_highest(source: Side, offer: ResultColumn) -> None:
    of_none = sql.SQL("pg_catalog.max(NULL::{})").format(sql.SQL(offer.type_name))
    problem = (
        f"watermark_column {offer.name!r} is of type {offer.type_name}, which has no max() on this server"
    )
    _demand_value(source, of_none, problem, "take a column that grows: a time, a number")


def _above(
    kind: Type, name: sql.Composable, low: sql.Composable, infinity: sql.Composable | None
) -> sql.Composed:
    """Return the condition for a row at *low* or above, or at minus infinity, below all watermarks."""
    above = kind.compare(name, ">=", low)
    return sql.SQL("({} OR {})").format(above, kind.equals(name, infinity)) if infinity else above


def _minus_infinity(source: Side, kind: Type) -> sql.Composed | None:
    """Return minus infinity if the type has it; intervals have it since PostgreSQL 17."""
    known = (
        _WITH_INFINITY if source.connection.info.server_version >= 170000 else _WITH_INFINITY - {"interval"}
    )
    if not kind.built_in or kind.base_name not in known:
        return None
    return sql.SQL("'-infinity'::pg_catalog.{}").format(sql.Identifier(kind.base_name))


def _demand_value(source: Side, value: sql.Composable, problem: str, hint: str | None = None) -> None:
    """Let the source compute *value*.

    :raises UsageError: *problem*, if the source can't compute it.
    """
    try:
        source.fetch(sql.SQL("SELECT {} IS NULL AS missing").format(value), "checking the watermark")
    except RemoteError as error:
        if not (error.sqlstate or "").startswith(OF_THE_TEXT):
            raise
        raise UsageError(problem, source.conn_id, hint=hint) from None


def _lowered(spec: Spec, offer: ResultColumn, kind: Type, value: sql.Composable) -> sql.Composable:
    """Return *value* minus the overlap."""
    number = "integer" if kind.base_name == "date" else "numeric"
    step = sql.SQL("interval" if isinstance(spec.watermark_overlap, timedelta) else number)
    taken = sql.SQL("({} OPERATOR(pg_catalog.-) {}::{})").format(
        value, sql.Literal(spec.watermark_overlap), step
    )
    if kind.base_name in _LOWEST:
        taken = sql.SQL("GREATEST({}, {}::numeric)").format(taken, str(_LOWEST[kind.base_name]))
    return sql.SQL("{}::{}").format(taken, _base(offer, kind))


def _base(offer: ResultColumn, kind: Type) -> sql.Composable:
    """Return the base type: a domain or type modifier may refuse the lowered value, which no row has."""
    return sql.Identifier("pg_catalog", kind.base_name) if kind.built_in else sql.SQL(offer.type_name)


def _demand_overlap(source: Side, spec: Spec, offer: ResultColumn, kind: Type) -> None:
    wanted = {"D": "a timedelta", "T": "a timedelta", "N": "a number"}.get(kind.category)
    problem = f"watermark_overlap={spec.watermark_overlap!r} can't be taken from watermark_column"
    problem += f" {offer.name!r}, which is of type {offer.type_name}"
    none = sql.SQL("NULL::{}").format(_base(offer, kind))
    _demand_value(source, _lowered(spec, offer, kind, none), problem, wanted and f"give {wanted}")


def watermark(spec: Spec, pairs: Sequence[Pair]) -> sql.Identifier:
    """Return the watermark column of a row of the source's part."""
    name = spec.watermark_column or ""
    return column(next((pair.destination for pair in pairs if pair.source == name), name))


def highest(work: Work) -> str | None:
    """Return the highest value of the source's part, in JSON's form; ``None`` without a watermark column.

    :raises RemoteError: the source's errors.
    """
    if work.watermark is None:
        return None
    # In JSON's form: a later run may have another DateStyle, and would read 01/02 as another day.
    value = sql.SQL("pg_catalog.max({name}) FILTER (WHERE {finite})").format(
        name=work.watermark, finite=_finite(work.watermark_type or "").format(work.watermark)
    )
    what = sql.SQL("pg_catalog.to_json({}) OPERATOR(pg_catalog.#>>) '{{}}' AS highest").format(value)
    found = work.source.side.fetch(work.source.select(what), "reading the watermark")
    return None if found[0]["highest"] is None else str(found[0]["highest"])


def _finite(type_name: str) -> sql.SQL:
    """Return the condition that a watermark is finite: no infinity, and no NaN, which is above infinity."""
    if type_name.startswith(("timestamp", "date", "interval")):
        return sql.SQL("pg_catalog.isfinite({})")
    if type_name.startswith("numeric"):
        return sql.SQL("{} OPERATOR(pg_catalog.<) 'Infinity'::numeric")
    if type_name in ("real", "double precision"):
        return sql.SQL("{} OPERATOR(pg_catalog.<) 'Infinity'::double precision")
    return sql.SQL("{} IS NOT NULL")


def is_higher(source: Side, type_name: str, one: str, other: str) -> bool:
    """Return whether *one* watermark is above the *other*, by the order of the source's type.

    :raises RemoteError: the source's errors.
    """
    # By ORDER BY, since a search_path can change the meaning of ">", but not the index order.
    higher = sql.SQL(
        "SELECT n FROM (VALUES (1, {}::{type}), (2, {}::{type})) AS given (n, value)"
        " ORDER BY value DESC, n DESC LIMIT 1"
    ).format(one, other, type=sql.SQL(type_name))
    return bool(source.fetch(higher, "comparing watermarks")[0]["n"] == 1)
