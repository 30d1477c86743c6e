"""What loads have left: tables of runs that failed and were not cleared, and keepers that still live."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import DblinkError, RemoteError, UsageError
from airflow_dblink.core.parts.keeper import Keeper, keeper_of, release
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Head, Ledger
from airflow_dblink.core.server.side import Side, in_transaction
from airflow_dblink.core.sql.named import statements

_SQL = statements("parts_left.sql")
_LOOKING = "looking for loads"
_REMOVING = "removing a load"
_NAMED = 5


@dataclass(frozen=True)
class LoadLeft:
    """The tables of a load in the destination's database.

    :ivar table: the destination, as SQL names it; ``None`` if it is gone, or the ledger can't be read.
    :ivar owner: the role that owns the load's tables.
    :ivar is_ours: whether that is the session's role. Other roles' ledgers aren't read.
    :ivar head: the facts of the load; ``None`` if it can't go on, since one of its tables is gone.
    :ivar done: how many parts are done.
    :ivar names: of the load's tables.
    :ivar bytes: size of these tables, with indexes and TOAST.
    :ivar sessions: how many other sessions hold a lock on them.
    """

    key: LoadKey
    schema_name: str
    owner: str
    is_ours: bool
    names: Sequence[str]
    bytes: int
    sessions: int
    table: str | None = None
    head: Head | None = None
    done: int | None = None

    @property
    def taken_at(self) -> datetime | None:
        """When the load's snapshot was taken."""
        return None if self.head is None else datetime.fromtimestamp(self.head.taken_at, UTC)

    def is_older(self, than: timedelta) -> bool:
        """Return whether the load began that long ago, or can't go on."""
        return self.taken_at is None or not than or datetime.now(UTC) - self.taken_at > than


@dataclass(frozen=True)
class KeeperLeft:
    """A keeper in the source's database.

    :ivar is_used: whether a part uses its snapshot.
    """

    key: LoadKey
    keeper: Keeper
    is_used: bool

    @property
    def taken_at(self) -> datetime:
        """When the snapshot was taken."""
        return datetime.fromtimestamp(self.keeper.taken_at, UTC)


def loads_left(side: Side) -> list[LoadLeft]:
    """Return the loads whose tables are in this database.

    :raises RemoteError: the server's errors.
    """
    return [_load(side, row) for row in side.ask(_SQL["tables"], action=_LOOKING)]


def _load(side: Side, row: dict[str, Any]) -> LoadLeft:
    key, schema_name = LoadKey(row.pop("key")), row.pop("schema_name")
    load = LoadLeft(key, schema_name, **row)
    if not load.is_ours:
        return load
    ledger = Ledger(key, schema_name)
    try:
        with in_transaction(side, {}, _LOOKING):
            head = ledger.head(side)
            done, _ = ledger.done(side)
            named = side.ask(_SQL["table_name"], {"oid": head.destination}, _LOOKING)
    except UsageError:  # somebody has dropped or changed one of them
        return load
    table = named[0]["name"] if named else None
    return LoadLeft(key, schema_name, **row, table=table, head=head, done=done.parts)


def keepers_left(side: Side) -> list[KeeperLeft]:
    """Return the keepers of this database that belong to the session's role.

    :raises RemoteError: the server's errors.
    """
    found = []
    for row in side.ask(_SQL["keepers"], action=_LOOKING):
        if (match := keeper_of(row["pid"], row["name"])) is not None:
            found.append(KeeperLeft(*match, is_used=row["is_used"]))
    return found


def prune(side: Side, older_than: timedelta) -> tuple[int, int]:
    """Drop the tables of loads that began longer ago, and end the keepers that are older and not used.

    A load that can't go on, since one of its tables is gone, goes whatever its age. Other roles' stay.

    :returns: how many loads were removed, and how many keepers were ended.
    :raises RemoteError: if some can't be removed, since sessions use them or something depends on them; the
        others are removed all the same. The message names them.
    """
    pruned, failures = 0, dict[str, DblinkError]()
    for load in loads_left(side):
        if not load.is_ours or not load.is_older(older_than):
            continue
        try:
            _drop(side, load)
            pruned += 1
        except DblinkError as error:
            if side.connection.closed:
                raise
            failures[f"{load.schema_name}.{load.key.shadow}"] = error
    ended = sum(
        release(side, left.key)
        for left in keepers_left(side)
        if not left.is_used and (not older_than or datetime.now(UTC) - left.taken_at > older_than)
    )
    if failures:
        raise _not_pruned(side, pruned, failures)
    return pruned, ended


def _drop(side: Side, load: LoadLeft) -> None:
    tables = sql.SQL(", ").join(sql.Identifier(load.schema_name, name) for name in load.names)
    with in_transaction(side, {}, _REMOVING):
        # Nobody is waited for: who uses it still loads.
        side.run(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(tables), _REMOVING)
        now = None
        with suppress(UsageError):
            now = Ledger(load.key, load.schema_name).head(side)
        if now != load.head:
            raise UsageError("it was planned anew meanwhile", side.conn_id)
        side.run(sql.SQL("DROP TABLE {}").format(tables), _REMOVING)


def _not_pruned(side: Side, pruned: int, failures: dict[str, DblinkError]) -> RemoteError:
    why = {
        name: ": ".join([error.message, *(error.detail or "").splitlines()[:1]])
        for name, error in failures.items()
    }
    named = [f"{name} ({text})" for name, text in [*why.items()][:_NAMED]]
    more = f", and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
    return RemoteError(
        f"{pruned} loads were removed, but {len(failures)} could not be: {', '.join(named)}{more}",
        side.conn_id,
        next(iter(failures.values())).sqlstate,
        hint="a lock that is not available belongs to a session that still uses the load",
    )
