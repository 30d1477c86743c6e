"""A TCP proxy that counts round trips: the times that a server has said ReadyForQuery."""

from __future__ import annotations

import select
import socket
import threading
from typing import Self

_READY = ord("Z")
_HEADER_BYTES = 5  # type and length
_BLOCK = 65_536


class Proxy:
    """Passes connections on to a server, one at a time, and reads what the server says.

    The clients must not ask for TLS or GSS encryption: the answer to that is no message.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ready = self._connections = 0
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def round_trips(self) -> int:
        """Return how many there were since the last call; connecting, which ends in one, isn't counted."""
        self._idle.wait(10)
        count = self.so_far()
        self._ready = self._connections = 0
        return count

    def so_far(self) -> int:
        """Return the same while a client is still connected, and go on counting."""
        return self._ready - self._connections

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._idle.clear()
            self._connections += 1
            with client, socket.create_connection(self._address) as server:
                self._pass_on(client, server)
            self._idle.set()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        unread = b""
        while True:
            readable, _, _ = select.select([client, server], [], [])
            for end in readable:
                data = end.recv(_BLOCK)
                if not data:
                    return
                if end is client:
                    server.sendall(data)
                else:
                    unread = self._count(unread + data)  # before the client can go on
                    client.sendall(data)

    def _count(self, data: bytes) -> bytes:
        """Count the messages in *data*; what is left is the beginning of one."""
        while len(data) >= _HEADER_BYTES:
            end = 1 + int.from_bytes(data[1:_HEADER_BYTES], "big")
            if len(data) < end:
                break
            self._ready += data[0] == _READY
            data = data[end:]
        return data
