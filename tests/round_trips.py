"""A TCP proxy that counts round trips: how often a client has waited for its server."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from tests.databases import Database

_BLOCK = 65_536
#: Set to a file's name, the proxy writes there what each client sent, for whoever looks for a turn too many.
_TELL = "AIRFLOW_DBLINK_TELL_TURNS"


@dataclass
class Proxy:
    """Passes connections on to a database's server, and counts the turns of each.

    A turn is a client's first bytes after the server's, so any number of messages that are sent together, and
    their answers, are one. Connecting counts as one turn more, TCP's own. The clients mustn't ask for TLS.

    :ivar database: the database whose server it leads to.
    :ivar turns: the turns of each connection, in the order of connecting.
    """

    database: Database
    turns: list[int] = field(default_factory=list)
    _counted_from: int = 0
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        params = self.database.params
        self._address = params["host"], int(params["port"])
        self._listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    @property
    def uri(self) -> str:
        """The database's URI, through the proxy."""
        port = self._listener.getsockname()[1]
        direct = f"{self._address[0]}:{self._address[1]}"
        return self.database.uri.replace(direct, f"127.0.0.1:{port}") + "?sslmode=disable&gssencmode=disable"

    @property
    def round_trips(self) -> int:
        """The turns of the connection that had the most: several connections may wait at the same time."""
        return max(self.turns[self._counted_from :], default=0)

    def forget(self) -> None:
        """Count only the connections that are made from now on."""
        self._counted_from = len(self.turns)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            self.turns.append(1)
            self._start(self._pass_on, client, len(self.turns) - 1)

    def _pass_on(self, client: socket.socket, number: int) -> None:
        is_clients_turn = True
        with client, socket.create_connection(self._address) as server:
            while True:
                for end in select.select([client, server], [], [])[0]:
                    data = end.recv(_BLOCK)
                    if not data:
                        return
                    if end is client:
                        self.turns[number] += is_clients_turn and not data.startswith(b"X")
                        is_clients_turn = False
                        _tell(number, self.turns[number], data)
                        server.sendall(data)
                    else:
                        is_clients_turn = True
                        client.sendall(data)


def _tell(connection: int, turn: int, data: bytes) -> None:
    if name := os.environ.get(_TELL):
        with open(name, "a", encoding="utf-8") as told:
            told.write(f"{connection}.{turn}: {data[:1500]!r}\n")
