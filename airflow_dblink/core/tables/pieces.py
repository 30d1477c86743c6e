"""Pieces of a table that CREATE TABLE (LIKE ...) leaves out: indexes, keys, statistics, grants, triggers ...

Each is read from the catalogs as the statements that make it again, on the same table or on another with the
same columns. PostgreSQL's own functions write the definitions. They name what they must under the session's
``search_path``, so read and run them under the same path.

Indexes, keys and statistics can be made under another name first, while the old ones are there: names of a
schema can't be there twice. The rest is made by statements that hold final names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.core.server.own_sql import question
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.entries import Relation

_SQL = statements("pieces.sql")
_KEYS = {"p": "PRIMARY KEY", "u": "UNIQUE"}
# The space for new indexes is a setting: in CREATE INDEX it would stand in the middle of the server's text.
_KEEP_SPACE = sql.SQL(
    "SELECT pg_catalog.set_config('airflow_dblink.default_tablespace',"
    " pg_catalog.current_setting('default_tablespace'), true)"
)
_GIVE_SPACE_BACK = sql.SQL(
    "SELECT pg_catalog.set_config('default_tablespace',"
    " pg_catalog.current_setting('airflow_dblink.default_tablespace'), true)"
)


@dataclass(frozen=True)
class TableName:
    """A table's qualified name; ``str()`` gives it quoted, as in SQL."""

    schema_name: str
    name: str

    @classmethod
    def of(cls, relation: Relation | OwnSequence) -> TableName:
        """Return the name of *relation*."""
        return cls(relation.schema_name, relation.name)

    @property
    def identifier(self) -> sql.Identifier:
        """The name for :mod:`psycopg.sql`."""
        return sql.Identifier(self.schema_name, self.name)

    def __str__(self) -> str:
        return self.identifier.as_string(None)


@dataclass(frozen=True)
class Index:
    """An index, with its constraint if it has one; both have one name.

    :ivar method: the definition from the access method on, which names neither the index nor the table.
    :ivar is_valid: false for what CREATE INDEX CONCURRENTLY has left behind.
    :ivar tablespace: empty for the database's own.
    :ivar constraint_type: ``p`` primary key, ``u`` unique, ``x`` exclusion; ``None`` for a plain index.
    :ivar constraint_definition: as in ADD CONSTRAINT, where the index can't be made by itself.
    """

    name: str
    method: str
    is_unique: bool
    is_valid: bool
    is_clustered: bool
    is_replica_identity: bool
    tablespace: str
    options: tuple[str, ...]
    constraint_type: str | None
    constraint_definition: str | None
    deferral: str
    comment: str | None
    constraint_comment: str | None
    targets: tuple[tuple[int, int], ...]

    def build(self, table: TableName, name: str | None = None) -> list[sql.Composed]:
        """Return the statements that make it on *table*, in its schema.

        They set ``default_tablespace``; :func:`build_indexes` sets it back.

        :param name: of the new index; by default its own.
        """
        return [*self.create(table, name), *self.complete(table, name)]

    @property
    def is_separable(self) -> bool:
        """Whether :meth:`create` leaves its constraint to :meth:`complete`."""
        return self.constraint_definition is None

    def create(self, table: TableName, name: str | None = None) -> list[sql.Composed]:
        """Return the first statements of :meth:`build`: they read all rows."""
        new, index = sql.Identifier(name or self.name), sql.Identifier(table.schema_name, name or self.name)
        made = [sql.SQL("SET LOCAL default_tablespace = {}").format(sql.Literal(self.tablespace))]
        if self.constraint_definition is not None:
            add = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}")
            made.append(add.format(table.identifier, new, sql.SQL(self.constraint_definition)))
            made += [_set_option(index, option) for option in self.options]
        else:
            create = sql.SQL("CREATE {}INDEX {} ON {} USING {}")
            unique = sql.SQL("UNIQUE " if self.is_unique else "")
            made.append(create.format(unique, new, table.identifier, sql.SQL(self.method)))
        return made

    def complete(self, table: TableName, name: str | None = None) -> list[sql.Composed]:
        """Return the other statements of :meth:`build`: they give the index what belongs to it."""
        new, index = sql.Identifier(name or self.name), sql.Identifier(table.schema_name, name or self.name)
        made: list[sql.Composed] = []
        if self.constraint_definition is None and self.constraint_type is not None:
            add = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}")
            key = sql.SQL(f"{_KEYS[self.constraint_type]} USING INDEX {{}}{self.deferral}").format(new)
            made.append(add.format(table.identifier, new, key))
        target = sql.SQL("ALTER INDEX {} ALTER COLUMN {} SET STATISTICS {}")
        made += [target.format(index, sql.Literal(column), sql.Literal(n)) for column, n in self.targets]
        if self.is_clustered:
            made.append(sql.SQL("ALTER TABLE {} CLUSTER ON {}").format(table.identifier, new))
        if self.is_replica_identity:
            identity = sql.SQL("ALTER TABLE {} REPLICA IDENTITY USING INDEX {}")
            made.append(identity.format(table.identifier, new))
        if self.comment is not None:
            made.append(sql.SQL("COMMENT ON INDEX {} IS {}").format(index, sql.Literal(self.comment)))
        if self.constraint_comment is not None:
            made.append(_comment_on_constraint(table, new, self.constraint_comment))
        return made

    def rename(self, table: TableName, name: str) -> sql.Composed:
        """Return the statement that gives the index *name* on *table* its own name."""
        own = sql.Identifier(self.name)
        if self.constraint_type is not None:
            rename = sql.SQL("ALTER TABLE {} RENAME CONSTRAINT {} TO {}")
            return rename.format(table.identifier, sql.Identifier(name), own)
        return sql.SQL("ALTER INDEX {} RENAME TO {}").format(sql.Identifier(table.schema_name, name), own)

    def drop(self, table: TableName) -> sql.Composed:
        """Return the statement that drops it; refused by the server if somebody's foreign key needs it."""
        if self.constraint_type is not None:
            constraint = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}")
            return constraint.format(table.identifier, sql.Identifier(self.name))
        return sql.SQL("DROP INDEX {}").format(sql.Identifier(table.schema_name, self.name))


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key from the table.

    :ivar refers_to: oid of the other table, which may be its own.
    :ivar parts: its definition before and after *reference*.
    :ivar reference: where the definition names the other table.
    :ivar is_whole: whether :meth:`add` makes all of it: no row has to be looked at, or not apart from it.
    """

    name: str
    refers_to: int
    parts: tuple[str, str]
    reference: str
    is_whole: bool
    comment: str | None

    def add(self, table: TableName, new: Mapping[int, TableName]) -> list[sql.Composed]:
        """Return the statements that add it, unvalidated unless *is_whole*: they lock both tables.

        :param new: tables that are referred to in place of others, by the oid of these.
        """
        name = sql.Identifier(self.name)
        other = new.get(self.refers_to)
        reference = self.reference if other is None else f") REFERENCES {other}("
        definition = sql.SQL(reference).join(sql.SQL(part) for part in self.parts)
        later = sql.SQL("" if self.is_whole else " NOT VALID")
        add = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}{}")
        made = [add.format(table.identifier, name, definition, later)]
        if self.comment is not None:
            made.append(_comment_on_constraint(table, name, self.comment))
        return made

    def validate(self, table: TableName) -> list[sql.Composed]:
        """Return the statements that validate it then: they look at all rows."""
        if self.is_whole:
            return []
        validate = sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}")
        return [validate.format(table.identifier, sql.Identifier(self.name))]


@dataclass(frozen=True)
class Statistics:
    """Extended statistics.

    :ivar kinds: ``None`` where they can't be named: on a single expression.
    :ivar target: how much ANALYZE looks at; ``None`` for the default.
    """

    name: str
    schema_name: str
    columns: str
    kinds: tuple[str, ...] | None
    target: int | None
    owner: str
    comment: str | None

    def build(self, table: TableName, name: str) -> list[sql.Composed]:
        """Return the statements that make them on *table*, for the same owner.

        :param name: of the new ones.
        """
        new = sql.Identifier(self.schema_name, name)
        kinds = sql.SQL("" if self.kinds is None else f" ({', '.join(self.kinds)})")
        create = sql.SQL("CREATE STATISTICS {}{} ON {} FROM {}")
        made = [create.format(new, kinds, sql.SQL(self.columns), table.identifier)]
        if self.target is not None:
            made.append(
                sql.SQL("ALTER STATISTICS {} SET STATISTICS {}").format(new, sql.Literal(self.target))
            )
        if self.comment is not None:
            made.append(sql.SQL("COMMENT ON STATISTICS {} IS {}").format(new, sql.Literal(self.comment)))
        made.append(sql.SQL("ALTER STATISTICS {} OWNER TO {}").format(new, sql.Identifier(self.owner)))
        return made

    def rename(self, name: str) -> sql.Composed:
        """Return the statement that gives the statistics *name* their own name."""
        old = sql.Identifier(self.schema_name, name)
        return sql.SQL("ALTER STATISTICS {} RENAME TO {}").format(old, sql.Identifier(self.name))


@dataclass(frozen=True)
class OwnSequence:
    """A sequence that belongs to a column.

    :ivar is_identity: it lives and dies with its identity column; else it is OWNED BY the column.
    """

    oid: int
    name: str
    schema_name: str
    column_name: str
    is_identity: bool
    type_name: str
    comment: str | None

    @property
    def identifier(self) -> sql.Identifier:
        """Its qualified name."""
        return sql.Identifier(self.schema_name, self.name)

    def give_type(self, to: OwnSequence) -> sql.Composed:
        """Return the statement that gives its type to another identity column's: LIKE makes a bigint."""
        return sql.SQL("ALTER SEQUENCE {} AS {}").format(to.identifier, sql.SQL(self.type_name))


@dataclass(frozen=True)
class Place:
    """Where and how a table is stored, and whose it is.

    :ivar is_own: whether the session's role itself is the owner.
    """

    is_unlogged: bool
    tablespace: str
    access_method: str
    owner: str
    is_own: bool


def read_indexes(side: Side, oid: int) -> list[Index]:
    """Return the indexes of a table with their constraints: the primary key first, then by name.

    :raises RemoteError: if the server describes one as no version we know does.
    """
    return [_index(side, row) for row in side.ask(_SQL["indexes"], {"oid": oid})]


def _index(side: Side, row: dict[str, Any]) -> Index:
    head, definition = row.pop("head"), row.pop("definition")
    if not definition.startswith(head):
        raise RemoteError(f"index {row['name']} is described as {definition[:200]!r}", side.conn_id)
    # USING INDEX takes neither exclusion constraints nor keys WITHOUT OVERLAPS.
    if not row.pop("is_over_periods") and row["constraint_type"] != "x":
        row["constraint_definition"] = None
    row["options"] = tuple(row["options"])
    row["targets"] = tuple(zip(row.pop("target_columns"), row.pop("targets"), strict=True))
    return Index(**row, method=definition.removeprefix(head))


def read_foreign_keys(side: Side, oid: int) -> list[ForeignKey]:
    """Return the foreign keys from a table, by name."""
    found = []
    for row in side.ask(_SQL["foreign_keys"], {"oid": oid}):
        definition = row.pop("definition")
        parts = tuple(definition.split(row["reference"]))
        if len(parts) != 2:  # a column of a very odd name
            raise RemoteError(f"foreign key {row['name']} can't be read: {definition[:200]!r}", side.conn_id)
        found.append(ForeignKey(parts=parts, **row))
    return found


def read_statistics(side: Side, oid: int) -> list[Statistics]:
    """Return the extended statistics of a table, by name."""
    rows = side.ask(_SQL["statistics"], {"oid": oid})
    return [Statistics(**{**row, "kinds": row["kinds"] and tuple(row["kinds"])}) for row in rows]


def read_sequences(side: Side, oid: int) -> list[OwnSequence]:
    """Return the sequences that belong to columns of a table, by name."""
    return [OwnSequence(**row) for row in side.ask(_SQL["own_sequences"], {"oid": oid})]


def read_place(side: Side, oid: int) -> Place:
    """Return where a table is stored, and whose it is."""
    return Place(**side.ask(_SQL["place"], {"oid": oid})[0])


def storage_statements(side: Side, oid: int, on: TableName) -> list[str]:
    """Return the statements that store the rows of *on* as those of table *oid*: options, statistics targets.

    :param on: has the same columns; without rows yet, or only new rows are stored so.
    """
    return _texts(side, "storage", oid, on)


def grant_question(side: Side, oid: int, new_oid: int, on: TableName) -> sql.SQL:
    """Return the question whose rows hold statements that give a table or sequence the privileges of another.

    :param oid: of the other.
    :param new_oid: of the table or sequence; what it has been granted by now is revoked.
    :param on: its name when they are run.
    """
    return question(side.connection, _SQL["grants"], {"oid": oid, "on": str(on), "new_oid": new_oid})


def protection_statements(side: Side, oid: int, on: TableName) -> list[str]:
    """Return the statements for row security, policies, triggers, and a replica identity without an index.

    :param on: the name of the table *oid* itself, which another table has by then.
    """
    return _texts(side, "protection", oid, on)


def comment_statements(side: Side, oid: int, on: TableName) -> list[str]:
    """Return the comments on a table and what belongs to it, as statements for *on*.

    On its columns, CHECK constraints, triggers and policies; its indexes and keys bring their own.

    :param on: the name of the table *oid* itself, which another table has by then.
    """
    return _texts(side, "comments", oid, on)


def build_indexes(
    indexes: Iterable[tuple[Index, str | None]], table: TableName, created: Collection[str] = ()
) -> list[sql.Composable]:
    """Return the statements that make indexes on *table*, under these names or their own.

    :param created: names of those that are created by now, and only have to be completed.
    """
    built = [
        statement
        for index, name in indexes
        for statement in (index.complete if name in created else index.build)(table, name)
    ]
    return [_KEEP_SPACE, *built, _GIVE_SPACE_BACK] if built else []


def run_all(side: Side, made: Sequence[str | sql.Composable], action: str) -> None:
    """Run statements as one message.

    :raises RemoteError: what the server says.
    """
    if made:
        parts = [sql.SQL(each) if isinstance(each, str) else each for each in made]
        side.run(sql.SQL(";\n").join(parts), action)


def _texts(side: Side, name: str, oid: int, on: TableName) -> list[str]:
    rows = side.ask(_SQL[name], {"oid": oid, "on": str(on)})
    return [str(row["statement"]) for row in rows]


def _set_option(index: sql.Identifier, option: str) -> sql.Composed:
    name, _, value = option.partition("=")
    return sql.SQL("ALTER INDEX {} SET ({} = {})").format(index, sql.Identifier(name), sql.Literal(value))


def _comment_on_constraint(table: TableName, name: sql.Identifier, comment: str) -> sql.Composed:
    on = sql.SQL("COMMENT ON CONSTRAINT {} ON {} IS {}")
    return on.format(name, table.identifier, sql.Literal(comment))
