"""The embedded Airflow itself, on which the acceptance tests and the demo rely."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from airflow_dblink.embedded.airflow import Airflow

DAGS = """
import subprocess
import time
from datetime import timedelta

from airflow.sdk import BaseHook, BaseOperator, Connection, DAG, Param, get_current_context, task

with DAG("double", params={"n": Param(1, type="integer")}):

    @task
    def double(params=None):
        return {"n": 2 * params["n"], "host": BaseHook.get_connection("source").host}

    double()

with DAG("fail"):

    @task
    def fail():
        raise ValueError("the reason is in the log")

    fail()


class SleepOnFirstTry(BaseOperator):
    def execute(self, context):
        if context["ti"].try_number == 1:
            # What an operator starts: it must not outlive the end of Airflow either.
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.Popen(["sleep", "600"], start_new_session=True, **quiet)
            print("sleeping")
            time.sleep(600)

    def on_kill(self):
        print("on_kill was called")


with DAG("sleep"):
    SleepOnFirstTry(task_id="sleep", retries=1, retry_delay=timedelta(0))
"""

CALLER = """
import sys, time
from pathlib import Path
from airflow_dblink.embedded.airflow import Airflow

with Airflow(Path(sys.argv[1]), {}) as airflow:
    run = airflow.trigger("sleep")
    airflow.task_pid("sleep", run, "sleep")
    while "sleeping" not in airflow.log("sleep", run, "sleep"):
        time.sleep(0.1)
    print(airflow.home, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dags")
    (folder / "harness.py").write_text(DAGS)
    return folder


@pytest.fixture(scope="module")
def airflow(dags: Path) -> Iterator[Airflow]:
    with Airflow(dags, {"source": "postgres://me:a-secret-word@remote/db"}) as running:
        yield running


def test_a_dag_with_params_succeeds_and_nothing_secret_is_in_the_home(airflow: Airflow) -> None:
    seen: list[str] = []
    run = airflow.trigger("double", {"n": 21}, run_id="mine")
    state = airflow.wait("double", run, timeout_s=240, on_progress=lambda tasks: seen.append(tasks["double"]))
    assert (run, state) == ("mine", "success")
    assert seen[-1] == "success"
    assert len(seen) == len(set(seen))
    assert airflow.xcom("double", run, "double") == {"n": 42, "host": "remote"}
    assert airflow.wait_for_log("double", run, "double", "Done. Returned value was")
    assert "a-secret-word" not in airflow.all_logs()


def test_params_that_do_not_fit_are_refused(airflow: Airflow) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        airflow.trigger("double", {"n": "many"})
    assert "not of type 'integer'" in refused.value.__notes__[0]


def test_a_failing_dag_is_reported_with_its_log(airflow: Airflow) -> None:
    run = airflow.trigger("fail")
    assert airflow.wait("fail", run, timeout_s=240) == "failed"
    assert airflow.wait_for_log("fail", run, "fail", "the reason is in the log")


def test_a_dag_file_that_cannot_be_imported_is_named(airflow: Airflow, dags: Path) -> None:
    (dags / "broken.py").write_text("from airflow.sdk import DAG\n\nimport no_such_module\n")
    with pytest.raises(RuntimeError, match=r"(?s)broken\.py.*no_such_module"):
        airflow.trigger("broken")
    (dags / "broken.py").unlink()


def test_a_killed_task_process_is_retried_at_once(airflow: Airflow) -> None:
    run = airflow.trigger("sleep")
    pid = airflow.task_pid("sleep", run, "sleep")
    assert psutil.Process(pid).ppid() == airflow.supervisor_pid("sleep", run, "sleep")
    os.kill(pid, signal.SIGKILL)
    assert airflow.wait("sleep", run, timeout_s=240) == "success"
    assert airflow.task_instances("sleep", run)[0]["try_number"] == 2


def test_a_task_marked_failed_is_killed_and_can_be_cleared(airflow: Airflow) -> None:
    run = airflow.trigger("sleep")
    task = psutil.Process(airflow.task_pid("sleep", run, "sleep"))
    _until(lambda: "sleeping" in airflow.log("sleep", run, "sleep"))
    airflow.set_task_state("sleep", run, "sleep", "failed")
    task.wait(timeout=240)
    assert airflow.wait("sleep", run, timeout_s=240) == "failed"
    assert airflow.wait_for_log("sleep", run, "sleep", "on_kill was called")
    airflow.clear_task("sleep", run, "sleep")
    assert airflow.wait("sleep", run, timeout_s=240) == "success"


def test_the_command_line_sees_the_same_airflow(airflow: Airflow) -> None:
    assert "double" in airflow.cli("dags", "list").stdout


def test_stop_leaves_no_process_and_no_file(dags: Path) -> None:
    with Airflow(dags, {}, triggerers=1, ui=True) as airflow:
        run = airflow.trigger("sleep")
        airflow.task_pid("sleep", run, "sleep")
        _until(lambda: "sleeping" in airflow.log("sleep", run, "sleep"))
        assert airflow._keeper
        processes = {psutil.Process(airflow._keeper.pid), *_descendants(airflow._keeper.pid)}
        assert httpx.get(f"{airflow.url}/auth/token", trust_env=False, timeout=90).status_code == 403
    assert not airflow.home.exists()
    assert len(processes) > 6
    _until(lambda: _left(processes) == [])


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_caller_that_ends_leaves_no_process_and_no_file(dags: Path, signum: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", CALLER, dags], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout
        home = Path(caller.stdout.readline().strip())
        processes = _descendants(caller.pid)
        caller.send_signal(signum)
    _until(lambda: not home.exists())
    assert len(processes) > 6
    _until(lambda: _left(processes) == [])


def test_a_component_that_ends_fails_the_start_with_its_log(dags: Path) -> None:
    airflow = Airflow(dags, {}, env={"AIRFLOW__CORE__EXECUTOR": "NoSuchExecutor"})
    with pytest.raises(RuntimeError, match=r"(?s)scheduler has ended.*NoSuchExecutor"):
        airflow.start()
    assert not airflow.home.exists()


@pytest.mark.parametrize("step", ["json.dumps", "httpx.Client", "subprocess.Popen"])
def test_an_interrupted_start_leaves_no_file(
    dags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    airflow = Airflow(dags, {}, ui=True)

    def interrupt(*_: object, **__: object) -> None:
        assert list(tmp_path.iterdir()) == [airflow.home]  # it has begun
        raise KeyboardInterrupt

    monkeypatch.setattr(step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        airflow.start()
    assert list(tmp_path.iterdir()) == []


def _descendants(pid: int) -> set[psutil.Process]:
    return set(psutil.Process(pid).children(recursive=True))


def _left(processes: set[psutil.Process]) -> list[str]:
    """Return the names of the processes that are left, once all should have ended."""
    names = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # between the two questions
            if process.is_running():
                names.append(process.name())
    return names


def _until(condition: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
