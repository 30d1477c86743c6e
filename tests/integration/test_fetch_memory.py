"""Memory of a fetch to a file does not grow with its rows, nor with batches; measured in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import airflow_dblink

ROOT = Path(airflow_dblink.__file__).parents[1]
MB = 1024 * 1024

# Peak of the resident memory, first after the imports and a file of one row, then after the big one.
RUN = """
import json, re, sys
from pathlib import Path
from airflow_dblink.operators.fetch import DblinkFetchOperator
from tests.integration.tasks import context

def peak():  # of this process: ru_maxrss begins with what its parent had when it forked
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def fetch(query):
    operator = DblinkFetchOperator(task_id="t", conn_id="source", sql=query, path=sys.argv[1])
    return operator.execute(context())

fetch("SELECT 1")
before = peak()
result = fetch(sys.argv[2])
print(json.dumps({"rows": result["rows"], "grown": peak() - before}))
"""


def fetched(path: Path, rows: int, chars: int) -> int:
    """Return the memory that it took."""
    query = f"SELECT repeat('x', {chars}) FROM generate_series(1, {rows})"  # noqa: S608 - numbers
    run = subprocess.run(
        [sys.executable, "-c", RUN, path.as_uri(), query],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["rows"] == rows
    assert path.stat().st_size == rows * (chars + 1) + len("repeat\n")
    return int(result["grown"])


@pytest.mark.usefixtures("source")
def test_long_rows_are_not_kept_by_the_batch(tmp_path: Path) -> None:
    assert fetched(tmp_path / "rows.csv", rows=2_000, chars=100_000) < 32 * MB


@pytest.mark.usefixtures("source")
def test_narrow_rows_are_not_kept_either(tmp_path: Path) -> None:
    assert fetched(tmp_path / "rows.csv", rows=1_000_000, chars=20) < 32 * MB


@pytest.mark.usefixtures("source")
def test_one_long_row_takes_a_few_times_its_length(tmp_path: Path) -> None:
    assert fetched(tmp_path / "rows.csv", rows=3, chars=50 * MB) < 5 * 50 * MB
