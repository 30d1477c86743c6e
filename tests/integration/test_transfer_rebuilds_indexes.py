"""A load that drops the destination's indexes and builds them after it: the table is then what it was."""

# ruff: noqa: S608 - names that the tests themselves made
from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import RemoteError, VerificationError
from tests.databases import Database
from tests.descriptions import describe
from tests.transfers import meanwhile, sleeping, transfer

SOURCE = "CREATE TABLE item (id int PRIMARY KEY, a int NOT NULL, name text, price numeric, mood text)"
SOURCE += " WITH (autovacuum_enabled = off)"
ROWS = "INSERT INTO item SELECT i, i, 'name ' || i, i, 'glad' FROM generate_series(1, 100) AS i"
TABLE = """
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TABLE item (
    id int CONSTRAINT "the ""key" PRIMARY KEY,
    a int NOT NULL CHECK (a > 0),
    name text,
    price numeric,
    mood mood,
    CONSTRAINT of_price UNIQUE (price) INCLUDE (a, name) WITH (fillfactor = 80)
);
CREATE UNIQUE INDEX lower_name ON item (lower(name) DESC NULLS LAST) WHERE a > 0;
CREATE INDEX "odd %s {} name" ON item USING hash (name);
CREATE INDEX expression ON item ((a + 1), name text_pattern_ops, mood) WITH (fillfactor = 60);
ALTER INDEX expression ALTER COLUMN 1 SET STATISTICS 444;
ALTER TABLE item CLUSTER ON of_price;
COMMENT ON INDEX lower_name IS 'it''s an index';
COMMENT ON CONSTRAINT of_price ON item IS 'a constraint';
COMMENT ON INDEX of_price IS 'its index';
"""
NAMES = {'the "key', "of_price", "lower_name", "odd %s {} name", "expression"}
ALL_STAY = set[str]()


@pytest.fixture
def both(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases with a table item: the planner thinks that the source's has a million rows."""
    source.execute(f"{SOURCE}; {ROWS}")
    source.admin("UPDATE pg_class SET reltuples = 1000000, relpages = 1 WHERE oid = 'item'::regclass")
    warehouse.execute(TABLE)
    warehouse.execute("INSERT INTO item VALUES (0, 1, 'before', 1, 'sad')")
    return source, warehouse


def oids(database: Database, table: str = "item") -> dict[str, int]:
    found = database.admin(
        "SELECT c.relname, c.oid::int8 FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
        " WHERE i.indrelid = %s::regclass",
        table,
    )
    return {name: oid for name, oid in found}


def rebuilt(database: Database, **arguments: Any) -> set[str]:
    """Load, and return which indexes were built anew; the catalogs say of the table what they said before."""
    description, before = describe(database, "item"), oids(database)
    transfer(**{"mode": "replace", **arguments})
    assert describe(database, "item") == description
    after = oids(database)
    assert after.keys() == before.keys()
    assert database.admin("SELECT count(*) FROM item") == [(100,)]
    return {name for name, oid in after.items() if before[name] != oid}


def stays(database: Database, **arguments: Any) -> type[BaseException]:
    """Load, which fails; everything is as it was. Return the kind of error."""
    description, before = describe(database, "item"), oids(database)
    rows = database.admin("TABLE item")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its kind is looked at
        transfer(**{"mode": "replace", **arguments})
    assert (describe(database, "item"), oids(database)) == (description, before)
    assert database.admin("TABLE item") == rows
    return caught.type


# -- what is built again, and what stays


def test_all_of_it_is_as_it_was(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    assert rebuilt(warehouse) == NAMES
    with pytest.raises(psycopg.errors.UniqueViolation):
        warehouse.execute("INSERT INTO item VALUES (1, 1, 'one', 1000, 'sad')")
    assert rebuilt(warehouse, verify="checksum", analyze=True) == NAMES


@pytest.mark.parametrize("path", ["public", "pg_catalog", "elsewhere, public"])
def test_whatever_the_search_path(both: tuple[Database, Database], path: str) -> None:
    _, warehouse = both
    warehouse.execute("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.note (a int)")
    settings = {"search_path": path}
    post = "CREATE TABLE public.said AS SELECT current_setting('search_path') AS path"
    tables = {"source_table": "public.item", "destination_table": "public.item"}
    changed = rebuilt(warehouse, **tables, post_sql=post, session_settings=settings)
    assert changed == NAMES
    assert warehouse.rows("TABLE public.said") == [(path,)]


@pytest.fixture
def space(warehouse: Database) -> Iterator[str]:
    """Make a tablespace in the server's own directory, which everybody may use."""
    name = f"space_{uuid4().hex[:8]}"
    options = "-c allow_in_place_tablespaces=on"
    with psycopg.connect(warehouse.admin_conninfo, autocommit=True, options=options) as admin:
        admin.execute(f"CREATE TABLESPACE {name} LOCATION ''".encode())
        admin.execute(f"GRANT CREATE ON TABLESPACE {name} TO PUBLIC".encode())
        yield name
        admin.execute("DROP TABLE item")
        admin.execute(f"DROP TABLESPACE {name}".encode())


def test_tablespaces_are_kept(both: tuple[Database, Database], space: str) -> None:
    _, warehouse = both
    warehouse.execute(f"ALTER INDEX of_price SET TABLESPACE {space}")
    warehouse.admin(f"ALTER DATABASE {warehouse.name} SET default_tablespace = {space}")
    assert rebuilt(warehouse) == NAMES
    warehouse.admin(f"REVOKE CREATE ON TABLESPACE {space} FROM PUBLIC")
    assert rebuilt(warehouse) == NAMES - {"of_price"}


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("ALTER TABLE item ADD parent int REFERENCES item", {'the "key'}),
        ("ALTER TABLE item REPLICA IDENTITY USING INDEX replica", {"replica"}),
        ("CREATE VIEW shown AS SELECT id, name FROM item GROUP BY id", {'the "key'}),
        ("ALTER TABLE item ADD s int4range, ADD CONSTRAINT apart EXCLUDE USING gist (s WITH &&)", set()),
        ("CREATE INDEX own ON item (twice(a))", {"own"}),
        ("CREATE INDEX own ON item (a) WHERE twice(a) > 5", {"own"}),
        ("ALTER TABLE item ADD CONSTRAINT late UNIQUE (a) DEFERRABLE", {*NAMES, "replica", "late"}),
        ("DROP INDEX lower_name", set()),
    ],
)  # fmt: skip
def test_what_something_else_depends_on_stays(
    both: tuple[Database, Database], change: str, kept: set[str]
) -> None:
    _, warehouse = both
    warehouse.execute(
        "CREATE UNIQUE INDEX replica ON item (a);"
        "CREATE FUNCTION twice(int) RETURNS int IMMUTABLE RETURN $1 * 2"
    )
    warehouse.execute(change)
    assert rebuilt(warehouse, columns=["id", "a", "name", "price", "mood"]) == {*oids(warehouse)} - kept
    assert kept <= {*oids(warehouse)}


def test_foreign_keys_may_wait_for_the_end_of_the_transaction(both: tuple[Database, Database]) -> None:
    """CREATE INDEX is refused while checks of the loaded rows are to come."""
    source, warehouse = both
    warehouse.execute(
        "CREATE TABLE other (a int PRIMARY KEY); DELETE FROM item;"
        "ALTER TABLE item ADD FOREIGN KEY (a) REFERENCES other DEFERRABLE INITIALLY DEFERRED"
    )
    fill = "INSERT INTO other SELECT i FROM generate_series(1, 100) AS i"
    assert rebuilt(warehouse, post_sql=fill) == ALL_STAY
    source.execute("UPDATE item SET a = 1000 WHERE a = 7")
    assert issubclass(stays(warehouse), RemoteError)


def test_what_pre_sql_has_made_is_what_counts(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    again = "DROP TABLE item; CREATE TABLE item (id int, a int, name text, price numeric, mood mood);"
    again += "CREATE INDEX fresh ON item (a)"
    transfer(mode="replace", pre_sql=again)
    assert oids(warehouse).keys() == {"fresh"}
    assert warehouse.rows("SELECT count(*) FROM item") == [(100,)]


# -- whether it is done


@pytest.mark.parametrize("arguments", [{}, {"source_sql": "SELECT * FROM item"}])
def test_few_rows_are_loaded_as_ever(both: tuple[Database, Database], arguments: dict[str, Any]) -> None:
    source, warehouse = both
    assert rebuilt(warehouse, **arguments) == NAMES
    assert rebuilt(warehouse, **arguments, rebuild_indexes=False) == ALL_STAY
    source.execute("ANALYZE item")
    assert rebuilt(warehouse, **arguments) == ALL_STAY
    assert rebuilt(warehouse, **arguments, rebuild_indexes=True) == NAMES


@pytest.mark.parametrize("when", ["BEFORE INSERT ON item FOR EACH ROW", "AFTER INSERT ON item"])
def test_triggers_may_need_the_indexes(both: tuple[Database, Database], when: str) -> None:
    _, warehouse = both
    warehouse.execute(
        f"""CREATE FUNCTION looked() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
        CREATE TRIGGER looked {when} EXECUTE FUNCTION looked()"""
    )
    assert rebuilt(warehouse) == ALL_STAY
    assert rebuilt(warehouse, rebuild_indexes=True) == NAMES
    warehouse.execute("ALTER TABLE item DISABLE TRIGGER looked")
    assert rebuilt(warehouse) == NAMES


def test_event_triggers_are_not_called(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.admin(
        """CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE 'no DDL today'; END $$;
        CREATE EVENT TRIGGER refuse ON sql_drop EXECUTE FUNCTION refuse()"""
    )
    assert rebuilt(warehouse) == ALL_STAY
    assert issubclass(stays(warehouse, rebuild_indexes=True), RemoteError)


def test_a_role_that_does_not_own_the_table(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    role = f'"{warehouse.server.role}"'
    warehouse.admin(f"ALTER TABLE item OWNER TO CURRENT_USER; GRANT ALL ON item TO {role}")
    assert rebuilt(warehouse) == ALL_STAY
    with pytest.raises(AirflowFailException, match=r"rebuild_indexes needs owner of public\.item"):
        transfer(mode="replace", rebuild_indexes=True)
    warehouse.admin(f"ALTER TABLE item OWNER TO {role}; ALTER SCHEMA public OWNER TO CURRENT_USER")
    warehouse.admin("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    assert rebuilt(warehouse) == ALL_STAY
    with pytest.raises(AirflowFailException, match="rebuild_indexes needs CREATE on its schema"):
        transfer(mode="replace", rebuild_indexes=True)


def test_partitioned_tables_are_loaded_as_ever(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("ALTER TABLE item RENAME TO part")
    warehouse.execute(
        "CREATE TABLE item (LIKE part) PARTITION BY RANGE (id); CREATE INDEX whole ON item (a);"
        "ALTER TABLE item ATTACH PARTITION part DEFAULT"
    )
    before = oids(warehouse, "part")
    assert rebuilt(warehouse) == ALL_STAY
    assert oids(warehouse, "part") == before
    transfer(mode="replace", destination_table="part")
    assert oids(warehouse, "part") == before
    with pytest.raises(AirflowFailException, match="needs a plain table"):
        transfer(mode="replace", rebuild_indexes=True)


# -- append


def test_append_does_it_in_an_empty_table_that_nobody_else_may_see(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    append = {"mode": "append", "lock": True, "pre_sql": "DELETE FROM item"}
    assert rebuilt(warehouse, **append) == ALL_STAY
    locks = "SELECT mode FROM pg_locks WHERE relation = 'item'::regclass AND mode ~ '^(Access|Share)'"
    said = f"CREATE TABLE said AS {locks}"
    assert rebuilt(warehouse, **append, rebuild_indexes=True, post_sql=said) == NAMES
    assert ("AccessExclusiveLock",) in warehouse.rows("TABLE said")


def test_append_leaves_a_table_with_rows_alone(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    source.execute("DELETE FROM item WHERE id = 1")
    assert rebuilt(warehouse, mode="append", lock=True, rebuild_indexes=True) == ALL_STAY


# -- what goes wrong


@pytest.mark.parametrize(
    ("column", "name"), [("price", "of_price"), ("id", 'the "key'), ("name", "lower_name")]
)
def test_rows_with_the_same_key_are_named(both: tuple[Database, Database], column: str, name: str) -> None:
    source, warehouse = both
    source.execute(f"ALTER TABLE item DROP CONSTRAINT item_pkey; UPDATE item SET {column} = '77' WHERE a < 3")
    assert issubclass(stays(warehouse), RemoteError)
    with pytest.raises(RemoteError) as caught:
        transfer(mode="replace")
    said = str(caught.value)
    assert (
        f"'warehouse': building index {name} of public.item after the load: could not create unique" in said
    )
    assert (caught.value.sqlstate, "several source rows have the same key" in said) == ("23505", True)
    assert "77" not in said


def test_a_null_in_the_key_is_refused_as_ever(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    source.execute("ALTER TABLE item DROP CONSTRAINT item_pkey; ALTER TABLE item ALTER id DROP NOT NULL")
    source.execute("UPDATE item SET id = NULL WHERE a = 3")
    assert issubclass(stays(warehouse), RemoteError)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id, a, name, price, mood FROM item WHERE 1 / (50 - id) < 9",
        "SELECT id, a, name, price, 'furious' AS mood FROM item",
        "SELECT id, a, name, price, mood FROM item WHERE false",
    ],
)
def test_a_load_that_fails_leaves_the_indexes(both: tuple[Database, Database], query: str) -> None:
    _, warehouse = both
    stays(warehouse, source_sql=query)


def test_a_verification_that_fails_leaves_them_too(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute(
        """CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            NEW.name := 'x' || NEW.id; RETURN NEW; END $$;
        CREATE TRIGGER changed BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION changed()"""
    )
    assert stays(warehouse, verify="checksum", rebuild_indexes=True) is VerificationError


def test_a_killed_load_leaves_the_indexes(both: tuple[Database, Database]) -> None:
    _, warehouse = both

    def kill() -> None:
        for (pid,) in sleeping(warehouse):
            warehouse.admin("SELECT pg_terminate_backend(%s)", pid)

    with meanwhile(kill, lambda: sleeping(warehouse)):
        stays(warehouse, post_sql="SELECT pg_sleep(600)")
