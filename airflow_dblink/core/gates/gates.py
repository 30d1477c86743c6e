"""Waiting for the answers to many questions in one event loop.

All waiters for questions to one database share its listener (:mod:`airflow_dblink.core.listen.listener`), and
so one session. Equal questions are asked once, for all their waiters. Questions that were answered in time
go together, in a pipeline. New questions, and those that took too long, are asked one at a time, and only
when no other one is due. So a question that hangs delays the others by its own time limit at most, and is
asked ever more rarely.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import pq, sql, waiting
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many, send

from airflow_dblink.core.errors import DblinkError, TransientError, from_psycopg
from airflow_dblink.core.gates.question import ACTION, BEGIN, Answer, Question, may_pass, read_answer
from airflow_dblink.core.listen.listener import Connection, Listener, Session, answer_within, listens_to
from airflow_dblink.core.server.side import local_settings

log = logging.getLogger(__name__)

# So many questions go together: the next notification is read after them.
_TOGETHER = 20
# A question that takes too long is asked after 2, 4, 8, and at most this many polls.
_RAREST = 16
# A question may be slow so often before it isn't asked out of turn any more: its session may have been lost.
_ONCE = 1
_LOOK_S = 0.1
# Ends a question's transaction, and frees what outlives one.
_AFTER = (b"ROLLBACK", b"SELECT pg_catalog.pg_advisory_unlock_all()")


@dataclass
class _Asked:
    """A question that somebody waits for.

    :ivar poll_s: the shortest poll of its waiters, in seconds.
    :ivar due: when it is to be asked, in the loop's time.
    :ivar in_time: whether it was answered in time; ``None`` if it has not been asked yet.
    :ivar slow: how many times in a row it took too long.
    """

    question: Question
    due: float
    waiters: dict[asyncio.Future[Answer], float] = field(default_factory=dict)
    in_time: bool | None = None
    slow: int = 0

    @property
    def poll_s(self) -> float:
        return min(self.waiters.values(), default=0.0) * min(1 << self.slow, _RAREST)


class Gates:
    """The questions to one database, woken by one channel or by none; a :class:`Subject` of *listener*.

    :param channel: a notification on it lets all questions be asked at once.
    :param payload: the payload of such a notification, or an empty one; ``None``: whatever it is.
    """

    def __init__(self, listener: Listener, channel: str | None, payload: str | None = None) -> None:
        self._listener = listener
        self._channel = channel
        self._payload = payload
        self._asked: dict[Hashable, _Asked] = {}
        self._looked_at = 0.0
        self._others_from = 0.0
        self._notifications = 0
        self._has_told = False

    @classmethod
    def of(cls, listener: Listener, channel: str | None, payload: str | None = None) -> Gates:
        """Return the *listener*'s questions that *channel* wakes by *payload*; make them if needed."""
        for subject in listener.subjects:
            if isinstance(subject, Gates) and (subject.channel, subject._payload) == (channel, payload):
                return subject
        return cls(listener, channel, payload)

    async def wait(self, question: Question, poll_s: float, first_s: float = 0.0) -> Answer:
        """Return the answer that *question* waits for, or the one by which its failure query is true.

        :param poll_s: seconds after which it is asked without a notification; the shortest of all counts.
        :param first_s: seconds after which it is asked for the first time.
        :raises DblinkError: if waiting can't help: a query that the server refuses, a wrong connection.
        """
        question.demand_sendable()
        loop = asyncio.get_running_loop()
        first = loop.time() + first_s
        asked = self._asked.setdefault(question.key, _Asked(question, first))
        future: asyncio.Future[Answer] = loop.create_future()
        asked.waiters[future] = poll_s
        asked.due = min(asked.due, first)
        if self not in self._listener.subjects:
            self._listener.subjects.append(self)
        self._listener.wake()
        try:
            return await future
        finally:
            asked.waiters.pop(future, None)
            if not asked.waiters and self._asked.get(question.key) is asked:
                del self._asked[question.key]
            self._leave()

    def _leave(self) -> None:
        """Leave the listener if nobody waits any more: each run may have a channel of its own."""
        if not self._asked:
            if self in self._listener.subjects:
                self._listener.subjects.remove(self)
            self._listener.wake()

    # -- as a subject

    def __str__(self) -> str:
        return f"{len(self._asked)} questions"

    @property
    def channel(self) -> str | None:
        """The channel that wakes them."""
        return self._channel

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits."""
        return bool(self._asked)

    @property
    def poll_s(self) -> float:
        """Seconds from the last look to the next question that is due."""
        return min((asked.due for asked in self._asked.values()), default=0.0) - self._looked_at

    @property
    def wants_a_look(self) -> bool:
        """Whether a question is due."""
        now = asyncio.get_running_loop().time()
        return any(asked.due <= now for asked in self._asked.values())

    def told(self, payload: str) -> None:
        """Ask all questions now: anybody may notify, and an answer too many does no harm."""
        if payload and self._payload is not None and payload != self._payload:
            return
        self._notifications += 1
        now = asyncio.get_running_loop().time()
        for asked in self._asked.values():
            if asked.slow <= _ONCE:
                asked.due = min(asked.due, now)

    def look_at_all(self, *, is_new: bool) -> None:
        """Note the time: the questions themselves know when they are due.

        In a new session those are due, too, that an earlier one has asked: a notification may be lost.
        """
        self._looked_at = now = asyncio.get_running_loop().time()
        for asked in self._asked.values():
            if is_new and asked.in_time is not None and asked.slow <= _ONCE:
                asked.due = min(asked.due, now)

    def fail(self, error: Exception) -> None:
        """End the waiting for all questions with *error*."""
        for asked in [*self._asked.values()]:
            self._end(asked, error)

    def standby(self, conn_id: str) -> DblinkError | None:
        """Return no error for a standby, which refuses LISTEN: polling will do."""
        self._say_polling(conn_id, "a standby takes no LISTEN")
        return None

    async def look(self, session: Session) -> None:
        """Ask the questions that are due: those that are quick together, or else one other.

        An other one whose turn hasn't come for a whole poll goes before the quick ones, which then get at
        least as much time as it took.

        :raises TransientError: if the session is lost.
        """
        if self._channel is not None and not listens_to(session.target):
            self._say_polling(session.target.conn_id, "LISTEN does not survive its pooler")
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = [asked for asked in self._asked.values() if asked.due <= now]
        quick = [asked for asked in due if asked.in_time][:_TOGETHER]
        others = sorted((asked for asked in due if not asked.in_time), key=lambda asked: asked.slow)
        overdue = [asked for asked in others if asked.due + asked.poll_s <= now and self._others_from <= now]
        chosen = overdue[:1] or quick or others[:1]
        notifications = self._notifications
        try:
            answers = await ask_together(session, [asked.question for asked in chosen])
        except TransientError:
            for asked in chosen:  # one of them may have ended the session: it must not come first again
                self._was_slow(asked)
            raise
        if chosen is not quick:
            self._others_from = loop.time() + (loop.time() - now)
        for asked, answer in zip(chosen, answers, strict=True):
            self._seen(asked, answer, session.target.conn_id)
            # A notification that came meanwhile may tell of something that the answer doesn't know.
            if notifications != self._notifications and asked.slow <= _ONCE:
                asked.due = loop.time()

    # -- answers

    def _seen(self, asked: _Asked, answer: Answer | DblinkError, conn_id: str) -> None:
        if isinstance(answer, Answer):
            asked.in_time, asked.slow = True, 0
            asked.due = asyncio.get_running_loop().time() + asked.poll_s
            if asked.question.has_failed(answer) or asked.question.is_answered(answer):
                self._end(asked, answer)
        elif may_pass(answer):
            self._was_slow(asked)
            if asked.slow == 1:
                log.warning("A question to %s is asked more rarely: %s", conn_id, answer)
        else:
            self._end(asked, answer)

    def _was_slow(self, asked: _Asked) -> None:
        asked.in_time, asked.slow = False, asked.slow + 1
        asked.due = asyncio.get_running_loop().time() + asked.poll_s

    def _end(self, asked: _Asked, end: Answer | Exception) -> None:
        self._asked.pop(asked.question.key, None)
        for future in asked.waiters:
            if future.done():
                continue
            if isinstance(end, Answer):
                future.set_result(end)
            else:
                future.set_exception(end)

    def _say_polling(self, conn_id: str, why: str) -> None:
        if not self._has_told:
            self._has_told = True
            log.warning("%s: nobody hears channel %r, as %s: only polling.", conn_id, self._channel, why)


async def ask_together(session: Session, questions: Sequence[Question]) -> list[Answer | DblinkError]:
    """Ask *questions* in one round trip, each in a transaction of its own; return answers or errors.

    :raises TransientError: if the session is lost, or the server doesn't answer.
    """
    connection, conn_id = session.connection, session.target.conn_id
    sent = [_statements(question) for question in questions]
    patience = session.answer_s + sum(each.timeout_s * len(each.statements) for each in questions)
    try:
        async with answer_within(connection, conn_id, patience):
            # Not the connection's own wait, which, when cancelled, would wait for the server once more.
            exchange = _exchange(connection, sent)
            groups = await waiting.wait_async(exchange, connection.pgconn.socket, _LOOK_S)
    except psycopg.Error as error:
        raise from_psycopg(error, conn_id, ACTION) from None
    if connection.pgconn.status != pq.ConnStatus.OK:
        raise TransientError("the session ended while it was asked", conn_id, "08006")
    return [
        _read(connection, conn_id, question, results)
        for question, results in zip(questions, groups, strict=True)
    ]


def _statements(question: Question) -> list[sql.Composable]:
    return [sql.SQL(BEGIN), local_settings(question.limits), *question.statements]


def _exchange(
    connection: Connection, sent: Sequence[Sequence[sql.Composable]]
) -> PQGen[list[list[pq.abc.PGresult]]]:
    """Send all statements, and return the results of each question's.

    An error ends only its own question, since each is followed by a Sync, and by a ROLLBACK with another one.
    Nothing of a question may stay in the session, which all share: the user's query may have taken locks.
    """
    pgconn = connection.pgconn
    pgconn.enter_pipeline_mode()
    for statements in sent:
        for composed in statements:
            pgconn.send_query_params(composed.as_bytes(connection), None)
        pgconn.pipeline_sync()
        for statement in _AFTER:
            pgconn.send_query_params(statement, None)
        pgconn.pipeline_sync()
    yield from send(pgconn)
    groups = []
    for statements in sent:
        results = []
        for _ in statements:
            results += yield from fetch_many(pgconn)
        for _ in ("sync", *_AFTER, "sync"):
            yield from fetch_many(pgconn)
        groups.append(results)
    pgconn.exit_pipeline_mode()
    return groups


def _read(
    connection: Connection,
    conn_id: str,
    question: Question,
    results: Sequence[pq.abc.PGresult],
) -> Answer | DblinkError:
    try:
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise error_from_result(result, encoding=connection.info.encoding)
        return read_answer(connection, conn_id, question, results[-len(question.statements) :])
    except psycopg.Error as error:
        return from_psycopg(error, conn_id, ACTION)
    except DblinkError as error:
        return error
