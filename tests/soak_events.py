"""Events under random kills on a real Airflow with two triggerers: ``make soak-events KILLS=10``.

First it measures how soon a run begins after a commit, then it emits events while workers, triggerers and the
scheduler are killed, and one triggerer is stopped and goes on again; then a burst. In the end each event must
have been handled once. The seed is printed: ``--seed`` kills in the same order again.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from statistics import median

import psutil

from airflow_dblink.core.events.install import install_script
from airflow_dblink.core.events.table import SCHEMA
from tests.acceptance.jobs_world import World
from tests.soak import world

_TABLE = "CREATE TABLE handled (event bigint, run text)"
_EMIT = (
    'SELECT count(airflow_dblink_events.emit(%s, \'{"secret": "hidden-value"}\')) FROM generate_series(1, %s)'
)
_DONE = "SELECT count(*) FROM airflow_dblink_events.event WHERE done_at IS NOT NULL"
_TWICE = "SELECT event, count(*) FROM handled WHERE event > 0 GROUP BY event HAVING count(*) > 1"
_LOST = "SELECT count(*) FROM airflow_dblink_events.event WHERE id NOT IN (SELECT event FROM handled)"
_DELAY = (
    "SELECT extract(epoch FROM claimed_at - emitted_at)::float8 FROM airflow_dblink_events.event ORDER BY id"
)
_RUNS = "SELECT count(DISTINCT claimed_by) FROM airflow_dblink_events.event"
_SILENT = "SELECT max(extract(epoch FROM now() - latest_heartbeat))::float8 FROM job WHERE id = ANY (%s)"
_LIVING = (
    "SELECT coalesce(array_agg(id), '{}') FROM job WHERE job_type = 'TriggererJob' AND state = 'running'"
    " AND latest_heartbeat > now() - interval '10 s'"
)
_PATIENCE_S = 600.0
_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'airflow-dblink triggerer'"
_SINGLE, _BURST, _SENSORS = 20, 10_000, 200


def main() -> int:
    """Run the command line and return its exit code: 0 if every event was handled once."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak_events", description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of each kind (10)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with world() as here:
        here.rows(_TABLE)
        here.rows(f'GRANT ALL ON handled TO "{here.warehouse.role}"')
        here.rows(install_script(SCHEMA, claim=[here.warehouse.role]))
        here.airflow.trigger("facts_writer", {"rows": 0})  # waits until the Dags are parsed
        emitted = _singles(here)
        emitted += _under_kills(here, options.kills, random.Random(options.seed))  # noqa: S311 - again the same
        emitted += _burst(here, emitted)
        _gates(here)
        twice, lost = here.rows(_TWICE), here.rows(_LOST)[0][0]
        told = "hidden-value" in here.airflow.all_logs()
    print(f"{emitted} events: {lost} lost, {len(twice)} handled twice; payload told: {told}", flush=True)
    return 1 if twice or lost or told else 0


def _emit(here: World, number: int) -> int:
    here.rows(_EMIT, "killed", number)
    return number


def _until_done(here: World, number: int) -> None:
    here.wait_until(f"{number} events are done", lambda: here.rows(_DONE) == [(number,)], _PATIENCE_S)


def _singles(here: World) -> int:
    for number in range(1, _SINGLE + 1):
        _emit(here, 1)
        _until_done(here, number)
        time.sleep(2)  # the trigger's least interval, so that its own wait isn't measured
    delays = sorted(row[0] for row in here.rows(_DELAY))
    print(
        f"commit to claim, {_SINGLE} events one after the other: median {median(delays):.1f} s,"
        f" second worst {delays[-2]:.1f} s",
        flush=True,
    )
    return _SINGLE


def _under_kills(here: World, kills: int, dice: random.Random) -> int:
    emitted = 0
    ways: dict[str, Callable[[], object]] = {
        "worker": lambda: here.wait_until("a task runs", kill_a_task, _PATIENCE_S),
        "scheduler": lambda: _restart(here, "scheduler"),
        "triggerer.1": lambda: _restart(here, "triggerer.1"),
        "triggerer.2": lambda: _restart(here, "triggerer.2"),
        "stopped triggerer": lambda: _stop_and_go_on(here, dice),
    }
    order = [way for way in ways for _ in range(kills)]
    dice.shuffle(order)
    for number, way in enumerate(order, 1):
        emitted += _emit(here, dice.randint(1, 2_000 // len(order)))
        time.sleep(dice.uniform(0, 3))
        ways[way]()
        emitted += _emit(here, 1)
        print(f"{number} of {len(order)}: {way}, {emitted} events", flush=True)
    _until_done(here, _SINGLE + emitted)
    return emitted


def kill_a_task() -> bool:
    """SIGKILL a running task; return whether there was one."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("airflow worker -- "):
                process.kill()
                return True
    return False


def _restart(here: World, name: str) -> None:
    here.airflow.kill_component(name)
    here.airflow.start_component(name)


def _stop_and_go_on(here: World, dice: random.Random) -> None:
    """Stop a triggerer until its triggers are another one's, and let it go on then."""
    family = here.airflow.component_processes(f"triggerer.{dice.randint(1, 2)}")
    for process in family:
        process.send_signal(signal.SIGSTOP)
    time.sleep(dice.uniform(5, 12))
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def _burst(here: World, before: int) -> int:
    runs, started = here.rows(_RUNS)[0][0], time.monotonic()
    living = here.rows(_LIVING, server=here.source)[0][0]
    silent = [0.0]

    def is_done() -> bool:
        silent.append(here.rows(_SILENT, living, server=here.source)[0][0])
        return here.rows(_DONE) == [(before + _BURST,)]

    for _ in range(_BURST // 100):
        _emit(here, 100)
        is_done()
    here.wait_until("the burst is done", is_done, _PATIENCE_S)
    print(
        f"a burst of {_BURST} events: done after {time.monotonic() - started:.1f} s, by"
        f" {here.rows(_RUNS)[0][0] - runs} runs; the longest that a triggerer was silent:"
        f" {max(silent):.1f} s",
        flush=True,
    )
    return _BURST


def _gates(here: World) -> None:
    """Let many mapped sensors wait through kills and a crash of the server, and then open their gates."""
    airflow = here.airflow
    run = airflow.trigger("mapped_gates", {"sensors": _SENSORS})

    def all_wait() -> bool:
        states = [state for name, state in here.states("mapped_gates", run).items() if "wait" in name]
        return len(states) == _SENSORS and set(states) == {"deferred"}

    here.wait_until("all sensors wait", all_wait, _PATIENCE_S)
    sessions = here.rows(_SESSIONS)[0][0]
    _restart(here, "triggerer.1")
    here.warehouse.crash()
    here.warehouse.start()
    _restart(here, "triggerer.2")
    started = time.monotonic()
    here.rows("INSERT INTO handled SELECT -i FROM generate_series(1, %s) AS i", _SENSORS)
    here.rows("NOTIFY gates")
    state = airflow.wait("mapped_gates", run, timeout_s=_PATIENCE_S)
    print(
        f"{_SENSORS} mapped sensors, {sessions} sessions of two triggerers, kills and a crash: {state}"
        f" {time.monotonic() - started:.0f} s after their gates were opened",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
