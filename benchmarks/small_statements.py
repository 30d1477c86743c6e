"""Many small statements on one connection of ``get_conn()``, beside the stock PostgresHook's."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.child import Child, child
from benchmarks.lab import MIXED, Lab
from benchmarks.measure import BenchmarkError, Check, Outcome, Sample, Table, Way, interleaved, number

_ROWS = 100_000
_STATEMENTS = 3_000
_TARGET = 1.2  # what is noise
_NAMES = {"stock": "PostgresHook.get_conn()", "ours": "DblinkHook.get_conn()"}


def run(lab: Lab, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Read single rows by their key, one after the other, in one transaction."""
    say("Small statements")
    lab.fill(MIXED, _ROWS)
    try:
        with child(lab) as airflow:
            ways = {name: _way(airflow, hook) for hook, name in _NAMES.items()}
            series = interleaved(ways, repeat, say)
    finally:
        lab.drop(MIXED.table)
    stock, ours = (series[name] for name in _NAMES.values())
    table = Table(
        f"{_STATEMENTS:,} small SELECTs on one connection",
        ["way", "times PostgresHook's time", "seconds", "client CPU, s"],
        [
            [each.name, number(each.ratio_to(stock)), number(each.seconds), number(each.cpu_s)]
            for each in (stock, ours)
        ],
        [
            "One row by its key each, in one transaction; both hooks as they are by default."
            " Connecting is left out."
        ],
    )
    ratio = ours.ratio_to(stock)
    what = f"{_STATEMENTS:,} small statements on one connection: times PostgresHook's time"
    check = Check(what, number(ratio), f"<= {_TARGET:g}", ratio <= _TARGET)
    return Outcome([table], [check], {f"{_STATEMENTS:,} small SELECTs": [stock, ours]})


def _way(airflow: Child, hook: str) -> Way:
    def run_and_look() -> Sample:
        answer = airflow.ask("small_statements", hook=hook, table=MIXED.table, times=_STATEMENTS)
        if answer["returned"] != sum(range(1, _STATEMENTS + 1)):
            raise BenchmarkError(f"small statements: {hook} reads other rows")
        return Sample(**answer["sample"])

    return run_and_look
