"""Who may see the page of a remote job, on a real Airflow that asks for a login."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest

from tests.acceptance.job_page.sites import (
    LINK,
    SHOWN,
    TASK,
    Site,
    path_of,
    without_addresses,
)

# A schema that only looks like ours: whoever looks for a job there runs its owner's code.
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


# -- who may see it


def test_a_browser_that_is_not_logged_in_is_led_to_the_login_and_back(site: Site) -> None:
    path = path_of(site.send("SELECT 1")) + "?schema=airflow_dblink"

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
    path = path_of(site.send("SELECT 1"))
    token = site.admin.cookies["_token"]

    refused = site.stranger.get(path, headers={"Accept": "*/*"})
    answered = site.stranger.get(path, headers={"Accept": "*/*", "Authorization": f"Bearer {token}"})

    assert refused.status_code == 401
    assert SHOWN not in refused.text
    assert "/api/v2/auth/login?next=%2Fdblink%2F" in refused.text
    assert answered.status_code == 200


@pytest.mark.parametrize("how", [{"Cookie": "_token={}"}, {"Authorization": "Bearer {}"}])
def test_a_forged_token_is_refused(site: Site, how: dict[str, str]) -> None:
    path = path_of(site.send("SELECT 1"))
    head, body, signature = site.admin.cookies["_token"].split(".")
    forged = ".".join((head, body, signature[::-1]))

    answer = site.stranger.get(path, headers={name: value.format(forged) for name, value in how.items()})

    assert answer.status_code == 403
    assert SHOWN not in answer.text


def test_a_user_who_may_not_read_the_dag_gets_403_for_whatever_he_asks(site: Site) -> None:
    job_id = site.send("SELECT 1")

    pages = [
        site.nobody.get(path)
        for path in (
            path_of(job_id),
            path_of(uuid4()),
            path_of(job_id, "other"),
            path_of(job_id, conn_id="closed"),
        )
    ]

    assert {page.status_code for page in pages} == {403}
    assert len({without_addresses(page.text) for page in pages}) == 1
    assert "You may not read the task logs of this Dag." in pages[0].text


def test_a_viewer_sees_the_page(site: Site) -> None:
    page = site.viewer.get(path_of(site.send("SELECT 1")))

    assert page.status_code == 200
    assert SHOWN in page.text


def test_who_reads_the_dag_sees_the_jobs_of_its_connections(site: Site) -> None:
    path = path_of(site.send("SELECT 1"))

    for user in (site.viewer, site.user, site.op, site.admin):
        assert SHOWN in user.get(path).text


def test_no_reader_of_a_dag_makes_airflow_log_in_to_what_the_dag_does_not_use(site: Site) -> None:
    path = path_of(uuid4(), conn_id="apart")
    forged = {"key": "forged", "value": f"{site.airflow.url}{path}", "map_index": -1}
    run_id = site.airflow.trigger("linked")
    assert site.airflow.wait("linked", run_id, timeout_s=240) == "success"
    xcoms = f"/api/v2/dags/linked/dagRuns/{run_id}/taskInstances/send/xcomEntries"
    site.user.post(xcoms, json=forged).raise_for_status()

    for user in (site.viewer, site.user):
        pages = [user.get(path), user.get(path.replace("/one/", "/linked/")), user.get(path_of(uuid4()))]
        assert [page.status_code for page in pages] == [404, 404, 404]
        assert len({without_addresses(page.text) for page in pages}) == 1
    assert site.apart.most_at_once == 0

    for user in (site.op, site.admin):
        assert user.get(path).status_code == 503
    assert site.apart.most_at_once == 1


def test_a_connection_that_a_template_names_is_the_dags_once_it_ran(site: Site) -> None:
    run_id = site.airflow.trigger("templated")
    assert site.airflow.wait("templated", run_id, timeout_s=240) == "success"
    path = urlsplit(site.airflow.xcom("templated", run_id, "send", key=LINK)).path

    assert "/same_jobs/" in path
    assert site.viewer.get(path).status_code == 200
    assert site.viewer.get(path.replace("/templated/", "/one/")).status_code == 404


def test_the_apps_own_documentation_is_not_there(site: Site) -> None:
    for path in ("/dblink/docs", "/dblink/redoc", "/dblink/openapi.json", "/dblink/", "/dblink/jobs"):
        assert site.admin.get(path).status_code == 404


# -- answers that must be the same


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

    page = site.viewer.get(path_of(job_id or mine, dag_id, conn_id))
    missing = site.viewer.get(path_of(uuid4()))

    assert page.status_code == missing.status_code == 404
    assert without_addresses(page.text) == without_addresses(missing.text)
    assert "No such job" in page.text


@pytest.mark.parametrize("schema", ["nowhere", "", "%00", "public", "a%22.job;--", "x" * 100])
def test_neither_is_a_schema_without_jobs(site: Site, schema: str) -> None:
    page = site.viewer.get(f"{path_of(site.send('SELECT 1'))}?schema={schema}")

    assert page.status_code == 404


@pytest.mark.parametrize("task", [{}, {**TASK, "dag_id": "~"}])
def test_a_job_of_no_dag_has_no_page(site: Site, task: dict[str, Any]) -> None:
    job_id = site.send("SELECT 1", task=task)

    for dag_id in ("one", "None", "~"):
        assert site.admin.get(path_of(job_id, dag_id)).status_code == 404


def test_a_schema_of_a_role_that_is_not_trusted_is_not_looked_into(site: Site) -> None:
    job_id = site.send("SELECT 1")
    site.database.execute("CREATE TABLE public.sprung (role text)")
    role = f"trapper_{uuid4().hex[:8]}"
    try:
        site.database.admin(TRAP.format(role=role))
        # To show that the trap works.
        site.database.rows("SELECT FROM trap.job")
        assert site.database.execute("DELETE FROM public.sprung") != "DELETE 0"

        page = site.admin.get(f"{path_of(job_id)}?schema=trap")

        assert page.status_code == 502
        assert role in page.text
        assert site.database.rows("SELECT * FROM public.sprung") == []
    finally:
        site.database.admin(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
