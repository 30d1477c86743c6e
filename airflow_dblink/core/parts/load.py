"""A load in parts: what is asked for, and its beginning."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import DblinkError, NoLoadError, TransientError, UsageError
from airflow_dblink.core.parts import keeper as keepers
from airflow_dblink.core.parts import shadow as shadows
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Head, Ledger
from airflow_dblink.core.parts.slices import MAX_PARTS, PART_BYTES, Piece, cut, leaves_of
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.side import Side, in_transaction, set_local
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.catalog import describe, get_relation
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.transfer.plan import Columns, Plan, Spec, plan
from airflow_dblink.core.transfer.swap import Shadow
from airflow_dblink.core.transfer.swappable import demand_swappable

log = logging.getLogger(__name__)

Settings = Mapping[str, str]

DEADLINE = timedelta(hours=24)
IDLE = timedelta(minutes=30)

_SQL = statements("parts_ledger.sql")
_ENDS_S = 10.0  # a session that was told to end is seen for some milliseconds
_MOST_PARTS = 1000  # Airflow maps over 1024 values at most, by default


@dataclass(frozen=True)
class LoadSpec:
    """What is to be loaded, and how it is cut.

    :ivar part_bytes: how large a part is, TOAST included.
    :ivar min_parts: so many parts at least, so that workers end together; small tables have fewer, and
        *max_parts* is the limit.
    :ivar max_parts: so many parts at most.
    :ivar lock: lock the source table in ACCESS SHARE mode while the snapshot is kept: whoever would rewrite
        it waits. Without it such a rewrite is found, and the load fails.
    :ivar deadline_s: the most that the snapshot is kept, in seconds.
    :ivar idle_s: how long it is kept while no part uses it, in seconds.
    """

    destination_table: str
    source_table: str
    columns: Columns | None = None
    part_bytes: int = PART_BYTES
    min_parts: int = 1
    max_parts: int = MAX_PARTS
    lock: bool = True
    deadline_s: float = DEADLINE.total_seconds()
    idle_s: float = IDLE.total_seconds()

    def check(self) -> None:
        """Refuse numbers that make no sense.

        :raises UsageError: names the argument.
        """
        for name in ("part_bytes", "min_parts", "max_parts"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.max_parts > _MOST_PARTS:
            raise UsageError(f"max_parts must be at most {_MOST_PARTS}, got {self.max_parts}")
        for name in ("deadline_s", "idle_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name.removesuffix('_s')} must be longer than nothing")

    def into(self, ledger: Ledger, destination: Side) -> Spec:
        """Return the transfer into the load's shadow."""
        return Spec(
            destination_table=ledger.shadow.as_string(destination.connection),
            source_table=self.source_table,
            columns=self.columns,
        )


def key_of(destination: Side, spec: LoadSpec, settings: Settings, names: Mapping[str, Any]) -> LoadKey:
    """Return the key for the load that *names*, JSON-able, tell from others into the same table.

    Its keeper is on the source, which may have many readers: staging and production may load from it, in runs
    that have the same names.

    :param settings: run-time parameters of the destination, local to the transaction.
    :raises UsageError: if there is no such table.
    """
    with in_transaction(destination, settings, "looking for the destination table"):
        target = get_relation(destination, spec.destination_table)
        (place,) = destination.ask(_SQL["place"])
    return LoadKey.of({**names, **place, "table": [target.schema_name, target.name]})


def begin(
    source: Side,
    destination: Side,
    connect: Callable[[], LinkConnection],
    key: LoadKey,
    spec: LoadSpec,
    *,
    try_number: int,
    run: str,
    is_anew: bool,
    source_settings: Settings,
    destination_settings: Settings,
) -> tuple[Ledger, Head]:
    """Begin the load, or find what an earlier try has begun: keeper, shadow and ledger. No row moves.

    :param connect: opens another session on the source, for the keeper.
    :param try_number: higher than that of every earlier try.
    :param run: what tells the tries of this run from those of another one with the same key, whose try
        numbers are nothing to it.
    :param is_anew: whether the user has cleared the task since: whatever is there is removed.
    :param source_settings: run-time parameters, local to the transaction.
    :param destination_settings: the same for the destination.
    :raises UsageError: what can't work; nothing of the load is left then.
    :raises RemoteError: what a server says.
    """
    spec.check()
    with in_transaction(destination, destination_settings, "looking for an earlier load"):
        target = get_relation(destination, spec.destination_table)
        demand_swappable(destination, target)
        ledger = Ledger(key, target.schema_name)
        ledger.demand_not_superseded(destination, try_number, run)
        head = None if is_anew else _begun(source, destination, ledger, target)
    if head is not None:
        log.info("An earlier try has begun load %s: it goes on.", key.text)
        return ledger, head
    if is_anew:
        _end_keeper(source, key)
    keepers.warn_of_standby(source)
    keeper, is_own = _keeper(source, connect, key, spec, source_settings)
    try:
        source.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "beginning the source transaction")
        keepers.use(source, key, keeper.snapshot)
        set_local(source, source_settings)
        destination.run("BEGIN ISOLATION LEVEL READ COMMITTED", "beginning the load")
        set_local(destination, destination_settings)
        head = _make(source, destination, ledger, target, spec, keeper, try_number, run)
        destination.run("COMMIT", "beginning the load")
        source.run("COMMIT", "ending the source transaction")
    except DblinkError:
        for side in (source, destination):
            with suppress(DblinkError):
                side.run("ROLLBACK", "giving up the load")
        with suppress(DblinkError):
            if is_own and not _is_planned(destination, ledger, keeper.snapshot):
                keepers.release(source, key)
        raise
    return ledger, head


def _begun(source: Side, destination: Side, ledger: Ledger, target: Relation) -> Head | None:
    """Return the facts of what an earlier try has begun, if it is whole and can go on."""
    try:
        head = ledger.head(destination)
    except NoLoadError:
        return None
    keeper = keepers.find(source, ledger.key)
    goes_on = keeper is not None and keeper.snapshot == head.snapshot and head.destination == target.oid
    return head if goes_on else None


def _is_planned(destination: Side, ledger: Ledger, snapshot: str) -> bool:
    """Return whether another try has planned the load meanwhile, with the keeper of this one."""
    try:
        return ledger.head(destination).snapshot == snapshot
    except NoLoadError:
        return False


def _keeper(
    source: Side,
    connect: Callable[[], LinkConnection],
    key: LoadKey,
    spec: LoadSpec,
    settings: Settings,
) -> tuple[keepers.Keeper, bool]:
    """Return the keeper that another try has begun, or a new one, and whether it is this try's own."""
    pid = None
    if (keeper := keepers.find(source, key)) is None:
        with in_transaction(source, settings, "looking for the source table"):
            table = get_relation(source, spec.source_table)
        tables = [table.identifier] if spec.lock else []
        connection = connect()
        pid = connection.info.backend_pid
        keepers.begin(connection, source.conn_id, key, tables, deadline_s=spec.deadline_s, idle_s=spec.idle_s)
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
    ledger: Ledger,
    target: Relation,
    spec: LoadSpec,
    keeper: keepers.Keeper,
    try_number: int,
    run: str,
) -> Head:
    """Make shadow and ledger in the open transaction, in place of those that are there."""
    ledger.drop(destination, try_number, run)
    definition = shadows.definition_of(destination, target.oid)
    pieces = shadows.create(destination, ledger, target)
    table = get_relation(source, spec.source_table)
    leaves = leaves_of(source, table)
    work = work_of(source, destination, ledger, spec)
    columns = [pair.destination for pair in work.pairs]
    Shadow.of(destination, work.spec, columns, target, ledger.shadow_name, pieces).try_building()
    parts = cut(leaves, part_bytes=spec.part_bytes, min_parts=spec.min_parts, max_parts=spec.max_parts)
    if not parts:  # no table that could hold rows: without any part Airflow skips the swap
        parts = [(Piece(table.oid, 0),)]
    shadow = ledger.found(destination)[ledger.key.shadow]
    facts: dict[str, Any] = {
        "snapshot": keeper.snapshot,
        "taken_at": keeper.taken_at,
        "shadow": shadow,
        "destination": target.oid,
        "planned_by": try_number,
        "run": run,
        "definition": definition,
        "route": route_of(source, work),
        "columns": columns,
    }
    ledger.create(destination, facts, parts)
    shadows.hide(destination, ledger, target)
    size = sum(leaf.bytes for leaf in leaves)
    log.info("%s: %s, %.1f MB, in %s parts", source.conn_id, table, size / 1e6, len(parts))
    return Head.of({**facts, "parts": len(parts)})


def work_of(source: Side, destination: Side, ledger: Ledger, spec: LoadSpec) -> Plan:
    """Return how rows travel from the source into the shadow, as the catalogs say now."""
    return plan(source, destination, spec.into(ledger, destination))


def route_of(source: Side, work: Plan) -> str:
    """Return a hash of what all parts must agree in: source, columns, casts and format.

    The numbers of the columns are the parser's, which has locked the table: the catalogs, read by an old
    snapshot, don't know of a column that was renamed since.

    :param source: in a transaction.
    :raises RemoteError: what the server says: 42703 if a column is gone.
    """
    names = sql.SQL(", ").join(sql.Identifier(pair.source) for pair in work.pairs)
    columns = describe(source, sql.SQL("SELECT {} FROM {}").format(names, work.read))
    facts = [
        (column.table, column.number, pair.destination, pair.cast)
        for column, pair in zip(columns, work.pairs, strict=True)
    ]
    return sha256(json.dumps([work.format, facts]).encode()).hexdigest()
