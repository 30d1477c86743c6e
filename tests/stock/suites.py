"""The providers' own tests, of the installed versions, fetched as source distributions."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

DISTRIBUTIONS = ("apache-airflow-providers-common-sql", "apache-airflow-providers-postgres")
FOLDER = "AIRFLOW_DBLINK_STOCK_TESTS"

_FETCH_S = 300
_TAIL_CHARACTERS = 300


class NotFetchedError(Exception):
    """The tests are not here and can't be fetched."""


def suite() -> Path:
    """Return the folder with ``tests/unit`` of all distributions; fetch those that are missing.

    :raises NotFetchedError: with pip's reason.
    """
    pinned = [f"{name}=={version(name)}" for name in DISTRIBUTIONS]
    # A folder for each combination of versions; a folder that exists is complete.
    place = _folder() / "+".join(pinned).replace("apache-airflow-providers-", "").replace("==", "-")
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        _download(pinned, Path(scratch) / "archives")
        unpacked = Path(scratch) / "unpacked"
        for archive in sorted((Path(scratch) / "archives").glob("*.tar.gz")):
            _unpack_tests(archive, unpacked)
        unpacked.rename(place)
    return place


def _folder() -> Path:
    if given := os.environ.get(FOLDER):
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "airflow-dblink" / "stock-tests"


def _download(requirements: list[str], folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    for tries_left in (2, 1, 0):
        try:
            subprocess.run(
                [*pip, "--dest", str(folder), *requirements],
                check=True,
                capture_output=True,
                text=True,
                timeout=_FETCH_S,
            )
        except subprocess.SubprocessError as error:
            if not tries_left:
                raise _not_fetched(error) from None
        else:
            return


def _not_fetched(error: subprocess.SubprocessError) -> NotFetchedError:
    said = getattr(error, "stderr", None) or str(error)
    errors = [line for line in said.splitlines() if line.startswith("ERROR")]
    return NotFetchedError(" ".join((errors or [said])[-1].split())[:_TAIL_CHARACTERS])


def _unpack_tests(archive: Path, folder: Path) -> None:
    """Unpack the unit tests; the distributions only share empty ``__init__.py`` files."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = member.name.partition("/")[2]
            if member.isfile() and name.startswith("tests/unit/"):
                member.name = name
                tar.extract(member, folder, filter="data")
