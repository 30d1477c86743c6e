"""The state that an exactly-once task stores for its next try, and the checks before it is believed.

Airflow keeps the state, so users may have changed it or copied it from another task. It is a JSON object:

* ``task``: the task's name.
* ``ticket``: the transaction, its session, its server, and ``flushed``: whether the transaction's id was on
  the server's disk before the ticket was stored.
* ``result``: the result that a retry returns, once it is known.
* ``life`` and ``ended`` of :mod:`airflow_dblink.core.once.tries`; here ``ended`` is ``returned``, or
  ``unknown`` after :class:`~airflow_dblink.core.errors.OutcomeUnknownError`.

Earlier versions stored no ``task`` and no ``flushed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_dblink.core.once.tries import Left

_TEXTS = ("backend_start", "system_identifier", "database", "timeline")
_MAX_DIGITS = 20  # of 64 bits


@dataclass(frozen=True)
class Stored:
    """The stored state of an earlier try.

    :ivar task: the task that stored it; ``None`` if it names none.
    :ivar ticket: the ticket; ``None`` if the stored value is not a valid one.
    :ivar ended: ``returned``, ``unknown``, or ``None``.
    :ivar result: the result that a retry should return.
    """

    task: Mapping[str, Any] | None
    ticket: Mapping[str, Any] | None
    ended: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def xid(self) -> str:
        """The transaction's id."""
        return str(self.ticket["xid"]) if self.ticket else "?"

    def why_not_of(self, task: Mapping[str, Any] | None) -> str | None:
        """Return the reason why this state can't be *task*'s; ``None`` if it can be."""
        if self.ticket is None and self.ended != "returned":
            return "its stored state can't be read"
        if self.task is not None and self.task != task:
            return "its stored state is another task's"
        return None


def read(left: Left) -> Stored:
    """Return the stored state in *left*."""
    given, result = left.facts, left.facts.get("result")
    return Stored(
        task=given.get("task"),
        ticket=given["ticket"] if _is_ticket(given.get("ticket")) else None,
        ended=left.ended,
        result=dict(result) if isinstance(result, Mapping) else {},
    )


def is_flushed(ticket: Mapping[str, Any]) -> bool:
    """Return whether the id was on disk before the ticket was stored: then no crash lets it be reused."""
    return ticket.get("flushed") is True


def _is_ticket(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("pid"), int):
        return False
    xid, epoch = value.get("xid"), value.get("crash_epoch")
    is_id = isinstance(xid, str) and xid.isascii() and xid.isdecimal() and len(xid) <= _MAX_DIGITS
    return (
        is_id
        and all(isinstance(value.get(name), str) for name in _TEXTS)
        and (epoch is None or isinstance(epoch, str))
    )
