"""A table loaded beside the destination, which then takes its place: readers wait for the rename alone.

All of it is in the transfer's one transaction, so a failure or a kill leaves the old table, and nothing else.
The rows are frozen as they come (COPY ... FREEZE): a transaction whose snapshot is older than the load sees
them after the swap, and not an empty table.

A lock in SHARE UPDATE EXCLUSIVE MODE comes first. It keeps nobody from reading or writing, but keeps the
table's definition, and other swaps of it, as they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import DblinkError, RemoteError, TransientError, UsageError
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.server.own_sql import PIN, UNPIN
from airflow_dblink.core.server.side import Side, own_path
from airflow_dblink.core.sqltext.user_text import UserText
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
    comment_statements,
    grant_question,
    protection_statements,
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
    :ivar built: names of the indexes that are built by now, of those in *pieces*.
    """

    side: Side
    spec: Spec
    columns: frozenset[str]
    relation: Relation
    old: Relation
    pieces: Pieces
    identities: tuple[tuple[OwnSequence, OwnSequence], ...]
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
        shadow = cls.of(side, work.spec, columns, old, name, pieces)
        shadow.try_building()
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
    ) -> Shadow:
        """Return the new table, which has that *name*."""
        relation = get_relation(side, str(name))
        mine = {each.column_name: each for each in read_sequences(side, relation.oid) if each.is_identity}
        identities = tuple((each, mine[each.column_name]) for each in pieces.sequences if each.is_identity)
        return cls(side, spec, frozenset(columns), relation, old, pieces, identities)

    def try_building(self) -> None:
        """Give its sequences their types, and build on it, while it is empty, what is built after the load.

        :raises RemoteError: what the server says of what can't be built.
        """
        types = [each.give_type(to) for each, to in self.identities]
        run_all(self.side, types, "creating the new table")
        self.side.run("SAVEPOINT airflow_dblink_trial", "trying what is built after the load")
        self._build()
        self.build_keys()
        # COPY takes FREEZE in the very subtransaction of CREATE TABLE only: hence the second statement.
        undo = "ROLLBACK TO SAVEPOINT airflow_dblink_trial; RELEASE SAVEPOINT airflow_dblink_trial"
        self.side.run(undo, "trying what is built after the load")

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
        self._build()
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

    def _build(self) -> None:
        indexes = [(index, name) for name, index in self.pieces.indexes.items()]
        made: list[sql.Composed] = []
        for name, each in self.pieces.statistics.items():
            made += each.build(self.name, name)
        with self.by_own_names(), own_path(self.side):
            run_all(self.side, build_indexes(indexes, self.name, self.built), "building the indexes")
            run_all(self.side, made, "creating extended statistics")

    def build_keys(self) -> None:
        """Build the foreign keys; writers of the tables that they refer to wait from then on.

        :raises RemoteError: what the server says, as of rows that break a key.
        :raises TransientError: if one of these tables isn't locked within *swap_timeout*.
        """
        if not self.pieces.keys:
            return
        patience = Patience.of(self.side)
        added = [statement for key in self.pieces.keys for statement in key.add(self.name)]

        def add() -> None:
            made = [PIN, *added, *self._twins(), UNPIN, *patience.end]
            run_all(self.side, made, "creating the foreign keys")

        with self.by_own_names():
            timeout_s = self.spec.swap_timeout.total_seconds()
            patience.until_had([add], patience.writers_ms, timeout_s, self.old, writers=True)
            for key in self.pieces.keys:
                with own_path(self.side):
                    run_all(self.side, key.validate(self.name), f"creating the foreign key {key.name}")

    def _twins(self) -> list[sql.Composed]:
        """Return the statements that make a second key like each to another table.

        To drop such a twin locks the other table, even if the role may not use LOCK TABLE there: see
        :meth:`take_place`.
        """
        twins = (replace(key, name=name, comment=None) for name, key in self._doubled.items())
        return [statement for twin in twins for statement in twin.add(self.name)]

    @property
    def _doubled(self) -> dict[str, ForeignKey]:
        keys = [key for key in self.pieces.keys if not key.is_whole and len(key.parts) == 1]
        return {f"airflow_dblink_twin_{i}": key for i, key in enumerate(keys)}

    @contextmanager
    def by_own_names(self) -> Iterator[None]:
        """Let the server's errors name the table and its pieces as the user does."""
        own = {name: index.name for name, index in self.pieces.indexes.items()}
        own |= {name: each.name for name, each in self.pieces.statistics.items()}
        try:
            yield
        except RemoteError as error:
            raise error.renamed({**own, self.name.name: self.target.name}) from None

    def take_place(self) -> float:
        """Lock the old table, drop it, and give the new one its name; return when it was locked.

        The lock is asked for again and again, each time for a moment, until *swap_timeout* is over. To drop
        its keys, the tables that they refer to must be locked, too: in one attempt after it, in the next one
        before it, since readers that lock them in one order can be in the way of the other for good.

        :returns: the value of ``time.monotonic``.
        :raises UsageError: if something has come to depend on the old table meanwhile.
        :raises TransientError: if the lock isn't had in time, naming who holds it.
        """
        # Under the lock that keeps the definition, these can't change any more; privileges can.
        with own_path(self.side):
            kept = [
                *protection_statements(self.side, self.old.oid, self.target),
                *comment_statements(self.side, self.old.oid, self.target),
            ]
        # A new view needs no lock that the first one keeps away; of one that is still newer DROP TABLE tells.
        demand_swappable(self.side, self.old)
        patience = Patience.of(self.side)
        lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(self.target.identifier)
        next_ms = patience.next_ms(1 + len(self.pieces.keys) + len(self.pieces.sequences))
        soon = sql.SQL(f"SET LOCAL lock_timeout = '{next_ms}ms'")
        drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}")
        others = [drop.format(self.name.identifier, sql.Identifier(name)) for name in self._doubled]

        def attempt(first: Sequence[sql.Composable], then: Sequence[sql.Composable]) -> float:
            answers = self.side.ask_after(first, self._grants(), "locking the old table")
            locked_at = time.monotonic()
            grants = [str(row["statement"]) for rows in answers for row in rows]
            made: list[str | sql.Composable] = [soon, *then, *self._exchange(), *grants]
            made += [PIN, *kept, UNPIN]  # under the path that they were read under
            run_all(self.side, [*made, *patience.end], "swapping the tables")
            return locked_at

        timeout_s = self.spec.swap_timeout.total_seconds()
        attempts = [partial(attempt, [lock], others)]
        if others:
            attempts.append(partial(attempt, [others[0], soon, *others[1:], lock], []))
        return patience.until_had(attempts, patience.first_ms, timeout_s, self.old, writers=False)

    def _exchange(self) -> list[sql.Composed]:
        """Return the statements that drop the old table and give the new one and its pieces their names."""
        owned = sql.SQL("ALTER SEQUENCE {} OWNED BY {}.{}")
        rename = sql.SQL("ALTER SEQUENCE {} RENAME TO {}")
        comment = sql.SQL("COMMENT ON SEQUENCE {} IS {}")
        return [
            *(
                owned.format(each.identifier, self.name.identifier, sql.Identifier(each.column_name))
                for each in self.pieces.sequences
                if not each.is_identity
            ),
            *(_same_position(old, new) for old, new in self.identities),
            sql.SQL("DROP TABLE {}").format(self.target.identifier),
            sql.SQL("ALTER TABLE {} RENAME TO {}").format(
                self.name.identifier, sql.Identifier(self.target.name)
            ),
            *(index.rename(self.target, name) for name, index in self.pieces.indexes.items()),
            *(each.rename(name) for name, each in self.pieces.statistics.items()),
            *(rename.format(new.identifier, sql.Identifier(old.name)) for old, new in self.identities),
            *(
                comment.format(old.identifier, sql.Literal(old.comment))
                for old, _ in self.identities
                if old.comment is not None
            ),
        ]

    def _grants(self) -> list[sql.SQL]:
        made = [grant_question(self.side, self.old.oid, self.relation.oid, self.target)]
        made += [
            grant_question(self.side, old.oid, new.oid, TableName.of(old)) for old, new in self.identities
        ]
        return made


def swap(shadow: Shadow, once: Once, result: Mapping[str, Any]) -> None:
    """Let the loaded table take its place, run *post_sql*, and commit.

    :param result: what a retry should return; stored before the lock, or readers would wait for Airflow.
    :raises UsageError: as :meth:`Shadow.take_place`.
    :raises RemoteError: what the server says; nothing is changed then.
    """
    once.keep(result)
    locked_at = shadow.take_place()
    if shadow.spec.post_sql:
        shadow.side.run(UserText(shadow.spec.post_sql, "post_sql"), "executing post_sql")
    once.commit(None)
    took_ms = 1000 * (time.monotonic() - locked_at)
    log.info("Swapped %s: it was locked for %.0f ms", shadow.old, took_ms)


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


def _same_position(old: OwnSequence, new: OwnSequence) -> sql.Composed:
    position = sql.SQL(
        "SELECT pg_catalog.setval({}::pg_catalog.oid::pg_catalog.regclass, last_value, is_called) FROM {}"
    )
    return position.format(sql.Literal(new.oid), old.identifier)


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
