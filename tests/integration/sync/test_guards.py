"""What a sync refuses, with a reason and with nothing changed."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.errors import RemoteError
from tests.databases import Database
from tests.integration.sync.tables import contents, refused, refused_by_server, settled, versions
from tests.syncs import sync

METHODS = pytest.mark.parametrize("method", ["auto", "difference", "reload"])
APPLIES = pytest.mark.parametrize("apply", ["set", "statements"])
ITEM = "CREATE TABLE item (id int PRIMARY KEY, v text, flag int)"
FILL = "INSERT INTO item SELECT i, 'v' || i, i % 10 FROM generate_series(1, 100) AS i"


@pytest.fixture
def both(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases with the same table of 100 rows."""
    for database in (source, warehouse):
        database.execute(f"{ITEM}; {FILL}")
    return source, warehouse


# -- who holds the table


def test_replace_waits_as_long_as_it_may(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    with psycopg.connect(warehouse.conninfo) as reader:
        reader.execute("SELECT count(*) FROM item")
        started = time.monotonic()
        with pytest.raises(RemoteError, match="lock timeout"):
            sync(method="replace", max_delete_fraction=None, session_settings={"lock_timeout": "500ms"})
        assert time.monotonic() - started < 30


# -- how much may change


@METHODS
def test_an_empty_source(both: tuple[Database, Database], method: str) -> None:
    source, warehouse = both
    source.execute("TRUNCATE item")
    refused(warehouse, "source is empty", "public.item", "100 rows", method=method)
    refused(warehouse, "max_delete_fraction", "100 rows of the 100", method=method, allow_empty_source=True)
    unchanged = sync(method=method, delete=False)
    assert (unchanged["extra"], unchanged["deleted"]) == (100, 0)
    result = settled(source, warehouse, method=method, allow_empty_source=True, max_delete_fraction=None)
    assert result["deleted"] == 100


@METHODS
@APPLIES
def test_too_many_deletes(both: tuple[Database, Database], method: str, apply: str) -> None:
    source, warehouse = both
    source.execute("DELETE FROM item WHERE id <= 30")
    refused(warehouse, "30 rows of the 100", "max_delete_fraction=0.25", method=method, apply=apply)
    planned = sync(method=method, apply=apply, plan_only=True)
    assert (planned["extra"], planned["deleted"]) == (30, 0)
    assert [said for said in planned["refused"] if "max_delete_fraction=0.25" in said]
    assert sync(method=method, apply=apply, delete=False)["deleted"] == 0
    assert settled(source, warehouse, method=method, apply=apply, max_delete_fraction=0.3)["deleted"] == 30


@METHODS
def test_too_many_changes(both: tuple[Database, Database], method: str) -> None:
    source, warehouse = both
    source.execute("DELETE FROM item WHERE id <= 5; UPDATE item SET v = 'x' WHERE id > 90")
    source.execute("INSERT INTO item SELECT i FROM generate_series(101, 106) AS i")
    refused(
        warehouse, "21 rows of the 100", "max_change_fraction=0.2", method=method, max_change_fraction=0.2
    )
    only = sync(method=method, max_change_fraction=0.1, insert=False, delete=False)
    assert (only["inserted"], only["updated"], only["deleted"]) == (0, 10, 0)
    assert settled(source, warehouse, method=method, max_change_fraction=0.2)["inserted"] == 6


# -- which changes are made


@METHODS
@APPLIES
@pytest.mark.parametrize("on", ["insert", "update", "delete"])
def test_each_kind_of_change_alone(both: tuple[Database, Database], method: str, apply: str, on: str) -> None:
    source, warehouse = both
    source.execute("DELETE FROM item WHERE id <= 5; UPDATE item SET v = 'x' WHERE id > 90")
    source.execute("INSERT INTO item SELECT i FROM generate_series(101, 106) AS i")
    given: dict[str, Any] = {name: name == on for name in ("insert", "update", "delete")}
    result = sync(method=method, apply=apply, **given)
    expected = {"insert": (6, 0, 0), "update": (0, 10, 0), "delete": (0, 0, 5)}[on]
    assert (result["inserted"], result["updated"], result["deleted"]) == expected
    assert (result["missing"], result["changed"], result["extra"]) == (6, 10, 5)
    before = versions(warehouse)
    assert sync(method=method, apply=apply, **given)["updated"] == 0
    assert versions(warehouse) == before


def test_nothing_to_do_is_refused(both: tuple[Database, Database]) -> None:
    refused(both[1], "insert, update and delete are all off", insert=False, update=False, delete=False)


# -- tables that don't fit


@METHODS
def test_columns_that_only_one_side_has(both: tuple[Database, Database], method: str) -> None:
    source, warehouse = both
    source.execute("UPDATE item SET v = 'x' WHERE id = 3; ALTER TABLE item ADD more int")
    refused(warehouse, "'more'", "warehouse", "public.item", method=method)
    warehouse.execute("ALTER TABLE item ADD own int")
    source.execute("ALTER TABLE item DROP more")
    refused(warehouse, "'own'", "warehouse", "source", method=method)
    warehouse.execute("UPDATE item SET own = id")
    assert sync(method=method, columns=["id", "v"])["updated"] == 1
    assert warehouse.rows("SELECT v, flag, own FROM item WHERE id = 3") == [("x", 3, 3)]
    source.execute("ALTER TABLE item RENAME v TO w")
    refused(warehouse, "'v'", method=method, columns=["id", "v"])
    source.execute("UPDATE item SET w = 'y' WHERE id = 4")
    assert sync(method=method, columns={"id": "id", "w": "v"})["updated"] == 1
    refused(warehouse, "'nope'", method=method, columns={"id": "id", "w": "nope"})


@METHODS
@APPLIES
def test_names_that_trade_places(both: tuple[Database, Database], method: str, apply: str) -> None:
    """What is called id there is called flag here, and the other way round."""
    source, warehouse = both
    warehouse.execute(
        "TRUNCATE item; INSERT INTO item (id, flag) SELECT i, i + 1 FROM generate_series(1, 9) i"
    )
    source.execute("TRUNCATE item; INSERT INTO item (id, flag) SELECT i + 1, i FROM generate_series(1, 9) i")
    source.execute("UPDATE item SET id = 77 WHERE flag = 5; DELETE FROM item WHERE flag = 9")
    source.execute("INSERT INTO item (id, flag) VALUES (1000, 10)")
    arguments: dict[str, Any] = {"columns": {"id": "flag", "flag": "id"}, "where": "id < 100 AND flag > 0"}
    result = sync(method=method, apply=apply, **arguments)
    assert (result["inserted"], result["updated"], result["deleted"]) == (1, 1, 1)
    assert warehouse.rows("SELECT flag FROM item WHERE id IN (5, 10) ORDER BY id") == [(77,), (1000,)]


def test_a_destination_that_is_no_table_or_the_source_itself(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("CREATE VIEW seen AS TABLE item")
    refused(warehouse, "not a table", destination_table="seen")
    refused(warehouse, "both source and destination", source_conn_id="warehouse")
    for name, where in (("source_table", "source"), ("destination_table", "warehouse")):
        arguments: dict[str, Any] = {name: "nope"}
        refused(warehouse, "42P01", where, **arguments)


# -- part of a table


@METHODS
@APPLIES
def test_rows_outside_of_where_are_left_alone(
    both: tuple[Database, Database], method: str, apply: str
) -> None:
    source, warehouse = both
    source.execute("UPDATE item SET v = 'x'; DELETE FROM item WHERE id IN (3, 4, 13)")
    source.execute("INSERT INTO item VALUES (203, 'new', 3), (204, 'new', 4)")
    arguments: dict[str, Any] = {
        "where": "flag = %s -- of ours",
        "where_parameters": [3],
        "method": method,
        "apply": apply,
    }
    result = sync(**arguments)
    assert (result["inserted"], result["updated"], result["deleted"]) == (1, 8, 2)
    assert (result["source_rows"], result["destination_rows"]) == (9, 10)
    assert warehouse.rows("SELECT count(*) FROM item WHERE flag <> 3 AND v LIKE 'v%%'") == [(90,)]
    again = sync(**arguments)
    assert (again["missing"], again["changed"], again["extra"]) == (0, 0, 0)


@METHODS
def test_where_on_a_column_that_is_not_synced(both: tuple[Database, Database], method: str) -> None:
    source, warehouse = both
    source.execute("UPDATE item SET v = 'x'")
    result = sync(columns=["id", "v"], where="flag = 3 AND id > 0", method=method)
    assert result["updated"] == 10
    source.execute("ALTER TABLE item DROP flag")
    words = ("where:", "flag", "source")
    refused(warehouse, *words, columns=["id", "v"], where="flag = 3", method=method)


@METHODS
def test_a_key_that_is_outside_of_where_is_in_the_way(both: tuple[Database, Database], method: str) -> None:
    source, warehouse = both
    source.execute("UPDATE item SET flag = 3 WHERE id = 4")
    refused(warehouse, "outside", "23505", "public.item", where="flag = 3", method=method)
    # The same where the part is empty, so that there is nothing to compare.
    warehouse.execute("UPDATE item SET flag = 4 WHERE flag = 3")
    refused(warehouse, "outside", "23505", "public.item", where="flag = 3", method=method)


@pytest.mark.parametrize("where", ["nope = 1", "flag = ", "flag", "flag = 1; DROP TABLE item"])
def test_a_condition_that_is_none(both: tuple[Database, Database], where: str) -> None:
    both[0].execute("UPDATE item SET v = 'x'")
    with pytest.raises(Exception, match=r"42703|42601|42804|semicolon|where"):
        sync(where=where)
    assert contents(both[1])[0] == "(1,v1,1)"


# -- what the roles may do


GRANTS = """
REVOKE ALL ON item FROM "{role}";
GRANT SELECT (id, v, flag), INSERT (id, v, flag), UPDATE (id, v, flag), DELETE ON item TO "{role}"
"""


def owned_by_another(database: Database) -> str:
    """Leave the role only the privileges that rows need, column by column; return its name."""
    role = database.server.role
    database.admin("ALTER TABLE item OWNER TO postgres")
    database.admin(GRANTS.format(role=role))
    return role


@APPLIES
def test_the_privileges_of_rows_suffice(both: tuple[Database, Database], apply: str) -> None:
    source, warehouse = both
    source.execute("DELETE FROM item WHERE id <= 5; UPDATE item SET v = 'x' WHERE id > 90")
    source.execute("INSERT INTO item SELECT i FROM generate_series(101, 106) AS i")
    for database in both:
        owned_by_another(database)
    if apply == "set":  # dblink's statements write the key, too
        warehouse.admin(f'REVOKE UPDATE (id) ON item FROM "{warehouse.server.role}"')
    result = sync(apply=apply)
    assert (result["inserted"], result["updated"], result["deleted"]) == (6, 10, 5)


@METHODS
def test_the_privileges_of_rows_suffice_to_make_way(both: tuple[Database, Database], method: str) -> None:
    """Two rows swap a unique value, and one outside of the part holds a new row's."""
    source, warehouse = both
    source.execute("UPDATE item SET v = CASE id WHEN 1 THEN 'v2' ELSE 'v1' END WHERE id < 3")
    source.execute("INSERT INTO item VALUES (101, 'new', 1)")
    warehouse.execute("ALTER TABLE item ADD UNIQUE (v); INSERT INTO item VALUES (102, 'new', 100)")
    owned_by_another(warehouse)
    result = settled(source, warehouse, method=method, where="flag < 100", on_conflict="replace")
    assert (result["inserted"], result["updated"], result["deleted"], result["displaced"]) == (1, 2, 0, 1)


@pytest.mark.parametrize(
    ("on", "revoked"),
    [
        ("insert", "UPDATE (id, v, flag), DELETE"),
        ("update", "INSERT (id, v, flag), DELETE"),
        ("delete", "INSERT (id, v, flag), UPDATE (id, v, flag)"),
    ],
)
@APPLIES
def test_no_other_privilege_is_needed_for_one_kind_of_change(
    both: tuple[Database, Database], apply: str, on: str, revoked: str
) -> None:
    source, warehouse = both
    source.execute("DELETE FROM item WHERE id <= 5; UPDATE item SET v = 'x' WHERE id > 90")
    source.execute("INSERT INTO item SELECT i FROM generate_series(101, 106) AS i")
    role = owned_by_another(warehouse)
    warehouse.admin(f'REVOKE {revoked} ON item FROM "{role}"; GRANT TRUNCATE ON item TO "{role}"')
    given: dict[str, Any] = {name: name == on for name in ("insert", "update", "delete")}
    result = sync(apply=apply, **given)
    assert result[{"insert": "inserted", "update": "updated", "delete": "deleted"}[on]] > 0


def test_columns_alone_do_not_suffice_where_rows_may_share_a_key(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    source.execute("DELETE FROM item WHERE id <= 5")
    warehouse.execute("CREATE TABLE item_child () INHERITS (item)")
    role = owned_by_another(warehouse)

    refused(warehouse, "no SELECT on public.item as a whole")

    warehouse.admin(f'GRANT SELECT ON item TO "{role}"')
    assert sync()["deleted"] == 5


@pytest.mark.parametrize(
    ("where", "revoked", "words"),
    [
        ("source", "SELECT (v)", ("SELECT", "(v)")),
        ("warehouse", "SELECT (v)", ("SELECT", "(v)")),
        ("warehouse", "INSERT (flag)", ("INSERT", "(flag)")),
        ("warehouse", "UPDATE (v)", ("UPDATE", "(v)")),
        ("warehouse", "DELETE", ("DELETE",)),
    ],
)
def test_a_privilege_that_is_missing_is_named(
    both: tuple[Database, Database], where: str, revoked: str, words: tuple[str, ...]
) -> None:
    source, warehouse = both
    source.execute("UPDATE item SET v = 'x' WHERE id > 90")
    for database in both:
        role = owned_by_another(database)
        if database.conn_id == where:
            database.admin(f'REVOKE {revoked} ON item FROM "{role}"')
    before = warehouse.admin("SELECT ctid::text, xmin::text FROM item")
    with pytest.raises(Exception, match="permission denied") as caught:
        sync()
    assert all(word in str(caught.value) for word in (where, "public.item", "42501", *words))
    assert warehouse.admin("SELECT ctid::text, xmin::text FROM item") == before


def test_a_lock_or_temporary_tables_that_are_not_allowed(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    source.execute("UPDATE item SET v = 'x' WHERE id > 90")
    role = owned_by_another(warehouse)
    warehouse.admin(f'REVOKE DELETE ON item FROM "{role}"')
    refused(warehouse, "lock", "42501", "warehouse", delete=False)
    warehouse.admin(f'GRANT DELETE ON item TO "{role}"')
    warehouse.admin(f'ALTER DATABASE "{warehouse.name}" OWNER TO postgres')
    warehouse.admin(f'REVOKE TEMP ON DATABASE "{warehouse.name}" FROM PUBLIC')
    refused(warehouse, "TEMP", "42501", "warehouse")


def test_a_destination_that_is_read_only(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    source.execute("UPDATE item SET v = 'x' WHERE id > 90")
    warehouse.admin(f'ALTER DATABASE "{warehouse.name}" SET default_transaction_read_only = on')
    refused_by_server(warehouse, "read-only", "25006", "warehouse")


@pytest.mark.parametrize("where", ["source", "warehouse"])
def test_row_level_security_is_told(
    both: tuple[Database, Database], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, warehouse = both
    source.execute("UPDATE item SET v = 'x' WHERE id IN (3, 4)")
    limited = source if where == "source" else warehouse
    limited.execute("ALTER TABLE item ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    limited.execute("CREATE POLICY few ON item USING (flag <> 3)")
    if where == "source":
        result = sync()
        assert (result["updated"], result["deleted"]) == (1, 10)
    else:
        refused_by_server(warehouse, "warehouse", "item")  # rows that it has, unseen
        result = sync(insert=False)
        assert result["updated"] == 1
    side = "source" if where == "source" else "destination"
    assert result["row_security"] == [side]
    assert f"Row-level security limits which rows of the {side} are seen" in capsys.readouterr().out


def test_where_can_not_close_its_parentheses(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, flag int)")
    warehouse.execute("INSERT INTO item VALUES (1, 2)")
    refused(warehouse, "where: syntax error", where="flag = 1) OR (true")
