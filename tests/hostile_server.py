"""A server that speaks PostgreSQL's login and then misbehaves: it is silent, or never ends an answer."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from airflow_dblink.core.server.target import Target

PASSWORD = "hostile-password-2718"

_CANCEL, _SSL, _GSS = 80877102, 80877103, 80877104
_PARAMETERS = {
    b"server_version": b"18.0",
    b"server_encoding": b"UTF8",
    b"client_encoding": b"UTF8",
    b"standard_conforming_strings": b"on",
    b"integer_datetimes": b"on",
    b"DateStyle": b"ISO, MDY",
    b"TimeZone": b"UTC",
    b"is_superuser": b"off",
    b"in_hot_standby": b"off",
    b"default_transaction_read_only": b"off",
}

Answer = Callable[[socket.socket, bytes], None]


class HostileServer:
    """The running server, for a test.

    :ivar port: its port on 127.0.0.1.
    :ivar queries: the queries that it received, as the messages' bytes.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.queries: list[bytes] = []
        self.at_once = 0
        self.most_at_once = 0
        self._changed = threading.Condition()

    def target(self, conn_id: str = "hostile", **params: Any) -> Target:
        """Return its target, with *params* of libpq changed."""
        known = {"host": "127.0.0.1", "port": self.port, "user": "u", "password": PASSWORD, "dbname": "d"}
        return Target(conn_id, {**known, "sslmode": "disable", "gssencmode": "disable", **params})

    @property
    def uri(self) -> str:
        """Value of an ``AIRFLOW_CONN_...`` variable."""
        return f"postgres://u:{PASSWORD}@127.0.0.1:{self.port}/d?sslmode=disable&gssencmode=disable"

    def wait_until(self, what: Callable[[], bool], within_s: float = 30.0) -> None:
        """Wait until the condition *what* is true."""
        with self._changed:
            assert self._changed.wait_for(what, within_s), (self.queries, self.at_once)

    def _logged_in(self, by: int) -> None:
        with self._changed:
            self.at_once += by
            self.most_at_once = max(self.most_at_once, self.at_once)
            self._changed.notify_all()

    def _asked(self, query: bytes) -> None:
        with self._changed:
            self.queries.append(query)
            self._changed.notify_all()

    def _serve(self, client: socket.socket, answer: Answer) -> None:
        with closing(client), suppress(OSError, EOFError):
            if not _log_in(client):
                return
            self._logged_in(1)
            try:
                while True:
                    kind, body = _message(client)
                    if kind == b"X":
                        return
                    self._asked(body)
                    answer(client, body)
            finally:
                self._logged_in(-1)


def silent(client: socket.socket, query: bytes) -> None:
    """Answer nothing."""


def flood(client: socket.socket, query: bytes) -> None:
    """Answer with rows that never end: one column of text, of 8 kB each."""
    client.sendall(_framed(b"T", struct.pack(">h", 1) + b"a\0" + struct.pack(">ihihih", 0, 0, 25, -1, -1, 0)))
    row = _framed(b"D", struct.pack(">hi", 1, 8192) + b"x" * 8192)
    while True:
        client.sendall(row * 16)


@contextmanager
def hostile_server(answer: Answer = silent) -> Iterator[HostileServer]:
    """Run a server that accepts any password, and answers queries with *answer*."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = HostileServer(listener.getsockname()[1])
    clients: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                clients.append(client)
                threading.Thread(target=server._serve, args=(client, answer), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        for each in (listener, *clients):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        thread.join()


def _log_in(client: socket.socket) -> bool:
    while True:
        (length,) = struct.unpack(">i", _exactly(client, 4))
        body = _exactly(client, length - 4)
        (code,) = struct.unpack(">i", body[:4])
        if code not in (_SSL, _GSS):
            break
        client.sendall(b"N")
    if code == _CANCEL:  # ignored
        return False
    client.sendall(_framed(b"R", struct.pack(">i", 3)))  # AuthenticationCleartextPassword
    _message(client)
    said = [_framed(b"R", struct.pack(">i", 0))]
    said += [_framed(b"S", name + b"\0" + value + b"\0") for name, value in _PARAMETERS.items()]
    said += [_framed(b"K", struct.pack(">ii", 4711, 815)), _framed(b"Z", b"I")]
    client.sendall(b"".join(said))
    return True


def _framed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">i", len(body) + 4) + body


def _message(client: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(client, 1)
    (length,) = struct.unpack(">i", _exactly(client, 4))
    return kind, _exactly(client, length - 4)


def _exactly(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        if not (part := client.recv(count - len(found))):
            raise EOFError
        found += part
    return found
