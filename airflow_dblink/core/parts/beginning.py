"""Beginning a load in parts: a snapshot that is kept, shadows and ledgers; no row moves yet."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import (
    DblinkError,
    LoadLostError,
    NoLoadError,
    RemoteError,
    TransientError,
    UsageError,
)
from airflow_dblink.core.parts import keeper as keepers
from airflow_dblink.core.parts import shadow as shadows
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Head, Ledger
from airflow_dblink.core.parts.load import Load, LoadSpec, Settings, TableLoad, route_of, work_of
from airflow_dblink.core.parts.ranges import SAME_EACH_TIME, Part, Ranges, cut_by_values, lockable
from airflow_dblink.core.parts.slices import Leaf, Piece, cut, leaves_of
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.side import Side, demand, in_transaction, set_local
from airflow_dblink.core.sets.choose import Pair
from airflow_dblink.core.sets.problems import for_each
from airflow_dblink.core.tables.catalog import get_relation
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.pieces import TableName
from airflow_dblink.core.tables.source import describe_source, source_query
from airflow_dblink.core.transfer.plan import Plan, plan
from airflow_dblink.core.transfer.swap import Pieces, Shadow, Together, try_building
from airflow_dblink.core.transfer.swappable import demand_swappable

log = logging.getLogger(__name__)

_NOT_ALLOWED = "42501"
_ENDS_S = 10.0  # a session that was told to end is seen for some milliseconds


@dataclass(frozen=True)
class Begun:
    """A table whose load has begun."""

    table: TableLoad
    ledger: Ledger
    head: Head


@dataclass(frozen=True)
class _Place:
    """Where a table is loaded."""

    table: TableLoad
    target: Relation
    ledger: Ledger

    @property
    def name(self) -> str:
        return self.table.name


@dataclass(frozen=True)
class _Planned:
    """How a table is loaded."""

    place: _Place
    definition: str
    pieces: Pieces
    source: Relation | None
    leaves: list[Leaf]
    ranges: Ranges | None
    work: Plan
    route: str

    @property
    def bytes(self) -> int:
        """About how large the source is."""
        return self.ranges.bytes if self.ranges else sum(leaf.bytes for leaf in self.leaves)

    @property
    def columns(self) -> list[str]:
        """Names of the destination's columns that rows are copied into."""
        return [pair.destination for pair in self.work.pairs]


def choose_tables(
    source: Side, key: LoadKey, choose: Callable[[], list[Pair]], settings: Settings, *, is_anew: bool
) -> list[Pair]:
    """Return a set's tables: by the snapshot that an earlier try has taken, if it is still kept.

    :param key: the keeper's.
    :param choose: finds them in the open transaction.
    :raises UsageError: as *choose* does.
    """
    action = "looking for the set's tables"
    keeper = None if is_anew else keepers.find(source, key)
    if keeper is None:
        with in_transaction(source, settings, action):
            return choose()
    source.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", action)
    keepers.use(source, key, keeper.snapshot)
    set_local(source, settings)
    found = choose()
    source.run("COMMIT", action)
    return found


def begin(
    source: Side,
    destination: Side,
    connect: Callable[[], LinkConnection],
    key: LoadKey,
    load: Load,
    choose: Callable[[], Sequence[LoadSpec]] | None = None,
    *,
    try_number: int,
    run: str,
    is_anew: bool,
    source_settings: Settings,
    destination_settings: Settings,
) -> list[Begun]:
    """Begin the load, or find what an earlier try has begun: keeper, shadows and ledgers. No row moves.

    :param connect: opens another session on the source, for the keeper.
    :param key: the keeper's.
    :param choose: finds the tables of a set, in the open transaction of the source. They are looked for once
        more when they are locked.
    :param try_number: higher than that of every earlier try.
    :param run: what tells the tries of this run from those of another one with the same key, whose try
        numbers are nothing to it.
    :param is_anew: whether the user has cleared the task since: whatever is there is removed.
    :param source_settings: run-time parameters, local to the transaction.
    :param destination_settings: the same for the destination.
    :raises UsageError: what can't work; nothing of the load is left then.
    :raises RemoteError: what a server says.
    """
    load.tables[0].spec.check()
    with in_transaction(destination, destination_settings, "looking for an earlier load"):
        places = _places(destination, load)
        for place in places:
            place.ledger.demand_not_superseded(destination, try_number, run)
        begun = None if is_anew else _begun(source, destination, key, places)
    if begun is not None:
        log.info("An earlier try has begun load %s: it goes on.", key.text)
        return begun
    if is_anew:
        _end_keeper(source, key)
    keepers.warn_of_standby(source)
    keeper, is_own = _keeper(source, connect, key, load, source_settings)
    try:
        source.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "beginning the source transaction")
        keepers.use(source, key, keeper.snapshot)
        set_local(source, {**SAME_EACH_TIME, **source_settings})
        if choose is not None and choose() != [table.spec for table in load.tables]:
            raise TransientError("the tables of the set changed meanwhile", source.conn_id, "40001")
        # This may take long, so no transaction is open on the destination.
        ranges = _ranges(source, destination, load.tables[0].spec, destination_settings)
        destination.run("BEGIN ISOLATION LEVEL READ COMMITTED", "beginning the load")
        set_local(destination, destination_settings)
        begun = _make(source, destination, places, ranges, key, keeper, try_number, run)
        destination.run("COMMIT", "beginning the load")
        source.run("COMMIT", "ending the source transaction")
    except DblinkError as error:
        for side in (source, destination):
            with suppress(DblinkError):
                side.run("ROLLBACK", "giving up the load")
        with suppress(DblinkError):
            if is_own and not _is_planned(destination, places, keeper.snapshot):
                keepers.release(source, key)
        if is_own and isinstance(error, LoadLostError):  # the next try takes a new snapshot
            raise TransientError(error.message, error.connname, error.sqlstate) from None
        raise
    return begun


def _places(destination: Side, load: Load) -> list[_Place]:
    """Return where the tables are loaded, in the open transaction.

    :raises UsageError: names the tables that can't be swapped.
    """

    def place(table: TableLoad) -> _Place:
        return _Place(table, *table.find(destination))

    places = for_each(load.tables, place, lambda table: table.name)
    together = [place.target.oid for place in places]
    for_each(
        places, lambda place: demand_swappable(destination, place.target, together), lambda place: place.name
    )
    return places


def _begun(
    source: Side, destination: Side, keeper_key: LoadKey, places: Sequence[_Place]
) -> list[Begun] | None:
    """Return the facts of what an earlier try has begun, if it is whole and can go on."""
    try:
        begun = [Begun(place.table, place.ledger, place.ledger.head(destination)) for place in places]
    except NoLoadError:
        return None
    keeper = keepers.find(source, keeper_key)
    goes_on = keeper is not None and all(
        (each.head.snapshot, each.head.destination) == (keeper.snapshot, place.target.oid)
        for each, place in zip(begun, places, strict=True)
    )
    return begun if goes_on else None


def _is_planned(destination: Side, places: Sequence[_Place], snapshot: str) -> bool:
    """Return whether another try has planned the load meanwhile, with the keeper of this one."""
    try:
        return places[0].ledger.head(destination).snapshot == snapshot
    except NoLoadError:
        return False


def _keeper(
    source: Side, connect: Callable[[], LinkConnection], key: LoadKey, load: Load, settings: Settings
) -> tuple[keepers.Keeper, bool]:
    """Return the keeper that another try has begun, or a new one, and whether it is this try's own."""
    pid = None
    if (keeper := keepers.find(source, key)) is None:
        spec = load.tables[0].spec
        with in_transaction(source, settings, "looking for the source table"):
            found = for_each(load.tables, lambda table: _lockable(source, table), lambda table: table.name)
        tables = [name for names in found for name in names] if spec.lock else []
        connection = connect()
        pid = connection.info.backend_pid
        times = {"deadline_s": spec.deadline_s, "idle_s": spec.idle_s}
        try:
            keepers.begin(connection, source.conn_id, key, tables, **times)
        except RemoteError as error:
            if error.sqlstate != _NOT_ALLOWED:  # else the owner of a view may not lock what is behind it
                raise
            hint = "without the lock (lock=False) the load fails if somebody rewrites a table meanwhile"
            raise UsageError(error.message, source.conn_id, error.sqlstate, hint=hint) from None
        keeper = keepers.find(source, key)
    if keeper is None:
        raise TransientError(
            "the keeper of the snapshot has ended at once",
            source.conn_id,
            hint="is there a pooler that ends sessions whose client has left? direct_host and direct_port of"
            " the connection lead around it",
        )
    log.info("%s: session %s keeps the snapshot of %s", source.conn_id, keeper.pid, keeper.taken)
    return keeper, keeper.pid == pid


def _lockable(source: Side, table: TableLoad) -> list[sql.Identifier]:
    """Return what is locked while the snapshot is kept, so that nobody rewrites what is read."""
    spec = table.spec
    relation = get_relation(source, spec.source_table) if spec.source_table else None
    if relation is None or spec.part_column is not None:
        query = source_query(source, relation, spec.source_sql, spec.source_parameters)
        columns = describe_source(source, query, spec.source_sql, spec.source_parameters)
        read = relation.identifier if relation else sql.SQL("({}\n)").format(query)
        return lockable(source, read, columns, str(spec.part_column))
    demand(relation.may_select, source, f"permission denied: no SELECT on {relation}")
    return [] if relation.kind == "m" else [relation.identifier]  # LOCK TABLE takes no materialized view


def _ranges(source: Side, destination: Side, spec: LoadSpec, settings: Settings) -> Ranges | None:
    """Return the ranges that cut the source, if a column cuts it."""
    if spec.part_column is None:
        return None
    with in_transaction(destination, settings, "looking for the destination table"):
        work = plan(source, destination, spec.of(spec.destination_table))
    return cut_by_values(
        source,
        work.read,
        spec.part_column,
        [pair.source for pair in work.pairs],
        part_bytes=spec.part_bytes,
        min_parts=spec.min_parts,
        max_parts=spec.max_parts,
    )


def _end_keeper(source: Side, key: LoadKey) -> None:
    keepers.release(source, key)
    deadline = time.monotonic() + _ENDS_S
    while keepers.find(source, key) is not None:
        if time.monotonic() > deadline:
            raise TransientError("the keeper of an earlier load doesn't end", source.conn_id)
        time.sleep(0.05)


def _make(
    source: Side,
    destination: Side,
    places: Sequence[_Place],
    ranges: Ranges | None,
    key: LoadKey,
    keeper: keepers.Keeper,
    try_number: int,
    run: str,
) -> list[Begun]:
    """Make shadows and ledgers in the open transaction, in place of those that are there."""
    for place in places:
        place.ledger.drop(destination, try_number, run)
    planned = for_each(
        places, lambda place: _create(source, destination, place, ranges), lambda place: place.name
    )
    together: Together = {
        place.target.oid: (place.ledger.shadow_name, TableName.of(place.target)) for place in places
    }
    try_building(
        [
            Shadow.of(
                destination,
                each.work.spec,
                each.columns,
                each.place.target,
                each.place.ledger.shadow_name,
                each.pieces,
                together,
            )
            for each in planned
        ]
    )
    spec = places[0].table.spec
    parts = _cut(planned, spec)
    begun = []
    for each, units in zip(planned, parts, strict=True):
        facts: dict[str, Any] = {
            "snapshot": keeper.snapshot,
            "taken_at": keeper.taken_at,
            "planned_by": try_number,
            "run": run,
            "keeper": key.text,
            "units": [unit for unit, _ in units],
            "rows": each.ranges and each.ranges.rows,
            "files": [[*pair] for pair in each.ranges.files.items()] if each.ranges else [],
        }
        begun.append(_write(destination, each, facts, [part for _, part in units]))
    size = sum(each.bytes for each in planned)
    what = planned[0].place.name if len(planned) == 1 else f"{len(planned)} tables"
    count = len({unit for units in parts for unit, _ in units})
    log.info("%s: %s, %.1f MB, in %s parts", source.conn_id, what, size / 1e6, count)
    return begun


def _create(source: Side, destination: Side, place: _Place, ranges: Ranges | None) -> _Planned:
    """Create the shadow of a table, and look how its rows travel."""
    definition = shadows.definition_of(destination, place.target.oid)
    pieces = shadows.create(destination, place.ledger, place.target)
    spec = place.table.spec
    leaves: list[Leaf] = []
    table = get_relation(source, spec.source_table) if spec.source_table else None
    if table is not None and ranges is None:
        leaves = leaves_of(source, table)
    work = work_of(source, destination, place.ledger, spec)
    return _Planned(place, definition, pieces, table, leaves, ranges, work, route_of(source, work))


def _cut(planned: Sequence[_Planned], spec: LoadSpec) -> list[list[tuple[int, Part]]]:
    """Return the parts of each table, and which unit, the work of one task, each belongs to."""
    if (ranges := planned[0].ranges) is not None:
        return [[(unit, (each,)) for unit, each in enumerate(ranges.parts, 1)]]
    owner = {leaf.oid: i for i, each in enumerate(planned) for leaf in each.leaves}
    leaves = [leaf for each in planned for leaf in each.leaves]
    if twice := [str(leaf) for leaf, count in Counter(leaves).items() if count > 1]:
        raise UsageError(
            f"rows would come twice: {', '.join(sorted(twice))} belongs to several tables of the set",
            hint="a table is read with its children: load these tables apart from each other",
        )
    cuts = cut(leaves, part_bytes=spec.part_bytes, min_parts=spec.min_parts, max_parts=spec.max_parts)
    found: list[list[tuple[int, Part]]] = [[] for _ in planned]
    for unit, pieces in enumerate(cuts, 1):
        for i, own in groupby(pieces, lambda piece: owner[piece.leaf]):
            found[i].append((unit, tuple(own)))
    for each, parts in zip(planned, found, strict=True):
        if not parts:  # no table that could hold rows: without any part Airflow skips the swap
            parts.append((1, (Piece(each.source.oid if each.source else 0, 0),)))
    return found


def _write(destination: Side, planned: _Planned, facts: dict[str, Any], parts: Sequence[Part]) -> Begun:
    """Create a table's ledger, and hide it and the shadow from others."""
    place = planned.place
    facts |= {
        "shadow": place.ledger.found(destination)[place.table.key.shadow],
        "destination": place.target.oid,
        "definition": planned.definition,
        "route": planned.route,
        "columns": planned.columns,
    }
    place.ledger.create(destination, facts, parts)
    shadows.hide(destination, place.ledger, place.target)
    return Begun(place.table, place.ledger, Head.of({**facts, "parts": len(parts)}))
