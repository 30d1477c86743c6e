"""Entries of a server's catalogs as values: relations, their columns and indexes, types."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

# FirstGenbkiObjectId: types below have the same oid on every server. Those from here to 16383
# are PostgreSQL's own too, but another version numbers them anew (information_schema's domains).
_FIRST_VARYING_OID = 10000
# Vectors: not an empty one. Of xml the binary form has an encoding of its own, or is without declaration.
_UNRECEIVED = {"int2vector", "oidvector", "xml"}
_STRING = "S"  # pg_type.typcategory
# Types of which two values that are "=" are the same, byte for byte.
_EXACT = frozenset(
    {"bool", "int2", "int4", "int8", "oid", "date", "bytea", "uuid", "time", "timestamp", "timestamptz"}
)


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
