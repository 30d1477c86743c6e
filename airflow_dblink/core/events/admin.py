"""What a DBA does with an event table: install it, look at it, and delete old events."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

import psycopg

from airflow_dblink.core.errors import from_psycopg
from airflow_dblink.core.events.claims import Rows, Transaction
from airflow_dblink.core.events.install import install_script
from airflow_dblink.core.events.table import Events
from airflow_dblink.core.server.side import Side


def install(side: Side, schema: str, *, emit: Sequence[str] = (), claim: Sequence[str] = ()) -> None:
    """Install the event schema, or upgrade it, and grant rights; events stay.

    :param emit: roles that emit events, and don't own the schema.
    :param claim: roles that read, claim and prune events.
    :raises RemoteError: the server's errors; nothing is changed then.
    """
    try:
        owners = side.connection.target.trusted_owners
        script = install_script(schema, emit=emit, claim=claim, trusted_owners=owners)
        side.connection.execute(script.encode())
    except psycopg.Error as error:
        with suppress(psycopg.Error):
            side.connection.execute("ROLLBACK")
        raise from_psycopg(error, side.conn_id, f"installing schema {schema}") from None


def topics(side: Side, events: Events) -> Rows:
    """Return the numbers of events by topic: unclaimed, claimed, done; and the oldest unclaimed one's time.

    :raises UsageError: if the event schema isn't there, or isn't trusted.
    :raises RemoteError: the server's errors.
    """
    with Transaction(side, events, {}, "reading events") as transaction:
        return transaction.run_named("topics")


def open_claims(side: Side, events: Events, *, most: int) -> Rows:
    """Return the claims that aren't finished, the oldest first.

    :param most: largest number of claims.
    :raises UsageError: as :func:`topics`.
    :raises RemoteError: the server's errors.
    """
    with Transaction(side, events, {}, "reading events") as transaction:
        return transaction.run_named("claims", most=most)


def prune(side: Side, events: Events, older_than: timedelta) -> int:
    """Delete events that are done for longer, in transactions of at most 10,000, and return how many.

    :raises UsageError: as :func:`topics`.
    :raises RemoteError: the server's errors; the events deleted before stay deleted.
    """
    pruned = 0
    while True:
        with Transaction(side, events, {}, "deleting events") as transaction:
            transaction.run_named("prune", older_than=older_than)
            if not transaction.touched:
                return pruned
            pruned += transaction.touched
