"""Remote jobs: how soon the triggerer hears of an end, and what sending one costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Any

from benchmarks.child import Child, child
from benchmarks.lab import Lab
from benchmarks.measure import BenchmarkError, Check, Outcome, Sample, Series, Table, Way, interleaved, number

_SIDE = "benchmarks.jobs_side"
_TABLE = "bench_job"
_STATEMENT = f"INSERT INTO {_TABLE} VALUES (1)"  # noqa: S608 - a constant
_TIMES = 30
_WAITING = 1_000
#: Ends a second; 0 for as many as the connections make.
_RATES = {"200 ends a second": 200, "all ends as fast as 8 sessions make them": 0}
_POLL_S, _POLLS = 0.5, 20
_AT_ONCE, _LASTS_S = 50, 1.0
_WAYS = {"psycopg": "psycopg, autocommit", "send": "DblinkSendQueryOperator", "job": "DblinkJobOperator"}
_SENDS = {
    "parameters": "with parameters",
    "statement_timeout": "with statement_timeout",
    "keep_result": "with keep_result",
}
_P99_TARGET_MS = 100.0
_MEMORY_TARGET_MB = 100.0
_TRIPS_TARGET = 5


@dataclass
class _Rounds:
    """What the rounds at one rate of ends gave.

    :ivar delays_s: of all rounds, from a job's end to its event.
    :ivar p99: of each round.
    :ivar per_second: ends a second that there really were, of each round.
    :ivar sessions: of the triggerer at the server, before the first end, and the most that were seen.
    """

    p99: Series
    delays_s: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    sessions: set[int] = field(default_factory=set)

    def ms(self, share: float) -> float:
        """Return the delay that *share* of all events do not exceed."""
        return _quantile(self.delays_s, share) * 1000


def run(lab: Lab, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Wait for many jobs, told and polling; count a send's round trips; send alone and many at once."""
    say("Jobs")
    lab.rows(lab.destination, f"CREATE TABLE {_TABLE} (n integer)")
    with child(lab, _SIDE) as airflow:
        airflow.ask("install")
    _empty(lab)
    waits = {title: _waits(lab, title, rate, repeat, say) for title, rate in _RATES.items()}
    with child(lab, _SIDE) as airflow:
        polled = airflow.ask("poll", job_ids=_sent_jobs(lab), poll_s=_POLL_S, polls=_POLLS)
        say(f"  {_WAITING:,} jobs polled: {polled['messages']} messages in {polled['polls']:.1f} intervals")
        _empty(lab)
        trips = airflow.ask("send_round_trips")
        say(f"  round trips: {trips}")
        whole = interleaved({name: _whole(airflow, name) for name in _WAYS}, repeat, say)
        _expect(lab, len(_WAYS) * _TIMES * (repeat + 1))
        running: dict[str, list[int]] = {}
        many = interleaved(
            {name: _many(lab, airflow, name, running) for name in ("one by one", "at once")}, repeat, say
        )
    together = running["at once"][1:]
    say(f"  running at the same time: {together}")
    lab.drop(_TABLE)
    return Outcome(
        [_waiting_table(waits), _sending_table(trips, whole), _many_table(many, running)],
        [*_waiting_checks(waits, polled), *_sending_checks(trips, many, together)],
        {
            f"Jobs, end to event, p99 of {_WAITING:,}": [rounds.p99 for rounds in waits.values()],
            f"Jobs, {_TIMES} times, connecting included": list(whole.values()),
            f"Jobs, {_AT_ONCE} sends": list(many.values()),
        },
    )


# -- waiting


def _waits(lab: Lab, title: str, rate: int, repeat: int, say: Callable[[str], None]) -> _Rounds:
    """Have as many triggers wait and their jobs end, a new process each round."""
    rounds = _Rounds(Series(title))
    for turn in range(repeat):
        job_ids = _sent_jobs(lab)
        with child(lab, _SIDE) as airflow:
            answer = airflow.ask("wait", job_ids=job_ids, per_second=rate)
        found = answer["returned"]
        delays, lasted = _delays(lab, found["events"])
        _empty(lab)
        p99, rss_mb = _quantile(delays, 0.99), answer["sample"]["rss_mb"]
        rounds.delays_s += delays
        rounds.p99.samples.append(Sample(p99, answer["sample"]["cpu_s"], rss_mb))
        rounds.per_second.append(_WAITING / lasted)
        rounds.sessions |= {found["before"], found["most"]}
        say(
            f"  {title}, round {turn + 1}: median {median(delays) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms,"
            f" worst {max(delays) * 1000:.1f} ms, {rounds.per_second[-1]:.0f} ends/s, {rss_mb:.1f} MB"
        )
    return rounds


def _sent_jobs(lab: Lab) -> list[str]:
    """Insert jobs that nobody runs yet; as if sent in an hour, so that no watcher misses their runs."""
    rows = lab.rows(
        lab.destination,
        "INSERT INTO airflow_dblink.job (id, statement, is_query, command, sent_at)"  # noqa: S608 - a constant
        " SELECT gen_random_uuid(), 'SELECT 1', true, 'SELECT', clock_timestamp() + interval '1 hour'"
        f" FROM generate_series(1, {_WAITING}) RETURNING id::text",
    )
    lab.rows(lab.destination, "VACUUM ANALYZE airflow_dblink.job")
    return [row[0] for row in rows]


def _delays(lab: Lab, events: Mapping[str, float]) -> tuple[list[float], float]:
    """Return the seconds from each job's end to its event, and those from the first end to the last."""
    rows = lab.rows(
        lab.destination, "SELECT id::text, extract(epoch FROM ended_at)::float8 FROM airflow_dblink.job"
    )
    if len(rows) != _WAITING or {job_id for job_id, _ in rows} != set(events):
        raise BenchmarkError(f"jobs: {len(events)} events of {len(rows)} jobs, not {_WAITING}")
    ends = dict(rows)
    return [events[job_id] - ended for job_id, ended in rows], max(ends.values()) - min(ends.values())


def _empty(lab: Lab) -> None:
    lab.rows(lab.destination, "TRUNCATE airflow_dblink.job")


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[ceil(share * len(values)) - 1]


def _waiting_table(waits: Mapping[str, _Rounds]) -> Table:
    return Table(
        f"Remote jobs: from a job's end to the trigger's event, {_WAITING:,} triggers waiting",
        ["ends", "median, ms", "p95, ms", "p99, ms", "worst, ms", "ends a second", "sessions", "memory, MB"],
        [
            [
                title,
                *(number(rounds.ms(share), 1) for share in (0.5, 0.95, 0.99, 1.0)),
                number(median(rounds.per_second), 0),
                str(max(rounds.sessions)),
                number(rounds.p99.rss_mb, 0),
            ]
            for title, rounds in waits.items()
        ],
        [
            "All rounds' events together, a new process each round. The jobs do nothing, and are run by 8"
            " sessions of another process, on the same cores. Both clocks are one machine's; the end is"
            " taken just before its commit. Memory is the peak above the process with everything imported."
        ],
    )


def _waiting_checks(waits: Mapping[str, _Rounds], polled: Mapping[str, Any]) -> list[Check]:
    checks = [
        Check(
            f"job's end to event, {title}: p99, ms",
            number(rounds.ms(0.99), 1),
            f"<= {_P99_TARGET_MS:g}",
            rounds.ms(0.99) <= _P99_TARGET_MS,
        )
        for title, rounds in waits.items()
    ]
    sessions = set[int]().union(*(rounds.sessions for rounds in waits.values()))
    most = max(sessions)
    what = f"{_WAITING:,} waiting jobs: sessions at the server"
    checks.append(Check(what, str(most), "1", sessions == {1}))
    peak = max(rounds.p99.rss_mb or 0.0 for rounds in waits.values())
    what = f"{_WAITING:,} waiting jobs: MB above import"
    checks.append(Check(what, number(peak, 1), f"<= {_MEMORY_TARGET_MB:g}", peak <= _MEMORY_TARGET_MB))
    messages, most_messages = polled["messages"], int(polled["polls"]) + 1  # both ends may count
    what = f"{_WAITING:,} waiting jobs behind a transaction pooler: messages in {_POLLS} poll intervals"
    one_each = 0 < messages <= most_messages
    checks.append(Check(what, str(messages), f"<= {most_messages}, one each", one_each))
    return checks


# -- sending


def _whole(airflow: Child, way: str) -> Way:
    return lambda: airflow.sample("send_whole", way=way, statement=_STATEMENT, times=_TIMES)


def _many(lab: Lab, airflow: Child, name: str, running: dict[str, list[int]]) -> Way:
    def send() -> Sample:
        answer = airflow.ask(
            "send_many",
            statement=f"SELECT pg_sleep({_LASTS_S})",
            count=_AT_ONCE,
            at_once=name == "at once",
        )
        running.setdefault(name, []).append(answer["returned"])
        _until_ended(lab)
        return Sample(**answer["sample"])

    return send


def _expect(lab: Lab, times: int) -> None:
    """Check that every statement has run, and once."""
    _until_ended(lab)
    found = lab.rows(lab.destination, f"SELECT count(*) FROM {_TABLE}")[0][0]  # noqa: S608 - a constant
    if found != times:
        raise BenchmarkError(f"jobs: {found} rows, not {times}")


def _until_ended(lab: Lab) -> None:
    """Wait until all jobs have ended, and check that they have succeeded."""
    lab.rows(
        lab.destination,
        "DO $$ BEGIN WHILE EXISTS (SELECT FROM airflow_dblink.job WHERE ended_at IS NULL)"
        " LOOP PERFORM pg_sleep(0.05); END LOOP; END $$",
    )
    states = lab.rows(
        lab.destination, "SELECT state, max(message) FROM airflow_dblink.job GROUP BY state ORDER BY state"
    )
    if [state for state, _ in states] != ["succeeded"]:
        raise BenchmarkError(f"jobs: not all have succeeded: {states}")


def _sending_table(trips: Mapping[str, int], whole: Mapping[str, Series]) -> Table:
    counted = {"psycopg": "psycopg", "send": "plain", "job": "job"}
    rows = [
        [name, str(trips[counted[way]]), number(whole[way].seconds / _TIMES * 1000)]
        for way, name in _WAYS.items()
    ]
    rows[2:2] = [[f"the same, {title}", str(trips[name]), "-"] for name, title in _SENDS.items()]
    return Table(
        "Remote jobs: one INSERT of one row",
        ["way", "round trips", "ms, connecting included"],
        rows,
        [
            "A send ends when the job is seen running. DblinkJobOperator waits for the job's end, and"
            " connects twice. Round trips of connecting don't count; neither do calls to Airflow, which"
            " stores the task's state."
        ],
    )


def _many_table(many: Mapping[str, Series], running: Mapping[str, Sequence[int]]) -> Table:
    return Table(
        f"Remote jobs: {_AT_ONCE} sends of jobs that take {_LASTS_S:g} s each",
        ["sent", "seconds until all were seen running", "of them running at the same time"],
        [
            [name, number(series.seconds), number(median(running[name][1:]), 0)]
            for name, series in many.items()
        ],
    )


def _sending_checks(
    trips: Mapping[str, int], many: Mapping[str, Series], together: Sequence[int]
) -> list[Check]:
    most = max(trips[name] for name in ("plain", *_SENDS))
    blocked = _AT_ONCE * _LASTS_S
    share = many["at once"].seconds / blocked
    ratio = many["at once"].ratio_to(many["one by one"])
    return [
        Check("send of a job: most round trips", str(most), f"<= {_TRIPS_TARGET}", most <= _TRIPS_TARGET),
        Check(
            f"{_AT_ONCE} sends at once: time to that of jobs that wait for each other",
            number(share, 3),
            "<= 0.1",
            share <= 0.1,
        ),
        Check(f"{_AT_ONCE} sends at once: time to one by one", number(ratio), "<= 1", ratio <= 1),
        Check(
            f"{_AT_ONCE} sends at once: running at the same time",
            number(median(together), 0),
            str(_AT_ONCE),
            median(together) == _AT_ONCE,
        ),
    ]
