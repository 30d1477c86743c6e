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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import RemoteError, TransientError
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
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
    grant_statements,
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
from airflow_dblink.core.transfer.plan import Plan
from airflow_dblink.core.transfer.swappable import demand_swappable

log = logging.getLogger(__name__)

_SQL = statements("swap.sql")
_NOT_LOCKED = ("55P03", "40P01")  # lock_timeout is over; a deadlock
_LOCK_S = 1  # readers queue behind the lock that is waited for: not for longer
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 8.0
_LOOK_S = 0.2
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
        """Read them from the catalogs.

        :param prefix: of the names.
        """
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

    :ivar work: the transfer into it.
    :ivar relation: the new table.
    :ivar old: the old table, which *name* means until the swap.
    :ivar identities: pairs of the old and the new sequence of each identity column.
    :ivar built: names of the indexes that are built by now, of those in *pieces*.
    """

    side: Side
    work: Plan
    relation: Relation
    old: Relation
    pieces: Pieces
    identities: tuple[tuple[OwnSequence, OwnSequence], ...]
    built: frozenset[str] = frozenset()

    @classmethod
    def create(cls, side: Side, work: Plan, xid: str) -> Shadow:
        """Create it in the open transaction, and try on it, while it is empty, what is built after the load.

        :param xid: of the transaction, for names that nobody else has.
        :raises UsageError: if the table can't be swapped any more.
        :raises RemoteError: what the server says, also of what can't be built.
        """
        # Read anew, since another swap may have been waited for.
        old = get_relation(side, work.spec.destination_table)
        if work.relation is None or old.columns != work.relation.columns:
            raise TransientError(f"{old} was altered while the transfer began", side.conn_id, "40001")
        demand_swappable(side, old)
        pieces = Pieces.of(side, old.oid, f"airflow_dblink_{xid}")
        short = old.name.encode()[:_NAME_BYTES].decode(errors="ignore")
        name = TableName(old.schema_name, f"{short}_airflow_dblink_{xid}")
        made: list[str | sql.Composable] = [
            create_like(old, name, pieces.place),
            *storage_statements(side, old.oid, name),
        ]
        run_all(side, made, "creating the new table")
        shadow = cls.of(side, work, old, name, pieces)
        shadow.try_building()
        return shadow

    @classmethod
    def of(cls, side: Side, work: Plan, old: Relation, name: TableName, pieces: Pieces) -> Shadow:
        """Return the new table, which has that *name*."""
        relation = get_relation(side, str(name))
        mine = {each.column_name: each for each in read_sequences(side, relation.oid) if each.is_identity}
        identities = tuple((each, mine[each.column_name]) for each in pieces.sequences if each.is_identity)
        new = replace(work, target=name.identifier, relation=relation)
        return cls(side, new, relation, old, pieces, identities)

    def try_building(self) -> None:
        """Give its sequences their types, and build on it, while it is empty, what is built after the load.

        :raises RemoteError: what the server says of what can't be built.
        """
        types = [each.give_type(to) for each, to in self.identities]
        run_all(self.side, types, "creating the new table")
        self.side.run("SAVEPOINT airflow_dblink_trial", "trying what is built after the load")
        self._build()
        # COPY takes FREEZE in the very subtransaction of CREATE TABLE only: hence the second statement.
        undo = "ROLLBACK TO SAVEPOINT airflow_dblink_trial; RELEASE SAVEPOINT airflow_dblink_trial"
        self.side.run(undo, "trying what is built after the load")

    @property
    def name(self) -> TableName:
        """The name it has until the swap."""
        return TableName(self.relation.schema_name, self.relation.name)

    @property
    def target(self) -> TableName:
        """The name it takes."""
        return TableName(self.old.schema_name, self.old.name)

    def finish(self) -> None:
        """Build what the loaded table lacks; only writers of tables that it refers to wait for that.

        :raises RemoteError: what the server says, as of rows that break a key.
        """
        self._build()
        if self.work.spec.reset_sequences:
            # The old table's sequences, by the new table's values: they outlive it, or are copied in the end.
            loaded = replace(self.old, name=self.relation.name)
            reset_sequences(self.side, loaded, {pair.destination for pair in self.work.pairs})
        self.side.run(sql.SQL("ANALYZE {}").format(self.name.identifier), "analyzing the new table")

    def _build(self) -> None:
        try:
            self._build_pieces()
        except RemoteError as error:
            message = error.message
            own = {name: index.name for name, index in self.pieces.indexes.items()}
            own |= {name: each.name for name, each in self.pieces.statistics.items()}
            for name, own_name in {**own, self.name.name: self.target.name}.items():
                message = message.replace(name, own_name)
            raise error.but(message=message) from None

    def _build_pieces(self) -> None:
        indexes = [(index, name) for name, index in self.pieces.indexes.items()]
        run_all(self.side, build_indexes(indexes, self.name, self.built), "building the indexes")
        made: list[sql.Composed] = []
        for name, each in self.pieces.statistics.items():
            made += each.build(self.name, name, keep_owner=True)
        run_all(self.side, made, "creating extended statistics")
        for key in self.pieces.keys:  # last: these lock the tables they refer to
            run_all(self.side, key.build(self.name), f"creating the foreign key {key.name}")

    def take_place(self) -> float:
        """Lock the old table, drop it, and give the new one its name; return when it was locked.

        The lock is asked for again and again, each time for a second, until *swap_timeout* is over.

        :returns: the value of ``time.monotonic``.
        :raises UsageError: if something has come to depend on the old table meanwhile.
        :raises TransientError: if the lock isn't had in time, naming who holds it; or if older transactions
            don't end within *old_snapshots_timeout*.
        """
        spec = self.work.spec
        # Under the lock that keeps the definition, these can't change any more; privileges can.
        kept = [
            *protection_statements(self.side, self.old.oid, self.target),
            *comment_statements(self.side, self.old.oid, self.target, is_namesake=True),
        ]
        before = self.side.ask(_SQL["setting"])[0]["lock_timeout"]
        after = [
            sql.SQL("RELEASE SAVEPOINT airflow_dblink_swap"),
            sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(before)),
        ]
        if spec.old_snapshots_timeout is not None:
            self._wait_for_snapshots(spec.old_snapshots_timeout.total_seconds())
        # A new view needs no lock that the first one keeps away; of one that is still newer DROP TABLE tells.
        demand_swappable(self.side, self.old)
        deadline, pause = time.monotonic() + spec.swap_timeout.total_seconds(), _FIRST_PAUSE_S
        while (locked_at := self._try_to_take_place([*kept, *after])) is None:
            holders = _names(self.side.ask(_SQL["holders"], {"oid": self.old.oid}))
            if time.monotonic() >= deadline:
                raise TransientError(
                    f"{self.old} could not be locked within swap_timeout; it is used by {holders}",
                    self.side.conn_id,
                    "55P03",
                    hint="nothing is changed; end that session, or give more time: swap_timeout=...",
                )
            log.info("%s is in use, the swap waits: %s", self.old, holders)
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        return locked_at

    def _try_to_take_place(self, kept: Sequence[str | sql.Composable]) -> float | None:
        """Take the place unless somebody uses the old table; return when it was locked."""
        lock = sql.SQL(
            "SAVEPOINT airflow_dblink_swap; SET LOCAL lock_timeout = '{}s';"
            " LOCK TABLE {} IN ACCESS EXCLUSIVE MODE"
        )
        try:
            self.side.run(lock.format(_LOCK_S, self.target.identifier), "locking the old table")
            locked_at = time.monotonic()
            run_all(self.side, [*self._exchange(), *self._grants(), *kept], "swapping the tables")
        except RemoteError as error:
            if error.sqlstate not in _NOT_LOCKED:
                raise
            self.side.run("ROLLBACK TO SAVEPOINT airflow_dblink_swap", "waiting for the lock")
            return None
        return locked_at

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

    def _grants(self) -> list[str]:
        made = grant_statements(self.side, self.old.oid, self.relation.oid, self.target)
        for old, new in self.identities:
            made += grant_statements(self.side, old.oid, new.oid, TableName(old.schema_name, old.name))
        return made

    def _wait_for_snapshots(self, timeout_s: float) -> None:
        """Wait for the transactions that hold a snapshot now; not for those that come later."""
        deadline = time.monotonic() + timeout_s
        waits_for: set[tuple[int, str]] | None = None
        while True:
            self.side.run("SELECT pg_catalog.pg_stat_clear_snapshot()", "looking for old snapshots")
            rows = {(row["pid"], row["since"]): row for row in self.side.ask(_SQL["snapshots"])}
            waits_for = {*rows} if waits_for is None else waits_for & {*rows}
            if not waits_for:
                return
            if time.monotonic() >= deadline:
                sessions = _names([rows[key] for key in sorted(waits_for)][:5])
                raise TransientError(
                    f"old_snapshots_timeout is over, and transactions older than the swap of {self.old} run:"
                    f" {sessions}",
                    self.side.conn_id,
                    "55P03",
                    hint="nothing is changed; end that session, or leave old_snapshots_timeout out: it would"
                    " then see the new rows",
                )
            self._sleep(_LOOK_S)

    def _sleep(self, seconds: float) -> None:
        # On the server, since the session must not be idle in its transaction for long.
        sleep = sql.SQL("SELECT pg_catalog.pg_sleep({})").format(sql.Literal(seconds))
        self.side.run(sleep, "waiting for the lock")


def swap(shadow: Shadow, once: Once, result: Mapping[str, Any]) -> None:
    """Let the loaded table take its place, run *post_sql*, and commit.

    :param result: what a retry should return; stored before the lock, or readers would wait for Airflow.
    :raises UsageError: as :meth:`Shadow.take_place`.
    :raises RemoteError: what the server says; nothing is changed then.
    """
    once.keep(result)
    locked_at = shadow.take_place()
    if shadow.work.spec.post_sql:
        shadow.side.run(UserText(shadow.work.spec.post_sql, "post_sql"), "executing post_sql")
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


def _names(rows: Sequence[dict[str, Any]]) -> str:
    """Return the sessions as errors name them: no query's text."""
    named = [
        f"pid {row['pid']} ({row['application_name'] or ''!r}, {row['state']}, {row['seconds']} s)"
        if row["pid"] is not None
        else "a prepared transaction"
        for row in rows
    ]
    return ", ".join(named) or "nobody any more"
