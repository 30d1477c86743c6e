"""Installing the event schema: rights, versions, and what other roles can't do."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from airflow_dblink.core.errors import InstallationError, RemoteError
from airflow_dblink.core.events.install import install_script
from airflow_dblink.core.events.table import Events
from airflow_dblink.core.server.target import Target
from tests.databases import Database
from tests.integration.events.conftest import MakeRole, claim_as, emit, install


def _execute(target: Target, statement: str) -> None:
    with psycopg.connect(**target.params, autocommit=True) as connection:
        connection.execute(statement.encode())


def _name(target: Target) -> str:
    return str(target.params["user"])


def test_it_may_be_run_again_and_keeps_events(shop: Database) -> None:
    emit(shop, 2)

    install(shop)

    assert claim_as("a", shop.target) == [1, 2]


@pytest.mark.parametrize("schema", ["a 'b", 'c"d', "e$body$f", "x$ours$y", "h{}i", "%s", "50%", "a%(most)sb"])
def test_odd_schemas(source: Database, schema: str) -> None:
    source.execute(install_script(schema))
    identifier = psycopg.sql.Identifier(schema, "emit").as_string()

    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with psycopg.connect(source.conninfo, autocommit=True) as connection:
        connection.execute(f"SELECT {identifier}('rows')".encode())
        attach = psycopg.sql.Identifier(schema, "attach").as_string()
        connection.execute(f"SELECT {attach}('t', 'rows')".encode())
        connection.execute("INSERT INTO t VALUES (1)")
    assert len(claim_as("a", source.target, Events("rows", schema))) == 2


def test_a_newer_version_is_kept_and_serves(shop: Database) -> None:
    emit(shop)
    shop.execute("COMMENT ON SCHEMA airflow_dblink_events IS 'airflow-dblink events, version 99'")

    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="newer version"):
        install(shop)
    assert claim_as("a", shop.target) == [1]


def test_a_schema_that_is_not_ours_stays(source: Database) -> None:
    source.execute("CREATE SCHEMA airflow_dblink_events")

    with pytest.raises(psycopg.errors.DuplicateSchema, match="is not a schema for events"):
        install(source)
    with pytest.raises(InstallationError, match="is none of ours"):
        claim_as("a", source.target)


def test_a_missing_schema_is_named_with_the_command(source: Database) -> None:
    with pytest.raises(InstallationError, match="for events is not there") as raised:
        claim_as("a", source.target)

    assert "airflow dblink install-events source" in (raised.value.hint or "")


def test_each_role_may_do_its_part_alone(shop: Database, new_role: MakeRole) -> None:
    emitter, claimer, stranger = new_role("emitter"), new_role("claimer"), new_role("stranger")
    install(shop, emit=[_name(emitter)], claim=[_name(claimer)])

    _execute(emitter, "SELECT airflow_dblink_events.emit('orders', '{}')")
    for role in (emitter, stranger):
        for statement in (
            "SELECT * FROM airflow_dblink_events.event",
            "UPDATE airflow_dblink_events.event SET claimed_by = 'me'",
            "INSERT INTO airflow_dblink_events.event (topic) VALUES ('orders')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                _execute(role, statement)
        with pytest.raises(RemoteError, match="permission denied"):
            claim_as("a", role)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        _execute(stranger, "SELECT airflow_dblink_events.emit('orders')")
    for statement in (
        "SELECT airflow_dblink_events.emit('orders')",
        "UPDATE airflow_dblink_events.event SET payload = '1'",
        "UPDATE airflow_dblink_events.event SET topic = 'x'",
        "INSERT INTO airflow_dblink_events.event (topic) VALUES ('orders')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            _execute(claimer, statement)
    assert claim_as("a", _trusting(claimer, shop)) == [1]


def _trusting(target: Target, database: Database) -> Target:
    return replace(target, trusted_owners=(database.server.role,))


def test_the_database_owner_is_trusted_and_others_are_not(shop: Database, new_role: MakeRole) -> None:
    hostile = new_role("hostile")
    shop.admin(f"GRANT ALL ON SCHEMA airflow_dblink_events TO {_name(hostile)}")
    _execute(
        hostile, "CREATE FUNCTION airflow_dblink_events.emit(text) RETURNS int LANGUAGE sql AS 'SELECT 1'"
    )
    emit(shop)

    with pytest.raises(InstallationError, match=r"belongs to role 'hostile_.*could make role"):
        claim_as("a", shop.target)


def test_a_schema_that_a_stranger_made_first_is_refused_before_its_view_is_read(
    source: Database, new_role: MakeRole
) -> None:
    hostile = new_role("hostile")
    source.admin(f'GRANT CREATE ON DATABASE "{source.name}" TO {_name(hostile)}')
    _execute(
        hostile,
        """
        CREATE SCHEMA airflow_dblink_events;
        COMMENT ON SCHEMA airflow_dblink_events IS 'airflow-dblink events, version 1';
        GRANT USAGE ON SCHEMA airflow_dblink_events TO PUBLIC;
        CREATE VIEW airflow_dblink_events.event AS SELECT 1 AS id, NULL::text AS claimed_by, NULL AS topic;
        GRANT ALL ON airflow_dblink_events.event TO PUBLIC
        """,
    )

    with pytest.raises(InstallationError, match=r"belongs to role 'hostile_|is no table"):
        claim_as("a", source.target)


def test_the_capturing_function_calls_nothing_of_a_tables_owner(shop: Database, new_role: MakeRole) -> None:
    """It runs as the schema's owner, so a cast that the table's owner made would, too."""
    hostile = new_role("hostile")
    install(shop, emit=[_name(hostile)])
    shop.admin(f"GRANT CREATE ON SCHEMA public TO {_name(hostile)}")
    _execute(
        hostile,
        """
        CREATE TYPE mood AS ENUM ('a');
        CREATE TABLE seen (who name);
        GRANT ALL ON seen TO PUBLIC;
        CREATE FUNCTION as_json(mood) RETURNS json LANGUAGE plpgsql AS
            'BEGIN INSERT INTO public.seen VALUES (current_user); RETURN ''1''; END';
        CREATE FUNCTION as_text(mood) RETURNS text LANGUAGE plpgsql AS
            'BEGIN INSERT INTO public.seen VALUES (current_user); RETURN ''x''; END';
        CREATE CAST (mood AS json) WITH FUNCTION as_json(mood) AS IMPLICIT;
        CREATE CAST (mood AS text) WITH FUNCTION as_text(mood) AS IMPLICIT;
        CREATE TABLE item (id mood PRIMARY KEY);
        SELECT airflow_dblink_events.attach('item', 'items');
        INSERT INTO item VALUES ('a');
        DELETE FROM item
        """,
    )

    assert shop.rows("SELECT count(*) FROM seen") == [(0,)]
    assert shop.rows("SELECT DISTINCT payload->'key' FROM airflow_dblink_events.event") == [({"id": "a"},)]


def test_a_trigger_made_by_hand_gets_no_temporary_view_run_as_the_owner(
    shop: Database, new_role: MakeRole
) -> None:
    hostile = new_role("hostile")
    install(shop, emit=[_name(hostile)])
    shop.admin(f"GRANT CREATE ON SCHEMA public TO {_name(hostile)}")
    prepare = """
        CREATE TABLE seen (who name);
        GRANT ALL ON seen TO PUBLIC;
        CREATE FUNCTION spy() RETURNS int LANGUAGE plpgsql AS
            'BEGIN INSERT INTO public.seen VALUES (current_user); RETURN 1; END';
        CREATE TABLE item (id int);
        CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON item FOR EACH STATEMENT
            EXECUTE FUNCTION airflow_dblink_events.capture('items', 'true', 'id');
        CREATE TEMP VIEW new_rows AS SELECT public.spy() AS id;
        CREATE TEMP VIEW old_rows AS SELECT public.spy() AS id
    """
    with psycopg.connect(**hostile.params, autocommit=True) as connection:
        connection.execute(prepare.encode())
        for change in ("INSERT INTO item VALUES (1)", "UPDATE item SET id = 2", "DELETE FROM item"):
            with pytest.raises(psycopg.errors.TriggerProtocolViolated, match="was not made by attach"):
                connection.execute(change.encode())

    assert shop.rows("SELECT count(*) FROM seen") == [(0,)]


@pytest.mark.parametrize("part", ["schema", "table"])
def test_a_schema_with_a_strangers_part_is_not_adopted(
    source: Database, new_role: MakeRole, part: str
) -> None:
    hostile = new_role("hostile")
    if part == "schema":
        source.admin(f'GRANT CREATE ON DATABASE "{source.name}" TO {_name(hostile)}')
        _execute(hostile, "CREATE SCHEMA airflow_dblink_events")
        _execute(hostile, "COMMENT ON SCHEMA airflow_dblink_events IS 'airflow-dblink events, version 1'")
    else:
        source.execute("CREATE SCHEMA airflow_dblink_events")
        source.execute("COMMENT ON SCHEMA airflow_dblink_events IS 'airflow-dblink events, version 1'")
        source.admin(f"GRANT ALL ON SCHEMA airflow_dblink_events TO {_name(hostile)}")
    _execute(hostile, "CREATE TABLE airflow_dblink_events.event (id int, topic text, payload jsonb)")

    for run in (source.admin, source.execute):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="belongs to role hostile_"):
            run(install_script("airflow_dblink_events"))


def test_a_trigger_with_a_functions_name_as_its_key_calls_no_cast_of_the_tables_owner(
    shop: Database, new_role: MakeRole
) -> None:
    hostile = new_role("hostile")
    install(shop, emit=[_name(hostile)])
    shop.admin(f"GRANT CREATE ON SCHEMA public TO {_name(hostile)}")
    _execute(
        hostile,
        """
        CREATE TABLE seen (who name);
        GRANT ALL ON seen TO PUBLIC;
        CREATE TYPE evil AS ENUM ('x');
        CREATE FUNCTION as_json(evil) RETURNS json LANGUAGE plpgsql AS
            'BEGIN INSERT INTO public.seen VALUES (current_user); RETURN ''1''; END';
        CREATE CAST (evil AS json) WITH FUNCTION as_json(evil);
        CREATE TABLE item (e evil);
        CREATE TRIGGER t AFTER INSERT ON item REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
            EXECUTE FUNCTION airflow_dblink_events.capture('items', 'false', 'row_to_json')
        """,
    )

    with pytest.raises(psycopg.errors.UndefinedColumn):
        _execute(hostile, "INSERT INTO item VALUES ('x')")
    assert shop.rows("SELECT count(*) FROM seen") == [(0,)]


def test_what_a_superuser_installs_into_anothers_schema_is_that_roles(source: Database) -> None:
    source.execute("CREATE SCHEMA airflow_dblink_events")
    source.execute("COMMENT ON SCHEMA airflow_dblink_events IS 'airflow-dblink events, version 1'")
    source.admin(install_script("airflow_dblink_events"))

    owners = source.rows("""
        SELECT DISTINCT pg_get_userbyid(owner)
          FROM pg_namespace AS n, LATERAL (
               SELECT proowner FROM pg_proc WHERE pronamespace = n.oid
               UNION ALL SELECT relowner FROM pg_class WHERE relnamespace = n.oid) AS part (owner)
         WHERE n.nspname = 'airflow_dblink_events'
    """)
    assert owners == [(source.server.role,)]
    emit(source)
    assert claim_as("a", source.target) == [1]
