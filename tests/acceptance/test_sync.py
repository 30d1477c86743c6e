"""A sync whose task is killed, under a real scheduler: done exactly once, or nothing is left of it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from airflow_dblink.embedded.airflow import Airflow
from airflow_dblink.embedded.server import Server
from tests.acceptance.conftest import Killing, execute, rows

ENDS_WITHIN_S = 5.0  # after SIGTERM; then the supervisor sends SIGKILL
# Until the supervisor learns that the task is no longer wanted, and sends SIGTERM: about a second, but
# Airflow may be slow.
HEARTBEAT_S = 60.0

MOMENTS = (
    "before_id_is_stored",
    "before_lock",
    "before_commit",
    "after_commit",
    "after_all",
    "while_it_applies",
)
SLOW = {"while_it_applies": 8, "marked_failed": 120, "timed_out": 120}
ROWS = 1000


def make(source: Server, warehouse: Server, name: str) -> None:
    """Make a table on both sides, with 20 rows each missing, changed and extra in the second.

    A trigger records the transaction that changes the table; in some tables another one slows each row down.
    """
    table = f"sync_{name}"
    for server in (source, warehouse):
        execute(
            server,
            f"""DROP TABLE IF EXISTS {table};
            CREATE TABLE {table} (id int PRIMARY KEY, s text);
            INSERT INTO {table} SELECT i, md5(i::text) FROM generate_series(1, {ROWS}) AS i""",  # noqa: S608
        )
    execute(
        warehouse,
        f"""UPDATE {table} SET id = -id WHERE id <= 20;
        UPDATE {table} SET s = 'stale' WHERE id > {ROWS - 20};
        CREATE TABLE IF NOT EXISTS sync_applied (name text, xid text, PRIMARY KEY (name, xid));
        CREATE OR REPLACE FUNCTION sync_note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO sync_applied VALUES (TG_ARGV[0], pg_current_xact_id()::text) ON CONFLICT DO NOTHING;
            RETURN NULL; END $$;
        CREATE TRIGGER note AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION sync_note('{name}');
        CREATE OR REPLACE FUNCTION sync_wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_sleep(TG_ARGV[0]::float / 20); RETURN NEW; END $$""",  # noqa: S608
    )
    if seconds := SLOW.get(name):
        execute(
            warehouse,
            f"CREATE TRIGGER wait BEFORE INSERT ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION sync_wait('{seconds}')",
        )


class World:
    """A real Airflow between two real servers."""

    def __init__(self, airflow: Airflow, source: Server, warehouse: Server) -> None:
        self.airflow, self.source, self.warehouse = airflow, source, warehouse

    def tables(self, name: str) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        query = f"SELECT * FROM sync_{name} ORDER BY id"  # noqa: S608 - ours
        return rows(self.source, query), rows(self.warehouse, query)

    def applied(self, name: str) -> list[str]:
        return [xid for who, xid in rows(self.warehouse, "TABLE sync_applied") if who == name]

    def busy(self, name: str) -> list[tuple[Any, ...]]:
        """Sessions of a task that run something or hold a transaction, on both servers."""
        query = (
            "SELECT application_name, state, wait_event, query FROM pg_stat_activity"  # noqa: S608 - ours
            f" WHERE usename = current_user AND state <> 'idle' AND application_name LIKE '%.{name} %'"
        )
        return rows(self.source, query) + rows(self.warehouse, query)

    def wait_until_idle(self, name: str, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while busy := self.busy(name):
            assert time.monotonic() < deadline, busy
            time.sleep(0.05)


@pytest.fixture(scope="module")
def world(killing: Killing, pair: tuple[Server, Server]) -> World:
    source, warehouse = pair
    execute(warehouse, "DROP TABLE IF EXISTS sync_applied")
    for name in (*MOMENTS, *SLOW):
        make(source, warehouse, name)
    return World(killing.airflow, source, warehouse)


def test_a_sync_killed_at_any_moment_is_done_exactly_once(world: World) -> None:
    run_id = world.airflow.trigger("sync_die")
    assert world.airflow.wait("sync_die", run_id, timeout_s=180) == "success"
    tries = {ti["task_id"]: ti["try_number"] for ti in world.airflow.task_instances("sync_die", run_id)}
    assert tries == dict.fromkeys(MOMENTS, 2), "every first try must have died"
    for name in MOMENTS:
        source, warehouse = world.tables(name)
        assert source == warehouse, name
        result = world.airflow.xcom("sync_die", run_id, name)
        assert world.applied(name) == [result["xid"]], name
        assert [result[count] for count in ("inserted", "updated", "deleted")] == [20, 20, 20], name
        told = "An earlier try has committed"
        if name in ("after_commit", "after_all"):
            assert world.airflow.wait_for_log("sync_die", run_id, name, told, 2)
        else:
            assert told not in world.airflow.log("sync_die", run_id, name, 2), name
        world.wait_until_idle(name, 5)


def test_a_sync_that_is_stopped_leaves_nothing_running_and_nothing_changed(world: World) -> None:
    before = {name: world.tables(name)[1] for name in ("marked_failed", "timed_out")}
    run_id = world.airflow.trigger("sync_kill")
    deadline = time.monotonic() + 60
    while not any(session[2] == "PgSleep" for session in world.busy("marked_failed")):
        assert time.monotonic() < deadline, "it must be applying"
        time.sleep(0.1)
    world.airflow.set_task_state("sync_kill", run_id, "marked_failed", "failed")
    world.wait_until_idle("marked_failed", ENDS_WITHIN_S + HEARTBEAT_S)
    assert world.airflow.wait("sync_kill", run_id, timeout_s=60) == "failed"
    world.wait_until_idle("timed_out", ENDS_WITHIN_S)
    time.sleep(ENDS_WITHIN_S)  # a process that still lives would have written or succeeded by now
    states = {ti["task_id"]: ti["state"] for ti in world.airflow.task_instances("sync_kill", run_id)}
    assert states == {"marked_failed": "failed", "timed_out": "failed"}
    for name, kept in before.items():
        assert world.tables(name)[1] == kept
        assert world.applied(name) == []


def test_no_log_holds_a_password_or_a_value(world: World) -> None:
    logs = world.airflow.all_logs()
    assert "An earlier try has committed" in logs, "the search must see the task logs"
    for server in (world.source, world.warehouse):
        assert server.role_password not in logs
        assert server.superuser_password not in logs
    assert "stale" not in [word for line in logs.splitlines() if "sync" in line for word in line.split("'")]
