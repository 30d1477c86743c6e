"""A role that owns nothing of the job schema hangs code of its own on the table, or may do so at any time."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from airflow_dblink.core.errors import InstallationError
from tests.databases import Database
from tests.integration.jobs.client import Client, dba_installs, role_of
from tests.integration.jobs.conftest import MakeClient, MakeRole
from tests.security.jobs.conftest import Attacker
from tests.security.jobs.test_strangers_schema import TRIGGER


def _as_attacker(*statements: str) -> Callable[[Attacker, Database], None]:
    def hang(attacker: Attacker, source: Database) -> None:
        source.admin(f"GRANT USAGE ON SCHEMA airflow_dblink TO {attacker.role}")
        source.admin(f"GRANT TRIGGER, REFERENCES ON airflow_dblink.job TO {attacker.role}")
        for statement in statements:
            attacker.execute(statement)
        source.admin(f"REVOKE TRIGGER, REFERENCES ON airflow_dblink.job FROM {attacker.role}")

    return hang


def _as_dba(*statements: str) -> Callable[[Attacker, Database], None]:
    def hang(attacker: Attacker, source: Database) -> None:
        for statement in statements:
            source.admin(statement.replace("ATTACKER", attacker.role))

    return hang


HUNG: dict[str, tuple[str, Callable[[Attacker, Database], None]]] = {
    "trigger": (
        r"function 'lair\.steal\(\)', which the job table of 'airflow_dblink' uses,",
        _as_attacker(TRIGGER),
    ),
    "condition": (
        "WHEN condition",
        _as_attacker(
            "CREATE TRIGGER t BEFORE UPDATE ON airflow_dblink.job FOR EACH ROW WHEN"
            " (query_to_xml('SELECT lair.steal_now(1)', true, true, '') IS NOT NULL)"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        ),
    ),
    "foreign key": (
        "table 'lair.ref', which refers to the job table of 'airflow_dblink',",
        _as_attacker("CREATE TABLE lair.ref (a uuid REFERENCES airflow_dblink.job ON DELETE CASCADE)"),
    ),
    "right to trigger": ("TRIGGER", _as_dba("GRANT TRIGGER ON airflow_dblink.job TO ATTACKER")),
    "everybody's right": (
        "'PUBLIC' has the right",
        _as_dba("GRANT ALL ON airflow_dblink.job TO PUBLIC"),
    ),
    "right to refer": ("REFERENCES", _as_dba("GRANT REFERENCES (id) ON airflow_dblink.job TO ATTACKER")),
    "default": (
        "lair.steal_now",
        _as_dba(
            "ALTER TABLE airflow_dblink.job ADD x boolean; ALTER TABLE airflow_dblink.job ALTER x SET"
            " DEFAULT lair.steal_now(1)"
        ),
    ),
    "check": ("lair.steal_now", _as_dba("ALTER TABLE airflow_dblink.job ADD CHECK (lair.steal_now(id))")),
    "policy": (
        "lair.steal_now",
        _as_dba("CREATE POLICY p ON airflow_dblink.job USING (lair.steal_now(id))"),
    ),
    "policy's operator": (
        "lair.===",
        _as_dba(
            "CREATE FUNCTION public.same(uuid, uuid) RETURNS boolean LANGUAGE sql RETURN true",
            "CREATE OPERATOR lair.=== (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = public.same)",
            "ALTER OPERATOR lair.=== (uuid, uuid) OWNER TO ATTACKER",
            "CREATE POLICY p ON airflow_dblink.job USING (id OPERATOR(lair.===) id)",
        ),
    ),
    "policy's view": (
        "lair.seen",
        _as_dba(
            "CREATE VIEW lair.seen AS SELECT lair.steal_now(1) AS a",
            "ALTER VIEW lair.seen OWNER TO ATTACKER",
            "CREATE POLICY p ON airflow_dblink.job USING (EXISTS (SELECT FROM lair.seen))",
        ),
    ),
    "rule": (
        "lair.steal_now",
        _as_dba("CREATE RULE r AS ON INSERT TO airflow_dblink.job DO ALSO SELECT lair.steal_now(1)"),
    ),
    "index": ("lair.pure", _as_dba("CREATE INDEX i ON airflow_dblink.job (lair.pure(id))")),
    "column's domain": (
        "lair.d",
        _as_dba(
            "CREATE DOMAIN lair.d AS int CHECK (lair.steal_now(1)); ALTER DOMAIN lair.d OWNER TO ATTACKER",
            "ALTER TABLE airflow_dblink.job ADD x lair.d",
        ),
    ),
    "child": ("inherits", _as_dba("CREATE TABLE lair.child () INHERITS (airflow_dblink.job)")),
    "function": (
        "run\\(text\\)",
        _as_dba(
            "CREATE FUNCTION airflow_dblink.run(text) RETURNS int LANGUAGE sql RETURN 1",
            "ALTER FUNCTION airflow_dblink.run(text) OWNER TO ATTACKER",
        ),
    ),
    "results": (
        "schema 'airflow_dblink_results'",
        _as_dba("ALTER SCHEMA airflow_dblink_results OWNER TO ATTACKER"),
    ),
    "schema": ("schema 'airflow_dblink' belongs", _as_dba("ALTER SCHEMA airflow_dblink OWNER TO ATTACKER")),
    "table": ("relation 'job'", _as_dba("ALTER TABLE airflow_dblink.job OWNER TO ATTACKER")),
    "procedure": ("run\\(uuid\\)", _as_dba("ALTER PROCEDURE airflow_dblink.run OWNER TO ATTACKER")),
    "view": (
        "no table",
        _as_dba("DROP TABLE airflow_dblink.job; CREATE VIEW airflow_dblink.job AS SELECT 1 AS id"),
    ),
}


@pytest.mark.parametrize("what", HUNG)
def test_whatever_may_run_a_strangers_code_is_refused(
    source: Database, attacker: Attacker, new_client: MakeClient, new_role: MakeRole, what: str
) -> None:
    names, hang = HUNG[what]
    victim = new_role("victim")
    dba_installs(source, victim, results=True)
    source.admin(f"GRANT {role_of(victim)} TO {source.server.role}")
    hang(attacker, source)
    looks = new_client(victim)

    with pytest.raises(InstallationError, match=names) as refused:
        looks.jobs.find(uuid4())
    assert "could make role" in str(refused.value)
    with pytest.raises(InstallationError, match=names):
        looks.send("SELECT 1")


def test_what_trusted_roles_hang_on_it_is_fine(
    source: Database, client: Client, new_client: MakeClient, new_role: MakeRole
) -> None:
    victim = new_role("victim")
    dba_installs(source, victim, results=True)
    source.admin(
        "CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER note BEFORE UPDATE ON airflow_dblink.job FOR EACH ROW EXECUTE FUNCTION public.note();"
        "CREATE FUNCTION public.seven() RETURNS int LANGUAGE sql RETURN 7;"
        "ALTER TABLE airflow_dblink.job ADD x int DEFAULT public.seven()"
    )

    assert new_client(victim).run("SELECT 1", keep_result=True).state == "succeeded"
