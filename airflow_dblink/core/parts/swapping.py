"""The end of a load: the shadow takes the destination's place, in one transaction."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import TransientError, UsageError
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Ledger, end_holders
from airflow_dblink.core.parts.load import LoadSpec, Settings
from airflow_dblink.core.parts.shadow import drop_others, give_to_owner, shadow_of
from airflow_dblink.core.server.settings import TEXT_FORMS
from airflow_dblink.core.server.side import Side, in_transaction
from airflow_dblink.core.tables.catalog import get_relation
from airflow_dblink.core.transfer.in_use import wait_for_snapshots
from airflow_dblink.core.transfer.plan import Spec
from airflow_dblink.core.transfer.swap import swap as take_place

log = logging.getLogger(__name__)


def is_left(destination: Side, key: LoadKey, spec: LoadSpec, settings: Settings) -> bool:
    """Return whether a load of this key is still to be swapped: the swap's transaction drops its ledger."""
    with in_transaction(destination, settings, "looking for a load"):
        ledger = Ledger(key, get_relation(destination, spec.destination_table).schema_name)
        return key.ledger in ledger.found(destination)


def swap(
    destination: Side,
    key: LoadKey,
    spec: LoadSpec,
    once: Once,
    settings: Settings,
    *,
    swap_timeout: timedelta,
    older_transactions_timeout: timedelta | None,
    reset_sequences: bool,
    allow_empty_source: bool,
) -> dict[str, Any]:
    """Give the shadow what it lacks and the destination's name; drop the old table and the ledger; commit.

    The source isn't asked any more: it may be down by now.

    :param once: on the destination's connection; :meth:`Once.recall` has said that there is work.
    :param settings: run-time parameters of the destination, local to the transaction.
    :param swap_timeout: how long to try to lock the destination, each time for a second.
    :param older_transactions_timeout: how long to wait for transactions that are older; ``None``: don't wait.
    :param reset_sequences: move the destination's sequences beyond the values that came.
    :param allow_empty_source: let an empty source empty the destination.
    :returns: ``rows``, ``bytes`` and ``seconds`` of all parts together, ``parts``, ``retries``, and
        ``snapshot``: when it was taken, as ISO text.
    :raises UsageError: if another table can't take the destination's place any more, or the source is empty.
    :raises LoadLostError: if the destination was altered since the load was planned.
    :raises TransientError: if the destination is in use for too long, or the load is planned anew meanwhile;
        nothing is changed then.
    """
    with in_transaction(destination, settings, "looking for the load"):
        target = get_relation(destination, spec.destination_table)
        ledger = Ledger(key, target.schema_name)
        planned = ledger.head(destination)
        ledger.demand_done(destination, planned)
    # By an older snapshot the new table would be empty. Now that all rows are committed, and outside of a
    # transaction: swaps of two tables would wait for each other, and writers for both.
    if older_transactions_timeout is not None:
        wait_for_snapshots(
            destination,
            older_transactions_timeout.total_seconds(),
            f"older_transactions_timeout is over, and transactions older than the swap of {target} run",
            "they would find an empty table; end these sessions, wait for longer, or don't wait"
            " (older_transactions_timeout=None)",
        )
    once.begin({**TEXT_FORMS, **settings}, read_committed=True)
    lock = sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(target.identifier)
    destination.run(lock, "locking the destination table")
    head = ledger.head(destination)
    if head != planned:  # its rows may be younger than what was waited for
        raise TransientError("the load was planned anew meanwhile", destination.conn_id, "40001")
    end_holders(destination, head.shadow)
    done = ledger.demand_done(destination, head)
    if not done.rows and not allow_empty_source:
        a_row = sql.SQL("SELECT FROM {} LIMIT 1").format(target.identifier)
        has_rows = destination.run(a_row, "looking for rows of the destination table") > 0
        if has_rows or target.row_security:
            what = "has rows" if has_rows else "may have rows, which policies hide from this role"
            raise UsageError(
                f"the source is empty, and {target} {what}",
                destination.conn_id,
                hint="if that is right: allow_empty_source=True",
            )
    asked = Spec(
        destination_table=spec.destination_table,
        source_table=spec.source_table,
        mode="swap",
        swap_timeout=swap_timeout,
        reset_sequences=reset_sequences,
    )
    shadow = shadow_of(destination, ledger, head, asked)
    drop_others(shadow)
    give_to_owner(shadow)
    shadow.finish()
    shadow.build_keys()
    destination.run(sql.SQL("DROP TABLE {}").format(ledger.name), "dropping the ledger")
    result = {
        "rows": done.rows,
        "bytes": done.bytes,
        "seconds": round(done.seconds, 3),
        "parts": done.parts,
        "retries": done.tries - done.parts,
        "snapshot": head.taken,
        "xid": once.xid,
    }
    take_place(shadow, once, result)
    return result
