"""Entries of a server's catalogs as values: relations, their columns and indexes, types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from psycopg import sql

# FirstGenbkiObjectId: types below have the same oid on every server. Those from here to 16383
# are PostgreSQL's own too, but another version numbers them anew (information_schema's domains).
_FIRST_VARYING_OID = 10000
# Types whose binary output PostgreSQL can't always read again: an empty vector's; and xml's, which has an
# encoding of its own, or lacks the declaration.
_UNRECEIVED = {"int2vector", "oidvector", "xml"}
_STRING = "S"  # pg_type.typcategory
# Types whose values are identical, byte for byte, if they are "=".
_EXACT = frozenset(
    {"bool", "int2", "int4", "int8", "oid", "date", "bytea", "uuid", "time", "timestamp", "timestamptz"}
)
_KINDS = {
    **{"r": "a table", "p": "a partitioned table", "f": "a foreign table", "S": "a sequence"},
    **{"v": "a view", "m": "a materialized view", "c": "a type", "i": "an index", "I": "an index"},
}


@dataclass(frozen=True)
class Column:
    """A column that wasn't dropped; ``type_name`` is ``format_type``'s, modifier included."""

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
    :ivar may_select: whether the role may read all columns, the rows' places (``ctid``) too.
    :ivar may_lock: whether the role may lock it in SHARE ROW EXCLUSIVE MODE.
    :ivar insert_rules: names of the rules that rewrite an INSERT; COPY ignores rules.
    :ivar rows: the planner's estimate; 0 if the table was never analyzed.
    :ivar primary_key: its columns in index order; empty if there is none.
    :ivar unique_indexes: those that are whole, not partial or on expressions; ordered by name.
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
    has_instead_of_insert: bool
    rows: int
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    unique_indexes: tuple[UniqueIndex, ...]

    @property
    def identifier(self) -> sql.Identifier:
        """The relation's qualified name."""
        return sql.Identifier(self.schema_name, self.name)

    @property
    def has_inheritance(self) -> bool:
        """Whether reading it also gives rows of other tables, which its indexes don't contain."""
        return self.kind != "p" and self.has_children

    @property
    def kind_name(self) -> str:
        """The kind of relation, for errors."""
        return _KINDS.get(self.kind, "no table")

    def __str__(self) -> str:
        return f"{self.schema_name}.{self.name}"


@dataclass(frozen=True)
class UniqueIndex:
    """A unique index of whole columns.

    :ivar columns: in the order of the index.
    :ivar is_immediate: whether ON CONFLICT can use it: it doesn't belong to a DEFERRABLE constraint.
    :ivar nulls_are_equal: whether two rows with NULL conflict (NULLS NOT DISTINCT).
    :ivar collations: by column, the quoted name of the index's collation if other values may be equal by it
        than by the column's; otherwise ``None``.
    :ivar is_deterministic: whether texts are equal only if all their bytes are.
    :ivar is_plain: whether values are equal exactly if the ``=`` of their types says so.
    """

    columns: tuple[str, ...]
    is_immediate: bool
    nulls_are_equal: bool
    collations: tuple[str | None, ...]
    is_deterministic: bool
    is_plain: bool

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return the index of a row of the catalogs."""
        return cls(**{**row, "columns": tuple(row["columns"]), "collations": tuple(row["collations"])})


@dataclass(frozen=True)
class ResultColumn:
    """A column of a query's result.

    :ivar table: oid of the relation whose column the query shows unchanged; 0 for any other expression.
    :ivar number: number of the column in that relation.
    """

    name: str
    type: int
    type_name: str
    table: int
    number: int


@dataclass(frozen=True)
class Type:
    """A type, as far as it decides how values can travel.

    :ivar base_type: the type itself, or the base type of a domain.
    :ivar element: element type of a true array.
    :ivar equals_schema: schema of its own ``=``; ``None`` if it uses another type's in pg_catalog.
    :ivar enum_name: quoted name of the enum as which its values are compared: a domain over one has no ``=``.
    :ivar base_full_name: the base type's name with its schema, quoted.
    :ivar send: function of pg_catalog that gives its binary form; ``None`` if it is in another schema.
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
        """Whether PostgreSQL can read all values in binary that it writes in binary."""
        return self.has_binary and not {self.base_name, self.element_name} & _UNRECEIVED

    @property
    def built_in(self) -> bool:
        """Whether every server has this type under this oid; for an array, its element type."""
        return self.base_type < _FIRST_VARYING_OID

    @property
    def is_fixed(self) -> bool:
        """Whether the type itself is PostgreSQL's own, under the same oid on every server."""
        return self.type < _FIRST_VARYING_OID

    @property
    def is_exact(self) -> bool:
        """Whether two values that are ``=`` are always identical, byte for byte."""
        return self.base_name in _EXACT

    @property
    def is_string(self) -> bool:
        """Whether it belongs to the string types (text, varchar, citext, ...)."""
        return self.category == _STRING

    def equals(self, left: sql.Composable, right: sql.Composable) -> sql.Composed:
        """Return the condition that two values are ``=``, with the schema of the indexes' operator.

        Without the schema, citext in a schema outside of ``search_path`` would be compared as text, and
        a stranger who may create in a schema of the path could put their own operator there.
        """
        return self.compare(left, "=", right)

    def compare(self, left: sql.Composable, operator: str, right: sql.Composable) -> sql.Composed:
        """Return the condition ``left operator right``, with the schema of the indexes' operator."""
        schema = self.equals_schema or "pg_catalog"
        # The type's own schema may hold a stranger's operator for a domain over the type.
        is_open = schema != "pg_catalog" and self.type != self.base_type
        if name := self.base_full_name if is_open else self.enum_name:
            left, right = (sql.SQL(f"{{}}::{name}").format(value) for value in (left, right))
        return sql.SQL("{} OPERATOR({}.{}) {}").format(left, sql.Identifier(schema), sql.SQL(operator), right)

    @property
    def is_xml(self) -> bool:
        """Whether it is xml or an array of it: their output leaves out the stored declaration."""
        return "xml" in (self.base_name, self.element_name)

    @property
    def is_catalog_reference(self) -> bool:
        """Whether it is regclass or a similar type: its binary form is an oid, which differs by server."""
        return self.built_in and (self.element_name or self.base_name).startswith("reg")
