"""The base of operators that move rows into a table of another database, by COPY and exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_dblink.core.server.side import Side
from airflow_dblink.core.transfer.plan import Mode, Spec
from airflow_dblink.core.transfer.run import prepare, run
from airflow_dblink.operators.common.once import ExactlyOnceOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

_MB = 1e6


class MovingOperator(ExactlyOnceOperator):
    """Base of the operators that move rows by COPY; not one itself.

    :param mode: ``append``, ``replace``, ``upsert`` or ``create``. (templated)
    :param allow_empty_source: let an empty source empty the destination in mode ``replace``. (templated)
    """

    def __init__(
        self, *, mode: Mode = "append", allow_empty_source: bool | str = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.mode = mode
        self.allow_empty_source = allow_empty_source

    def _move(
        self, context: Context, source_conn_id: str, destination_conn_id: str, spec: Spec
    ) -> dict[str, Any]:
        """Move the rows, once across all tries, and return the counts."""
        with self._hook(source_conn_id) as source_hook, self._hook(destination_conn_id) as destination_hook:
            destination = Side(destination_hook.link().connection, destination_conn_id)
            once = self._once(context, destination.connection, destination.conn_id)
            if (result := self._recall(context, destination_hook, once)) is not None:
                self.log.info("An earlier try has committed: nothing is moved. %s", result)
                once.finish(result)
                return result
            source = Side(source_hook.link().connection, source_conn_id)
            settings = self._settings(destination.connection, destination.conn_id)
            source_settings = self._settings(source.connection, source.conn_id)
            work = prepare(source, destination, spec, source_settings, settings)
            self.log.info(
                "%s -> %s.%s: %s columns, %s, mode %s",
                source_conn_id,
                destination_conn_id,
                spec.destination_table,
                len(work.pairs),
                work.format,
                spec.mode,
            )
            progress = Progress(self.log.info)
            result = run(source, destination, work, once, settings, progress.report)
            progress.say("Moved", result["rows"], result["bytes"], result["seconds"])
            self._check()
            once.finish(result)
            return result


class Progress:
    """Logs every few seconds how much has been moved."""

    every_s = 5.0

    def __init__(self, log_line: Callable[..., None]) -> None:
        self._log_line = log_line
        self._started = self._said = time.monotonic()

    def report(self, rows: int, size: int, total: int | None) -> None:
        """Note how many rows have been moved, and log it if the last line is old enough.

        :param size: bytes.
        :param total: estimated number of all rows; ``None`` if there is no estimate.
        """
        now = time.monotonic()
        if now - self._said < self.every_s:
            return
        self._said = now
        left = ""
        if total and rows:
            share = min(rows / total, 1.0)
            remaining = (now - self._started) * (1 - share) / share
            left = f", about {share:.0%} of {total:,}, {remaining:,.0f} s left"
        self.say("So far", rows, size, now - self._started, left)

    def say(self, what: str, rows: int, size: int, seconds: float, more: str = "") -> None:
        """Log the counts and the speed."""
        speed = size / _MB / max(seconds, 0.001)
        self._log_line("%s: %s rows, %.1f MB, %.1f MB/s%s", what, f"{rows:,}", size / _MB, speed, more)
