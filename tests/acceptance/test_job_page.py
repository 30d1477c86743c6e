"""The page of a remote job on a real Airflow that asks for a login, and who may see it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from airflow_dblink.core.connection import connect
from airflow_dblink.core.jobs.draft import draft
from airflow_dblink.core.jobs.job import JobHandle
from airflow_dblink.core.jobs.remote import Jobs
from airflow_dblink.core.jobs.send import Sent, Submission
from airflow_dblink.embedded.airflow import Airflow
from airflow_dblink.embedded.server import Server
from airflow_dblink.links.job import job_url
from tests.databases import Database, new_database
from tests.stores import MemoryStore

SECRET = "closed-port-password-4711"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
TASK = {"dag_id": "one", "task_id": "load", "run_id": "manual__x+1", "map_index": -1, "try_number": 1}
SHOWN = '<span class="state succeeded">succeeded</span>'
LINK = "_link_DblinkJobLink"

DAGS = """
from airflow.sdk import DAG
from airflow_dblink.operators.jobs import DblinkSendQueryOperator

with DAG("linked"):
    DblinkSendQueryOperator(task_id="send", conn_id="jobs", sql="SELECT 1")
"""

# A schema that only looks like ours: whoever looks for a job there runs what its owner wants.
TRAP = """
CREATE ROLE {role};
CREATE SCHEMA trap;
CREATE TABLE trap.job (LIKE airflow_dblink.job INCLUDING ALL);
CREATE PROCEDURE trap.run(job_id uuid) LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION trap.spring() RETURNS boolean LANGUAGE plpgsql AS
    $$BEGIN INSERT INTO public.sprung VALUES (CURRENT_USER); RETURN true; END$$;
INSERT INTO trap.job SELECT * FROM airflow_dblink.job;
ALTER TABLE trap.job ENABLE ROW LEVEL SECURITY;
CREATE POLICY everyone ON trap.job USING (trap.spring());
COMMENT ON SCHEMA trap IS 'airflow-dblink jobs, version 1';
GRANT ALL ON SCHEMA trap TO PUBLIC;
GRANT ALL ON trap.job TO PUBLIC;
ALTER SCHEMA trap OWNER TO {role};
ALTER TABLE trap.job OWNER TO {role};
ALTER PROCEDURE trap.run OWNER TO {role};
"""


@dataclass(frozen=True)
class Site:
    """An Airflow with three users, and the database where the jobs are.

    :ivar admin: may do anything.
    :ivar viewer: may read Dags and their logs, not connections.
    :ivar nobody: has a login and no rights.
    :ivar stranger: a browser without a login.
    """

    airflow: Airflow
    database: Database
    admin: httpx.Client
    viewer: httpx.Client
    nobody: httpx.Client
    stranger: httpx.Client

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


def _path(job_id: object, dag_id: str = "one", conn_id: str = "jobs") -> str:
    return f"/dblink/jobs/{dag_id}/{conn_id}/{job_id}"


@contextmanager
def _browser(airflow: Airflow, user: str | None = None, path: str = "") -> Iterator[httpx.Client]:
    """Give a client that has logged in as Airflow's login page does it, with a cookie.

    :param path: below which Airflow is.
    """
    with httpx.Client(base_url=airflow.url, trust_env=False, timeout=30, headers=BROWSER) as client:
        if user is not None:
            passwords = json.loads(
                (airflow.home / "simple_auth_manager_passwords.json.generated").read_text()
            )
            login = {"username": user, "password": passwords[user]}
            token = client.post(f"{path}/auth/token", json=login).raise_for_status().json()["access_token"]
            client.cookies.set("_token", token)
        yield client


@pytest.fixture(scope="module")
def site(pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    dags = tmp_path_factory.mktemp("dags")
    (dags / "linked.py").write_text(DAGS)
    with new_database(pair[0], "jobs") as database:
        connections = {
            "jobs": database.uri,
            "team/jobs": database.uri,
            "closed": f"postgres://somebody:{SECRET}@127.0.0.1:1/secret_db",
            "web": f"http://somebody:{SECRET}@127.0.0.1:1/",
        }
        env = {"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,bob:viewer,eve:"}
        with (
            Airflow(dags, connections, env=env, ui=True) as airflow,
            _browser(airflow, "admin") as admin,
            _browser(airflow, "bob") as viewer,
            _browser(airflow, "eve") as nobody,
            _browser(airflow) as stranger,
        ):
            yield Site(airflow, database, admin, viewer, nobody, stranger)


# -- who may see it


def test_a_browser_that_is_not_logged_in_is_led_to_the_login_and_back(site: Site) -> None:
    path = _path(site.send("SELECT 1")) + "?schema=airflow_dblink"

    refused = site.stranger.get(path)
    login = site.stranger.get(path, follow_redirects=True)

    assert refused.status_code == 307
    assert SHOWN not in refused.text + login.text
    assert login.status_code == 200
    assert login.url.path == "/auth/login"
    (after,) = parse_qs(login.url.query.decode())["next"]
    assert after == path
    assert SHOWN in site.admin.get(after).text


def test_a_program_without_a_token_gets_401_and_with_one_the_page(site: Site) -> None:
    path = _path(site.send("SELECT 1"))
    token = site.admin.cookies["_token"]

    refused = site.stranger.get(path, headers={"Accept": "*/*"})
    answered = site.stranger.get(path, headers={"Accept": "*/*", "Authorization": f"Bearer {token}"})

    assert refused.status_code == 401
    assert SHOWN not in refused.text
    assert "/api/v2/auth/login?next=%2Fdblink%2F" in refused.text
    assert answered.status_code == 200


@pytest.mark.parametrize("how", [{"Cookie": "_token={}"}, {"Authorization": "Bearer {}"}])
def test_a_forged_token_is_refused(site: Site, how: dict[str, str]) -> None:
    path = _path(site.send("SELECT 1"))
    head, body, signature = site.admin.cookies["_token"].split(".")
    forged = ".".join((head, body, signature[::-1]))

    answer = site.stranger.get(path, headers={name: value.format(forged) for name, value in how.items()})

    assert answer.status_code == 403
    assert SHOWN not in answer.text


def test_a_user_who_may_not_read_the_dag_gets_403_for_whatever_he_asks(site: Site) -> None:
    job_id = site.send("SELECT 1")

    pages = [
        site.nobody.get(path)
        for path in (_path(job_id), _path(uuid4()), _path(job_id, "other"), _path(job_id, conn_id="closed"))
    ]

    assert {page.status_code for page in pages} == {403}
    assert len({_without_addresses(page.text) for page in pages}) == 1
    assert "You may not read the task logs of this Dag." in pages[0].text


def test_a_viewer_sees_the_page(site: Site) -> None:
    page = site.viewer.get(_path(site.send("SELECT 1")))

    assert page.status_code == 200
    assert SHOWN in page.text


def test_the_apps_own_documentation_is_not_there(site: Site) -> None:
    for path in ("/dblink/docs", "/dblink/redoc", "/dblink/openapi.json", "/dblink/", "/dblink/jobs"):
        assert site.admin.get(path).status_code == 404


# -- what can't be told apart


@pytest.mark.parametrize(
    ("dag_id", "conn_id", "job_id"),
    [
        ("other", "jobs", None),  # another Dag's job
        ("~", "jobs", None),  # Airflow's word for any Dag
        ("one", "jobs", "0b6c9f2e-5f0e-4a43-8d0c-1f0a6f1e7a55"),
        ("one", "jobs", "1"),
        ("one", "jobs", "11111111-2222-3333-4444-55555555555g"),
        ("one", "jobs", "%00"),
        ("one", "nowhere", None),
        ("one", "nowhere", "1"),
        ("one", "", None),
        ("one", "%00", None),
    ],
)
def test_what_is_not_there_is_not_told_from_what_is_another_dags(
    site: Site, dag_id: str, conn_id: str, job_id: str | None
) -> None:
    mine = site.send("SELECT 1")

    page = site.viewer.get(_path(job_id or mine, dag_id, conn_id))
    missing = site.viewer.get(_path(uuid4()))

    assert page.status_code == missing.status_code == 404
    assert _without_addresses(page.text) == _without_addresses(missing.text)
    assert "No such job" in page.text


@pytest.mark.parametrize("schema", ["nowhere", "", "%00", "public", "a%22.job;--", "x" * 100])
def test_neither_is_a_schema_without_jobs(site: Site, schema: str) -> None:
    page = site.viewer.get(f"{_path(site.send('SELECT 1'))}?schema={schema}")

    assert page.status_code == 404


@pytest.mark.parametrize("task", [{}, {**TASK, "dag_id": "~"}])
def test_a_job_of_no_dag_has_no_page(site: Site, task: dict[str, Any]) -> None:
    job_id = site.send("SELECT 1", task=task)

    for dag_id in ("one", "None", "~"):
        assert site.admin.get(_path(job_id, dag_id)).status_code == 404


def test_a_schema_of_a_role_that_is_not_trusted_is_not_looked_into(site: Site) -> None:
    job_id = site.send("SELECT 1")
    site.database.execute("CREATE TABLE public.sprung (role text)")
    role = f"trapper_{uuid4().hex[:8]}"
    try:
        site.database.admin(TRAP.format(role=role))
        # It would spring.
        site.database.rows("SELECT FROM trap.job")
        assert site.database.execute("DELETE FROM public.sprung") != "DELETE 0"

        page = site.admin.get(f"{_path(job_id)}?schema=trap")

        assert page.status_code == 502
        assert role in page.text
        assert site.database.rows("SELECT * FROM public.sprung") == []
    finally:
        site.database.admin(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


# -- what it says


def test_a_succeeded_job_is_described(site: Site) -> None:
    site.database.execute("CREATE TABLE IF NOT EXISTS item (id int PRIMARY KEY)")
    statement = "INSERT INTO item SELECT generate_series(1, %s) ON CONFLICT DO NOTHING -- <é>"

    page = site.admin.get(_path(site.send(statement, [5])))

    assert page.status_code == 200
    assert '<span class="state succeeded">succeeded</span>' in page.text
    facts = _facts(page.text)
    assert facts["Command"] == "INSERT 0 5"
    assert facts["Role"] == site.database.server.role
    assert facts["Connection"] == "jobs"
    assert facts["Try"] == "1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", facts["Ended"])
    assert facts["Duration"].endswith(" ms") or facts["Duration"].endswith(" s")
    assert 'href="/dags/one/runs/manual__x%2B1/tasks/load?try_number=1"' in page.text
    # As it was written: with the placeholder, without the value.
    assert "generate_series(1, %s) ON CONFLICT DO NOTHING -- &lt;é&gt;" in page.text
    assert "<h2>Error</h2>" not in page.text


def test_the_page_stands_on_its_own_and_is_not_kept(site: Site) -> None:
    page = site.admin.get(_path(site.send("SELECT 1")))

    (nonce,) = re.findall(r'<style nonce="([^"]+)">', page.text)
    policy = page.headers["Content-Security-Policy"]
    assert f"default-src 'none'; style-src 'nonce-{nonce}'" in policy
    assert page.headers["Cache-Control"] == "no-store"
    assert not re.search(r"<(script|link|img|iframe)|https?://|@import|url\(", page.text)
    assert "prefers-color-scheme: dark" in page.text


def test_a_failed_job_has_postgresqls_words_without_values(site: Site) -> None:
    site.database.execute("CREATE TABLE IF NOT EXISTS account (mail text PRIMARY KEY)")
    site.database.execute("INSERT INTO account VALUES ('ann@example.com') ON CONFLICT DO NOTHING")

    job_id = site.send("INSERT INTO account VALUES (%s)", ["ann@example.com"])
    page = site.admin.get(_path(job_id)).text

    assert '<span class="state failed">failed</span>' in page
    assert "[SQLSTATE 23505]" in page
    assert "duplicate key value violates unique constraint" in page
    assert "Key (mail)=(...) already exists." in page
    assert f"while running job {job_id} on dblink connection named &#34;jobs&#34;" in page
    assert "ann@example.com" not in page


def test_hint_and_context_are_there(site: Site) -> None:
    job_id = site.send("DO $$BEGIN RAISE 'bad' USING hint = 'mend it'; END$$")
    page = site.admin.get(_path(job_id)).text

    assert "HINT:  mend it" in page
    assert "CONTEXT:  PL/pgSQL function inline_code_block" in page


def test_a_running_job_and_one_that_was_cancelled(site: Site) -> None:
    with site.running() as job_id:
        page = site.admin.get(_path(job_id)).text
        assert '<span class="state running">running</span>' in page
        assert _facts(page)["Duration"].endswith(" so far")
        assert _facts(page)["Server process"].isdigit()

    page = site.admin.get(_path(job_id)).text
    assert '<span class="state cancelled">cancelled</span>' in page
    assert "[SQLSTATE 57014]" in page
    assert "Cancel requested" in _facts(page)


def test_the_job_that_it_replaces_is_a_link_to_its_page(site: Site) -> None:
    page = site.admin.get(_path(site.send_again("SELECT 1/0", "SELECT 1"))).text

    (earlier,) = re.findall(r'<dt>Replaces</dt>\s*<dd><a href="([^"]+)">', page)
    assert '<span class="state succeeded">' in page
    assert '<span class="state failed">' in site.admin.get(earlier).text


def test_a_kept_result_is_named(site: Site) -> None:
    job_id = site.send("SELECT 1 AS one", keep_result=True)

    table = _facts(site.admin.get(_path(job_id)).text)["Result table"]

    assert site.database.rows("SELECT to_regclass(%s) IS NOT NULL", table) == [(True,)]


def test_nothing_that_others_wrote_becomes_markup(site: Site) -> None:
    hostile = '<script>alert("x")</script>'
    task = {**TASK, "dag_id": hostile.replace("/", "."), "task_id": hostile, "run_id": f"'\"><{hostile}"}
    job_id = site.send(f"DO $do$BEGIN RAISE '{hostile}' USING hint = '{hostile}'; END$do$", task=task)

    page = site.admin.get(_path(job_id, "%3Cscript%3Ealert(%22x%22)%3C.script%3E"))

    assert page.status_code == 200
    assert "<script" not in page.text
    assert page.text.count("&lt;script&gt;") >= 6
    for path in (_path(job_id, "<script>"), _path(job_id, conn_id="<script>"), _path("<script>")):
        assert "<script" not in site.admin.get(path).text


def test_a_password_in_the_statement_is_not_shown(site: Site) -> None:
    page = site.admin.get(_path(site.send("CREATE ROLE nope PASSWORD 'pass-word-0815' VALID UNTIL 'x'"))).text

    assert "CREATE ROLE nope PASSWORD=*** VALID UNTIL" in page
    assert "pass-word-0815" not in page


# -- a server that can't be asked


def test_a_server_that_is_away_is_said_so_and_why_to_those_who_may_know(site: Site) -> None:
    admin, viewer = (user.get(_path(uuid4(), conn_id="closed")) for user in (site.admin, site.viewer))

    assert admin.status_code == viewer.status_code == 503
    assert "The server doesn&#39;t answer" in admin.text
    assert "could not establish connection [SQLSTATE 08001]" in admin.text
    assert "127.0.0.1" in admin.text
    assert "127.0.0.1" not in viewer.text
    assert "The reason is in the log" in viewer.text
    for page in (admin, viewer):
        assert SECRET not in page.text
        assert "Traceback" not in page.text


def test_a_connection_of_another_kind_has_no_jobs(site: Site) -> None:
    admin, viewer = (user.get(_path(uuid4(), conn_id="web")) for user in (site.admin, site.viewer))

    assert admin.status_code == viewer.status_code == 502
    assert "type &#39;http&#39;" in admin.text
    assert "http" not in viewer.text
    assert SECRET not in admin.text + viewer.text


def test_a_server_that_does_not_answer_holds_nobody_for_long(site: Site) -> None:
    job_id = site.send("SELECT 1")
    with psycopg.connect(site.database.conninfo) as other:
        other.execute("LOCK TABLE airflow_dblink.job")

        begun = time.monotonic()
        page = site.admin.get(_path(job_id))

        assert page.status_code == 503
        assert "no answer within 5 s" in page.text
        assert time.monotonic() - begun < 10
        others = [row for row in site.database.sessions() if row[0] != other.info.backend_pid]
        assert [row for row in others if row[2] == "active"] == []


# -- in Airflow


def test_the_link_of_a_task_leads_to_its_job(site: Site) -> None:
    run_id = site.airflow.trigger("linked")
    assert site.airflow.wait("linked", run_id, timeout_s=60) == "success"
    link = site.airflow.xcom("linked", run_id, "send", key=LINK)

    page = site.admin.get(link)
    (task,) = re.findall(r'<dt>Task</dt>\s*<dd><a href="([^"]+)">', page.text)

    assert page.status_code == 200
    assert _facts(page.text)["Dag"] == "linked"
    # Airflow's interface is one page; its data come from the path that the page is made of.
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

    page = site.viewer.get(_path(job_id, conn_id="stored"))

    assert page.status_code == 200
    assert _facts(page.text)["Connection"] == "stored"


def test_a_connections_id_may_have_slashes(site: Site) -> None:
    handle = JobHandle("team/jobs", str(site.send("SELECT 1")))

    page = site.viewer.get(urlsplit(job_url("one", handle)).path)
    login = site.stranger.get(page.request.url.raw_path.decode(), follow_redirects=True)

    assert _facts(page.text)["Connection"] == "team/jobs"
    (after,) = parse_qs(login.url.query.decode())["next"]
    assert site.viewer.get(after).status_code == 200


def test_airflow_has_the_plugin_and_no_complaint(site: Site) -> None:
    plugins = site.admin.get("/api/v2/plugins", params={"limit": 100}).json()["plugins"]
    (ours,) = [plugin for plugin in plugins if plugin["name"] == "dblink"]

    assert ours["fastapi_apps"][0]["url_prefix"] == "/dblink"
    assert site.admin.get("/api/v2/plugins/importErrors").json()["import_errors"] == []


def test_no_password_is_in_the_logs(site: Site) -> None:
    site.admin.get(_path(uuid4(), conn_id="closed"))
    log = (site.airflow.home / "components" / "api-server.log").read_text()

    assert "could not establish connection" in log
    assert SECRET not in log
    assert site.database.server.role_password not in log


def test_under_a_path_of_its_own_all_links_stay_under_it(site: Site, tmp_path: Path) -> None:
    path = TeamsAirflow.path + _path(site.send_again("SELECT 1/0", "SELECT 1"))
    env = {"AIRFLOW__API__BASE_URL": f"https://airflow.example{TeamsAirflow.path}"}
    with (
        TeamsAirflow(tmp_path, {"jobs": site.database.uri}, env=env, ui=True) as airflow,
        _browser(airflow, "admin", airflow.path) as admin,
        _browser(airflow) as stranger,
    ):
        login = stranger.get(path, follow_redirects=True)
        page = admin.get(path)

    assert login.url.path == "/team/a/auth/login"
    assert parse_qs(login.url.query.decode())["next"] == [path]
    links = re.findall(r'href="([^"]+)"', page.text)
    assert len(links) == 4
    assert all(link.startswith("/team/a/d") for link in links)


def _facts(page: str) -> dict[str, str]:
    """Return the lines of a job's page by their labels."""
    found = re.findall(r"<dt>([^<]*)</dt>\s*<dd>(?:<a [^>]*>)?([^<]*)", page)
    return {label: text for label, text in found}


def _without_addresses(page: str) -> str:
    """Return the page without what differs in any two: the nonce, and its own address."""
    return re.sub(r'(nonce|href)="[^"]*"', "", page)
