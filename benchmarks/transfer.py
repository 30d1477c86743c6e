"""Transfer: the operator beside psql, dblink, postgres_fdw and GenericTransfer."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psycopg
from psycopg import sql

from airflow_dblink.embedded.server import Server
from benchmarks.child import Child, child
from benchmarks.lab import MIXED, SHAPES, Content, Lab, Shape
from benchmarks.measure import (
    BenchmarkError,
    Check,
    Outcome,
    Sample,
    Series,
    Table,
    Way,
    interleaved,
    number,
)

OPERATOR = "DblinkTransferOperator"
PSQL = "psql | psql, binary COPY"
DBLINK = "dblink, INSERT..SELECT"
FDW = "postgres_fdw, INSERT..SELECT"
GENERIC = "GenericTransfer"

# It is about 20 times slower and holds all rows in memory: fewer rows, compared per row.
_GENERIC_ROWS = 100_000
_GENERIC_RUNS = 2

_TIME_TARGET, _TIME_STRETCH = 1.0, 0.8
_CPU_TARGET_S = 1.0  # per million mixed rows
_PEER_TARGETS = {DBLINK: 1.7, FDW: 1.7, GENERIC: 20.0}


@dataclass(frozen=True)
class _Result:
    """What one shape gave.

    :ivar per_row: GenericTransfer's time, as it would be for all the rows.
    """

    shape: Shape
    rows: int
    series: Mapping[str, Series]
    generic: Series
    per_row: float

    def ratio(self, name: str) -> float:
        """Return the time of a way relative to ``psql | psql``."""
        if name == GENERIC:
            return self.per_row / self.series[PSQL].seconds
        return self.series[name].ratio_to(self.series[PSQL])

    def speed_up(self, name: str) -> float:
        """Return how many times faster the operator is than a way."""
        if name == GENERIC:
            return self.per_row / self.series[OPERATOR].seconds
        return self.series[name].ratio_to(self.series[OPERATOR])


def run(lab: Lab, rows: int, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Transfer every shape in every way; all rows are checked after each."""
    results = [_measure(lab, shape, max(1, int(rows * shape.share)), repeat, say) for shape in SHAPES]
    samples = {
        f"Transfer, {result.shape.title}": [*result.series.values(), result.generic] for result in results
    }
    return Outcome([_table(results)], [*_checks(results)], samples, _short_table(results))


def _measure(lab: Lab, shape: Shape, rows: int, repeat: int, say: Callable[[str], None]) -> _Result:
    say(f"Transfer: {rows:,} rows, {shape.title}")
    lab.fill(shape, rows)
    content = lab.content(lab.source, f"TABLE {shape.table}")
    with child(lab) as airflow:
        ways = {
            PSQL: lambda: by_psql(lab, shape.table, shape.table),
            OPERATOR: lambda: _operator(airflow, shape),
            DBLINK: lambda: _in_destination(lab, _by_dblink(lab, shape)),
            FDW: lambda: _by_fdw(lab, shape),
        }
        checked = {name: _checked(lab, shape, content, name, way) for name, way in ways.items()}
        series = interleaved(checked, repeat, say)
    few = min(rows, _GENERIC_ROWS)
    generic = _generic(lab, shape, few)
    say(f"  {GENERIC}, {few:,} rows: {generic.seconds:.2f} s")
    lab.drop(shape.table)
    return _Result(shape, rows, series, generic, generic.seconds * rows / few)


def _checked(lab: Lab, shape: Shape, content: Content, name: str, way: Way) -> Way:
    """Wrap *way* in what is not measured: an empty table before, a look at the rows after."""

    def run_and_look() -> Sample:
        lab.reset(shape.table)
        sample = way()
        lab.expect(shape.table, content, name)
        return sample

    return run_and_look


# -- the ways


def _operator(airflow: Child, shape: Shape) -> Sample:
    return airflow.sample("transfer", source_table=shape.table, destination_table=shape.table)


def by_psql(lab: Lab, source_table: str, destination_table: str) -> Sample:
    """Run the pipeline as a shell would; the time is that of both programs, their start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with (
        _start_psql(lab.source, f"COPY {source_table} TO STDOUT (FORMAT binary)", None) as out,
        _start_psql(lab.destination, f"COPY {destination_table} FROM STDIN (FORMAT binary)", out) as into,
    ):
        if out.stdout is not None:
            out.stdout.close()  # so that the end of the reader is seen
        codes = into.wait(), out.wait()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if any(codes):
        raise BenchmarkError(f"{PSQL} failed: {codes}")
    return Sample(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _start_psql(
    server: Server, statement: str, source: subprocess.Popen[bytes] | None
) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.Popen(
        [
            server.tool("psql"),
            *("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--command={statement}"),
            f"host={server.host} port={server.port} dbname={server.dbname} user={server.role}",
        ],
        stdin=subprocess.DEVNULL if source is None else source.stdout,
        stdout=subprocess.PIPE if source is None else subprocess.DEVNULL,
        env={**environment, "PGPASSWORD": server.role_password},
    )


def _in_destination(lab: Lab, statement: sql.Composed) -> Sample:
    """Run one statement in the destination: the rows do not pass through a client."""
    started = time.perf_counter()
    with psycopg.connect(lab.destination.conninfo(), autocommit=True) as connection:
        connection.execute(statement)
    return Sample(time.perf_counter() - started)


def _by_dblink(lab: Lab, shape: Shape) -> sql.Composed:
    return sql.SQL("INSERT INTO {} SELECT * FROM dblink({}, {}) AS remote ({})").format(
        sql.Identifier(shape.table),
        lab.source.conninfo(),
        f"SELECT * FROM {shape.table}",  # noqa: S608 - a constant
        sql.SQL(shape.definition),
    )


def _by_fdw(lab: Lab, shape: Shape) -> Sample:
    foreign = f"{shape.table}_remote"
    lab.rows(
        lab.destination,
        f"CREATE FOREIGN TABLE IF NOT EXISTS {foreign} ({shape.definition})"
        f" SERVER bench OPTIONS (table_name '{shape.table}')",
    )
    statement = sql.SQL("INSERT INTO {} SELECT * FROM {}")
    return _in_destination(lab, statement.format(sql.Identifier(shape.table), sql.Identifier(foreign)))


def _generic(lab: Lab, shape: Shape, rows: int) -> Series:
    """Run GenericTransfer on the first rows; the process is new each time, since it keeps its memory."""
    query = f"SELECT * FROM {shape.table} WHERE id <= {rows}"  # noqa: S608 - constants
    content = lab.content(lab.source, query)
    series = Series(f"{GENERIC}, {rows:,} rows")

    def in_new_process() -> Sample:
        with child(lab) as airflow:
            return airflow.sample("generic_transfer", query=query, table=shape.table)

    way = _checked(lab, shape, content, GENERIC, in_new_process)
    series.samples += [way() for _ in range(_GENERIC_RUNS)]
    return series


# -- what it says


def _table(results: list[_Result]) -> Table:
    mixed = next(result for result in results if result.shape is MIXED)
    million = mixed.rows / 1e6
    rows = []
    for name in (OPERATOR, PSQL, DBLINK, FDW, GENERIC):
        series = mixed.generic if name == GENERIC else mixed.series[name]
        cells = [_cell(result, name) for result in results]
        cpu = None if series.cpu_s is None else series.cpu_s / million
        if name == GENERIC and cpu is not None:
            cpu *= mixed.per_row / mixed.generic.seconds
        rows.append(
            [name + (" (*)" if name == GENERIC else ""), *cells, number(cpu, 1), number(series.rss_mb, 0)]
        )
    titles = [f"{_short(result.rows)} {result.shape.title}" for result in results]
    few = min(mixed.rows, _GENERIC_ROWS)
    return Table(
        "Transfer into an empty table with its key",
        ["time relative to `psql | psql`", *titles, "client CPU, s per 1M mixed rows", "memory, MB"],
        rows,
        [
            "Seconds in brackets. The operator's time is that of `execute()`, connecting included; memory"
            " is the peak above the process with everything imported.",
            f"(*) run on {_short(few)} rows and scaled by rows, except its memory: it is slow, and holds"
            " all rows in memory.",
        ],
    )


def _short_table(results: list[_Result]) -> Table:
    """Return the table that README shows: seconds and megabytes, no ratios."""
    mixed = next(result for result in results if result.shape is MIXED)
    few = min(mixed.rows, _GENERIC_ROWS)
    labels = {
        OPERATOR: f"`{OPERATOR}`",
        PSQL: "`psql | psql`, binary COPY",
        DBLINK: DBLINK,
        FDW: FDW,
        GENERIC: f"{GENERIC} (computed from {few:,} rows)",
    }
    rows = []
    for name, label in labels.items():
        series = mixed.generic if name == GENERIC else mixed.series[name]
        seconds = mixed.per_row if name == GENERIC else series.seconds
        # The memory of a program that isn't ours is not measured.
        memory = "-" if series.rss_mb is None else f"{series.rss_mb:.0f} MB"
        rows.append([label, f"{number(seconds, 1 if seconds < 10 else 0)} s", memory])
    what = f"{mixed.rows:,} rows of mixed types"
    return Table(f"Transfer of {what}", [f"{what} into an empty table", "time", "memory of the worker"], rows)


def _cell(result: _Result, name: str) -> str:
    seconds = result.per_row if name == GENERIC else result.series[name].seconds
    return f"{result.ratio(name):.2f} ({number(seconds, 1)})"


def _short(rows: int) -> str:
    if rows >= 1_000_000:
        return f"{rows / 1e6:g}M"
    return f"{rows / 1e3:g}k" if rows >= 1_000 else str(rows)


def _checks(results: list[_Result]) -> list[Check]:
    checks = []
    for result in results:
        ratio = result.ratio(OPERATOR)
        target = f"<= {_TIME_TARGET} (stretch {_TIME_STRETCH})"
        what = f"transfer, {result.shape.title}: time to `psql | psql`"
        checks.append(Check(what, f"{ratio:.2f}", target, ratio <= _TIME_TARGET))
    mixed = next(result for result in results if result.shape is MIXED)
    cpu = (mixed.series[OPERATOR].cpu_s or 0.0) / mixed.rows * 1e6
    what = "transfer, mixed types: client CPU s per 1M rows"
    checks.append(Check(what, f"{cpu:.2f}", f"<= {_CPU_TARGET_S}", cpu <= _CPU_TARGET_S))
    for name, target_ratio in _PEER_TARGETS.items():
        faster = mixed.speed_up(name)
        what = f"transfer, mixed types: times faster than {name.split(',')[0]}"
        checks.append(Check(what, f"{faster:.1f}", f">= {target_ratio:g}", faster >= target_ratio))
    return checks
