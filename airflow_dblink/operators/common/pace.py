"""Limits that spare the servers: the speed at which an operator moves rows, and the pauses that it makes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sqltext.rules import the_query
from airflow_dblink.core.streams.pace import Pace, Pause
from airflow_dblink.operators.common.arguments import demand_timedelta, number
from airflow_dblink.operators.common.base import DblinkBaseOperator

PAUSE_CHECK_INTERVAL = timedelta(seconds=5)
_AWAKE_S = 20.0  # an idle session is ended by idle_session_timeout, or by a pooler or firewall in between


def hold_before_work(pace: Pace, destination: Side, *, awake_s: float = _AWAKE_S) -> None:
    """Wait while the pause wants it, before any work; the destination's session is kept from being idle.

    :param awake_s: seconds after which that session runs an empty statement.
    :raises UsageError, RemoteError, TransientError: as :meth:`Pause.is_wanted`, and if the session is lost.
    """
    spoke = time.monotonic()

    def wait(seconds: float) -> None:
        nonlocal spoke
        destination.idle(seconds)
        if time.monotonic() - spoke >= awake_s:
            destination.run("SELECT", "waiting")
            spoke = time.monotonic()

    pace.hold_while_paused(wait)


class PacedOperator(DblinkBaseOperator):
    """Base of the operators that move many rows; not one itself.

    :param max_mb_per_s: largest number of MB (10^6 bytes of COPY data) to move per second; ``None`` for no
        limit. (templated)
    :param pause_while: a query, or the path of a ``.sql`` file. While the first column of its first row is
        true, rows wait. It runs before any work begins, and while rows move. (templated)
    :param pause_while_conn_id: Airflow connection on which *pause_while* runs, in a session of its own: a
        side's, or any other one, such as a monitor's. By default the destination's. (templated)
    :param pause_check_interval: time from one answer of *pause_while* to the next question.
    """

    def __init__(
        self,
        *,
        max_mb_per_s: float | str | None = None,
        pause_while: str | None = None,
        pause_while_conn_id: str | None = None,
        pause_check_interval: timedelta = PAUSE_CHECK_INTERVAL,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_mb_per_s = max_mb_per_s
        self.pause_while = pause_while
        self.pause_while_conn_id = pause_while_conn_id
        self.pause_check_interval = pause_check_interval
        self._note_given(pause_while=pause_while, pause_while_conn_id=pause_while_conn_id)

    def _demand_pace(self) -> None:
        """Raise unless the arguments are a limit, a query and an interval.

        :raises UsageError: names the argument.
        """
        limit = number("max_mb_per_s", self.max_mb_per_s)
        if limit is not None and not 0 < limit < math.inf:
            raise UsageError(f"max_mb_per_s must be above 0, or None for no limit, got {self.max_mb_per_s!r}")
        demand_timedelta("pause_check_interval", self.pause_check_interval)
        if self.pause_check_interval <= timedelta(0):
            raise UsageError(f"pause_check_interval must be above 0, got {self.pause_check_interval}")
        if self.pause_while is not None:
            the_query(self.pause_while, "pause_while")
        elif self.pause_while_conn_id is not None:
            raise UsageError("pause_while_conn_id belongs to pause_while", hint="give the query, too")

    @contextmanager
    def _pace(self, default_conn_id: str) -> Iterator[Pace | None]:
        """Give the pace of the rows, ``None`` without limits; its session is closed in the end.

        :param default_conn_id: Airflow connection of *pause_while*, unless the task names another one.
        """
        limit, query = number("max_mb_per_s", self.max_mb_per_s), self.pause_while
        if query is None:
            yield None if limit is None else Pace(limit)
            return
        conn_id = self.pause_while_conn_id or default_conn_id
        with self._hook(conn_id) as hook:

            def connect() -> LinkConnection:
                if None in hook.links:  # the session that was lost
                    hook.disconnect()
                return hook.link().connection

            every_s = self.pause_check_interval.total_seconds()
            yield Pace(limit, Pause(query, conn_id, connect, every_s))
