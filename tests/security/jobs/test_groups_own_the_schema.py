"""A group owns the job schema: each of its members could change it, and run code as the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_dblink.core.errors import InstallationError, UsageError
from airflow_dblink.core.server.target import Target, target_from_extra
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.jobs.client import Client, dba_installs, role_of
from tests.integration.jobs.conftest import MakeClient, MakeRole
from tests.versions import needs_version

_PARTS = ("SCHEMA airflow_dblink", "SCHEMA airflow_dblink_results", "TABLE airflow_dblink.job")
_PROCEDURE = "PROCEDURE airflow_dblink.run"


@pytest.fixture
def victim(client: Client, source: Database, new_role: MakeRole) -> Target:
    target = new_role("victim")
    dba_installs(source, target, results=True)
    return target


def _give(source: Database, owner: Target) -> None:
    for part in (*_PARTS, _PROCEDURE):
        source.admin(f"ALTER {part} OWNER TO {role_of(owner)}")


@pytest.fixture
def group(source: Database, victim: Target, new_role: MakeRole) -> Target:
    made = new_role("group_")
    source.admin(f"GRANT {role_of(made)} TO {role_of(victim)}")
    _give(source, made)
    return made


def test_a_group_is_not_trusted_by_its_members(victim: Target, group: Target, new_client: MakeClient) -> None:
    with pytest.raises(InstallationError, match=f"belongs to role '{role_of(group)}'") as refused:
        new_client(victim).send("SELECT 1")

    assert "trusted_owners" in str(refused.value)


def test_a_member_could_run_code_as_another(
    client: Client,
    source: Database,
    victim: Target,
    group: Target,
    new_client: MakeClient,
    new_role: MakeRole,
) -> None:
    member = new_role("member")
    source.admin(f"GRANT {role_of(group)} TO {role_of(member)}")
    source.admin("CREATE TABLE stolen (who name); GRANT INSERT ON stolen TO PUBLIC")
    changed = "INSERT INTO public.stolen VALUES (CURRENT_USER)"
    new_client(member).jobs.connection.execute(
        f"CREATE OR REPLACE PROCEDURE airflow_dblink.run(job_id uuid) LANGUAGE sql AS '{changed}'".encode()
    )

    with pytest.raises(InstallationError):
        new_client(victim).send("SELECT 1")

    assert source.admin("SELECT who FROM stolen") == []


def test_a_group_is_trusted_where_the_connection_says_so(
    source: Database, victim: Target, group: Target, new_client: MakeClient, add_connection: AddConnection
) -> None:
    trusting = new_client(replace(victim, trusted_owners=(role_of(group),)))
    assert trusting.run("SELECT 1 AS a", keep_result=True).state == "succeeded"

    login = {"login": role_of(victim), "password": victim.params["password"]}
    for conn_id, extra in (("trusts", {"trusted_owners": f"dba, {role_of(group)}"}), ("doubts", {})):
        add_connection(conn_id, source, conn_type="dblink", extra=extra, **login)
    with DblinkHook(dblink_conn_id="trusts") as hook:
        assert hook.wait_for_job(hook.send_job("SELECT 1")).state == "succeeded"
    with DblinkHook(dblink_conn_id="doubts", trusted_owners=[role_of(group)]) as hook:
        assert hook.wait_for_job(hook.send_job("SELECT 1")).state == "succeeded"
    with DblinkHook(dblink_conn_id="doubts") as hook, pytest.raises(InstallationError):
        hook.send_job("SELECT 1")


def test_another_members_own_part_is_not_trusted_with_the_group(
    source: Database, victim: Target, group: Target, new_client: MakeClient, new_role: MakeRole
) -> None:
    member = new_role("member")
    source.admin(f"GRANT {role_of(group)} TO {role_of(member)}")
    source.admin(f"ALTER {_PROCEDURE} OWNER TO {role_of(member)}")

    with pytest.raises(InstallationError, match=f"belongs to role '{role_of(member)}'"):
        new_client(replace(victim, trusted_owners=(role_of(group),))).send("SELECT 1")


def test_a_member_of_ours_is_trusted(
    source: Database, victim: Target, new_client: MakeClient, new_role: MakeRole
) -> None:
    """It can act as this role anyway."""
    member = new_role("member")
    source.admin(f"GRANT {role_of(victim)} TO {role_of(member)}")
    _give(source, member)

    assert new_client(victim).run("SELECT 1").state == "succeeded"


@pytest.mark.parametrize(
    ("options", "is_trusted"),
    [
        ("INHERIT FALSE, SET TRUE", True),
        ("INHERIT TRUE, SET FALSE", True),
        ("INHERIT FALSE, SET FALSE", False),
        ("INHERIT FALSE, SET FALSE, ADMIN TRUE", False),
    ],
)
def test_a_member_in_name_only_is_not(
    source: Database,
    victim: Target,
    new_client: MakeClient,
    new_role: MakeRole,
    options: str,
    is_trusted: bool,
) -> None:
    needs_version(source, 16, "before it each member may act as the role")
    member = new_role("member")
    source.admin(f"GRANT {role_of(victim)} TO {role_of(member)} WITH {options}")
    _give(source, member)

    looks = new_client(victim)
    if is_trusted:
        assert looks.run("SELECT 1").state == "succeeded"
    else:
        with pytest.raises(InstallationError, match=f"belongs to role '{role_of(member)}'"):
            looks.send("SELECT 1")


def test_the_databases_owner_is_trusted_by_either_name(
    source: Database, victim: Target, new_client: MakeClient
) -> None:
    for owner in (source.server.role, "pg_database_owner"):
        for part in (*_PARTS, _PROCEDURE):
            source.admin(f"ALTER {part} OWNER TO {owner}")
        assert new_client(victim).run("SELECT 1").state == "succeeded"


@pytest.mark.parametrize("role", ["pg_read_all_data", "pg_monitor"])
def test_a_predefined_role_is_a_group_like_others(
    source: Database, victim: Target, new_client: MakeClient, role: str
) -> None:
    source.admin(f"GRANT {role} TO {role_of(victim)}")
    source.admin(f"ALTER {_PROCEDURE} OWNER TO {role}")

    with pytest.raises(InstallationError, match=f"belongs to role '{role}'"):
        new_client(victim).send("SELECT 1")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, ()),
        ("", ()),
        ("dba", ("dba",)),
        (" dba , etl owners ", ("dba", "etl owners")),
        (["a,b"], ("a,b",)),
        ('["a,b", "c"]', ("a,b", "c")),
    ],
)
def test_the_field_of_the_connection(value: object, names: tuple[str, ...]) -> None:
    assert target_from_extra("c", {}, {"trusted_owners": value}).trusted_owners == names


@pytest.mark.parametrize("value", [5, "a,,b", '["a"', [""], [5], {"a": 1}, ["x" * 64], "a\0"])
def test_a_wrong_value_of_the_field(value: object) -> None:
    with pytest.raises(UsageError, match="field 'trusted_owners' of the connection"):
        target_from_extra("c", {}, {"trusted_owners": value})
