"""Gates and events: how soon a sensor hears, what many that wait cost, and how fast a run claims events."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from statistics import median

from benchmarks.child import Child, child
from benchmarks.lab import Lab
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

_SIDE = "benchmarks.gates_side"
_WAITING = 1_000
_NOTIFICATIONS = 50
_POLL_S, _POLLED_S = 10.0, 30.0
_LOOKS = 200  # the stock trigger opens a session for each, and the server has 100
_EVENTS, _CLAIMED = 120_000, 10_000
_OURS, _STOCK = "DblinkSqlTrigger", "SQLExecuteQueryTrigger"


def run(lab: Lab, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Wait for many answers, told and polling; look beside the stock trigger; claim events."""
    say("Gates and events")
    with child(lab, _SIDE) as airflow:
        airflow.ask("install")
    delays, everyone = Series("one gate"), Series("all gates")
    shares, sessions, memory = [], set(), []
    for turn in range(repeat):
        with child(lab, _SIDE) as airflow:
            answer = airflow.ask("told", count=_WAITING, notifications=_NOTIFICATIONS)
            found = answer["returned"]
            memory.append(answer["sample"]["rss_mb"])
            _empty(lab)
            shares.append(
                airflow.ask("polled", count=_WAITING, poll_s=_POLL_S, seconds=_POLLED_S)["returned"]["share"]
            )
            _empty(lab)
        p99 = sorted(found["delays"])[ceil(0.99 * _NOTIFICATIONS) - 1]
        delays.samples.append(Sample(p99))
        everyone.samples.append(Sample(found["all"]))
        sessions.add(found["sessions"])
        say(
            f"  round {turn + 1}: median {median(found['delays']) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms,"
            f" all {found['all'] * 1000:.0f} ms, {shares[-1]:.1%} of a core, {memory[-1]:.1f} MB"
        )
    with child(lab, _SIDE) as airflow:
        looks = interleaved(
            {_OURS: _look(lab, airflow, "ours"), _STOCK: _look(lab, airflow, "stock")}, repeat, say
        )
        lab.rows(
            lab.destination,
            "SELECT count(airflow_dblink_events.emit('bench', '{}', false))"  # noqa: S608 - constants
            f" FROM generate_series(1, {_EVENTS})",
        )
        lab.rows(lab.destination, "VACUUM ANALYZE airflow_dblink_events.event")
        claims = interleaved({"claim": _claim(airflow)}, repeat, say)["claim"]
    lab.rows(lab.destination, "DROP TABLE bench_gate; DROP SCHEMA airflow_dblink_events CASCADE")
    rate = _CLAIMED / claims.seconds
    ratio = looks[_OURS].ratio_to(looks[_STOCK])
    waiting = Table(
        f"Gates: {_WAITING:,} sensors that wait in one triggerer for one database",
        ["what", "figure"],
        [
            [
                f"NOTIFY to event, one gate opens: p99 of {_NOTIFICATIONS}, ms",
                number(delays.seconds * 1000, 0),
            ],
            ["NOTIFY to the last event, all gates open at once, ms", number(everyone.seconds * 1000, 0)],
            [f"asking every {_POLL_S:.0f} s: share of a core", f"{median(shares):.1%}"],
            ["sessions at the server", ", ".join(map(str, sorted(sessions)))],
            ["memory, MB above import", number(max(memory), 1)],
        ],
        ["All share one channel, so each NOTIFY lets all questions be asked."],
    )
    others = Table(
        f"Gates: {_LOOKS} looks at the same time",
        ["way", "time", "seconds", "CPU, s"],
        [
            [name, "1.00" if name == _STOCK else number(ratio), number(one.seconds), number(one.cpu_s)]
            for name, one in looks.items()
        ],
    )
    events = Table(
        f"Events: {_CLAIMED:,} of {_EVENTS:,} claimed by one task, connecting included",
        ["seconds", "events a second", "memory, MB"],
        [[number(claims.seconds), f"{rate:,.0f}", number(claims.rss_mb, 0)]],
    )
    return Outcome(
        [waiting, others, events],
        [
            _most(f"{_WAITING:,} sensors: NOTIFY to event, p99, ms", delays.seconds * 1000, 100, 0),
            _most(f"{_WAITING:,} sensors every {_POLL_S:.0f} s: % of a core", median(shares) * 100, 10, 1),
            _most(f"{_WAITING:,} sensors: sessions per database", max(sessions), 1, 0),
            _most(f"{_WAITING:,} sensors: MB above import", max(memory), 100, 1),
            Check("events claimed a second by one task", f"{rate:,.0f}", ">= 20,000", rate >= 20_000),
        ],
        {
            "Gates, NOTIFY to event": [delays, everyone],
            f"Gates, {_LOOKS} looks": list(looks.values()),
            f"Events, {_CLAIMED:,} claimed": [claims],
        },
    )


def _most(what: str, figure: float, target: float, digits: int) -> Check:
    return Check(what, number(figure, digits), f"<= {target:g}", figure <= target)


def _empty(lab: Lab) -> None:
    lab.rows(lab.destination, "TRUNCATE bench_gate")


def _look(lab: Lab, airflow: Child, way: str) -> Way:
    def run_once() -> Sample:
        _empty(lab)
        return airflow.sample("looks", way=way, count=_LOOKS)

    return run_once


def _claim(airflow: Child) -> Way:
    def run_once() -> Sample:
        answer = airflow.ask("claim", count=_CLAIMED)
        if answer["returned"] != _CLAIMED:
            raise BenchmarkError(f"events: {answer['returned']} claimed, not {_CLAIMED}")
        return Sample(**answer["sample"])

    return run_once
