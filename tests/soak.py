"""Randomized kills on a real Airflow: ``make soak``, or ``python -m tests.soak --rounds 100``.

A round is one job of one task, under one randomly chosen death. Rounds run in batches; while a batch runs,
a process that all rounds need dies, too. In the end each effect must be there exactly once, and each task
must have succeeded. The seed is printed: ``--seed`` runs the same deaths again.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from airflow_dblink.embedded.airflow import Airflow
from airflow_dblink.embedded.server import servers
from tests.acceptance.jobs_world import DAGS, SETTINGS, World, metadata_url

BATCH = 10
MOMENTS = (
    *("before_id_is_stored", "after_id_is_stored", "after_row_is_inserted", "after_call_is_sent"),
    *("when_seen_running", "while_running", "after_commit", "after_all", "never"),
)
BATCH_TIMEOUT_S = 240.0


def main() -> int:
    """Run the command line and return its exit code: 0 if every round ended right."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with world() as here:
        wrong = run_rounds(here, options.rounds, options.seed, say=lambda text: print(text, flush=True))
    print(f"{options.rounds} rounds, {len(wrong)} wrong", flush=True)
    for line in wrong:
        print(line, flush=True)
    return 1 if wrong else 0


@contextmanager
def world() -> Iterator[World]:
    """Run two servers and an Airflow with two triggerers, whose own database is on the first server."""
    with servers("source", "warehouse") as (source, warehouse):
        connections = {"source_db": source.airflow_uri(), "warehouse_db": warehouse.airflow_uri()}
        with Airflow(
            DAGS,
            connections,
            env=SETTINGS,
            triggerers=2,
            database=metadata_url(source.airflow_uri()),
            parallelism=24,
        ) as airflow:
            yield World(airflow, source, warehouse)


def run_rounds(here: World, rounds: int, seed: int, *, say: Callable[[str], None]) -> list[str]:
    """Run *rounds* rounds, and return a text for each failure."""
    dice = random.Random(seed)  # noqa: S311 - the same again, not a secret
    here.prepare()
    wrong: list[str] = []
    events: dict[str, Callable[[World, random.Random], None]] = {
        "triggerer killed": kill_triggerer,
        "scheduler restarted": restart_scheduler,
        "backend terminated": terminate_a_backend,
        "server crashed": crash_server,
        "worker told to stop": stop_a_worker,
        "nothing": lambda _world, _dice: None,
    }
    for batch in range((rounds + BATCH - 1) // BATCH):
        tasks: list[dict[str, Any]] = [
            {
                "name": f"round_{batch * BATCH + n}",
                "moment": dice.choice(MOMENTS),
                "deferrable": dice.random() < 0.6,
                "seconds": round(dice.uniform(0, 5), 1),
            }
            for n in range(min(BATCH, rounds - batch * BATCH))
        ]
        event = dice.choice(list(events))
        delay_s = dice.uniform(0, 8)
        run_id = here.airflow.trigger("job_batch", {"tasks": tasks})
        here.airflow.wait_for_task("job_batch", run_id, "tasks", {"success"}, timeout_s=60)
        time.sleep(delay_s)
        events[event](here, dice)
        state = here.airflow.wait("job_batch", run_id, timeout_s=BATCH_TIMEOUT_S)
        effects = here.effects()
        found = [
            f"{task['name']} ({task}; {event} after {delay_s:.1f} s): {effects.get(task['name'], 0)} effects"
            for task in tasks
            if effects.get(task["name"], 0) != 1
        ]
        if state != "success":
            found.append(f"batch {batch} ({event} after {delay_s:.1f} s) ended as {state}")
            found.append(here.logs("job_batch", run_id))
        wrong += found
        say(f"batch {batch}: {len(tasks)} rounds, {event} after {delay_s:.1f} s: {state}, {len(found)} wrong")
    return wrong


def kill_triggerer(here: World, dice: random.Random) -> None:
    """SIGKILL one triggerer, and start it again a little later."""
    name = f"triggerer.{dice.randint(1, here.airflow.triggerers)}"
    here.airflow.kill_component(name)
    time.sleep(dice.uniform(0, 8))
    here.airflow.start_component(name)


def restart_scheduler(here: World, dice: random.Random) -> None:
    """Kill the scheduler, or tell it to stop, and start it again."""
    here.airflow.kill_component("scheduler", dice.choice([signal.SIGKILL, signal.SIGTERM]))
    here.airflow.start_component("scheduler")


def terminate_a_backend(here: World, dice: random.Random) -> None:
    """Call ``pg_terminate_backend`` on a session that runs a job."""
    here.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE query LIKE '/* CALL run(%' AND state = 'active' LIMIT 1"
    )


def crash_server(here: World, dice: random.Random) -> None:
    """Kill the server that the jobs run on, and start it again."""
    here.warehouse.crash()
    time.sleep(dice.uniform(0, 3))
    here.warehouse.start()


def stop_a_worker(here: World, dice: random.Random) -> None:
    """Send SIGTERM to one task's supervisor, as a worker's restart does."""
    tasks = [process for process in here.airflow.component_processes("scheduler") if _is_task(process)]
    if tasks:
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself
            psutil.Process(dice.choice(tasks).ppid()).terminate()


def _is_task(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return re.match(r"airflow worker -- [0-9a-f]{8}-", " ".join(process.cmdline())) is not None
    return False


if __name__ == "__main__":
    sys.exit(main())
