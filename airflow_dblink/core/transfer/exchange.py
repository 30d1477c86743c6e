"""The exchange: loaded tables take the places of old ones, in one transaction: readers wait for it alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from psycopg import sql

from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.server.own_sql import PIN, UNPIN
from airflow_dblink.core.server.side import own_path
from airflow_dblink.core.sqltext.user_text import UserText
from airflow_dblink.core.tables.pieces import (
    OwnSequence,
    TableName,
    comment_statements,
    grant_question,
    protection_statements,
    run_all,
)
from airflow_dblink.core.transfer.in_use import Patience
from airflow_dblink.core.transfer.swap import Shadow
from airflow_dblink.core.transfer.swappable import demand_swappable

log = logging.getLogger(__name__)


def swap(shadows: Sequence[Shadow], once: Once, result: Mapping[str, Any]) -> None:
    """Let the loaded tables take their places, run *post_sql*, and commit.

    :param shadows: one or more, with the same spec but for the tables' names.
    :param result: what a retry should return; stored before the lock, or readers would wait for Airflow.
    :raises UsageError: if something has come to depend on an old table meanwhile.
    :raises TransientError: if the locks aren't had in time, naming who holds them.
    :raises RemoteError: what the server says; nothing is changed then.
    """
    once.keep(result)
    locked_at = _take_places(shadows)
    side, spec = shadows[0].side, shadows[0].spec
    if spec.post_sql:
        side.run(UserText(spec.post_sql, "post_sql"), "executing post_sql")
    once.commit(None)
    took_ms = 1000 * (time.monotonic() - locked_at)
    if len(shadows) == 1:
        log.info("Swapped %s: it was locked for %.0f ms", shadows[0].old, took_ms)
    else:
        log.info("Swapped %s tables: they were locked for %.0f ms", len(shadows), took_ms)


def _take_places(shadows: Sequence[Shadow]) -> float:
    """Lock the old tables, drop them, and give the new ones their names; return when they were locked.

    The locks are asked for again and again, each time for a moment, until *swap_timeout* is over. To drop
    foreign keys, the tables that they refer to must be locked, too: in one attempt after the others, in the
    next one before them, since readers that lock them in one order can be in the way of the other for good.

    :returns: the value of ``time.monotonic``.
    """
    side = shadows[0].side
    # Under the locks that keep the definitions, these can't change any more; privileges can.
    kept: list[str | sql.Composable] = []
    with own_path(side):
        for shadow in shadows:
            kept += protection_statements(side, shadow.old.oid, shadow.target)
            kept += comment_statements(side, shadow.old.oid, shadow.target)
    # A new view needs no lock that the first one keeps away; of one that is still newer DROP TABLE tells.
    for shadow in shadows:
        demand_swappable(side, shadow.old, shadow.together)
    patience = Patience.of(side)
    lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE")
    locks = [lock.format(shadow.target.identifier) for shadow in shadows]
    drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}")
    others = [
        drop.format(shadow.name.identifier, sql.Identifier(name))
        for shadow in shadows
        for name in shadow.doubled
    ]
    grants = [*chain.from_iterable(map(_grants, shadows))]
    sequences = sum(len(shadow.pieces.sequences) for shadow in shadows)
    soon = sql.SQL(f"SET LOCAL lock_timeout = '{patience.next_ms(sequences)}ms'")

    def attempt(first: Sequence[sql.Composable]) -> float:
        began = time.monotonic()  # nobody waits for us longer than since then
        side.run(sql.SQL("; ").join([PIN, patience.have_all(first), UNPIN]), "locking the old tables")
        locked_at = time.monotonic()
        patience.demand_time_left(locked_at - began)
        answers = side.ask_after([soon], grants, "reading privileges")
        granted = [str(row["statement"]) for rows in answers for row in rows]
        made: list[str | sql.Composable] = [*_exchange(shadows), *granted]
        made += [PIN, *kept, UNPIN]  # under the path that they were read under
        run_all(side, [*made, *patience.end], "swapping the tables")
        return locked_at

    timeout_s = shadows[0].spec.swap_timeout.total_seconds()
    attempts = [partial(attempt, [*locks, *others])]
    if others:
        attempts.append(partial(attempt, [*others, *locks]))
    old = [shadow.old for shadow in shadows]
    return patience.until_had(attempts, patience.first_ms, timeout_s, old, writers=False)


def _exchange(shadows: Sequence[Shadow]) -> list[sql.Composed]:
    """Return the statements that drop the old tables and give the new ones and their pieces their names."""
    # One statement, since they may have foreign keys to each other.
    drop = sql.SQL("DROP TABLE {}").format(sql.SQL(", ").join(shadow.target.identifier for shadow in shadows))
    before, after = (chain.from_iterable(map(each, shadows)) for each in (_before_drop, _after_drop))
    return [*before, drop, *after]


def _before_drop(shadow: Shadow) -> list[sql.Composed]:
    owned = sql.SQL("ALTER SEQUENCE {} OWNED BY {}.{}")
    return [
        *(
            owned.format(each.identifier, shadow.name.identifier, sql.Identifier(each.column_name))
            for each in shadow.pieces.sequences
            if not each.is_identity
        ),
        *(_same_position(old, new) for old, new in shadow.identities),
    ]


def _after_drop(shadow: Shadow) -> list[sql.Composed]:
    rename = sql.SQL("ALTER SEQUENCE {} RENAME TO {}")
    comment = sql.SQL("COMMENT ON SEQUENCE {} IS {}")
    return [
        sql.SQL("ALTER TABLE {} RENAME TO {}").format(
            shadow.name.identifier, sql.Identifier(shadow.target.name)
        ),
        *(index.rename(shadow.target, name) for name, index in shadow.pieces.indexes.items()),
        *(each.rename(name) for name, each in shadow.pieces.statistics.items()),
        *(rename.format(new.identifier, sql.Identifier(old.name)) for old, new in shadow.identities),
        *(
            comment.format(old.identifier, sql.Literal(old.comment))
            for old, _ in shadow.identities
            if old.comment is not None
        ),
    ]


def _same_position(old: OwnSequence, new: OwnSequence) -> sql.Composed:
    position = sql.SQL(
        "SELECT pg_catalog.setval({}::pg_catalog.oid::pg_catalog.regclass, last_value, is_called) FROM {}"
    )
    return position.format(sql.Literal(new.oid), old.identifier)


def _grants(shadow: Shadow) -> list[sql.SQL]:
    made = [grant_question(shadow.side, shadow.old.oid, shadow.relation.oid, shadow.target)]
    made += [
        grant_question(shadow.side, old.oid, new.oid, TableName.of(old)) for old, new in shadow.identities
    ]
    return made
