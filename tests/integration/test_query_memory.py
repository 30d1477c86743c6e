"""Memory of remote sets does not grow with their rows; measured in a process of its own."""

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

# Peak of the resident memory, first after the imports and sets of one row, then after the big ones. Three
# sets of two servers, so that they are loaded by turns.
RUN = """
import json, re, sys
from pathlib import Path
from airflow_dblink.core.remote_sets import Remote
from tests.queries import run

def peak():  # of this process: ru_maxrss begins with what its parent had when it forked
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def sets(query):
    return {"a": Remote("source", query), "b": Remote("warehouse", query), "c": Remote("source", query)}

run("SELECT 1", sets("SELECT 1::bigint AS id, '' AS filler"))
before = peak()
result = run("SELECT 1", sets(sys.argv[1]), analyze=False)
print(json.dumps({"rows": result["sets"], "grown": peak() - before}))
"""
SERIES = "SELECT generate_series(1::bigint, {}) AS id, {} AS filler"


def fetched(query: str) -> tuple[int, int]:
    """Return the rows of all sets, and the memory that they took."""
    run = subprocess.run(
        [sys.executable, "-c", RUN, query],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    return sum(result["rows"].values()), result["grown"]


@pytest.mark.usefixtures("source", "warehouse")
def test_ten_times_the_rows_take_the_same_memory() -> None:
    some, a_little = fetched(SERIES.format(100_000, "'narrow'"))
    many, grown = fetched(SERIES.format(1_000_000, "'narrow'"))
    assert (some, many) == (300_000, 3_000_000)
    assert grown < 32 * MB
    assert abs(grown - a_little) < 12 * MB, (a_little, grown)


@pytest.mark.usefixtures("source", "warehouse")
def test_wide_rows_stay_within_the_limit() -> None:
    rows, grown = fetched(SERIES.format(20_000, "repeat('x', 4000)"))
    assert rows == 60_000
    assert grown < 32 * MB, grown


@pytest.mark.usefixtures("source", "warehouse")
def test_long_rows_are_held_twice_by_each_server_and_once_on_their_way() -> None:
    rows, grown = fetched(SERIES.format(2, "repeat('x', 30000000)"))
    assert rows == 6
    assert grown < (2 * 2 + 1) * 30_000_000 + 16 * MB, grown
