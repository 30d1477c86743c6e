"""COPY from one database into a table of another, in one destination transaction.

:func:`airflow_dblink.core.transfer.plan.plan` has checked everything before; :func:`run`
moves the rows inside a :class:`~airflow_dblink.core.once.transaction.Once`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.server.settings import TEXT_FORMS
from airflow_dblink.core.server.side import Side, begin
from airflow_dblink.core.sqltext.user_text import UserText
from airflow_dblink.core.streams.pace import Pace
from airflow_dblink.core.streams.pump import End, Pumped, pump
from airflow_dblink.core.tables.catalog import get_relation
from airflow_dblink.core.tables.like import make, rehearse
from airflow_dblink.core.tables.rewritten import rewritten
from airflow_dblink.core.tables.sequences import reset_sequences
from airflow_dblink.core.transfer.exchange import swap
from airflow_dblink.core.transfer.plan import STAGE, Plan, Spec, plan
from airflow_dblink.core.transfer.rebuild import Rebuild
from airflow_dblink.core.transfer.swap import Shadow, build_keys, lock_definition
from airflow_dblink.core.transfer.verify import verify_load

Progress = Callable[[int, int, int | None], None]

_ROWS_ARE_THERE = (
    "mode='append' only adds rows: 'upsert' updates those that are there, 'replace' loads the table anew"
)

log = logging.getLogger(__name__)


def prepare(
    source: Side,
    destination: Side,
    spec: Spec,
    source_settings: Mapping[str, str],
    destination_settings: Mapping[str, str],
) -> Plan:
    """Begin the source's transaction and return the plan, checked under the settings of the run.

    The source's transaction stays open for :func:`run`, so what was looked at can't be altered
    before it is read. The destination's ends again: it must not wait for a retry's look back.

    :param source_settings: run-time parameters, local to the transaction.
    :param destination_settings: the same for the destination.
    :raises UsageError: what can't work; see :func:`airflow_dblink.core.transfer.plan.plan`.
    :raises RemoteError: what a server says.
    """
    _begin_source(source, spec, source_settings)
    begin(destination, "BEGIN READ ONLY", destination_settings, "checking the destination")
    work = plan(source, destination, spec)
    while spec.verify == "checksum" and (name := rewritten(source)) is not None:
        log.info("%s was rewritten while the transfer waited for it: taking a new snapshot.", name)
        source.run("ROLLBACK", "ending the source transaction")
        _begin_source(source, spec, source_settings)
        work = plan(source, destination, spec)
    destination.run("ROLLBACK", "checking the destination")
    if work.same_database and "lock_timeout" not in source_settings:
        # The query may read what TRUNCATE or pre_sql has locked, and would wait for a transaction
        # that waits for us: a deadlock that no server can see.
        source.run("SET LOCAL lock_timeout = '10s'", "setting up the source transaction")
    return work


def _begin_source(source: Side, spec: Spec, settings: Mapping[str, str]) -> None:
    # A query that writes (DELETE ... RETURNING) would commit apart from the destination: refused.
    statement = "BEGIN READ ONLY"
    if spec.one_snapshot or spec.verify == "checksum":  # which reads all rows twice
        statement = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    begin(source, statement, settings, "beginning the source transaction")


def run(
    source: Side,
    destination: Side,
    work: Plan,
    once: Once,
    settings: Mapping[str, str],
    progress: Progress,
    pace: Pace | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Move the rows in one destination transaction, exactly once, after :func:`prepare`.

    :param once: on the destination's connection; :meth:`Once.recall` has said that there is work.
    :param settings: run-time parameters of the destination, local to the transaction.
    :param progress: called with rows, bytes and the estimated total, often.
    :param pace: how fast the rows may move, and when they have to wait.
    :param facts: of the caller, for the result.
    :returns: ``rows`` and ``bytes`` moved, ``changed`` rows in the destination, ``seconds``,
        ``format``, ``xid`` and what was ``verified``.
    :raises UsageError: if the source is empty, *replace* would empty the destination, and
        *allow_empty_source* doesn't allow it; nothing is changed then.
    :raises VerificationError: if the destination isn't what *verify* demands; nothing is changed then.
    :raises RemoteError: what a server says, naming its connection; nothing is changed then.
    """
    started = time.monotonic()
    # Under a lock that was waited for, each statement must see what others have committed meanwhile.
    read_committed = work.spec.lock or work.refuses_empty_source or work.spec.mode == "swap"
    once.begin({**TEXT_FORMS, **settings}, read_committed=read_committed)
    rebuild = Rebuild(destination, work.target)
    emptied = _make_room(destination, work, rebuild)
    shadow = Shadow.create(destination, work, once.xid) if work.spec.mode == "swap" else None
    loaded = replace(work, target=shadow.name.identifier, relation=shadow.relation) if shadow else work
    with shadow.by_own_names() if shadow else nullcontext():
        pumped = _pump(source, destination, loaded, progress, pace)
    if emptied and not pumped.sent:
        raise _empty_source(source, work, emptied)
    if work.spec.verify is not None:
        verify_load(source, destination, loaded.load, pumped, work.spec.verify)
    source.run("COMMIT", "ending the source transaction")
    changed = _finish(destination, work) if work.spec.mode == "upsert" else pumped.taken
    rebuild.end()
    if work.create is not None:
        make(destination, work.create.pieces)
    if work.spec.mode != "upsert" and pumped.taken != pumped.sent:
        log.warning("%s kept %s of %s rows", work.spec.destination_table, pumped.taken, pumped.sent)
    if shadow:
        shadow.finish()
        build_keys([shadow])
    else:
        _after_load(destination, work)
    result = {
        "rows": pumped.sent,
        "changed": changed,
        "bytes": pumped.size,
        "seconds": round(time.monotonic() - started, 3),
        "format": work.format,
        "xid": once.xid,
        "verified": work.spec.verify,
        **(facts or {}),
    }
    if shadow:
        swap([shadow], once, result)
    else:
        once.commit(result)
    return result


def _empty_source(source: Side, work: Plan, emptied: str) -> UsageError:
    return UsageError(
        f"the source is empty, and {work.relation} {emptied}",
        source.conn_id,
        hint="if that is right: allow_empty_source=True",
    )


def _pump(source: Side, destination: Side, work: Plan, progress: Progress, pace: Pace | None) -> Pumped:
    try:
        return pump(
            End.of(source, work.copy_out),
            End.of(destination, work.copy_in),
            lambda rows, size: progress(rows, size, work.estimated_rows),
            pace,
        )
    except RemoteError as error:
        if (error.sqlstate, error.connname) != ("23505", destination.conn_id) or work.spec.mode != "append":
            raise
        raise error.but(hint=error.hint or _ROWS_ARE_THERE) from None


def _make_room(destination: Side, work: Plan, rebuild: Rebuild) -> str | None:
    """Prepare the destination; returns why an empty source must be refused, or ``None`` if it may come."""
    if work.spec.lock:
        # DROP INDEX will need the stronger one: taken at once, nobody can be in between.
        mode = "ACCESS EXCLUSIVE" if work.spec.rebuild_indexes else "SHARE ROW EXCLUSIVE"
        lock = sql.SQL(f"LOCK TABLE {{}} IN {mode} MODE").format(work.target)
        destination.run(lock, "locking the destination table")
    elif work.spec.mode == "swap":
        lock_definition(destination, work)
    if work.spec.pre_sql:
        destination.run(UserText(work.spec.pre_sql, "pre_sql"), "executing pre_sql")
    if work.create is not None:
        destination.run(work.create.statement, "creating the destination table")
        if work.spec.like == "all":
            rehearse(destination, work.target, work.create.pieces)
    emptied = _what_is_emptied(destination, work)
    if work.spec.mode == "replace":
        destination.run(sql.SQL("TRUNCATE {}").format(work.target), "truncating the destination table")
        rebuild.begin(work.spec.rebuild_indexes, work.planned_rows)
    elif work.spec.mode == "append" and work.spec.rebuild_indexes and not _has_rows(destination, work):
        rebuild.begin(work.spec.rebuild_indexes, work.planned_rows)
    if work.spec.mode == "upsert":
        stage = sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA")
        destination.run(
            stage.format(STAGE, work.destination_columns, work.target), "creating the staging table"
        )
    return emptied


def _what_is_emptied(destination: Side, work: Plan) -> str | None:
    """Return why an empty source must be refused, ``None`` if it may come; lock the table as TRUNCATE will.

    A swap locks the table in the end.
    """
    if work.relation is None or not work.refuses_empty_source:
        return None
    if work.spec.mode == "replace" and work.relation.kind != "f":  # LOCK takes no foreign tables
        lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(work.target)
        destination.run(lock, "locking the destination table")
    if not any(column.may_select for column in work.relation.columns):
        return "may have rows, which this role can't see (no SELECT)"
    if _has_rows(destination, work):
        return "has rows"
    return "may have rows, which policies hide from this role" if work.relation.row_security else None


def _has_rows(destination: Side, work: Plan) -> bool:
    a_row = sql.SQL("SELECT FROM {} LIMIT 1").format(work.target)
    return destination.run(a_row, "looking for rows of the destination table") > 0


def _finish(destination: Side, work: Plan) -> int:
    """Merge the staged rows; rows whose values are equal are not rewritten."""
    keys = [sql.Identifier(name) for name in work.key.columns]
    _demand_no_null_keys(destination, work, keys)
    fixed = {*work.key.columns} - {*work.key.loose}
    values = [sql.Identifier(p.destination) for p in work.pairs if p.destination not in fixed]
    action: sql.Composable = sql.SQL("NOTHING")
    if values:
        # *<> compares the stored images: every type has it, and 1.0 and 1.00 differ. Without the
        # cast the parser would take it apart into one comparison per column.
        action = sql.SQL(
            "UPDATE SET {}"
            " WHERE ROW({})::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW({})::pg_catalog.record"
        ).format(
            sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(value) for value in values),
            sql.SQL(", ").join(sql.SQL("destination.{}").format(value) for value in values),
            sql.SQL(", ").join(sql.SQL("excluded.{}").format(value) for value in values),
        )
    destination.run(sql.SQL("ANALYZE {}").format(STAGE), "analyzing the staging table")
    merge = sql.SQL(
        "INSERT INTO {} AS destination ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} ON CONFLICT ({}) DO {}"
    ).format(
        work.target,
        work.destination_columns,
        work.destination_columns,
        STAGE,
        sql.SQL(", ").join(keys),
        action,
    )
    try:
        return destination.run(merge, "merging into the destination table")
    except RemoteError as error:
        if error.sqlstate != "21000":
            raise
        raise UsageError(
            f"several source rows have the same key ({', '.join(work.key.columns)}) of {work.relation}",
            destination.conn_id,
            error.sqlstate,
            hint="keep one row per key in source_sql, e.g. with SELECT DISTINCT ON",
        ) from None


def _demand_no_null_keys(destination: Side, work: Plan, keys: Sequence[sql.Identifier]) -> None:
    if work.key.takes_null:
        return
    nulls = sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(key) for key in keys)
    if destination.run(sql.SQL("SELECT FROM {} WHERE {} LIMIT 1").format(STAGE, nulls), "checking the key"):
        raise UsageError(
            f"a source row has NULL in key ({', '.join(work.key.columns)}) of {work.relation}",
            destination.conn_id,
            hint="to its unique index NULL is never in conflict: such a row would be doubled by every run;"
            " leave it out, or make the index NULLS NOT DISTINCT (PostgreSQL 15)",
        )


def _after_load(destination: Side, work: Plan) -> None:
    relation = work.relation
    if work.spec.like == "all":
        relation = get_relation(destination, work.target.as_string(destination.connection))
    if work.spec.reset_sequences and relation is not None:
        reset_sequences(destination, relation, {pair.destination for pair in work.pairs})
    if work.spec.analyze:
        destination.run(sql.SQL("ANALYZE {}").format(work.target), "analyzing the destination table")
    if work.spec.post_sql:
        destination.run(UserText(work.spec.post_sql, "post_sql"), "executing post_sql")
