"""Copying one part of a load, once, whatever was killed before."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from psycopg import pq, sql

from airflow_dblink.core.errors import DblinkError, RemoteError, VerificationError
from airflow_dblink.core.parts import keeper as keepers
from airflow_dblink.core.parts.ledger import Done, Head
from airflow_dblink.core.parts.load import Settings, TableLoad, route_of, work_of
from airflow_dblink.core.parts.ranges import SAME_EACH_TIME, Part, Range, copy_range, demand_same_files
from airflow_dblink.core.parts.slices import Piece, copy_out, demand_same_file, lost, name_of
from airflow_dblink.core.server.side import Side, in_transaction, set_local
from airflow_dblink.core.streams.pace import Pace
from airflow_dblink.core.streams.pump import End, Pumped, Report, pump
from airflow_dblink.core.transfer.plan import Plan

log = logging.getLogger(__name__)

_GONE = ("42P01", "42703")  # no such table, no such column
Progress = Callable[[int, int, int | None], None]


def copy_part(
    source: Side,
    destination: Side,
    table: TableLoad,
    part: int,
    try_number: int,
    *,
    source_settings: Settings,
    destination_settings: Settings,
    progress: Progress,
    pace: Pace | None = None,
) -> Done:
    """Copy the part into the load's shadow, unless an earlier try has done so; returns what it has brought.

    :param try_number: higher than that of every earlier try.
    :param source_settings: run-time parameters, local to the transaction.
    :param destination_settings: the same for the destination.
    :param progress: called with rows, bytes and the estimated total, often.
    :param pace: how fast the rows may move, and when they have to wait; the snapshot is kept meanwhile.
    :raises UsageError: if there is nothing to load into, no such part, or a later try has claimed it.
    :raises LoadLostError: if the keeper is gone, or the source table was rewritten or altered.
    :raises RemoteError: what a server says; nothing of this try is committed then.
    """
    with in_transaction(destination, destination_settings, "looking for the load"):
        target, ledger = table.find(destination)
        head = ledger.head(destination)
    claimed = ledger.claim(destination, part, try_number)
    if isinstance(claimed, Done):
        log.info("Part %s was copied by an earlier try: nothing is copied.", part)
        return claimed
    started = time.monotonic()
    source.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "beginning the source transaction")
    keepers.use(source, head.keeper, head.snapshot)
    set_local(source, {**SAME_EACH_TIME, **source_settings})
    destination.run("BEGIN ISOLATION LEVEL READ COMMITTED", "beginning the part")
    set_local(destination, destination_settings)
    with _lost_if_gone(source):
        work = work_of(source, destination, ledger, table.spec)
        _demand_same_route(source, work, head, table.name)
        rows = work.estimated_rows if head.rows is None else head.rows
        estimated = None if rows is None else rows // head.parts
        try:
            pumped = _pump(source, destination, work, head, claimed.part, progress, estimated, pace)
        except RemoteError as error:
            raise error.renamed({table.key.shadow: target.name}) from None
    source.run("COMMIT", "ending the source transaction")
    seconds = round(time.monotonic() - started, 3)
    done = Done(pumped.taken, pumped.size, seconds, tries=claimed.tries)
    ledger.commit(destination, head, part, try_number, done)
    return done


def _demand_same_route(source: Side, work: Plan, head: Head, table: str) -> None:
    if route_of(source, work) != head.route:
        why = "its columns, their types, or the task's arguments aren't what they were"
        raise lost(source, f"{table} would be copied otherwise than the load was planned: {why}")


@contextmanager
def _lost_if_gone(source: Side) -> Iterator[None]:
    """Raise LoadLostError where the source misses a table or column: a next try would miss it, too."""
    try:
        yield
    except DblinkError as error:
        # While the source's COPY goes on, it is an error of another session: that of a pause, perhaps.
        is_others = source.connection.pgconn.transaction_status == pq.TransactionStatus.ACTIVE
        if error.sqlstate not in _GONE or error.connname != source.conn_id or is_others:
            raise
        raise lost(source, f"a table or column is gone since the load was planned: {error.message}") from None


def _counting_on(progress: Progress, before: Pumped, estimated: int | None) -> Report:
    return lambda rows, size: progress(before.sent + rows, before.size + size, estimated)


def _pump(
    source: Side,
    destination: Side,
    work: Plan,
    head: Head,
    part: Part,
    progress: Progress,
    estimated: int | None,
    pace: Pace | None,
) -> Pumped:
    """Copy the pieces of *part*, one after the other."""
    total = Pumped()
    for piece in part:
        read = _read(source, work, head, piece)
        pumped = pump(
            End.of(source, read.copy_out),
            End.of(destination, work.copy_in),
            _counting_on(progress, total, estimated),
            pace,
        )
        read.demand_same_files()
        if pumped.sent != pumped.taken:
            raise VerificationError(
                f"the table that is loaded kept {pumped.taken} of {pumped.sent} rows of {read.name}",
                destination.conn_id,
            )
        total = Pumped(total.sent + pumped.sent, total.taken + pumped.taken, total.size + pumped.size)
    return total


@dataclass(frozen=True)
class _Read:
    """How a piece is read.

    :ivar name: of its table, for errors.
    :ivar demand_same_files: raises if somebody has rewritten what was read.
    """

    name: str
    copy_out: sql.Composed
    demand_same_files: Callable[[], None]


def _read(source: Side, work: Plan, head: Head, piece: Piece | Range) -> _Read:
    if isinstance(piece, Range):
        copy = copy_range(piece, work.read, work.pairs, work.format)
        name = work.spec.source_table or "source_sql"
        return _Read(name, copy, partial(demand_same_files, source, head.files))
    table = name_of(source, piece)
    copy = copy_out(piece, table, work.pairs, work.format)
    return _Read(table.as_string(), copy, partial(demand_same_file, source, piece, table))
