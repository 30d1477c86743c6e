"""Relations, their columns, keys and types, as a server's catalogs tell them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq, sql
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.rows import dict_row

from airflow_dblink.core.errors import RemoteError, UsageError, from_psycopg
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.own_sql import ask
from airflow_dblink.core.sql.named import statements

_SQL = statements("catalog.sql")
# FirstGenbkiObjectId: types below have the same oid on every server. Those from here to 16383
# are PostgreSQL's own too, but another version numbers them anew (information_schema's domains).
_FIRST_VARYING_OID = 10000
_NOT_A_NAME = ("0A000", "42501", "42601", "42602")  # also: another database; a schema that is closed
# Vectors: not an empty one. Of xml the binary form has an encoding of its own, or is without declaration.
_UNRECEIVED = {"int2vector", "oidvector", "xml"}
_STRING = "S"  # pg_type.typcategory
# Types of which two values that are "=" are the same, byte for byte.
_EXACT = frozenset(
    {"bool", "int2", "int4", "int8", "oid", "date", "bytea", "uuid", "time", "timestamp", "timestamptz"}
)


@dataclass(frozen=True)
class Side:
    """A connection and what errors call it."""

    connection: LinkConnection
    conn_id: str

    def rows(self, name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of a statement of ``catalog.sql``.

        :raises RemoteError: what the server says.
        """
        return self.ask(_SQL[name], "reading the catalogs", params)

    def ask(
        self, statement: bytes | sql.Composable, action: str, params: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return the rows of a question of ours that reads no table of a user; see :func:`.own_sql.ask`.

        :raises RemoteError: what the server says.
        """
        try:
            return ask(self.connection, statement, params)
        except psycopg.Error as error:
            raise from_psycopg(error, self.conn_id, action) from None

    def run(self, statement: str | bytes | sql.SQL | sql.Composed, action: str) -> int:
        """Run *statement* and return the number of rows it touched.

        :raises RemoteError: what the server says.
        """
        query = statement.encode() if isinstance(statement, str) else statement
        try:
            return self.connection.execute(query).rowcount
        except psycopg.Error as error:
            raise from_psycopg(error, self.conn_id, action) from None

    def fetch(self, statement: sql.SQL | sql.Composed, action: str) -> list[dict[str, Any]]:
        """Run *statement* and return its rows.

        :raises RemoteError: what the server says.
        """
        try:
            with self.connection.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(statement).fetchall()
        except psycopg.Error as error:
            raise from_psycopg(error, self.conn_id, action) from None


@dataclass(frozen=True)
class Column:
    """A live column of a relation; ``type_name`` is ``format_type``'s, modifier included."""

    name: str
    type: int
    type_name: str
    not_null: bool
    generated: bool
    always_identity: bool
    has_default: bool
    may_insert: bool
    may_update: bool
    may_select: bool


@dataclass(frozen=True)
class Relation:
    """A relation as one role sees it.

    :ivar kind: ``pg_class.relkind``.
    :ivar may_select: whether the role may read the whole table, where its rows lie (``ctid``) too.
    :ivar may_lock: whether the role may lock it in SHARE ROW EXCLUSIVE MODE.
    :ivar insert_rules: names of the rules that rewrite an INSERT; COPY goes by none.
    :ivar rows: the planner's estimate; 0 where the table was never analyzed.
    """

    oid: int
    schema_name: str
    name: str
    kind: str
    may_select: bool
    may_truncate: bool
    may_stage: bool
    may_lock: bool
    has_children: bool
    insert_rules: list[str]
    update_rules: list[str]
    row_security: bool
    has_before_insert: bool
    rows: int
    columns: tuple[Column, ...]

    @property
    def identifier(self) -> sql.Identifier:
        """Its qualified name."""
        return sql.Identifier(self.schema_name, self.name)

    @property
    def has_inheritance(self) -> bool:
        """Whether it is read with the rows of other tables, which its own indexes don't know."""
        return self.kind != "p" and self.has_children

    def __str__(self) -> str:
        return f"{self.schema_name}.{self.name}"


@dataclass(frozen=True)
class UniqueIndex:
    """A unique index of whole columns.

    :ivar columns: in the order of the index.
    :ivar is_immediate: whether ON CONFLICT can use it: it is not of a DEFERRABLE constraint.
    :ivar nulls_are_equal: whether two rows with NULL conflict (NULLS NOT DISTINCT).
    :ivar collations: quoted names, by column, of those by which other values may be the same than by the
        column's own; else ``None``.
    :ivar is_deterministic: whether texts are the same only if all their bytes are.
    :ivar is_plain: whether values are the same that are so to their types' own ``=``.
    """

    columns: tuple[str, ...]
    is_immediate: bool
    nulls_are_equal: bool
    collations: tuple[str | None, ...]
    is_deterministic: bool
    is_plain: bool


@dataclass(frozen=True)
class ResultColumn:
    """A column of a query's result.

    :ivar table: oid of the relation whose column it shows as it is; 0 for anything else.
    :ivar number: of the column there.
    """

    name: str
    type: int
    type_name: str
    table: int
    number: int


@dataclass(frozen=True)
class Type:
    """How values of a type can travel.

    :ivar base_type: the type itself, or what a domain comes down to.
    :ivar element: element type of a true array.
    :ivar equals_schema: schema of its own ``=``; ``None`` where it uses another type's, of pg_catalog.
    :ivar enum_name: quoted name of an enum, as which its values are compared: a domain over one has no ``=``.
    :ivar base_full_name: the base type's name with its schema, quoted.
    :ivar send: function of pg_catalog that gives its binary form, ``None`` where another schema has it.
    """

    type: int
    base_type: int
    name: str
    base_name: str
    category: str
    has_binary: bool
    element: int | None
    element_name: str | None
    equals_schema: str | None
    base_full_name: str
    enum_name: str | None
    send: str | None
    attributes: list[str]

    @property
    def goes_in_binary(self) -> bool:
        """Whether PostgreSQL receives in binary whatever it sends so."""
        return self.has_binary and not {self.base_name, self.element_name} & _UNRECEIVED

    @property
    def built_in(self) -> bool:
        """Whether every server has this type under this oid (arrays: of such a type)."""
        return self.base_type < _FIRST_VARYING_OID

    @property
    def is_exact(self) -> bool:
        """Whether two values that are ``=`` are always the same, byte for byte."""
        return self.base_name in _EXACT

    @property
    def is_string(self) -> bool:
        """Whether it belongs to the string types (text, varchar, citext, ...)."""
        return self.category == _STRING

    def equals(self, left: sql.Composable, right: sql.Composable) -> sql.Composed:
        """Return the condition that two values are ``=`` as indexes have it, wherever its operator is.

        By ``search_path`` alone, citext in a schema that isn't in it would be compared as text; and
        whoever may create in a schema of the path could put his own operator there.
        """
        return self.compare(left, "=", right)

    def compare(self, left: sql.Composable, operator: str, right: sql.Composable) -> sql.Composed:
        """Return the condition that two values, as indexes have it, are ``=``, ``<`` or the like."""
        schema = self.equals_schema or "pg_catalog"
        # In the type's own schema somebody may have put an operator for a domain over it.
        is_open = schema != "pg_catalog" and self.type != self.base_type
        if name := self.base_full_name if is_open else self.enum_name:
            left, right = (sql.SQL(f"{{}}::{name}").format(value) for value in (left, right))
        return sql.SQL("{} OPERATOR({}.{}) {}").format(left, sql.Identifier(schema), sql.SQL(operator), right)

    @property
    def is_xml(self) -> bool:
        """Whether it is xml or an array of it, whose output leaves out the declaration that is stored."""
        return "xml" in (self.base_name, self.element_name)

    @property
    def is_catalog_reference(self) -> bool:
        """Whether it is regclass or its like: in binary an oid, and another one on each server."""
        return self.built_in and (self.element_name or self.base_name).startswith("reg")


def find_relation(side: Side, relname: str) -> Relation | None:
    """Return the relation that *relname* means to PostgreSQL, or ``None``.

    :param relname: read as in SQL: folded to lower case unless in double quotes, found through
        ``search_path`` unless qualified.
    :raises UsageError: if it isn't a name, or the role may not use the schema.
    """
    if "\0" in relname:
        raise UsageError(f"relation {relname!r}: a name holds no NUL character", side.conn_id)
    try:
        found = side.rows("relation", {"relname": relname})
    except RemoteError as error:
        if error.sqlstate not in _NOT_A_NAME:
            raise
        raise UsageError(f"relation {relname!r}: {error.message}", side.conn_id, error.sqlstate) from None
    if not found:
        return None
    facts = found[0]
    partition_rows, table_rows = facts.pop("partition_rows"), facts.pop("table_rows")
    columns = tuple(Column(**row) for row in side.rows("columns", {"oid": facts["oid"]}))
    return Relation(**facts, rows=partition_rows or table_rows, columns=columns)


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
    facts = side.rows("name_parts", {"relname": relname})[0]
    *schema, name = facts["parts"]
    if len(schema) > 1:
        raise UsageError(f"improper relation name: {relname}", side.conn_id, "42601")
    schema_name = schema[0] if schema else facts["schema_name"]
    if schema_name is None:
        raise UsageError("no schema has been selected to create in", side.conn_id, "3F000")
    return schema_name, name


def describe(side: Side, query: str, action: str = "reading the source query") -> list[ResultColumn]:
    """Return the columns of *query* without running it; in a transaction, or a pooler splits it.

    :param action: what it is for, as errors say it.
    :raises RemoteError: what the server's parser says.
    :raises UsageError: if it returns no rows.
    """
    try:
        result = parse(side, query)
    except psycopg.Error as error:
        raise from_psycopg(error, side.conn_id, action) from None
    if result.nfields == 0:
        raise UsageError("the source query returns no columns", side.conn_id)
    found = [(result.fname(i) or b"", result.ftype(i), result.fmod(i)) for i in range(result.nfields)]
    names = side.rows("format_types", {"types": [f[1] for f in found], "modifiers": [f[2] for f in found]})
    return [
        ResultColumn(name.decode(), oid, str(row["format_type"]), result.ftable(i), result.ftablecol(i))
        for i, ((name, oid, _), row) in enumerate(zip(found, names, strict=True))
    ]


def parse(side: Side, query: str) -> pq.abc.PGresult:
    """Have the server's parser read *query*, and return its description.

    :raises psycopg.Error: what the parser says, with the position.
    """
    pgconn = side.connection.pgconn

    def ask(send: Callable[[], None]) -> PQGen[list[pq.abc.PGresult]]:
        send()
        results: list[pq.abc.PGresult] = yield from execute(pgconn)
        return results

    def prepare() -> None:
        pgconn.send_prepare(b"", query.encode())

    def describe_prepared() -> None:
        pgconn.send_describe_prepared(b"")

    for send in (prepare, describe_prepared):  # waited for, not called: the parser waits for locks
        result = side.connection.wait(ask(send))[-1]
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise error_from_result(result, encoding="utf-8")
    return result


def types(side: Side, oids: Iterable[int]) -> dict[int, Type]:
    """Return the types by their oids."""
    rows = side.rows("types", {"oids": sorted(set(oids))})
    return {row["type"]: Type(**row) for row in rows}


def primary_key(side: Side, relation: Relation) -> list[str]:
    """Return the key's columns in index order, none where there is no primary key."""
    return [row["name"] for row in side.rows("primary_key", {"oid": relation.oid})]


def unique_indexes(side: Side, relation: Relation) -> list[UniqueIndex]:
    """Return the unique indexes that are whole: not partial, not on expressions; ordered by name."""
    rows = side.rows("unique_indexes", {"oid": relation.oid})
    return [
        UniqueIndex(
            tuple(row["columns"]),
            bool(row["is_immediate"]),
            bool(row["nulls_are_equal"]),
            tuple(row["collations"]),
            bool(row["is_deterministic"]),
            bool(row["is_plain"]),
        )
        for row in rows
    ]
