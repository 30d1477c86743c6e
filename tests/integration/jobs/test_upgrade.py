"""From version 1, which kept results beside the job table, to this one, with jobs that run and have ended.

``install_v1.sql`` is what version 1 printed.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from airflow_dblink.core.errors import InstallationError
from airflow_dblink.core.jobs.install import VERSION, install_script
from airflow_dblink.core.jobs.job import SCHEMA
from airflow_dblink.core.jobs.trust import results_schema
from airflow_dblink.hooks.dblink import DblinkHook
from tests.databases import Database
from tests.integration.jobs.client import (
    EFFECT,
    GATE,
    Client,
    effects,
    gated,
    held,
    role_of,
    start,
    until,
)
from tests.integration.jobs.conftest import MakeClient, MakeRole

V1 = (Path(__file__).parent / "install_v1.sql").read_text()
_GRANTS = """
GRANT USAGE{create} ON SCHEMA airflow_dblink TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON airflow_dblink.job TO {role};
GRANT EXECUTE ON PROCEDURE airflow_dblink.run(uuid) TO {role};
"""


def _sent(client: Client, sql: str, *, keep_result: bool = False) -> UUID:
    """Insert a job's row as version 1 did."""
    job_id = uuid4()
    client.jobs.connection.execute(
        "INSERT INTO airflow_dblink.job (id, statement, is_query, keep_result) VALUES (%s, %s, %s, %s)",
        [job_id, sql, keep_result, keep_result],
    )
    return job_id


def _called(client: Client, job_id: UUID) -> UUID:
    """Call a job as version 1 did, and leave it running."""
    start(client.open(), client.call_text(job_id))
    return job_id


def _handle(job_id: UUID) -> dict[str, str]:
    return {"conn_id": "source", "job_id": str(job_id), "schema": SCHEMA}


@pytest.fixture
def old(client: Client, source: Database) -> Client:
    source.execute(V1)
    return client


def test_ended_jobs_and_their_results_stay(old: Client) -> None:
    done, kept = _sent(old, EFFECT), _sent(old, "SELECT 7 AS a", keep_result=True)
    for job_id in (done, kept):
        assert old.call(job_id) == "CALL"

    old.jobs.ready()

    assert old.jobs.installation().version == VERSION
    assert old.jobs.get(done).state == "succeeded"
    job = old.jobs.get(kept)
    assert (job.state, job.result_schema) == ("succeeded", "airflow_dblink")
    with DblinkHook(dblink_conn_id="source") as hook:
        assert hook.get_result(_handle(kept)) == [(7,)]
        hook.drop_result(_handle(kept))
    assert old.jobs.get(kept).result_table is None
    new = old.run("SELECT 8 AS a", keep_result=True)
    assert new.result_schema == "airflow_dblink_results"
    assert old.kept(new) == [(8,)]


def test_results_are_read_and_pruned_before_the_upgrade(old: Client, source: Database) -> None:
    """A client of this version, where a DBA hasn't upgraded yet."""
    kept = _sent(old, "SELECT 7 AS a", keep_result=True)
    old.call(kept)

    with DblinkHook(dblink_conn_id="source") as hook:
        assert hook.get_result(_handle(kept)) == [(7,)]
    source.execute("UPDATE airflow_dblink.job SET ended_at = now() - interval '1 day'")
    with DblinkHook(dblink_conn_id="source") as hook:
        assert hook.prune_jobs(timedelta(hours=1)) == 1
    assert source.rows("SELECT relname FROM pg_class WHERE relname LIKE 'result\\_%%'") == []


def test_jobs_that_run_meanwhile_end_as_they_would_have(old: Client, source: Database) -> None:
    with held(source) as sql:
        running = _called(old, _sent(old, sql))
        gate = f"SELECT a FROM (SELECT 7) AS seven (a), ({GATE}) AS gate (passed)"  # noqa: S608
        keeping = _called(old, _sent(old, gate, keep_result=True))
        until(lambda: gated(source) == 2)
        waiting = _sent(old, EFFECT)

        old.jobs.install()

        assert {old.jobs.get(job_id).state for job_id in (running, keeping)} == {"running"}
    assert old.wait(running).state == "succeeded"
    kept = old.wait(keeping)
    assert (kept.state, kept.result_schema) == ("succeeded", "airflow_dblink")
    assert old.kept(kept) == [(7,)]
    assert old.call(waiting) == "CALL"
    assert old.jobs.get(waiting).state == "succeeded"
    assert effects(source) == 2


def test_who_kept_results_does_so_elsewhere_and_may_make_nothing_beside_the_procedure(
    old: Client, source: Database, new_client: MakeClient, new_role: MakeRole
) -> None:
    keeps, sends = new_role("keeps"), new_role("sends")
    source.execute(_GRANTS.format(role=role_of(keeps), create=", CREATE"))
    source.execute(_GRANTS.format(role=role_of(sends), create=""))
    with pytest.raises(InstallationError, match="is of an old version"):
        new_client(keeps).send("SELECT 1")

    source.admin(install_script(SCHEMA))

    keeper = new_client(keeps)
    assert keeper.kept(keeper.run("SELECT 1 AS a", keep_result=True)) == [(1,)]
    assert new_client(sends).run("SELECT 1").state == "succeeded"
    with pytest.raises(InstallationError, match="does not let this role keep results"):
        new_client(sends).send("SELECT 1 AS a", keep_result=True)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        keeper.jobs.connection.execute("CREATE TABLE airflow_dblink.mine (a int)")
    assert source.rows(
        "SELECT DISTINCT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname LIKE 'airflow\\_dblink%%'"
    ) == [(source.server.role,)]


def test_an_owner_that_may_make_no_schema_is_told_that_a_dba_has_to(
    old: Client, source: Database, new_client: MakeClient, new_role: MakeRole
) -> None:
    role = new_role("owner")
    for part in ("SCHEMA airflow_dblink", "TABLE airflow_dblink.job", "PROCEDURE airflow_dblink.run"):
        source.admin(f"ALTER {part} OWNER TO {role_of(role)}")
    owner = new_client(role)
    with pytest.raises(InstallationError, match="is of an old version"):
        owner.send("SELECT 1")

    source.admin(install_script(SCHEMA))

    assert owner.run("SELECT 1 AS a", keep_result=True).state == "succeeded"
    assert owner.jobs.installation().may_upgrade


def test_a_schema_in_the_way_is_named(old: Client, source: Database) -> None:
    source.execute("CREATE SCHEMA airflow_dblink_results")

    with pytest.raises(psycopg.errors.DuplicateSchema, match="airflow_dblink_results is in the way"):
        source.admin(install_script(SCHEMA))
    assert old.jobs.installation().version == 1


@pytest.mark.parametrize("schema", ["jobs", "x" * 63, "ü" * 31, "a" * 56])
def test_names_of_schemas_for_results(schema: str) -> None:
    name = results_schema(schema)
    assert name.endswith("_results")
    assert len(name.encode()) <= 63
    assert len({results_schema(schema), results_schema(schema[:-1] + "y")}) == 2
