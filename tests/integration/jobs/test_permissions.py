"""Whose jobs they are, who may send them, and who is kept out."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from airflow_dblink.core.errors import InstallationError, RemoteError, UsageError
from airflow_dblink.core.jobs.install import VERSION, install_script
from airflow_dblink.core.jobs.job import SCHEMA
from tests.databases import Database, new_database
from tests.integration.jobs.client import EFFECT, SLEEP, Client, dba_installs, effects, role_of
from tests.integration.jobs.conftest import MakeClient, MakeRole
from tests.odd import always
from tests.stores import MemoryStore

# -- installing


def test_the_first_job_installs_what_it_needs(client: Client, source: Database) -> None:
    assert client.run(EFFECT).state == "succeeded"

    assert source.rows("SELECT obj_description('airflow_dblink'::regnamespace)") == [
        (f"airflow-dblink jobs, version {VERSION}",)
    ]


def test_a_role_that_may_not_install_is_told_what_a_dba_has_to_do(
    client: Client, new_client: MakeClient, new_role: MakeRole
) -> None:
    other, store = new_client(new_role()), MemoryStore()

    with pytest.raises(InstallationError, match="may not create it") as caught:
        other.send(EFFECT, store=store)

    assert "airflow dblink sql source" in str(caught.value)
    assert store.history == []


def test_a_role_that_owns_nothing_sends_jobs_once_a_dba_hasdba_installs(
    client: Client, source: Database, new_client: MakeClient, new_role: MakeRole
) -> None:
    role = new_role()
    dba_installs(source, role)
    other = new_client(role)

    assert other.run(EFFECT).state == "succeeded"
    failed = other.run("SELECT 1/0")
    assert (failed.state, failed.owner, failed.sqlstate) == ("failed", role_of(role), "22012")
    assert other.jobs.cancel(other.send(SLEEP)).state == "cancelled"
    lost = other.send(SLEEP)
    source.admin("SELECT pg_terminate_backend(%s, 5000)", other.jobs.get(lost).pid)
    assert other.wait(lost).state == "lost"
    assert len(other.jobs.newest()) == 4
    assert effects(source) == 1


def test_keeping_results_is_granted_apart(
    client: Client, source: Database, new_client: MakeClient, new_role: MakeRole
) -> None:
    role, store = new_role(), MemoryStore()
    dba_installs(source, role)
    other = new_client(role)
    with pytest.raises(InstallationError, match="does not let this role keep") as caught:
        other.send("SELECT 1 AS a", keep_result=True, store=store)
    assert "--results" in str(caught.value)
    assert store.history == []
    assert other.jobs.newest() == []

    dba_installs(source, role, results=True)

    kept = other.run("SELECT 1 AS a", keep_result=True)
    assert other.kept(kept) == [(1,)]


def test_a_role_that_nobody_granted_anything(
    client: Client, source: Database, new_client: MakeClient, new_role: MakeRole
) -> None:
    dba_installs(source)

    with pytest.raises(InstallationError, match="is not granted to this role"):
        new_client(new_role()).send(EFFECT)


def test_installing_at_the_same_moment(
    client: Client, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def patient(*args: Any, **kwargs: Any) -> str:
        return install_script(*args, **kwargs).replace("lock_timeout = '10s'", "lock_timeout = '60s'")

    monkeypatch.setattr("airflow_dblink.core.jobs.client.install_script", patient)
    barrier = threading.Barrier(6, timeout=60)
    ready: list[int | None] = []

    def install() -> None:
        with closing(Client(source.target)) as another:
            another.jobs.installation()
            barrier.wait()
            ready.append(another.jobs.ready().version)

    threads = [threading.Thread(target=install) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ready == 6 * [VERSION]


def test_an_old_version_is_upgraded_by_its_owner_and_by_nobody_else(
    client: Client, source: Database, new_client: MakeClient, new_role: MakeRole
) -> None:
    role = new_role()
    old = client.run(EFFECT)
    source.execute(install_script(SCHEMA, [role_of(role)]))
    source.execute("COMMENT ON SCHEMA airflow_dblink IS 'airflow-dblink jobs, version 0'")
    source.execute("GRANT INSERT ON effect TO PUBLIC")

    with pytest.raises(InstallationError, match="is of an old version"):
        new_client(role).send(EFFECT)
    assert client.run(EFFECT).state == "succeeded"

    assert client.jobs.installation().version == VERSION
    assert client.jobs.get(old.id).state == "succeeded"


def test_an_old_version_of_a_dba_is_upgraded_by_the_dba(
    client: Client, source: Database, new_client: MakeClient, new_role: MakeRole
) -> None:
    role = new_role()
    dba_installs(source, role)
    source.admin("COMMENT ON SCHEMA airflow_dblink IS 'airflow-dblink jobs, version 0'")
    other = new_client(role)
    with pytest.raises(InstallationError, match="is of an old version") as caught:
        other.send(EFFECT)
    assert "airflow dblink sql source" in str(caught.value)

    source.admin(install_script(SCHEMA))

    assert other.run(EFFECT).state == "succeeded"


def test_a_newer_version_serves_older_clients(client: Client, source: Database) -> None:
    client.jobs.ready()
    source.execute("COMMENT ON SCHEMA airflow_dblink IS 'airflow-dblink jobs, version 99'")

    assert client.run(EFFECT).state == "succeeded"


def test_what_is_not_complete_is_made_so(client: Client, source: Database) -> None:
    done = client.run(EFFECT)
    source.execute("DROP PROCEDURE airflow_dblink.run")

    assert client.run(EFFECT).state == "succeeded"
    assert client.jobs.get(done.id).state == "succeeded"


def test_databases_of_one_server_are_apart(client: Client, source: Database) -> None:
    job = client.run(EFFECT)
    with new_database(source.server, "second") as second, closing(Client(second.target)) as elsewhere:
        elsewhere.jobs.ready()
        assert elsewhere.jobs.find(job.id) is None
        assert elsewhere.jobs.installation().server != client.jobs.installation().server
        with pytest.raises(UsageError, match="no job"):
            elsewhere.jobs.cancel(job.id)
        elsewhere.close()


# -- other roles


def test_another_role_can_do_nothing_with_our_jobs(
    client: Client, source: Database, new_client: MakeClient, new_role: MakeRole
) -> None:
    mine, theirs = new_role(), new_role()
    dba_installs(source, mine, theirs, results=True)
    sender, other = new_client(mine), new_client(theirs)
    kept = sender.run("SELECT 1 AS a", keep_result=True)
    waiting, running = sender.insert(EFFECT), sender.send(SLEEP)

    assert other.jobs.newest() == []
    assert other.jobs.find(kept.id) is None
    assert other.jobs.statement(kept.id) is None
    for job_id in (waiting, running):
        with pytest.raises(UsageError, match="no job"):
            other.jobs.cancel(job_id)
    assert other.call(waiting) == "CALL"
    for statement in ("UPDATE airflow_dblink.job SET state = 'lost'", "DELETE FROM airflow_dblink.job"):
        assert other.jobs.connection.execute(statement.encode()).rowcount == 0
    for query in (
        f"SELECT * FROM airflow_dblink_results.{kept.result_table}",  # noqa: S608
        f"DROP TABLE airflow_dblink_results.{kept.result_table}",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            other.jobs.connection.execute(query.encode())
    forged = "INSERT INTO airflow_dblink.job (id, owner, statement) VALUES (%s, %s, 'SELECT 1')"
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        other.jobs.connection.execute(forged, [uuid4(), role_of(mine)])

    assert sender.jobs.get(waiting).state == "sent"
    assert sender.jobs.get(running).state == "running"
    assert sender.jobs.cancel(running).state == "cancelled"
    assert effects(source) == 0


def test_who_sees_all_jobs_does_not_run_them_with_his_own_rights(
    client: Client, source: Database, new_client: MakeClient, new_role: MakeRole
) -> None:
    role = new_role()
    source.execute("GRANT INSERT ON effect TO PUBLIC")
    client.jobs.install([role_of(role)])
    sender = new_client(replace(role, job_schema=SCHEMA))
    # A superuser owns the schema here, since sender wouldn't trust another role.
    for kind, name in (("SCHEMA", ""), ("TABLE", ".job"), ("PROCEDURE", ".run")):
        source.admin(f"ALTER {kind} airflow_dblink{name} OWNER TO postgres")
    job_id = sender.insert("INSERT INTO effect VALUES (1)", sent_s_ago=11)

    admin = new_client(replace(source.target, params={**source.params, **_superuser(source)}))
    assert admin.call(job_id) == "CALL"

    assert sender.jobs.get(job_id).state == "sent"
    assert effects(source) == 0
    assert sender.call(job_id) == "CALL"
    assert effects(source) == 1


def _superuser(source: Database) -> dict[str, str]:
    return {"user": source.server.superuser, "password": source.server.superuser_password}


# -- a role that is read-only by default


def test_a_role_that_is_read_only_by_default(
    client: Client, source: Database, new_client: MakeClient
) -> None:
    client.jobs.ready()
    always(source, default_transaction_read_only="on")
    with pytest.raises(RemoteError, match="read-only transaction"):
        new_client().send(EFFECT)

    writing = replace(source.target, session_settings={"default_transaction_read_only": "off"})

    assert new_client(writing).run(EFFECT).state == "succeeded"
    assert effects(source) == 1
