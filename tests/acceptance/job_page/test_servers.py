"""The page of a job on a server that doesn't answer, or that isn't trusted."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg

from tests.acceptance.job_page.sites import (
    SECRET,
    Site,
    path_of,
)
from tests.oracle import wait_until

# -- a server that can't be asked


def test_a_server_that_is_away_is_said_so_and_why_to_those_who_may_know(site: Site) -> None:
    admin, viewer = (user.get(path_of(uuid4(), conn_id="closed")) for user in (site.admin, site.viewer))

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
    admin, viewer = (user.get(path_of(uuid4(), conn_id="web")) for user in (site.admin, site.viewer))

    assert admin.status_code == viewer.status_code == 502
    assert "type &#39;http&#39;" in admin.text
    assert "http" not in viewer.text
    assert SECRET not in admin.text + viewer.text


def test_a_server_that_does_not_answer_holds_nobody_for_long(site: Site) -> None:
    job_id = site.send("SELECT 1")
    with psycopg.connect(site.database.conninfo) as other:
        other.execute("LOCK TABLE airflow_dblink.job")

        begun = time.monotonic()
        page = site.admin.get(path_of(job_id))

        assert page.status_code == 503
        assert "no answer within 5 s" in page.text
        assert time.monotonic() - begun < 30  # the lock would hold it for ever

        def others() -> list[tuple[object, ...]]:
            return [row for row in site.database.sessions() if row[0] != other.info.backend_pid]

        wait_until(lambda: [row for row in others() if row[2] == "active"] == [])


def test_a_silent_server_leaves_airflows_api_free(site: Site) -> None:
    path = path_of(uuid4(), conn_id="silent")
    with ThreadPoolExecutor(50) as threads:
        asked = [threads.submit(site.viewer.get, path, timeout=120) for _ in range(50)]
        site.silent.wait_until(lambda: site.silent.at_once > 0)

        assert site.admin.get("/api/v2/dags").status_code == 200

        pages = [page.result() for page in asked]
    assert {page.status_code for page in pages} == {503}
    assert site.silent.most_at_once <= 4
    busy = [page for page in pages if page.headers["content-type"].startswith("text/plain")]
    assert len(busy) >= 1
    assert busy[0].headers["retry-after"] == "5"
    assert "Try again" in busy[0].text
    site.silent.wait_until(lambda: site.silent.at_once == 0)
    assert site.viewer.get(path_of(site.send("SELECT 1"))).status_code == 200  # all places are free again


def test_an_answer_that_never_ends_costs_little_memory(site: Site) -> None:
    site.admin.get(path_of(site.send("SELECT 1")))
    before = _peak_mb(site)

    for _ in range(3):  # who floods is a thread of this process: it may stand still
        page = site.admin.get(path_of(uuid4(), conn_id="flood"))
        if "no answer within" not in page.text:
            break

    assert page.status_code == 503
    assert "sent more than 16777216 bytes" in page.text
    assert _peak_mb(site) - before < 100
    site.flooding.wait_until(lambda: site.flooding.at_once == 0)


def test_a_job_that_is_lost_is_said_so_and_nothing_is_changed(site: Site) -> None:
    job_id = site.send("SELECT 1")
    site.database.execute(
        "UPDATE airflow_dblink.job SET state = 'running', ended_at = NULL, pid = 0 WHERE id = %s", job_id
    )

    page = site.admin.get(path_of(job_id))

    assert '<span class="state lost">lost</span>' in page.text
    assert site.database.rows("SELECT state FROM airflow_dblink.job WHERE id = %s", job_id) == [("running",)]


def test_looking_writes_nothing(site: Site) -> None:
    job_id = site.send("SELECT 1")
    site.database.execute("CREATE TABLE seen (at timestamptz)")
    site.database.execute(
        "CREATE FUNCTION see() RETURNS boolean LANGUAGE plpgsql AS"
        " $$BEGIN INSERT INTO public.seen VALUES (now()); RETURN true; END$$"
    )
    site.database.execute(
        "ALTER TABLE airflow_dblink.job ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY seeing ON airflow_dblink.job USING (public.see())"
    )
    try:
        page = site.admin.get(path_of(job_id))

        assert "cannot execute INSERT in a read-only transaction" in page.text
        assert site.database.rows("SELECT * FROM seen") == []
    finally:
        site.database.execute(
            "DROP POLICY seeing ON airflow_dblink.job;"
            "ALTER TABLE airflow_dblink.job DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;"
            "DROP FUNCTION see(); DROP TABLE seen"
        )


def _peak_mb(site: Site) -> int:
    """Return the largest memory that a process of the api-server has had."""
    peaks = []
    for process in site.airflow.component_processes("api-server"):
        status = Path(f"/proc/{process.pid}/status").read_text()
        peaks.append(int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024)
    return max(peaks)
