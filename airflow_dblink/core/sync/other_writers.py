"""Detects the writes of others while a sync runs."""

from __future__ import annotations

from airflow_dblink.core.errors import TransientError
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


def rewritten(side: Side) -> str | None:
    """Return a table that *side*'s transaction has read, and that was rewritten after its snapshot, if any.

    :raises RemoteError: the server's errors.
    """
    found = side.ask(_SQL["rewritten"], action="looking for tables that were rewritten")
    return str(found[0]["name"]) if found else None


def demand_read(side: Side) -> None:
    """Raise if :func:`rewritten` finds a table: its rows were not read completely.

    :raises TransientError: 40001.
    """
    if name := rewritten(side):
        raise TransientError(
            f"{name} was truncated, rewritten or replaced after the snapshot was taken, which has neither its"
            " old rows nor its new ones; nothing is changed",
            side.conn_id,
            "40001",
            hint="a retry takes a new snapshot",
        )
