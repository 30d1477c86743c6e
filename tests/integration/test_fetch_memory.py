"""Memory of a fetch to a file does not grow with its rows, nor with batches; measured in its own process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.own_process import MB, last_line

# Peak of the resident memory, first after the imports and a file of one row, then after the big one.
RUN = """
import json, sys
from airflow_dblink.operators.fetch import DblinkFetchOperator
from tests.integration.tasks import context
from tests.own_process import peak

def fetch(query):
    operator = DblinkFetchOperator(task_id="t", conn_id="source", sql=query, path=sys.argv[1])
    return operator.execute(context())

fetch("SELECT 1")
before = peak()
result = fetch(sys.argv[2])
print(json.dumps({"rows": result["rows"], "grown": peak() - before}))
"""


def fetched(path: Path, rows: int, chars: int) -> int:
    """Return the memory that the fetch took."""
    query = f"SELECT repeat('x', {chars}) FROM generate_series(1, {rows})"  # noqa: S608 - numbers
    result = json.loads(last_line(RUN, path.as_uri(), query))
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
