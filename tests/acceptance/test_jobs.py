"""Remote jobs under a real scheduler, LocalExecutor and one triggerer."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from airflow_dblink.embedded.server import Server
from tests.acceptance.conftest import Killing
from tests.acceptance.jobs_world import World

CANCELLED_WITHIN_S = 5.0
TIMEOUT_S = 20  # execution_timeout of job_timeout
# Time until supervisor or triggerer learn of a user's action, and a new triggerer can ask whether the task is
# wanted: seconds, but on a busy machine far more. The jobs would run for longer.
HEARTBEAT_S = 90.0
NOTHING_HAPPENS_S = 7.0
IN_TIME = """
SELECT DISTINCT ended_at - cancel_requested_at < make_interval(secs => %s)
  FROM airflow_dblink.job WHERE cancel_requested_at IS NOT NULL
"""


@pytest.fixture(scope="module")
def world(killing: Killing, pair: tuple[Server, Server]) -> World:
    return World(killing.airflow, *pair)


@pytest.fixture(autouse=True)
def _prepared(world: World) -> None:
    world.prepare()


def test_whatever_dies_and_when_the_effect_is_there_exactly_once(world: World) -> None:
    run_id = world.succeed("job_moments")

    states = world.states("job_moments", run_id)
    assert world.effects() == dict.fromkeys(states, 1)
    tries = world.tries("job_moments", run_id)
    died = {task for task in states if not task.endswith("never")}
    assert {task: tries[task] for task in died} == dict.fromkeys(died, 2), "every first try must have died"
    world.wait_until("none runs", lambda: not world.active(), 10)
    # One job for each task; a job that was lost with its sender before it began has been sent anew.
    assert world.job_states()["succeeded"] == len(states)


def test_a_sender_that_dies_leaves_one_job(world: World) -> None:
    run_id = world.succeed("send_moments")

    sent = {task for task in world.states("send_moments", run_id) if task.startswith("send_")}
    assert world.effects() == dict.fromkeys(sent, 1)


def test_send_sense_and_get_the_result(world: World) -> None:
    world.rows("DROP TABLE IF EXISTS numbers", server=world.source)

    run_id = world.succeed("job_result")

    assert world.rows("SELECT count(*), min(label) FROM numbers", server=world.source) == [(2000, "row 1")]
    assert world.airflow.xcom("job_result", run_id, "few")["data"] == [[1, None]]
    assert world.airflow.xcom("job_result", run_id, "exec") == "INSERT 0 1"
    handle = world.airflow.xcom("job_result", run_id, "send")
    for mode in ("poke", "reschedule", "deferrable"):
        seen = world.airflow.xcom("job_result", run_id, f"sense_{mode}")
        assert seen == {**handle, "command_tag": "SELECT 2000", "row_count": 2000}
    (told,) = world.rows(
        "SELECT dag_id, task_id, run_id, map_index, try_number FROM airflow_dblink.job WHERE id = %s",
        handle["job_id"],
    )
    assert told == ("job_result", "send", run_id, -1, 1)
    link = world.airflow.xcom("job_result", run_id, "send", key="_link_DblinkJobLink")
    assert link.endswith(f"/dblink/jobs/job_result/warehouse_db/{handle['job_id']}")


def test_a_failed_job_fails_its_sensors_in_all_modes(world: World) -> None:
    run_id = world.airflow.trigger("job_sensor_fails")
    assert world.airflow.wait("job_sensor_fails", run_id, timeout_s=120) == "failed"

    states = world.states("job_sensor_fails", run_id)
    expected = {"fail": "failed", "soft": "skipped", "never": "skipped"}
    expected |= {"timeout": "failed", "soft_timeout": "skipped"}
    for kind, state in expected.items():
        for mode in ("poke", "reschedule", "deferrable"):
            task = f"{kind}_{mode}"
            assert states[task] == state, world.airflow.log("job_sensor_fails", run_id, task, 1)[-2000:]
    tries = world.tries("job_sensor_fails", run_id)
    for mode in ("poke", "reschedule", "deferrable"):
        assert tries[f"fail_{mode}"] == 1, "no retry of a sensor can help"
        log = world.airflow.wait_for_log("job_sensor_fails", run_id, f"fail_{mode}", "while running job")
        assert "division by zero [SQLSTATE 22012]" in log


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_user_who_marks_the_task_cancels_the_job(world: World, state: str) -> None:
    run_id = _start_killable(world)

    for task in ("waiting", "deferred", "kept"):
        world.airflow.set_task_state("job_kill", run_id, task, state)

    world.wait_until("two are cancelled", lambda: len(world.active()) == 1, CANCELLED_WITHIN_S + HEARTBEAT_S)
    world.airflow.wait("job_kill", run_id, timeout_s=30)
    time.sleep(CANCELLED_WITHIN_S)  # a process that still lives would have written by now
    assert set(world.states("job_kill", run_id).values()) == {state}
    assert world.job_states() == {"cancelled": 2, "running": 1}, "cancel_on_kill=False lets it go on"
    assert world.rows(IN_TIME, CANCELLED_WITHIN_S) == [(True,)]
    assert world.effects() == {}


def test_a_user_who_clears_the_task_gets_a_new_job(world: World) -> None:
    run_id = _start_killable(world)

    for task in ("waiting", "deferred"):
        world.airflow.clear_task("job_kill", run_id, task)

    def both_anew() -> bool:
        jobs = world.rows(
            "SELECT task_id, state, replaces IS NOT NULL FROM airflow_dblink.job WHERE task_id <> 'kept'"
        )
        done = {(task, "cancelled", False) for task in ("waiting", "deferred")}
        return done | {(task, "running", True) for task in ("waiting", "deferred")} == set(jobs)

    world.wait_until("each has a new job", both_anew, HEARTBEAT_S)
    world.rows("SELECT pg_terminate_backend(pid) FROM airflow_dblink.job WHERE state = 'running'")
    assert world.airflow.wait("job_kill", run_id, timeout_s=60) == "failed"


def test_a_mark_that_no_triggerer_sees_leaves_the_job_to_the_command_line(world: World) -> None:
    world.airflow.kill_component("triggerer.1")
    try:
        run_id = world.airflow.trigger("job_deferred", {"seconds": 240})
        world.airflow.wait_for_task("job_deferred", run_id, "deferred", {"deferred"}, timeout_s=60)
        world.airflow.set_task_state("job_deferred", run_id, "deferred", "failed")
        assert world.airflow.wait("job_deferred", run_id, timeout_s=30) == "failed"
        time.sleep(NOTHING_HAPPENS_S)
        ours = "SELECT id::text, state FROM airflow_dblink.job WHERE dag_id = 'job_deferred'"
        ((job_id, state),) = world.rows(ours)
        assert state == "running"
        assert [job_id in query for query, _ in world.active()].count(True) == 1

        told = world.airflow.cli("dblink", "cancel-job", "warehouse_db", job_id)
    finally:
        world.airflow.start_component("triggerer.1")

    assert f"Job {job_id}: cancelled." in told.stdout
    assert world.rows(ours) == [(job_id, "cancelled")]
    assert not any(job_id in query for query, _ in world.active())


def test_execution_timeout_cancels_the_job(world: World) -> None:
    run_id = world.airflow.trigger("job_timeout")
    world.wait_until("both run", lambda: len(world.active()) == 2, 60)
    # The test before has started this triggerer.
    world.wait_until("none runs", lambda: not world.active(), TIMEOUT_S + CANCELLED_WITHIN_S + 20)
    assert world.rows(IN_TIME, CANCELLED_WITHIN_S) in ([(True,)], [])  # none: the server's limit came first
    ended = "SELECT bool_and(ended_at - started_at < make_interval(secs => %s)) FROM airflow_dblink.job"
    assert world.rows(ended, TIMEOUT_S + 10) == [(True,)]
    assert world.airflow.wait("job_timeout", run_id, timeout_s=60) == "failed"
    assert set(world.states("job_timeout", run_id).values()) == {"failed"}
    assert set(world.job_states()) <= {"cancelled", "failed"}
    assert world.effects() == {}
    assert world.airflow.wait_for_log("job_timeout", run_id, "deferred", "execution_timeout")


def test_a_restart_of_any_component_cancels_nothing(world: World) -> None:
    with world.gate_shut():
        run_id = world.airflow.trigger("job_kill", {"seconds": 0})
        world.wait_until("all run", lambda: len(world.active()) == 3, 60)
        for task in ("deferred", "kept"):
            world.airflow.wait_for_task("job_kill", run_id, task, {"deferred"}, timeout_s=60)

        world.airflow.kill_component("triggerer.1")
        world.airflow.start_component("triggerer.1")
        scheduler, *workers = world.airflow.component_processes("scheduler")
        found = scheduler.net_connections("tcp")
        ports = [each.laddr.port for each in found if each.raddr and each.raddr.port == world.source.port]
        world.airflow.kill_component("scheduler")
        # Its workers have inherited its connections: what it had locked would stay locked.
        assert ports
        assert any(worker.is_running() for worker in workers)
        sessions = "SELECT 1 FROM pg_stat_activity WHERE client_port = ANY(%s)"
        world.wait_until("its sessions end", lambda: not world.rows(sessions, ports, server=world.source), 30)
        world.airflow.start_component("scheduler")
        time.sleep(NOTHING_HAPPENS_S)

        assert len(world.active()) == 3
    assert world.airflow.wait("job_kill", run_id, timeout_s=240) in ("success", "failed")
    states = world.states("job_kill", run_id)
    assert (states["deferred"], states["kept"]) == ("success", "success")
    assert world.effects() == {"deferred": 1, "kept": 1, "waiting": 1}
    assert world.job_states() == {"succeeded": 3}


def test_a_worker_that_is_told_to_stop_leaves_the_job_to_the_next_try(world: World) -> None:
    tasks = [{"name": "stopped", "moment": "never", "deferrable": False, "seconds": 0}]
    with world.gate_shut():
        run_id = world.airflow.trigger("job_batch", {"tasks": tasks})
        world.wait_until("it runs", lambda: len(world.active()) == 1, 60)

        psutil.Process(world.airflow.supervisor_pid("job_batch", run_id, "job", 0)).terminate()
        world.airflow.wait_for_log(
            "job_batch", run_id, "job", "goes on, and the next try takes it over", map_index=0
        )
    assert world.airflow.wait("job_batch", run_id, timeout_s=240) == "success"
    assert world.tries("job_batch", run_id)["job"] == 2
    assert world.effects() == {"stopped": 1}
    assert world.job_states() == {"succeeded": 1}


def test_a_triggerer_that_is_told_to_stop_leaves_the_jobs(world: World) -> None:
    with world.gate_shut():
        run_id = world.airflow.trigger("job_kill", {"seconds": 0})
        world.wait_until("all run", lambda: len(world.active()) == 3, 60)
        world.airflow.wait_for_task("job_kill", run_id, "deferred", {"deferred"}, timeout_s=60)
        world.airflow.kill_component("triggerer.1", signal.SIGTERM)
        world.airflow.start_component("triggerer.1")

    assert world.airflow.wait("job_kill", run_id, timeout_s=240) == "success"
    assert world.job_states() == {"succeeded": 3}


def test_a_server_that_crashes_loses_the_jobs_and_a_retry_does_them(world: World) -> None:
    tasks = [
        {"name": f"crash_{n}", "moment": "never", "deferrable": bool(n % 2), "seconds": 0} for n in range(4)
    ]
    with world.gate_shut():
        run_id = world.airflow.trigger("job_batch", {"tasks": tasks})
        world.wait_until("all are called", lambda: len(world.active()) == 4, 60)
        world.wait_until("all have begun", lambda: world.job_states() == {"running": 4}, 60)

        world.warehouse.crash()
        world.warehouse.start()

    assert world.airflow.wait("job_batch", run_id, timeout_s=240) == "success", world.logs(
        "job_batch", run_id
    )
    assert world.effects() == {task["name"]: 1 for task in tasks}
    assert world.job_states() == {"lost": 4, "succeeded": 4}


def test_no_log_and_no_table_of_airflow_holds_a_secret_or_a_row(world: World) -> None:
    logs = world.airflow.all_logs()
    assert "succeeded" in logs, "the search must see the task logs"
    for server in (world.source, world.warehouse):
        assert server.role_password not in logs
        assert server.superuser_password not in logs
    assert "row 1999" not in logs


def _start_killable(world: World) -> str:
    run_id = world.airflow.trigger("job_kill", {"seconds": 300})
    world.wait_until("all run", lambda: len(world.active()) == 3, 120)
    world.wait_until_watched("job_kill", run_id, "deferred", "kept")
    return run_id
