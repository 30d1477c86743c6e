"""The progress of a task that moves rows, in its log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from airflow_dblink.core.parts.so_far import SoFar
from airflow_dblink.core.streams.pace import Pace

_MB = 1e6
_MINUTE, _HOUR = 60, 3600
_NEARLY_ALL = 0.99  # the largest share that is shown before the end, since the total is an estimate


class Progress:
    """Logs how much has been moved: every few seconds in the first minute, then less and less often.

    :param log_line: takes a format and its values.
    :param pace: the pace whose pauses don't count for the speed.
    """

    every_s = 5.0
    _least_often = 12  # times that interval

    def __init__(self, log_line: Callable[..., None], pace: Pace | None = None) -> None:
        self._log_line = log_line
        self._pace = pace
        self._last_size: int | None = None
        self._begin(0, 0)

    def _begin(self, rows: int, size: int) -> None:
        self._began_with, self._paused_s = (rows, size), self._paused
        self._started = self._said = time.monotonic()

    @property
    def _paused(self) -> float:
        return 0.0 if self._pace is None else self._pace.paused_s

    def report(self, rows: int, size: int, total: int | None) -> None:
        """Note how many rows have been moved, and log it if the last line is old enough.

        If there are fewer bytes than before, another stream has begun.

        :param size: bytes.
        :param total: estimated number of all rows; ``None`` if there is no estimate.
        """
        if self._last_size is None or size < self._last_size:
            self._begin(rows, size)
        self._last_size = size
        now = time.monotonic()
        minutes = (now - self._started) / _MINUTE
        if now - self._said < self.every_s * min(max(minutes, 1), self._least_often):
            return
        self._said = now
        seconds = now - self._started - (self._paused - self._paused_s)
        moved_rows, moved = rows - self._began_with[0], size - self._began_with[1]
        self._say("So far", rows, size, moved / max(seconds, 0.001), _left(rows, moved_rows, total, seconds))

    def say(self, what: str, rows: int, size: int, seconds: float) -> None:
        """Log the counts and the speed of the whole move."""
        self._say(what, rows, size, size / max(seconds, 0.001))

    def _say(self, what: str, rows: int, size: int, speed: float, more: str = "") -> None:
        figures: tuple[Any, ...] = (f"{rows:,}", size / _MB, speed / _MB)
        self._log_line("%s: %s rows, %.1f MB, %.1f MB/s%s", what, *figures, more)


def say_so_far(log_line: Callable[..., None], what: str, all_parts: SoFar) -> None:
    """Log how far all parts of a load have come.

    :param log_line: takes a format and its values.
    """
    share = int(100 * all_parts.done / all_parts.parts)
    figures: tuple[Any, ...] = (all_parts.done, all_parts.parts, share, f"{all_parts.rows:,}")
    figures += (all_parts.bytes / _MB, all_parts.bytes / _MB / max(all_parts.seconds, 0.001))
    left = f", about {duration(all_parts.seconds_left)} left" if all_parts.done < all_parts.parts else ""
    log_line("%s: %s of %s parts (%s%%), %s rows, %.1f MB, %.1f MB/s%s", what, *figures, left)


def _left(rows: int, moved: int, total: int | None, seconds: float) -> str:
    """Return the share of *total* that has been moved, and the estimated time for the rest."""
    if not total:
        return ""
    if rows > total:
        return f", more than the {total:,} that were estimated"
    share = min(rows / total, _NEARLY_ALL)
    left = f", {duration((total - rows) * seconds / moved)} left" if moved > 0 else ""
    return f", about {int(share * 100)}% of {total:,}{left}"


def duration(seconds: float) -> str:
    """Return a duration for readers: ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:,.0f} s"
    minutes = round(seconds / _MINUTE)
    if seconds < 2 * _HOUR:
        return f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"
