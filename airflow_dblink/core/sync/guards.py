"""Guards: they stop a sync that would change more than intended, before anything is changed."""

from __future__ import annotations

from psycopg import sql

from airflow_dblink.core.errors import TransientError, UsageError
from airflow_dblink.core.server.side import demand
from airflow_dblink.core.sync.outcome import Outcome, Plan
from airflow_dblink.core.sync.staged import PLAN, matches
from airflow_dblink.core.sync.work import Work
from airflow_dblink.core.tables.catalog import find_relation


def demand_sizes(work: Work, outcome: Outcome) -> None:
    """Raise if an empty source would empty the destination.

    :raises UsageError: unless *allow_empty_source*; a dry run only notes it.
    """
    spec = work.spec
    if outcome.source_rows or spec.is_incremental or spec.allow_empty_source or not spec.delete:
        return
    if outcome.destination_rows:
        outcome.refuse(
            UsageError(
                f"the source is empty, and {work.target} has {outcome.destination_rows} rows",
                work.source.side.conn_id,
                hint="if that is right: allow_empty_source=True (and max_delete_fraction=None)",
            )
        )


def demand_changes(work: Work, outcome: Outcome) -> None:
    """Raise if a larger part of the rows would be deleted or changed than allowed.

    :raises UsageError: beyond *max_delete_fraction* or *max_change_fraction*; a dry run only notes it.
    """
    spec, plan, displaced = work.spec, outcome.plan, outcome.displaced
    rows = outcome.destination_rows or 0
    deleted = (plan.extra if spec.delete and not spec.is_incremental else 0) + displaced
    for name, limit, count in (
        ("max_delete_fraction", spec.max_delete_fraction, deleted),
        ("max_change_fraction", spec.max_change_fraction, plan.done(spec.operations) + displaced),
    ):
        if limit is not None and (rows or limit == 0) and count > rows * limit:
            word = "deleted" if name == "max_delete_fraction" else "changed"
            outcome.refuse(
                UsageError(
                    f"{count} rows of the {rows} in {work.target} would be {word}, more"
                    f" than {name}={limit}; nothing is changed",
                    work.destination.side.conn_id,
                    hint=f"look at a dry run (plan_only=True); if it is right, raise {name}",
                )
            )


def demand_room(work: Work) -> None:
    """Raise if a key to insert belongs to a row outside of *where*: the INSERT would fail, less clearly."""
    part = work.destination
    if part.where is None or not work.spec.insert:
        return
    taken = sql.SQL(
        "SELECT 1 AS one FROM {} AS plan JOIN {} AS part ON {}"
        " WHERE plan.op OPERATOR(pg_catalog.=) 'I' LIMIT 1"
    )
    found = part.side.fetch(
        taken.format(PLAN, work.target.identifier, matches(work, "part")), "checking the key"
    )
    if found:
        raise UsageError(
            f"a source row that where selects has the key ({work.key_names}) of a row of {work.target}"
            " outside of where",
            part.side.conn_id,
            "23505",
            hint="widen where, or let it name only columns that never change for a key",
        )


def demand_same_plan(work: Work, plan: Plan) -> None:
    """Raise unless *plan* is the plan that the task was given, if it was given one.

    :raises UsageError: if the data moved on, or the plan was made with other arguments.
    """
    wanted = work.spec.plan
    if wanted is not None and wanted["arguments"] != work.fingerprint:
        raise UsageError(
            "the plan was made with other arguments (connections, tables, key, columns, where, insert,"
            " update, delete, on_conflict or triggers); nothing is changed",
            work.destination.side.conn_id,
            hint="give both tasks the same arguments",
        )
    if wanted is not None and plan.digest != wanted["digest"]:
        raise UsageError(
            f"the data moved on: the difference now ({plan.missing} missing, {plan.changed} changed,"
            f" {plan.extra} extra) is not the plan's; nothing is changed",
            work.destination.side.conn_id,
            hint="make a new plan (plan_only=True) and have it approved",
        )


def demand_same_table(work: Work) -> None:
    """Raise if the table was altered or replaced between the checks and the lock.

    :raises TransientError: 55006.
    """
    side = work.destination.side
    now = find_relation(side, work.spec.destination_table)
    if now is None or (now.oid, now.columns) != (work.target.oid, work.target.columns):
        raise TransientError(f"{work.target} is being altered", side.conn_id, "55006")


def demand_replaceable(work: Work) -> None:
    """Raise if the table may not be emptied, or would lose values.

    :raises UsageError: 42501 without TRUNCATE; if some columns are not kept equal.
    """
    side = work.destination.side
    demand(work.target.may_truncate, side, f"permission denied: no TRUNCATE on {work.target}")
    if work.target.row_security:
        raise UsageError(
            f"{work.target} has row-level security for this role, and COPY can't load such a table",
            side.conn_id,
            "0A000",
            hint="use method='auto' without replace_above",
        )
    if work.target.has_inheritance:
        raise UsageError(
            f"{work.target} has inheritance children, and replacing its rows would move theirs into it",
            side.conn_id,
            "0A000",
            hint="use method='auto' without replace_above",
        )
    if lost := work.not_synced:
        raise UsageError(
            f"replacing all rows of {work.target} would lose their values in {', '.join(lost)}",
            side.conn_id,
            hint="name all columns, or use method='auto' without replace_above",
        )
