"""Sets of tables: one snapshot for all, swapped in one transaction, with the foreign keys among them."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import psycopg.sql
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import LoadLostError, RemoteError, TransientError
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.common.load_plan import DblinkPartsPlanOperator
from airflow_dblink.operators.common.load_tasks import (
    DblinkPartsDropOperator,
    DblinkPartsIndexOperator,
    DblinkPartsLoadOperator,
    DblinkPartsSwapOperator,
    DblinkPartsVerifyOperator,
)
from tests.databases import Database
from tests.descriptions import describe
from tests.integration.sync.moments import FileStore
from tests.integration.tasks import context
from tests.oracle import wait_until
from tests.parts import killed_at_each_wait
from tests.stores import MemoryStore
from tests.transfers import meanwhile

BOTH: dict[str, Any] = {"source_conn_id": "source", "destination_conn_id": "warehouse"}
LEFT = "SELECT relname FROM pg_class WHERE relname LIKE 'dblink_load%%'"
SHOP = """
CREATE SCHEMA sales;
CREATE TABLE sales.customer (id int PRIMARY KEY, name text NOT NULL, best int);
CREATE TABLE sales.orders (id serial PRIMARY KEY, customer int NOT NULL REFERENCES sales.customer,
                           previous int REFERENCES sales.orders ON DELETE SET NULL);
ALTER TABLE sales.customer ADD CONSTRAINT best_order FOREIGN KEY (best) REFERENCES sales.orders
    DEFERRABLE INITIALLY DEFERRED;
CREATE INDEX orders_customer ON sales.orders (customer);
CREATE TABLE public.note (id int PRIMARY KEY, body text);
"""
FILL = """
INSERT INTO sales.customer
    SELECT i, 'name ' || i, CASE WHEN i > 5 THEN i END FROM generate_series(1, 200) AS i;
INSERT INTO sales.orders SELECT i, 1 + i % 200, nullif(i - 1, 0) FROM generate_series(1, 2000) AS i;
INSERT INTO note SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 3000) AS i
"""
TABLES = ("sales.customer", "sales.orders", "public.note")


@dataclass
class Run:
    """One run of the group: its tasks, and their state."""

    stores: dict[str, Any] = field(default_factory=dict)

    def execute(self, kind: type[Any], name: str, try_number: int = 1, **arguments: Any) -> Any:
        """Execute the task *name* of the group."""
        given = {"idle": timedelta(minutes=2)} if name == "plan" else {"load_id": "plan"}
        task = kind(task_id=name, **BOTH, **given, **arguments)
        store = self.stores.setdefault(name, MemoryStore())
        result = task.execute(context(store, task_id=name, try_number=try_number))
        return json.loads(json.dumps(result))  # as XCom gives it to the next task

    def plan(self, *tables: str, try_number: int = 1, **arguments: Any) -> list[Any]:
        """Plan the set; returns the parts."""
        found: list[Any] = self.execute(
            DblinkPartsPlanOperator, "plan", try_number, tables=list(tables), **arguments
        )
        return found

    def load(self, parts: list[Any], try_number: int = 1) -> list[Any]:
        """Copy the parts."""
        return [self.execute(DblinkPartsLoadOperator, "load", try_number, part=part) for part in parts]

    def rest(self, parts: list[Any], **swap: Any) -> Any:
        """Do what comes after the parts; returns the result of the last task."""
        self.execute(DblinkPartsVerifyOperator, "verify", parts=parts)
        self.execute(DblinkPartsIndexOperator, "index", parts=parts)
        return self.execute(DblinkPartsSwapOperator, "swap", parts=parts, **swap)

    def whole(self, *tables: str, **arguments: Any) -> Any:
        """Load the set."""
        parts = self.plan(*tables, **arguments)
        self.load(parts)
        return self.rest(parts)

    def drop(self, *tables: str) -> Any:
        """Drop the load."""
        return self.execute(DblinkPartsDropOperator, "drop", tables=list(tables))


@pytest.fixture
def run(source: Database, warehouse: Database) -> Iterator[Run]:
    """Give a run; the keeper is ended afterwards."""
    yield Run()
    source.admin(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'dblink_keeper%%'"
    )


@pytest.fixture
def shop(run: Run, source: Database, warehouse: Database) -> Run:
    """Give a run whose tables are there: three, with foreign keys both ways and to itself."""
    source.execute(f"{SHOP}; BEGIN; {FILL}; COMMIT".replace("note SELECT", "public.note SELECT"))
    warehouse.execute(SHOP)
    warehouse.execute("INSERT INTO sales.customer VALUES (0, 'before', NULL)")
    return run


def rows(database: Database, table: str) -> list[Any]:
    return database.rows(f"SELECT * FROM {table} ORDER BY 1")  # noqa: S608 - the test's own name


def described(database: Database, table: str) -> dict[str, Any]:
    """Return what the catalogs say of the table, without its sequences, which have other positions then."""
    return {what: found for what, found in describe(database, table).items() if what != "sequences"}


def refused(run: Run, *words: str, tables: tuple[str, ...] = ("sales.*",), **arguments: Any) -> None:
    with pytest.raises(AirflowFailException) as caught:
        run.plan(*tables, **arguments)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


# -- what comes


def test_all_tables_are_swapped_with_their_foreign_keys(
    shop: Run, source: Database, warehouse: Database
) -> None:
    before = {table: described(warehouse, table) for table in TABLES}
    result = shop.whole("sales.*", "note")
    assert {name: result[name] for name in ("rows", "tables", "retries")} == {
        "rows": 5200,
        "tables": 3,
        "retries": 0,
    }
    for table in TABLES:
        assert rows(warehouse, table) == rows(source, table)
        assert described(warehouse, table) == before[table]
    assert warehouse.rows(LEFT) == []
    assert warehouse.rows("SELECT nextval('sales.orders_id_seq')") == [(2001,)]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        warehouse.execute("DELETE FROM sales.customer WHERE id = 7")
    # A second run takes the same way.
    source.execute("DELETE FROM sales.orders WHERE id > 1000")
    assert Run().whole("sales.*", "note")["rows"] == 4200
    assert rows(warehouse, "sales.orders") == rows(source, "sales.orders")


def test_schemas_are_renamed_and_tables_excluded(shop: Run, source: Database, warehouse: Database) -> None:
    warehouse.execute("CREATE SCHEMA staging; CREATE TABLE staging.customer (LIKE sales.customer)")
    result = shop.whole("sales.c*", "sales.o*", exclude=["sales.orders"], schemas={"sales": "staging"})
    assert (result["rows"], result["tables"]) == (200, 1)
    assert rows(warehouse, "staging.customer") == rows(source, "sales.customer")
    assert rows(warehouse, "sales.customer") == [(0, "before", None)]


def test_large_tables_are_many_parts_and_small_ones_share_one(
    shop: Run, source: Database, warehouse: Database
) -> None:
    parts = shop.plan("sales.*", "note", part_bytes=400_000)
    tables = [{item[0] for item in part} for part in parts]
    assert {'"sales"."customer"', '"sales"."orders"'} in tables
    assert tables.count({'"public"."note"'}) > 3
    done = shop.load(parts)
    assert sum(each["rows"] for each in done) == shop.rest(parts)["rows"] == 5200
    assert rows(warehouse, "note") == rows(source, "note")


def test_an_empty_and_a_partitioned_table_belong_to_a_set(
    run: Run, source: Database, warehouse: Database
) -> None:
    source.execute(
        "CREATE TABLE a (id int) PARTITION BY RANGE (id); CREATE TABLE b (id int);"
        "CREATE TABLE a1 PARTITION OF a FOR VALUES FROM (0) TO (10); INSERT INTO a VALUES (1);"
        "CREATE TABLE c (id int) PARTITION BY RANGE (id)"
    )
    warehouse.execute("CREATE TABLE a (id int); CREATE TABLE b (id int); CREATE TABLE c (id int)")
    assert run.whole("public.*")["tables"] == 3
    assert rows(warehouse, "a") == [(1,)]


# -- tries


def test_a_part_is_copied_again_alone_and_the_plan_goes_on(
    shop: Run, source: Database, warehouse: Database
) -> None:
    parts = shop.plan("sales.*", "note", part_bytes=400_000)
    shop.load(parts[:2])
    source.execute("DELETE FROM public.note; CREATE TABLE sales.late (id int)")
    assert shop.plan("sales.*", "note", part_bytes=400_000, try_number=2) == parts
    again = shop.load(parts[:2], 2)
    assert {each["tries"] for each in again} <= {1, 2}  # a task's tries of all its tables together
    shop.load(parts[2:])
    assert shop.rest(parts)["rows"] == 5200


def test_a_swap_that_fails_leaves_all_tables(shop: Run, warehouse: Database) -> None:
    parts = shop.plan("sales.*")
    shop.load(parts)
    warehouse.execute("ALTER TABLE sales.orders ADD CHECK (id > 0)")
    with pytest.raises(AirflowFailException, match=r"sales\.orders was altered since the load was planned"):
        shop.rest(parts)
    assert rows(warehouse, "sales.customer") == [(0, "before", None)]
    assert rows(warehouse, "sales.orders") == []


def test_rows_that_break_a_key_to_a_table_outside_leave_all_tables(
    shop: Run, source: Database, warehouse: Database
) -> None:
    warehouse.execute(
        "CREATE TABLE public.region (id int PRIMARY KEY);"
        "ALTER TABLE sales.customer ADD CONSTRAINT in_region FOREIGN KEY (id) REFERENCES region NOT VALID;"
        "DELETE FROM sales.customer; ALTER TABLE sales.customer VALIDATE CONSTRAINT in_region"
    )
    parts = shop.plan("sales.*")
    shop.load(parts)
    with pytest.raises(Exception, match=r'"customer" violates foreign key constraint "in_region"'):
        shop.rest(parts)
    assert rows(warehouse, "sales.orders") == []
    warehouse.execute("INSERT INTO region SELECT generate_series(1, 200)")
    assert shop.execute(DblinkPartsSwapOperator, "swap", 2, parts=parts)["rows"] == 2200
    assert rows(warehouse, "sales.customer") == rows(source, "sales.customer")


def test_a_table_in_use_is_named_and_all_stay(shop: Run, warehouse: Database) -> None:
    parts = shop.plan("sales.*")
    shop.load(parts)
    with psycopg.connect(warehouse.conninfo, application_name="reader") as reader:
        reader.execute("SELECT FROM sales.orders")
        with pytest.raises(
            TransientError, match=r"sales.customer, sales.orders could not be locked.*\('reader'"
        ):
            shop.rest(parts, swap_timeout=timedelta())
    assert rows(warehouse, "sales.customer") == [(0, "before", None)]
    assert shop.execute(DblinkPartsSwapOperator, "swap", 2, parts=parts)["rows"] == 2200


def test_a_lost_snapshot_says_so(shop: Run, source: Database) -> None:
    parts = shop.plan("sales.*", "note", part_bytes=400_000)
    shop.load(parts[:1])
    source.admin(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
        " WHERE application_name LIKE 'dblink_keeper%%'"
    )
    with pytest.raises(AirflowFailException, match=r"the snapshot of load .* is gone") as caught:
        shop.load(parts[1:])
    assert not isinstance(caught.value, LoadLostError)


# -- many tables under writers


MANY = 30
Write = Callable[[psycopg.Connection[Any], random.Random], None]


@contextmanager
def writing(
    database: Database, write: Callable[[psycopg.Connection[Any], random.Random], None]
) -> Iterator[None]:
    """Let two sessions write until the end of the block; fails as they do."""
    over, failures = threading.Event(), list[BaseException]()

    def loop(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - no secret
        try:
            with psycopg.connect(database.conninfo) as connection:
                while not over.is_set():
                    with connection.transaction():
                        write(connection, chance)
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=loop, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def test_thirty_tables_with_cycles_are_one_snapshot(run: Run, source: Database, warehouse: Database) -> None:
    """Each table refers to two others, so that all hang together; each write is in three tables at once."""
    names = [f"t{i:02}" for i in range(MANY)]
    made = [
        f"CREATE TABLE {name} (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, x int, y int)" for name in names
    ]
    for i, name in enumerate(names):
        for column, other in (("x", names[(7 * i + 3) % MANY]), ("y", names[(i + 1) % MANY])):
            made.append(
                f"ALTER TABLE {name} ADD FOREIGN KEY ({column}) REFERENCES {other}"
                " ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED"
            )
    for database in (source, warehouse):
        database.execute("; ".join(made))
    filled = "INSERT INTO {} SELECT i, 0, i, i FROM generate_series(1, 300) AS i"
    source.execute("; ".join(["BEGIN", *(filled.format(name) for name in names), "COMMIT"]))

    def write(connection: psycopg.Connection[Any], chance: random.Random) -> None:
        key = chance.randrange(1, 300)
        for name in sorted(chance.sample(names, 3)):
            update = psycopg.sql.SQL("UPDATE {} SET n = n + 1 WHERE id = {}")
            connection.execute(update.format(psycopg.sql.Identifier(name), key))
        connection.execute("INSERT INTO written SELECT 1")

    source.execute("CREATE SCHEMA other; CREATE TABLE other.written_elsewhere (id int)")
    source.execute("CREATE TABLE written (a int)")
    with writing(source, write):
        parts = run.plan("t??", min_parts=4, part_bytes=50_000)
        snapshot = source.admin(
            "SELECT split_part(application_name, ' ', 3) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'dblink_keeper%%'"
        )[0][0]
        with psycopg.connect(source.conninfo) as reader:
            reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            reader.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'".encode())
            run.load(parts)
            every = psycopg.sql.SQL("SELECT * FROM {} ORDER BY id")
            wanted = {
                name: reader.execute(every.format(psycopg.sql.Identifier(name))).fetchall() for name in names
            }
        result = run.rest(parts)
    assert len(parts) > 10
    assert (result["tables"], result["rows"]) == (MANY, 300 * MANY)
    for name in names:
        assert rows(warehouse, name) == wanted[name], name
    assert sum(row[1] for found in wanted.values() for row in found) % 3 == 0  # whole transactions
    keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated"
    assert warehouse.rows(keys) == [(2 * MANY,)]
    assert warehouse.rows(LEFT) == []


# -- tables that the destination lacks

KEYS = "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint ORDER BY 1, 2"
INDEXES = "SELECT indexdef FROM pg_indexes WHERE schemaname IN ('sales', 'public') ORDER BY 1"


def test_missing_tables_are_created_with_their_schemas_and_keys(
    shop: Run, source: Database, warehouse: Database, caplog: pytest.LogCaptureFixture
) -> None:
    warehouse.execute("DROP SCHEMA sales CASCADE; DROP TABLE note")
    assert shop.whole("sales.*", "note", create=True)["rows"] == 5200
    assert "is made without" not in caplog.text
    for table in TABLES:
        assert rows(warehouse, table) == rows(source, table)
    for query in (KEYS, INDEXES):
        assert warehouse.rows(query) == source.rows(query)
    assert warehouse.rows("SELECT nextval('sales.orders_id_seq')") == [(2001,)]
    assert Run().whole("sales.*", "note", create=True)["tables"] == 3


def test_keys_are_created_to_tables_of_the_set_that_are_there(
    shop: Run, source: Database, warehouse: Database, caplog: pytest.LogCaptureFixture
) -> None:
    source.execute(
        "CREATE TABLE public.region (id int PRIMARY KEY); INSERT INTO region VALUES (1);"
        "ALTER TABLE public.note ADD COLUMN a int REFERENCES region, ADD COLUMN b int REFERENCES sales.orders"
        " MATCH FULL ON UPDATE CASCADE ON DELETE SET DEFAULT;"
        "ALTER TABLE public.note ADD CONSTRAINT later FOREIGN KEY (id) REFERENCES sales.orders NOT VALID"
    )
    warehouse.execute("DROP TABLE note; CREATE SCHEMA other; ALTER TABLE sales.orders SET SCHEMA other")
    warehouse.execute("ALTER TABLE sales.customer SET SCHEMA other; DELETE FROM other.customer")
    shop.whole("sales.*", "note", create=True, schemas={"sales": "other"})
    assert "note is created without foreign key note_a_fkey" in caplog.text.replace('"', "")
    assert [row[2] for row in warehouse.rows(KEYS) if row[1] in ("later", "note_b_fkey")] == [
        "FOREIGN KEY (id) REFERENCES other.orders(id) NOT VALID",
        "FOREIGN KEY (b) REFERENCES other.orders(id) MATCH FULL ON UPDATE CASCADE ON DELETE SET DEFAULT",
    ]


def test_nothing_is_created_if_one_table_can_not_be(shop: Run, source: Database, warehouse: Database) -> None:
    warehouse.execute("DROP SCHEMA sales CASCADE; DROP TABLE note")
    source.execute(
        "CREATE FUNCTION own() RETURNS int LANGUAGE sql AS 'SELECT 1';"
        "ALTER TABLE sales.orders ADD COLUMN own int DEFAULT own()"
    )
    with pytest.raises(Exception, match="own"):
        shop.plan("sales.*", "note", create=True)
    assert warehouse.rows("SELECT 1 FROM pg_namespace WHERE nspname = 'sales'") == []
    assert warehouse.rows("SELECT 1 FROM pg_class WHERE relname = 'note'") == []


def test_nothing_is_created_if_a_table_that_is_there_can_not_be_swapped(
    shop: Run, warehouse: Database
) -> None:
    warehouse.execute("DROP TABLE note; CREATE VIEW looks AS SELECT id FROM sales.customer")
    refused(shop, "looks depends on it", tables=("sales.*", "note"), create=True)
    assert warehouse.rows("SELECT 1 FROM pg_class WHERE relname = 'note'") == []


# -- kills


def test_the_swap_of_a_set_is_exact_wherever_it_is_killed(
    shop: Run, source: Database, warehouse: Database, tmp_path: Path
) -> None:
    parts = shop.plan("sales.*")
    shop.load(parts)
    shop.execute(DblinkPartsVerifyOperator, "verify", parts=parts)
    shop.execute(DblinkPartsIndexOperator, "index", parts=parts)
    shop.stores["swap"] = FileStore(tmp_path / "state")
    arguments: dict[str, Any] = {"parts": parts, "retries": 99}

    def swap(try_number: int) -> Any:
        shop.stores["swap"] = FileStore(tmp_path / "state")
        return shop.execute(DblinkPartsSwapOperator, "swap", try_number, **arguments)

    assert killed_at_each_wait(swap) > 20
    assert swap(1000)["rows"] == 2200
    assert rows(warehouse, "sales.orders") == rows(source, "sales.orders")
    assert rows(warehouse, "sales.customer") == rows(source, "sales.customer")
    assert warehouse.rows(LEFT) == []


def test_the_plan_of_a_set_is_exact_wherever_it_is_killed(
    shop: Run, source: Database, warehouse: Database, tmp_path: Path
) -> None:
    warehouse.execute("DROP TABLE note")

    def plan(try_number: int) -> Any:
        shop.stores["plan"] = FileStore(tmp_path / "state")
        return shop.plan("sales.*", "note", try_number=try_number, create=True, retries=99)

    assert killed_at_each_wait(plan, step=3) > 20
    parts = plan(1000)
    shop.load(parts)
    assert shop.rest(parts)["rows"] == 5200
    assert rows(warehouse, "note") == rows(source, "note")
    assert warehouse.rows(LEFT) == []


# -- others


def test_sets_of_one_name_have_a_snapshot_each(shop: Run, source: Database, warehouse: Database) -> None:
    """Staging and production may run the same Dag at the same time, into schemas of one database."""
    wanted = rows(source, "sales.orders")
    parts = shop.plan("sales.*")
    source.execute("DELETE FROM sales.orders WHERE id > 1000")
    other = Run()
    others = other.plan("sales.*", schemas={"sales": "staging"}, create=True)
    shop.load(parts)
    other.load(others)
    other.rest(others)
    shop.rest(parts)
    assert rows(warehouse, "staging.orders") == rows(source, "sales.orders")
    assert rows(warehouse, "sales.orders") == wanted


def test_a_writer_of_one_table_outside_does_not_block_those_of_another(
    run: Run, source: Database, warehouse: Database
) -> None:
    """Two tables refer to two others outside: all locks are had in one attempt, or none is kept."""
    made = "CREATE TABLE s{0} (id int PRIMARY KEY, o int)"
    for database in (source, warehouse):
        database.execute("; ".join(made.format(i) for i in (1, 2)))
    for i in (1, 2):
        outside = "CREATE TABLE o{0} (id) AS SELECT 1; ALTER TABLE o{0} ADD PRIMARY KEY (id)"
        warehouse.execute(outside.format(i))
        warehouse.execute(f"ALTER TABLE s{i} ADD FOREIGN KEY (o) REFERENCES o{i}")
        source.execute(f"INSERT INTO s{i} VALUES (1, 1)")  # noqa: S608 - the test's own name
    parts = run.plan("s?")
    run.load(parts)
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    with psycopg.connect(warehouse.conninfo) as writer:
        writer.execute("INSERT INTO o2 VALUES (2)")

        def write() -> None:
            writer.execute("SET LOCAL lock_timeout = '60s'; INSERT INTO o1 VALUES (2)")
            writer.commit()

        with meanwhile(write, lambda: warehouse.admin(waits)):
            assert run.rest(parts)["rows"] == 2
    assert rows(warehouse, "s1") == rows(warehouse, "s2") == [(1, 1)]


def test_an_error_of_a_row_names_the_table(shop: Run, warehouse: Database) -> None:
    warehouse.execute("ALTER TABLE sales.orders ADD CONSTRAINT few CHECK (id < 100)")
    parts = shop.plan("sales.*")
    with pytest.raises(RemoteError, match='new row for relation "orders" violates check constraint "few"'):
        shop.load(parts)


# -- what is refused before a row moves


def test_a_child_of_two_tables_of_the_set_is_refused(run: Run, source: Database, warehouse: Database) -> None:
    source.execute("CREATE TABLE p1 (id int); CREATE TABLE p2 (id int); CREATE TABLE c () INHERITS (p1, p2)")
    warehouse.execute("CREATE TABLE p1 (id int); CREATE TABLE p2 (id int)")
    refused(run, "public.c belongs to several tables of the set", tables=("p?",))
    assert warehouse.rows(LEFT) == []


def test_privileges_are_looked_at_for_all_tables(shop: Run, source: Database) -> None:
    source.admin("ALTER TABLE sales.customer OWNER TO postgres; ALTER TABLE sales.orders OWNER TO postgres")
    refused(shop, "2 of 2 tables can't be used", "no SELECT on sales.customer", "no SELECT on sales.orders")


def test_all_tables_that_can_not_be_created_are_named(
    shop: Run, source: Database, warehouse: Database
) -> None:
    warehouse.execute("DROP SCHEMA sales CASCADE")
    source.execute("CREATE FUNCTION own() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    for table in ("customer", "orders"):
        source.execute(f"ALTER TABLE sales.{table} ADD COLUMN own int DEFAULT own()")
    refused(shop, "2 of 2 tables can't be used", "customer", "orders", "own", create=True)
    assert warehouse.rows("SELECT 1 FROM pg_namespace WHERE nspname = 'sales'") == []


def test_a_default_on_another_tables_sequence_is_not_taken_to_another_schema(
    shop: Run, source: Database
) -> None:
    source.execute("CREATE TABLE sales.more (id int DEFAULT nextval('sales.orders_id_seq'))")
    words = ["defaults use sequences of other tables", "id: sales.orders_id_seq"]
    refused(shop, *words, schemas={"sales": "staging"}, create=True)


def test_tables_of_remote_jobs_belong_to_no_set(shop: Run, source: Database, warehouse: Database) -> None:
    with DblinkHook(dblink_conn_id="source") as hook:
        hook.get_result(hook.send_job("SELECT 1", keep_result=True))
    assert shop.whole("*.*")["tables"] == 3


def test_all_that_is_wrong_is_said_at_once(shop: Run, warehouse: Database) -> None:
    warehouse.execute("DROP TABLE public.note; CREATE VIEW looks AS SELECT id FROM sales.customer")
    refused(shop, "1 of 3 tables can't be used", 'note": relation', tables=("sales.*", "public.*"))
    refused(shop, "1 of 2 tables can't be used", 'customer": sales.customer', "view", "looks depends on it")
    assert warehouse.rows(LEFT) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tables": ("sale.*",)}, ["no table is found by 'sale.*'", "no views"]),
        ({"tables": ("sales.*", "x", "y")}, ["no table is found by 'x', 'y'"]),
        ({"tables": ("sales.*",), "exclude": ["*.*"]}, ["no table is found by tables without those of"]),
        ({"tables": ("a.b.c",)}, ["tables: 'a.b.c' is no pattern"]),
        ({"tables": ('"sales',)}, ["is no pattern"]),
        ({"tables": ("",)}, ["is no pattern"]),
        ({"tables": ()}, ["tables must hold at least one pattern"]),
        ({"schemas": {"salez": "x"}}, ["schemas: the set has no table of schema 'salez'"]),
        (
            {"tables": ("sales.*", "other.*"), "schemas": {"other": "sales"}},
            ['"other"."customer" and "sales"."customer" would both become "sales"."customer"'],
        ),
        ({"columns": ["id"]}, ["columns is for one table"]),
        ({"part_column": "id"}, ["part_column is for one source"]),
        ({"source_table": "a", "destination_table": "b"}, ["tables is for a set of tables"]),
        ({"tables": ("sales.*",), "max_parts": 0}, ["max_parts"]),
        ({"tables": ("kids.*",)}, ["rows would come twice: kids.child inherits from kids.parent"]),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(
    shop: Run, source: Database, arguments: dict[str, Any], words: list[str]
) -> None:
    source.execute(
        "CREATE SCHEMA other; CREATE TABLE other.customer (id int); CREATE VIEW sale AS SELECT 1 AS a;"
        "CREATE SCHEMA kids; CREATE TABLE kids.parent (id int);"
        "CREATE TABLE kids.child () INHERITS (kids.parent)"
    )
    refused(shop, *words, **arguments)


def test_a_foreign_key_from_outside_is_named(shop: Run, warehouse: Database) -> None:
    warehouse.execute(
        "CREATE TABLE public.bill (customer int CONSTRAINT of_customer REFERENCES sales.customer)"
    )
    refused(shop, "constraint of_customer on table", "bill depends on it")
    assert warehouse.rows(LEFT) == []


def test_tables_that_come_while_it_begins_are_seen(shop: Run, source: Database) -> None:
    """The set is looked at again once its tables are locked."""
    with psycopg.connect(source.conninfo) as other:
        other.execute("TRUNCATE sales.orders CASCADE")
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock'"

        def come() -> None:
            source.execute("CREATE TABLE sales.another (id int)")
            other.rollback()

        with (
            meanwhile(come, lambda: source.admin(waits)),
            pytest.raises(TransientError, match="the tables of the set changed meanwhile"),
        ):
            shop.plan("sales.*")


def test_mistakes_are_found_when_the_dag_is_parsed_and_templates_are_left_alone() -> None:
    with pytest.raises(AirflowFailException, match="tables must hold at least one pattern"):
        DblinkPartsPlanOperator(task_id="plan", **BOTH, tables=[])
    with pytest.raises(AirflowFailException, match="no table is given"):
        DblinkPartsPlanOperator(task_id="plan", **BOTH)
    task = DblinkPartsPlanOperator(task_id="plan", **BOTH, tables="{{ params.tables }}", exclude=["{{ ds }}"])
    assert task.tables == "{{ params.tables }}"


def test_units_that_somebody_has_changed_are_refused(shop: Run) -> None:
    shop.plan("sales.*")
    for part in (["x"], [[1]], [["a", "b", "c"]], 7):
        with pytest.raises(AirflowFailException, match="parts must be what the task that plans the set has"):
            shop.load([part])


def test_a_set_that_is_dropped_leaves_nothing(shop: Run, source: Database, warehouse: Database) -> None:
    left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'dblink_load%%'"
    parts = shop.plan("sales.*")
    tables = len({table for unit in parts for table, _, _ in unit})
    assert tables > 1
    shop.load(parts[:1])
    assert shop.drop("sales.item") == {"dropped": 0}  # another set's
    assert warehouse.rows(left) != [(0,)]
    assert shop.drop("sales.*") == {"dropped": tables}
    assert warehouse.rows(left) == [(0,)]
    wait_until(lambda: not [name for _, name, *_ in source.sessions() if "dblink_keeper" in name])
