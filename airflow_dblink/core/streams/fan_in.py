"""COPY from several connections at the same time into tables of one, in constant memory.

All remotes work at once, and their data is received as it comes. The home session can run only one
COPY at a time, so the streams are cut between rows and loaded in turns, with a COPY for each turn. While
only one remote has data, its COPY stays open, as in :func:`airflow_dblink.core.streams.pump.pump`.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import execute, fetch, fetch_many
from psycopg.waiting import Ready, Wait

from airflow_dblink.core.errors import RemoteError, from_psycopg
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.streams.pump import HEADER, LAST_MESSAGES, TRAILER, Data, Listener

#: Called with the name of a set, its rows and its bytes so far.
Report = Callable[[str, int, int], None]

_CHUNK = 256 * 1024
# Bytes of each remote that are held here until its turn comes: enough to be worth a COPY.
_AHEAD = 4 * 1024 * 1024
_WORTHWHILE = 2 * 1024 * 1024
_TURN = 8 * 1024 * 1024  # of one remote, while others wait
_LOOK_MS = 100

_EVENTS = {Wait.R: select.POLLIN, Wait.W: select.POLLOUT, Wait.RW: select.POLLIN | select.POLLOUT}


@dataclass
class Load:
    """The result of one query, and the table that it fills.

    :ivar name: for errors and progress.
    :ivar copy_out: the COPY of its remote.
    :ivar copy_in: the COPY of home.
    :ivar rows: loaded.
    :ivar size: bytes loaded.
    """

    name: str
    copy_out: bytes
    copy_in: bytes
    binary: bool
    rows: int = 0
    size: int = 0


def gather(home: Side, sources: Sequence[tuple[Side, Sequence[Load]]], report: Report) -> None:
    """Load from all *sources* at the same time, and the loads of each source one after the other.

    Each source is in a transaction, which is committed as soon as it has sent its last row.

    :param home: in a transaction.
    :raises RemoteError: a server's error, with the name of its connection. All connections are unusable
        then: :meth:`~airflow_dblink.core.server.connection.LinkConnection.abort` them; for home
        :func:`leave_copy` is enough.
    :raises TransientError: if a connection is lost.
    """
    _Gathering(home, sources, report).run()


def leave_copy(connection: LinkConnection) -> None:
    """End the COPY that a failed :func:`gather` left on *connection*; its transaction is aborted then."""
    pgconn = connection.pgconn

    def end() -> PQGen[None]:
        while (result := (yield from fetch(pgconn))) is not None:
            if result.status != pq.ExecStatus.COPY_IN:
                continue
            while pgconn.put_copy_end(b"the other side failed") == 0:
                yield Wait.W
            while pgconn.flush():
                yield Wait.W

    if pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
        connection.wait(end())


@contextmanager
def _naming(conn_id: str, action: str) -> Iterator[None]:
    """Turn psycopg's errors into ours."""
    try:
        yield
    except psycopg.Error as error:
        raise from_psycopg(error, conn_id, action) from None


@dataclass
class _Arriving:
    """The data of one load that has arrived here, and is not at home yet.

    :ivar sent: number of rows, once the remote has reported it.
    :ivar taken: number of rows that home has kept.
    """

    load: Load
    chunks: deque[tuple[Data, int]] = field(default_factory=deque)
    waiting: int = 0
    sent: int | None = None
    taken: int = 0

    def add(self, chunk: Data, rows: int) -> None:
        if chunk:
            self.chunks.append((chunk, rows))
            self.waiting += len(chunk)

    def take(self) -> tuple[Data, int]:
        chunk, rows = self.chunks.popleft()
        self.waiting -= len(chunk)
        return chunk, rows

    @property
    def is_worthwhile(self) -> bool:
        """Whether there is enough data for a turn."""
        return self.waiting >= _WORTHWHILE or (self.sent is not None and self.waiting > 0)

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to be loaded."""
        return self.sent is not None and not self.chunks


class _Task:
    """The messages to one server, as a generator that yields the events it waits for.

    :ivar until: if set, a condition that it waits for, too: room for data, or data to load.
    """

    def __init__(self, side: Side) -> None:
        self.conn_id = side.conn_id
        self.pgconn = side.connection.pgconn
        self.socket = self.pgconn.socket
        self.wants: Wait = Wait.R
        self.ended = False
        self.until: Callable[[], bool] | None = None
        self._steps: PQGen[None] | None = None

    def start(self, steps: PQGen[None]) -> None:
        """Run until it waits for the first time."""
        self._steps = steps
        self.step(None)

    def step(self, ready: Ready | None) -> None:
        if self._steps is None:
            return
        try:
            self.wants = Wait(next(self._steps) if ready is None else self._steps.send(ready))
        except StopIteration:
            self.ended = True

    def demand(self, result: pq.abc.PGresult | None, status: pq.ExecStatus, action: str) -> int:
        """Return the number of rows of *result*, which must have that *status*.

        :raises RemoteError: the server's error, if it has another one.
        """
        if result is None or result.status != status:
            error = psycopg.OperationalError("the server gave no result")
            raise from_psycopg(
                error_from_result(result, encoding="utf-8") if result else error, self.conn_id, action
            )
        return int(result.command_tuples or 0)


class _Stream(_Task):
    """One remote: sends its queries, and keeps their rows until home takes them."""

    def __init__(self, side: Side, loads: Sequence[Load]) -> None:
        super().__init__(side)
        self.arriving = [_Arriving(load) for load in loads]
        self._at = 0  # position of the first load that home has not completely taken

    @property
    def current(self) -> _Arriving | None:
        """The load that home takes next."""
        return self.arriving[self._at] if self._at < len(self.arriving) else None

    def advance(self) -> None:
        """Go on to the next load: the current one is completely at home."""
        self._at += 1

    @property
    def waiting(self) -> int:
        """Number of bytes that wait here."""
        return sum(arriving.waiting for arriving in self.arriving[self._at :])

    def read(self, has_room: Callable[[], bool]) -> PQGen[None]:
        """Receive the rows of all queries while there is room, then end the transaction."""
        for arriving in self.arriving:
            action = f'fetching remote set "{arriving.load.name}"'
            with _naming(self.conn_id, action):
                self.pgconn.send_query(arriving.load.copy_out)
                results = yield from execute(self.pgconn)
                self.demand(results[-1], pq.ExecStatus.COPY_OUT, action)
                yield from self._rows(arriving, has_room)
                results = yield from fetch_many(self.pgconn)
                arriving.sent = self.demand(results[-1], pq.ExecStatus.COMMAND_OK, action)
        action = "ending the transaction"
        with _naming(self.conn_id, action):
            self.pgconn.send_query(b"COMMIT")
            results = yield from execute(self.pgconn)
            self.demand(results[-1], pq.ExecStatus.COMMAND_OK, action)

    def _rows(self, arriving: _Arriving, has_room: Callable[[], bool]) -> PQGen[None]:
        get, binary = self.pgconn.get_copy_data, arriving.load.binary
        rows: list[bytes] = []
        size, skipped = 0, len(HEADER) if binary else 0
        while True:
            count, data = get(1)
            if count == 0:  # data may already be in the socket, and needs no wait
                self.pgconn.consume_input()
                count, data = get(1)
            if count >= _CHUNK:  # sent from where libpq has put it
                if rows:
                    arriving.add(b"".join(rows)[skipped:], len(rows))
                    rows, size, skipped = [], 0, 0
                arriving.add(data[skipped:], 1)
                skipped, data = 0, memoryview(b"")
                yield from self._wait_for(has_room)
            elif count > 0:
                rows.append(bytes(data))
                size += count
                if size >= _CHUNK and rows[-1] not in LAST_MESSAGES:
                    arriving.add(b"".join(rows)[skipped:], len(rows))
                    rows, size, skipped = [], 0, 0
                    yield from self._wait_for(has_room)
            elif count == 0:
                yield Wait.R
            else:
                break
        # The last message of binary data is the trailer; without rows it also holds the header.
        end = len(TRAILER) if binary else 0
        chunk = b"".join(rows)
        arriving.add(chunk[skipped : len(chunk) - end], len(rows) - (1 if binary else 0))

    def _wait_for(self, condition: Callable[[], bool]) -> PQGen[None]:
        while not condition():
            self.until = condition
            yield Wait.R
        self.until = None


class _Gathering:
    """The loop over all connections, and the messages to home."""

    def __init__(self, home: Side, sources: Sequence[tuple[Side, Sequence[Load]]], report: Report) -> None:
        self._connection = home.connection
        self._home = _Task(home)
        self._streams = [_Stream(side, loads) for side, loads in sources if loads]
        self._report = report

    def run(self) -> None:
        for stream in self._streams:  # each server works from now on
            stream.start(stream.read(partial(self._has_room, stream)))
        self._home.start(self._feed())
        tasks = [*self._streams, self._home]
        while running := [task for task in tasks if not task.ended]:
            self._turn(running)

    def _turn(self, running: Sequence[_Task]) -> None:
        if self._connection.check:
            self._connection.check()
        resumed = False
        for task in running:
            if task.until is not None and task.until():
                task.step(Ready.NONE)
                resumed = True
        poll, by_socket = select.poll(), {}
        for task in running:
            if not task.ended and (task.until is None or task is self._home):
                by_socket[task.socket] = task
                poll.register(task.socket, _EVENTS[task.wants])
        found = poll.poll(0 if resumed else _LOOK_MS)
        for socket, events in found:
            # An error or a hang-up has to be read, too.
            ready = (Ready.R if events & ~select.POLLOUT else 0) | (Ready.W if events & ~select.POLLIN else 0)
            by_socket[socket].step(Ready(ready))
        if not found and not resumed:
            self._look_closer(by_socket.values())

    def _look_closer(self, tasks: Iterable[_Task]) -> None:
        """Read from the remotes although their sockets are quiet: TLS may hold data that it has read."""
        for task in tasks:
            if task is not self._home:
                task.step(Ready.R)

    def _has_room(self, stream: _Stream) -> bool:
        """Return whether *stream* may receive more; if it is alone, one chunk is enough."""
        others = any(other is not stream and other.current is not None for other in self._streams)
        return stream.waiting < (_AHEAD if others else _CHUNK)

    # -- home

    def _feed(self) -> PQGen[None]:
        while True:
            current = self._current()
            if not current:
                return
            if not (ready := [arriving for arriving in current if arriving.chunks]):
                with _naming(self._home.conn_id, "waiting for remote sets"):
                    yield from self._wait(self._has_something)
                continue
            best = max(ready, key=lambda arriving: (arriving.is_worthwhile, arriving.waiting))
            action = f'loading remote set "{best.load.name}"'
            with _naming(self._home.conn_id, action):
                yield from self._copy(best, action)

    def _current(self) -> list[_Arriving]:
        """Return the next load of each remote; check the row counts of loads that are complete."""
        found = []
        for stream in self._streams:
            while (arriving := stream.current) is not None and arriving.has_ended:
                if arriving.taken != arriving.sent:
                    raise RemoteError(
                        f'home has {arriving.taken} rows of remote set "{arriving.load.name}",'
                        f" but {stream.conn_id!r} sent {arriving.sent}",
                        self._home.conn_id,
                    )
                stream.advance()
            if arriving is not None:
                found.append(arriving)
        return found

    def _has_something(self) -> bool:
        currents = [stream.current for stream in self._streams]
        return any(arriving is not None and (arriving.chunks or arriving.has_ended) for arriving in currents)

    def _copy(self, arriving: _Arriving, action: str) -> PQGen[None]:
        """Load the data that is here, or comes meanwhile, in one COPY, until it is another remote's turn."""
        load, pgconn = arriving.load, self._home.pgconn
        pgconn.send_query(load.copy_in)
        results = yield from execute(pgconn)
        self._home.demand(results[-1], pq.ExecStatus.COPY_IN, action)
        moved, refused = 0, False
        with Listener(self._connection) as listener:
            while not refused and (yield from self._goes_on(arriving, moved, listener)):
                if load.binary and not moved:
                    yield from listener.send(HEADER)
                chunk, rows = arriving.take()
                refused = yield from listener.send(chunk)
                moved += len(chunk)
                load.rows, load.size = load.rows + rows, load.size + len(chunk)
                del chunk  # before the next one is read
                self._report(load.name, load.rows, load.size)
            if load.binary and not refused:
                yield from listener.send(TRAILER)
            result = yield from listener.end(b"the client stopped" if refused else None)
        arriving.taken += self._home.demand(result, pq.ExecStatus.COMMAND_OK, action)

    def _goes_on(self, arriving: _Arriving, moved: int, listener: Listener) -> PQGen[bool]:
        """Wait for more of *arriving*; return whether there is some, and it isn't another remote's turn."""
        while not arriving.chunks:
            # The server may have sent an error, which the end of this COPY brings to light.
            if arriving.has_ended or self._others_wait(arriving) or listener.has_unread:
                return False
            yield from self._wait(partial(self._may_go_on, arriving), listener)
        return moved < _TURN or not self._others_wait(arriving)

    def _may_go_on(self, arriving: _Arriving) -> bool:
        return bool(arriving.chunks) or arriving.has_ended or self._others_wait(arriving)

    def _others_wait(self, arriving: _Arriving) -> bool:
        currents = [stream.current for stream in self._streams]
        return any(other is not None and other is not arriving and other.is_worthwhile for other in currents)

    def _wait(self, condition: Callable[[], bool], listener: Listener | None = None) -> PQGen[None]:
        """Wait until *condition* may hold, listening to the server."""
        self._home.until = condition
        ready = yield Wait.R
        self._home.until = None
        if ready and listener is not None:
            listener.listen()
        elif ready:
            self._home.pgconn.consume_input()
            self._home.pgconn.is_busy()
