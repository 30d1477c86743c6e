"""Real Airflows between two real servers, shared by all acceptance tests that use the same one.

An Airflow takes 30 s of processor time to start, and a tenth of the machine while it is idle. So the tests
of one Airflow run one after the other, whatever their file, and no other Airflow runs beside it.

Airflow's own tables are on the first server. With SQLite, where only one process can write at a time, all of
Airflow has stood still for 30 s: a living task then counts as dead.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from airflow_dblink.embedded.airflow import Airflow
from airflow_dblink.embedded.demo import DAGS_FOLDER, connections, environment
from airflow_dblink.embedded.server import Server
from tests.acceptance.jobs_world import DAGS, SETTINGS, metadata_url
from tests.databases import new_database

T = TypeVar("T")


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


class Kept:
    """The Airflow that runs: whoever asks for another one ends it."""

    def __init__(self) -> None:
        self._stack, self._name = ExitStack(), ""
        self._made: Any = None

    def use(self, name: str, make: Callable[[], AbstractContextManager[T]]) -> T:
        """Return the running Airflow called *name*; if another one runs, or none, make it first."""
        if self._name != name:
            self.close()
            self._made = self._stack.enter_context(make())
            self._name = name
        made: T = self._made
        return made

    def close(self) -> None:
        """End the running Airflow."""
        self._name, self._made = "", None
        self._stack.close()


@pytest.fixture(scope="session")
def kept(pair: tuple[Server, Server]) -> Iterator[Kept]:
    """Give the keeper of the Airflow that several tests share; it ends before the servers, which it needs."""
    airflow = Kept()
    yield airflow
    airflow.close()


@pytest.fixture
def airflow_env(
    kept: Kept, pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory
) -> AirflowEnv:
    """Run Airflow and one triggerer with a copy of ``dags_examples``; no run starts by its schedule."""
    return kept.use("examples", partial(_examples, pair, tmp_path_factory))


@contextmanager
def _examples(pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowEnv]:
    source, warehouse = pair
    files = tmp_path_factory.mktemp("files")
    dags = tmp_path_factory.mktemp("dags") / "dags"
    shutil.copytree(DAGS_FOLDER, dags, ignore=shutil.ignore_patterns("__pycache__"))
    env = {**environment(source, files), "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False"}
    conns = {**connections(source, warehouse), "shop_db": source.airflow_uri()}
    with new_database(source, "metadata") as database:
        metadata = metadata_url(database.uri)
        with Airflow(dags, conns, env=env, triggerers=1, database=metadata) as airflow:
            yield AirflowEnv(airflow, source, warehouse, dags, files)


@dataclass(frozen=True)
class Killing:
    """A running Airflow whose tasks die, are stopped or marked.

    :ivar suspended: directory with a file per task that has stopped itself: its name is the task's pid, its
        text the supervisor's.
    """

    airflow: Airflow
    suspended: Path


@pytest.fixture(scope="module")
def killing(kept: Kept, pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Killing:
    """Run Airflow and one triggerer with the Dags in ``tests/acceptance/dags``."""
    return kept.use("killing", partial(_killing, pair, tmp_path_factory))


@contextmanager
def _killing(pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killing]:
    source, warehouse = pair
    suspended = tmp_path_factory.mktemp("suspended")
    conns = {"source_db": source.airflow_uri(), "warehouse_db": warehouse.airflow_uri()}
    env = {**SETTINGS, "SUSPENDED_PIDS": str(suspended)}
    with new_database(source, "metadata") as database:
        metadata = metadata_url(database.uri)
        with Airflow(DAGS, conns, env=env, triggerers=1, database=metadata, parallelism=24) as airflow:
            yield Killing(airflow, suspended)


# The fixtures that lead to an Airflow, in the order in which tests of them run. Those of Kept come last: its
# Airflow runs until Kept is asked for another one.
_AIRFLOWS = ("site", "here", "airflow", "killing", "airflow_env")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of one Airflow behind each other; those without come first."""
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    places = {item: _airflow_of(item) for item in ours}
    ordered = iter(sorted(ours, key=places.__getitem__))
    items[:] = [next(ordered) if item in places else item for item in items]


def _airflow_of(item: pytest.Item) -> int:
    """Return the place of an item's Airflow among the others; 0 if it needs none."""
    names = getattr(item, "fixturenames", ())
    return next((place for place, name in enumerate(_AIRFLOWS, 1) if name in names), 0)
