"""Memory of the transfer, and of reading an asynchronous query: the same, however many rows."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.child import child
from benchmarks.lab import Lab
from benchmarks.measure import BenchmarkError, Check, Outcome, Sample, Series, Table, number

_TABLE = "bench_memory"
_TIMES_MORE = 10
_TARGET_MB = 64.0
_SAME_MB = 8.0  # what counts as the same
_BATCH_ROWS = 10_000


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
    stream = _measure_get_result(lab, rows)
    say(f"Memory: get_result, {rows:,} rows, {stream.rss_mb or 0:.1f} MB")
    what = f"get_result of {rows:,} rows: MB above import"
    fits = (stream.rss_mb or 0.0) <= _TARGET_MB
    checks.append(Check(what, number(stream.rss_mb, 1), f"<= {_TARGET_MB:g}", fits))
    table = Table(
        "Memory",
        ["a new process each", "MB above import", "seconds"],
        [
            [name, number(sample.rss_mb, 1), number(sample.seconds, 1)]
            for name, sample in [
                *((f"transfer of {one.name} (bigint, integer)", one.samples[0]) for one in samples),
                (f"get_result of {rows:,} rows (bigint, text)", stream),
            ]
        ],
    )
    return Outcome([table], checks, {"Memory": samples})


def _measure_get_result(lab: Lab, rows: int) -> Sample:
    query = f"SELECT generate_series(1, {rows}::bigint) AS id, md5('x') AS s"
    with child(lab) as airflow:
        answer = airflow.ask("get_result", query=query, batch_rows=_BATCH_ROWS)
    if answer["returned"] != rows:
        raise BenchmarkError(f"get_result: {answer['returned']} rows, not {rows}")
    return Sample(**answer["sample"])


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
