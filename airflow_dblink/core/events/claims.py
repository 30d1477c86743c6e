"""Claiming events for a run: each event once, and the same events again for a retry.

A claim is a text, the key of the run's task. Whoever claims with the same key gets the same events, until
they are released. So nothing has to be remembered between the tries: the table itself tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from airflow_dblink.core.errors import DblinkError, TransientError, UsageError, from_psycopg
from airflow_dblink.core.events.install import demand_installed
from airflow_dblink.core.events.table import Events
from airflow_dblink.core.installed.trust import distrust_of, fragments, guard
from airflow_dblink.core.server.own_sql import PATH, question
from airflow_dblink.core.server.settings import Settings
from airflow_dblink.core.server.side import Side, begin
from airflow_dblink.core.sql.named import statements

_SQL = statements("events.sql")

Rows = list[dict[str, Any]]


def claim_key(task: Mapping[str, Any]) -> str:
    """Return the key of a run's task: ``dag_id/run_id/task_id/map_index``."""
    return "/".join(str(task[name]) for name in ("dag_id", "run_id", "task_id", "map_index"))


def claim(
    side: Side, events: Events, key: str, *, most: int, settings: Settings, with_rows: bool = False
) -> Rows:
    """Claim up to *most* events in a transaction of their own, and return them in the order of their ids.

    If *key* has claimed events before, these are returned, however many, and no new ones are claimed.
    Events that another transaction has locked are left out.

    :param key: of the run's task; see :func:`claim_key`.
    :param settings: run-time parameters of the transaction.
    :param with_rows: return all columns; otherwise the id alone.
    :raises UsageError: for a mistake in *events*; if the event schema isn't there, or isn't trusted.
    :raises RemoteError: the server's errors; nothing is claimed then.
    """
    events.demand_topic()
    table = events.table
    wanted = sql.SQL("e.*" if with_rows else "e.{}").format(sql.Identifier(table.id))
    assignments = _assigned(
        (table.claimed_by, sql.Literal(key)),
        (table.claimed_at, sql.SQL("pg_catalog.now()")),
    )
    parts = {
        **events.parts(),
        **{"claim": sql.Literal(key), "most": sql.Literal(most), "assignments": assignments},
        **{"wanted": wanted, "returned": wanted},
    }
    names = ("lock", "claimed")
    with Transaction(side, events, settings, "claiming events") as transaction:
        found = transaction.run([sql.SQL(_SQL[name]).format(**parts) for name in names])
        return found or transaction.run([sql.SQL(_SQL["claim"]).format(**parts)])


def acknowledge(side: Side, events: Events, key: str, *, settings: Settings) -> int:
    """Note that the events claimed by *key* are done, and return how many weren't before.

    :raises UsageError: if the table has no column for it; otherwise as :func:`claim`.
    :raises RemoteError: the server's errors; nothing is changed then.
    """
    done_at = events.table.done_at
    if done_at is None:
        raise UsageError(
            f"table {events.table.name} has no column that says when an event is done",
            side.conn_id,
            hint="name it: EventTable(..., done_at='...'); or leave out the acknowledgement",
        )
    return _finish(side, events, key, settings, [(done_at, sql.SQL("pg_catalog.now()"))])


def release(side: Side, events: Events, key: str, *, settings: Settings) -> int:
    """Give back the events claimed by *key* that aren't done, and return how many.

    :raises UsageError: as :func:`claim`.
    :raises RemoteError: the server's errors; nothing is changed then.
    """
    null = sql.SQL("NULL")
    table = events.table
    return _finish(
        side, events, key, settings, [(table.claimed_by, null), (table.claimed_at, null)], wakes=True
    )


def _finish(
    side: Side,
    events: Events,
    key: str,
    settings: Settings,
    assigned: Sequence[tuple[str | None, sql.Composable]],
    *,
    wakes: bool = False,
) -> int:
    done_at = events.table.done_at
    not_done = sql.SQL(" AND e.{} IS NULL").format(sql.Identifier(done_at)) if done_at else sql.SQL("")
    parts = {
        **events.parts(),
        **{"claim": sql.Literal(key), "assignments": _assigned(*assigned), "and_not_done": not_done},
    }
    with Transaction(side, events, settings, "finishing a claim") as transaction:
        transaction.run([sql.SQL(_SQL[name]).format(**parts) for name in ("lock", "finish")])
        finished = transaction.touched
        if wakes and finished and events.own is None:
            transaction.run([sql.SQL(_SQL["notify"]).format(**parts)])
        return finished


def _assigned(*assigned: tuple[str | None, sql.Composable]) -> sql.Composed:
    pairs = [(name, value) for name, value in assigned if name is not None]
    return sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(name), value) for name, value in pairs)


class Transaction:
    """A transaction about events, which commits in the end; on our table it begins with the guard.

    :ivar touched: the number of rows that the last statement has touched.
    """

    def __init__(self, side: Side, events: Events, settings: Settings, action: str) -> None:
        self._side, self._events, self._settings, self._action = side, events, settings, action
        self.touched = 0

    def __enter__(self) -> Transaction:
        try:
            self._begin()
        except DblinkError:
            self._roll_back()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._roll_back()
            return
        self._side.run("COMMIT", self._action)

    def _roll_back(self) -> None:
        with suppress(DblinkError):
            self._side.run("ROLLBACK", self._action)

    def _begin(self) -> None:
        side, events = self._side, self._events
        start = "BEGIN ISOLATION LEVEL READ COMMITTED"
        if events.own is not None:
            begin(side, start, self._settings, self._action)
            return
        installed, owners = events.installed, side.connection.target.trusted_owners
        installation = sql.SQL(_SQL["installed"]).format(**fragments(installed, owners))
        begin(side, start, {**self._settings, "search_path": PATH}, self._action)
        (row,) = self.run([installation])
        if row["is_standby"]:
            raise TransientError("the server is a standby, which changes nothing", side.conn_id, "25006")
        demand_installed(row, installed, side.conn_id)
        self.run([sql.SQL(guard(installed, owners))])

    def run_named(self, name: str, **values: Any) -> Rows:
        """Run a statement of ``events.sql`` with *values* for its placeholders, and return its rows.

        :raises RemoteError: the server's errors.
        """
        composed = sql.SQL(_SQL[name]).format(**self._events.parts()).as_string()
        return self.run([question(self._side.connection, composed, values)])

    def run(self, statements: Sequence[sql.Composable]) -> Rows:
        """Run *statements* as one message, and return the rows of the last one.

        :raises UsageError: if a part of our schema isn't trusted.
        :raises RemoteError: the server's errors.
        """
        side = self._side
        try:
            with side.connection.cursor(row_factory=dict_row) as cursor:
                cursor.execute(sql.SQL(";\n").join(statements))
                while cursor.nextset():
                    pass
                self.touched = cursor.rowcount
                return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            if (refusal := distrust_of(error, side.conn_id, self._events.installed)) is not None:
                raise refusal from None
            raise from_psycopg(error, side.conn_id, self._action) from None
