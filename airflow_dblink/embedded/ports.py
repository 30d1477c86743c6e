"""Free TCP ports on this machine."""

from __future__ import annotations

import secrets
import socket

from airflow_dblink.embedded.programs import ServerError

# Below the ports that Linux and macOS give to outgoing connections: one of those could otherwise take a
# server's port while it restarts.
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """Return a port that is free now; it may be taken by the time it is used.

    :raises ServerError: if none of 1000 ports is free.
    """
    for _ in range(1_000):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError("no free TCP port on 127.0.0.1")
