"""COPY from one connection into another, in constant memory.

libpq hands out one row at a time; what makes this as fast as ``psql | psql`` is to give the
rows back in messages of 256 kB, each flushed, and to fill each before it is sent
(``benchmarks/`` compares). Nothing here looks into the data.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import copy_end, copy_to, execute
from psycopg.waiting import Ready, Wait

from airflow_dblink.core.connection import LinkConnection
from airflow_dblink.core.errors import from_psycopg

Report = Callable[[int, int], None]

_CHUNK = 256 * 1024
# A server that fails in COPY FROM STDIN says so at once but goes on swallowing data, and
# libpq shows the error only at the end. 64 chunks are 16 MB.
_CHUNKS_AFTER_UNREAD = 64


@dataclass(frozen=True)
class End:
    """One end of the pump: a connection, its name for errors, and the COPY to run there."""

    connection: LinkConnection
    conn_id: str
    copy: bytes


@dataclass
class Pumped:
    """What went through.

    :ivar sent: rows the source sent.
    :ivar taken: rows the destination kept; less where a trigger or rule dropped some.
    :ivar size: bytes of COPY data.
    """

    sent: int = 0
    taken: int = 0
    size: int = 0


def pump(source: End, destination: End, report: Report) -> Pumped:
    """Run both COPYs, the data going from *source* to *destination*.

    The source speaks first: if it refuses, nothing is sent to the destination. The end of the
    data is passed on only after the source has said that its COPY is complete.

    :param report: called with (rows, bytes) so far, about every 256 kB.
    :raises RemoteError: what either server says, naming its connection. Both connections are
        unusable then: :meth:`~airflow_dblink.core.connection.LinkConnection.abort` them.
    :raises TransientError: if either connection is lost.
    """
    _start(source, pq.ExecStatus.COPY_OUT)
    _start(destination, pq.ExecStatus.COPY_IN)
    listener = _Listener(destination)
    done = Pumped()
    more = True
    while more:
        chunk, rows, more = _wait(source, _chunk(source.connection.pgconn))
        _wait(destination, copy_to(destination.connection.pgconn, chunk, flush=True))
        done.sent, done.size = done.sent + rows, done.size + len(chunk)
        report(done.sent, done.size)
        if listener.heard_error():
            break  # ending the COPY brings the error to light
    else:
        done.sent = _finish(source, execute(source.connection.pgconn))
    done.taken = _finish(destination, copy_end(destination.connection.pgconn, b"error" if more else None))
    return done


def _chunk(pgconn: pq.abc.PGconn) -> PQGen[tuple[bytes, int, bool]]:
    """Gather rows until a chunk is full; whether there may be more."""
    rows: list[bytes] = []
    size = 0
    while size < _CHUNK:
        count, data = pgconn.get_copy_data(1)
        if count > 0:
            rows.append(bytes(data))
            size += count
        elif count < 0:
            return b"".join(rows), len(rows), False
        else:
            while (yield Wait.R) == Ready.NONE:
                pass
            pgconn.consume_input()
    return b"".join(rows), len(rows), True


class _Listener:
    """Notices that a server in COPY FROM STDIN has said something that is no notice: an error."""

    def __init__(self, end: End) -> None:
        self._pgconn = end.connection.pgconn
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)
        self._unread_chunks = 0
        end.connection.add_notice_handler(self._on_notice)

    def _on_notice(self, _: object) -> None:
        self._unread_chunks = 0

    def heard_error(self) -> bool:
        """Look, without waiting. libpq takes in notices here, and leaves an error unread."""
        if self._unread_chunks:
            self._unread_chunks += 1
        if self._poll.poll(0):
            self._unread_chunks = self._unread_chunks or 1
            self._pgconn.consume_input()
            self._pgconn.is_busy()  # parses: a whole notice resets the count
        return self._unread_chunks > _CHUNKS_AFTER_UNREAD


def _start(end: End, expected: pq.ExecStatus) -> None:
    def begin() -> PQGen[list[pq.abc.PGresult]]:
        end.connection.pgconn.send_query(end.copy)
        results: list[pq.abc.PGresult] = yield from execute(end.connection.pgconn)
        return results

    result = _wait(end, begin())[-1]
    if result.status != expected:
        raise from_psycopg(error_from_result(result, encoding="utf-8"), end.conn_id, "copying")


def _finish(end: End, gen: PQGen[Any]) -> int:
    outcome = _wait(end, gen)
    result = outcome[-1] if isinstance(outcome, list) else outcome
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise from_psycopg(error_from_result(result, encoding="utf-8"), end.conn_id, "copying")
    return int(result.command_tuples or 0)


def _wait(end: End, gen: PQGen[Any]) -> Any:
    try:
        return end.connection.wait(gen)
    except psycopg.Error as error:
        raise from_psycopg(error, end.conn_id, "copying") from None
