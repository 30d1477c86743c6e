"""The checks before a sync reads a row: both catalogs, types, keys, privileges."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sync.permissions import demand_key_type, demand_places, demand_privileges
from airflow_dblink.core.sync.spec import Spec
from airflow_dblink.core.sync.watermark import watermark, window
from airflow_dblink.core.sync.where import condition, demand_where
from airflow_dblink.core.sync.work import Field, Part, Work, all_of, column, null_key
from airflow_dblink.core.tables.catalog import (
    get_relation,
    is_same_database,
    read,
    types,
)
from airflow_dblink.core.tables.checksum import Checksum, agree
from airflow_dblink.core.tables.entries import Relation, ResultColumn, Type, UniqueIndex
from airflow_dblink.core.tables.mapping import Pair, match
from airflow_dblink.core.tables.route import goes_in_binary, rounded, route
from airflow_dblink.core.tables.row_key import key_columns
from airflow_dblink.core.tables.source import describe_source, source_query

_SQL = statements("sync.sql")

log = logging.getLogger(__name__)


def prepare(source: Side, destination: Side, spec: Spec) -> Work:
    """Check *spec* against both databases and return the work; change nothing.

    Both sides must be in a transaction.

    :raises UsageError: names the connection, table, column or argument that can't work.
    :raises RemoteError: a server's errors in the query, the condition or a name.
    """
    spec.check()
    target = get_relation(destination, spec.destination_table)
    if target.kind not in ("r", "p"):
        hint = f"it is {target.kind_name}; a sync compares, locks and writes a table: name one"
        raise UsageError(f"{target} is not a table", destination.conn_id, "42809", hint=hint)
    table = get_relation(source, spec.source_table) if spec.source_table else None
    if table and table.oid == target.oid and is_same_database(source, destination):
        raise UsageError(
            f"{target} is both source and destination",
            destination.conn_id,
            hint=f"{source.conn_id} and {destination.conn_id} lead to the same database: name another one, or"
            " another table",
        )
    query = source_query(source, table, spec.source_sql, spec.source_parameters)
    offered = describe_source(source, query, spec.source_sql, spec.source_parameters)
    names = {offer.name for offer in offered}
    _demand_same_columns(spec, target, names, source, destination)
    inserts = spec.insert or spec.on_conflict == "replace"
    pairs = match(offered, target, spec.columns, source.conn_id, destination.conn_id, inserts=inserts)
    pairs, row_format = route(source, destination, pairs)
    pairs = rounded(source, destination, target.oid, pairs)
    key = key_columns(destination, target, spec.key, pairs)
    demand_privileges(source, destination, spec, table, target, pairs, key)
    checksum = agree(source, destination, spec.plan["seed"] if spec.plan else None)
    index = _key_index(target, key)
    collations = dict(zip(index.columns, index.collations, strict=True))
    fields = tuple(
        replace(field, collation=collations.get(field.name))
        for field in _fields(destination, source, pairs, table, target, checksum, row_format)
    )
    key_fields = tuple(field for name in key for field in fields if field.name == name)
    work = Work(
        spec=spec,
        source=_source_part(source, spec, table, query, pairs, offered),
        destination=_part_of_table(destination, spec, target),
        target=target,
        fields=fields,
        key=key_fields,
        row_format=row_format,
        key_format=_copy_format(key_fields),
        checksum=checksum,
        row_security=_hidden_by_policies(table, target),
        trusted_key=table is not None and not table.has_inheritance and _is_unique(table, pairs, key),
        key_is_sure=index.is_plain and not target.has_inheritance,
        watermark=watermark(spec, pairs) if spec.is_incremental else None,
        watermark_type=next((o.type_name for o in offered if o.name == spec.watermark_column), None),
    )
    demand_key_type(work)
    demand_places(work)
    given = {pair.destination for pair in pairs} | {*_others(spec, table, offered, pairs)}
    _demand_conditions(work, [c.name for c in target.columns if c.name in given])
    return work


def _hidden_by_policies(table: Relation | None, target: Relation) -> tuple[str, ...]:
    """Return the sides on which row-level security hides rows from the role."""
    sides = (("source", table), ("destination", target))
    return tuple(name for name, there in sides if there and there.row_security)


def _demand_same_columns(
    spec: Spec, target: Relation, names: set[str], source: Side, destination: Side
) -> None:
    if spec.columns is not None:
        return
    alone = [c.name for c in target.columns if c.name not in names and not c.generated]
    if alone:
        raise UsageError(
            f"{target} has columns that the source lacks: {', '.join(map(repr, alone))}",
            destination.conn_id,
            hint=f"add them to the source ({source.conn_id}), or name the columns to sync: columns=[...]",
        )


def _key_index(target: Relation, key: Sequence[str]) -> UniqueIndex:
    """Return the unique index that decides which keys are equal, if possible by the types' own ``=``."""
    found = [index for index in target.unique_indexes if set(index.columns) == set(key)]
    return min(found, key=lambda index: (not index.is_plain, any(index.collations)))


def _is_unique(table: Relation, pairs: Sequence[Pair], key: Sequence[str]) -> bool:
    names = {pair.source for pair in pairs if pair.destination in key and pair.cast is None}
    unique = [set(index.columns) for index in table.unique_indexes if index.is_plain]
    return len(names) == len(key) and names in unique


def _fields(
    destination: Side,
    source: Side,
    pairs: Sequence[Pair],
    table: Relation | None,
    target: Relation,
    checksum: Checksum,
    row_format: str,
) -> tuple[Field, ...]:
    here: dict[int, Type] = types(destination, [pair.destination_type or 0 for pair in pairs])
    there: dict[int, Type] = types(source, [pair.source_type for pair in pairs])
    sure = {c.name for c in target.columns if c.not_null}
    given = {c.name for c in table.columns if c.not_null} if table else set()
    fields = []
    for pair in pairs:
        kind = here[pair.destination_type or 0]
        source_kind = there[pair.source_type]
        canonical = checksum.canonical(column(pair.destination), kind, source_kind, row_format)
        nullable = pair.destination not in sure or pair.source not in given
        fields.append(Field(pair, kind, source_kind, canonical, nullable))
    return tuple(fields)


def _copy_format(fields: Sequence[Field]) -> str:
    binary = all(goes_in_binary(field.source_kind, field.kind, field.pair.cast) for field in fields)
    return "binary" if binary else "text"


def _source_part(
    source: Side,
    spec: Spec,
    table: Relation | None,
    query: sql.Composed | sql.SQL,
    pairs: Sequence[Pair],
    offered: Sequence[ResultColumn],
) -> Part:
    values = [
        sql.SQL("given.{}{} AS {}").format(
            sql.Identifier(pair.source),
            sql.SQL(f"::{pair.cast}" if pair.cast else ""),
            sql.Identifier(pair.destination),
        )
        for pair in pairs
    ]
    others = _others(spec, table, offered, pairs)
    values += [sql.SQL("given.{0} AS {0}").format(sql.Identifier(name)) for name in others]
    given = table.identifier if table else sql.SQL("({}\n)").format(query)
    rows = sql.SQL("(SELECT {} FROM {} AS given) AS part").format(sql.SQL(", ").join(values), given)
    where = all_of(condition(source, spec), *window(source, spec, offered, pairs))
    indexed: frozenset[str] = frozenset()
    if table is not None and table.kind in ("r", "p"):
        led = {str(row["name"]) for row in source.ask(_SQL["indexed"], {"oid": table.oid})}
        indexed = frozenset(p.destination for p in pairs if p.source in led and p.cast is None)
    return Part(source, rows, where, table, indexed)


def _others(
    spec: Spec, table: Relation | None, offered: Sequence[ResultColumn], pairs: Sequence[Pair]
) -> list[str]:
    """Return columns that aren't kept equal but may stand in *where* or be the watermark."""
    names = {offer.name for offer in offered} - {name for p in pairs for name in (p.source, p.destination)}
    wanted = set(names) if spec.where else names & {spec.watermark_column or ""}
    if table is not None:
        wanted &= {column.name for column in table.columns if column.may_select}
    return sorted(wanted)


def _part_of_table(destination: Side, spec: Spec, target: Relation) -> Part:
    rows = sql.SQL("{} AS part").format(target.identifier)
    led = frozenset(str(row["name"]) for row in destination.ask(_SQL["indexed"], {"oid": target.oid}))
    return Part(destination, rows, condition(destination, spec), target, led)


def _demand_conditions(work: Work, names: Sequence[str]) -> None:
    """Let both parsers read the condition, and raise if a key in the destination is NULL.

    :param names: the columns that both sides have, for messages.
    """
    for part, name in ((work.source, "source"), (work.destination, "destination")):
        if (raw := condition(part.side, work.spec)) is not None:
            demand_where(part, work.spec, raw, names)
        read(part.side, part.select(sql.SQL("1")), f"reading the {name}")
    nulls = [column(field.name) for field in work.key if field.name not in _not_null(work.target)]
    if nulls:
        is_null = sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(name) for name in nulls)
        found = work.destination.side.fetch(
            work.destination.select(sql.SQL("1 AS one"), is_null, " LIMIT 1"), "checking the key"
        )
        if found:
            raise null_key(work, work.destination.side)


def _not_null(relation: Relation) -> set[str]:
    return {c.name for c in relation.columns if c.not_null}
