"""A remote set joined at home: the query operator beside dblink and postgres_fdw in the home server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import psycopg
from psycopg import sql

from benchmarks.child import Child, child
from benchmarks.lab import MIXED, Lab
from benchmarks.measure import BenchmarkError, Check, Outcome, Sample, Series, Table, Way, interleaved, number

OPERATOR = "DblinkQueryOperator, remotes"
DBLINK = "dblink(...) AS t(...)"
FDW = "postgres_fdw, foreign table"

_TARGET = 1.5
# Of the home table. Without statistics of the set the planner thinks of 1,000 rows, and with the larger
# table it takes another plan.
_HOME_ROWS = (100_000, 400_000)
_HOME = "bench_kind"
_FOREIGN = "bench_mixed_there"
# Every column of the set is used, for postgres_fdw fetches no others.
_STATEMENT = """
SELECT kind.name, count(*), max(r.id), count(r.s), max(r.ts)::text, sum(r.n), count(r.j)
  FROM {remote} JOIN bench_kind AS kind USING (k)
 GROUP BY kind.name ORDER BY kind.name
"""

_Answer = list[list[str]]


def run(lab: Lab, rows: int, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Join and aggregate; each way must give the same answer."""
    lab.fill(MIXED, rows)
    foreign = f"CREATE FOREIGN TABLE {_FOREIGN} ({MIXED.definition}) SERVER bench"
    lab.rows(lab.destination, f"{foreign} OPTIONS (table_name '{MIXED.table}')")
    try:
        results = {home_rows: _measure(lab, rows, home_rows, repeat, say) for home_rows in _HOME_ROWS}
    finally:
        lab.rows(lab.destination, f"DROP FOREIGN TABLE IF EXISTS {_FOREIGN}")
        lab.drop(_HOME)
        lab.drop(MIXED.table)
    samples = {f"Query, {size:,} rows at home": [*series.values()] for size, series in results.items()}
    return Outcome([_table(results, rows)], _checks(results), samples)


def _measure(
    lab: Lab, rows: int, home_rows: int, repeat: int, say: Callable[[str], None]
) -> dict[str, Series]:
    say(f"Query: a remote set of {rows:,} rows, {home_rows:,} rows at home")
    lab.drop(_HOME)
    numbers = f"generate_series(0, {home_rows - 1})"
    for statement in (
        f"CREATE TABLE {_HOME} AS SELECT k, 'kind ' || k % 20 AS name FROM {numbers} AS k",  # noqa: S608
        f"ALTER TABLE {_HOME} ADD PRIMARY KEY (k)",
        f"VACUUM (FREEZE, ANALYZE) {_HOME}",
    ):
        lab.rows(lab.destination, statement)
    answers: dict[str, _Answer] = {}
    with child(lab) as airflow:
        ways: dict[str, Way] = {
            OPERATOR: lambda: _operator(airflow, answers),
            DBLINK: lambda: _at_home(lab, DBLINK, _dblink_function(lab), answers),
            FDW: lambda: _at_home(lab, FDW, sql.SQL(f"{_FOREIGN} AS r"), answers),
        }
        checked = {name: _checked(name, way, answers, rows) for name, way in ways.items()}
        return interleaved(checked, repeat, say)


def _checked(name: str, way: Way, answers: dict[str, _Answer], rows: int) -> Way:
    """Wrap *way* in a look at its answer, which is not measured."""

    def run_and_look() -> Sample:
        sample = way()
        counted = sum(int(row[1]) for row in answers[name])
        if counted != rows or answers[name] != next(iter(answers.values())):
            raise BenchmarkError(f"{name}: another answer than the others'")
        return sample

    return run_and_look


def _operator(airflow: Child, answers: dict[str, _Answer]) -> Sample:
    statement = _STATEMENT.format(remote="r")
    answer = airflow.ask("query", statement=statement, remote=f"SELECT * FROM {MIXED.table}")  # noqa: S608
    answers[OPERATOR] = [[str(value) for value in row] for row in answer["returned"]]
    return Sample(**answer["sample"])


def _dblink_function(lab: Lab) -> sql.Composed:
    return sql.SQL("dblink({}, {}) AS r ({})").format(
        lab.source.conninfo(),
        f"SELECT * FROM {MIXED.table}",  # noqa: S608 - a constant
        sql.SQL(MIXED.definition),
    )


def _at_home(lab: Lab, name: str, remote: sql.Composable, answers: dict[str, _Answer]) -> Sample:
    """Run the statement in the home server, which fetches the set itself."""
    started = time.perf_counter()
    with psycopg.connect(lab.destination.conninfo(), autocommit=True) as connection:
        found = connection.execute(sql.SQL(_STATEMENT).format(remote=remote)).fetchall()
    seconds = time.perf_counter() - started
    answers[name] = [[str(value) for value in row] for row in found]
    return Sample(seconds)


def _table(results: Mapping[int, Mapping[str, Series]], rows: int) -> Table:
    smallest = results[_HOME_ROWS[0]]
    lines = []
    for name in (OPERATOR, DBLINK, FDW):
        cells = [
            f"{series[name].ratio_to(series[OPERATOR]):.2f} ({number(series[name].seconds)})"
            for series in results.values()
        ]
        lines.append([name, *cells, number(smallest[name].cpu_s), number(smallest[name].rss_mb, 0)])
    return Table(
        f"A remote set of {rows:,} mixed rows, joined with a table at home and aggregated",
        [
            "time relative to the operator's",
            *(f"{size:,} rows at home" for size in results),
            "client CPU, s",
            "memory, MB",
        ],
        lines,
        [
            "Seconds in brackets; connecting, all checks and ANALYZE are included."
            " The query uses all columns of the set."
        ],
    )


def _checks(results: Mapping[int, Mapping[str, Series]]) -> list[Check]:
    checks = []
    for size, series in results.items():
        for name in (DBLINK, FDW):
            faster = series[name].ratio_to(series[OPERATOR])
            short = name.split("(")[0].split(",")[0]
            what = f"query with a remote set, {size:,} rows at home: times faster than {short}"
            checks.append(Check(what, f"{faster:.1f}", f">= {_TARGET:g}", faster >= _TARGET))
    return checks
