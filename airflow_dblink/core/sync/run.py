"""A sync from beginning to end: compare, plan, apply, verify, commit.

The source is read in one REPEATABLE READ snapshot. The destination is first compared without a lock. If rows
differ, its transaction locks the table against writers. If anybody has written on that server since, the sync
begins again under the lock: with the catalogs, a new snapshot of the source, and the comparison. So at the
commit the destination equals the source's snapshot, whoever else writes on either side. Of two syncs, the one
that commits later also has the later snapshot, so no sync takes the table back in time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from psycopg import sql

from airflow_dblink.core.link.messages import Wire
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.server.settings import TEXT_FORMS
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sync.changes.apply import apply_set, stage_rows
from airflow_dblink.core.sync.changes.conflicts import make_way
from airflow_dblink.core.sync.changes.load import load
from airflow_dblink.core.sync.changes.plan import digest, make_plan, stage_all, stage_hashes
from airflow_dblink.core.sync.changes.statements import apply_statements
from airflow_dblink.core.sync.compare import groups
from airflow_dblink.core.sync.compare.verify import (
    bystanders,
    fingerprint,
    verify,
    verify_bystanders,
    verify_counts,
    verify_load,
)
from airflow_dblink.core.sync.guards import (
    demand_changes,
    demand_replaceable,
    demand_room,
    demand_same_plan,
    demand_same_table,
    demand_sizes,
)
from airflow_dblink.core.sync.other_writers import is_quiet, snapshot
from airflow_dblink.core.sync.outcome import Outcome, Plan
from airflow_dblink.core.sync.prepare import prepare
from airflow_dblink.core.sync.session import BEGIN_DRY, BEGIN_READING, Session
from airflow_dblink.core.sync.spec import Spec
from airflow_dblink.core.sync.watermark import highest
from airflow_dblink.core.sync.work import Part, Work
from airflow_dblink.core.tables.rewritten import demand_read, rewritten
from airflow_dblink.core.tables.sequences import reset_sequences

_SQL = statements("sync.sql")

log = logging.getLogger(__name__)

# If a larger share of the rows is in groups that differ, all rows are fetched and compared in the destination
# (benchmarks/sync.py has the curve).
RELOAD_SHARE = 0.5

Use = Callable[[Work], None]


def dry_run(session: Session, spec: Spec, use: Use | None = None) -> dict[str, Any]:
    """Return the result that a sync would have, with the guards that would stop it under ``refused``.

    It changes nothing.

    :param use: called while the plan's temporary tables exist, to write its statements.
    :raises UsageError: if the sync can't work.
    :raises RemoteError: a server's errors.
    """
    outcome = Outcome(dry_run=True)
    session.begin_destination(BEGIN_DRY)
    work = _prepare(session, spec)
    _compare(work, outcome)
    if outcome.method == "replace":
        demand_replaceable(work)
    _plan(work, outcome)
    if use is not None or spec.on_conflict == "replace":
        _stage(work, outcome)
    if use is not None:
        use(work)
    session.destination.run("ROLLBACK", "ending the dry run")
    session.source.run("COMMIT", "ending the source transaction")
    return outcome.result(work)


def run(session: Session, spec: Spec, once: Once, use: Use | None = None) -> dict[str, Any]:
    """Make the destination equal to the source in one transaction, exactly once.

    :param once: on the destination's connection; its :meth:`Once.recall` has returned ``None``.
    :param use: called while the plan's temporary tables exist, to write its statements.
    :raises UsageError: if the sync can't work, or a guard stops it; nothing is changed then.
    :raises VerificationError: if the destination isn't right after the changes; everything is rolled back.
    :raises RemoteError: a server's errors; nothing is changed then.
    """
    outcome = Outcome()
    work, before = _look(session, spec, outcome)
    if outcome.is_equal and spec.plan is None:
        demand_read(session.source)
        demand_sizes(work, outcome)
        session.source.run("COMMIT", "ending the source transaction")
        return outcome.result(work)
    once.begin({**TEXT_FORMS, **session.settings()}, read_committed=True)
    outcome.xid = once.xid
    work = _look_again(session, work, outcome, before, once.own_ids)
    if outcome.method == "replace" or (use is None and _is_first_load(work, outcome)):
        _load(work, outcome)
    else:
        _change(session, work, outcome, use)
    result = outcome.result(work)
    once.commit(result)
    return result


def _look(session: Session, spec: Spec, outcome: Outcome) -> tuple[Work, str]:
    """Prepare the work and, with ``lock="apply"``, compare both sides without a lock.

    :returns: the work, and the destination's snapshot from before the comparison.
    """
    # Before the source's snapshot is taken: then a sync with a later one can't commit unnoticed.
    before = session.begin_destination(BEGIN_READING)
    work = _prepare(session, spec)
    if spec.lock == "apply":
        _compare(work, outcome)
    session.destination.run("ROLLBACK", "comparing")
    return work, before


def _look_again(session: Session, work: Work, outcome: Outcome, before: str, own_ids: Sequence[int]) -> Work:
    """Lock the destination table, and begin again if others have written meanwhile."""
    _lock(work)
    demand_same_table(work)
    is_stale = not is_quiet(before, snapshot(session.destination), *own_ids)
    if is_stale:
        work = _prepare_again(session, work.spec)
    if work.spec.lock == "compare" or (is_stale and outcome.is_by_groups):
        _compare(work, outcome)
    return work


def _change(session: Session, work: Work, outcome: Outcome, use: Use | None) -> None:
    """Plan the changes, and make them."""
    _plan(work, outcome)
    _stage(work, outcome)
    demand_same_plan(work, outcome.plan)
    if use is not None:
        use(work)
    session.source.run("COMMIT", "ending the source transaction")
    _apply(work, outcome, session.link)


def _prepare(session: Session, spec: Spec) -> Work:
    """Begin the source's snapshot, and check *spec*."""
    session.begin_source()
    while True:
        work = prepare(session.source, session.destination, spec)
        if (name := rewritten(session.source)) is None:
            return replace(work, pace=session.pace, progress=session.progress)
        log.info("%s was rewritten while the sync waited for it: taking a new snapshot.", name)
        session.source.run("ROLLBACK", "ending the source transaction")
        session.begin_source()


def _prepare_again(session: Session, spec: Spec) -> Work:
    """Take a new snapshot under the lock: another sync may have written a later state of the source."""
    log.info("Others have written on the destination's server since: beginning again, under the lock.")
    session.source.run("ROLLBACK", "ending the source transaction")
    return _prepare(session, spec)


def _compare(work: Work, outcome: Outcome) -> None:
    """Decide the method, and compare by groups unless all rows are to be fetched."""
    spec = work.spec
    outcome.comparison, outcome.method = None, "replace" if spec.method == "replace" else "reload"
    if spec.is_incremental or spec.method in ("reload", "replace"):
        return
    rows = _rows(work)
    if spec.method == "auto" and rows == 0 and _has_rows(work.source):
        return  # the first load
    comparison = groups.compare(work, groups.choose(work, rows))
    outcome.size += comparison.size
    outcome.groups, outcome.groups_differing = comparison.groups, len(comparison.differing)
    outcome.source_rows = comparison.source_rows
    outcome.destination_rows = comparison.destination_rows
    if spec.replace_above is not None and comparison.differing_rows > comparison.rows * spec.replace_above:
        outcome.method = "replace"
        return
    if spec.method == "auto" and comparison.differing_rows > comparison.rows * RELOAD_SHARE:
        if comparison.source_rows:  # without rows nothing is fetched, and a guard may stop the sync
            differing = len(comparison.differing)
            log.info("%s of %s groups differ: all rows are fetched.", differing, comparison.groups)
        return
    outcome.comparison, outcome.method = comparison, "difference"


def _rows(work: Work) -> int:
    """Return about how many rows the destination's part has; 0 only if it is empty."""
    part = work.destination
    if part.where is None and work.target.rows:
        return work.target.rows
    return _count(work)


def _count(work: Work) -> int:
    part = work.destination
    found = part.side.fetch(part.select(sql.SQL("pg_catalog.count(*) AS rows")), "counting the rows")
    return int(found[0]["rows"])


def _is_first_load(work: Work, outcome: Outcome) -> bool:
    """Return whether a plain load will do: the destination's part is empty, and nothing needs a plan."""
    spec = work.spec
    rows_count = spec.max_change_fraction == 0 or spec.on_conflict == "replace"
    if outcome.is_by_groups or spec.plan is not None or not spec.insert or rows_count:
        return False
    if work.target.row_security:  # COPY can't load such a table
        return False
    if spec.where is not None and not work.key_is_sure:  # a row outside of where may have the same key
        return False
    return work.spec.apply == "set" and not _has_rows(work.destination)


def _has_rows(part: Part) -> bool:
    one = part.select(sql.SQL("1 AS one"), end=" LIMIT 1")
    return bool(part.side.fetch(one, "looking for rows"))


def _load(work: Work, outcome: Outcome) -> None:
    """Load all rows, for ``replace`` into the emptied table, and compare the result with the source."""
    truncate = outcome.method == "replace"
    outcome.method = "replace" if truncate else "load"
    if truncate:
        demand_replaceable(work)
    outcome.watermark = highest(work)
    before = _count(work) if truncate else 0
    with _triggers(work):
        pumped = load(work, truncate=truncate)
        outcome.size += pumped.size
        outcome.source_rows, outcome.destination_rows = pumped.sent, before
        demand_read(work.source.side)
        demand_sizes(work, outcome)
        work.destination.side.run("SET CONSTRAINTS ALL IMMEDIATE", "checking constraints")
        comparison = groups.compare(work, groups.choose(work, pumped.taken))
        outcome.size += comparison.size
        verify_load(work, comparison)
    work.source.side.run("COMMIT", "ending the source transaction")
    outcome.plan = Plan() if truncate else Plan(missing=pumped.sent)
    outcome.done = {"inserted": pumped.taken, "deleted": before}
    if work.spec.reset_sequences:
        reset_sequences(work.destination.side, work.target, {column.name for column in work.fields})


def _plan(work: Work, outcome: Outcome) -> None:
    """Find the rows that differ, and let the guards check how many they are."""
    if (comparison := outcome.comparison) is not None:
        outcome.size += stage_hashes(work, comparison).size
    else:
        _fetch_all(work, outcome)
    demand_read(work.source.side)
    demand_sizes(work, outcome)
    outcome.plan = make_plan(work, outcome.comparison)
    if work.spec.on_conflict != "replace":  # otherwise later, when the rows that make way are known
        demand_changes(work, outcome)
    demand_room(work)


def _fetch_all(work: Work, outcome: Outcome) -> None:
    """Fetch all rows of the source's part."""
    outcome.watermark = highest(work)
    pumped = stage_all(work)
    outcome.size += pumped.size
    outcome.source_rows = pumped.sent
    outcome.destination_rows = _count(work)


def _stage(work: Work, outcome: Outcome) -> None:
    """Fetch the rows that will be written, and add to the plan the rows that must make way for them."""
    if outcome.comparison is not None:
        outcome.size += stage_rows(work, outcome.plan, outcome.comparison)
    if work.spec.on_conflict == "replace":
        outcome.renewed, outcome.displaced = make_way(work)
        outcome.plan = replace(outcome.plan, digest=digest(work))
        demand_changes(work, outcome)


def _apply(work: Work, outcome: Outcome, link: Wire) -> None:
    spec, destination = work.spec, work.destination.side
    destination.run("SET CONSTRAINTS ALL DEFERRED", "deferring constraints")
    others = bystanders(work)
    before = fingerprint(work, others) if others else (0, 0)
    with _triggers(work):
        done = apply_statements(work, link) if spec.apply == "statements" else apply_set(work)
        verify_counts(work, outcome.expected(spec), done)
        outcome.done = {
            "inserted": done["inserted"] - outcome.renewed,
            "updated": done["updated"] + outcome.renewed,
            "deleted": done["deleted"] - outcome.renewed - outcome.displaced,
        }
        destination.run("SET CONSTRAINTS ALL IMMEDIATE", "checking constraints")
    verify(work, outcome.comparison)
    if others:
        verify_bystanders(work, others, before)
    if spec.reset_sequences and outcome.done["inserted"]:
        reset_sequences(destination, work.target, {column.name for column in work.fields})


@contextmanager
def _triggers(work: Work) -> Iterator[None]:
    """If *triggers* is ``disable``, switch the table's own triggers off meanwhile; foreign keys stay on."""
    found = (
        work.destination.side.ask(_SQL["triggers"], {"oid": work.target.oid})
        if work.spec.triggers == "disable"
        else []
    )
    _alter(work, [(trigger, "DISABLE") for trigger in found])
    yield
    words = {"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}
    _alter(work, [(trigger, words[str(trigger["enabled"])]) for trigger in found])


def _alter(work: Work, changes: list[tuple[dict[str, Any], str]]) -> None:
    for trigger, word in changes:
        statement = sql.SQL("ALTER TABLE ONLY {} {} TRIGGER {}").format(
            sql.Identifier(trigger["schema_name"], trigger["table_name"]),
            sql.SQL(word),
            sql.Identifier(trigger["name"]),
        )
        work.destination.side.run(statement, "switching a trigger")


def _lock(work: Work) -> None:
    started = time.monotonic()
    statement = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(work.target.identifier)
    work.destination.side.run(statement, "locking the destination table")
    if (waited := time.monotonic() - started) > 1:
        log.info("Waited %.0f s for the lock on %s.", waited, work.target)
