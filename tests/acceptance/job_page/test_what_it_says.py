"""The contents of the page of a remote job."""

from __future__ import annotations

import re

from tests.acceptance.job_page.sites import (
    TASK,
    Site,
    facts_of,
    path_of,
)

# -- the contents


def test_a_succeeded_job_is_described(site: Site) -> None:
    site.database.execute("CREATE TABLE IF NOT EXISTS item (id int PRIMARY KEY)")
    statement = "INSERT INTO item SELECT generate_series(1, %s) ON CONFLICT DO NOTHING -- <é>"

    page = site.admin.get(path_of(site.send(statement, [5])))

    assert page.status_code == 200
    assert '<span class="state succeeded">succeeded</span>' in page.text
    facts = facts_of(page.text)
    assert facts["Command"] == "INSERT 0 5"
    assert facts["Role"] == site.database.server.role
    assert facts["Connection"] == "jobs"
    assert facts["Try"] == "1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", facts["Ended"])
    assert facts["Duration"].endswith(" ms") or facts["Duration"].endswith(" s")
    assert 'href="/dags/one/runs/manual__x%2B1/tasks/load?try_number=1"' in page.text
    # The statement as the user wrote it: with the placeholder, without the value.
    assert "generate_series(1, %s) ON CONFLICT DO NOTHING -- &lt;é&gt;" in page.text
    assert "<h2>Error</h2>" not in page.text


def test_the_page_stands_on_its_own_and_is_not_kept(site: Site) -> None:
    page = site.admin.get(path_of(site.send("SELECT 1")))

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
    page = site.admin.get(path_of(job_id)).text

    assert '<span class="state failed">failed</span>' in page
    assert "[SQLSTATE 23505]" in page
    assert "duplicate key value violates unique constraint" in page
    assert "Key (mail)=(...) already exists." in page
    assert f"while running job {job_id} on dblink connection named &#34;jobs&#34;" in page
    assert "ann@example.com" not in page


def test_hint_and_context_are_there(site: Site) -> None:
    job_id = site.send("DO $$BEGIN RAISE 'bad' USING hint = 'mend it'; END$$")
    page = site.admin.get(path_of(job_id)).text

    assert "HINT:  mend it" in page
    assert "CONTEXT:  PL/pgSQL function inline_code_block" in page


def test_a_running_job_and_one_that_was_cancelled(site: Site) -> None:
    with site.running() as job_id:
        page = site.admin.get(path_of(job_id)).text
        assert '<span class="state running">running</span>' in page
        assert facts_of(page)["Duration"].endswith(" so far")
        assert facts_of(page)["Server process"].isdigit()

    page = site.admin.get(path_of(job_id)).text
    assert '<span class="state cancelled">cancelled</span>' in page
    assert "[SQLSTATE 57014]" in page
    assert "Cancel requested" in facts_of(page)


def test_the_job_that_it_replaces_is_a_link_to_its_page(site: Site) -> None:
    page = site.admin.get(path_of(site.send_again("SELECT 1/0", "SELECT 1"))).text

    (earlier,) = re.findall(r'<dt>Replaces</dt>\s*<dd><a href="([^"]+)">', page)
    assert '<span class="state succeeded">' in page
    assert '<span class="state failed">' in site.admin.get(earlier).text


def test_a_kept_result_is_named(site: Site) -> None:
    job_id = site.send("SELECT 1 AS one", keep_result=True)

    table = facts_of(site.admin.get(path_of(job_id)).text)["Result table"]

    assert site.database.rows("SELECT to_regclass(%s) IS NOT NULL", table) == [(True,)]


def test_nothing_that_others_wrote_becomes_markup(site: Site) -> None:
    hostile = '<script>alert("x")</script>'
    task = {**TASK, "dag_id": hostile.replace("/", "."), "task_id": hostile, "run_id": f"'\"><{hostile}"}
    job_id = site.send(f"DO $do$BEGIN RAISE '{hostile}' USING hint = '{hostile}'; END$do$", task=task)

    page = site.admin.get(path_of(job_id, "%3Cscript%3Ealert(%22x%22)%3C.script%3E"))

    assert page.status_code == 200
    assert "<script" not in page.text
    assert page.text.count("&lt;script&gt;") >= 6
    for path in (path_of(job_id, "<script>"), path_of(job_id, conn_id="<script>"), path_of("<script>")):
        assert "<script" not in site.admin.get(path).text


def test_a_password_in_the_statement_is_not_shown(site: Site) -> None:
    page = site.admin.get(
        path_of(site.send("CREATE ROLE nope PASSWORD 'pass-word-0815' VALID UNTIL 'x'"))
    ).text

    assert "CREATE ROLE nope PASSWORD=*** VALID UNTIL" in page
    assert "pass-word-0815" not in page
