"""Exec: what "exactly once" costs beside a plain statement."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.child import Child, child
from benchmarks.lab import Lab
from benchmarks.measure import BenchmarkError, Check, Outcome, Series, Table, Way, interleaved, number

_TABLE = "bench_exec"
_STATEMENT = f"UPDATE {_TABLE} SET n = n + 1"  # noqa: S608 - a constant
_TIMES = {"exec_connected": 300, "exec_whole": 50}
_TITLES = {"exec_connected": "open connection", "exec_whole": "connecting included"}
_EXTRA_TRIPS = 3
_NAMES = {"plain": "psycopg, autocommit", "once": "exactly once"}


def run(lab: Lab, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Count round trips, and time both ways with an open connection and with a new one each."""
    say("Exec")
    lab.rows(lab.destination, f"CREATE TABLE {_TABLE} AS SELECT 0 AS n")
    lab.rows(lab.destination, f"ALTER TABLE {_TABLE} SET (fillfactor = 10)")
    with child(lab) as airflow:
        trips = airflow.ask("exec_round_trips", statement=_STATEMENT)
        say(f"  round trips: {trips}")
        timed = {
            job: interleaved({way: _way(airflow, job, way) for way in _NAMES}, repeat, say) for job in _TIMES
        }
    _expect(lab, 2 + sum(2 * times * (repeat + 1) for times in _TIMES.values()))
    extra = trips["once"] - trips["plain"]
    table = Table(
        "One UPDATE of one row",
        ["way", "round trips", *(f"ms, {title}" for title in _TITLES.values())],
        [
            [name, str(trips[way]), *(number(_ms(timed[job][way], job)) for job in _TIMES)]
            for way, name in _NAMES.items()
        ],
        [
            "Round trips of connecting don't count; neither does the call to Airflow, which stores the task's"
            " state."
        ],
    )
    check = Check(
        "exactly once exec: round trips more", str(extra), f"<= {_EXTRA_TRIPS}", extra <= _EXTRA_TRIPS
    )
    samples = {
        f"Exec, {_TIMES[job]} times, {_TITLES[job]}": list(series.values()) for job, series in timed.items()
    }
    return Outcome([table], [check], samples)


def _way(airflow: Child, job: str, way: str) -> Way:
    return lambda: airflow.sample(job, way=way, statement=_STATEMENT, times=_TIMES[job])


def _ms(series: Series, job: str) -> float:
    return series.seconds / _TIMES[job] * 1000


def _expect(lab: Lab, times: int) -> None:
    """Check that every statement has run, and once."""
    found = lab.rows(lab.destination, f"TABLE {_TABLE}")[0][0]
    if found != times:
        raise BenchmarkError(f"exec: {found} updates, not {times}")
    lab.drop(_TABLE)
