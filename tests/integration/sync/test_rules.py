"""A destination with rules of its own: unique values, foreign keys, generated columns, triggers."""

from __future__ import annotations

import pytest

from airflow_dblink.core.errors import RemoteError, VerificationError
from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.sync.tables import contents, refused, refused_by_server, settled
from tests.syncs import sync

METHODS = pytest.mark.parametrize("method", ["difference", "reload"])
APPLIES = pytest.mark.parametrize("apply", ["set", "statements"])
ITEM = "CREATE TABLE item (id int PRIMARY KEY, v text)"
FILL = "INSERT INTO item SELECT i, 'v' || i FROM generate_series(1, 100) AS i"


def made(*databases: Database, table: str = ITEM, fill: str = FILL) -> None:
    for database in databases:
        database.execute(f"{table}; {fill}")


# -- unique values that are not the key


UNIQUE = "CREATE TABLE item (id int PRIMARY KEY, v text UNIQUE {}, extra int)"
SWAP = "UPDATE item SET v = CASE id WHEN 1 THEN 'v2' WHEN 2 THEN 'v3' ELSE 'v1' END WHERE id < 4"
NUMBERED = "INSERT INTO item (id, v) SELECT i, 'v' || i FROM generate_series(1, 100) AS i"


def swapped(source: Database, warehouse: Database, how: str = "") -> None:
    made(source, table=UNIQUE.format("DEFERRABLE"), fill=NUMBERED)
    made(warehouse, table=UNIQUE.format(how), fill=NUMBERED)
    source.execute(SWAP)


@METHODS
@APPLIES
def test_swapped_unique_values_fail_by_name(
    source: Database, warehouse: Database, method: str, apply: str
) -> None:
    swapped(source, warehouse)
    refused_by_server(warehouse, "warehouse", "item_v_key", "23505", method=method, apply=apply)


@METHODS
@APPLIES
def test_swapped_unique_values_are_no_matter_to_a_deferrable_constraint(
    source: Database, warehouse: Database, method: str, apply: str
) -> None:
    swapped(source, warehouse, "DEFERRABLE")
    assert settled(source, warehouse, method=method, apply=apply)["updated"] == 3


@METHODS
def test_swapped_unique_values_are_written_by_replacing_the_rows(
    source: Database, warehouse: Database, method: str
) -> None:
    swapped(source, warehouse)
    result = settled(source, warehouse, method=method, on_conflict="replace")
    assert (result["inserted"], result["updated"], result["deleted"], result["displaced"]) == (0, 3, 0, 0)


def test_a_row_is_not_replaced_if_it_would_lose_a_column(source: Database, warehouse: Database) -> None:
    swapped(source, warehouse)
    refused(warehouse, "extra", "warehouse", on_conflict="replace", columns=["id", "v"])


def test_a_row_is_not_replaced_if_others_would_follow(source: Database, warehouse: Database) -> None:
    swapped(source, warehouse)
    warehouse.execute("CREATE TABLE child (id int REFERENCES item ON DELETE CASCADE)")
    refused(warehouse, "child", "warehouse", on_conflict="replace")


def test_a_value_is_given_up_by_a_deleted_row_before_it_is_taken(
    source: Database, warehouse: Database
) -> None:
    made(source, warehouse, table=UNIQUE.format(""), fill=NUMBERED)
    source.execute("DELETE FROM item WHERE id = 5; INSERT INTO item VALUES (105, 'v5')")
    source.execute("DELETE FROM item WHERE id = 6; UPDATE item SET v = 'v6' WHERE id = 7")
    result = settled(source, warehouse)
    assert (result["inserted"], result["updated"], result["deleted"]) == (1, 1, 2)


def test_a_row_outside_that_has_the_value_is_displaced_only_when_asked(
    source: Database, warehouse: Database
) -> None:
    made(source, warehouse, table=UNIQUE.format(""), fill=NUMBERED)
    warehouse.execute("INSERT INTO item VALUES (1000, 'taken')")
    source.execute("UPDATE item SET v = 'taken' WHERE id = 3")
    refused_by_server(warehouse, "item_v_key", "23505", where="id < 1000")
    refused(warehouse, "max_delete_fraction", where="id < 1000", on_conflict="replace", max_delete_fraction=0)
    result = sync(where="id < 1000", on_conflict="replace")
    assert (result["updated"], result["deleted"], result["displaced"]) == (1, 0, 1)
    assert contents(source) == contents(warehouse)


# -- foreign keys


TREE = """CREATE TABLE item (id int PRIMARY KEY, parent int {} REFERENCES item {}, v text)"""


@pytest.mark.parametrize("how", ["", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"])
@METHODS
def test_a_table_that_refers_to_itself_is_written_in_whatever_order(
    source: Database, warehouse: Database, how: str, method: str
) -> None:
    fill = "INSERT INTO item SELECT i, CASE WHEN i < 300 THEN i + 1 END, 'v' FROM generate_series(1, 300) i"
    made(source, table=TREE.format("", "DEFERRABLE"), fill=fill)
    made(warehouse, table=TREE.format("", how), fill=fill)
    warehouse.execute("UPDATE item SET parent = NULL; DELETE FROM item WHERE id % 7 = 0")
    warehouse.execute("INSERT INTO item VALUES (1000, NULL, 'x'), (1001, 1000, 'x'), (1002, 1001, 'x')")
    result = settled(source, warehouse, method=method, on_conflict="error")
    assert (result["inserted"], result["deleted"]) == (42, 3)
    if how:
        warehouse.execute("UPDATE item SET parent = NULL WHERE parent > 250; DELETE FROM item WHERE id > 250")
        result = settled(source, warehouse, method=method, apply="statements")
        assert (result["inserted"], result["updated"]) == (50, 1)
    else:
        warehouse.execute("DELETE FROM item WHERE id = 1")
        refused(warehouse, "refers to itself", "item_parent_fkey", method=method, apply="statements")


def test_a_table_that_refers_to_itself_is_loaded_first(source: Database, warehouse: Database) -> None:
    fill = "INSERT INTO item SELECT i, CASE WHEN i < 300 THEN i + 1 END, 'v' FROM generate_series(1, 300) i"
    made(source, table=TREE.format("", "DEFERRABLE"), fill=fill)
    made(warehouse, table=TREE.format("NOT NULL", "").replace("NOT NULL", ""), fill="")
    assert settled(source, warehouse)["inserted"] == 300


@METHODS
def test_parents_and_children_are_synced_in_order(source: Database, warehouse: Database, method: str) -> None:
    for database in (source, warehouse):
        made(database)
        database.execute("CREATE TABLE child (id int PRIMARY KEY, item int NOT NULL REFERENCES item)")
        database.execute("INSERT INTO child SELECT i, i FROM generate_series(1, 100) AS i")
    source.execute("DELETE FROM child WHERE id < 5; DELETE FROM item WHERE id < 5")
    source.execute("INSERT INTO item VALUES (101, 'new'); INSERT INTO child VALUES (101, 101)")
    refused_by_server(warehouse, "warehouse", "child_item_fkey", "23503", method=method)
    refused_by_server(warehouse, "warehouse", "child_item_fkey", "23503", method=method, table="child")
    assert sync(delete=False, method=method)["inserted"] == 1
    result = settled(source, warehouse, "child", method=method)
    assert (result["inserted"], result["deleted"]) == (1, 4)
    assert settled(source, warehouse, method=method, insert=False, update=False)["deleted"] == 4


@APPLIES
def test_children_follow_where_their_foreign_key_says_so(
    source: Database, warehouse: Database, apply: str
) -> None:
    made(source, warehouse)
    warehouse.execute("CREATE TABLE child (id int REFERENCES item ON DELETE CASCADE)")
    warehouse.execute("INSERT INTO child SELECT i FROM generate_series(1, 100) AS i")
    source.execute("DELETE FROM item WHERE id <= 10; UPDATE item SET v = 'x' WHERE id = 11")
    result = settled(source, warehouse, apply=apply)
    assert (result["updated"], result["deleted"]) == (1, 10)
    assert warehouse.rows("SELECT count(*), min(id) FROM child") == [(90, 11)]


# -- columns that the destination fills


@METHODS
def test_generated_columns_are_left_to_the_destination(
    source: Database, warehouse: Database, method: str
) -> None:
    table = "CREATE TABLE item (id int PRIMARY KEY, v text, twice text GENERATED ALWAYS AS ({}) STORED)"
    fill = "INSERT INTO item (id, v) SELECT i, 'v' || i FROM generate_series(1, 100) AS i"
    made(source, table=table.format("v || v"), fill=fill)
    made(warehouse, table=table.format("v || '!'"), fill=fill)
    source.execute("UPDATE item SET v = 'x' WHERE id = 5; INSERT INTO item (id, v) VALUES (200, 'y')")
    result = settled(source, warehouse, method=method)
    assert (result["inserted"], result["updated"]) == (1, 1)
    assert warehouse.rows("SELECT twice FROM item WHERE id IN (5, 200)") == [("x!",), ("y!",)]


@pytest.mark.parametrize("identity", ["ALWAYS", "BY DEFAULT"])
@METHODS
def test_an_identity_column_that_is_the_key(
    source: Database, warehouse: Database, identity: str, method: str
) -> None:
    table = f"CREATE TABLE item (id int GENERATED {identity} AS IDENTITY PRIMARY KEY, v text)"
    made(source, table=ITEM)
    made(warehouse, table=table, fill=FILL.replace("SELECT", "OVERRIDING SYSTEM VALUE SELECT"))
    source.execute("INSERT INTO item VALUES (700, 'x'); DELETE FROM item WHERE id = 3")
    source.execute("UPDATE item SET v = 'x' WHERE id = 4")
    result = settled(source, warehouse, method=method)
    assert (result["inserted"], result["updated"], result["deleted"]) == (1, 1, 1)
    warehouse.execute("INSERT INTO item (v) VALUES ('next')")
    assert warehouse.rows("SELECT id FROM item WHERE v = 'next'") == [(701,)]


@METHODS
def test_a_table_of_nothing_but_an_identity_column(
    source: Database, warehouse: Database, method: str
) -> None:
    made(
        source,
        warehouse,
        table="CREATE TABLE item (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
        fill="",
    )
    source.execute("INSERT INTO item OVERRIDING SYSTEM VALUE SELECT generate_series(1, 100)")
    warehouse.execute("INSERT INTO item OVERRIDING SYSTEM VALUE SELECT generate_series(5, 101)")
    result = settled(source, warehouse, method=method)
    assert (result["inserted"], result["updated"], result["deleted"]) == (4, 0, 1)


def test_an_identity_column_that_is_not_the_key(source: Database, warehouse: Database) -> None:
    made(source, table="CREATE TABLE item (id int PRIMARY KEY, n int)", fill="INSERT INTO item VALUES (1, 5)")
    table = "CREATE TABLE item (id int PRIMARY KEY, n int GENERATED {} AS IDENTITY)"
    fill = "INSERT INTO item VALUES (2, DEFAULT)"
    made(warehouse, table=table.format("ALWAYS"), fill=fill)
    refused(warehouse, "'n'", "GENERATED ALWAYS", max_delete_fraction=None)
    assert sync(update=False, delete=False)["inserted"] == 1
    assert warehouse.rows("SELECT * FROM item ORDER BY id") == [(1, 5), (2, 1)]
    warehouse.execute("ALTER TABLE item ALTER n SET GENERATED BY DEFAULT; UPDATE item SET n = 9")
    result = settled(source, warehouse, max_delete_fraction=None)
    assert (result["inserted"], result["updated"], result["deleted"]) == (0, 1, 1)


@pytest.mark.parametrize("reset", [True, False])
def test_sequences_are_moved_beyond_inserted_values(
    source: Database, warehouse: Database, reset: bool
) -> None:
    made(source, warehouse, table="CREATE TABLE item (id serial PRIMARY KEY, v text)")
    source.execute("INSERT INTO item VALUES (500, 'x')")
    sync(reset_sequences=reset)
    assert warehouse.rows("SELECT nextval('item_id_seq')") == [(501 if reset else 1,)]


# -- triggers


STAMP = """
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$;
CREATE TRIGGER stamp {} ON item FOR EACH ROW EXECUTE FUNCTION stamp()
"""
CHANGES = (
    "UPDATE item SET v = 'x' WHERE id IN (3, 50); DELETE FROM item WHERE id = 4; INSERT INTO item VALUES (0)"
)


@METHODS
@APPLIES
def test_triggers_fire(source: Database, warehouse: Database, method: str, apply: str) -> None:
    made(source, warehouse)
    warehouse.execute("CREATE TABLE log (what text, id int)")
    body = "INSERT INTO log VALUES (TG_OP, coalesce(NEW.id, OLD.id)); RETURN NULL;"
    warehouse.execute(STAMP.format(body, "AFTER INSERT OR UPDATE OR DELETE"))
    source.execute(CHANGES)
    settled(source, warehouse, method=method, apply=apply)
    assert warehouse.rows("SELECT * FROM log ORDER BY what, id") == [
        ("DELETE", 4),
        ("INSERT", 0),
        ("UPDATE", 3),
        ("UPDATE", 50),
    ]


@pytest.mark.parametrize(
    ("body", "when", "says"),
    [
        ("NEW.v := 'mine'; RETURN NEW;", "BEFORE UPDATE", "differs"),
        ("RETURN NULL;", "BEFORE INSERT", "is missing"),
        ("RETURN NULL;", "BEFORE DELETE", "is still there"),
        ("RETURN NULL;", "BEFORE UPDATE", "differs"),
        ("DELETE FROM item WHERE id = NEW.id; RETURN NULL;", "AFTER INSERT", "is missing"),
        ("INSERT INTO item VALUES (OLD.id, 'back'); RETURN NULL;", "AFTER DELETE", "is still there"),
    ],
)
@METHODS
@APPLIES
def test_a_trigger_that_changes_what_is_written_is_found_out(
    source: Database, warehouse: Database, method: str, apply: str, body: str, when: str, says: str
) -> None:
    made(source, warehouse)
    warehouse.execute(STAMP.format(body, when))
    source.execute(CHANGES)
    words = ("verification failed", says, "public.item", "id = ", "rolled back")
    group = ("group id from",) if method == "difference" else ()
    refused(warehouse, *words, *group, error=VerificationError, method=method, apply=apply)


@pytest.mark.parametrize("body", ["RETURN NULL;", "NEW.v := 'mine'; RETURN NEW;"])
def test_a_trigger_that_changes_the_first_load_is_found_out(
    source: Database, warehouse: Database, body: str
) -> None:
    made(source)
    made(warehouse, fill="")
    warehouse.execute(STAMP.format(body, "BEFORE INSERT"))
    refused(warehouse, "verification failed", "public.item", error=VerificationError)


STATES = (
    "SELECT tgname, tgenabled::text FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = 'item'::regclass"
)
FOUR = """
CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'fired %', TG_NAME; END $$;
CREATE TRIGGER o BEFORE INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION no();
CREATE TRIGGER "a ""A" AFTER INSERT OR UPDATE OR DELETE ON item FOR EACH STATEMENT EXECUTE FUNCTION no();
CREATE TRIGGER r BEFORE INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION no();
CREATE TRIGGER d BEFORE INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION no();
ALTER TABLE item ENABLE ALWAYS TRIGGER "a ""A", ENABLE REPLICA TRIGGER r, DISABLE TRIGGER d
"""
AS_THEY_WERE = [('a "A', "A"), ("d", "D"), ("o", "O"), ("r", "R")]


@METHODS
@APPLIES
def test_disabled_triggers_are_as_they_were_afterwards(
    source: Database, warehouse: Database, method: str, apply: str
) -> None:
    made(source, warehouse)
    source.execute(CHANGES)
    warehouse.execute(FOUR)
    refused_by_server(warehouse, "fired", method=method, apply=apply)
    assert sorted(warehouse.rows(STATES)) == AS_THEY_WERE
    settled(source, warehouse, method=method, apply=apply, triggers="disable")
    assert sorted(warehouse.rows(STATES)) == AS_THEY_WERE


@pytest.mark.parametrize("how", ["", "DEFERRABLE INITIALLY DEFERRED"])
def test_triggers_are_disabled_for_the_first_load_too(
    source: Database, warehouse: Database, how: str
) -> None:
    fill = "INSERT INTO item SELECT i, nullif(i + 1, 101), 'v' FROM generate_series(1, 100) AS i"
    made(source, table=TREE.format("", "DEFERRABLE"), fill=fill)
    made(warehouse, table=TREE.format("", how), fill="")
    warehouse.execute(FOUR)
    settled(source, warehouse, triggers="disable")
    assert sorted(warehouse.rows(STATES)) == AS_THEY_WERE


def test_triggers_of_partitions_are_disabled_and_as_they_were(source: Database, warehouse: Database) -> None:
    made(source)
    made(warehouse, table=ITEM + " PARTITION BY RANGE (id)", fill="")
    warehouse.execute("CREATE TABLE low PARTITION OF item FOR VALUES FROM (MINVALUE) TO (50)")
    warehouse.execute("CREATE TABLE high PARTITION OF item FOR VALUES FROM (50) TO (MAXVALUE)")
    warehouse.execute(FILL)
    warehouse.execute(FOUR.replace("CREATE TRIGGER d BEFORE", "CREATE TRIGGER d AFTER"))
    warehouse.execute(
        "ALTER TABLE high DISABLE TRIGGER o; CREATE TRIGGER own BEFORE UPDATE ON low"
        " FOR EACH ROW EXECUTE FUNCTION no()"
    )
    states = "SELECT tgrelid::regclass::text, tgname, tgenabled::text FROM pg_trigger ORDER BY 1, 2, 3"
    before = warehouse.rows(states)
    source.execute(CHANGES)
    settled(source, warehouse, triggers="disable")
    assert warehouse.rows(states) == before


def test_only_the_owner_may_have_triggers_disabled(
    source: Database, warehouse: Database, add_connection: AddConnection
) -> None:
    made(source, warehouse)
    source.execute(CHANGES)
    role = warehouse.server.role
    warehouse.execute(FOUR)
    warehouse.admin(f'ALTER TABLE item OWNER TO postgres; GRANT ALL ON item TO "{role}"')
    refused(warehouse, "owner", "42501", "warehouse", triggers="disable")
    warehouse.admin('DROP TRIGGER o ON item; DROP TRIGGER "a ""A" ON item; DROP TRIGGER r ON item')
    settled(source, warehouse, triggers="disable")  # the one that is left is disabled anyway


# -- what isn't a plain table


@METHODS
def test_views_and_foreign_tables_are_sources(source: Database, warehouse: Database, method: str) -> None:
    made(source, warehouse)
    source.execute(CHANGES)
    source.execute("CREATE VIEW seen AS TABLE item; CREATE MATERIALIZED VIEW kept AS TABLE item")
    source.admin("CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw")
    source.admin(
        "CREATE FOREIGN TABLE outside (id int, v text) SERVER files OPTIONS (program 'echo 1,v; echo 2,w',"
        f" format 'csv'); GRANT SELECT ON outside TO \"{source.server.role}\""
    )
    for relation in ("seen", "kept"):
        warehouse.execute("UPDATE item SET v = 'y' WHERE id = 77")
        assert sync(source_table=relation, method=method)["changed"] >= 1
        assert contents(source) == contents(warehouse)
    sync(source_table="outside", method=method, max_delete_fraction=None)
    assert contents(warehouse) == ["(1,v)", "(2,w)"]


@METHODS
@APPLIES
def test_a_partitioned_destination(source: Database, warehouse: Database, method: str, apply: str) -> None:
    made(source, table="CREATE TABLE item (id int, at date, v text, PRIMARY KEY (id, at))", fill="")
    made(
        warehouse,
        table="""CREATE TABLE item (v text, id int, at date, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
        CREATE TABLE p1 PARTITION OF item FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
        CREATE TABLE p2 (gone int, at date NOT NULL, v text, id int NOT NULL);
        ALTER TABLE p2 DROP gone;
        ALTER TABLE item ATTACH PARTITION p2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')""",
        fill="",
    )
    for database in (source, warehouse):
        database.execute(
            "INSERT INTO item (id, at, v) SELECT i, date '2026-01-01' + i % 50, 'v'"
            " FROM generate_series(1, 500) i"
        )
    source.execute("UPDATE item SET at = '2026-01-02' WHERE id = 35; UPDATE item SET v = NULL WHERE id = 36")
    result = settled(source, warehouse, method=method, apply=apply)
    assert (result["inserted"], result["updated"], result["deleted"]) == (1, 1, 1)
    source.execute("INSERT INTO item VALUES (1, '2027-01-01', 'x')")
    refused_by_server(warehouse, "no partition", "warehouse", method=method, apply=apply)


@METHODS
def test_rows_of_inheritance_children_count(source: Database, warehouse: Database, method: str) -> None:
    made(source, warehouse)
    warehouse.execute("CREATE TABLE child () INHERITS (item)")
    warehouse.execute("INSERT INTO child VALUES (200, 'x'), (201, 'x')")
    source.execute("INSERT INTO item VALUES (200, 'y')")
    result = settled(source, warehouse, method=method)
    assert (result["inserted"], result["updated"], result["deleted"]) == (0, 1, 1)


@METHODS
def test_a_key_that_an_inheritance_child_has_again_is_refused(
    source: Database, warehouse: Database, method: str
) -> None:
    """The index of a parent knows nothing of its children's rows."""
    made(source, warehouse)
    warehouse.execute("CREATE TABLE child () INHERITS (item); INSERT INTO child VALUES (7, 'v7')")
    refused(warehouse, "same key", "warehouse", "public.item", method=method)
    warehouse.execute("UPDATE item SET v = 'other' WHERE id = 7")
    refused(warehouse, "same key", "warehouse", "public.item", method=method)


@METHODS
def test_a_key_that_a_child_of_the_source_has_again_is_refused(
    source: Database, warehouse: Database, method: str
) -> None:
    made(source, warehouse)
    source.execute("CREATE TABLE child () INHERITS (item); INSERT INTO child VALUES (7, 'v7')")
    refused(warehouse, "same key", "source", method=method)


def test_rules_are_refused(source: Database, warehouse: Database) -> None:
    made(source, warehouse)
    source.execute(CHANGES)
    warehouse.execute("CREATE RULE quiet AS ON DELETE TO item DO INSTEAD NOTHING")
    refused(warehouse, "rules", "warehouse", "public.item")


def test_a_check_that_fails_names_the_constraint(source: Database, warehouse: Database) -> None:
    made(source, warehouse)
    source.execute(CHANGES)
    warehouse.execute("ALTER TABLE item ADD CONSTRAINT never CHECK (v <> 'x')")
    with pytest.raises(RemoteError, match=r"(?s)warehouse.*never.*23514"):
        sync()
