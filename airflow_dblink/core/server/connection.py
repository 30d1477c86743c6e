"""A connection that can be stopped while it waits, and that counts the bytes which a server sends."""

from __future__ import annotations

import fcntl
import logging
import struct
import termios
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Self, TypeVar

import psycopg
from psycopg import pq
from psycopg.abc import PQGen, PQGenConn
from psycopg.generators import fetch
from psycopg.rows import TupleRow

from airflow_dblink.core.errors import FloodError, TransientError
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.server.wait_events import Observe

log = logging.getLogger(__name__)

RV = TypeVar("RV")
Check = Callable[[], None]

_CANCEL_S = 2.0  # per connection, and a task may have two; Airflow's supervisor kills 5 s after SIGTERM
_CANCEL_AGAIN_S = 0.1
COPY = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)

# The check and the limit of bytes that hold while logging in: psycopg has no argument for them.
meanwhile: ContextVar[tuple[Check | None, Allowance | None]] = ContextVar("meanwhile", default=(None, None))


class Allowance:
    """The number of bytes that a server may still send.

    Each time libpq is about to read, the bytes in the socket's buffer are counted. libpq may leave some of
    them for the next time, and they count again then. So the count may be too high by some factor, but never
    too low.

    :param most_bytes: the limit, the login included.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._left = most_bytes

    def counted(self, gen: Generator[Any, Any, RV], descriptor: int | None = None) -> Generator[Any, Any, RV]:
        """Run *gen*, and count whenever there are bytes to read.

        :param descriptor: the socket's; ``None`` if *gen* yields it, as while connecting.
        :raises FloodError: once the server has sent more than it may.
        """
        try:
            waits_for = next(gen)
            while True:
                ready = yield waits_for
                if ready:
                    self._count(waits_for[0] if descriptor is None else descriptor)
                waits_for = gen.send(ready)
        except StopIteration as done:
            result: RV = done.value
            return result

    def _count(self, descriptor: int) -> None:
        (pending,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
        self._left -= pending
        if self._left < 0:
            raise FloodError(f"the server sent more than {self.most_bytes} bytes")


class LinkConnection(psycopg.Connection[TupleRow]):
    """A psycopg connection that calls a check whenever it waits, so that it can be stopped.

    While psycopg waits for the server it wakes up ten times a second; *check* is called then
    and may raise. The statement goes on running on the server until :meth:`abort`.
    """

    check: Check | None = None
    observe: Observe | None = None
    allowance: Allowance | None = None
    #: Whether the connection still has to find out if it may prepare statements, and its queries so far.
    undecided = False
    queries = 0
    #: Whether to abort when a time-out or a kill ends a wait for the server; set if nobody else will.
    abort_when_stopped = False
    #: The target that it leads to.
    target = Target("", {})

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **kwargs: Any) -> PQGenConn[Self]:
        """Log in at one host, and call the *check* of :func:`connect` meanwhile."""
        check, allowance = meanwhile.get()
        gen = super()._connect_gen(conninfo, **kwargs)  # before psycopg 3.3.6 it takes the timeout
        if allowance is not None:
            gen = allowance.counted(gen)
        return gen if check is None else watched(gen, check)

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Consume *gen* as psycopg does, calling *check* in between."""
        try:
            # Passed on unread: psycopg 3.3 has one argument more.
            counted = self._counted(gen)
            return super().wait(watched(counted, self.check) if self.check else counted, *args, **kwargs)
        except psycopg.Error:
            raise
        except BaseException as error:
            if self.abort_when_stopped and self._is_working:
                # The error came from *gen*: a value can't be adapted, or a row factory raises.
                is_callers = isinstance(error, Exception) and getattr(gen, "gi_frame", None) is None
                self._after_mistake() if is_callers else self.abort()
            raise

    def _counted(self, gen: PQGen[RV]) -> PQGen[RV]:
        return gen if self.allowance is None else self._within(self.allowance, gen)

    def _within(self, allowance: Allowance, gen: PQGen[RV]) -> PQGen[RV]:
        try:
            return (yield from allowance.counted(gen, self.pgconn.socket))
        except FloodError:
            self.close()  # so that nobody reads the rest of the flood
            raise

    @property
    def _is_working(self) -> bool:
        return self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE

    def _after_mistake(self) -> None:
        """End the statement whose results the caller no longer reads; the connection stays open."""
        if self.pgconn.pipeline_status != pq.PipelineStatus.OFF:
            return  # psycopg ends the pipeline, and reads its remaining results
        ended = False
        with suppress(psycopg.Error):
            ended = self.cancel_running()
        if not ended:
            self.close()

    def abort(self) -> None:
        """Cancel the running statement on the server and close, within a few seconds; never raises.

        An open transaction is rolled back by the server.
        """
        try:
            if self._is_working:
                self.cancel_running()
        except psycopg.Error as error:
            log.warning("Cancelling the statement failed: %s", without_credentials(str(error).strip()))
        finally:
            self.close()

    def cancel_running(self) -> bool:
        """Cancel the running statement and drop the rest of its results, within two seconds.

        A server that has not begun to read a statement forgets the request to cancel it, so the
        request is repeated until the statement has ended.

        :returns: whether the connection is ready for another statement now; not after a COPY.
        :raises psycopg.Error: if the server can't be asked, or the connection is lost.
        """
        deadline = time.monotonic() + _CANCEL_S
        left_s = _CANCEL_S
        while left_s > 0:
            self.cancel_safe(timeout=left_s)
            try:
                # The statement that a COPY belongs to has begun, so a request reaches it from now on.
                rest = self._counted(_drop_results(self.pgconn))
                if super().wait(watched(rest, patience(_CANCEL_AGAIN_S))):
                    return True
                self.cancel_safe(timeout=max(deadline - time.monotonic(), _CANCEL_AGAIN_S))
                return False
            except TimeoutError:
                left_s = deadline - time.monotonic()
        return False


def _drop_results(pgconn: pq.abc.PGconn) -> PQGen[bool]:
    """Read all results that are left; returns false at a COPY, whose data would have to be read."""
    while (result := (yield from fetch(pgconn))) is not None:
        if result.status in COPY:
            return False
    return True


def patience(seconds: float) -> Check:
    """Return a check that raises TimeoutError when *seconds* are over."""
    deadline = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() >= deadline:
            raise TimeoutError

    return check


def time_limit(conn_id: str, seconds: float) -> Check:
    """Return a check that raises once *seconds* are over, connecting included.

    For callers that mustn't wait long for a server: a page, a kill.

    :raises TransientError: 08006, from the check.
    """
    after = patience(seconds)

    def check() -> None:
        try:
            after()
        except TimeoutError:
            raise TransientError(f"no answer within {seconds:.0f} s", conn_id, "08006") from None

    return check


def watched(gen: Generator[Any, Any, RV], check: Check) -> Generator[Any, Any, RV]:
    """Run *gen*, and call *check* whenever it waits."""
    try:
        waits_for = next(gen)
        while True:
            ready = yield waits_for
            check()
            waits_for = gen.send(ready)
    except StopIteration as done:
        result: RV = done.value
        return result
