"""Programs that no Python package has: pgbouncer, and a second PostgreSQL with TLS, ICU and libxml.

If they aren't installed, their Debian packages are fetched and only unpacked, without root, into
``/var/cache/airflow-dblink/debian`` (root) or ``~/.cache/airflow-dblink/debian``. If that isn't possible
either, the tests that need the program are skipped, and the run ends with one line about them; with ``CI``
set the run fails, as for any skipped test (``conftest.py``). ``AIRFLOW_DBLINK_DEBIAN`` names another folder;
then installed programs are ignored.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER_VARIABLE = "AIRFLOW_DBLINK_DEBIAN"
#: Begins the reason of each skip, so that the closing line can count them.
NOT_HERE = "not on this machine: "

_TIMEOUT_S = 300
_TAIL_CHARACTERS = 300
# The dependencies to fetch: only libraries, and PostgreSQL itself; the C library is the machine's own.
_WANTED = re.compile(r"(lib.*|postgresql-(client-)?\d+)")
_NEVER = frozenset({"libc6", "libc-bin", "libgcc-s1"})


@dataclass(frozen=True)
class Program:
    """A program that can be started.

    :ivar path: the program's file.
    :ivar libraries: directories of its shared libraries, unless they are the machine's own.
    """

    path: Path
    libraries: tuple[Path, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The environment to start it in."""
        return {**os.environ, **_with_libraries(self.libraries)}


class _MissingError(Exception):
    """A program isn't installed, and can't be fetched."""


def pgbouncer() -> Program:
    """Return pgbouncer, or skip the test."""
    return _or_skip("pgbouncer", "usr/sbin/pgbouncer")


def postgres_bindir() -> Path:
    """Return the directory of Debian's PostgreSQL programs, or skip the test."""
    program = _or_skip("postgresql", "usr/lib/postgresql/*/bin/postgres")
    return _starters(program) if program.libraries else program.path.parent


def _or_skip(package: str, pattern: str) -> Program:
    try:
        return _program(package, pattern)
    except _MissingError as error:
        reason = f"{NOT_HERE}{package} ({error})"
    pytest.skip(reason)


def closing_line(reasons: list[str]) -> str | None:
    """Return a line that names the programs which skipped tests lacked, and how to get them."""
    missing = [reason.partition(NOT_HERE)[2].split()[0] for reason in reasons if NOT_HERE in reason]
    if not missing:
        return None
    packages = sorted(set(missing))
    return (
        f"not tested: {len(missing)} tests that need {', '.join(packages)}, which this machine has not and"
        f" could not fetch; install them (Debian, Ubuntu: apt-get install {' '.join(packages)})"
    )


@functools.cache
def _program(package: str, pattern: str) -> Program:
    if FOLDER_VARIABLE not in os.environ:
        if installed := _newest(Path("/"), pattern):
            return Program(installed)
        if on_path := shutil.which(Path(pattern).name):
            return Program(Path(on_path))
    root = _folder() / package
    with _locked(_folder()):  # tests run in several processes
        if _newest(root, pattern) is None:
            _fetch(package, root)
    path = _newest(root, pattern)
    if path is None:
        raise _MissingError(f"its package has no {pattern}")
    libraries = tuple(sorted({file.parent for file in root.glob("**/*.so.*")}))
    program = Program(path, libraries)
    _try(program)
    return program


def _newest(root: Path, pattern: str) -> Path | None:
    found = [path for path in root.glob(pattern) if os.access(path, os.X_OK)]
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))], default=None)


def _folder() -> Path:
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given)
    if os.geteuid() == 0:  # the programs run as another user, to whom root's home is closed
        return Path("/var/cache/airflow-dblink/debian")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "airflow-dblink" / "debian"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise _MissingError(f"{folder} can't be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(package: str, root: Path) -> None:
    """Fetch the package and its dependencies, and unpack all of them at *root*."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise _MissingError("no apt-get to fetch it with")
    with tempfile.TemporaryDirectory(prefix="airflow_dblink_debian_") as downloads:
        options: list[str] = []
        try:
            _download(package, downloads, options)
        except _MissingError:  # on a new machine there are no lists yet; these are this folder's own
            options = _own_lists(Path(downloads))
            _call(["apt-get", *options, "update"])
            _download(package, downloads, options)
        unpacked = root.with_name(f".{root.name}")
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        unpacked.chmod(0o755)
        for file in Path(downloads).glob("*.deb"):
            _call(["dpkg-deb", "--extract", str(file), str(unpacked)])
    shutil.rmtree(root, ignore_errors=True)
    unpacked.rename(root)  # so that *root* is complete, or missing


def _download(package: str, directory: str, options: list[str]) -> None:
    exclude = [
        f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    ]
    told = _call(["apt-cache", *options, "depends", "--recurse", *exclude, package])
    names = {line for line in told.splitlines() if _WANTED.fullmatch(line)} - _NEVER
    here = {name for name in names if name.startswith("lib") and _is_installed(name)}
    wanted = sorted({package, *names} - here)
    _call(["apt-get", *options, "download", *wanted], cwd=directory)


def _own_lists(directory: Path) -> list[str]:
    """Return options that let apt-get keep its lists below *directory*, which needs no root."""
    for part in ("lists/partial", "archives/partial"):
        (directory / part).mkdir(parents=True)
    return [
        *("-o", f"Dir::State::Lists={directory / 'lists'}"),
        *("-o", f"Dir::Cache={directory}"),
        *("-o", "APT::Sandbox::User="),
    ]


def _is_installed(package: str) -> bool:
    command = ["dpkg-query", "--show", "--showformat=${db:Status-Status}\n", package]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S).stdout
    return "installed" in told.split()


def _try(program: Program) -> None:
    _call([str(program.path), "--version"], env=program.environment)


def _call(command: list[str], cwd: str | None = None, env: Mapping[str, str] | None = None) -> str:
    try:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd=cwd, env=env
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise _MissingError(f"{Path(command[0]).name}: {said[-_TAIL_CHARACTERS:]}") from None


def _with_libraries(libraries: tuple[Path, ...]) -> dict[str, str]:
    if not libraries:
        return {}
    before = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": ":".join([*map(str, libraries), *([before] if before else [])])}


def _starters(program: Program) -> Path:
    """Return a directory of scripts that start unpacked PostgreSQL programs with their own libraries.

    PostgreSQL finds its files by the place of its program, so the scripts lie beside the programs.
    """
    directory = program.path.parent
    starters = directory.with_name("starters") / "bin"
    with _locked(_folder()):
        if not starters.is_dir():
            made = directory.with_name(".starters") / "bin"
            shutil.rmtree(made.parent, ignore_errors=True)
            made.mkdir(parents=True)
            libraries = _with_libraries(program.libraries)["LD_LIBRARY_PATH"]
            for each in directory.iterdir():
                script = made / each.name
                script.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{each}" "$@"\n')
                script.chmod(0o755)
            made.parent.rename(starters.parent)
    return starters
