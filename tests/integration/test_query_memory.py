"""Memory of remote sets does not grow with their rows; measured in a process of its own."""

from __future__ import annotations

import json

import pytest

from tests.own_process import MB, last_line

# Peak of the resident memory, first after the imports and sets of one row, then after the big ones. Three
# sets of two servers, so that they are loaded by turns.
RUN = """
import json, sys
from airflow_dblink.core.remote_sets.remote import Remote
from tests.own_process import peak
from tests.queries import run

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
    result = json.loads(last_line(RUN, query))
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
