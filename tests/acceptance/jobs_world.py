"""A real Airflow and the servers of its jobs, for the acceptance tests of jobs and the soak command."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from airflow_dblink.embedded.airflow import Airflow
from airflow_dblink.embedded.server import Server
from tests.acceptance.dying import GATE

DAGS = Path(__file__).parent / "dags"
# Longest time until the scheduler notices a dead task; then the task may be tried again.
HEARTBEAT_TIMEOUT_S = 20
SETTINGS = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT_S),
    # A triggerer without a heartbeat for six seconds loses its triggers to another one.
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
}

SCHEMA = """
DROP TABLE IF EXISTS effect;
CREATE TABLE effect (task text NOT NULL, at timestamptz DEFAULT clock_timestamp());
"""

Row = tuple[Any, ...]


def metadata_url(uri: str) -> str:
    """Return SQLAlchemy's URL for Airflow's own tables, from a database's URI."""
    return uri.replace("postgres://", "postgresql+psycopg2://", 1)


@dataclass(frozen=True)
class World:
    """A real Airflow, and the servers of its Dags.

    :ivar warehouse: the jobs' server, connection ``warehouse_db``.
    """

    airflow: Airflow
    source: Server
    warehouse: Server

    def rows(self, query: str, *params: Any, server: Server | None = None) -> list[Row]:
        """Return the rows of *query*, by default in the warehouse."""
        conninfo = (server or self.warehouse).conninfo(superuser=True)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def gate_shut(self) -> Iterator[None]:
        """Hold jobs back in the warehouse, where they run, until the block ends."""
        holder = psycopg.connect(self.warehouse.conninfo(superuser=True), autocommit=True)
        try:
            holder.execute("SELECT pg_advisory_lock(%s)", [GATE])
            yield
        finally:
            holder.close()

    def prepare(self) -> None:
        """Make the table of effects anew, and delete all jobs; jobs that a test has left running end."""
        self.rows(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE query LIKE '/* CALL run(%' AND state = 'active'"
        )
        with psycopg.connect(self.warehouse.conninfo(), autocommit=True) as connection:
            connection.execute(SCHEMA.encode())
            connection.execute("DROP SCHEMA IF EXISTS airflow_dblink CASCADE")

    def effects(self) -> dict[str, int]:
        """Return the number of rows of each effect, by its name."""
        return dict(Counter(task for (task,) in self.rows("SELECT task FROM effect")))

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """Return the state of each task, ``id[3]`` for a mapped one."""
        return {
            ti["task_id"] if ti["map_index"] < 0 else f"{ti['task_id']}[{ti['map_index']}]": ti["state"]
            for ti in self.airflow.task_instances(dag_id, run_id)
        }

    def tries(self, dag_id: str, run_id: str) -> dict[str, int]:
        """Return the number of tries of each task."""
        return {ti["task_id"]: ti["try_number"] for ti in self.airflow.task_instances(dag_id, run_id)}

    def job_states(self) -> dict[str, int]:
        """Return the number of jobs in each state."""
        return dict(Counter(state for (state,) in self.rows("SELECT state FROM airflow_dblink.job")))

    def active(self) -> list[Row]:
        """Return (query, state) of the sessions that run a job."""
        return self.rows(
            "SELECT query, state FROM pg_stat_activity WHERE query LIKE '/* CALL run(%' AND state = 'active'"
        )

    def wait_until_watched(self, dag_id: str, run_id: str, *tasks: str) -> None:
        """Wait until the triggerer runs the triggers of *tasks*: only then Airflow tells it of a kill."""
        for task in tasks:
            self.airflow.wait_for_task(dag_id, run_id, task, {"deferred"}, timeout_s=60)
            self.airflow.wait_for_log(dag_id, run_id, task, " starting")

    def wait_until(self, what: str, ready: Any, within_s: float) -> float:
        """Wait until *ready()* is true; return the seconds that this took."""
        started = time.monotonic()
        while not ready():
            assert time.monotonic() - started < within_s, f"waited {within_s} s until {what}; {self.active()}"
            time.sleep(0.05)
        return time.monotonic() - started

    def logs(self, dag_id: str, run_id: str) -> str:
        """Return the logs of all tries of the tasks that didn't succeed, for a failed test."""
        return "\n".join(
            f"--- {ti['task_id']} {ti['map_index']} try {number} ({ti['state']})\n"
            + self.airflow.log(dag_id, run_id, ti["task_id"], number, ti["map_index"])
            for ti in self.airflow.task_instances(dag_id, run_id)
            if ti["state"] not in ("success", "skipped")
            for number in range(1, ti["try_number"] + 1)
        )

    def succeed(self, dag_id: str, conf: Mapping[str, Any] | None = None, *, timeout_s: float = 240) -> str:
        """Run a Dag to its end and return the run's id; if it doesn't succeed, fail with the logs."""
        run_id = self.airflow.trigger(dag_id, dict(conf or {}))
        state = self.airflow.wait(dag_id, run_id, timeout_s=timeout_s)
        assert state == "success", self.logs(dag_id, run_id)
        return run_id
