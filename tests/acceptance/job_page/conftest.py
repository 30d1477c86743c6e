"""One Airflow for all tests of the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from airflow_dblink.embedded.airflow import Airflow
from airflow_dblink.embedded.server import Server
from tests.acceptance.job_page.sites import SECRET, Site, browser
from tests.databases import new_database
from tests.hostile_server import flood, hostile_server

DAGS = """
from airflow.sdk import DAG
from airflow_dblink.operators.jobs import DblinkSendQueryOperator

with DAG("linked"):
    DblinkSendQueryOperator(task_id="send", conn_id="jobs", sql="SELECT 1")

with DAG("templated"):
    DblinkSendQueryOperator(task_id="send", conn_id="{{ 'same_jobs' }}", sql="SELECT 1")

# Its jobs are sent by the tests; it only says which connections are its own.
with DAG("one"):
    for conn_id in ("jobs", "team/jobs", "stored", "closed", "web", "silent", "flood"):
        DblinkSendQueryOperator(task_id=conn_id.replace("/", "_"), conn_id=conn_id, sql="SELECT 1")
"""
SETTINGS = quote(json.dumps({"work_mem": "1MB"}))
USERS = "admin:admin,oscar:op,ursula:user,bob:viewer,eve:"


@pytest.fixture(scope="package")
def site(pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    dags = tmp_path_factory.mktemp("dags")
    (dags / "linked.py").write_text(DAGS)
    with (
        new_database(pair[0], "jobs") as database,
        hostile_server() as silent,
        hostile_server(flood) as flooding,
        hostile_server() as apart,
    ):
        connections = {
            "same_jobs": database.uri,
            "silent": f"{silent.uri}&session_settings={SETTINGS}",
            "flood": flooding.uri,
            "apart": apart.uri,
            "jobs": database.uri,
            "team/jobs": database.uri,
            "closed": f"postgres://somebody:{SECRET}@127.0.0.1:1/secret_db",
            "web": f"http://somebody:{SECRET}@127.0.0.1:1/",
        }
        env = {"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": USERS}
        with (
            Airflow(dags, connections, env=env, ui=True) as airflow,
            browser(airflow, "admin") as admin,
            browser(airflow, "oscar") as op,
            browser(airflow, "ursula") as user,
            browser(airflow, "bob") as viewer,
            browser(airflow, "eve") as nobody,
            browser(airflow) as stranger,
        ):
            made = Site(airflow, database, admin, op, user, viewer, nobody, stranger, silent, flooding, apart)
            made.wait_for_dag("one")
            yield made
