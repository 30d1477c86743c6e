"""How values travel from one server to the other: with which casts, and whether in binary."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.catalog import type_names, types, types_by_name
from airflow_dblink.core.tables.entries import Type
from airflow_dblink.core.tables.mapping import Pair

log = logging.getLogger(__name__)

_SQL = statements("catalog.sql")


def route(source: Side, destination: Side, pairs: Sequence[Pair]) -> tuple[tuple[Pair, ...], str]:
    """Decide how values travel: return the pairs with their casts, and ``binary`` or ``text``.

    Binary needs the same built-in type on both sides. If PostgreSQL would assign a value by itself (integer
    to bigint, date to timestamp), the source casts it, so that it can travel in binary. Values of other types
    (enums, composites, types of extensions) travel as text, to a type of the same name or to a string type.

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


def rounded(source: Side, destination: Side, table: int, pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Let the source round values as the destination's columns would, by an explicit cast.

    Strings and bits get no cast: it would cut off the end of a value that the assignment refuses.

    :param table: oid of the destination.
    :raises RemoteError: a server's errors.
    """
    found = destination.ask(_SQL["rounded"], {"oid": table})
    if not found:
        return tuple(pairs)
    # The names go into the source's statement, so the source is asked; built-in types are the same there.
    names = type_names(source, [row["type"] for row in found], [row["modifier"] for row in found])
    declared = {str(row["name"]): name for row, name in zip(found, names, strict=True)}
    return tuple(
        pair
        if declared.get(pair.destination, pair.type_name) == pair.type_name
        else replace(pair, cast=declared[pair.destination])
        for pair in pairs
    )


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
        if next(iter(source.ask(_SQL["assignable"], params)[0].values())):
            _demand_same_time_zone(source, destination, pair, given, wanted)
            # The name goes into the source's statement, so the source is asked; built-in types are the same.
            return type_names(source, [wanted.base_type], [-1])[0]
    elif function := _assignment_function(destination, given, wanted):
        # citext is assigned as text is; nobody can tell here how another type's function changes values.
        if wanted.base_name == "citext" and given.built_in:
            return "pg_catalog.text"
        raise UsageError(
            f"column {pair.destination!r} is of type {wanted.name}, to which PostgreSQL assigns {given.name}"
            f" by function {function}, and it would be read as text from {pair.source!r} of"
            f" {source.conn_id!r}",
            destination.conn_id,
            "42804",
            hint=f"write the conversion into source_sql, e.g. {pair.source}::text",
        )
    elif _goes_as_text(given, wanted):
        # Padding is no part of a char(n)'s value, so the source removes it before rows are compared.
        return "pg_catalog.bpchar" if wanted.built_in and wanted.base_name == "bpchar" else None
    raise UsageError(
        f"column {pair.destination!r} is of type {wanted.name},"
        f" but {pair.source!r} of {source.conn_id!r} is {given.name}",
        destination.conn_id,
        "42804",
        hint=f"cast it in source_sql: {pair.source}::{wanted.name}",
    )


def _goes_as_text(given: Type, wanted: Type) -> bool:
    """Return whether the other type can read a value's text: a type of the same name, or a string type."""
    if given.attributes and wanted.attributes and given.attributes != wanted.attributes:
        return False  # composites of one name, but other or reordered attributes
    return bool(
        wanted.is_string
        or {given.name, given.base_name} & {wanted.name, wanted.base_name}
        or (given.element_name is not None and given.element_name == wanted.element_name)
        or (given.is_string and not wanted.built_in)
    )


def _as_is(kind: Type) -> str | None:
    """Return the type to cast to in the source, so that a value arrives as it is stored."""
    if not kind.is_xml:
        return None
    return "pg_catalog.text[]" if kind.element else "pg_catalog.text"


def _assignment_function(destination: Side, given: Type, wanted: Type) -> str | None:
    """Return the function by which the destination assigns one type to the other; ``None`` if it has none."""
    if not given.built_in or wanted.built_in:
        return None
    found = destination.ask(_SQL["cast_function"], {"source": given.base_type, "target": wanted.base_type})
    return str(found[0]["name"]) if found else None


def _demand_same_time_zone(source: Side, destination: Side, pair: Pair, given: Type, wanted: Type) -> None:
    """Raise if a cast's result depends on the session's TimeZone, and the two sessions' differ."""
    zones = [side.connection.info.parameter_status("TimeZone") for side in (source, destination)]
    with_zone = {given.base_name, wanted.base_name} & {"timestamptz", "timetz"}
    if with_zone and not wanted.is_string and zones[0] != zones[1]:
        raise UsageError(
            f"column {pair.destination!r} is of type {wanted.name}, {pair.source!r} of {source.conn_id!r} is"
            f" {given.name}, and the TimeZone there is {zones[0]}, but here {zones[1]}",
            destination.conn_id,
            "42804",
            hint=f"name the time zone in source_sql: {pair.source} AT TIME ZONE '...'",
        )


def _route_to_new_table(
    destination: Side, pairs: Sequence[Pair], there: Mapping[int, Type]
) -> tuple[tuple[Pair, ...], str]:
    """Keep the types for a table that is created; types that the destination lacks become text."""
    known = types_by_name(destination, [pair.type_name for pair in pairs])
    routed: list[Pair] = []
    for pair, found in zip(pairs, known, strict=True):
        if found is None:
            log.warning(
                "%s has no type %s: %r becomes text", destination.conn_id, pair.type_name, pair.destination
            )
        name = "pg_catalog.text" if found is None else pair.type_name
        routed.append(replace(pair, type_name=name, cast=_as_is(there[pair.source_type])))
    binary = all(goes_in_binary(there[pair.source_type], there[pair.source_type], None) for pair in pairs)
    return tuple(routed), "binary" if binary else "text"
