"""A role that may keep results stops, or takes over, the jobs and results of others."""

from __future__ import annotations

import pytest
from psycopg import errors

from airflow_dblink.core.errors import InstallationError, UsageError
from airflow_dblink.core.server.target import Target
from tests.databases import Database
from tests.integration.jobs.client import EFFECT, Client, dba_installs, effects, role_of
from tests.integration.jobs.conftest import MakeClient, MakeRole
from tests.security.jobs.conftest import Attacker

SECOND = [
    "PROCEDURE airflow_dblink.run(job_id uuid, more int DEFAULT 1)",
    "PROCEDURE airflow_dblink.run(job_id text)",
    "FUNCTION airflow_dblink.run(VARIADIC job_ids uuid[])",
]


@pytest.fixture
def victim(client: Client, source: Database, attacker: Attacker, new_role: MakeRole) -> Target:
    target = new_role("victim")
    dba_installs(source, target, attacker.target, results=True)
    source.admin(f"GRANT SELECT ON secret TO {role_of(target)} WITH GRANT OPTION")
    return target


def _create(what: str) -> str:
    returns = "RETURNS int" if what.startswith("FUNCTION") else ""
    return f"CREATE {what} {returns} LANGUAGE sql AS 'SELECT 1'"


@pytest.mark.parametrize("second", SECOND)
def test_no_second_procedure_can_be_made(
    client: Client, source: Database, attacker: Attacker, victim: Target, new_client: MakeClient, second: str
) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        attacker.execute(_create(second))

    assert new_client(victim).run(EFFECT).state == "succeeded"


@pytest.mark.parametrize("second", SECOND)
def test_one_that_is_there_is_refused_by_its_name(
    client: Client, source: Database, attacker: Attacker, victim: Target, new_client: MakeClient, second: str
) -> None:
    source.admin(f"GRANT CREATE ON SCHEMA airflow_dblink TO {attacker.role}")
    attacker.execute(_create(second))

    with pytest.raises(InstallationError, match=r"function 'airflow_dblink\.run\(.*belongs to role"):
        new_client(victim).send(EFFECT)
    assert effects(source) == 0


@pytest.mark.parametrize("kind", ["VIEW", "TABLE"])
def test_what_takes_the_name_of_a_dropped_result_is_not_read(
    client: Client, source: Database, attacker: Attacker, victim: Target, new_client: MakeClient, kind: str
) -> None:
    """Everybody hears the ids of jobs, by LISTEN."""
    reader = new_client(victim)
    job = reader.run("SELECT 1 AS a", keep_result=True)
    reader.jobs.connection.execute(f"DROP TABLE airflow_dblink_results.{job.result_table}".encode())
    attacker.execute(
        f"CREATE {kind} airflow_dblink_results.{job.result_table} AS SELECT lair.steal_now(1) AS a"
    )
    name = f"airflow_dblink_results.{job.result_table}"
    if kind == "TABLE":
        attacker.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
        attacker.execute(f"CREATE POLICY p ON {name} USING (lair.steal_now(1))")
    attacker.execute(f"GRANT ALL ON {name} TO PUBLIC")

    with pytest.raises(UsageError, match="does not hold the result"):
        reader.kept(job)
    assert reader.jobs.get(job.id).result_schema is None
    assert not attacker.has_stolen


def test_a_result_cannot_be_replaced_while_it_is_read(
    client: Client, source: Database, victim: Target, new_client: MakeClient
) -> None:
    reader = new_client(victim)
    job = reader.run("SELECT 1 AS a", keep_result=True)
    with reader.jobs.connection.transaction():
        query = reader.jobs.locked_result(job)
        with pytest.raises(errors.LockNotAvailable):
            source.admin(f"SET lock_timeout = '50ms'; DROP TABLE airflow_dblink_results.{job.result_table}")
        assert reader.jobs.connection.execute(query).fetchall() == [(1,)]


def test_a_schema_of_that_name_that_is_somebodys_is_not_used(
    client: Client, source: Database, attacker: Attacker, new_client: MakeClient
) -> None:
    source.admin(f"CREATE SCHEMA airflow_dblink_results AUTHORIZATION {attacker.role}")

    with pytest.raises(InstallationError, match="schema 'airflow_dblink_results' belongs to role"):
        client.send(EFFECT)
    assert source.rows("SELECT 1 FROM pg_namespace WHERE nspname = 'airflow_dblink'") == []
