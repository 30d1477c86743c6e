"""The commands of ``airflow dblink``, through Airflow's own parser, against a server."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any
from uuid import UUID, uuid4

import pytest
from airflow.utils import yaml

from airflow_dblink.core.jobs.draft import draft
from airflow_dblink.core.jobs.install import VERSION
from airflow_dblink.core.jobs.job import SCHEMA, Job
from airflow_dblink.core.jobs.send import Submission
from airflow_dblink.core.jobs.trust import results_schema
from airflow_dblink.core.server.login import connect
from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.conftest import Run
from tests.stores import MemoryStore

WRONG_PASSWORD = "not-the-password-4711"
NO_JOB = "00000000-0000-0000-0000-000000000000"

Send = Callable[..., str]


@pytest.fixture
def send(source: Database) -> Send:
    """Return a function that sends a job to ``source`` and returns its id."""

    def send(
        statement: str,
        params: list[Any] | None = None,
        *,
        dag_id: str = "shop",
        to_end: bool = True,
        keep_result: bool = False,
    ) -> str:
        submission = Submission(
            "source",
            SCHEMA,
            lambda: connect(source.target, direct=True),
            MemoryStore(),
            {"dag_id": dag_id, "task_id": "load", "run_id": "manual__1", "map_index": -1, "try_number": 1},
        )
        sent = submission.submit(
            lambda connection: draft(connection, "source", statement, params, keep_result=keep_result)
        )
        assert sent.call is not None
        if to_end:
            assert sent.call.wait(20)
        sent.call.leave()
        return str(sent.job_id)

    return send


@pytest.fixture
def other(source: Database, add_connection: AddConnection) -> Iterator[str]:
    """Give a role that may only connect to ``source``, and set its Airflow connection ``other``."""
    role = f"other_{uuid4().hex[:8]}"
    source.admin(f"CREATE ROLE {role} LOGIN PASSWORD 'others'")
    add_connection("other", source, login=role, password="others")
    yield role
    source.admin(f"DROP OWNED BY {role}")
    source.admin(f"DROP ROLE {role}")


def _states(source: Database) -> list[str]:
    return [state for (state,) in source.rows("SELECT state FROM airflow_dblink.job ORDER BY sent_at")]


# -- sql, install


def test_install_says_what_is_there_and_may_be_repeated(source: Database, run: Run, send: Send) -> None:
    expected = f"Version {VERSION} is there: schema 'airflow_dblink' in database {source.name!r}.\n"

    assert run("install", "source") == expected
    send("SELECT 1")
    assert run("install", "source") == expected
    assert _states(source) == ["succeeded"]


def test_install_takes_the_connections_schema(
    source: Database, add_connection: AddConnection, run: Run
) -> None:
    add_connection("elsewhere", source, extra={"job_schema": "My jobs"})

    assert "schema 'My jobs'" in run("install", "elsewhere")
    assert run("list-jobs", "elsewhere", "-o", "json") == "[]\n"
    source.execute(run("sql", "elsewhere", "--drop"))
    assert source.rows("SELECT nspname FROM pg_namespace WHERE nspname = 'My jobs'") == []


def test_install_does_not_make_a_newer_version_old(source: Database, run: Run, fails: Run) -> None:
    run("install", "source")
    source.execute(f"COMMENT ON SCHEMA {SCHEMA} IS 'airflow-dblink jobs, version 99'")

    assert run("install", "source").startswith("Version 99 is there")
    said = fails("install", "source", "--role", "some one")
    assert "is newer than this airflow-dblink" in said
    assert said.endswith("a newer airflow-dblink is printed by: airflow dblink sql source --role 'some one'")


def test_an_incomplete_installation_is_repaired(source: Database, run: Run, fails: Run) -> None:
    run("install", "source")
    source.execute(f"DROP PROCEDURE {SCHEMA}.run")

    assert "is not installed" in fails("list-jobs", "source")
    assert run("install", "source").startswith(f"Version {VERSION} is there")


def test_install_for_a_role_that_is_not_there(source: Database, fails: Run) -> None:
    assert fails("install", "source", "--role", "nobody_here") == (
        "connection 'source': role \"nobody_here\" does not exist [SQLSTATE 42704]"
    )


def test_install_grants_to_a_role(source: Database, other: str, run: Run, fails: Run, send: Send) -> None:
    assert "is not there, and this role may not create it" in fails("install", "other")
    run("install", "source")
    assert "is not granted to this role" in fails("list-jobs", "other")

    run("install", "source", "--role", other)

    assert send("SELECT 1") in run("list-jobs", "source")
    assert run("list-jobs", "other", "-o", "json") == "[]\n"  # that job isn't its own
    assert run("install", "other").startswith(f"Version {VERSION} is there")
    said = fails("install", "other", "--role", other, "--results")
    assert "is not this role's to grant" in said
    assert said.endswith(f"for a DBA to run is printed by: airflow dblink sql other --role {other} --results")
    (may_create,) = source.rows("SELECT has_schema_privilege(%s, %s, 'CREATE')", other, SCHEMA)
    assert may_create == (False,)


def test_what_sql_prints_is_what_a_dba_has_to_run(source: Database, other: str, run: Run, fails: Run) -> None:
    assert "HINT:  the SQL for a DBA to run there is printed by: airflow dblink sql other" in fails(
        "list-jobs", "other"
    )

    for _ in range(2):
        source.admin(run("sql", "other", "--results"))

    assert run("list-jobs", "other", "-o", "json") == "[]\n"
    (may_create,) = source.rows(
        "SELECT has_schema_privilege(%s, %s, 'CREATE')", other, results_schema(SCHEMA)
    )
    assert may_create == (True,)
    source.admin(run("sql", "other", "--drop"))
    assert "is not there" in fails("list-jobs", "other")


# -- list-jobs, show-job


def test_list_jobs_shows_the_newest_first(run: Run, send: Send) -> None:
    first = send("SELECT generate_series(1, 3)")
    second = send("SELECT 1/0", dag_id="stock")

    listed = json.loads(run("list-jobs", "source", "-o", "json"))

    assert [(job["id"], job["state"], job["dag_id"]) for job in listed] == [
        (second, "failed", "stock"),
        (first, "succeeded", "shop"),
    ]
    assert (listed[0]["row_count"], listed[1]["row_count"]) == (None, "3")
    assert listed[0]["ended_at"].endswith("+00:00")
    assert yaml.safe_load(run("list-jobs", "source", "-o", "yaml")) == listed


def test_list_jobs_filters(run: Run, send: Send) -> None:
    succeeded, failed = send("SELECT 1"), send("SELECT 1/0", dag_id="stock")

    def ids(*words: str) -> list[str]:
        return [job["id"] for job in json.loads(run("list-jobs", "source", "-o", "json", *words))]

    assert ids("--state", "failed") == [failed]
    assert ids("--state", "failed", "--state", "succeeded") == [failed, succeeded]
    assert ids("--state", "running") == []
    assert ids("--dag-id", "shop") == [succeeded]
    assert ids("--limit", "1") == [failed]


@pytest.mark.parametrize("output", ["table", "plain"])
def test_list_jobs_as_text(output: str, run: Run, send: Send) -> None:
    job_id = send("SELECT 1/0", dag_id="[b]shop[/]")

    listed = run("list-jobs", "source", "-o", output)

    assert job_id in listed
    assert "[b]shop[/]" in listed
    assert "None" not in listed


def test_show_job_has_all_columns(run: Run, send: Send) -> None:
    job_id = send("SELECT %s::int", [4711], keep_result=True)

    (shown,) = json.loads(run("show-job", "source", job_id, "-o", "json"))

    assert list(shown) == [field.name for field in fields(Job)]
    assert (shown["id"], shown["state"], shown["task_id"]) == (job_id, "succeeded", "load")
    assert shown["result_table"] == f"result_{UUID(job_id).hex}"
    assert shown["message"] is None


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_a_long_message_stays_whole(output: str, run: Run, send: Send) -> None:
    job_id = send("DO $$ BEGIN RAISE '%', repeat('lo\tng ', 400); END $$")

    (shown,) = yaml.safe_load(run("show-job", "source", job_id, "-o", output))  # JSON is YAML, too

    assert shown["message"] == "lo\tng " * 400


def test_show_job_shows_the_statement_only_if_asked_to(run: Run, send: Send) -> None:
    job_id = send("SELECT %s::int", [4711])

    assert "::int" not in run("show-job", "source", job_id)
    (shown,) = json.loads(run("show-job", "source", job_id, "--statement", "-o", "json"))
    assert shown["statement"] == "SELECT %s::int"


@pytest.mark.parametrize("output", ["table", "plain", "yaml"])
def test_show_job_says_why_it_failed(output: str, run: Run, send: Send) -> None:
    job_id = send("DO $$ BEGIN RAISE '[/] host=h password=4711' USING ERRCODE = '08006'; END $$")

    shown = run("show-job", "source", job_id, "-o", output)

    assert "[/] host=h password=***" in shown
    assert "08006" in shown
    assert "4711" not in shown
    assert "None" not in shown


# -- cancel-job


def test_cancel_job(run: Run, send: Send, source: Database) -> None:
    job_id = send("SELECT pg_sleep(60)", to_end=False)

    for _ in range(2):
        assert run("cancel-job", "source", job_id) == f"Job {job_id}: cancelled.\n"
    assert _states(source) == ["cancelled"]


def test_cancel_job_that_has_ended(run: Run, send: Send) -> None:
    job_id = send("SELECT 1")

    assert run("cancel-job", "source", job_id) == f"Job {job_id}: succeeded.\n"


# -- prune-jobs


def test_prune_jobs_deletes_what_is_old_enough(run: Run, send: Send, source: Database) -> None:
    send("SELECT 1", keep_result=True)
    send("SELECT 1/0")

    assert run("prune-jobs", "source", "--yes") == "Deleted 0 jobs.\n"
    source.execute(
        "UPDATE airflow_dblink.job SET ended_at = now() - interval '13 hours' WHERE state = 'succeeded'"
    )
    assert run("prune-jobs", "source", "-y", "--older-than", "0.5") == "Deleted 1 job.\n"
    assert _states(source) == ["failed"]
    assert source.rows("SELECT relname FROM pg_class WHERE relname LIKE 'result\\_%%'") == []


def test_prune_jobs_asks_before(
    run: Run, fails: Run, send: Send, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    send("SELECT 1")

    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert fails("prune-jobs", "source", "--older-than", "0") == "Cancelled"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "HINT:  --yes" in fails("prune-jobs", "source", "--older-than", "0")
    assert _states(source) == ["succeeded"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    out = run("prune-jobs", "source", "--older-than", "0")
    assert out.startswith("This will delete all jobs on 'source' that ended more than 0 days ago")
    assert out.endswith("Deleted 1 job.\n")


# -- what goes wrong


@pytest.mark.parametrize(
    "words",
    ["list-jobs source", f"show-job source {NO_JOB}", f"cancel-job source {NO_JOB}", "prune-jobs source -y"],
)
def test_without_the_schema_it_is_said_how_to_make_it(words: str, source: Database, fails: Run) -> None:
    assert fails(*words.split()) == (
        f"connection 'source': schema 'airflow_dblink' for jobs is not installed in database {source.name!r}"
        "\nHINT:  airflow dblink install source"
    )
    assert source.rows(f"SELECT FROM pg_namespace WHERE nspname = '{SCHEMA}'") == []


@pytest.mark.parametrize("command", ["show-job", "cancel-job"])
def test_a_job_that_is_not_there(command: str, source: Database, run: Run, fails: Run) -> None:
    run("install", "source")

    assert f"there is no job {NO_JOB}" in fails(command, "source", NO_JOB)
    assert fails(command, "source", "4711") == "'4711' is not a job id (a UUID)"


@pytest.mark.parametrize("command", ["install", "list-jobs"])
def test_a_connection_that_fails(
    command: str, source: Database, add_connection: AddConnection, fails: Run
) -> None:
    add_connection("wrong", source, password=WRONG_PASSWORD)

    said = fails(command, "wrong")

    line, hint = said.split("\n")
    assert "password authentication failed" in line
    assert hint.startswith("HINT:  ")
    assert WRONG_PASSWORD not in said
    assert fails(command, "nowhere").startswith("There is no Airflow connection 'nowhere',")


def test_a_shell_sees_one_line_on_stderr_and_exit_code_1(
    source: Database, add_connection: AddConnection
) -> None:
    add_connection("wrong", source, password=WRONG_PASSWORD)

    done = subprocess.run(
        [sys.executable, "-m", "airflow", "dblink", "list-jobs", "wrong"],
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["connection 'wrong'", "HINT"]
