"""The effects of a job's SQL, its environment, and its outcome in the job's row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.core.jobs.job import Job
from tests.databases import Database
from tests.integration.jobs.client import EFFECT, GATE, SLEEP, Client, effects, gated, held, until
from tests.integration.jobs.conftest import MakeClient, MakeRole
from tests.odd import always

SECRET = "do-not-show-me"


def _failed(job: Job, sqlstate: str, client: Client) -> RemoteError:
    assert job.state == "failed"
    error = job.error(client.target.conn_id)
    assert error is not None
    assert error.sqlstate == sqlstate
    return error


# -- command tags


@pytest.mark.parametrize(
    ("sql", "tag"),
    [
        ("INSERT INTO t SELECT generate_series(4, 8)", "INSERT 0 5"),
        ("UPDATE t SET a = a", "UPDATE 3"),
        ("DELETE FROM t WHERE a > 1", "DELETE 2"),
        ("MERGE INTO t USING t AS s ON s.a = t.a WHEN MATCHED THEN DELETE", "MERGE 3"),
        ("SELECT * FROM t", "SELECT 3"),
        ("SELECT FROM t WHERE a = 9", "SELECT 0"),
        ("VALUES (1), (2)", "SELECT 2"),
        ("TABLE t", "SELECT 3"),
        ("(SELECT 1) UNION ALL SELECT a FROM t", "SELECT 4"),
        ("WITH x AS (SELECT 7) INSERT INTO t SELECT * FROM x", "INSERT 0 1"),
        ("WITH x AS (SELECT 7), y AS (SELECT a FROM t) SELECT * FROM y", "SELECT 3"),
        ("WITH gone AS (DELETE FROM t RETURNING a) SELECT * FROM gone", "SELECT 3"),
        ("INSERT INTO t VALUES (8), (9) RETURNING a", "INSERT 0 2"),
        ("UPDATE t SET a = 0 WHERE a = 1 RETURNING *", "UPDATE 1"),
        ("SELECT * FROM t ORDER BY a FOR UPDATE", "SELECT 3"),
        ("CREATE TABLE u (a int)", None),
        ("CREATE TABLE u AS SELECT * FROM t", None),
        ("DO $$BEGIN DELETE FROM t; END$$", None),
        ("SHOW work_mem", None),
        ("EXPLAIN ANALYZE DELETE FROM t", None),
        ("INSERT INTO t VALUES (9); UPDATE t SET a = a", "UPDATE 4"),
        ("DELETE FROM t; SELECT 1", "SELECT 1"),
        ("DELETE FROM t WHERE a = 1; CREATE TABLE u (a int)", None),
    ],
)
def test_the_command_tag_is_the_last_statements(client: Client, sql: str, tag: str | None) -> None:
    client.jobs.connection.execute("CREATE TABLE t AS SELECT generate_series(1, 3) AS a")

    job = client.run(sql)

    assert (job.state, job.command_tag) == ("succeeded", tag), job.message


def test_a_script_is_one_transaction(client: Client, source: Database) -> None:
    job = client.run(f"{EFFECT}; {EFFECT}; SELECT 1/0; {EFFECT}")

    _failed(job, "22012", client)
    assert effects(source) == 0
    assert client.run(f"{EFFECT}; {EFFECT}").state == "succeeded"
    assert effects(source) == 2


def test_the_row_says_who_sent_it_and_when(client: Client, source: Database) -> None:
    job = client.run("SELECT 1")

    assert (job.dag_id, job.task_id, job.run_id, job.map_index, job.try_number) == (
        *("dag", "task", "run", -1),
        1,
    )
    assert job.owner == source.server.role
    assert job.started_at is not None
    assert job.ended_at is not None
    assert job.sent_at <= job.started_at <= job.ended_at


# -- values


@pytest.mark.parametrize("end", ["", "; SELECT 1/0"], ids=["succeeded", "failed"])
def test_values_are_erased_at_the_end_and_the_statement_stays_as_written(
    client: Client, source: Database, end: str
) -> None:
    sql = f"INSERT INTO effect SELECT length(%s)::int; {GATE}, '100%%'{end}"
    with held(source):
        job_id = client.send(sql, [SECRET])
        assert SECRET in client.column(job_id, "bound_statement")

    client.wait(job_id)

    assert client.column(job_id, "bound_statement") is None
    assert client.jobs.statement(job_id) == sql
    assert SECRET not in str(client.column(job_id, "to_jsonb(job)::text"))


@pytest.mark.parametrize(
    ("sql", "options"),
    [
        ("INSERT INTO effect VALUES (length(%s) / 0)", {}),
        ("SELECT length(%s) / 0", {}),
        ("SELECT length(%s) / 0 AS a", {"keep_result": True}),
        ("SELECT 1; SELECT length(%s) / 0", {}),
        ("INSERT INTO effect VALUES (length(%s) / 0) RETURNING a", {}),
        ("SELECT fails(length(%s)) AS a", {}),
        ("SELECT fails(length(%s)) AS a", {"keep_result": True}),
        ("UPDATE nowhere SET a = length(%s)", {}),
    ],
)
def test_nothing_in_the_row_of_a_failed_job_has_the_values(
    client: Client, sql: str, options: dict[str, bool]
) -> None:
    client.jobs.connection.execute(
        "CREATE FUNCTION fails(a int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN a / 0; END'"
    )
    job = client.run(sql, [SECRET], **options)

    assert job.state == "failed"
    assert SECRET not in str(client.column(job.id, "to_jsonb(job)::text"))
    if "fails" in sql:
        assert job.context is not None
        assert "function fails(integer) line 1" in job.context
    # This procedure's own lines are nobody's business.
    assert "run(uuid)" not in (job.context or "")


# -- errors


def test_an_error_keeps_all_of_its_fields(client: Client) -> None:
    job = client.run(
        "DO $$BEGIN RAISE EXCEPTION 'm %%', 5 USING ERRCODE = 'UX001', DETAIL = 'd', HINT = 'h'; END$$",
        [],
    )

    error = _failed(job, "UX001", client)
    assert (error.message, error.detail, error.hint) == ("m 5", "d", "h")
    assert error.context is not None
    assert error.context.startswith("PL/pgSQL function inline_code_block line 1 at RAISE")
    assert error.context.endswith(f'while running job {job.id} on dblink connection named "source"')


def test_a_deferred_constraint_fails_the_job_and_nothing_is_applied(client: Client, source: Database) -> None:
    source.execute(
        "CREATE TABLE parent (id int PRIMARY KEY);"
        "CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
    )

    job = client.run("INSERT INTO effect VALUES (1); INSERT INTO child VALUES (5)")

    error = _failed(job, "23503", client)
    assert error.detail == 'Key (id)=(5) is not present in table "parent".'
    assert effects(source) == 0
    assert client.run("INSERT INTO child VALUES (5); INSERT INTO parent VALUES (5)").state == "succeeded"


def test_an_assertion_that_fails_is_an_error_like_others(client: Client) -> None:
    _failed(client.run("DO $$BEGIN ASSERT false, 'no'; END$$"), "P0004", client)


def test_a_statement_timeout_is_a_failure_not_a_cancellation(client: Client, source: Database) -> None:
    job = client.run(f"{EFFECT}; {SLEEP}", statement_timeout="5s")  # which counts from the call

    error = _failed(job, "57014", client)
    assert error.message == "canceling statement due to statement timeout"
    assert job.cancel_requested_at is None
    assert effects(source) == 0


def test_the_roles_own_statement_timeout_holds(client: Client, source: Database) -> None:
    client.jobs.ready()
    always(source, statement_timeout="'5s'")

    _failed(client.run(SLEEP), "57014", client)
    assert client.run("SELECT pg_sleep(6)", statement_timeout="0").state == "succeeded"


# -- settings


def test_settings_hold_for_the_job_and_for_nothing_else(client: Client) -> None:
    sql = "SELECT current_setting('work_mem') AS w, current_setting('my.own') AS o"
    job = client.run(sql, keep_result=True, settings={"work_mem": "7MB", "my.own": "it's 100% \\"})

    assert client.kept(job) == [("7MB", "it's 100% \\")]


def test_a_setting_that_is_none_fails_the_job(client: Client) -> None:
    _failed(client.run(EFFECT, settings={"work_mem": "much"}), "22023", client)


def test_session_settings_of_the_connection_hold_in_the_job(
    client: Client, source: Database, new_client: MakeClient
) -> None:
    target = replace(source.target, session_settings={"work_mem": "6MB"})
    other = new_client(target)

    job = other.run("SELECT current_setting('work_mem') AS w", keep_result=True)

    assert other.kept(job) == [("6MB",)]


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_a_job_has_the_isolation_level_of_its_role(client: Client, source: Database, level: str) -> None:
    always(source, default_transaction_isolation=f"'{level}'")

    job = client.run("SELECT current_setting('transaction_isolation') AS i", keep_result=True)

    assert source.rows(f"SELECT * FROM airflow_dblink_results.{job.result_table}") == [(level,)]  # noqa: S608
    _failed(client.run("SELECT 1/0"), "22012", client)


def test_serializable_jobs_are_no_reason_for_each_other_to_fail(client: Client, source: Database) -> None:
    client.run(EFFECT)
    source.execute("ANALYZE airflow_dblink.job")  # which is small: searching it would lock all of it
    always(source, default_transaction_isolation="'serializable'")

    for _ in range(5):
        with held(source) as sql:
            job_ids = [client.send(sql) for _ in range(10)]
            until(lambda: gated(source) == 10)
        # All have begun before, and end at one moment.
        assert [client.wait(job_id).state for job_id in job_ids] == 10 * ["succeeded"]


def test_serializable_jobs_that_do_conflict_fail_as_postgresql_says(client: Client, source: Database) -> None:
    always(source, default_transaction_isolation="'serializable'")
    sql = f"INSERT INTO effect SELECT count(*) FROM effect; {GATE}"  # noqa: S608 - the test's own
    with held(source):
        job_ids = [client.send(sql) for _ in range(2)]
        until(lambda: gated(source) == 2)

    ended = [client.wait(job_id) for job_id in job_ids]

    assert sorted(job.state for job in ended) in (["failed", "succeeded"], ["lost", "succeeded"])
    assert effects(source) == 1


# -- SQL that changes its session


def test_the_roles_search_path_is_what_the_job_sees(client: Client, source: Database) -> None:
    source.execute("CREATE SCHEMA mine")
    always(source, search_path="mine, public")

    client.run("CREATE TABLE made_by_the_job (a int)")

    assert source.rows("SELECT to_regclass('mine.made_by_the_job') IS NOT NULL") == [(True,)]


@pytest.mark.parametrize("local", ["", "LOCAL "])
@pytest.mark.parametrize("end", [EFFECT, "SELECT 1/0"], ids=["succeeds", "fails"])
def test_sql_that_changes_its_role(
    client: Client, source: Database, new_role: MakeRole, local: str, end: str
) -> None:
    user = new_role().params["user"]
    source.admin(f"GRANT {user} TO {source.server.role}")
    source.execute("GRANT INSERT ON effect TO PUBLIC")

    job = client.run(f"SET {local}ROLE {user}; {end}")

    assert job.state == ("succeeded" if end == EFFECT else "failed"), job.message
    assert job.owner == source.server.role
    assert effects(source) == (end == EFFECT)


@pytest.mark.parametrize("end", [EFFECT, "SELECT 1/0"], ids=["succeeds", "fails"])
@pytest.mark.parametrize(
    "begin",
    [
        "CREATE SCHEMA s; SET search_path = s; SET search_path = s, public",
        "SET LOCAL search_path = ''; SET LOCAL search_path = public",
        "SELECT set_config('search_path', 'public', false)",
        "SET client_min_messages = error; SET statement_timeout = '1min'",
        "SET datestyle = 'German'; SET timezone = 'Asia/Tokyo'",
        "SET CONSTRAINTS ALL DEFERRED",
        "SET enable_tidscan = off; SET enable_indexscan = off; SET enable_bitmapscan = off",
        "SET plan_cache_mode = force_generic_plan",
        "SET standard_conforming_strings = on; SET row_security = on",
        "LISTEN airflow_dblink_job; NOTIFY airflow_dblink_job, 'x'",
    ],
)
def test_sql_that_changes_settings(client: Client, source: Database, begin: str, end: str) -> None:
    job = client.run(f"{begin}; {end}")

    assert job.state == ("succeeded" if end == EFFECT else "failed"), job.message
    assert effects(source) == (end == EFFECT)


def test_sql_that_makes_its_transaction_read_only_fails(client: Client) -> None:
    _failed(client.run("SET TRANSACTION READ ONLY; SELECT 1"), "25006", client)


@pytest.mark.parametrize("sql", [f"SAVEPOINT a; {EFFECT}", f"{EFFECT}; ROLLBACK TO a", "RELEASE a"])
def test_savepoints_fail(client: Client, source: Database, sql: str) -> None:
    _failed(client.run(sql), "0A000", client)
    assert effects(source) == 0


def test_a_procedure_that_commits_fails(client: Client, source: Database) -> None:
    source.execute(f"CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$BEGIN {EFFECT}; COMMIT; END$$")

    error = _failed(client.run("CALL commits()"), "2D000", client)

    assert error.message == "invalid transaction termination"
    assert "commits() line 1 at COMMIT" in str(error)
    assert effects(source) == 0


def test_a_procedure_that_does_not_commit_is_called(client: Client, source: Database) -> None:
    source.execute(f"CREATE PROCEDURE works() LANGUAGE plpgsql AS $$BEGIN {EFFECT}; END$$")

    assert client.run("CALL works()").state == "succeeded"
    assert effects(source) == 1


def test_temporary_tables_go_with_the_session(client: Client, source: Database) -> None:
    job = client.run("CREATE TEMP TABLE scratch AS SELECT 1; INSERT INTO effect SELECT * FROM scratch")

    assert job.state == "succeeded"
    assert effects(source) == 1
    until(lambda: not source.admin("SELECT 1 FROM pg_class WHERE relname = 'scratch'"))
