"""The rows that a sync compares: the same columns, under the same names and types, on both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.streams.pace import Pace
from airflow_dblink.core.sync.spec import Spec
from airflow_dblink.core.tables.checksum import Checksum
from airflow_dblink.core.tables.entries import Relation, Type
from airflow_dblink.core.tables.mapping import Pair

Condition = sql.Composed | sql.SQL
#: Called with a stream's rows and bytes so far, and the estimated number of all its rows or ``None``.
Progress = Callable[[int, int, int | None], None]

_INTEGERS = ("int2", "int4", "int8")


@dataclass(frozen=True)
class Field:
    """One column of a sync.

    :ivar pair: the source column, the destination column, and the way between them.
    :ivar kind: its type in the destination.
    :ivar source_kind: its type in the source, before a cast.
    :ivar canonical: its value in the form that both servers write, from a row of :class:`Part`.
    :ivar nullable: whether it may be NULL on either side, as far as the catalogs tell.
    :ivar collation: for a key column, the quoted name of its unique index's collation, if other values may be
        equal by it than by the column's.
    """

    pair: Pair
    kind: Type
    source_kind: Type
    canonical: sql.Composable
    nullable: bool
    collation: str | None = None

    @property
    def name(self) -> str:
        """Its name in the destination, used for both sides."""
        return self.pair.destination

    @property
    def is_exact(self) -> bool:
        """Whether values that PostgreSQL finds equal are always identical."""
        return self.kind.is_exact

    @property
    def is_integer(self) -> bool:
        """Whether its values can be grouped by ranges."""
        return self.kind.base_name in _INTEGERS

    def same(self, left: sql.Composable, right: sql.Composable) -> sql.Composed:
        """Return the condition that the key's unique index finds two values equal."""
        return self.kind.equals(self.collated(left), right)

    def collated(self, value: sql.Composable) -> sql.Composable:
        """Return *value* with the collation of the key's unique index."""
        return sql.SQL("({} COLLATE {})").format(value, sql.SQL(self.collation)) if self.collation else value


@dataclass(frozen=True)
class Part:
    """The rows of one side.

    :ivar rows: the text after FROM; its alias is ``part``, its columns have the destination's names.
    :ivar where: the condition that selects rows; ``None`` for all.
    :ivar relation: the table, if it is read directly.
    :ivar indexed: columns that are the first of an index.
    """

    side: Side
    rows: sql.Composable
    where: sql.Composable | None
    relation: Relation | None
    indexed: frozenset[str]

    def select(
        self, what: sql.Composable, condition: sql.Composable | None = None, end: str = ""
    ) -> sql.Composed:
        """Return ``SELECT what`` for the rows of *condition*, followed by *end*."""
        both = all_of(self.where, condition)
        where = sql.SQL("") if both is None else sql.SQL(" WHERE {}").format(both)
        return sql.SQL("SELECT {} FROM {}{}{}").format(what, self.rows, where, sql.SQL(end))


@dataclass(frozen=True)
class Work:
    """A sync whose arguments fit the catalogs of both sides, with the facts from these.

    :ivar target: the destination table.
    :ivar fields: the columns, in the order of the data.
    :ivar key: the key's columns.
    :ivar row_format: COPY format of whole rows.
    :ivar key_format: COPY format of keys alone.
    :ivar row_security: the sides on which policies hide rows.
    :ivar trusted_key: whether the source itself keeps the key unique.
    :ivar key_is_sure: whether no two rows of the destination, its children's included, can have one key.
    :ivar watermark: the watermark column of the source's part; ``None`` unless the sync is incremental.
    :ivar pace: the speed limit of rows, and the condition under which they wait; ``None`` for neither.
    :ivar progress: called often, with the progress of a stream of rows.
    """

    spec: Spec
    source: Part
    destination: Part
    target: Relation
    fields: tuple[Field, ...]
    key: tuple[Field, ...]
    row_format: str
    key_format: str
    checksum: Checksum
    row_security: tuple[str, ...]
    trusted_key: bool
    key_is_sure: bool
    watermark: sql.Identifier | None
    watermark_type: str | None
    pace: Pace | None = None
    progress: Progress | None = None

    @property
    def estimated_rows(self) -> int | None:
        """The estimated number of rows in the source's part; ``None`` if there is no estimate."""
        table = self.source.relation
        if table is None or table.row_security or self.source.where is not None:
            return None
        return table.rows or None

    @property
    def row_hash(self) -> sql.Composed:
        """The hash of a whole row of a :class:`Part`."""
        return self.checksum.of([field.canonical for field in self.fields])

    @property
    def key_hash(self) -> sql.Composed:
        """The hash of a row's key."""
        return self.checksum.of([field.canonical for field in self.key], salt=1)

    @property
    def key_is_null(self) -> sql.Composable | None:
        """The condition that a key column is NULL; ``None`` if the catalogs exclude it."""
        nullable = [column(field.name) for field in self.key if field.nullable]
        if not nullable:
            return None
        return sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(name) for name in nullable)

    @property
    def fingerprint(self) -> str:
        """A hash of the arguments of a plan; the seed prevents that values are guessed from it."""
        ids = (self.source.side.conn_id, self.destination.side.conn_id)
        return self.spec.fingerprint(*ids, self.checksum.seed)

    @property
    def sees_places(self) -> bool:
        """Whether the role may read the places of the destination's rows; if not, ``key_is_sure`` is true."""
        return self.target.may_select

    @property
    def not_synced(self) -> list[str]:
        """The destination's columns that are not kept equal, without generated ones."""
        given = {field.name for field in self.fields}
        return [c.name for c in self.target.columns if c.name not in given and not c.generated]

    @property
    def key_names(self) -> str:
        """The key's columns, for messages."""
        return ", ".join(field.name for field in self.key)


def all_of(*conditions: sql.Composable | None) -> sql.Composed | None:
    """Return the condition that all *conditions* hold, except ``None``; ``None`` if there is none."""
    # A condition may end in a comment.
    given = [sql.SQL("({}\n)").format(each) for each in conditions if each is not None]
    return sql.SQL(" AND ").join(given) if given else None


def column(name: str, alias: str = "part") -> sql.Identifier:
    """Return a column of a row of *alias*."""
    return sql.Identifier(alias, name)


def comma(items: Sequence[sql.Composable]) -> sql.Composed:
    """Return *items* with commas between them."""
    return sql.SQL(", ").join(items)


def null_key(work: Work, side: Side) -> UsageError:
    """Return the error for a row with NULL in its key."""
    return UsageError(
        f"a row has NULL in key ({work.key_names}) of {work.target}",
        side.conn_id,
        hint="NULL is equal to nothing, so such a row could never be found again: leave it out (where=...),"
        " or choose another key",
    )
