"""The builders beside the extension's own functions, which are called through SQL."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.child import Child, child
from benchmarks.lab import MIXED, Lab
from benchmarks.measure import BenchmarkError, Check, Outcome, Sample, Series, Table, Way, interleaved, number

_ROWS = 100_000
_CALLS = 2_000
_KEYS = 20_000
_KINDS = ("insert", "update", "delete")
_MANY_TARGET = 20.0
_DBLINK, _HOOK, _DBLINK_SET, _MANY = "dblink", "hook", "dblink_set", "hook_many"
_TITLES = {
    _DBLINK: "dblink, a call per row",
    _HOOK: "build_sql_..., a call per row",
    _DBLINK_SET: f"dblink, called for {_KEYS:,} rows by one SELECT",
    _MANY: f"build_sql_..._many, {_KEYS:,} rows",
}


def run(lab: Lab, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Build the statements for rows of a table with mixed types, in four ways, and compare the texts."""
    say("Builders")
    lab.fill(MIXED, _ROWS)
    try:
        with child(lab) as airflow:
            every = {kind: _measure(airflow, kind, repeat, say) for kind in _KINDS}
    finally:
        lab.drop(MIXED.table)
    table = Table(
        "Building statements for rows of mixed types, microseconds per row",
        ["way", *_KINDS],
        [[title, *(number(_us(every[k][way]), 1) for k in _KINDS)] for way, title in _TITLES.items()],
    )
    checks = []
    for kind, series in every.items():
        one = _us(series[_DBLINK]) / _us(series[_HOOK])
        many = _us(series[_DBLINK]) / _us(series[_MANY])
        what = f"build_sql_{kind}"
        checks.append(Check(f"{what}: times as fast as dblink's, per call", number(one), ">= 1", one >= 1))
        checks.append(
            Check(
                f"{what}_many: times as fast as dblink's call per row",
                number(many, 1),
                f">= {_MANY_TARGET:g}",
                many >= _MANY_TARGET,
            )
        )
    samples = {f"Builders, {kind}, seconds": list(series.values()) for kind, series in every.items()}
    return Outcome([table], checks, samples)


def _measure(airflow: Child, kind: str, repeat: int, say: Callable[[str], None]) -> dict[str, Series]:
    digests: dict[int, str] = {}

    def way(name: str) -> Way:
        rows = _KEYS if name in (_DBLINK_SET, _MANY) else _CALLS

        def run_and_look() -> Sample:
            answer = airflow.ask("builders", way=name, kind=kind, table=MIXED.table, rows=rows)
            if digests.setdefault(rows, answer["returned"]) != answer["returned"]:
                raise BenchmarkError(f"builders: {name} gives other texts of {kind}")
            return Sample(**answer["sample"])

        return run_and_look

    say(f"  {kind}")
    return interleaved({name: way(name) for name in _TITLES}, repeat, say)


def _us(series: Series) -> float:
    many = series.name in (_DBLINK_SET, _MANY)
    return series.seconds / (_KEYS if many else _CALLS) * 1e6
