"""A swap waits for what others hold: locks, each for a moment and never without an end, and snapshots.

Who waits behind a lock that we wait for, waits for us. If we then wait for him, PostgreSQL ends whoever has
waited for ``deadlock_timeout`` first. So we give in before that: the loser would be a reader.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from psycopg import sql

from airflow_dblink.core.errors import RemoteError, TransientError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.entries import Relation

T = TypeVar("T")

log = logging.getLogger(__name__)

_SQL = statements("swap.sql")
_NOT_LOCKED = ("55P03", "40P01")  # lock_timeout is over; a deadlock
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 8.0
_LOOK_S = 0.2
_FIRST_SHARE = 0.65  # of deadlock_timeout; a quarter of it is for the further locks
_MOST_NAMED = 3
_HAVE_ALL = _SQL["have_all"]
_BEGIN = "SAVEPOINT airflow_dblink_swap; SET LOCAL lock_timeout = '{}ms'"
_UNDO = "ROLLBACK TO SAVEPOINT airflow_dblink_swap; RELEASE SAVEPOINT airflow_dblink_swap"


@dataclass(frozen=True)
class Patience:
    """How long statements of the open transaction may wait for a lock.

    :ivar before: the transaction's own *lock_timeout*.
    :ivar deadlock_ms: after so many milliseconds a session that waits for a lock looks for a deadlock.
    """

    side: Side
    before: str
    deadlock_ms: int

    @classmethod
    def of(cls, side: Side) -> Patience:
        """Read it from the transaction's settings."""
        found = side.ask(_SQL["settings"])[0]
        return cls(side, found["lock_timeout"], found["deadlock_ms"])

    @property
    def first_ms(self) -> int:
        """For the lock that readers queue behind."""
        return max(1, min(1000, self.deadlock_ms // 2))

    def next_ms(self, locks: int) -> int:
        """For each of so many further *locks*, while the first one keeps readers waiting."""
        return max(1, min(50, self.deadlock_ms // 4 // max(1, locks)))

    def have_all(self, statements: Sequence[sql.Composable]) -> sql.Composed:
        """Return a statement that runs *statements*, whose locks are all waited for within :attr:`first_ms`.

        It is to be parsed and run under the path of :mod:`.own_sql`.
        """
        texts = sql.SQL(", ").join(sql.Literal(each.as_string(self.side.connection)) for each in statements)
        body = sql.SQL(_HAVE_ALL).format(texts=texts, ms=self.first_ms)
        return sql.SQL("DO {}").format(sql.Literal(body.as_string(self.side.connection)))

    def demand_time_left(self, seconds: float) -> None:
        """Raise if the first lock came so late that the further ones might be waited for too long.

        Somebody may have waited for us since the attempt began. This process, too, may stand still.

        :param seconds: since the attempt began.
        :raises RemoteError: 55P03, as if the lock had not come: the attempt is undone, and others go on.
        """
        if 1000 * seconds > _FIRST_SHARE * self.deadlock_ms:
            raise RemoteError("the lock came too late", self.side.conn_id, "55P03")

    @property
    def writers_ms(self) -> int:
        """For a lock that only writers queue behind: long enough to end an autovacuum, as a deadlock is."""
        return min(10_000, max(1000, self.deadlock_ms + 500))

    @property
    def end(self) -> list[sql.Composable]:
        """The statements that end an attempt which has got its locks."""
        return [
            sql.SQL("RELEASE SAVEPOINT airflow_dblink_swap"),
            sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(self.before)),
        ]

    def until_had(
        self,
        attempts: Sequence[Callable[[], T]],
        wait_ms: int,
        timeout_s: float,
        tables: Sequence[Relation],
        *,
        writers: bool,
    ) -> T:
        """Make attempts until one gets all its locks, with pauses in which others go on; return its result.

        :param attempts: are made one after the other before a pause; each begins in a savepoint, and runs the
            statements of :attr:`end` last.
        :param wait_ms: how long its statements wait for a lock.
        :param timeout_s: after so many seconds the last attempts are made.
        :param tables: are swapped.
        :param writers: whether only the tables that they refer to are locked, and only writers are in the
            way.
        :raises TransientError: if the locks aren't had in time; names who holds them.
        :raises RemoteError: what the server says.
        """
        named = named_of(tables)
        what = f"a table that {named} references" if writers else named
        oids = [table.oid for table in tables]
        deadline, pause = time.monotonic() + timeout_s, _FIRST_PAUSE_S
        while True:
            for attempt in attempts:
                self.side.run(_BEGIN.format(wait_ms), "waiting for a lock")
                try:
                    return attempt()
                except RemoteError as error:
                    if error.sqlstate not in _NOT_LOCKED:
                        raise
                self.side.run(_UNDO, "waiting for a lock")
            _look_anew(self.side)
            rows = self.side.ask(_SQL["holders"], {"oids": oids, "writers": writers})
            holders = _names(rows, which=len(tables) > 1)
            if time.monotonic() >= deadline:
                raise TransientError(
                    f"{what} could not be locked within swap_timeout; it is used by {holders}",
                    self.side.conn_id,
                    "55P03",
                    hint="nothing is changed; end that session, or give more time: swap_timeout=...",
                )
            log.info("%s is in use, the swap waits: %s", what, holders)
            _sleep(self.side, min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def named_of(tables: Sequence[Relation]) -> str:
    """Return the tables as errors name them: not all of many."""
    rest = len(tables) - _MOST_NAMED
    named = ", ".join(map(str, tables[:_MOST_NAMED]))
    return named if rest <= 0 else f"{named} or one of {rest} more tables"


def wait_for_snapshots(side: Side, timeout_s: float, over: str, hint: str) -> None:
    """Wait for the transactions of this database that hold a snapshot now; not for those that come later.

    :param over: how the error begins; the sessions are named after it.
    :raises TransientError: if they don't end within *timeout_s*.
    """
    deadline = time.monotonic() + timeout_s
    waits_for: set[str] | None = None
    while True:
        _look_anew(side)
        rows = {row["transaction"]: row for row in side.ask(_SQL["snapshots"])}
        waits_for = {*rows} if waits_for is None else waits_for & {*rows}
        if not waits_for:
            return
        if time.monotonic() >= deadline:
            sessions = _names([row for transaction, row in rows.items() if transaction in waits_for][:5])
            raise TransientError(f"{over}: {sessions}", side.conn_id, "55P03", hint=hint)
        _sleep(side, _LOOK_S)


def _look_anew(side: Side) -> None:
    # A transaction sees the sessions as they were when it first looked.
    side.run("SELECT pg_catalog.pg_stat_clear_snapshot()", "looking for other sessions")


def _sleep(side: Side, seconds: float) -> None:
    # On the server, since the session must not be idle in its transaction for long.
    sleep = sql.SQL("SELECT pg_catalog.pg_sleep({})").format(sql.Literal(seconds))
    side.run(sleep, "waiting for other sessions")


def _names(rows: Sequence[dict[str, Any]], *, which: bool = False) -> str:
    """Return the sessions as errors name them: no query's text.

    :param which: say which table each of them uses.
    """
    named = [f"{_name(row)} uses {row['relation']}" if which else _name(row) for row in rows]
    return ", ".join(named) or "nobody any more"


def _name(row: dict[str, Any]) -> str:
    if row["pid"] is None:
        return "a prepared transaction"
    facts = [repr(row["application_name"] or "")]
    if row["state"] is not None:  # of another role's session only pg_read_all_stats sees it
        facts += [row["state"], f"{row['seconds']} s"]
    return f"pid {row['pid']} ({', '.join(facts)})"
