"""Run the stock providers' own tests with DblinkHook instead of PostgresHook, and once with PostgresHook.

A test that passes with the stock hook must pass with ours, unless ``accepted.txt`` has the reason why not.
The tests are fetched with pip, once for each version, into ``~/.cache/airflow-dblink/stock-tests`` or the
folder in ``AIRFLOW_DBLINK_STOCK_TESTS``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from airflow_dblink.embedded.server import servers
from tests.databases import Database, new_database
from tests.memory import use_memory
from tests.stock import plugin
from tests.stock.compare import ACCEPTED, accepted, complaints, differences
from tests.stock.suites import NotFetchedError, suite

ROOT = Path(__file__).parents[2]

_HOOKS = ("stock", "ours")
# The parts of common.sql that use a hook of PostgreSQL.
_PARTS = (
    "postgres",
    *(f"common/sql/{part}" for part in ("dialects", "hooks", "operators", "sensors", "triggers")),
)
_NOT = ("common/sql/operators/test_analytics.py",)  # DataFusion
# The tests take Airflow's own table for a source.
_CONNECTION = "CREATE TABLE connection (id int PRIMARY KEY, conn_id text NOT NULL, conn_type text NOT NULL)"
_RUN_S = 600


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.stock", description=__doc__)
    parser.add_argument("--show", action="store_true", help="also print how the tests that differ failed")
    arguments = parser.parse_args()
    try:
        place = suite()
    except NotFetchedError as error:
        sys.stdout.write(f"test-stock: the providers' tests are not here and can't be fetched: {error}\n")
        return int(bool(os.environ.get("CI")))
    use_memory()
    with servers("stock") as (server,), ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        databases = {hook: stack.enter_context(new_database(server, hook)) for hook in _HOOKS}
        traceback = "short" if arguments.show else "no"
        runs = {hook: _start(hook, place, databases[hook], Path(scratch), traceback) for hook in _HOOKS}
        stock, ours = (_outcomes(hook, run, Path(scratch)) for hook, run in runs.items())
        if arguments.show:
            sys.stdout.write((Path(scratch) / "ours.log").read_text())
    reasons = accepted(ACCEPTED.read_text())
    wrong, differing = complaints(stock, ours, reasons), len(differences(stock, ours))
    counts = Counter(stock.values())
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    sys.stdout.write(
        f"{counts['passed']} tests pass with PostgresHook ({counts['failed']} need what isn't here,"
        f" {counts['skipped']} are skipped); {differing} of them differ with DblinkHook\n"
        f"{counts['passed'] - differing} passed, {len(wrong)} failed, {differing} skipped\n"
    )
    return int(bool(wrong))


def _start(
    hook: str, place: Path, database: Database, scratch: Path, traceback: str
) -> subprocess.Popen[bytes]:
    database.execute(_CONNECTION)
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(scratch / f"{hook}_home"),
        "AIRFLOW_CONN_POSTGRES_DEFAULT": database.uri,
        "AIRFLOW_CONN_DBLINK_DEFAULT": database.uri,
        plugin.HOOK: hook,
        plugin.OUTCOMES: str(scratch / f"{hook}.json"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options = ["--noconftest", "-p", "tests.stock.plugin", "-p", "no:cacheprovider", "-p", "no:xdist"]
    configuration = ["-c", os.devnull, "--rootdir", str(place / "tests/unit")]
    units = place / "tests/unit"
    paths = [str(units / part) for part in _PARTS]
    ignored = [f"--ignore={units / part}" for part in _NOT]
    with (scratch / f"{hook}.log").open("wb") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                f"--tb={traceback}",
                *options,
                *configuration,
                *ignored,
                *paths,
            ],
            env=environment,
            cwd=scratch,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _outcomes(hook: str, run: subprocess.Popen[bytes], scratch: Path) -> dict[str, str]:
    run.wait(_RUN_S)
    written = scratch / f"{hook}.json"
    if run.returncode not in (0, 1) or not written.exists():  # 1: some failed
        raise SystemExit(f"pytest ended with {run.returncode}:\n{(scratch / f'{hook}.log').read_text()}")
    outcomes: dict[str, str] = json.loads(written.read_text())
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
