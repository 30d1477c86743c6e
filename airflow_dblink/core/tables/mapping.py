"""Which source column goes into which destination column, and how its values travel."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.tables.catalog import (
    Column,
    Relation,
    ResultColumn,
    Side,
    Type,
    primary_key,
    types,
    unique_indexes,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """One column of a transfer.

    :ivar source: name in the source query.
    :ivar destination: name in the destination table.
    :ivar source_type: type oid in the source.
    :ivar destination_type: type oid in the destination; ``None`` where the table is created.
    :ivar type_name: declared type, for a table that is created.
    :ivar cast: type that the source casts to before sending.
    """

    source: str
    destination: str
    source_type: int
    destination_type: int | None
    type_name: str
    cast: str | None = None


def match(
    offered: Sequence[ResultColumn],
    relation: Relation | None,
    columns: Sequence[str] | Mapping[str, str] | None,
    source_id: str,
    destination_id: str,
    *,
    inserts: bool = True,
) -> tuple[Pair, ...]:
    """Match source to destination columns by name, or as *columns* says.

    Without *columns*, every source column must exist in the destination; those that the
    destination generates are left to it.

    :param inserts: whether rows will be inserted, so that NOT NULL columns need a value.
    :raises UsageError: for columns that don't exist, are named twice or can't be written, for
        NOT NULL columns without default that would get no value, and if nothing is left.
    """
    names = [column.name for column in offered]
    wanted = _wanted(names, relation, columns)
    twice = sorted({name for name in names if names.count(name) > 1 and name in wanted})
    _refuse(
        twice, "the source has more than one column {}", source_id, "give them names of their own: AS ..."
    )
    _refuse(
        [name for name in wanted if name not in names],
        "the source has no column {}",
        source_id,
        f"it has: {', '.join(names)}",
    )
    _refuse(
        sorted({name for name in wanted.values() if list(wanted.values()).count(name) > 1}),
        "columns gives more than one value to {}",
        destination_id,
        "map each destination column once",
    )
    if not wanted:
        raise UsageError("no column is mapped", destination_id, hint="name at least one in columns")
    by_name = {column.name: column for column in relation.columns} if relation else {}
    if relation is not None:
        _refuse_missing(relation, wanted, columns, source_id, destination_id)
        _check_destination(relation, by_name, list(wanted.values()), destination_id, inserts=inserts)
    types_by_name = {column.name: column for column in offered}
    return tuple(
        Pair(
            source=name,
            destination=target,
            source_type=types_by_name[name].type,
            destination_type=by_name[target].type if relation else None,
            type_name=types_by_name[name].type_name,
        )
        for name, target in wanted.items()
    )


def key_columns(
    destination: Side,
    relation: Relation,
    wanted: Sequence[str] | None,
    pairs: Sequence[Pair],
    *,
    for_on_conflict: bool = False,
) -> tuple[str, ...]:
    """Return the columns that tell rows apart: *wanted*, else the primary key's.

    :param for_on_conflict: it must be one that ON CONFLICT can use.
    :raises UsageError: if there is no primary key, a column doesn't exist or gets no value, or no unique
        index is on just these columns.
    """
    conn_id = destination.conn_id
    key = tuple(wanted) if wanted else tuple(primary_key(destination, relation))
    if not key:
        raise UsageError(
            f"{relation} has no primary key", conn_id, hint="name the columns of a unique key: key=[...]"
        )
    known = [column.name for column in relation.columns]
    if unknown := [name for name in key if name not in known]:
        raise UsageError(
            f"{relation} has no column {', '.join(map(repr, unknown))}, named in key",
            conn_id,
            "42703",
            hint=f"it has: {', '.join(known)}",
        )
    indexes = unique_indexes(destination, relation)
    if not any(set(key) == set(i.columns) and (i.is_immediate or not for_on_conflict) for i in indexes):
        deferrable = "not deferrable, " if for_on_conflict else ""
        raise UsageError(
            f"{relation} has no unique index on key ({', '.join(key)})",
            conn_id,
            "42P10",
            hint=f"create one, or name another key; it must be whole: not partial, {deferrable}not on"
            " expressions",
        )
    given = {pair.destination for pair in pairs}
    if missing := [name for name in key if name not in given]:
        raise UsageError(f"key column {', '.join(missing)} of {relation} gets no value", conn_id)
    return key


def _wanted(
    names: Sequence[str], relation: Relation | None, columns: Sequence[str] | Mapping[str, str] | None
) -> dict[str, str]:
    if isinstance(columns, str):
        hint = f"columns=[{columns!r}]"
        raise UsageError(f"columns must be a list or a mapping, got the text {columns!r}", hint=hint)
    if isinstance(columns, Mapping):
        return dict(columns)
    if columns is not None:
        return {name: name for name in columns}
    generated = {column.name for column in relation.columns if column.generated} if relation else set()
    if left := [name for name in names if name in generated]:
        log.info("Generated by the destination, not copied: %s", ", ".join(left))
    return {name: name for name in names if name not in generated}


def _refuse_missing(
    relation: Relation,
    wanted: Mapping[str, str],
    columns: Sequence[str] | Mapping[str, str] | None,
    source_id: str,
    conn_id: str,
) -> None:
    """Refuse columns that the destination hasn't, in the words of whatever named them."""
    known = [column.name for column in relation.columns]
    missing = {source: target for source, target in wanted.items() if target not in known}
    if not missing:
        return
    targets = ", ".join(map(repr, missing.values()))
    has = f"{relation} has: {', '.join(known)}"
    if isinstance(columns, Mapping):
        pairs = ", ".join(f"{source!r} to {target!r}" for source, target in missing.items())
        raise UsageError(f"columns maps {pairs}, which {relation} has not", conn_id, "42703", hint=has)
    if columns is not None:
        raise UsageError(f"columns names {targets}, which {relation} has not", conn_id, "42703", hint=has)
    noun = "a column" if len(missing) == 1 else "columns"
    raise UsageError(
        f"the source ({source_id}) has {noun} {targets}, {relation} has not",
        conn_id,
        "42703",
        hint="add what is missing, or name the columns that count: columns=[...];"
        " names that differ: columns={'source': 'destination', ...}",
    )


def _check_destination(
    relation: Relation, by_name: Mapping[str, Column], wanted: Sequence[str], conn_id: str, *, inserts: bool
) -> None:
    _refuse(
        [name for name in wanted if by_name[name].generated],
        f"{relation} generates its column {{}} itself",
        conn_id,
        "leave it out of columns",
    )
    _refuse(
        [
            column.name
            for column in relation.columns
            if inserts
            and column.not_null
            and not column.has_default
            and not column.generated
            and not relation.has_before_insert  # such a trigger may fill it in
            and column.name not in wanted
        ],
        f"{relation} needs a value for column {{}} (NOT NULL, no default)",
        conn_id,
        "map a source column to it",
    )


def _refuse(names: Sequence[str], message: str, conn_id: str, hint: str) -> None:
    if names:
        raise UsageError(message.replace("{}", ", ".join(map(repr, names))), conn_id, hint=hint)


def route(source: Side, destination: Side, pairs: Sequence[Pair]) -> tuple[tuple[Pair, ...], str]:
    """Decide how values travel: returns the pairs, with casts, and ``binary`` or ``text``.

    Binary needs the same built-in type on both sides. Where PostgreSQL would assign a value by
    itself (integer to bigint, date to timestamp), the source casts, which keeps it binary. Types
    of users (enums, composites, extensions) travel as text, to a type of the same name or to a
    string type.

    :raises UsageError: names the columns whose types don't fit.
    """
    there = types(source, [pair.source_type for pair in pairs])
    if any(pair.destination_type is None for pair in pairs):
        return _route_to_new_table(destination, pairs, there)
    here = types(destination, [pair.destination_type or 0 for pair in pairs])
    routed: list[Pair] = []
    binary = True
    for pair in pairs:
        given, wanted = there[pair.source_type], here[pair.destination_type or 0]
        cast = _cast(source, destination, pair, given, wanted)
        routed.append(replace(pair, cast=cast))
        binary = binary and goes_in_binary(given, wanted, cast)
    return tuple(routed), "binary" if binary else "text"


def goes_in_binary(given: Type, wanted: Type, cast: str | None) -> bool:
    """Return whether values of one type can be loaded as the other in the form that binary COPY sends.

    :param cast: type that the source casts to before sending.
    """
    same = given.built_in and wanted.built_in and (cast is not None or given.base_type == wanted.base_type)
    return same and wanted.goes_in_binary and not wanted.is_catalog_reference


def _cast(source: Side, destination: Side, pair: Pair, given: Type, wanted: Type) -> str | None:
    """Return the type to cast to in the source, ``None`` for none.

    :raises UsageError: if the types don't fit.
    """
    if given.built_in and wanted.built_in:
        if given.base_type == wanted.base_type:
            return _as_is(given)
        params = {"source": given.base_type, "target": wanted.base_type}
        if given.element and wanted.element:  # arrays are assigned as their elements are
            params = {"source": given.element, "target": wanted.element}
        if next(iter(source.rows("assignable", params)[0].values())):
            _refuse_other_time_zone(source, destination, pair, given, wanted)
            # Asked of the source, whose statement it becomes; built-in types are the same there.
            names = source.rows("format_types", {"types": [wanted.base_type], "modifiers": [-1]})
            return str(names[0]["format_type"])
    elif given.attributes and wanted.attributes and given.attributes != wanted.attributes:
        pass  # composites of one name, but other or reordered attributes
    elif function := _assignment_function(destination, given, wanted):
        # Those of citext are those of text; what another type's do is not for us to know.
        if wanted.base_name == "citext" and given.built_in:
            return "pg_catalog.text"
        raise UsageError(
            f"column {pair.destination!r} is of type {wanted.name}, to which PostgreSQL assigns {given.name}"
            f" by function {function}, and it would be read as text from {pair.source!r} of"
            f" {source.conn_id!r}",
            destination.conn_id,
            "42804",
            hint=f"say what it should be in source_sql, e.g. {pair.source}::text",
        )
    elif (
        wanted.is_string
        or {given.name, given.base_name} & {wanted.name, wanted.base_name}
        or (given.element_name is not None and given.element_name == wanted.element_name)
        or (given.is_string and not wanted.built_in)
    ):
        # Padding is no value to a char(n), so let the source leave it out before rows are compared.
        return "pg_catalog.bpchar" if wanted.built_in and wanted.base_name == "bpchar" else None
    raise UsageError(
        f"column {pair.destination!r} is of type {wanted.name},"
        f" but {pair.source!r} of {source.conn_id!r} is {given.name}",
        destination.conn_id,
        "42804",
        hint=f"cast it in source_sql: {pair.source}::{wanted.name}",
    )


def _as_is(kind: Type) -> str | None:
    """Return the type to cast to in the source, so that a value arrives as it is stored."""
    if not kind.is_xml:
        return None
    return "pg_catalog.text[]" if kind.element else "pg_catalog.text"


def _assignment_function(destination: Side, given: Type, wanted: Type) -> str | None:
    """Return the function by which the destination assigns one type to the other, if it does so by one."""
    if not given.built_in or wanted.built_in:
        return None
    found = destination.rows("cast_function", {"source": given.base_type, "target": wanted.base_type})
    return str(found[0]["name"]) if found else None


def _refuse_other_time_zone(source: Side, destination: Side, pair: Pair, given: Type, wanted: Type) -> None:
    """Refuse a cast whose result depends on the session's TimeZone, where the sessions' differ."""
    zones = [side.connection.info.parameter_status("TimeZone") for side in (source, destination)]
    with_zone = {given.base_name, wanted.base_name} & {"timestamptz", "timetz"}
    if with_zone and not wanted.is_string and zones[0] != zones[1]:
        raise UsageError(
            f"column {pair.destination!r} is of type {wanted.name}, {pair.source!r} of {source.conn_id!r} is"
            f" {given.name}, and the TimeZone there is {zones[0]}, but here {zones[1]}",
            destination.conn_id,
            "42804",
            hint=f"say which zone is meant in source_sql: {pair.source} AT TIME ZONE '...'",
        )


def _route_to_new_table(
    destination: Side, pairs: Sequence[Pair], there: Mapping[int, Type]
) -> tuple[tuple[Pair, ...], str]:
    """Keep the types for a table that is created; those it can't have become text."""
    known = destination.rows("types_by_name", {"names": [pair.type_name for pair in pairs]})
    routed: list[Pair] = []
    for pair, row in zip(pairs, known, strict=True):
        if row["type"] is None:
            log.warning(
                "%s has no type %s: %r becomes text", destination.conn_id, pair.type_name, pair.destination
            )
        name = "pg_catalog.text" if row["type"] is None else pair.type_name
        routed.append(replace(pair, type_name=name, cast=_as_is(there[pair.source_type])))
    binary = all(goes_in_binary(there[pair.source_type], there[pair.source_type], None) for pair in pairs)
    return tuple(routed), "binary" if binary else "text"
