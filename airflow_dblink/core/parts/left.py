"""What loads have left: tables of runs that failed and were not cleared, and keepers that still live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import DblinkError, NoLoadError, RemoteError, TransientError
from airflow_dblink.core.parts.keeper import Keeper, keeper_of, release
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Head, Ledger, end_holders
from airflow_dblink.core.server.side import Side, in_transaction
from airflow_dblink.core.sql.named import statements

_SQL = statements("parts_left.sql")
_LOOKING = "looking for loads"
_REMOVING = "removing a load"
# A session that uses a load is waited for no longer. Autovacuum makes way after deadlock_timeout, mostly 1 s.
_SETTINGS = {"lock_timeout": "3s"}
_NAMED = 5
_GONE = "42P01"
_IN_USE = "55P03"


@dataclass(frozen=True)
class LoadLeft:
    """The tables of a load in the destination's database.

    :ivar owner: the role that owns them.
    :ivar is_ours: whether that is the session's role. Other roles' ledgers aren't read.
    :ivar names: of the tables.
    :ivar bytes: their size, with indexes and TOAST; ``None`` while the swap has locked them.
    :ivar sessions: how many other sessions hold a lock on them.
    :ivar head: the facts of the load; ``None`` if the ledger isn't read, is gone, or says none.
    :ivar table: the destination, as SQL names it; ``None`` without *head*, or if it is gone.
    :ivar done: how many parts are done; ``None`` without *head*.
    :ivar is_lost: whether one of the tables is gone, so that the load can't go on.
    :ivar problem: why the ledger can't be read.
    """

    key: LoadKey
    schema_name: str
    owner: str
    is_ours: bool
    names: Sequence[str]
    bytes: int | None
    sessions: int
    head: Head | None = None
    table: str | None = None
    done: int | None = None
    is_lost: bool = False
    problem: str | None = None

    @property
    def name(self) -> str:
        """The table that is loaded, for errors."""
        return f"{self.schema_name}.{self.key.shadow}"

    @property
    def taken_at(self) -> datetime | None:
        """When the load's snapshot was taken."""
        return None if self.head is None else datetime.fromtimestamp(self.head.taken_at, UTC)

    def may_go(self, older_than: timedelta) -> bool:
        """Return whether the load is ours, and began that long ago. The age of a lost one isn't known."""
        if self.taken_at is None:
            return self.is_lost and not older_than
        return self.is_ours and _is_older(self.taken_at, older_than)


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


def _is_older(moment: datetime, than: timedelta) -> bool:
    return not than or datetime.now(UTC) - moment > than


def loads_left(side: Side) -> list[LoadLeft]:
    """Return the loads whose tables are in this database; a table that is locked is waited for some seconds.

    :raises RemoteError: the server's errors.
    """
    return [_load(side, row) for row in side.ask(_SQL["tables"], action=_LOOKING)]


def _load(side: Side, row: dict[str, Any]) -> LoadLeft:
    load = LoadLeft(LoadKey(row.pop("key")), **row)
    if not load.is_ours:
        return load
    ledger = Ledger(load.key, load.schema_name)
    try:
        with in_transaction(side, _SETTINGS, _LOOKING):
            head = ledger.head(side)
            done, _ = ledger.done(side)
            named = side.ask(_SQL["table_name"], {"oid": head.destination}, _LOOKING)
    except NoLoadError:
        return replace(load, is_lost=True)
    except DblinkError as error:
        if side.connection.closed:
            raise
        return replace(load, problem=error.message)
    return replace(load, head=head, table=named[0]["name"] if named else None, done=done.parts)


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

    Other roles' loads stay, and so do those whose ledger can't be read. A load of which one table is gone has
    no age: it only goes if *older_than* is 0.

    :returns: how many loads were removed, and how many keepers were ended.
    :raises RemoteError: if some can't be removed, since sessions use them or something depends on them; the
        others are removed all the same. The message names them.
    """
    old = [left.key for left in keepers_left(side) if _is_older(left.taken_at, older_than)]
    ended = sum(release(side, key, if_unused=True) for key in old)
    old_loads = [load for load in loads_left(side) if load.may_go(older_than)]
    pruned, failures = _remove(side, old_loads, lambda load: _drop(side, load))
    if failures:
        raise _not_pruned(side, pruned, ended, failures)
    return pruned, ended


def drop_load(side: Side, keeper: LoadKey, demand_wanted: Callable[[], None], *, is_set: bool) -> int:
    """Drop the tables of this role's load that has this *keeper*; sessions that use them are ended.

    :param keeper: its key, which is also that of the tables if there is only one table.
    :param demand_wanted: raises if the caller is no longer wanted: the load may be planned anew by now.
    :returns: how many tables were being loaded.
    :raises RemoteError: what the server says, as of a view that depends on a table; the others are dropped.
        Also of a ledger that is locked, so that nobody knows whether it is one of the set's.
    """

    def drop(load: LoadLeft) -> None:
        demand_wanted()
        for oid in Ledger(load.key, load.schema_name).found(side).values():
            end_holders(side, oid, readers=True)
        with _locked(side, load):
            demand_wanted()

    ours = [load for load in loads_left(side) if load.is_ours]
    its = [load for load in ours if load.key == keeper or (load.head and load.head.keeper == keeper)]
    dropped, failures = _remove(side, its, drop)
    if is_set:
        unread = [load for load in ours if load.problem]
        failures |= {load.name: TransientError(str(load.problem), side.conn_id) for load in unread}
    if failures:
        raise _not_pruned(side, dropped, 0, failures)
    return dropped


def _remove(
    side: Side, loads: Sequence[LoadLeft], drop: Callable[[LoadLeft], None]
) -> tuple[int, dict[str, DblinkError]]:
    """Drop the *loads*, also after one that fails; return how many went, and the errors of the others."""
    dropped, failures = 0, dict[str, DblinkError]()
    for load in loads:
        try:
            drop(load)
            dropped += 1
        except DblinkError as error:
            if side.connection.closed:
                raise
            if error.sqlstate != _GONE:  # else it was swapped, or dropped, meanwhile
                failures[load.name] = error
    return dropped, failures


def _drop(side: Side, load: LoadLeft) -> None:
    with _locked(side, load):
        now = None
        with suppress(NoLoadError):
            now = Ledger(load.key, load.schema_name).head(side)
        if now != load.head:
            raise TransientError("it was planned anew meanwhile", side.conn_id)


@contextmanager
def _locked(side: Side, load: LoadLeft) -> Iterator[None]:
    """Lock the tables of a load, and drop them in the end unless an error is raised."""
    tables = sql.SQL(", ").join(sql.Identifier(load.schema_name, name) for name in load.names)
    with in_transaction(side, _SETTINGS, _REMOVING):
        side.run(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(tables), _REMOVING)
        yield
        side.run(sql.SQL("DROP TABLE {}").format(tables), _REMOVING)


def _not_pruned(side: Side, pruned: int, ended: int, failures: Mapping[str, DblinkError]) -> RemoteError:
    named = [f"{name} ({_why(error)})" for name, error in [*failures.items()][:_NAMED]]
    more = f", and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
    states = [error.sqlstate for error in failures.values()]
    return RemoteError(
        f"loads removed: {pruned}, snapshots ended: {ended}, could not be removed: {len(failures)}:"
        f" {', '.join(named)}{more}",
        side.conn_id,
        states[0],
        hint="a session still uses a load that can't be locked" if _IN_USE in states else None,
    )


def _why(error: DblinkError) -> str:
    return ": ".join([error.message, *(error.detail or "").splitlines()[:1]])
