"""The end of a load in parts: indexes and swap. The table has all that it had, and the source's rows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from airflow_dblink.core.errors import (
    LoadLostError,
    NoLoadError,
    RemoteError,
    TransientError,
    UsageError,
    VerificationError,
)
from tests.databases import Database
from tests.descriptions import EVERYTHING, describe
from tests.integration.sync.moments import FileStore
from tests.oracle import wait_until
from tests.parts import FILL, ITEM, Load, killed_at_each_wait, load_of

ROWS = "SELECT * FROM item ORDER BY 1"
TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
INDEXES = "CREATE INDEX item_name ON item (name); CREATE UNIQUE INDEX item_at ON item (at, id)"


@pytest.fixture
def load(source: Database, warehouse: Database) -> Iterator[Load]:
    """Give a load of 5,000 rows into a table with a key and two indexes."""
    source.execute(f"{ITEM}; {FILL}")
    warehouse.execute(f"{ITEM}; {INDEXES}")
    warehouse.execute("INSERT INTO item VALUES (0, 'before')")
    with load_of(source, warehouse) as load:
        yield load


def copied(load: Load) -> int:
    """Do all that comes before the indexes."""
    parts = load.begin().parts
    for part in range(1, parts + 1):
        load.copy(part)
    load.verify(parts)
    return parts


def unchanged(database: Database) -> bool:
    return database.rows("SELECT id, name FROM item") == [(0, "before")]


def test_the_loaded_table_takes_the_place(load: Load, source: Database, warehouse: Database) -> None:
    before, tables = describe(warehouse, "item"), warehouse.rows(TABLES)
    parts = copied(load)
    assert load.index() == 3
    assert unchanged(warehouse)
    result = load.swap()
    assert {name: result[name] for name in ("rows", "parts", "retries")} == {
        "rows": 5000,
        "parts": parts,
        "retries": 0,
    }
    assert result["snapshot"].startswith("20")
    assert warehouse.rows(ROWS) == source.rows(ROWS)
    assert describe(warehouse, "item") == before
    assert warehouse.rows(TABLES) == tables


def test_the_catalogs_say_the_same_of_a_table_with_everything(
    load: Load, source: Database, warehouse: Database
) -> None:
    warehouse.execute(EVERYTHING)
    warehouse.execute("SELECT setval('everything_id_seq', 70000), setval('everything_num_seq', 80000)")
    before, tables = describe(warehouse), warehouse.rows(TABLES)
    source.execute(
        """CREATE TABLE everything AS
        SELECT 5 * i AS id, i AS num, 'name ' || i AS name, repeat(md5(i::text), 100) AS body,
               'de' AS country, i::numeric AS total, int4range(i, i + 1) AS span
          FROM generate_series(1, 1000) AS i"""
    )
    whole = load.but(source_table="everything", destination_table="everything")
    copied(whole)
    assert whole.index() == 6
    assert whole.swap()["rows"] == 1000
    after = describe(warehouse)
    for what, rows in before.items():
        assert after[what] == rows, what
    assert warehouse.rows(TABLES) == tables
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        warehouse.admin("UPDATE everything SET country = 'xx'")


def test_a_table_that_another_role_owns_stays_its(load: Load, warehouse: Database) -> None:
    role = warehouse.server.role
    warehouse.admin(
        f'CREATE ROLE parts_owner; GRANT parts_owner TO "{role}";'
        " GRANT CREATE ON SCHEMA public TO parts_owner; ALTER TABLE item OWNER TO parts_owner"
    )
    try:
        before = describe(warehouse, "item")
        copied(load)
        load.index()
        load.swap()
        assert describe(warehouse, "item") == before
    finally:
        warehouse.admin("DROP OWNED BY parts_owner; DROP ROLE parts_owner")


def test_a_constraint_that_is_not_valid_does_not_keep_the_table_from_being_swapped(
    load: Load, source: Database, warehouse: Database
) -> None:
    warehouse.execute("ALTER TABLE item ADD CHECK (id > 0) NOT VALID")
    copied(load)
    load.index()
    load.swap()
    assert warehouse.rows(ROWS) == source.rows(ROWS)
    with pytest.raises(psycopg.errors.CheckViolation):
        warehouse.execute("INSERT INTO item VALUES (0)")


# -- who may look at the table before


GRANTS = """
SELECT has_table_privilege(role, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'),
       relname
  FROM pg_class AS c, unnest(ARRAY['pg_monitor', 'pg_signal_backend']) AS role
 WHERE relkind = 'r' AND relname LIKE 'dblink_load%%'
 UNION ALL
SELECT has_sequence_privilege('pg_monitor', c.oid, 'USAGE, SELECT, UPDATE'), relname
  FROM pg_class AS c WHERE relkind = 'S' AND relname LIKE 'dblink_load%%'
"""


def test_others_get_nothing_on_the_table_that_is_loaded(load: Load, warehouse: Database) -> None:
    warehouse.execute(
        """ALTER TABLE item ADD COLUMN num int GENERATED ALWAYS AS IDENTITY;
        GRANT SELECT, UPDATE (name) ON item TO pg_signal_backend;
        GRANT USAGE ON SEQUENCE item_num_seq TO pg_signal_backend;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO pg_monitor WITH GRANT OPTION;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC"""
    )
    before = describe(warehouse, "item")
    copied(load)
    load.index()
    granted = warehouse.rows(GRANTS)
    assert len(granted) == 5
    assert not any(may for may, _ in granted), granted
    load.swap()
    assert describe(warehouse, "item") == before


def test_row_security_holds_for_the_table_that_is_loaded(
    load: Load, source: Database, warehouse: Database
) -> None:
    """Members of pg_read_all_data need no grant."""
    warehouse.execute("ALTER TABLE item ENABLE ROW LEVEL SECURITY")
    warehouse.admin("CREATE ROLE parts_reader; GRANT pg_read_all_data TO parts_reader")
    shadow = sql.Identifier("public", load.key.shadow)
    try:
        before = describe(warehouse, "item")
        copied(load)
        load.index()
        with psycopg.connect(warehouse.admin_conninfo) as reader:
            reader.execute("SET ROLE parts_reader")
            assert reader.execute(sql.SQL("SELECT count(*) FROM {}").format(shadow)).fetchall() == [(0,)]
        load.swap()
        assert describe(warehouse, "item") == before
        assert warehouse.rows(ROWS) == source.rows(ROWS)
    finally:
        warehouse.admin("DROP OWNED BY parts_reader; DROP ROLE parts_reader")


# -- kills


def test_indexes_and_swap_are_exact_wherever_they_are_killed(
    load: Load, source: Database, warehouse: Database, tmp_path: Path
) -> None:
    before, tables = describe(warehouse, "item"), warehouse.rows(TABLES)
    copied(load)
    assert killed_at_each_wait(lambda _: load.index()) > 5
    path = tmp_path / "state"
    assert killed_at_each_wait(lambda _: load.swap(FileStore(path))) > 20
    assert load.swap(FileStore(path))["rows"] == 5000
    assert warehouse.rows(ROWS) == source.rows(ROWS)
    assert describe(warehouse, "item") == before
    assert warehouse.rows(TABLES) == tables


# -- what is found, and changes nothing


def test_an_index_that_an_earlier_try_still_builds_is_not_waited_for(
    load: Load, source: Database, warehouse: Database
) -> None:
    copied(load)
    warehouse.execute("DROP INDEX item_at")
    load.index()
    name = warehouse.rows(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisunique AND indrelid = %s::regclass",
        load.key.shadow,
    )[0][0]
    with psycopg.connect(warehouse.conninfo) as hangs:
        identifiers = {"name": sql.Identifier(name), "table": sql.Identifier(load.key.shadow)}
        hangs.execute(sql.SQL("DROP INDEX {name}").format(**identifiers))
        hangs.commit()
        hangs.execute(sql.SQL("CREATE INDEX {name} ON {table} (name)").format(**identifiers))
        assert load.index() == 1
        with pytest.raises(psycopg.OperationalError):
            hangs.commit()
    load.swap()
    assert warehouse.rows(ROWS) == source.rows(ROWS)


def test_rows_that_break_a_key_are_said_and_the_table_is_untouched(
    load: Load, source: Database, warehouse: Database
) -> None:
    source.execute("ALTER TABLE item DROP CONSTRAINT item_pkey; INSERT INTO item VALUES (1, 'again')")
    copied(load)
    with pytest.raises(RemoteError, match=r"item_(pkey|at)") as caught:  # both are unique, and built at once
        load.index()
    assert caught.value.sqlstate == "23505"
    assert unchanged(warehouse)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE item ADD COLUMN more int",
        "ALTER TABLE item ADD CHECK (id >= 0)",
        "ALTER TABLE item ALTER name SET DEFAULT 'x'",
        "ALTER TABLE item ALTER name TYPE varchar(400)",
        "ALTER TABLE item SET (fillfactor = 50)",
        "ALTER TABLE item ALTER name SET STORAGE EXTERNAL, ALTER name SET STATISTICS 50",
        "ALTER TABLE item RENAME TO old; CREATE TABLE item (LIKE old INCLUDING DEFAULTS)",
    ],
)
def test_a_destination_that_was_altered_is_not_replaced(load: Load, warehouse: Database, change: str) -> None:
    copied(load)
    warehouse.execute(change)
    before = warehouse.rows("TABLE item")
    load.index()
    with pytest.raises(LoadLostError, match="since the load was planned"):
        load.swap()
    assert warehouse.rows("TABLE item") == before


def test_an_index_that_came_meanwhile_is_built_in_the_swap(load: Load, warehouse: Database) -> None:
    copied(load)
    load.index()
    warehouse.execute("CREATE INDEX a_new_one ON item (id); DROP INDEX item_name")
    before = describe(warehouse, "item")
    load.swap()
    assert describe(warehouse, "item")["indexes"] == before["indexes"]


def test_a_view_that_came_meanwhile_is_named(load: Load, warehouse: Database) -> None:
    copied(load)
    load.index()
    warehouse.execute("CREATE VIEW looks AS TABLE item")
    with pytest.raises(UsageError, match="view looks depends on it"):
        load.swap()
    assert unchanged(warehouse)


def test_a_table_that_can_not_be_swapped_is_refused_before_a_row_moves(
    load: Load, warehouse: Database
) -> None:
    warehouse.execute("CREATE VIEW looks AS TABLE item")
    with pytest.raises(UsageError, match="view looks depends on it"):
        load.begin()
    assert load.keeper() is None


def test_the_swap_waits_for_a_transaction_that_would_find_an_empty_table(
    load: Load, source: Database, warehouse: Database
) -> None:
    with psycopg.connect(warehouse.conninfo, autocommit=True) as reader:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        copied(load)
        load.index()
        with pytest.raises(TransientError, match=f"over, .*: pid {reader.info.backend_pid} "):
            load.swap(wait=timedelta(seconds=0.5))
        assert reader.execute("SELECT id FROM item").fetchall() == [(0,)]
        reader.execute("COMMIT")
    load.swap()
    assert warehouse.rows(ROWS) == source.rows(ROWS)


def test_transactions_of_other_roles_are_waited_for_only_by_their_snapshot(
    load: Load, source: Database, warehouse: Database
) -> None:
    copied(load)
    load.index()
    with psycopg.connect(warehouse.admin_conninfo, autocommit=True) as other:
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        with pytest.raises(TransientError, match=f"over, .*: pid {other.info.backend_pid} "):
            load.swap(wait=timedelta(seconds=0.5))
        other.execute("COMMIT")
        other.execute("BEGIN; SELECT 1")
        load.swap(wait=timedelta(seconds=0.5))
        assert other.execute("SELECT count(*) FROM item").fetchall() == [(5000,)]
    assert warehouse.rows(ROWS) == source.rows(ROWS)


WAITS = """
SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%%pg_sleep(0.2)%%'
       AND pid <> pg_backend_pid()
"""


def test_nobody_waits_for_a_swap_that_waits_for_older_transactions(
    load: Load, source: Database, warehouse: Database
) -> None:
    warehouse.execute(
        """CREATE TABLE country (id int PRIMARY KEY); INSERT INTO country VALUES (1);
        ALTER TABLE item ADD COLUMN country int DEFAULT 1 REFERENCES country"""
    )
    copied(load)
    load.index()
    with (
        psycopg.connect(warehouse.conninfo, autocommit=True) as older,
        ThreadPoolExecutor(1) as pool,
    ):
        older.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        swapped = pool.submit(load.swap)
        try:
            wait_until(lambda: swapped.done() or bool(warehouse.admin(WAITS)))
            older.execute("SET LOCAL lock_timeout = '1s'; INSERT INTO country VALUES (2)")
            assert not swapped.done()
        finally:
            older.execute("COMMIT")
        assert swapped.result()["rows"] == 5000
    assert warehouse.rows("SELECT id FROM country ORDER BY 1") == [(1,), (2,)]
    assert warehouse.rows("SELECT id, name, at FROM item ORDER BY 1") == source.rows(ROWS)


def test_a_swap_without_all_parts_is_refused(load: Load, warehouse: Database) -> None:
    load.begin()
    load.copy(1)
    with pytest.raises(VerificationError, match="are not copied: 2, 3"):
        load.swap()
    assert unchanged(warehouse)


def test_after_the_swap_there_is_nothing_to_do(load: Load) -> None:
    copied(load)
    load.index()
    load.swap()
    for step in (load.index, load.swap, partial(load.copy, 1)):
        with pytest.raises(NoLoadError):
            step()


def test_an_empty_source_empties_the_table_only_if_that_is_allowed(
    load: Load, source: Database, warehouse: Database
) -> None:
    source.execute("TRUNCATE item")
    copied(load)
    load.index()
    with pytest.raises(UsageError, match=r"the source is empty, and public\.item has rows"):
        load.swap()
    assert unchanged(warehouse)
    assert load.swap(allow_empty_source=True)["rows"] == 0
    assert warehouse.rows(ROWS) == []


def test_names_are_names_whatever_they_are(load: Load, source: Database, warehouse: Database) -> None:
    odd = """a "b" 'c' $keep$ $$; DROP TABLE item; --"""
    table = "CREATE TABLE {} ({} int PRIMARY KEY, {} text)"
    for database in (source, warehouse):
        database.execute('CREATE SCHEMA "Odd ""schema\'; --"')
    name = sql.Identifier("Odd \"schema'; --", odd)
    for database in (source, warehouse):
        database.execute(
            sql.SQL(table).format(name, sql.Identifier(odd + "1"), sql.Identifier(odd)).as_string()
        )
        database.execute(
            sql.SQL("CREATE INDEX {} ON {} ({})")
            .format(sql.Identifier(odd + "2"), name, sql.Identifier(odd))
            .as_string()
        )
    source.execute(
        sql.SQL("INSERT INTO {} SELECT i, 'x' FROM generate_series(1, 100) AS i").format(name).as_string()
    )
    named = load.but(source_table=name.as_string(), destination_table=name.as_string())
    copied(named)
    assert named.index() == 2
    assert named.swap()["rows"] == 100
    query = sql.SQL("SELECT * FROM {} ORDER BY 1").format(name).as_string()
    assert warehouse.rows(query) == source.rows(query)
    assert unchanged(warehouse)
