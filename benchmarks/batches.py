"""Reading in batches: ``hook.batches`` beside psycopg's own server-side cursor."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.child import Child, child
from benchmarks.lab import MIXED, Lab
from benchmarks.measure import BenchmarkError, Check, Outcome, Sample, Table, Way, interleaved, number

_BATCH_ROWS = 10_000
_TARGET = 0.95
_HOOK = "hook.batches"
_PSYCOPG = "psycopg, named cursor, fetchmany"


def run(lab: Lab, rows: int, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Read all rows in both ways, in one process, as Python values."""
    say(f"Batches: {rows:,} rows")
    lab.fill(MIXED, rows)
    with child(lab) as airflow:
        ways = {_PSYCOPG: _way(airflow, "psycopg", rows), _HOOK: _way(airflow, "hook", rows)}
        series = interleaved(ways, repeat, say)
    lab.drop(MIXED.table)
    throughput = series[_PSYCOPG].ratio_to(series[_HOOK])
    table = Table(
        f"Reading {rows:,} mixed rows in batches of {_BATCH_ROWS:,}",
        ["way", "throughput", "seconds", "client CPU, s", "memory, MB"],
        [
            [name, ratio, number(one.seconds), number(one.cpu_s), number(one.rss_mb, 0)]
            for (name, one), ratio in zip(series.items(), ("1.00", number(throughput)), strict=True)
        ],
    )
    what = "`batches`: throughput to psycopg's cursor"
    check = Check(what, number(throughput), f">= {_TARGET}", throughput >= _TARGET)
    return Outcome([table], [check], {"Batches": list(series.values())})


def _way(airflow: Child, way: str, rows: int) -> Way:
    def run_and_look() -> Sample:
        answer = airflow.ask("batches", way=way, query=f"TABLE {MIXED.table}", batch_rows=_BATCH_ROWS)
        expected = [rows, rows * (rows + 1) // 2]
        if answer["returned"] != expected:
            raise BenchmarkError(f"batches, {way}: {answer['returned']}, not {expected}")
        return Sample(**answer["sample"])

    return run_and_look
