"""Memory of the transfer: the same, however many rows."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.child import child
from benchmarks.lab import Lab
from benchmarks.measure import Check, Outcome, Sample, Series, Table, number

_TABLE = "bench_memory"
_TIMES_MORE = 10
_TARGET_MB = 64.0
_SAME_MB = 8.0  # what counts as the same


def run(lab: Lab, rows: int, *, large: bool, say: Callable[[str], None]) -> Outcome:
    """Transfer rows that the source makes on the fly, each number of them in a new process.

    :param large: also ten times the rows.
    """
    peaks: dict[int, float] = {}
    samples = []
    for count in (rows, rows * _TIMES_MORE) if large else (rows,):
        sample = _measure(lab, count)
        peaks[count] = sample.rss_mb or 0.0
        samples.append(Series(f"{count:,} rows", [sample]))
        say(f"Memory: {count:,} rows, {peaks[count]:.1f} MB, {sample.seconds:.1f} s")
    checks = [
        Check(
            f"transfer of {count:,} rows: MB above import",
            number(mb, 1),
            f"<= {_TARGET_MB:g}",
            mb <= _TARGET_MB,
        )
        for count, mb in peaks.items()
    ]
    if large:
        more = peaks[rows * _TIMES_MORE] - peaks[rows]
        what = f"transfer of {_TIMES_MORE} times the rows: MB more"
        checks.append(Check(what, number(more, 1), f"<= {_SAME_MB:g}", more <= _SAME_MB))
    table = Table(
        "Memory of a transfer",
        ["rows (bigint, integer), a new process each", "MB above import", "seconds"],
        [
            [f"{c:,}", number(mb, 1), number(s.seconds, 1)]
            for (c, mb), s in zip(peaks.items(), samples, strict=True)
        ],
    )
    return Outcome([table], checks, {"Memory": samples})


def _measure(lab: Lab, rows: int) -> Sample:
    # In the target list the numbers are made one by one; in FROM they would all be stored first.
    numbers = f"SELECT generate_series(1, {rows}::bigint) AS id"
    query = f"SELECT id, (id % 1000)::integer AS k FROM ({numbers}) AS numbers"  # noqa: S608 - constants
    lab.rows(lab.destination, f"CREATE TABLE {_TABLE} (id bigint PRIMARY KEY, k integer)")
    try:
        lab.reset(_TABLE)
        with child(lab) as airflow:
            sample = airflow.sample("transfer", source_sql=query, destination_table=_TABLE)
        lab.expect(_TABLE, lab.content(lab.source, query), "memory")
    finally:
        lab.drop(_TABLE)
    return sample
