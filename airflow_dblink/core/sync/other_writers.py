"""Detects the writes of others while a sync runs."""

from __future__ import annotations

from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements

_SQL = statements("sync.sql")


def snapshot(side: Side) -> str:
    """Return the open transaction's snapshot, or the current one, of *side*'s server.

    :raises RemoteError: the server's errors.
    """
    return str(side.ask(_SQL["snapshot"], action="reading the snapshot")[0]["snapshot"])


def is_quiet(before: str, now: str, *own: int) -> bool:
    """Return whether no transaction that had an id has ended between two snapshots of a server.

    A snapshot is ``xmin:xmax:xip,...``: ids from xmax on hadn't ended, and neither had those in xip.

    :param own: ids of the task's own transactions.
    """
    begun_before, running_before = _parse(before)
    begun_now, running_now = _parse(now)
    ended = running_before - running_now
    begun = set(range(begun_before, min(begun_now, begun_before + 1000))) - running_now - {*own}
    return not ended and not begun and begun_now < begun_before + 1000


def _parse(text: str) -> tuple[int, set[int]]:
    _, high, running = text.split(":")
    return int(high), {int(xid) for xid in running.split(",") if xid}
