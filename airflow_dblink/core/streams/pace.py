"""How fast rows move, and when they wait: kindness to servers that have other work to do.

A :class:`Pace` is asked before each piece of data. It waits by calling a function of whoever moves the data,
which goes on listening to the servers meanwhile, and notices a kill.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from psycopg.postgres import types
from psycopg.rows import tuple_row

from airflow_dblink.core.errors import ConnectError, RemoteError, TransientError, UsageError, from_psycopg
from airflow_dblink.core.server.connection import LinkConnection, time_limit
from airflow_dblink.core.server.settings import set_config
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sqltext.rules import the_query
from airflow_dblink.core.sqltext.user_text import UserText

log = logging.getLogger(__name__)

#: Waits for at most the given number of seconds; raises if nothing more should move.
Wait = Callable[[float], None]

_MB = 1e6
_BURST_S = 1.0  # a stream that was slower than allowed may catch up by this much
_LOOK_S = 0.1
_ANSWER_GRACE_S = 5.0  # the server's own time-out gives the better error
_ACTION = "asking pause_while"
_CURSOR = sql.Identifier("airflow_dblink_pause")
_BOOLEAN = types["bool"].oid


@dataclass
class Pause:
    """A query that is asked every few seconds while rows move, in a session of its own; true means wait.

    :ivar query: one query; the first column of its first row is a boolean. False, NULL and no row mean go on.
    :ivar conn_id: where it is asked, for errors and logs.
    :ivar connect: opens the session when it is first needed, and anew when it was lost; whoever gave it
        closes the session.
    :ivar every_s: seconds from one answer to the next question.
    :ivar answer_s: seconds that an answer may take.
    """

    query: str
    conn_id: str
    connect: Callable[[], LinkConnection]
    every_s: float = 5.0
    answer_s: float = 10.0
    _side: Side | None = field(default=None, init=False)

    def is_wanted(self) -> bool:
        """Ask, in a read-only transaction, and return whether rows should wait.

        A session that was lost since the last answer is opened again: it is idle while no rows move, and
        servers and poolers may limit that (``idle_session_timeout``).

        :raises UsageError: if the text isn't one query, or its first column is no boolean.
        :raises RemoteError: the server's errors.
        :raises TransientError: if there is no connection, or no answer within 5 s more.
        """
        part = the_query(self.query, "pause_while", self.conn_id)
        query = UserText(self.query, "pause_while").part(part.start, part.end)
        if self._side is not None:
            try:
                return self._ask(self._side, query)
            except TransientError:
                if not self._side.connection.closed:
                    raise
        try:
            self._side = Side(self.connect(), self.conn_id)
        except ConnectError as error:
            hints = filter(None, (error.hint, "pause_while is asked on this connection"))
            raise error.but(hint="; ".join(hints)) from None
        return self._ask(self._side, query)

    def _ask(self, side: Side, query: UserText) -> bool:
        with _at_most(side, self.answer_s + _ANSWER_GRACE_S):
            side.run("BEGIN READ ONLY", _ACTION)
            limit = {"statement_timeout": f"{self.answer_s * 1000:.0f}ms"}
            side.run(set_config(limit.items(), local=True), _ACTION)
            try:
                return self._answer(side, query)
            except RemoteError as error:
                if error.sqlstate != "57014":
                    raise
                hint = f"it had {self.answer_s:g} s: ask for something that is known sooner"
                raise error.but(hint=error.hint or hint) from None

    def _answer(self, side: Side, query: UserText) -> bool:
        # A cursor gives one row, however many there are, and the query changes nothing.
        declare = sql.SQL("DECLARE {} NO SCROLL CURSOR FOR {}\n").format(_CURSOR, query)
        side.run(declare, _ACTION)
        try:
            with side.connection.cursor(row_factory=tuple_row) as cursor:
                cursor.execute(sql.SQL("FETCH FORWARD 1 FROM {}").format(_CURSOR))
                kinds = [column.type_code for column in cursor.description or ()]
                row = cursor.fetchone() if kinds else None
        except psycopg.Error as error:
            raise from_psycopg(error, side.conn_id, _ACTION) from None
        if kinds[:1] != [_BOOLEAN]:
            known = types.get(kinds[0]) if kinds else None
            got = f"a value of type {known.name if known else 'unknown'}" if kinds else "no column"
            raise UsageError(
                f"pause_while must give true or false, got {got}",
                side.conn_id,
                hint="write a condition: SELECT ... > 5; true lets the rows wait",
            )
        side.run("ROLLBACK", _ACTION)
        return row is not None and row[0] is True


@contextmanager
def _at_most(side: Side, seconds: float) -> Iterator[None]:
    """Raise if the server doesn't answer within *seconds*: rows wait, and nobody listens to their servers."""
    connection = side.connection
    before, is_late = connection.check, time_limit(side.conn_id, seconds)

    def check() -> None:
        if before is not None:
            before()
        try:
            is_late()
        except TransientError as error:
            raise error.but(hint="pause_while is asked on this connection") from None

    connection.check = check
    try:
        yield
    finally:
        connection.check = before


@dataclass
class Pace:
    """When the next piece of data may move.

    :ivar max_mb_per_s: limit of the stream, in MB (10^6 bytes of COPY data) per second; ``None``: none. A
        stream that was slower catches up by what one second may move, and no more.
    :ivar pause: the query that makes rows wait, with or without a limit; ``None``: none.
    :ivar clock: gives seconds.
    :ivar paused_s: seconds that *pause* has taken so far.
    """

    max_mb_per_s: float | None = None
    pause: Pause | None = None
    clock: Callable[[], float] = time.monotonic
    paused_s: float = 0.0
    _due: float | None = field(default=None, init=False)
    _asked: float | None = field(default=None, init=False)

    def hold(self, size: int, wait: Wait) -> None:
        """Wait until *size* bytes more may move, by calling *wait*.

        :raises UsageError, RemoteError, TransientError: as :meth:`Pause.is_wanted`.
        :raises Exception: the errors of *wait*.
        """
        self.hold_while_paused(wait)
        if self.max_mb_per_s is not None:
            now = self.clock()
            due = now if self._due is None else max(self._due, now - _BURST_S)
            self._wait_until(due, wait)
            self._due = due + size / (self.max_mb_per_s * _MB)

    def hold_while_paused(self, wait: Wait) -> None:
        """Wait while :attr:`pause` wants it, by calling *wait*; asks no more often than it should.

        :raises UsageError, RemoteError, TransientError: as :meth:`Pause.is_wanted`.
        :raises Exception: the errors of *wait*.
        """
        if self.pause is None or not self._is_due(self.pause) or not self._asks(self.pause):
            return
        started = self.clock()
        log.info("Paused: pause_while is true on %s.", self.pause.conn_id)
        try:
            self._wait_until(self.clock() + self.pause.every_s, wait)
            while self._asks(self.pause):
                self._wait_until(self.clock() + self.pause.every_s, wait)
        finally:
            self.paused_s += self.clock() - started
        log.info("Going on after a pause of %.0f s.", self.clock() - started)

    def _is_due(self, pause: Pause) -> bool:
        return self._asked is None or self.clock() - self._asked >= pause.every_s

    def _asks(self, pause: Pause) -> bool:
        wanted = pause.is_wanted()
        self._asked = self.clock()
        return wanted

    def _wait_until(self, due: float, wait: Wait) -> None:
        while (left_s := due - self.clock()) > 0:
            wait(min(left_s, _LOOK_S))
