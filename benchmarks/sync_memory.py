"""Memory of a sync: the same, however many rows."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.child import child
from benchmarks.lab import Lab, Shape
from benchmarks.measure import Check, Outcome, Sample, Series, Table, number
from benchmarks.sync_tables import Difference, filled
from benchmarks.sync_ways import Said, by_sync

_TIMES_MORE = 10
_TARGET_MB = 64.0
_SAME_MB = 8.0  # what counts as the same
_ROWS = Shape("", "", (("id", "bigint"), ("k", "integer")), "i, (i % 1000)::integer")
_DIFFERENCE = Difference("memory", "0.1 % differ, scattered", 0.001, rows=_ROWS)


def run(lab: Lab, rows: int, *, large: bool, say: Callable[[str], None]) -> Outcome:
    """Sync so many narrow rows, each number of them in a new process.

    :param large: also ten times the rows.
    """
    counts = (rows, rows * _TIMES_MORE) if large else (rows,)
    samples = {count: _measure(lab, count, say) for count in counts}
    peaks = {count: sample.rss_mb or 0.0 for count, sample in samples.items()}
    checks = [
        Check(
            f"sync of {count:,} rows: MB above import", number(mb, 1), f"<= {_TARGET_MB:g}", mb <= _TARGET_MB
        )
        for count, mb in peaks.items()
    ]
    if large:
        more = peaks[counts[-1]] - peaks[rows]
        what = f"sync of {_TIMES_MORE} times the rows: MB more"
        checks.append(Check(what, number(more, 1), f"<= {_SAME_MB:g}", more <= _SAME_MB))
    table = Table(
        "Memory of a sync, 0.1 % differ",
        ["a new process each", "MB above import", "seconds"],
        [
            [f"{count:,} rows (bigint, integer)", number(sample.rss_mb, 1), number(sample.seconds, 1)]
            for count, sample in samples.items()
        ],
    )
    every = [Series(f"{count:,} rows", [sample]) for count, sample in samples.items()]
    return Outcome([table], checks, {"Memory of a sync": every})


def _measure(lab: Lab, rows: int, say: Callable[[str], None]) -> Sample:
    with filled(lab, _DIFFERENCE, rows) as tables, child(lab) as airflow:
        sample = by_sync(airflow, tables, _DIFFERENCE.title, Said())()
    say(f"Sync, memory: {rows:,} rows, {sample.rss_mb or 0:.1f} MB, {sample.seconds:.1f} s")
    return sample
