"""One real Airflow with the example Dags, between two real servers, for all acceptance tests that use it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from airflow_dblink.embedded.airflow import Airflow
from airflow_dblink.embedded.demo import DAGS_FOLDER, connections, environment
from airflow_dblink.embedded.server import Server


@dataclass(frozen=True)
class AirflowEnv:
    """A running Airflow, and the servers and files that its Dags use.

    :ivar source: server of the connections ``source_db`` and ``shop_db``.
    :ivar warehouse: server of the connection ``warehouse_db``.
    :ivar dags: the Dags' folder, a copy of ``dags_examples``; a test may put more into it.
    :ivar files: temporary directory of the Dags.
    """

    airflow: Airflow
    source: Server
    warehouse: Server
    dags: Path
    files: Path

    def run(self, dag_id: str, conf: Mapping[str, Any] | None = None, *, timeout_s: float = 400) -> str:
        """Run a Dag to its end and return the run's id; a failed run fails the test, with the log."""
        run_id = self.airflow.trigger(dag_id, dict(conf or {}))
        state = self.airflow.wait(dag_id, run_id, timeout_s=timeout_s)
        if state != "success":
            pytest.fail(f"{dag_id} ended as {state}\n{self.failed_logs(dag_id, run_id)}")
        return run_id

    def failed_logs(self, dag_id: str, run_id: str) -> str:
        """Return the logs of the failed tasks."""
        return "\n".join(
            self.airflow.log(dag_id, run_id, ti["task_id"], ti["try_number"])
            for ti in self.airflow.task_instances(dag_id, run_id)
            if ti["state"] == "failed"
        )


def rows(server: Server, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of *query* in the server's default database."""
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def not_over_midnight() -> None:
    """Wait for the next day (UTC) if it is near: the results of some Dags depend on the day."""
    left = 86_400 - time.time() % 86_400
    if left < 300:
        time.sleep(left + 1)


def execute(server: Server, script: str) -> None:
    """Run *script* on the server's default database."""
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute(script.encode())


@pytest.fixture(scope="session")
def airflow_env(
    pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowEnv]:
    """Run Airflow and one triggerer with a copy of ``dags_examples``; no run starts by its schedule."""
    source, warehouse = pair
    files = tmp_path_factory.mktemp("files")
    dags = tmp_path_factory.mktemp("dags") / "dags"
    shutil.copytree(DAGS_FOLDER, dags, ignore=shutil.ignore_patterns("__pycache__"))
    env = {**environment(source, files), "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"}
    conns = {**connections(source, warehouse), "shop_db": source.airflow_uri()}
    with Airflow(dags, conns, env=env, triggerers=1) as airflow:
        yield AirflowEnv(airflow, source, warehouse, dags, files)
