"""The cost of a sync grows with the difference: where comparing wins, and where copying all does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.child import Child
from benchmarks.lab import Lab
from benchmarks.measure import Check, Outcome, Series, Table, Way
from benchmarks.sync_tables import Difference, filled
from benchmarks.sync_ways import TRANSFER, Said, by_sync, by_transfer

# Shares in percent.
_SHARES = (0, 0.01, 0.1, 1, 10, 50)
_ROUNDS = 3  # none is discarded: all is warm by now
_METHODS: Mapping[str, Mapping[str, Any]] = {
    "difference": {},
    "reload": {},
    "replace": {"max_delete_fraction": None},  # no guards go with it
    "auto": {},
}
_OWN = ("difference", "reload")  # auto chooses among them
_AUTO_TARGET = 1.15

_Curve = Mapping[float, Mapping[str, Series]]


def run(lab: Lab, airflow: Child, rows: int, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Sync by each method, and copy all, at each share of scattered differences."""
    curve: dict[float, dict[str, Series]] = {}
    said: dict[float, Said] = {}
    for share in _SHARES:
        say(f"Sync: {share:g} % of {rows:,} rows differ")
        said[share] = Said()
        with filled(lab, Difference("curve", f"{share:g} % differ", share / 100), rows) as tables:
            ways = {
                method: by_sync(airflow, tables, method, said[share], method=method, **arguments)
                for method, arguments in _METHODS.items()
            }
            ways[TRANSFER] = by_transfer(airflow, tables)
            curve[share] = _rounds(ways, min(repeat, _ROUNDS), say)
    samples = {f"Sync, {share:g} % differ": [*series.values()] for share, series in curve.items()}
    return Outcome([_table(curve, said, rows, repeat)], _checks(curve), samples)


def _rounds(ways: Mapping[str, Way], rounds: int, say: Callable[[str], None]) -> dict[str, Series]:
    series = {name: Series(name) for name in ways}
    for turn in range(rounds):
        for name, way in ways.items():
            series[name].samples.append(way())
        times = ", ".join(f"{name} {one.samples[-1].seconds:.2f}" for name, one in series.items())
        say(f"  round {turn + 1}: {times} s")
    return series


def _table(curve: _Curve, said: Mapping[float, Said], rows: int, repeat: int) -> Table:
    lines = []
    for share, series in curve.items():
        full = series[TRANSFER]
        cells = [f"{series[name].ratio_to(full):.2f} ({series[name].seconds:.1f})" for name in series]
        auto = said[share]
        lines.append(
            [
                f"{share:g} %",
                f"{auto.groups['difference']:.0%}",
                *cells,
                auto.methods["auto"],
                f"{auto.sizes['auto'] / 1e6:.1f}",
            ]
        )
    return Table(
        f"Sync of {rows:,} mixed rows by how many differ, scattered",
        [
            "rows differ",
            "groups differ",
            *(f'method="{method}"' for method in _METHODS),
            TRANSFER,
            "auto took",
            "its MB to the client",
        ],
        lines,
        [
            f"Times are relative to {TRANSFER}, which empties the table, copies all rows and compares"
            f" nothing; seconds in brackets. Medians of {min(repeat, _ROUNDS)} rounds.",
            *(_crossing_note(curve, left, right) for left, right in _crossings()),
        ],
    )


def _crossings() -> Sequence[tuple[str, str]]:
    return (("difference", "reload"), ("difference", "replace"), ("difference", TRANSFER))


def _crossing_note(curve: _Curve, left: str, right: str) -> str:
    at = _crossing(curve, left, right)
    if at is None:
        return f"{left} is the quicker one up to {_SHARES[-1]:g} %, compared with {right}."
    return f"{left} is quicker than {right} up to about {at:.2g} %."


def _crossing(curve: _Curve, left: str, right: str) -> float | None:
    """Return the share from which *right* wins, between two measured ones by a straight line."""
    ahead = [(share, series[left].ratio_to(series[right]) - 1) for share, series in curve.items()]
    for (low, before), (high, after) in pairwise(ahead):
        if before <= 0 < after:
            return low + (high - low) * before / (before - after)
    return None


def _checks(curve: _Curve) -> list[Check]:
    checks = []
    for share, series in curve.items():
        best = min((series[name] for name in _OWN), key=lambda one: one.seconds)
        ratio = series["auto"].ratio_to(best)
        what = f"sync, {share:g} % differ: time of auto to the better of {' and '.join(_OWN)}"
        checks.append(Check(what, f"{ratio:.2f}", f"<= {_AUTO_TARGET}", ratio <= _AUTO_TARGET))
    return checks
