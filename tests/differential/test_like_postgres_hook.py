"""DblinkHook behaves as PostgresHook does, except for the differences in the how-to's table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_dblink.embedded.server import Server
from tests.databases import Database, new_database
from tests.differential import stock_calls_around, stock_calls_conn, stock_calls_operators, stock_calls_rows
from tests.differential.stock_differences import DIFFERENCES
from tests.differential.stock_side import CALLS, both, outcome

HOW_TO = Path(__file__).parents[2] / "docs/how-to/stock-operators.md"
ALL = (
    stock_calls_around,
    stock_calls_conn,
    stock_calls_operators,
    stock_calls_rows,
)  # imported for the calls that they add


@pytest.fixture(scope="module")
def database(pair: tuple[Server, Server]) -> Iterator[Database]:
    with new_database(pair[0], "shop") as made:
        yield made


@pytest.mark.parametrize("name", CALLS)
def test_a_call(name: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock_side, our_side = both(database, tmp_path, monkeypatch)
    stock, ours = outcome(name, stock_side), outcome(name, our_side)

    same = ours.is_like(stock)
    if name in DIFFERENCES:
        assert not same, f"the table says that {name!r} differs"
    else:
        assert same, f"PostgresHook: {stock}\n\nDblinkHook: {ours}"


def test_there_are_as_many_calls_as_the_how_to_says() -> None:
    said = re.search(r"more than (\d+) calls", HOW_TO.read_text())
    assert said is not None
    assert len(CALLS) > int(said[1])


def test_the_how_tos_table_says_all_that_differs_and_no_more() -> None:
    section = HOW_TO.read_text().partition("\n## What differs from PostgresHook\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!what \|)([^|]+) \|", section, re.MULTILINE)

    assert sorted(rows) == sorted(set(DIFFERENCES.values()))
    assert len(rows) == len(set(rows))
    assert set(DIFFERENCES) <= set(CALLS)
