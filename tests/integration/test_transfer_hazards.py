"""What would touch other rows, or be done otherwise than by an INSERT: refused, locked, or said."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from tests.databases import Database
from tests.oracle import wait_until
from tests.transfers import transfer

ITEM = "CREATE TABLE item (id int, name text)"
THREE = "INSERT INTO item VALUES (1, 'a'), (2, 'b'), (3, NULL)"


@pytest.fixture
def both(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases with a table item without key, three rows in the source's."""
    source.execute(f"{ITEM}; {THREE}")
    warehouse.execute(ITEM)
    return source, warehouse


def refused(*words: str, **arguments: Any) -> None:
    with pytest.raises(AirflowFailException) as caught:
        transfer(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# -- inheritance


def test_replacing_a_parent_would_empty_its_children_and_is_refused(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute(
        """CREATE TABLE child () INHERITS (item); CREATE SCHEMA other;
        CREATE TABLE other.grandchild () INHERITS (child); INSERT INTO child VALUES (9, 'kept')"""
    )
    refused("'warehouse'", "public.item", "other.grandchild, public.child", "TRUNCATE ONLY", mode="replace")
    assert warehouse.rows("SELECT * FROM item") == [(9, "kept")]
    transfer(mode="append", pre_sql="TRUNCATE ONLY public.item")
    assert warehouse.rows("SELECT count(*) FROM item") == [(4,)]


def test_a_table_whose_children_are_gone_is_replaced(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("CREATE TABLE child () INHERITS (item); DROP TABLE child")
    assert transfer(mode="replace")["changed"] == 3


# -- rules


@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
@pytest.mark.parametrize(
    "rule",
    [
        "DO INSTEAD NOTHING",
        "DO ALSO INSERT INTO other VALUES (NEW.id)",
        "WHERE NEW.id = 1 DO INSTEAD NOTHING",
    ],
)
def test_rules_for_inserts_which_copy_passes_over_are_refused(
    both: tuple[Database, Database], rule: str, mode: str
) -> None:
    _, warehouse = both
    warehouse.execute("ALTER TABLE item ADD PRIMARY KEY (id); CREATE TABLE other (id int)")
    where, _, action = rule.rpartition("DO ")
    warehouse.execute(f"CREATE RULE dropped AS ON INSERT TO item {where} DO {action}")
    refused("'warehouse'", "public.item", "dropped", "DISABLE RULE", mode=mode)
    assert warehouse.rows("SELECT * FROM item") == []
    warehouse.execute("ALTER TABLE item DISABLE RULE dropped")
    assert transfer(mode=mode)["changed"] == 3


def test_rules_for_updates_matter_to_an_upsert_alone(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("ALTER TABLE item ADD PRIMARY KEY (id)")
    warehouse.execute("CREATE RULE fixed AS ON UPDATE TO item DO INSTEAD NOTHING")
    refused("'warehouse'", "public.item", "fixed", mode="upsert")
    assert transfer()["changed"] == 3


# -- create


def test_create_keeps_collations_and_says_which_domains_and_collations_it_does_not(
    source: Database, warehouse: Database, caplog: pytest.LogCaptureFixture
) -> None:
    source.execute(
        """CREATE DOMAIN short AS varchar(3) CHECK (VALUE <> '');
        CREATE COLLATION own FROM "C"; CREATE COLLATION shared FROM "POSIX";
        CREATE TABLE item (id int, a short, b text COLLATE "C", c text COLLATE own, d text COLLATE shared,
                           e text, f name)"""
    )
    warehouse.execute('CREATE COLLATION shared FROM "POSIX"')
    transfer(mode="create")
    columns = """SELECT attname, format_type(atttypid, atttypmod), attcollation::regcollation::text
        FROM pg_attribute WHERE attrelid = 'item'::regclass AND attnum > 1 ORDER BY attnum"""
    assert warehouse.rows(columns) == [
        ("a", "character varying(3)", '"default"'),
        ("b", "text", '"C"'),
        ("c", "text", '"default"'),
        ("d", "text", "shared"),
        ("e", "text", '"default"'),
        ("f", "name", '"C"'),
    ]
    assert "column 'a' is created as character varying(3), not as domain short" in caplog.text
    assert "has no collation public.own: column 'c' is created with the database's own" in caplog.text
    assert caplog.text.count(" is created ") == 2


def test_create_keeps_the_collations_of_a_querys_plain_columns(source: Database, warehouse: Database) -> None:
    source.execute('CREATE TABLE item (id int, b text COLLATE "C")')
    transfer(mode="create", source_sql="SELECT b AS renamed, id + 1 AS id FROM item")
    assert warehouse.rows(
        "SELECT attcollation::regcollation::text FROM pg_attribute"
        " WHERE attrelid = 'item'::regclass AND attname = 'renamed'"
    ) == [('"C"',)]


# -- two at once


GATE = 4711
WAITING = (
    "SELECT wait_event FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
@pytest.mark.parametrize(("lock", "rows"), [(True, 3), (False, 6)])
def test_two_that_delete_and_load_the_same_rows_at_once_double_them_without_the_lock(
    both: tuple[Database, Database], lock: bool, rows: int, isolation: str
) -> None:
    _, warehouse = both
    results: list[Any] = []

    def load() -> None:
        arguments: dict[str, Any] = {"lock": lock} if lock else {}
        arguments["session_settings"] = {"default_transaction_isolation": isolation}
        # What is loaded is there, and not committed, until the gate opens.
        pass_gate = f"SELECT pg_advisory_xact_lock({GATE})"
        results.append(transfer(pre_sql="DELETE FROM item", post_sql=pass_gate, **arguments))

    threads = [threading.Thread(target=load) for _ in range(2)]
    with psycopg.connect(warehouse.conninfo) as gate:
        gate.execute("SELECT pg_advisory_xact_lock(%s)", [GATE])
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda number=number: len(warehouse.admin(WAITING)) == number)  # type: ignore[misc]
        waits = sorted(event for (event,) in warehouse.admin(WAITING))
        assert waits == (["advisory", "relation"] if lock else ["advisory", "advisory"])
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert warehouse.rows("SELECT count(*) FROM item") == [(rows,)]


def test_reading_goes_on_under_the_lock(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("CREATE TABLE seen (rows int)")
    with psycopg.connect(warehouse.conninfo) as reader:
        reader.execute("SELECT * FROM item")
        settings = {"lock_timeout": "20s"}
        assert transfer(lock=True, session_settings=settings)["changed"] == 3
        reader.rollback()


def test_a_lock_that_cannot_be_had_is_refused(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    refused("lock", "create", lock=True, mode="create", destination_table="another")
    warehouse.admin(
        f'CREATE TABLE closed (LIKE item); GRANT INSERT, SELECT ON closed TO "{warehouse.server.role}"'
    )
    refused("42501", "lock needs UPDATE or DELETE on public.closed", lock=True, destination_table="closed")
    assert warehouse.admin("SELECT * FROM closed") == []
