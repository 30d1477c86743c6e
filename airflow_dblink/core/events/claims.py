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
from psycopg.adapt import Transformer
from psycopg.postgres import types
from psycopg.pq import abc

from airflow_dblink.core.errors import DblinkError, TransientError, UsageError, from_psycopg
from airflow_dblink.core.events.install import demand_installed
from airflow_dblink.core.events.table import Events
from airflow_dblink.core.installed.trust import distrust_of, fragments, guard
from airflow_dblink.core.server.own_sql import PATH
from airflow_dblink.core.server.settings import Settings
from airflow_dblink.core.server.side import Side, begin
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.streams.to_json import JsonValues

_SQL = statements("events.sql")

_INTEGERS = tuple(types[name].oid for name in ("int2", "int4", "int8"))

Rows = list[dict[str, Any]]


def claim_key(task: Mapping[str, Any]) -> str:
    """Return the key of a run's task: ``dag_id/run_id/task_id/map_index``."""
    return "/".join(str(task[name]) for name in ("dag_id", "run_id", "task_id", "map_index"))


def claim_ids(side: Side, events: Events, key: str, *, most: int, settings: Settings) -> list[int | str]:
    """Claim up to *most* events in a transaction of their own, and return their ids in order.

    If *key* has claimed events of the topic before, these are returned, however many, and no new ones are
    claimed. Events that another transaction has locked are left out.

    :param key: of the run's task; see :func:`claim_key`.
    :param settings: run-time parameters of the transaction.
    :returns: integers; ids of other types as PostgreSQL's texts.
    :raises UsageError: for a mistake in *events*; if the event schema isn't there, or isn't trusted; if ids
        aren't unique, or the table doesn't keep the key as it is.
    :raises RemoteError: the server's errors; nothing is claimed then.
    """
    wanted = sql.SQL("e.{}").format(sql.Identifier(events.table.id))
    result = _claim(side, events, key, most, settings, wanted)
    encoding = side.connection.info.encoding
    texts = [(result.get_value(i, 0) or b"").decode(encoding) for i in range(result.ntuples)]
    return [int(text) for text in texts] if result.ftype(0) in _INTEGERS else [*texts]


def claim_rows(side: Side, events: Events, key: str, *, most: int, settings: Settings) -> Rows:
    """Claim events as :func:`claim_ids`, and return them with all columns.

    A row with a value that Python can't hold has its values as JSON values; see
    :mod:`airflow_dblink.core.streams.to_json`. Otherwise one such event would stop all claims.
    """
    result = _claim(side, events, key, most, settings, sql.SQL("e.*"))
    encoding = side.connection.info.encoding
    names = [(result.fname(i) or b"").decode(encoding) for i in range(result.nfields)]
    typed, as_json = Transformer(side.connection), Transformer(JsonValues(side.connection))
    for transformer in (typed, as_json):
        transformer.set_pgresult(result)
    return [dict(zip(names, _values(typed, as_json, i), strict=True)) for i in range(result.ntuples)]


def _values(typed: Any, as_json: Any, row: int) -> Sequence[Any]:
    found: Sequence[Any]
    try:
        found = typed.load_row(row, tuple)
    except (psycopg.Error, ValueError, OverflowError, RecursionError):
        found = as_json.load_row(row, tuple)
    return found


def _claim(
    side: Side, events: Events, key: str, most: int, settings: Settings, wanted: sql.Composable
) -> abc.PGresult:
    events.demand_topic()
    table = events.table
    assignments = _assigned(
        (table.claimed_by, sql.Literal(key)),
        (table.claimed_at, sql.SQL("pg_catalog.now()")),
    )
    parts = {
        **events.parts(),
        **{"claim": sql.Literal(key), "most": sql.Literal(most), "assignments": assignments},
        **{"wanted": wanted, "returned": wanted},
    }
    lock, claimed, claim, kept = (
        sql.SQL(_SQL[name]).format(**parts) for name in ("lock", "claimed", "claim", "kept")
    )
    with Transaction(side, events, settings, "claiming events") as transaction:
        found = transaction.result([lock, claimed])
        if found.ntuples:
            return found
        found = transaction.result([claim])
        if found.ntuples > most:
            raise UsageError(
                f"ids in {table.name} are not unique: {found.ntuples} events have the ids of {most}",
                side.conn_id,
                hint="name a column that identifies an event: EventTable(..., id='...')",
            )
        if found.ntuples and transaction.run([kept])[0]["kept"] != found.ntuples:
            raise UsageError(
                f"column {table.claimed_by} of {table.name} does not keep the key of a claim as it is",
                side.conn_id,
                hint=f"it has to be a text column without a trigger that changes it; the key is {key!r}",
            )
        return found


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
        """Run a statement of ``events.sql`` with these *values* in it, and return its rows.

        :raises RemoteError: the server's errors.
        """
        literals = {name: sql.Literal(value) for name, value in values.items()}
        return self.run([sql.SQL(_SQL[name]).format(**self._events.parts(), **literals)])

    def run(self, statements: Sequence[sql.Composable]) -> Rows:
        """Run *statements* as one message, and return the rows of the last one.

        :raises UsageError: if a part of our schema isn't trusted.
        :raises RemoteError: the server's errors.
        """
        result = self.result(statements)
        encoding = self._side.connection.info.encoding
        names = [(result.fname(i) or b"").decode(encoding) for i in range(result.nfields)]
        transformer = Transformer(self._side.connection)
        transformer.set_pgresult(result)
        rows = transformer.load_rows(0, result.ntuples, tuple)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def result(self, statements: Sequence[sql.Composable]) -> abc.PGresult:
        """Run *statements* as one message, and return the result of the last one.

        :raises UsageError: if a part of our schema isn't trusted.
        :raises RemoteError: the server's errors.
        """
        side = self._side
        try:
            with side.connection.cursor() as cursor:
                cursor.execute(sql.SQL(";\n").join(statements))
                while cursor.nextset():
                    pass
                self.touched = cursor.rowcount
                found: abc.PGresult = cursor.pgresult  # type: ignore[assignment]  # there is one
                return found
        except psycopg.Error as error:
            if (refusal := distrust_of(error, side.conn_id, self._events.installed)) is not None:
                raise refusal from None
            raise from_psycopg(error, side.conn_id, self._action) from None
