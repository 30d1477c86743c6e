"""The files of a PostgreSQL server, and PostgreSQL's programs that work on them."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from airflow_dblink.embedded.programs import Account, ServerError, environment

_TAIL_BYTES = 4_000


def new_password() -> str:
    """Return a random password."""
    return secrets.token_urlsafe(24)


@dataclass(eq=False, kw_only=True)
class Cluster:
    """A data directory, its log and its superuser."""

    name: str
    bindir: Path
    data: Path
    superuser: str = "postgres"
    superuser_password: str = field(default_factory=new_password, repr=False)
    account: Account | None = field(default=None, repr=False)
    """User and group id that PostgreSQL runs as; None is the caller's own."""
    _log_offset: int = field(default=0, init=False, repr=False)

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.data.parent / "postgres.log"

    def tool(self, name: str) -> str:
        """Return the path of one of PostgreSQL's programs, such as psql or pgbench.

        :raises ServerError: if this PostgreSQL does not have it.
        """
        path = self.bindir / name
        if not path.is_file():
            raise ServerError(f"there is no {name} in {self.bindir}")
        return str(path)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program of PostgreSQL's as the account, with its output in the log."""
        uid, gid = self.account or (None, None)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [self.tool(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.data,
                env=environment(self.data),
                user=uid,
                group=gid,
                extra_groups=None if self.account is None else [],
                start_new_session=True,  # Ctrl-C is for the caller, who stops the server in order
            )

    def _log_tail(self) -> str:
        """Return the end of what the server has logged since it was last launched."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_offset, self.log.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace").strip()

    def _spawn_initdb(self, locale: str) -> subprocess.Popen[bytes]:
        password_file = self._password_file
        password_file.touch(0o600)
        password_file.write_text(self.superuser_password)
        if self.account is not None:
            os.chown(password_file, *self.account)
        return self._spawn(
            "initdb",
            f"--pgdata={self.data}",
            f"--username={self.superuser}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            f"--locale={locale}",
            "--lc-messages=C",
            "--no-sync",
            "--no-instructions",
        )

    @property
    def _password_file(self) -> Path:
        return self.data.parent / "superuser_password"


def make_clusters(made: Sequence[Cluster]) -> None:
    """Run initdb for all clusters at the same time, since it takes most of the time of a start.

    :raises ServerError: if it fails, with the tail of its log.
    """
    waiting = list(made)
    for locale in ("C.UTF-8", "C"):  # not every system has the first; initdb then says so at once
        running = [(cluster, cluster._spawn_initdb(locale)) for cluster in waiting]
        waiting = [cluster for cluster, process in running if process.wait() != 0]
        for cluster, _ in running:
            cluster._password_file.unlink()
    if waiting:
        raise ServerError(f"initdb of server {waiting[0].name!r} failed:\n{waiting[0]._log_tail()}")


def configure(made: Sequence[Cluster], settings: Mapping[str, str]) -> None:
    """Add *settings*, by name, to the configuration of the clusters."""
    quoted = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in settings.items()}
    lines = "".join(f"{name} = '{value}'\n" for name, value in quoted.items())
    for cluster in made:
        with (cluster.data / "postgresql.conf").open("a") as file:
            file.write(lines)
