"""COPY from one connection into another, in constant memory.

libpq hands out one row at a time. To be as fast as ``psql | psql``, the rows are sent on in messages of
256 kB, each filled before it is sent, and flushed then (``benchmarks/`` compares). Nobody reads the data
in between. A longer row is sent in pieces from libpq's memory, so it is in memory twice: in libpq's
buffer, whose size is a power of two and which the next row's beginning may fill, and as the row that libpq
hands out.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import psycopg
from psycopg import pq, sql
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import execute, fetch
from psycopg.waiting import Ready, Wait

from airflow_dblink.core.errors import TransientError, from_psycopg
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.streams.pace import Pace

Report = Callable[[int, int], None]
#: COPY data: rows put together, or one long row as libpq handed it out.
Data: TypeAlias = bytes | bytearray | memoryview

_CHUNK = 256 * 1024
# Binary COPY data begins with a header (signature, flags, length of an extension), and ends with a trailer, a
# field count of -1. The header comes in one message with the first row. The trailer has a message of its own,
# or follows the header if there are no rows. No row looks like them: a row of text ends with a newline, and a
# binary row begins with its field count.
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
LAST_MESSAGES = (TRAILER, HEADER + TRAILER)
# A server that fails in COPY FROM STDIN says so at once but goes on swallowing data, and
# libpq shows the error only at the end. 64 chunks are 16 MB.
_CHUNKS_AFTER_UNREAD = 64
# While nothing is sent: a message whose end doesn't come within this time is no notice.
_REST_OF_NOTICE_S = 30.0
_HANGS_UP = getattr(select, "POLLRDHUP", 0)  # Linux only; a reset connection shows everywhere


@dataclass(frozen=True)
class End:
    """One end of the pump: a connection, its name for errors, and the COPY to run there."""

    connection: LinkConnection
    conn_id: str
    copy: bytes

    @classmethod
    def of(cls, side: Side, copy: sql.Composed | sql.SQL) -> Self:
        """Return the end on *side*."""
        return cls(side.connection, side.conn_id, copy.as_string(side.connection).encode())


@dataclass
class Pumped:
    """The amount of data that went through.

    :ivar sent: rows the source sent.
    :ivar taken: rows the destination kept: fewer if a trigger or rule dropped some.
    :ivar size: bytes of COPY data.
    """

    sent: int = 0
    taken: int = 0
    size: int = 0


def pump(source: End, destination: End, report: Report, pace: Pace | None = None) -> Pumped:
    """Run both COPYs, the data going from *source* to *destination*.

    The source speaks first: if it refuses, nothing is sent to the destination. The end of the
    data is passed on only after the source has said that its COPY is complete.

    :param report: called with (rows, bytes) so far, about every 256 kB.
    :param pace: how fast the data may move, and when it has to wait; ``None``: as fast as it can.
    :raises RemoteError: a server's error, with the name of its connection. Both connections are
        unusable then: :meth:`~airflow_dblink.core.server.connection.LinkConnection.abort` them.
    :raises TransientError: if either connection is lost.
    :raises UsageError: if the pace's query can't be used.
    """
    _start(source, pq.ExecStatus.COPY_OUT)
    _start(destination, pq.ExecStatus.COPY_IN)
    with Listener(destination.connection) as listener:
        done, more = _move(source, destination, listener, report, pace)
        if not more:
            done.sent = _finish(source, execute(source.connection.pgconn))
        reason = b"the client stopped" if more else None  # ending the COPY brings the error to light
        done.taken = _finish(destination, listener.end(reason))
    return done


def _move(
    source: End, destination: End, listener: Listener, report: Report, pace: Pace | None
) -> tuple[Pumped, bool]:
    """Move chunk by chunk; return also whether the destination refused to take the rest."""
    done, more, refused = Pumped(), True, False
    while more and not refused:
        chunk, rows, more = _wait(source, _chunk(source.connection.pgconn))
        done.sent, done.size = done.sent + rows, done.size + sum(map(len, chunk))
        if pace is not None:
            chunk = _pieces(chunk)
        while chunk and not refused:
            if pace is not None and _refuses_meanwhile(source, destination, listener, pace, len(chunk[0])):
                return done, True
            refused = _wait(destination, listener.send(chunk.popleft()))  # let go of before the next is read
        report(done.sent, done.size)
    return done, more


def _pieces(chunk: Iterable[Data]) -> deque[Data]:
    """Cut data, a long row above all, into pieces that a pace can hold."""
    return deque(
        memoryview(data)[start : start + _CHUNK] for data in chunk for start in range(0, len(data), _CHUNK)
    )


def _refuses_meanwhile(source: End, destination: End, listener: Listener, pace: Pace, size: int) -> bool:
    """Wait until *size* bytes may be sent; return whether the destination has sent an error meanwhile."""
    source_poll = select.poll()
    source_poll.register(source.connection.pgconn.socket, _HANGS_UP)  # not to read: it always has more

    def wait(seconds: float) -> None:
        try:
            listener.idle(seconds)
        except psycopg.Error as error:
            raise from_psycopg(error, destination.conn_id, "copying") from None
        if source_poll.poll(0):
            raise TransientError("the server closed the connection", source.conn_id, "08006")

    try:
        pace.hold(size, wait)
    except Refused:
        return True
    return False


def _chunk(pgconn: pq.abc.PGconn) -> PQGen[tuple[deque[Data], int, bool]]:
    """Collect rows until a chunk is full; return also whether there may be more rows."""
    # Each row is copied once and never becomes an object: a fifth of the time of a list of bytes, joined.
    filled, rows, last = bytearray(), 0, memoryview(b"")
    get = pgconn.get_copy_data
    while len(filled) < _CHUNK:
        count, data = get(1)
        if count >= _CHUNK:
            return deque([filled, data]), rows + 1, True
        if count > 0:
            filled += data
            rows, last = rows + 1, data
        elif count < 0:
            return deque([filled]), rows - (last in LAST_MESSAGES), False
        else:
            while (yield Wait.R) == Ready.NONE:
                pass
            pgconn.consume_input()
    return deque([filled]), rows - (last in LAST_MESSAGES), True


class Refused(Exception):
    """The destination has sent an error, which the end of the COPY brings to light."""


class Listener:
    """Reads the destination's messages while it takes data, and detects an error among its notices.

    psycopg's copy_to doesn't read meanwhile: a server with many messages (a NOTICE per row) would wait
    for us to read, while we wait for it to take data, for ever. libpq handles notices as they
    come, and leaves an error unread until the COPY has ended.
    """

    def __init__(self, connection: LinkConnection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)
        self._unread_chunks = 0
        self._heard_at = 0.0

    def __enter__(self) -> Self:
        self._connection.add_notice_handler(self._on_notice)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.remove_notice_handler(self._on_notice)

    def _on_notice(self, _: object) -> None:
        self._unread_chunks = 0

    @property
    def has_unread(self) -> bool:
        """Whether the server has sent a message that may be an error; the end of the COPY will tell."""
        return self._unread_chunks > 0

    def send(self, chunk: Data) -> PQGen[bool]:
        """Send *chunk*; return whether the server has sent a message that is no notice."""
        if self._unread_chunks:
            self._unread_chunks += 1
        view, size = memoryview(chunk), len(chunk)
        step = size if size < 2 * _CHUNK else _CHUNK  # a long row in pieces: libpq would double it
        for start in range(0, size, step or 1):
            while self._pgconn.put_copy_data(view[start : start + step]) == 0:
                yield from self._room()
            while self._pgconn.flush():
                yield from self._room()
        if self._poll.poll(0):
            self.listen()
        return self._unread_chunks > _CHUNKS_AFTER_UNREAD

    def end(self, reason: bytes | None) -> PQGen[pq.abc.PGresult | None]:
        """End the COPY, as failed if there is a *reason*; return the server's result."""
        while self._pgconn.put_copy_end(reason) == 0:
            yield from self._room()
        while self._pgconn.flush():
            yield from self._room()
        result: pq.abc.PGresult | None = yield from fetch(self._pgconn)
        while (yield from fetch(self._pgconn)) is not None:
            pass
        return result

    def _room(self) -> PQGen[None]:
        ready = yield Wait.RW
        if ready & Ready.R:
            self.listen()

    def idle(self, seconds: float) -> None:
        """Listen for at most *seconds* while nothing is sent; call the connection's check first.

        :raises Refused: if the server has sent a message that is no notice.
        :raises psycopg.Error: if the connection is lost.
        """
        if self._connection.check:
            self._connection.check()
        if self._poll.poll(seconds * 1000):
            self.listen()
        elif self._unread_chunks and time.monotonic() - self._heard_at > _REST_OF_NOTICE_S:
            raise Refused

    def listen(self) -> None:
        """Read the messages that the server has sent."""
        self._unread_chunks = self._unread_chunks or 1
        self._heard_at = time.monotonic()
        self._pgconn.consume_input()
        self._pgconn.is_busy()  # parses: a whole notice resets the count


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
    if end.connection.check:  # asked here, too: if data always comes at once, nobody waits and asks
        end.connection.check()
    try:
        return end.connection.wait(gen)
    except psycopg.Error as error:
        raise from_psycopg(error, end.conn_id, "copying") from None
