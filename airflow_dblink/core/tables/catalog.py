"""Relations, their columns, keys and types, as a server's catalogs tell them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

import psycopg
from psycopg import pq, sql
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many, send

from airflow_dblink.core.errors import RemoteError, UsageError, from_psycopg
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.own_sql import question
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sqltext.user_text import place_of
from airflow_dblink.core.tables.entries import Column, Relation, ResultColumn, Type, UniqueIndex

_SQL = statements("catalog.sql")
# The questions of which each relation is made.
_OF_RELATION = ("relation", "columns", "primary_key", "unique_indexes")
# The types that every server has, as each connection has read them: nobody alters them.
_BUILT_IN: WeakKeyDictionary[LinkConnection, dict[int, Type]] = WeakKeyDictionary()
# Errors about the name: it names another database, a schema that the role may not use, or isn't a name.
_NOT_A_NAME = ("0A000", "42501", "42601", "42602")


def find_relation(side: Side, relname: str) -> Relation | None:
    """Return the relation that PostgreSQL finds under *relname*, or ``None``.

    :param relname: read as in SQL: folded to lower case unless in double quotes, found through
        ``search_path`` unless qualified.
    :raises UsageError: if it isn't a name, or the role may not use the schema.
    """
    if "\0" in relname:
        raise UsageError(f"relation {relname!r}: a name holds no NUL character", side.conn_id)
    try:
        questions = [question(side.connection, _SQL[name], {"relname": relname}) for name in _OF_RELATION]
        found, columns, key, indexes = side.ask_after((), questions, "reading the catalogs")
    except RemoteError as error:
        if error.sqlstate not in _NOT_A_NAME:
            raise
        raise UsageError(f"relation {relname!r}: {error.message}", side.conn_id, error.sqlstate) from None
    if not found:
        return None
    facts = found[0]
    partition_rows, table_rows = facts.pop("partition_rows"), facts.pop("table_rows")
    return Relation(
        **facts,
        rows=partition_rows or table_rows,
        columns=tuple(Column(**row) for row in columns),
        primary_key=tuple(row["name"] for row in key),
        unique_indexes=tuple(map(UniqueIndex.of, indexes)),
    )


def get_relation(side: Side, relname: str) -> Relation:
    """Return the relation.

    :raises UsageError: 42P01 if there is none of that name.
    """
    relation = find_relation(side, relname)
    if relation is None:
        raise UsageError(
            f'relation "{relname}" does not exist, or the role may not see its schema',
            side.conn_id,
            "42P01",
            hint='names fold to lower case unless in double quotes: "My Table"; other schemas: schema.table',
        )
    return relation


def split_name(side: Side, relname: str) -> tuple[str, str]:
    """Return schema and name of a relation that need not exist.

    :raises UsageError: if it has more than two parts, or there is no schema to create it in.
    """
    facts = side.ask(_SQL["name_parts"], {"relname": relname})[0]
    *schema, name = facts["parts"]
    if len(schema) > 1:
        raise UsageError(f"improper relation name: {relname}", side.conn_id, "42601")
    schema_name = schema[0] if schema else facts["schema_name"]
    if schema_name is None:
        raise UsageError("no schema has been selected to create in", side.conn_id, "3F000")
    return schema_name, name


def describe(
    side: Side, query: sql.Composable, action: str = "reading the source query"
) -> list[ResultColumn]:
    """Return the columns of *query* without running it.

    It needs a transaction: without one, a pooler may send its messages to different servers.

    :param action: the purpose of the question, for errors.
    :raises RemoteError: the parser's errors.
    :raises UsageError: if *query* returns no rows.
    """
    result = read(side, query, action)
    if result.nfields == 0:
        raise UsageError("the source query returns no columns", side.conn_id)
    found = [(result.fname(i) or b"", result.ftype(i), result.fmod(i)) for i in range(result.nfields)]
    names = type_names(side, [f[1] for f in found], [f[2] for f in found])
    return [
        ResultColumn(name.decode(), oid, type_name, result.ftable(i), result.ftablecol(i))
        for i, ((name, oid, _), type_name) in enumerate(zip(found, names, strict=True))
    ]


def read(side: Side, query: sql.Composable, action: str) -> pq.abc.PGresult:
    """Let the server's parser read *query*, and return its description.

    :param action: the purpose of the question, for errors.
    :raises RemoteError: the parser's errors.
    """
    try:
        return parse(side, query)
    except psycopg.Error as error:
        place = place_of(error, query, side.connection)
        raise from_psycopg(error, side.conn_id, action, place=place) from None


def parse(side: Side, query: sql.Composable) -> pq.abc.PGresult:
    """Let the server's parser read *query*, and return its description.

    :raises psycopg.Error: the parser's error, with its position.
    """
    pgconn = side.connection.pgconn
    text = query.as_string(side.connection).encode()

    def answers() -> PQGen[list[pq.abc.PGresult]]:
        yield from send(pgconn)
        prepared: list[pq.abc.PGresult] = yield from fetch_many(pgconn)
        try:
            described = yield from fetch_many(pgconn)
            yield from fetch_many(pgconn)  # the pipeline's end
        except psycopg.OperationalError:
            if prepared[-1].status == pq.ExecStatus.FATAL_ERROR:
                return prepared  # the last word of a lost connection tells why
            raise
        return [*prepared, *described]

    # In a pipeline, both commands are one round trip.
    pgconn.enter_pipeline_mode()
    pgconn.send_prepare(b"", text)
    pgconn.send_describe_prepared(b"")
    pgconn.pipeline_sync()
    # By wait(), which can be stopped: the parser waits for locks.
    results = side.connection.wait(answers())
    if pgconn.status == pq.ConnStatus.OK:  # a lost connection stays in it
        pgconn.exit_pipeline_mode()
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(result, encoding="utf-8")
    return results[-1]


def type_names(side: Side, oids: Sequence[int], modifiers: Sequence[int]) -> list[str]:
    """Return the names of types as ``format_type`` writes them; the modifier -1 stands for none."""
    rows = side.ask(_SQL["format_types"], {"types": oids, "modifiers": modifiers})
    return [str(row["format_type"]) for row in rows]


def types_by_name(side: Side, names: Sequence[str]) -> list[int | None]:
    """Return the types' oids, ``None`` for names of which the server has no type."""
    return [row["type"] for row in side.ask(_SQL["types_by_name"], {"names": names})]


def is_same_database(source: Side, destination: Side) -> bool:
    """Return whether both connections lead to one database."""
    return source.ask(_SQL["database"]) == destination.ask(_SQL["database"])


def children_of(side: Side, relation: Relation) -> list[str]:
    """Return the names of the relation's inheritance children."""
    return [row["name"] for row in side.ask(_SQL["inheritance_children"], {"oid": relation.oid})]


def types(side: Side, oids: Iterable[int]) -> dict[int, Type]:
    """Return the types by their oids."""
    wanted = set(oids)
    known = _BUILT_IN.setdefault(side.connection, {})
    found = {oid: known[oid] for oid in wanted & known.keys()}
    if missing := sorted(wanted - known.keys()):
        asked = (Type(**row) for row in side.ask(_SQL["types"], {"oids": missing}))
        found |= {kind.type: kind for kind in asked}
        known |= {oid: kind for oid, kind in found.items() if kind.is_fixed}
    return found


def unique_indexes(side: Side, relation: Relation) -> list[UniqueIndex]:
    """Return the relation's unique indexes as they are now."""
    rows = side.ask(_SQL["unique_indexes"], {"relname": relation.identifier.as_string(side.connection)})
    return list(map(UniqueIndex.of, rows))
