"""Memory of a transfer does not grow with the rows; measured in a process of its own."""

from __future__ import annotations

import json

import pytest

from tests.databases import Database
from tests.own_process import MB, last_line

LIMIT = 64 * MB  # over what the imports take

# Peak of the resident memory, first after the imports and a transfer of one row, then after the big one.
RUN = """
import json, sys
from tests.own_process import peak
from tests.transfers import transfer

transfer(source_sql="SELECT 0::bigint AS id, '' AS filler")
before = peak()
result = transfer(source_sql=sys.argv[1], mode=sys.argv[2])
print(json.dumps({"rows": result["rows"], "bytes": result["bytes"], "grown": peak() - before}))
"""


@pytest.fixture
def item(source: Database, warehouse: Database) -> None:
    warehouse.execute("CREATE UNLOGGED TABLE item (id bigint PRIMARY KEY, filler text)")


def moved(query: str, mode: str = "replace") -> dict[str, int]:
    result: dict[str, int] = json.loads(last_line(RUN, query, mode))
    return result


SERIES = "SELECT i AS id, {} AS filler FROM generate_series(1::bigint, {}) AS i"


@pytest.mark.usefixtures("item")
def test_ten_times_the_rows_take_the_same_memory() -> None:
    some = moved(SERIES.format("'narrow'", 150_000))
    many = moved(SERIES.format("'narrow'", 1_500_000))
    assert (some["rows"], many["rows"]) == (150_000, 1_500_000)
    assert many["grown"] < LIMIT
    assert abs(many["grown"] - some["grown"]) < 8 * MB, (some, many)


@pytest.mark.usefixtures("item")
@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_rows_of_2_kb_stay_within_the_limit(mode: str) -> None:
    result = moved(SERIES.format("repeat('x', 2000)", 60_000), mode)
    assert result["bytes"] > 120_000_000
    assert result["grown"] < LIMIT, result


@pytest.mark.usefixtures("item")
@pytest.mark.parametrize(("rows", "mode"), [(1, "replace"), (3, "replace"), (2, "upsert")])
def test_rows_of_90_mb_arrive_and_are_held_twice_at_most(warehouse: Database, rows: int, mode: str) -> None:
    result = moved(SERIES.format("repeat('x', 90000000)", rows), mode)
    assert warehouse.rows("SELECT length(filler), count(*) FROM item WHERE id > 0 GROUP BY 1") == [
        (90_000_000, rows)
    ]
    # libpq's buffer is a power of two; a fast server fills it up with the beginning of the next row.
    assert result["grown"] < 128 * MB + 90_000_000 + 8 * MB, result
