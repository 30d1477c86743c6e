"""The list of accepted differences from the stock hook says all that differs, and no more."""

from __future__ import annotations

import pytest

from tests.stock.compare import ACCEPTED, accepted, complaints

STOCK = {"a": "passed", "b": "passed", "c": "failed", "d": "skipped"}


def test_what_passes_with_both_is_fine_and_what_fails_with_stock_does_not_count() -> None:
    assert complaints(STOCK, {"a": "passed", "b": "passed", "c": "failed", "d": "failed"}, {}) == []


@pytest.mark.parametrize("outcome", ["failed", "skipped", None])
def test_a_new_difference_is_told(outcome: str | None) -> None:
    ours = {"a": "passed"} | ({"b": outcome} if outcome else {})
    told = complaints(STOCK, ours, {})
    assert told == [f"new difference: b ({outcome or 'not run'})"]
    assert complaints(STOCK, ours, {"b": "because"}) == []


def test_an_accepted_test_that_passes_now_is_told() -> None:
    ours = {"a": "passed", "b": "passed"}
    assert complaints(STOCK, ours, {"b": "because"}) == ["accepted, but equal now: b"]


def test_an_accepted_test_that_is_not_there_is_told() -> None:
    ours = {"a": "passed", "b": "passed"}
    assert complaints(STOCK, ours, {"x": "because"}) == ["accepted, but no such test: x"]


def test_each_line_of_the_list_has_a_reason() -> None:
    assert accepted("# a comment\n\nx[1]  # because\n") == {"x[1]": "because"}
    with pytest.raises(ValueError, match="no reason: x"):
        accepted("x")
    with pytest.raises(ValueError, match="there twice: x"):
        accepted("x  # because\nx  # again")
    accepted(ACCEPTED.read_text())
