"""Airflow's public API, as the web interface uses it: runs, tasks, their states, results and logs."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeVar

import httpx

from airflow_dblink.embedded.settings import MAX_TASKS

T = TypeVar("T")

_DATABASE_TRIES = 5
START_TIMEOUT_S = 300  # a slow CI machine; 9 s on two cores


class AirflowApi(ABC):
    """Calls to a running Airflow: they start and change runs, and read their state."""

    def __init__(self) -> None:
        self.url = ""
        self._http = httpx.Client()

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run with *conf* as its params, and return its id. Waits for a Dag not yet parsed.

        :raises RuntimeError: if the Dag isn't there and a file cannot be imported; the message has the
            traceback.
        :raises TimeoutError: if Airflow doesn't find the Dag within :data:`START_TIMEOUT_S`.
        :raises httpx.HTTPStatusError: if Airflow refuses, as with *conf* that does not fit the params.
        """
        self._until(f"Dag {dag_id} is parsed", lambda: self._parsed(dag_id), START_TIMEOUT_S)
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}}
        return str(self.api("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def wait(
        self,
        dag_id: str,
        run_id: str,
        *,
        timeout_s: float,
        on_progress: Callable[[dict[str, str]], None] | None = None,
    ) -> str:
        """Wait for the end of a run and return its state, ``success`` or ``failed``.

        :param on_progress: called with the state of every task by task id (``id[3]`` for a mapped one)
            whenever one has changed; ``none`` stands for "not yet scheduled".
        :raises TimeoutError: if the run takes longer than *timeout_s*.
        :raises RuntimeError: if a component of Airflow ends.
        """
        seen: dict[str, str] = {}

        def final_state() -> str | None:
            nonlocal seen
            state = str(self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])
            if on_progress:
                tasks = {_label(ti): ti["state"] or "none" for ti in self.task_instances(dag_id, run_id)}
                if tasks != seen:
                    seen = tasks
                    on_progress(tasks)
            return state if state in ("success", "failed") else None

        return self._until(f"the end of {dag_id} {run_id}", final_state, timeout_s)

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a run, as in Airflow's API.

        :raises httpx.HTTPStatusError: if there is no such run.
        """
        answer = self.api(
            "GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": MAX_TASKS}
        )
        found: list[dict[str, Any]] = answer["task_instances"]
        return found

    def wait_for_task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        states: Collection[str],
        *,
        timeout_s: float,
        map_index: int = -1,
    ) -> dict[str, Any]:
        """Wait until a task is in one of *states*, and return it as :meth:`task_instances` does.

        :raises TimeoutError: if that takes longer than *timeout_s*.
        :raises RuntimeError: if a component of Airflow ends.
        """

        def found() -> dict[str, Any] | None:
            for ti in self.task_instances(dag_id, run_id):
                if (ti["task_id"], ti["map_index"]) == (task_id, map_index) and ti["state"] in states:
                    return ti
            return None

        return self._until(f"{task_id} in {sorted(states)}", found, timeout_s)

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str = "failed") -> None:
        """Mark a task ``failed``, ``success`` or ``skipped``, as the web interface does.

        The supervisor of a running task learns it from its next heartbeat, within a second. It sends
        SIGTERM to the task's process group, which calls ``on_kill()`` and ends nothing else, and SIGKILL
        5 s later.

        :raises httpx.HTTPStatusError: if there is no such task or the state is another one.
        """
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.api("PATCH", path, json={"new_state": state})

    def clear_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Clear a task and those after it, so that they run again, as the web interface does.

        :raises httpx.HTTPStatusError: if there is no such Dag or run.
        """
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [task_id]}
        options = {"only_failed": False, "include_downstream": True}
        self.api("POST", f"/dags/{dag_id}/clearTaskInstances", json=body | options)

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """Return an XCom value.

        :raises httpx.HTTPStatusError: if there is none.
        """
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.api("GET", path, params={"map_index": map_index})["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Return the log of one try as text, one event per line with its details as JSON.

        :raises httpx.HTTPStatusError: if there is no such try.
        """
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        answer = self.api("GET", path, params={"map_index": map_index, "full_content": True})
        return "\n".join(_log_line(event) for event in answer["content"])

    def wait_for_log(
        self, dag_id: str, run_id: str, task_id: str, text: str, try_number: int = 1, map_index: int = -1
    ) -> str:
        """Return the log of one try once *text* is in it: the last lines may come after the task's end.

        :raises TimeoutError: if it isn't there within 120 s.
        """

        def found() -> str | None:
            log = self.log(dag_id, run_id, task_id, try_number, map_index)
            return log if text in log else None

        return self._until(f"{text!r} in the log of {task_id}", found, 120)

    def api(self, method: str, path: str, **kwargs: Any) -> Any:
        """Call Airflow's public API, as the web interface does, and return the answer.

        :param path: path below ``/api/v2``.
        :param kwargs: arguments of ``httpx.Client.request``.
        :raises httpx.HTTPStatusError: if Airflow refuses; a note has its answer.
        """
        for tries_left in reversed(range(_DATABASE_TRIES)):
            response = self._http.request(method, f"/api/v2{path}", **kwargs)
            # SQLite refuses the write of a transaction that has read before another's write; nothing is done.
            if response.status_code != 500 or "Database error" not in response.text or not tries_left:
                break
            time.sleep(0.5)
        try:
            return response.raise_for_status().json()
        except httpx.HTTPStatusError as error:
            error.add_note(response.text)
            raise

    def _until(self, what: str, ready: Callable[[], T | None], timeout_s: float) -> T:
        """Call *ready* until it returns a value, and raise if a component ends; a time-out isn't an error."""
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(httpx.TimeoutException):
                if (result := ready()) is not None:
                    return result
            self._check_components()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s} s for: {what}")
            time.sleep(0.2)

    @abstractmethod
    def _check_components(self) -> None:
        """Raise unless Airflow still runs.

        :raises RuntimeError: if a component has ended.
        """

    def _parsed(self, dag_id: str) -> bool | None:
        try:
            return bool(self.api("GET", f"/dags/{dag_id}"))
        except httpx.HTTPStatusError as missing:
            if missing.response.status_code != HTTPStatus.NOT_FOUND:
                raise
        for error in self.api("GET", "/importErrors")["import_errors"]:
            raise RuntimeError(f"{error['filename']} cannot be imported:\n{error['stack_trace']}")
        return None


# Fields of a log event that begin the line, or that every event of one task repeats.
_NO_DETAILS = {"timestamp", "level", "event", "logger", "filename", "lineno"} | {
    *("ti_id", "dag_id", "run_id", "task_id", "map_index", "try_number")
}


def _label(ti: Mapping[str, Any]) -> str:
    return ti["task_id"] if ti["map_index"] < 0 else f"{ti['task_id']}[{ti['map_index']}]"


def _log_line(event: str | dict[str, Any]) -> str:
    if isinstance(event, str):
        return event
    details = {name: value for name, value in event.items() if name not in _NO_DETAILS}
    line = f"{event.get('timestamp') or ''} {event.get('level', '')} {event['event']}".strip()
    return f"{line} {json.dumps(details)}" if details else line
