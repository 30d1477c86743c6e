"""A role with CREATE on the database makes the job schema first, and hangs its trigger on the table."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import InstallationError
from airflow_dblink.core.jobs.call import call
from airflow_dblink.core.jobs.client import Jobs
from airflow_dblink.core.jobs.job import SCHEMA, Job
from airflow_dblink.core.jobs.watch import Watcher, acall, acancel
from airflow_dblink.core.listen.listener import Listener
from airflow_dblink.core.server.target import Target
from airflow_dblink.exceptions import DblinkJobError
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.jobs import DblinkCancelQueryOperator, DblinkGetResultOperator
from airflow_dblink.sensors.job import DblinkJobSensor
from tests.databases import Database
from tests.integration.jobs.client import Client, effects, held, until
from tests.integration.tasks import context
from tests.security.jobs.conftest import Attacker
from tests.stores import MemoryStore

TRIGGER = (
    "CREATE TRIGGER steal BEFORE INSERT OR UPDATE OR DELETE ON airflow_dblink.job"
    " FOR EACH STATEMENT EXECUTE FUNCTION lair.steal()"
)
REFUSED = (InstallationError, AirflowFailException, DblinkJobError)
JOB = UUID("0b6c9f2e-5f0e-4a43-8d0c-1f0a6f1e7a55")
HANDLE = {"conn_id": "source", "job_id": str(JOB), "schema": SCHEMA}


def _hook(method: str, *args: Any) -> Callable[[Client], object]:
    def act(victim: Client) -> object:
        with DblinkHook(dblink_conn_id="source") as hook:
            return getattr(hook, method)(*args)

    return act


def _task(kind: Any, **arguments: Any) -> Callable[[Client], object]:
    return lambda victim: kind(task_id="task", handle=HANDLE, **arguments).execute(context())


async def _watch(target: Target) -> object:
    async def get_target() -> Target:
        return target

    return await asyncio.wait_for(Watcher(Listener(get_target, "watcher"), SCHEMA).wait(JOB, 1.0), 30)


async def _acall(victim: Client) -> None:
    values: dict[str, Any] = {field.name: None for field in fields(Job)} | {"id": JOB}
    await acall(victim.target, "caller", SCHEMA, Job(**values))


def _retried(victim: Client) -> object:
    store = MemoryStore()
    server = dict(victim.jobs.installation().server)
    store.set("airflow_dblink_job", {"job_id": str(JOB), "server": server, "sent": True, "life": 0})
    return victim.send("SELECT 1", store=store)


def _page(victim: Client) -> Jobs:
    return Jobs(victim.open(), "source", SCHEMA, read_only=True)


WAYS: dict[str, Callable[[Client], object]] = {
    "hook.prune_jobs": _hook("prune_jobs", timedelta(0)),
    "hook.job": _hook("job", HANDLE),
    "hook.is_busy": _hook("is_busy", HANDLE),
    "hook.cancel_job": _hook("cancel_job", HANDLE),
    "hook.wait_for_job": _hook("wait_for_job", HANDLE),
    "hook.get_result": _hook("get_result", HANDLE),
    "hook.drop_result": _hook("drop_result", HANDLE),
    "hook.send_job": _hook("send_job", "SELECT 1"),
    "sensor": _task(DblinkJobSensor),
    "deferrable sensor": _task(DblinkJobSensor, deferrable=True),
    "get result": _task(DblinkGetResultOperator, max_xcom_rows=1),
    "cancel": _task(DblinkCancelQueryOperator),
    "a retry": _retried,
    "a worker's call": lambda victim: call(victim.open(), "source", SCHEMA, JOB, None),
    "the triggerer's watcher": lambda victim: asyncio.run(_watch(victim.target)),
    "the triggerer's cancel": lambda victim: asyncio.run(acancel(victim.target, "cancel", SCHEMA, JOB)),
    "the triggerer's call": lambda victim: asyncio.run(_acall(victim)),
    "newest": lambda victim: victim.jobs.newest(),
    "statement": lambda victim: victim.jobs.statement(JOB),
    "the page": lambda victim: _page(victim).see(JOB),
}


@pytest.fixture
def trap(attacker: Attacker, source: Database) -> Attacker:
    source.admin(f"GRANT CREATE ON DATABASE {source.name} TO {attacker.role}")
    attacker.client.jobs.install([source.server.role], results=True)
    attacker.execute(TRIGGER)
    attacker.execute(
        "CREATE OR REPLACE PROCEDURE airflow_dblink.run(job_id uuid) LANGUAGE sql AS"
        " 'SELECT lair.steal_now(1)'"
    )
    return attacker


@pytest.mark.parametrize("way", WAYS)
def test_nothing_touches_it(client: Client, trap: Attacker, way: str) -> None:
    with pytest.raises(REFUSED, match=f"belongs to role '{trap.role}'"):
        WAYS[way](client)

    assert not trap.has_stolen


def test_who_may_change_nothing_sees_a_job(client: Client) -> None:
    job_id = client.send("SELECT 1")
    client.wait(job_id)
    seen = _page(client).see(job_id)
    assert seen is not None
    assert seen.state == "succeeded"


def test_the_trap_works(client: Client, trap: Attacker) -> None:
    client.jobs.connection.execute("UPDATE airflow_dblink.job SET state = state")
    assert trap.has_stolen


def test_a_lock_on_a_strangers_table_is_not_waited_for(client: Client, trap: Attacker) -> None:
    with closing(psycopg.connect(trap.target.conninfo())) as other:
        other.execute("LOCK TABLE airflow_dblink.job IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(InstallationError):
            client.jobs.find(JOB)


# -- between the look and the use


@pytest.mark.parametrize("way", ["a look", "a call", "the triggerer's call"])
def test_a_schema_that_is_replaced_at_that_moment_is_looked_at_again(
    client: Client, source: Database, attacker: Attacker, way: str
) -> None:
    """A trusted schema is dropped while the message waits for it, and the attacker's has its name then."""
    client.jobs.ready()
    act: dict[str, Callable[[], object]] = {
        "a look": lambda: client.jobs.find(JOB),
        "a call": lambda: call(client.open(), "source", SCHEMA, JOB, None),
        "the triggerer's call": lambda: asyncio.run(_acall(client)),
    }
    failures: list[Exception] = []

    def run() -> None:
        try:
            act[way]()
        except Exception as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    with psycopg.connect(source.admin_conninfo) as admin:
        admin.execute("DROP SCHEMA airflow_dblink CASCADE")
        admin.execute(f"CREATE SCHEMA airflow_dblink AUTHORIZATION {attacker.role}")
        admin.execute(f"SET LOCAL ROLE {attacker.role}")
        admin.execute("CREATE TABLE airflow_dblink.job (id uuid, state text, bound_statement text)")
        admin.execute(TRIGGER.encode())
        admin.execute(
            "CREATE PROCEDURE airflow_dblink.run(job_id uuid) LANGUAGE sql AS 'SELECT lair.steal_now(1)'"
        )
        admin.execute("GRANT USAGE ON SCHEMA airflow_dblink TO PUBLIC")
        admin.execute("GRANT ALL ON airflow_dblink.job TO PUBLIC")
        thread = threading.Thread(target=run)
        thread.start()
        until(
            lambda: source.admin("SELECT 1 FROM pg_locks WHERE NOT granted AND database = %s", _oid(source))
        )
    thread.join()

    (failure,) = failures
    assert isinstance(failure, InstallationError)
    assert f"belongs to role '{attacker.role}'" in str(failure)
    assert not attacker.has_stolen


def _oid(database: Database) -> int:
    return int(database.rows("SELECT oid FROM pg_database WHERE datname = current_database()")[0][0])


def test_a_job_table_that_was_replaced_while_the_job_ran_is_not_written_to(
    client: Client, source: Database, attacker: Attacker
) -> None:
    with held(source) as sql:
        pid = client.jobs.get(client.send(sql)).pid
        source.admin("DROP TABLE airflow_dblink.job")
        source.admin(f"GRANT CREATE, USAGE ON SCHEMA airflow_dblink TO {attacker.role}")
        attacker.execute(
            "CREATE TABLE airflow_dblink.job (id uuid, state text, pid int, row_count bigint,"
            " result_table name, ended_at timestamptz, bound_statement text, cancel_requested_at timestamptz,"
            " sqlstate text, message text, detail text, hint text, context text)"
        )
        attacker.execute(TRIGGER)
        attacker.execute("GRANT ALL ON airflow_dblink.job TO PUBLIC")
    until(lambda: not source.admin("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'", pid))

    assert not attacker.has_stolen
    assert effects(source) == 0
