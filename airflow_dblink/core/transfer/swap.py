"""A table loaded beside the destination, which then takes its place: readers wait for the rename alone.

All of it is in the transfer's one transaction, so a failure or a kill leaves the old table, and nothing else.
The rows are frozen as they come (COPY ... FREEZE): a transaction whose snapshot is older than the load sees
them after the swap, and not an empty table.

A lock in SHARE UPDATE EXCLUSIVE MODE comes first. It keeps nobody from reading or writing, but keeps the
table's definition, and other swaps of it, as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from psycopg import sql

from airflow_dblink.core.errors import DblinkError, RemoteError, TransientError, UsageError
from airflow_dblink.core.server.own_sql import PIN, UNPIN
from airflow_dblink.core.server.side import Side, own_path
from airflow_dblink.core.tables.catalog import get_relation
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.pieces import (
    ForeignKey,
    Index,
    OwnSequence,
    Place,
    Statistics,
    TableName,
    build_indexes,
    read_foreign_keys,
    read_indexes,
    read_place,
    read_sequences,
    read_statistics,
    run_all,
    storage_statements,
)
from airflow_dblink.core.tables.sequences import reset_sequences
from airflow_dblink.core.transfer.in_use import Patience, wait_for_snapshots
from airflow_dblink.core.transfer.plan import Plan, Spec
from airflow_dblink.core.transfer.swappable import demand_swappable

log = logging.getLogger(__name__)

#: Names of tables until the swap and after it, by the oid of the old ones.
Together = Mapping[int, tuple[TableName, TableName]]
_NAME_BYTES = 30  # of the old name that stay in the new one; a name has 63


@dataclass(frozen=True)
class Pieces:
    """What the new table gets after the load, by the names it has until the old table is gone."""

    place: Place
    indexes: dict[str, Index]
    statistics: dict[str, Statistics]
    keys: tuple[ForeignKey, ...]
    sequences: tuple[OwnSequence, ...]

    @classmethod
    def of(cls, side: Side, oid: int, prefix: str) -> Pieces:
        """Read them from the catalogs under *own_path*: who runs their texts under it means the same.

        :param prefix: the beginning of the new indexes' and statistics' names.
        """
        with own_path(side):
            return cls(
                read_place(side, oid),
                {f"{prefix}_{i:04}": index for i, index in enumerate(read_indexes(side, oid))},
                {f"{prefix}_s{i:04}": each for i, each in enumerate(read_statistics(side, oid))},
                tuple(read_foreign_keys(side, oid)),
                tuple(read_sequences(side, oid)),
            )


@dataclass(frozen=True)
class Shadow:
    """The new table, while it has another name.

    :ivar spec: the transfer into it.
    :ivar columns: names of the columns that are loaded.
    :ivar relation: the new table.
    :ivar old: the old table, which *name* means until the swap.
    :ivar identities: pairs of the old and the new sequence of each identity column.
    :ivar together: the tables that are swapped in one transaction, this one among them, by the oid of the
        old one: names until the swap and after it.
    :ivar built: names of the indexes that are built by now, of those in *pieces*.
    """

    side: Side
    spec: Spec
    columns: frozenset[str]
    relation: Relation
    old: Relation
    pieces: Pieces
    identities: tuple[tuple[OwnSequence, OwnSequence], ...]
    together: Together
    built: frozenset[str] = frozenset()

    @classmethod
    def create(cls, side: Side, work: Plan, xid: str) -> Shadow:
        """Create it in the open transaction; build its indexes and keys as a trial, while it is empty.

        :param xid: of the transaction, for names that nobody else has.
        :raises UsageError: if the table can't be swapped any more, or *pre_sql* has altered it.
        :raises RemoteError: what the server says, also of what can't be built.
        """
        # Read anew, since another swap may have been waited for.
        old = get_relation(side, work.target.as_string(side.connection))
        if work.relation is None or old.columns != work.relation.columns:
            raise _altered(side, work, old)
        demand_swappable(side, old)
        pieces = Pieces.of(side, old.oid, f"airflow_dblink_{xid}")
        short = old.name.encode()[:_NAME_BYTES].decode(errors="ignore")
        name = TableName(old.schema_name, f"{short}_airflow_dblink_{xid}")
        made: list[str | sql.Composable] = [
            create_like(old, name, pieces.place),
            *storage_statements(side, old.oid, name),
        ]
        run_all(side, made, "creating the new table")
        columns = [pair.destination for pair in work.pairs]
        together = {old.oid: (name, TableName.of(old))}
        shadow = cls.of(side, work.spec, columns, old, name, pieces, together)
        try_building([shadow])
        return shadow

    @classmethod
    def of(
        cls,
        side: Side,
        spec: Spec,
        columns: Iterable[str],
        old: Relation,
        name: TableName,
        pieces: Pieces,
        together: Together,
    ) -> Shadow:
        """Return the new table, which has that *name*."""
        relation = get_relation(side, str(name))
        mine = {each.column_name: each for each in read_sequences(side, relation.oid) if each.is_identity}
        identities = tuple((each, mine[each.column_name]) for each in pieces.sequences if each.is_identity)
        return cls(side, spec, frozenset(columns), relation, old, pieces, identities, together)

    @property
    def name(self) -> TableName:
        """The name it has until the swap."""
        return TableName.of(self.relation)

    @property
    def target(self) -> TableName:
        """The name it takes."""
        return TableName.of(self.old)

    def finish(self) -> None:
        """Build what the loaded table lacks, but for its foreign keys: nobody waits for that.

        Then wait for the transactions that *old_snapshots_timeout* is for.

        :raises RemoteError: what the server says.
        :raises TransientError: if these transactions don't end in time.
        """
        self.build()
        if self.spec.reset_sequences:
            # The old table's sequences, by the new table's values: they outlive it, or are copied in the end.
            loaded = replace(self.old, name=self.relation.name)
            reset_sequences(self.side, loaded, self.columns)
        self.side.run(sql.SQL("ANALYZE {}").format(self.name.identifier), "analyzing the new table")
        if (timeout := self.spec.old_snapshots_timeout) is not None:
            wait_for_snapshots(
                self.side,
                timeout.total_seconds(),
                f"old_snapshots_timeout is over, and transactions older than the swap of {self.old} run",
                "nothing is changed; end that session, or leave old_snapshots_timeout out: it would then see"
                " the new rows",
            )

    def build(self) -> None:
        """Build indexes and extended statistics.

        :raises RemoteError: what the server says of what can't be built.
        """
        indexes = [(index, name) for name, index in self.pieces.indexes.items()]
        made: list[sql.Composed] = []
        for name, each in self.pieces.statistics.items():
            made += each.build(self.name, name)
        with self.by_own_names(), own_path(self.side):
            run_all(self.side, build_indexes(indexes, self.name, self.built), "building the indexes")
            run_all(self.side, made, "creating extended statistics")

    def add_key(self, key: ForeignKey) -> list[sql.Composed]:
        """Return the statements that add one of its keys."""
        return key.add(self.name, {oid: name for oid, (name, _) in self.together.items()})

    @property
    def doubled(self) -> dict[str, ForeignKey]:
        """The keys to tables that aren't swapped, by the names of their twins."""
        keys = [key for key in self.pieces.keys if not key.is_whole and key.refers_to not in self.together]
        return {f"airflow_dblink_twin_{i}": key for i, key in enumerate(keys)}

    @contextmanager
    def by_own_names(self) -> Iterator[None]:
        """Let the server's errors name the table and its pieces as the user does."""
        own = {name: index.name for name, index in self.pieces.indexes.items()}
        own |= {name: each.name for name, each in self.pieces.statistics.items()}
        try:
            yield
        except RemoteError as error:
            own |= {name.name: target.name for name, target in self.together.values()}
            raise error.renamed(own) from None


def build_keys(shadows: Sequence[Shadow]) -> None:
    """Build the foreign keys of new tables that are swapped together; they must have their indexes.

    Those among them lock nobody else. For the others, writers of the tables that they refer to wait from then
    on: all these tables are locked in one attempt and in one order, or none is.

    :raises RemoteError: what the server says, as of rows that break a key.
    :raises TransientError: if the tables aren't locked within *swap_timeout*.
    """
    keys = [(shadow, key) for shadow in shadows for key in shadow.pieces.keys]
    for shadow, key in keys:
        if key.refers_to in shadow.together:
            with shadow.by_own_names():
                run_all(
                    shadow.side, [PIN, *shadow.add_key(key), UNPIN], f"creating the foreign key {key.name}"
                )
                _validate(shadow, key)
    others = sorted(
        ((shadow, key) for shadow, key in keys if key.refers_to not in shadow.together),
        key=lambda each: each[1].refers_to,
    )
    if not others:
        return
    first = others[0][0]
    side, patience = first.side, Patience.of(first.side)
    added = [statement for shadow, key in others for statement in shadow.add_key(key)]
    # To drop such a twin locks the other table, even if the role may not use LOCK TABLE there.
    twins = [
        statement
        for shadow in shadows
        for name, key in shadow.doubled.items()
        for statement in shadow.add_key(replace(key, name=name, comment=None))
    ]

    def add() -> None:
        run_all(side, [PIN, *added, *twins, UNPIN, *patience.end], "creating the foreign keys")

    with first.by_own_names():
        timeout_s = first.spec.swap_timeout.total_seconds()
        old = [*{shadow.old.oid: shadow.old for shadow, _ in others}.values()]
        patience.until_had([add], patience.writers_ms, timeout_s, old, writers=True)
    for shadow, key in others:
        with shadow.by_own_names():
            _validate(shadow, key)


def _validate(shadow: Shadow, key: ForeignKey) -> None:
    with own_path(shadow.side):
        run_all(shadow.side, key.validate(shadow.name), f"creating the foreign key {key.name}")


def try_building(shadows: Sequence[Shadow]) -> None:
    """Give new tables' sequences their types, and build on the empty tables what comes after the load.

    :raises RemoteError: what the server says of what can't be built.
    """
    for shadow in shadows:
        types = [each.give_type(to) for each, to in shadow.identities]
        run_all(shadow.side, types, "creating the new table")
    side, action = shadows[0].side, "trying what is built after the load"
    side.run("SAVEPOINT airflow_dblink_trial", action)
    for shadow in shadows:
        shadow.build()
    build_keys(shadows)
    # COPY takes FREEZE in the very subtransaction of CREATE TABLE only: hence the second statement.
    side.run("ROLLBACK TO SAVEPOINT airflow_dblink_trial; RELEASE SAVEPOINT airflow_dblink_trial", action)


def lock_definition(side: Side, work: Plan) -> None:
    """Keep the table's definition as it is until the transaction ends, and other swaps of it away.

    :raises RemoteError: what the server says.
    """
    lock = sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(work.target)
    side.run(lock, "locking the destination table")


def create_like(old: Relation, new: TableName, place: Place) -> sql.Composed:
    """Return the statement that creates a table like *old*, without what is built after the load."""
    statement = sql.SQL(
        "CREATE {}TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING IDENTITY"
        " INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION) USING {} TABLESPACE {}"
    ).format(
        sql.SQL("UNLOGGED " if place.is_unlogged else ""),
        new.identifier,
        old.identifier,
        sql.Identifier(place.access_method),
        sql.Identifier(place.tablespace),
    )
    if place.is_own:
        return statement
    owner = sql.SQL("{}; ALTER TABLE {} OWNER TO {}")
    return owner.format(statement, new.identifier, sql.Identifier(place.owner))


def _altered(side: Side, work: Plan, old: Relation) -> DblinkError:
    if work.spec.pre_sql:
        return UsageError(
            f"{old} is not as it was when the transfer began: pre_sql or somebody else has altered its"
            " columns, or this role's privileges on them",
            side.conn_id,
            "55000",
            hint="alter the table in a task of its own, before this one",
        )
    return TransientError(f"{old} was altered while the transfer began", side.conn_id, "40001")
