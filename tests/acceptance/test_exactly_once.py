"""Exactly once, and the effects of a kill, under a real scheduler and LocalExecutor."""

import os
import signal
import time
from pathlib import Path

import psycopg
import pytest

from airflow_dblink.embedded.airflow import Airflow
from airflow_dblink.embedded.server import Server
from tests.acceptance.conftest import Killing

ENDS_WITHIN_S = 5.0  # after SIGTERM; then the supervisor sends SIGKILL
# Until the supervisor learns that the task is no longer wanted, and sends SIGTERM: about a second, but
# Airflow may be slow.
HEARTBEAT_S = 60.0

SCHEMA = """
DROP TABLE IF EXISTS effect, slow_effect;
DROP SEQUENCE IF EXISTS runs;
CREATE SEQUENCE runs;
CREATE TABLE effect (task text NOT NULL, run bigint);
CREATE TABLE slow_effect (task text NOT NULL);
CREATE OR REPLACE FUNCTION wait_long() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(120); RETURN NEW; END';
CREATE TRIGGER wait_long BEFORE INSERT ON slow_effect FOR EACH ROW EXECUTE FUNCTION wait_long();
"""


class World:
    """A real Airflow between two real servers."""

    def __init__(self, airflow: Airflow, source: Server, warehouse: Server, suspended: Path) -> None:
        self.airflow, self.source, self.warehouse, self.suspended = airflow, source, warehouse, suspended

    def rows(self, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.warehouse.conninfo(), autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    def effects(self) -> dict[object, object]:
        return dict(self.rows("SELECT task, count(*) FROM effect GROUP BY task"))  # type: ignore[arg-type]

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        return {ti["task_id"]: ti["state"] for ti in self.airflow.task_instances(dag_id, run_id)}

    def tries(self, dag_id: str, run_id: str) -> dict[str, int]:
        return {ti["task_id"]: ti["try_number"] for ti in self.airflow.task_instances(dag_id, run_id)}

    def busy_names(self) -> list[str]:
        """Names of the sessions that are busy; they begin with dag and task."""
        return [str(session[0]) for session in self.busy()]

    def busy(self) -> list[tuple[object, ...]]:
        """Sessions of tasks that run something or hold a transaction, on both servers."""
        found: list[tuple[object, ...]] = []
        for server in (self.source, self.warehouse):
            with psycopg.connect(server.conninfo(), autocommit=True) as connection:
                found += connection.execute(
                    "SELECT application_name, state, query FROM pg_stat_activity"
                    " WHERE usename = current_user AND pid <> pg_backend_pid() AND state <> 'idle'"
                    " AND datname = current_database()"  # not Airflow's own
                ).fetchall()
        return found

    def wait_until_idle(self, within_s: float) -> float:
        """Wait until no session of a task is busy; return the seconds that this took."""
        started = time.monotonic()
        while busy := self.busy():
            assert time.monotonic() - started < within_s, busy
            time.sleep(0.05)
        return time.monotonic() - started


@pytest.fixture(scope="module")
def world(killing: Killing, pair: tuple[Server, Server]) -> World:
    return World(killing.airflow, *pair, killing.suspended)


@pytest.fixture(autouse=True)
def _empty_tables(world: World) -> None:
    with psycopg.connect(world.warehouse.conninfo(), autocommit=True) as connection:
        connection.execute(SCHEMA.encode())


def test_a_task_killed_at_any_moment_has_its_effect_exactly_once(world: World) -> None:
    run_id = world.airflow.trigger("die")
    assert world.airflow.wait("die", run_id, timeout_s=180) == "success"
    states = world.states("die", run_id)
    assert world.effects() == dict.fromkeys(states, 1)
    assert set(world.tries("die", run_id).values()) == {2}, "every first try must have died"
    world.wait_until_idle(5)
    # Adopted work was not begun again; work that was rolled back was.
    adopted = ("exec_while_it_runs", "exec_after_commit", "exec_after_all")
    assert {world.airflow.xcom("die", run_id, task) for task in adopted} == {"COMMIT", "INSERT 0 1"}
    # before_commit and while_it_runs of the transfers were begun twice, everything else once.
    assert world.rows("SELECT last_value FROM runs") == [(len(states) + 2,)]


def test_the_log_says_what_happened_to_the_earlier_try(world: World) -> None:
    run_id = world.airflow.trigger("worker_restart")
    assert world.airflow.wait("worker_restart", run_id, timeout_s=120) == "success"
    told = ("goes on, the next try takes it over", "An earlier try has committed: nothing is run.")
    for number, text in enumerate(told, 1):
        assert world.airflow.wait_for_log("worker_restart", run_id, "exec_restart", text, number)


def test_a_restarted_worker_leaves_the_statement_to_the_next_try(world: World) -> None:
    run_id = world.airflow.trigger("worker_restart")
    assert world.airflow.wait("worker_restart", run_id, timeout_s=120) == "success"
    assert world.effects() == {"exec_restart": 1, "transfer_restart": 1}
    assert world.tries("worker_restart", run_id) == {"exec_restart": 2, "transfer_restart": 2}
    # exec was begun once and adopted; the transfer was begun twice, and rolled back once.
    assert world.rows("SELECT run FROM effect WHERE task = 'exec_restart'")[0][0] in (1, 2)
    assert world.rows("SELECT last_value FROM runs") == [(3,)]


def test_a_first_try_that_wakes_up_after_the_second_does_nothing(world: World) -> None:
    run_id = world.airflow.trigger("zombie")
    assert world.airflow.wait("zombie", run_id, timeout_s=300) == "success"
    states = world.states("zombie", run_id)
    before = world.effects()
    assert before == dict.fromkeys(states, 1)
    pids = {int(file.name): int(file.read_text()) for file in world.suspended.iterdir()}
    assert len(pids) == len(states), "every first try must have been suspended"
    for task, supervisor in pids.items():
        os.kill(task, signal.SIGCONT)
        os.kill(supervisor, signal.SIGCONT)
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in pids if _alive(pid)], "the zombies must have ended"
    assert world.effects() == before
    assert world.states("zombie", run_id) == dict.fromkeys(states, "success")
    world.wait_until_idle(5)


def test_a_task_cleared_after_its_success_runs_anew(world: World) -> None:
    run_id = world.airflow.trigger("clear")
    assert world.airflow.wait("clear", run_id, timeout_s=240) == "success"
    world.airflow.clear_task("clear", run_id, "exec")
    world.airflow.wait_for_task("clear", run_id, "exec", ["success"], timeout_s=60)
    deadline = time.monotonic() + 30
    while world.effects() != {"exec": 2} and time.monotonic() < deadline:
        time.sleep(0.2)
    assert world.effects() == {"exec": 2}


def test_marked_failed_leaves_nothing_running_and_nothing_changed(world: World) -> None:
    run_id = world.airflow.trigger("kill")
    tasks = ("exec", "transfer", "transfer_slow_destination")
    deadline = time.monotonic() + 60
    while not all(any(name.startswith(f"kill.{task} ") for name in world.busy_names()) for task in tasks):
        assert time.monotonic() < deadline, "all statements must run first"
        time.sleep(0.1)
    for task in tasks:
        world.airflow.set_task_state("kill", run_id, task, "failed")
    world.wait_until_idle(ENDS_WITHIN_S + HEARTBEAT_S)
    assert world.airflow.wait("kill", run_id, timeout_s=120) == "failed"
    time.sleep(ENDS_WITHIN_S)  # a process that still lives would have written or succeeded by now
    assert set(world.states("kill", run_id).values()) == {"failed"}
    assert world.effects() == {}
    assert world.rows("SELECT count(*) FROM slow_effect") == [(0,)]


def test_execution_timeout_leaves_nothing_running_and_nothing_changed(world: World) -> None:
    run_id = world.airflow.trigger("timeout")
    assert world.airflow.wait("timeout", run_id, timeout_s=240) == "failed"
    world.wait_until_idle(ENDS_WITHIN_S)
    assert world.states("timeout", run_id) == {"exec": "failed", "transfer": "failed"}
    assert world.effects() == {}


def test_no_log_holds_a_password(world: World) -> None:
    logs = world.airflow.all_logs()
    assert "An earlier try has committed" in logs, "the search must see the task logs"
    for server in (world.source, world.warehouse):
        assert server.role_password not in logs
        assert server.superuser_password not in logs


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
