"""Hostile roles, hostile search paths, and names that are no plain words."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from airflow_dblink.core.errors import InstallationError, UsageError
from airflow_dblink.core.jobs.job import JobHandle
from tests.databases import Database
from tests.integration.jobs.client import EFFECT, SLEEP, Client, dba_installs, effects, role_of
from tests.integration.jobs.conftest import MakeClient, MakeRole
from tests.odd import always

A_UUID = "0b6c9f2e-5f0e-4a43-8d0c-1f0a6f1e7a55"


def test_a_schema_that_a_hostile_role_made_first_is_refused(
    client: Client, source: Database, new_client: MakeClient, new_role: MakeRole
) -> None:
    hostile, victim = new_role("hostile"), new_role("victim")
    source.admin(f"GRANT CREATE ON DATABASE {source.name} TO {role_of(hostile)}")
    hostile_client = new_client(hostile)
    hostile_client.jobs.install([role_of(victim)], results=True)
    hostile_client.jobs.connection.execute(
        b"CREATE OR REPLACE PROCEDURE airflow_dblink.run(job_id uuid) LANGUAGE plpgsql AS"
        b" 'BEGIN RAISE EXCEPTION $$trojan$$; END'"
    )

    with pytest.raises(InstallationError, match=f"belongs to role '{role_of(hostile)}'"):
        new_client(victim).send(EFFECT)


@pytest.mark.parametrize(
    "part", ["SCHEMA airflow_dblink", "TABLE airflow_dblink.job", "PROCEDURE airflow_dblink.run"]
)
def test_any_part_that_belongs_to_a_hostile_role_is_refused(
    client: Client, source: Database, new_client: MakeClient, new_role: MakeRole, part: str
) -> None:
    hostile, victim = new_role("hostile"), new_role("victim")
    dba_installs(source, victim)
    source.admin(f"ALTER {part} OWNER TO {role_of(hostile)}")

    with pytest.raises(InstallationError, match="could make role"):
        new_client(victim).send(EFFECT)


TRAPS = """
CREATE SCHEMA evil;
CREATE FUNCTION evil.trap() RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'trapped'; END$$;
DO $do$
DECLARE
    what pg_catalog.text;
    parts pg_catalog.text[];
BEGIN
    FOREACH what IN ARRAY ARRAY[
        'now()', 'clock_timestamp()', 'pg_backend_pid()', 'replace(text, text, text)', 'strpos(text, text)',
        'format(text, text)', 'format(text, text, text)', 'format(text, text, text, text)',
        'format(text, text, name, text)', 'set_config(text, text, boolean)', 'current_setting(text)',
        'rtrim(text, text)', 'regexp_replace(text, text, text)', 'pg_notify(text, text)',
        'jsonb_each_text(jsonb)', 'pg_cancel_backend(integer)', 'pg_terminate_backend(integer)',
        'obj_description(oid, name)', 'current_database()', 'pg_control_system()', 'min(text)'
    ] LOOP
        EXECUTE pg_catalog.format('CREATE FUNCTION evil.%s RETURNS boolean LANGUAGE sql AS %L',
                                  what, 'SELECT evil.trap()');
    END LOOP;
    FOREACH what IN ARRAY ARRAY[
        '= uuid uuid', '= text text', '= name name', '= integer integer', '= oid oid', '= tid tid',
        '= timestamptz timestamptz', '= bigint bigint', '|| text text', '> integer integer',
        '= name text', '< timestamptz timestamptz', '- timestamptz timestamptz'
    ] LOOP
        parts := pg_catalog.string_to_array(what, ' ');
        EXECUTE pg_catalog.format(
            'CREATE OR REPLACE FUNCTION evil.op(%s, %s) RETURNS boolean LANGUAGE sql AS %L',
            parts[2], parts[3], 'SELECT evil.trap()');
        EXECUTE pg_catalog.format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.op)',
                                  parts[1], parts[2], parts[3]);
    END LOOP;
END $do$;
CREATE TABLE evil.job (LIKE airflow_dblink.job);
CREATE TABLE public.job (LIKE airflow_dblink.job);
CREATE TABLE evil.pg_stat_activity AS SELECT * FROM pg_stat_activity LIMIT 0;
CREATE TABLE public.pg_stat_activity AS SELECT * FROM pg_stat_activity LIMIT 0;
CREATE DOMAIN evil.bigint AS bigint CHECK (evil.trap());
CREATE DOMAIN evil.int8 AS bigint CHECK (evil.trap());
CREATE DOMAIN evil.bool AS boolean CHECK (evil.trap());
CREATE DOMAIN evil.uuid AS uuid CHECK (evil.trap());
CREATE DOMAIN evil.name AS name CHECK (evil.trap());
CREATE DOMAIN evil.refcursor AS refcursor CHECK (evil.trap());
CREATE DOMAIN evil.record AS integer CHECK (evil.trap());
CREATE DOMAIN evil.text AS text CHECK (evil.trap());
GRANT USAGE ON SCHEMA evil TO PUBLIC;
GRANT SELECT ON ALL TABLES IN SCHEMA evil TO PUBLIC
"""


def test_a_search_path_full_of_traps_changes_nothing(
    client: Client, source: Database, new_client: MakeClient
) -> None:
    client.jobs.ready()
    source.admin(TRAPS)
    always(source, search_path="evil, pg_catalog, public")
    victim = new_client()
    with pytest.raises(psycopg.errors.RaiseException, match="trapped"):
        victim.open().execute("SELECT now()")  # the traps work

    victim.jobs.install()
    effect = "INSERT INTO public.effect VALUES (1)"
    done = victim.run(effect, statement_timeout="1min", settings={"work_mem": "8MB"})
    assert (done.state, done.row_count) == ("succeeded", 1)
    kept = victim.run("SELECT 1 AS a", keep_result=True)
    assert victim.kept(kept) == [(1,)]
    assert victim.run("SELECT 1").command_tag == "SELECT 1"
    assert victim.run("SELECT 1/0").sqlstate == "22012"
    sleep = "SELECT pg_catalog.pg_sleep(600)"
    assert victim.jobs.cancel(victim.send(sleep)).state == "cancelled"
    lost = victim.send(sleep)
    with psycopg.connect(source.admin_conninfo, autocommit=True) as admin:
        admin.execute("SELECT pg_catalog.pg_terminate_backend(%s, 5000)", [victim.jobs.get(lost).pid])
    assert victim.wait(lost).state == "lost"
    assert len(victim.jobs.newest()) == 6
    assert victim.jobs.statement(done.id) == effect


def test_a_search_path_with_its_own_job_table_is_what_the_jobs_sql_sees(
    client: Client, source: Database
) -> None:
    source.execute("CREATE SCHEMA other; CREATE TABLE other.effect (a int)")
    always(source, search_path="other, public")

    assert client.run(EFFECT).state == "succeeded"

    assert source.rows("SELECT count(*) FROM other.effect") == [(1,)]


# -- names


@pytest.mark.parametrize(
    "schema",
    [
        'My "Jobs" schema',
        "100% {ours} %s %(id)s",
        "it's; DROP TABLE effect; --",
        "a.b",
        "$run$ $run_$",
        "ÜBER ☃",
        "\\",
    ],
)
def test_schemas_with_odd_names(
    client: Client, source: Database, new_client: MakeClient, schema: str
) -> None:
    odd = new_client(replace(source.target, job_schema=schema), schema=schema)

    assert odd.run(EFFECT).state == "succeeded"
    kept = odd.run("SELECT %s AS a", ["x"], keep_result=True)
    assert odd.kept(kept) == [("x",)]
    odd.jobs.drop_result(kept)
    assert odd.jobs.get(kept.id).result_table is None
    assert odd.run("SELECT 1/0").sqlstate == "22012"
    assert odd.jobs.cancel(odd.send(SLEEP)).state == "cancelled"
    assert effects(source) == 1
    assert source.rows("SELECT nspname FROM pg_namespace WHERE nspname = %s", schema) == [(schema,)]


@pytest.mark.parametrize("name", ['a "b" c', "it's 100% {x}", "Ünïcode", "none"])
def test_roles_with_odd_names(
    client: Client, source: Database, new_client: MakeClient, new_role: MakeRole, name: str
) -> None:
    role = new_role(name)
    dba_installs(source, role, results=True)
    odd = new_client(role)

    done = odd.run(EFFECT)

    assert (done.state, done.owner) == ("succeeded", role_of(role))
    assert odd.run("SELECT 1 AS a", keep_result=True).state == "succeeded"


@pytest.mark.parametrize("job_id", ["1", "'; DROP TABLE effect; --", f"{A_UUID}'", "", None, 5, f"{A_UUID} "])
def test_what_is_no_uuid_is_no_job_id(job_id: object) -> None:
    for value in ({"conn_id": "source", "job_id": job_id}, f'{{"conn_id": "source", "job_id": "{job_id}"}}'):
        with pytest.raises(UsageError):
            JobHandle.read(value)
    with pytest.raises(UsageError):
        JobHandle.read(job_id, "source")
