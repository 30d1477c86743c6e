"""Remote jobs with two triggerers, which need PostgreSQL as Airflow's own database; rounds of the soak."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil
import pytest

from tests.acceptance.jobs_world import World
from tests.soak import run_rounds, world

TAKEN_OVER_WITHIN_S = 40.0


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture(autouse=True)
def _prepared(here: World) -> None:
    here.prepare()


def test_another_triggerer_takes_over_and_the_one_that_was_cut_off_cancels_nothing(here: World) -> None:
    with here.gate_shut():
        run_id = here.airflow.trigger("job_deferred", {"seconds": 0})
        frozen = _watcher(here)

        with _stopped(here.airflow.component_processes(frozen)):
            here.wait_until("the other one watches", lambda: len(_watchers(here)) == 2, TAKEN_OVER_WITHIN_S)
        # The first one learns that its trigger is gone, as if a user had killed the task.
        here.airflow.wait_for_log("job_deferred", run_id, "deferred", "The task still waits for job")
        time.sleep(3)  # by now it would have cancelled the job
        assert len(here.active()) == 1
    assert here.airflow.wait("job_deferred", run_id, timeout_s=90) == "success"
    assert here.effects() == {"deferred": 1}
    assert here.job_states() == {"succeeded": 1}


def test_a_killed_triggerers_jobs_end_at_the_other_one(here: World) -> None:
    with here.gate_shut():
        run_id = here.airflow.trigger("job_deferred", {"seconds": 0})
        name = _watcher(here)
        here.airflow.kill_component(name)
    try:
        assert here.airflow.wait("job_deferred", run_id, timeout_s=120) == "success"
    finally:
        here.airflow.start_component(name)

    assert here.effects() == {"deferred": 1}
    assert here.job_states() == {"succeeded": 1}


def test_rounds_of_the_soak(here: World) -> None:
    assert run_rounds(here, 20, seed=20261124, say=print) == []


def _watcher(here: World) -> str:
    """Wait until a triggerer listens, and return its name; it may begin to listen anew at any time."""
    found: list[str] = []

    def watches() -> bool:
        found[:] = _watchers(here).values()
        return len(found) == 1

    here.wait_until("a triggerer watches", watches, 60)
    return found[0]


def _watchers(here: World) -> dict[int, str]:
    """Return the triggerers that listen for the ends of jobs, by the pid of the listening backend."""
    ports = here.rows(
        "SELECT pid, client_port FROM pg_stat_activity WHERE application_name = 'airflow-dblink triggerer'"
    )
    owners: dict[int, str] = {}
    for name in ("triggerer.1", "triggerer.2"):
        with suppress(psutil.NoSuchProcess):  # a child that has just ended
            for process in here.airflow.component_processes(name):
                owners |= {connection.laddr.port: name for connection in process.net_connections("tcp")}
    return {pid: owners[port] for pid, port in ports if port in owners}


@contextmanager
def _stopped(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop *processes* for the time of a block, as if their machine had been cut off."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
