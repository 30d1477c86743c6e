"""One session per connection and event loop, over which all waiters hear of their events.

A :class:`Listener` connects while anybody waits, listens, and reconnects to a server that was away. A
:class:`Subject` knows the events: it names its channel, and reads the state of its events when the
listener calls it: at first, after a notification, every *poll_s* seconds, and after each reconnect.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, pq, sql
from psycopg.rows import TupleRow

from airflow_dblink.core.errors import DblinkError, TransientError, UsageError, from_psycopg
from airflow_dblink.core.listen.back_off import back_off
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.login import aconnect
from airflow_dblink.core.server.target import Target

log = logging.getLogger(__name__)

Connection = AsyncConnection[TupleRow]
GetTarget = Callable[[], Awaitable[Target]]

#: Seconds after which a server that doesn't answer is left.
ANSWER_S = 60.0


@dataclass(frozen=True)
class Session:
    """The listener's session, with which subjects read their state.

    :ivar application_name: its name in ``pg_stat_activity``.
    :ivar answer_s: seconds that each answer of the server may take.
    """

    connection: Connection
    target: Target
    application_name: str
    answer_s: float


class Subject(Protocol):
    """One kind of events that somebody waits for in one database, such as the ends of jobs.

    It calls :meth:`Listener.wake` when there is something new to read, or nobody waits any more.
    """

    @property
    def channel(self) -> str | None:
        """The channel of its notifications; ``None`` if it needs none."""
        ...

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits."""
        ...

    @property
    def poll_s(self) -> float:
        """Seconds after which everything is read without a notification."""
        ...

    @property
    def wants_a_look(self) -> bool:
        """Whether there is something to read now."""
        ...

    def told(self, payload: str) -> None:
        """Take note of a notification on the channel, which anybody may have sent."""
        ...

    def look_at_all(self, *, is_new: bool) -> None:
        """Take note that everything is to be read.

        :param is_new: whether this session hasn't read anything of it yet: notifications may be lost.
        """
        ...

    async def look(self, session: Session) -> None:
        """Read everything that was noted.

        :raises TransientError: if another session may help.
        :raises DblinkError: if waiting can't help; :meth:`fail` is called with it.
        """
        ...

    def fail(self, error: Exception) -> None:
        """End the waiting of all with *error*."""
        ...

    def standby(self, conn_id: str) -> DblinkError | None:
        """Return the error for a standby, which refuses LISTEN; ``None`` if polling will do."""
        ...


class Listener:
    """The subjects of one event loop in one database, and the session that listens for them.

    :ivar subjects: all subjects that were ever waited for.
    :ivar has_looked: set once all subjects have read their state for the first time.
    :param get_target: called before each connect, so that a changed password is used.
    :param application_name: its name in ``pg_stat_activity``.
    :param answer_s: seconds after which the session with a silent server is closed, and a new one opened.
    """

    _of_loops: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Listener]]] = (
        WeakKeyDictionary()
    )

    def __init__(self, get_target: GetTarget, application_name: str, *, answer_s: float = ANSWER_S) -> None:
        self.subjects: list[Subject] = []
        self.has_looked = asyncio.Event()
        self._get_target = get_target
        self._application_name = application_name
        self._answer_s = answer_s
        self._wake = asyncio.Event()
        self._nobody_waits = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def shared(cls, key: Hashable, make: Callable[[], Listener]) -> Listener:
        """Return the running loop's listener under *key*; make it if there is none."""
        listeners = cls._of_loops.setdefault(asyncio.get_running_loop(), {})
        if key not in listeners:
            listeners[key] = make()
        return listeners[key]

    def wake(self) -> None:
        """Let subjects read their state; if nobody waits any more, the session ends."""
        self._wake.set()
        if not self._waited_for():
            self._nobody_waits.set()
            return
        self._nobody_waits.clear()
        if self._task is None or self._task.done():
            # Not in the context of the first waiter, whose log isn't everybody's.
            self._task = asyncio.create_task(self._run(), context=Context())

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits for any subject."""
        return bool(self._waited_for())

    def _waited_for(self) -> list[Subject]:
        return [subject for subject in self.subjects if subject.is_waited_for]

    # -- one task for all

    async def _run(self) -> None:
        pauses = back_off()
        while self._waited_for():
            try:
                target = await self._get_target()
                connection = await aconnect(target, application_name=self._application_name, direct=True)
                try:
                    async for _ in self._rounds(self._session(connection, target)):
                        pauses = back_off()
                finally:  # at once: no ROLLBACK over a network that may have gone
                    await connection.close()
            except (TransientError, psycopg.OperationalError, OSError) as error:
                reason = without_credentials(str(error).strip())
                log.warning("Waiting for %s: %s", ", ".join(map(str, self._waited_for())), reason)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._nobody_waits.wait(), next(pauses))
            except DblinkError as error:
                self._fail(error)
            except Exception as error:
                log.exception("Listening failed")
                self._fail(error)
        self._task = None

    def _session(self, connection: Connection, target: Target) -> Session:
        return Session(connection, target, self._application_name, self._answer_s)

    def _fail(self, error: Exception) -> None:
        for subject in self._waited_for():
            subject.fail(error)

    async def _rounds(self, session: Session) -> AsyncIterator[None]:
        """Let subjects read their state whenever needed, until nobody waits; yield after each round."""
        hears = listens_to(session.target)
        if hears:
            session.connection.add_notify_handler(lambda note: self._told(note.channel, note.payload))
        channels: set[str] = set()
        looked_at_all: dict[Subject, float] = {}
        while subjects := self._waited_for():
            self._wake.clear()
            channels -= await _unlisten(session, channels - {subject.channel for subject in subjects})
            for gone in looked_at_all.keys() - {*subjects}:
                del looked_at_all[gone]
            for subject in subjects:
                try:
                    if hears and (channel := subject.channel) is not None and channel not in channels:
                        await _listen(session, subject, channel)
                        channels.add(channel)
                    await _look(session, subject, looked_at_all)
                except TransientError:
                    # The others come first in the next session: its table may be locked for long.
                    if subject in self.subjects:
                        self.subjects.remove(subject)
                        self.subjects.append(subject)
                    raise
                except DblinkError as error:
                    subject.fail(error)
            self.has_looked.set()
            yield None
            waited_for = self._waited_for()
            if waited_for and not any(subject.wants_a_look for subject in waited_for):
                next_s = min(_left_s(subject, looked_at_all) for subject in waited_for)
                await self._until_woken(session.connection, next_s)

    # -- waking up

    def _told(self, channel: str, payload: str) -> None:
        for subject in self._waited_for():
            if subject.channel == channel:
                subject.told(payload)

    async def _until_woken(self, connection: Connection, seconds: float) -> None:
        """Wait up to *seconds* for a notification or something new to read."""
        loop, pgconn = asyncio.get_running_loop(), connection.pgconn
        self._take_notifications(pgconn)  # those that came with the last answer
        descriptor = pgconn.socket
        loop.add_reader(descriptor, self._wake.set)
        try:
            await asyncio.wait_for(self._wake.wait(), max(seconds, 0.0))
        except TimeoutError:
            return
        finally:
            loop.remove_reader(descriptor)
        pgconn.consume_input()
        self._take_notifications(pgconn)

    def _take_notifications(self, pgconn: pq.abc.PGconn) -> None:
        while (note := pgconn.notifies()) is not None:
            self._told(note.relname.decode(errors="replace"), note.extra.decode(errors="replace"))


def _left_s(subject: Subject, looked_at_all: Mapping[Subject, float]) -> float:
    """Return the seconds until all of *subject* is to be read; 0 or less means now."""
    now = asyncio.get_running_loop().time()
    return looked_at_all.get(subject, -math.inf) + subject.poll_s - now


async def _look(session: Session, subject: Subject, looked_at_all: dict[Subject, float]) -> None:
    # Also under constant notifications, since some events may come without one.
    if _left_s(subject, looked_at_all) <= 0:
        subject.look_at_all(is_new=subject not in looked_at_all)
        looked_at_all[subject] = asyncio.get_running_loop().time()
    if subject.wants_a_look:
        await subject.look(session)


async def _listen(session: Session, subject: Subject, channel: str) -> None:
    target = session.target
    try:
        async with answer_within(session.connection, target.conn_id, session.answer_s):
            await session.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    except psycopg.errors.ReadOnlySqlTransaction:  # LISTEN is refused by standbys alone
        if (error := subject.standby(target.conn_id)) is not None:
            raise error from None
    except psycopg.Error as error:
        raise from_psycopg(error, target.conn_id, f"waiting for {subject}") from None


async def _unlisten(session: Session, channels: set[str]) -> set[str]:
    """Leave *channels*, on which nobody waits any more, and return them."""
    conn_id = session.target.conn_id
    for channel in channels:
        try:
            async with answer_within(session.connection, conn_id, session.answer_s):
                unlisten = sql.SQL("UNLISTEN {}").format(sql.Identifier(channel))
                await session.connection.execute(unlisten)
        except psycopg.Error as error:
            raise from_psycopg(error, conn_id, "waiting") from None
    return channels


@asynccontextmanager
async def answer_within(connection: Connection, conn_id: str, seconds: float) -> AsyncIterator[None]:
    """Limit the wait for an answer; without one in time the connection is closed.

    :raises TransientError: 08006.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        await connection.close()
        raise TransientError(f"the server did not answer within {seconds:.0f} s", conn_id, "08006") from None
    except asyncio.CancelledError:
        await connection.close()
        raise


def listens_to(target: Target) -> bool:
    """Return whether a session of *target* hears notifications: not through a pooler in transaction mode."""
    return target.pooling_mode != "transaction" or target.has_direct_address


def demand_session(target: Target, what: str) -> None:
    """Raise unless the target gives sessions that keep their state.

    :raises UsageError: names *what*, and the field of the connection that would help.
    """
    if not listens_to(target):
        raise UsageError(
            f"{what} does not survive a pooler in transaction mode",
            target.conn_id,
            hint="set direct_host or direct_port in the connection; or the role's own setting",
        )
