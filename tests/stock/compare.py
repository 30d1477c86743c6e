"""Compares the two runs of one suite with the list of accepted differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ACCEPTED = Path(__file__).with_name("accepted.txt")
_SEPARATOR = "  # "


def accepted(text: str) -> dict[str, str]:
    """Return the reasons by test id of a list that has a test on each line: ``id  # reason``.

    :raises ValueError: for a line without a reason, or a test that is there twice.
    """
    reasons: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        test, separator, reason = line.partition(_SEPARATOR)
        if not separator or not reason.strip():
            raise ValueError(f"no reason: {line}")
        if test in reasons:
            raise ValueError(f"there twice: {test}")
        reasons[test] = reason.strip()
    return reasons


def complaints(stock: Mapping[str, str], ours: Mapping[str, str], reasons: Mapping[str, str]) -> list[str]:
    """Return a line for each mistake; none if the list has exactly the differences.

    :param stock: outcomes by test id with the stock hook: a test that doesn't pass there isn't counted.
    :param ours: outcomes with our hook.
    :param reasons: the accepted differences.
    """
    differs = differences(stock, ours)
    new = [f"new difference: {test} ({ours.get(test, 'not run')})" for test in differs if test not in reasons]
    equal = [f"accepted, but equal now: {test}" for test in reasons if test in stock and test not in differs]
    gone = [f"accepted, but no such test: {test}" for test in reasons if test not in stock]
    return [*new, *equal, *gone]


def differences(stock: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """Return the tests that pass with the stock hook and not with ours."""
    return [test for test, outcome in stock.items() if outcome == "passed" != ours.get(test)]
