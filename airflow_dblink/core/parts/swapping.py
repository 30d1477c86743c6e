"""The end of a load: the shadow takes the destination's place, in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import TransientError, UsageError
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.parts.ledger import Done, Head, Ledger, end_holders
from airflow_dblink.core.parts.load import Load, Settings, TableLoad
from airflow_dblink.core.parts.shadow import drop_others, give_to_owner, shadow_of
from airflow_dblink.core.server.settings import TEXT_FORMS
from airflow_dblink.core.server.side import Side, in_transaction
from airflow_dblink.core.sets.problems import for_each
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.pieces import TableName, run_all
from airflow_dblink.core.transfer.exchange import swap as take_place
from airflow_dblink.core.transfer.in_use import Patience, named_of, wait_for_snapshots
from airflow_dblink.core.transfer.plan import Spec
from airflow_dblink.core.transfer.swap import Shadow, Together, build_keys

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Loaded:
    """A table whose parts are all copied."""

    table: TableLoad
    target: Relation
    ledger: Ledger
    head: Head
    done: Done


def is_left(destination: Side, load: Load, settings: Settings) -> bool:
    """Return whether a load of this key is still to be swapped: the swap's transaction drops its ledgers."""
    with in_transaction(destination, settings, "looking for a load"):
        table = load.tables[0]
        _, ledger = table.find(destination)
        return table.key.ledger in ledger.found(destination)


def swap(
    destination: Side,
    load: Load,
    once: Once,
    settings: Settings,
    *,
    swap_timeout: timedelta,
    older_transactions_timeout: timedelta | None,
    reset_sequences: bool,
    allow_empty_source: bool,
) -> dict[str, Any]:
    """Give the shadows what they lack and the destinations' names; drop old tables and ledgers; commit.

    The source isn't asked any more: it may be down by now.

    :param once: on the destination's connection; :meth:`Once.recall` has said that there is work.
    :param settings: run-time parameters of the destination, local to the transaction.
    :param swap_timeout: how long to try to lock the destinations, each time for a second.
    :param older_transactions_timeout: how long to wait for transactions that are older; ``None``: don't wait.
    :param reset_sequences: move the destinations' sequences beyond the values that came.
    :param allow_empty_source: let an empty source empty its destination.
    :returns: ``rows``, ``bytes`` and ``seconds`` of all parts together, ``parts``, ``retries``,
        ``snapshot``: when it was taken, as ISO text; and ``tables``: how many.
    :raises UsageError: if another table can't take a destination's place any more, or a source is empty.
    :raises LoadLostError: if a destination was altered since the load was planned.
    :raises TransientError: if a destination is in use for too long, or the load is planned anew meanwhile;
        nothing is changed then.
    """
    with in_transaction(destination, settings, "looking for the load"):
        planned = _loaded(destination, load)
    if older_transactions_timeout is not None:
        _wait(destination, planned, older_transactions_timeout)
    once.begin({**TEXT_FORMS, **settings}, read_committed=True)
    _lock_definitions(destination, [each.target for each in planned], swap_timeout)
    loaded = _loaded(destination, load)
    if [each.head for each in loaded] != [each.head for each in planned]:
        # its rows may be younger than what was waited for
        raise TransientError("the load was planned anew meanwhile", destination.conn_id, "40001")
    for each in loaded:
        # Of the ledger who only reads it, too: DROP TABLE would wait.
        for oid in each.ledger.found(destination).values():
            end_holders(destination, oid, readers=oid != each.head.shadow)
    if not allow_empty_source:
        for_each(loaded, lambda each: _demand_rows(destination, each), lambda each: each.table.name)
    arguments = {"swap_timeout": swap_timeout, "reset_sequences": reset_sequences}
    shadows = _finished(destination, loaded, arguments)
    for each in loaded:
        destination.run(sql.SQL("DROP TABLE {}").format(each.ledger.name), "dropping the ledger")
    done = Done.sum(each.done for each in loaded)
    result = {
        "rows": done.rows,
        "bytes": done.bytes,
        "seconds": round(done.seconds, 3),
        "parts": done.parts,
        "retries": done.tries - done.parts,
        "snapshot": loaded[0].head.taken,
        "tables": len(loaded),
        "xid": once.xid,
    }
    take_place(shadows, once, result)
    return result


def _lock_definitions(destination: Side, targets: Sequence[Relation], timeout: timedelta) -> None:
    """Keep the definitions as they are, and other swaps away; several tables are locked in one attempt."""
    ordered = sorted(targets, key=lambda target: target.oid)
    lock = sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE")
    locks = [lock.format(target.identifier) for target in ordered]
    if len(locks) == 1:
        destination.run(locks[0], "locking the destination table")
        return
    patience = Patience.of(destination)

    def attempt() -> None:
        run_all(destination, [*locks, *patience.end], "locking the destination tables")

    patience.until_had([attempt], patience.writers_ms, timeout.total_seconds(), ordered, writers=False)


def _wait(destination: Side, planned: Sequence[_Loaded], timeout: timedelta) -> None:
    """Wait for transactions by whose older snapshots the new tables would be empty.

    Now that all rows are committed, and outside of a transaction: swaps of two tables would wait for each
    other, and writers for both.
    """
    named = named_of([each.target for each in planned])
    wait_for_snapshots(
        destination,
        timeout.total_seconds(),
        f"older_transactions_timeout is over, and transactions older than the swap of {named} run",
        "they would find an empty table; end these sessions, wait for longer, or don't wait"
        " (older_transactions_timeout=None)",
    )


def _loaded(destination: Side, load: Load) -> list[_Loaded]:
    """Return the tables, whose parts must all be copied."""
    found = []
    for table in load.tables:
        target, ledger = table.find(destination)
        head = ledger.head(destination)
        found.append(_Loaded(table, target, ledger, head, ledger.demand_done(destination, head, table.name)))
    return found


def _demand_rows(destination: Side, loaded: _Loaded) -> None:
    """Raise if an empty source would empty a destination that has rows."""
    if loaded.done.rows:
        return
    a_row = sql.SQL("SELECT FROM {} LIMIT 1").format(loaded.target.identifier)
    has_rows = destination.run(a_row, "looking for rows of the destination table") > 0
    if has_rows or loaded.target.row_security:
        what = "has rows" if has_rows else "may have rows, which policies hide from this role"
        raise UsageError(
            f"the source is empty, and {loaded.target} {what}",
            destination.conn_id,
            hint="if that is right: allow_empty_source=True",
        )


def _finished(destination: Side, loaded: Sequence[_Loaded], arguments: Mapping[str, Any]) -> list[Shadow]:
    """Return the shadows, with all that they lacked but for their names."""
    together: Together = {
        each.target.oid: (each.ledger.shadow_name, TableName.of(each.target)) for each in loaded
    }
    shadows = []
    for each in loaded:
        spec = each.table.spec
        asked = Spec(
            destination_table=spec.destination_table,
            source_table=spec.source_table,
            mode="swap",
            **arguments,
        )
        shadow = shadow_of(destination, each.ledger, each.head, asked, together)
        drop_others(shadow)
        give_to_owner(shadow)
        shadows.append(shadow)
    for shadow in shadows:
        shadow.finish()
    build_keys(shadows)
    return shadows
