"""Builders and get_pkey end as those of PostgreSQL's own dblink do, whatever they are called with.

Thousands of random calls on random relations, the same ones in every run. ``python -m tests.differential``
goes on with others for as long as it is let.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from airflow_dblink.embedded.server import Server
from tests.differential.comparison import comparison

Compared = Callable[[bool], Counter[str]]

_EXAMPLES = 100  # of 20 calls each
_CASES = 2_000
# The strategies have lost their point if they no longer get to one of these.
_OUTCOMES = {"value", "0A000", "21000", "22023", "2202E", "22P02", "3F000", "42501", "42601", "42602"}
_OUTCOMES |= {"42809", "42883", "42P01"}


@pytest.fixture(scope="module")
def compared(pair: tuple[Server, Server]) -> Iterator[Compared]:
    """Give a function that compares, in a user's transaction or not, and counts the outcomes."""
    with comparison(pair[0]) as both:

        @cache
        def compare(in_transaction: bool) -> Counter[str]:
            return both.run(examples=_EXAMPLES, in_transaction=in_transaction)

        yield compare


def test_calls_in_autocommit_end_as_dblinks_do(compared: Compared) -> None:
    assert compared(False).total() >= _CASES / 2


def test_calls_in_a_users_transaction_end_as_dblinks_do(compared: Compared) -> None:
    assert compared(True).total() >= _CASES / 2


def test_2000_calls_were_compared_with_every_outcome_and_often_a_value(compared: Compared) -> None:
    outcomes = compared(False) + compared(True)
    assert outcomes.total() >= _CASES
    assert set(outcomes) >= _OUTCOMES
    assert outcomes["value"] >= outcomes.total() / 4
