"""Looking whether all parts of a load are there, and letting go of what they needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from psycopg import sql

from airflow_dblink.core.errors import VerificationError
from airflow_dblink.core.parts import keeper as keepers
from airflow_dblink.core.parts.key import ANEW, LoadKey
from airflow_dblink.core.parts.ledger import Done, Head, Ledger, end_holders
from airflow_dblink.core.parts.load import Load, Settings, TableLoad
from airflow_dblink.core.server.side import Side, in_transaction

log = logging.getLogger(__name__)


def verify(
    source: Side, destination: Side, load: Load, parts: Mapping[LoadKey, int], settings: Settings
) -> Done:
    """Raise unless all parts are done and the shadows have their rows; then end the keeper.

    Sessions of superseded tries are ended, so that nobody writes to the shadows any more.

    :param parts: how many there must be, by table.
    :param settings: run-time parameters of the destination, local to the transaction.
    :returns: what all parts have brought.
    :raises VerificationError: names the parts that are missing; nothing is changed.
    :raises NoLoadError: if a table's load is gone.
    """
    with in_transaction(destination, settings, "verifying the load"):
        found = [_verified(destination, table, parts[table.key]) for table in load.tables]
    for key in {head.keeper for head, _ in found}:
        keepers.release(source, key)
    return Done.sum(done for _, done in found)


def _verified(destination: Side, table: TableLoad, parts: int) -> tuple[Head, Done]:
    _, ledger = table.find(destination)
    head = ledger.head(destination)
    done = ledger.demand_done(destination, head, table.name)
    if done.parts != parts:
        raise VerificationError(
            f"the ledger has {done.parts} parts of {table.name}, and {parts} were to be copied, of"
            f" {head.parts} planned",
            destination.conn_id,
            hint=ANEW,
        )
    if ended := end_holders(destination, head.shadow):
        log.info("%s: %s sessions of superseded tries were ended", destination.conn_id, ended)
    _demand_rows(destination, ledger, done, table.name)
    if head.rows is not None and done.rows != head.rows:
        raise VerificationError(
            f"{table.name} had {head.rows} rows when the load was planned, and its parts have brought"
            f" {done.rows}: it doesn't give the same rows each time that it is asked",
            destination.conn_id,
            hint="does it use random(), a clock, LIMIT without ORDER BY, or a function that reads tables?"
            " copy it as a whole with DblinkTransferOperator",
        )
    return head, done


def _demand_rows(destination: Side, ledger: Ledger, done: Done, table: str) -> None:
    count = sql.SQL("SELECT pg_catalog.count(*) AS rows FROM {}").format(ledger.shadow)
    (found,) = destination.fetch(count, "counting the rows that were loaded")
    if found["rows"] != done.rows:
        raise VerificationError(
            f"the parts of {table} have brought {done.rows} rows, and {ledger.shadow.as_string()} has"
            f" {found['rows']}",
            destination.conn_id,
            hint=f"somebody else has written to it: {ANEW}",
        )
