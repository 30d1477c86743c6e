"""Programs that find what differs between two tables: how they get here, and how they are run.

``python -m benchmarks.sync_peers`` fetches those that aren't there yet, outside of the checkout; so does the
benchmark itself. They lie in the folder that ``AIRFLOW_DBLINK_BENCH_PEERS`` names, by default
``~/.cache/airflow-dblink/bench-peers``: reladiff and data-diff from PyPI, each in a venv of its own, and
pg_comparator, which is Perl, as Debian's packages, unpacked and not installed. A ``pg_comparator`` on PATH
(``apt-get install postgresql-comparator``) is used as it is.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lab import Lab
from benchmarks.measure import BenchmarkError, Sample
from benchmarks.sync_tables import Tables

_FOLDER = "AIRFLOW_DBLINK_BENCH_PEERS"
_PASSWORD = "BENCH_PEERS_PASSWORD"  # noqa: S105 - the name of a variable
_INSTALL_S, _RUN_S = 900, 600
_TAIL_CHARACTERS = 500

RELADIFF, DATA_DIFF, PG_COMPARATOR = "reladiff", "data-diff", "pg_comparator"

# data-diff imports dbt, whose newest releases it can't work with.
_PYPI = {
    RELADIFF: ("reladiff[postgresql]==0.6.0",),
    DATA_DIFF: ("data-diff==0.11.2", "psycopg2-binary", "dbt-core==1.7.19", "pydantic<2"),
}
_DEBIAN = ("postgresql-comparator", "libdbi-perl", "libdbd-pg-perl", "libpq5")

# What it calls by default is its own C code, built for Debian's PostgreSQL alone; this stands in.
_CHECKSUMS = (
    "CREATE OR REPLACE FUNCTION public.cksum4(text) RETURNS integer LANGUAGE sql IMMUTABLE STRICT"
    " PARALLEL SAFE AS 'SELECT hashtext($1)'",
    "CREATE OR REPLACE FUNCTION public.cksum8(text) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT"
    " PARALLEL SAFE AS 'SELECT hashtextextended($1, 0)'",
)


@dataclass(frozen=True)
class Peer:
    """A program that is here, or why it is not.

    :ivar command: how it is called.
    :ivar missing: why it can't be.
    """

    name: str
    command: Sequence[str] = ()
    environment: Mapping[str, str] | None = None
    missing: str | None = None

    def find(self, tables: Tables) -> Sample:
        """Run it as a user would, its start included; what it prints must be all differences.

        :raises BenchmarkError: if it fails, or finds more or fewer.
        """
        if self.name != DATA_DIFF:
            return self._find(tables, tables.difference.table)
        with _views(tables) as view:
            return self._find(tables, view)

    def _find(self, tables: Tables, table: str) -> Sample:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        try:
            done = subprocess.run(
                [*self.command, *self._arguments(tables, table)],
                capture_output=True,
                text=True,
                timeout=_RUN_S,
                env={**(self.environment or os.environ), **_passwords(tables.lab)},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{self.name}, {tables.difference.title}: no end in {_RUN_S} s") from None
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        found, wanted = self._count(done.stdout), self._wanted(tables)
        if found != wanted or (done.returncode and self.name != PG_COMPARATOR):
            raise BenchmarkError(
                f"{self.name}, {tables.difference.title}: found {found} differences, not {wanted}"
                f" (exit {done.returncode}): {(done.stderr or done.stdout)[-_TAIL_CHARACTERS:]}"
            )
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Sample(seconds, cpu_s)

    def _arguments(self, tables: Tables, table: str) -> list[str]:
        key, *others = (name for name, _ in tables.difference.shape.columns)
        sides = (tables.lab.source, tables.lab.destination)
        if self.name == PG_COMPARATOR:
            what = f"{table}?{key}:{','.join(others)}"
            urls = [f"pgsql://{s.role}@{s.host}:{s.port}/{s.dbname}/{what}" for s in sides]
            return ["--pg-text-cast", f"--env-pass={_PASSWORD}", *urls]
        databases = [part for side in sides for part in (side.airflow_uri(conn_type="postgresql"), table)]
        columns = [part for name in others for part in ("-c", name)]
        return [*databases, "-k", key, *columns, "-j", "2"]

    def _count(self, printed: str) -> int:
        signs = ("INSERT ", "UPDATE ", "DELETE ") if self.name == PG_COMPARATOR else ("+ ", "- ")
        return sum(line.startswith(signs) for line in printed.splitlines())

    def _wanted(self, tables: Tables) -> int:
        counts = tables.counts  # the others print a row that is to be updated as it was and as it will be
        return counts.all + (0 if self.name == PG_COMPARATOR else counts.updated)


def prepare(lab: Lab) -> None:
    """Make the functions that pg_comparator calls."""
    for server in (lab.source, lab.destination):
        for statement in _CHECKSUMS:
            lab.rows(server, statement, superuser=True)


def peers(say: Callable[[str], None]) -> list[Peer]:
    """Return all of them; what isn't here is fetched."""
    return [_peer(name, say) for name in (RELADIFF, DATA_DIFF, PG_COMPARATOR)]


def _peer(name: str, say: Callable[[str], None]) -> Peer:
    found = _find(name)
    if found.missing is None:
        return found
    say(f"  fetching {name}")
    try:
        if name == PG_COMPARATOR:
            _unpack(_folder() / name)
        else:
            _install(_folder() / name, _PYPI[name])
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return Peer(name, missing=" ".join(said.split())[-_TAIL_CHARACTERS:])
    return _find(name)


def _find(name: str) -> Peer:
    if name != PG_COMPARATOR:
        return _tried(Peer(name, [str(_folder() / name / "bin" / name)]))
    if program := shutil.which(name):
        return _tried(Peer(name, [program]))
    root = _folder() / name
    libraries = [str(path) for path in root.glob("usr/lib/*-linux-gnu")]
    modules = [str(path) for path in [*root.glob("usr/lib/*/perl5/*"), root / "usr/share/perl5"]]
    environment = {
        **os.environ,
        "PERL5LIB": ":".join(modules),
        "LD_LIBRARY_PATH": ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(":"),
    }
    return _tried(Peer(name, ["perl", str(root / "usr/bin" / name)], environment))


def _tried(peer: Peer) -> Peer:
    commands = [[*peer.command, "--version"]]
    if peer.name == PG_COMPARATOR:  # it loads its driver only to connect
        commands.append(["perl", "-MDBD::Pg", "-e", "1"])
    try:
        for each in commands:
            subprocess.run(
                each, check=True, capture_output=True, text=True, timeout=_INSTALL_S, env=peer.environment
            )
    except (OSError, subprocess.SubprocessError) as error:
        return Peer(peer.name, missing=" ".join((getattr(error, "stderr", None) or str(error)).split()))
    return peer


def _folder() -> Path:
    if given := os.environ.get(_FOLDER):
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "airflow-dblink" / "bench-peers"


def _install(folder: Path, requirements: Sequence[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(folder)])
    _call([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *requirements])


def _unpack(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as downloads:
        try:
            _call(["apt-get", "download", *_DEBIAN], cwd=downloads)
        except subprocess.CalledProcessError:
            _call(["apt-get", "update"])  # on a new machine there are no lists yet
            _call(["apt-get", "download", *_DEBIAN], cwd=downloads)
        for package in Path(downloads).glob("*.deb"):
            _call(["dpkg-deb", "--extract", str(package), str(folder)])


def _call(command: Sequence[str], cwd: str | None = None) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S, cwd=cwd)


@contextmanager
def _views(tables: Tables) -> Iterator[str]:
    """Give the numeric column a scale: without one data-diff fails."""
    lab, table = tables.lab, tables.difference.table
    names = (name for name, _ in tables.difference.shape.columns)
    columns = ", ".join("n::numeric(20, 4) AS n" if name == "n" else name for name in names)
    servers = (lab.source, lab.destination)
    for server in servers:
        lab.rows(server, f"CREATE VIEW {table}_view AS SELECT {columns} FROM {table}")  # noqa: S608 - constants
    try:
        yield f"{table}_view"
    finally:
        for server in servers:
            lab.rows(server, f"DROP VIEW {table}_view")


def _passwords(lab: Lab) -> dict[str, str]:
    return {
        f"{_PASSWORD}1": lab.source.role_password,
        f"{_PASSWORD}2": lab.destination.role_password,
    }


def _main() -> int:
    found = peers(print)
    for peer in found:
        print(f"{peer.name}: {peer.missing or 'here'}")
    return int(any(peer.missing for peer in found))


if __name__ == "__main__":
    sys.exit(_main())
