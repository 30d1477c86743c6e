# ruff: noqa: S608 - names that the tests themselves made
"""mode='swap': the new table has all that the old one had, or is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import RemoteError, TransientError, VerificationError
from tests.databases import Database
from tests.descriptions import EVERYTHING, describe
from tests.stores import MemoryStore
from tests.transfers import execute, meanwhile, operator, sleeping, transfer

ITEM = "CREATE TABLE item (id int PRIMARY KEY, name text)"
BEFORE = [(0, "before")]
TWO = [(1, "a"), (2, "b")]
TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
SOURCE_ROWS = """
    SELECT 5 * i AS id, i AS num, 'name ' || i AS name, repeat('x', 10000) AS body, 'de' AS country,
           CASE WHEN i > 1 THEN 5 END AS parent, i::numeric AS total, int4range(i, i + 1) AS span
      FROM generate_series(1, 100) AS i
"""


@pytest.fixture
def both(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases with a table item: two rows in the source's, another in the destination's."""
    source.execute(f"{ITEM}; INSERT INTO item VALUES (1, 'a'), (2, 'b')")
    warehouse.execute(f"{ITEM}; INSERT INTO item VALUES (0, 'before')")
    return source, warehouse


@pytest.fixture
def unchanged(both: tuple[Database, Database]) -> Iterator[Database]:
    """Give the destination's database; whatever a test does, its table stays, and no other one is there."""
    _, warehouse = both
    before, tables = oid(warehouse), warehouse.rows(TABLES)
    yield warehouse
    assert warehouse.admin("TABLE item") == BEFORE
    assert oid(warehouse) == before
    assert [row for row in warehouse.rows(TABLES) if "airflow_dblink" in row[0]] == []
    assert set(tables) <= set(warehouse.rows(TABLES))


def swap(table: str = "item", **arguments: Any) -> Any:
    return transfer(table, **{"mode": "swap", "swap_timeout": timedelta(), **arguments})


def oid(database: Database, table: str = "item") -> object:
    return database.rows(f"SELECT '{table}'::regclass::oid")[0][0]


# -- what the new table has


def test_the_rows_of_the_source_are_there_and_those_before_are_not(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    before, tables = oid(warehouse), warehouse.rows(TABLES)

    result = swap()

    assert result["rows"] == result["changed"] == 2
    assert warehouse.rows("TABLE item ORDER BY id") == TWO
    assert oid(warehouse) != before
    assert warehouse.rows(TABLES) == tables
    assert warehouse.rows("SELECT reltuples FROM pg_class WHERE relname = 'item'") == [(2,)]


def test_the_catalogs_say_the_same_of_a_table_with_everything(source: Database, warehouse: Database) -> None:
    warehouse.execute(EVERYTHING)
    warehouse.execute("SELECT setval('everything_id_seq', 700), setval('everything_num_seq', 800)")
    before, tables = describe(warehouse), warehouse.rows(TABLES)

    for _ in range(2):
        assert swap("everything", source_sql=SOURCE_ROWS)["rows"] == 100
        after = describe(warehouse)
        for what, rows in before.items():
            assert after[what] == rows, what
        assert warehouse.rows(TABLES) == tables

    assert warehouse.admin("SELECT nextval('everything_id_seq'), nextval('everything_num_seq')") == [
        (705, 801)
    ]
    statistics = "SELECT count(*) FROM pg_stats_ext WHERE tablename = 'everything'"
    assert warehouse.admin(statistics) == [(2,)]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        warehouse.admin("UPDATE everything SET country = 'xx'")


def test_sequences_go_on_beyond_the_rows_that_came(source: Database, warehouse: Database) -> None:
    warehouse.execute(
        "CREATE TABLE item (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, num serial, v int)"
    )
    warehouse.execute("INSERT INTO item (v) VALUES (1)")

    swap(source_sql="SELECT 10 AS id, 20 AS num, 0 AS v")
    warehouse.execute("INSERT INTO item (v) VALUES (1)")
    assert warehouse.rows("TABLE item ORDER BY id") == [(10, 20, 0), (11, 21, 1)]

    swap(source_sql="SELECT 1 AS id, 1 AS num, 0 AS v")
    warehouse.execute("INSERT INTO item (v) VALUES (1)")
    assert warehouse.rows("TABLE item ORDER BY id") == [(1, 1, 0), (12, 22, 1)]


@pytest.mark.parametrize(
    "table", ["CREATE UNLOGGED TABLE item (id int, name text)", "CREATE TABLE item (id int, name text)"]
)
def test_a_table_stays_logged_or_not(source: Database, warehouse: Database, table: str) -> None:
    warehouse.execute(table)
    before = describe(warehouse, "item")
    swap(source_sql="SELECT 1 AS id, 'a' AS name")
    assert describe(warehouse, "item") == before


def test_any_name(source: Database, warehouse: Database) -> None:
    long = "größe € " + 'x"%s{}' * 8
    quoted = '"' + long.replace('"', '""')[:58] + '"'
    table = '"a.{b}".' + quoted
    warehouse.execute(f'CREATE SCHEMA "a.{{b}}"; CREATE TABLE {table} ("from" int PRIMARY KEY)')
    swap(table, source_sql='SELECT 1 AS "from"')
    assert warehouse.rows(f"TABLE {table}") == [(1,)]


def test_a_member_of_the_owner_may_swap_and_the_owner_stays(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    role = f"owner_{warehouse.name}"
    warehouse.admin(f"CREATE ROLE {role}; GRANT {role} TO {warehouse.server.role}")
    try:
        warehouse.admin(f"GRANT CREATE, USAGE ON SCHEMA public TO {role}; ALTER TABLE item OWNER TO {role}")
        warehouse.admin("CREATE STATISTICS s ON id, name FROM item")
        warehouse.admin(f"ALTER STATISTICS s OWNER TO {role}")
        before = describe(warehouse, "item")
        swap()
        assert describe(warehouse, "item") == before
        assert warehouse.rows("TABLE item ORDER BY id") == TWO
    finally:
        warehouse.admin(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_pre_sql_sees_the_old_table_and_post_sql_the_new_one(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("CREATE TABLE seen (what text, rows int)")
    count = "INSERT INTO seen SELECT '{}', count(*) FROM item"
    swap(pre_sql=count.format("pre"), post_sql=count.format("post"), lock=True)
    assert warehouse.rows("TABLE seen") == [("pre", 1), ("post", 2)]


def test_settings_of_the_session_are_its_own_in_post_sql(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("CREATE TABLE seen (lock_timeout text, space text)")
    settings = "current_setting('lock_timeout'), current_setting('default_tablespace')"
    given = {"lock_timeout": "7s", "default_tablespace": "pg_default"}
    swap(post_sql=f"INSERT INTO seen SELECT {settings}", session_settings=given)
    assert warehouse.rows("TABLE seen") == [("7s", "pg_default")]


def test_within_one_database_a_table_can_be_swapped_for_its_own_rows(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    swap(source_conn_id="warehouse", source_sql="SELECT id + 1 AS id, name FROM item")
    assert warehouse.rows("TABLE item") == [(1, "before")]


# -- what is refused before a row moves


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("CREATE VIEW v AS SELECT id FROM item", ["view v depends on it"]),
        ("CREATE MATERIALIZED VIEW v AS SELECT id FROM item", ["materialized view v depends on it"]),
        ("CREATE TABLE detail (item int CONSTRAINT to_item REFERENCES item)",
         ["constraint to_item on table detail depends on it"]),
        ("CREATE FUNCTION f(item) RETURNS int LANGUAGE sql AS 'SELECT 1'", ["function f(item) depends on"]),
        ("CREATE FUNCTION f() RETURNS SETOF item LANGUAGE sql AS 'TABLE item'", ["function f() depends on"]),
        ("CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM item; END",
         ["function f() depends on it"]),
        ("CREATE TABLE other (whole item)", ["column whole of table other depends on it"]),
        ("CREATE TABLE other (whole item[])", ["column whole of table other depends on it"]),
        ("CREATE TABLE other (id int); ALTER TABLE other ENABLE ROW LEVEL SECURITY;"
         " CREATE POLICY p ON other USING (EXISTS (SELECT FROM item))", ["policy p on table other depends"]),
        ("CREATE RULE r AS ON DELETE TO item DO INSTEAD NOTHING", ["it has the rule r"]),
        ("CREATE TABLE child () INHERITS (item)", ["child inherits from it"]),
        ("CREATE TABLE parent (id int); ALTER TABLE item INHERIT parent", ["it inherits from parent"]),
        ("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
         " CREATE TRIGGER t BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION f()",
         ["its trigger t fires on INSERT"]),
        ("CREATE VIEW one AS TABLE item; CREATE VIEW two AS SELECT name FROM item",
         ["view one depends on it; view two depends on it"]),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_is_named(unchanged: Database, change: str, words: list[str]) -> None:
    unchanged.execute(change)
    with pytest.raises(AirflowFailException) as caught:
        swap()
    message = str(caught.value)
    words = ["'warehouse'", "public.item can't be swapped", "2BP01", *words]
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("CREATE PUBLICATION few FOR TABLE item", "publication few publishes it"),
        ("CREATE PUBLICATION every FOR ALL TABLES", "publication every publishes it"),
        ("ALTER TABLE item ADD p int REFERENCES item;"
         " ALTER TABLE item DISABLE TRIGGER ALL", "a trigger of its constraint item_p_fkey is not enabled"),
        ("ALTER EXTENSION plpgsql ADD TABLE item", "extension plpgsql has it"),
        ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'item_pkey'::regclass",
         "its index item_pkey is invalid"),
    ],
)  # fmt: skip
def test_what_a_superuser_has_put_in_the_way_is_named(
    both: tuple[Database, Database], change: str, words: str
) -> None:
    both[1].admin(change)
    with pytest.raises(AirflowFailException, match=words):
        swap(columns=["id", "name"])
    assert both[1].rows("SELECT id, name FROM item") == BEFORE
    if "EXTENSION" in change:
        both[1].admin("ALTER EXTENSION plpgsql DROP TABLE item")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("CREATE TABLE other (id int) PARTITION BY LIST (id)", "public.other is a partitioned table"),
        ("CREATE TABLE whole (id int) PARTITION BY LIST (id);"
         " CREATE TABLE other PARTITION OF whole DEFAULT", "public.other is a partition,"),
        ("CREATE VIEW other AS SELECT 1 AS id", "public.other is a view"),
        ("CREATE MATERIALIZED VIEW other AS SELECT 1 AS id", "public.other is a materialized view"),
        ("CREATE TYPE kind AS (id int); CREATE TABLE other OF kind", "it is a table of type kind"),
    ],
)  # fmt: skip
def test_a_destination_that_is_no_ordinary_table_is_refused(
    both: tuple[Database, Database], table: str, words: str
) -> None:
    both[1].execute(table)
    with pytest.raises(AirflowFailException, match=words):
        swap(destination_table="other", source_sql="SELECT 1 AS id")


def test_only_the_owner_may_swap(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.admin("CREATE TABLE other (id int, name text); GRANT ALL ON other TO PUBLIC")
    with pytest.raises(AirflowFailException, match=r"only the owner of public\.other can swap it.*42501"):
        swap(destination_table="other")


def test_a_schema_must_take_the_new_table(unchanged: Database) -> None:
    unchanged.admin(f"ALTER SCHEMA public OWNER TO CURRENT_USER; REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
                    f" REVOKE CREATE ON SCHEMA public FROM {unchanged.server.role}")  # fmt: skip
    with pytest.raises(AirflowFailException, match=r"no CREATE on schema public"):
        swap()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"swap_timeout": 5}, "swap_timeout must be a timedelta, got int"),
        ({"old_snapshots_timeout": "1"}, "old_snapshots_timeout must be a timedelta or None, got str"),
        ({"old_snapshots_timeout": timedelta(-1)}, "old_snapshots_timeout must not be negative"),
        ({"mode": "append", "swap_timeout": timedelta(1)}, "swap_timeout is for mode='swap', not for"),
        ({"mode": "append", "old_snapshots_timeout": timedelta(minutes=5)},
         "old_snapshots_timeout is for mode='swap'"),
        ({"key": ["id"]}, "key is for mode='upsert', not for 'swap'"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_found_when_the_dag_is_parsed(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(AirflowFailException, match=words):
        operator(source_table="a", destination_table="b", **{"mode": "swap", **arguments})


def test_arguments_of_a_swap_go_with_a_mode_that_is_a_template() -> None:
    operator(
        source_table="a",
        destination_table="b",
        mode="{{ params.mode }}",
        old_snapshots_timeout=timedelta(),
    )


# -- what fails on the way


def test_an_empty_source_is_refused(unchanged: Database) -> None:
    with pytest.raises(AirflowFailException, match=r"the source is empty, and public\.item has rows"):
        swap(source_sql="SELECT 1 AS id, 'a' AS name WHERE false")


def test_an_empty_source_may_come(both: tuple[Database, Database]) -> None:
    swap(source_sql="SELECT 1 AS id, 'a' AS name WHERE false", allow_empty_source=True)
    assert both[1].rows("TABLE item") == []


def test_rows_that_break_a_key_are_refused_by_its_own_name(unchanged: Database) -> None:
    with pytest.raises(RemoteError, match=r'could not create unique index "item_pkey" .*23505') as caught:
        swap(source_sql="SELECT 1 AS id, 'secret' AS name FROM generate_series(1, 2)")
    assert "secret" not in str(caught.value)


def test_rows_that_break_a_foreign_key_are_refused_by_its_own_name(unchanged: Database) -> None:
    unchanged.execute("CREATE TABLE country (code text PRIMARY KEY); INSERT INTO country VALUES ('before')")
    unchanged.execute("ALTER TABLE item ADD CONSTRAINT to_country FOREIGN KEY (name) REFERENCES country")
    with pytest.raises(RemoteError, match=r'on table "item" violates foreign key constraint "to_country"'):
        swap()


def test_what_can_not_be_built_is_found_before_a_row_moves(unchanged: Database) -> None:
    unchanged.execute("CREATE INDEX whole ON item ((item IS NOT NULL))")
    with pytest.raises(RemoteError, match="missing FROM-clause entry"):
        swap(source_sql="SELECT 1 AS id, pg_sleep(3600)::text AS name")


def test_a_view_that_comes_during_the_load_is_named_in_the_end(source: Database, unchanged: Database) -> None:
    query = "SELECT 1 AS id, (SELECT 'x' FROM pg_advisory_xact_lock(7)) AS name"
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(source.conninfo) as gate:
        gate.execute("SELECT pg_advisory_xact_lock(7)")

        def come_late() -> None:
            unchanged.execute("CREATE VIEW late AS SELECT id FROM item")
            gate.rollback()

        with (
            pytest.raises(AirflowFailException, match="view late depends on it"),
            meanwhile(come_late, lambda: source.admin(waiting)),
        ):
            swap(source_sql=query)


def test_who_keeps_the_lock_away_is_named(unchanged: Database) -> None:
    with psycopg.connect(unchanged.conninfo, application_name="long report") as reader:
        reader.execute("SELECT FROM item")
        pid = reader.info.backend_pid
        with pytest.raises(TransientError) as caught:
            swap()
    message = str(caught.value)
    words = ["public.item could not be locked", f"pid {pid} ('long report', idle in", "55P03"]
    assert [word for word in words if word not in message] == [], message


def test_of_another_roles_session_what_this_role_may_see_is_named(unchanged: Database) -> None:
    with psycopg.connect(unchanged.admin_conninfo, application_name="long report") as reader:
        reader.execute("SELECT FROM item")
        with pytest.raises(TransientError, match=rf"pid {reader.info.backend_pid} \('long report'\)"):
            swap()


def test_the_lock_is_asked_for_until_it_is_had(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    with psycopg.connect(warehouse.conninfo) as reader:
        reader.execute("SELECT FROM item")
        with meanwhile(reader.rollback, lambda: sleeping(warehouse)):  # between two attempts
            swap(swap_timeout=timedelta(minutes=1))
    assert warehouse.rows("TABLE item ORDER BY id") == TWO


def test_a_retry_of_a_swap_that_was_committed_moves_nothing(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    store = MemoryStore()
    arguments = {"mode": "swap", "source_table": "item", "destination_table": "item"}
    first = execute(operator(**arguments), store)
    store.set("airflow_dblink_once", store.history[-2])  # as if killed before its last word
    before = oid(warehouse)
    assert execute(operator(**arguments), store) == first
    assert oid(warehouse) == before


@pytest.mark.parametrize("verify", ["count", "checksum"])
def test_the_new_table_is_verified_before_it_takes_the_place(
    both: tuple[Database, Database], verify: str
) -> None:
    assert swap(verify=verify)["verified"] == verify
    assert both[1].rows("TABLE item ORDER BY id") == TWO


def test_a_new_table_that_differs_does_not_take_the_place(unchanged: Database) -> None:
    unchanged.execute(
        "CREATE TABLE short (id int PRIMARY KEY, name varchar(3)); INSERT INTO short VALUES (0)"
    )
    with pytest.raises(VerificationError, match="checksum"):
        swap(
            destination_table="short",
            source_sql="SELECT 1 AS id, 'a       '::text AS name",
            verify="checksum",
        )
    assert unchanged.rows("SELECT id FROM short") == [(0,)]
