"""A real Airflow that asks for a login, its users, and the database where the jobs are."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx

from airflow_dblink.core.jobs.client import Jobs
from airflow_dblink.core.jobs.draft import draft
from airflow_dblink.core.jobs.send import Sent, Submission
from airflow_dblink.core.server.login import connect
from airflow_dblink.embedded.airflow import Airflow
from tests.databases import Database
from tests.hostile_server import HostileServer
from tests.stores import MemoryStore

SECRET = "closed-port-password-4711"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
TASK = {"dag_id": "one", "task_id": "load", "run_id": "manual__x+1", "map_index": -1, "try_number": 1}
SHOWN = '<span class="state succeeded">succeeded</span>'
LINK = "_link_DblinkJobLink"


@dataclass(frozen=True)
class Site:
    """An Airflow with five users, and the database where the jobs are.

    :ivar admin: may do anything.
    :ivar op: may read connections.
    :ivar user: may trigger Dags and write XComs, not read connections.
    :ivar viewer: may read Dags and their logs, not connections.
    :ivar nobody: has a login and no rights.
    :ivar stranger: a browser without a login.
    :ivar silent: a server that lets everybody in and answers nothing; a connection of the Dag ``one``.
    :ivar flooding: a server whose answers never end; also a connection of the Dag ``one``.
    :ivar apart: a server whose connection no Dag names.
    """

    airflow: Airflow
    database: Database
    admin: httpx.Client
    op: httpx.Client
    user: httpx.Client
    viewer: httpx.Client
    nobody: httpx.Client
    stranger: httpx.Client
    silent: HostileServer
    flooding: HostileServer
    apart: HostileServer

    def wait_for_dag(self, dag_id: str) -> None:
        """Wait until Airflow has parsed it."""
        deadline = time.monotonic() + 120
        while self.admin.get(f"/api/v2/dags/{dag_id}").status_code != 200:
            assert time.monotonic() < deadline, f"Dag {dag_id} isn't parsed"
            time.sleep(0.1)

    def send(
        self, statement: str, params: Any = None, *, task: Mapping[str, Any] = TASK, **options: Any
    ) -> UUID:
        """Send a job, wait for its end and return its id."""
        return _ended(self._submission(task).submit(lambda c: draft(c, "jobs", statement, params, **options)))

    def send_again(self, first: str, second: str) -> UUID:
        """Send two jobs as two tries of one task do, and return the second one's id."""
        submission = self._submission(TASK)
        _ended(submission.submit(lambda c: draft(c, "jobs", first)))
        return _ended(submission.submit(lambda c: draft(c, "jobs", second)))

    @contextmanager
    def running(self) -> Iterator[UUID]:
        """Send a job that runs, and cancel it afterwards."""
        sent = self._submission(TASK).submit(lambda c: draft(c, "jobs", "SELECT pg_sleep(60)"))
        assert sent.call is not None
        sent.call.leave()
        try:
            yield sent.job_id
        finally:
            with connect(self.database.target) as connection:
                Jobs(connection, "jobs", "airflow_dblink").cancel(sent.job_id)

    def _submission(self, task: Mapping[str, Any]) -> Submission:
        return Submission(
            "jobs", "airflow_dblink", lambda: connect(self.database.target), MemoryStore(), task
        )


class TeamsAirflow(Airflow):
    """An Airflow under a path of its own, below which it has its login."""

    path = "/team/a"

    def _token(self) -> str:
        self._http.base_url = f"{self.url}{self.path}"
        return super()._token()


def _ended(sent: Sent) -> UUID:
    assert sent.call is not None
    assert sent.call.wait(30)
    sent.call.leave()
    return sent.job_id


def path_of(job_id: object, dag_id: str = "one", conn_id: str = "jobs") -> str:
    return f"/dblink/jobs/{dag_id}/{conn_id}/{job_id}"


@contextmanager
def browser(airflow: Airflow, user: str | None = None, path: str = "") -> Iterator[httpx.Client]:
    """Give a client that has logged in as a browser does on Airflow's login page, with a cookie.

    :param path: path of Airflow on its server.
    """
    with httpx.Client(base_url=airflow.url, trust_env=False, timeout=90, headers=BROWSER) as client:
        if user is not None:
            passwords = json.loads(
                (airflow.home / "simple_auth_manager_passwords.json.generated").read_text()
            )
            login = {"username": user, "password": passwords[user]}
            token = client.post(f"{path}/auth/token", json=login).raise_for_status().json()["access_token"]
            client.cookies.set("_token", token)
        yield client


def facts_of(page: str) -> dict[str, str]:
    """Return the lines of a job's page by their labels."""
    found = re.findall(r"<dt>([^<]*)</dt>\s*<dd>(?:<a [^>]*>)?([^<]*)", page)
    return {label: text for label, text in found}


def without_addresses(page: str) -> str:
    """Return the page without the parts that differ between any two pages: the nonce, and its own address."""
    return re.sub(r'(nonce|href)="[^"]*"', "", page)
