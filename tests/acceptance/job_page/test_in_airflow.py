"""The page of a job as a part of Airflow."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from airflow_dblink.core.jobs.job import JobHandle
from airflow_dblink.links.job import job_url
from tests.acceptance.job_page.sites import (
    LINK,
    SECRET,
    Site,
    TeamsAirflow,
    browser,
    facts_of,
    path_of,
)

# -- in Airflow


def test_no_tasks_call_is_the_first_that_airflow_answers(site: Site) -> None:
    log = (site.airflow.home / "components" / "api-server.log").read_text()

    assert re.findall(r" path=(/execution/\S+)", log)[0] == "/execution/health"


def test_the_link_of_a_task_leads_to_its_job(site: Site) -> None:
    run_id = site.airflow.trigger("linked")
    state = site.airflow.wait("linked", run_id, timeout_s=240)
    assert state == "success", site.airflow.log("linked", run_id, "send", 1)
    link = site.airflow.xcom("linked", run_id, "send", key=LINK)

    page = site.admin.get(link)
    (task,) = re.findall(r'<dt>Task</dt>\s*<dd><a href="([^"]+)">', page.text)

    assert page.status_code == 200
    assert facts_of(page.text)["Dag"] == "linked"
    # Airflow's interface is one page for all paths; the API path with the same parts gives its data.
    api = urlsplit(task.replace("/dags/", "/api/v2/dags/").replace("/runs/", "/dagRuns/")).path
    assert site.admin.get(api.replace("/tasks/", "/taskInstances/")).json()["task_id"] == "send"


def test_connections_of_airflows_own_database_serve_too(site: Site) -> None:
    job_id = site.send("SELECT 1")
    params = site.database.params
    stored = {
        "connection_id": "stored",
        "conn_type": "dblink",
        "host": params["host"],
        "port": int(params["port"]),
        "login": params["user"],
        "password": params["password"],
        "schema": params["dbname"],
    }
    site.admin.post("/api/v2/connections", json=stored).raise_for_status()

    page = site.viewer.get(path_of(job_id, conn_id="stored"))

    assert page.status_code == 200
    assert facts_of(page.text)["Connection"] == "stored"


def test_a_connections_id_may_have_slashes(site: Site) -> None:
    handle = JobHandle("team/jobs", str(site.send("SELECT 1")))

    page = site.viewer.get(urlsplit(job_url("one", handle)).path)
    login = site.stranger.get(page.request.url.raw_path.decode(), follow_redirects=True)

    assert facts_of(page.text)["Connection"] == "team/jobs"
    (after,) = parse_qs(login.url.query.decode())["next"]
    assert site.viewer.get(after).status_code == 200


def test_airflow_has_the_plugin_and_no_complaint(site: Site) -> None:
    plugins = site.admin.get("/api/v2/plugins", params={"limit": 100}).json()["plugins"]
    (ours,) = [plugin for plugin in plugins if plugin["name"] == "dblink"]

    assert ours["fastapi_apps"][0]["url_prefix"] == "/dblink"
    assert site.admin.get("/api/v2/plugins/importErrors").json()["import_errors"] == []


def test_no_password_is_in_the_logs(site: Site) -> None:
    site.admin.get(path_of(uuid4(), conn_id="closed"))
    log = (site.airflow.home / "components" / "api-server.log").read_text()

    assert "could not establish connection" in log
    assert SECRET not in log
    assert site.database.server.role_password not in log


def test_under_a_path_of_its_own_all_links_stay_under_it(site: Site, tmp_path: Path) -> None:
    path = TeamsAirflow.path + path_of(site.send_again("SELECT 1/0", "SELECT 1"))
    env = {"AIRFLOW__API__BASE_URL": f"https://airflow.example{TeamsAirflow.path}"}
    with (
        TeamsAirflow(tmp_path, {"jobs": site.database.uri}, env=env, ui=True) as airflow,
        browser(airflow, "admin", airflow.path) as admin,
        browser(airflow) as stranger,
    ):
        login = stranger.get(path, follow_redirects=True)
        page = admin.get(path)

    assert login.url.path == "/team/a/auth/login"
    assert parse_qs(login.url.query.decode())["next"] == [path]
    links = re.findall(r'href="([^"]+)"', page.text)
    assert len(links) == 4
    assert all(link.startswith("/team/a/d") for link in links)
