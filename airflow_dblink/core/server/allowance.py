"""How many bytes a server may send on one connection, counted before libpq takes them in."""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

RV = TypeVar("RV")


class FloodError(psycopg.OperationalError):
    """The server sent more than it may."""


class Allowance:
    """What may still come.

    Counted is what waits in the socket's buffer each time libpq is about to read. It may leave some of it
    for the next time, which then counts again: never too little is counted, and too much by some factor.

    :param most_bytes: all in all, the login included.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._left = most_bytes

    def counted(self, gen: Generator[Any, Any, RV], descriptor: int | None = None) -> Generator[Any, Any, RV]:
        """Do what *gen* does, counting whenever there is something to read.

        :param descriptor: the socket's; ``None`` where *gen* yields it, as while connecting.
        :raises FloodError: once more has come than is allowed.
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
