"""A real pgbouncer before a test server."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from airflow_dblink.core.server.target import PoolingMode
from airflow_dblink.embedded.ports import free_port
from airflow_dblink.embedded.programs import account_for_servers
from airflow_dblink.embedded.server import Server
from tests.debian import pgbouncer

_STARTS_S = 60.0


@contextmanager
def pooler(server: Server, mode: PoolingMode, *, pool_size: int = 20) -> Iterator[int]:
    """Run pgbouncer for all databases of *server*, for its job role and its superuser.

    :param pool_size: sessions with the server, per database and role.
    :returns: its port on 127.0.0.1.
    """
    program = pgbouncer()
    account = account_for_servers()  # pgbouncer doesn't run as root either
    with tempfile.TemporaryDirectory(prefix="airflow_dblink_pgbouncer_") as made:
        directory = Path(made)
        port = free_port()
        _write(
            directory / "users",
            *(
                f'"{role}" "{password}"'
                for role, password in (
                    (server.role, server.role_password),
                    (server.superuser, server.superuser_password),
                )
            ),
        )
        _write(
            directory / "pgbouncer.ini",
            "[databases]",
            f"* = host={server.host} port={server.port}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {port}",
            "unix_socket_dir =",
            "auth_type = scram-sha-256",
            f"auth_file = {directory / 'users'}",
            f"pool_mode = {mode}",
            f"default_pool_size = {pool_size}",
        )
        if account is not None:
            for path in (directory, *directory.iterdir()):
                os.chown(path, *account)
        user, group = account or (None, None)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [program.path, directory / "pgbouncer.ini"],
                env=program.environment,
                stdout=log,
                stderr=log,
                user=user,
                group=group,
                extra_groups=None if account is None else [],
            )
        try:
            _wait_until_it_listens(process, port, directory / "log")
            yield port
        finally:
            process.terminate()
            process.wait()


def _write(path: Path, *lines: str) -> None:
    path.touch(0o600)
    path.write_text("".join(f"{line}\n" for line in lines))


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _STARTS_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"pgbouncer did not start:\n{log.read_text()}")
