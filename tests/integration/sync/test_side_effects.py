# ruff: noqa: S608 - names that the tests themselves made
"""Changes that nobody planned: by triggers, cascades, doubled values, or arguments that say another thing."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import VerificationError
from tests.databases import Database
from tests.integration.sync.tables import contents, refused, settled
from tests.syncs import sync, sync_operator

METHODS = pytest.mark.parametrize("method", ["difference", "reload"])
ITEM = "CREATE TABLE item (id int PRIMARY KEY, parent int, v text)"
FILL = "INSERT INTO item SELECT i, NULL, 'v' || i FROM generate_series(1, 2000) AS i"


def made(*databases: Database) -> None:
    for database in databases:
        database.execute(f"{ITEM}; {FILL}; ANALYZE item")


@METHODS
@pytest.mark.parametrize("action", ["CASCADE", "SET NULL"])
def test_a_foreign_key_to_the_table_itself_that_cascades(
    source: Database, warehouse: Database, method: str, action: str
) -> None:
    made(source, warehouse)
    for database in (source, warehouse):
        database.execute("UPDATE item SET parent = 5000 WHERE id > 1500")
    warehouse.execute(
        "INSERT INTO item VALUES (5000, NULL, 'gone in the source');"
        f" ALTER TABLE item ADD FOREIGN KEY (parent) REFERENCES item ON DELETE {action}"
    )
    refused(warehouse, "verification failed", "rolled back", error=VerificationError, method=method)


@METHODS
def test_a_trigger_that_writes_another_row(source: Database, warehouse: Database, method: str) -> None:
    made(source, warehouse)
    warehouse.execute(
        "CREATE FUNCTION elsewhere() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN UPDATE item SET v = 'by trigger' WHERE id = 1900; RETURN NULL; END $$;"
        " CREATE TRIGGER elsewhere AFTER UPDATE ON item FOR EACH ROW WHEN (NEW.id <> 1900)"
        " EXECUTE FUNCTION elsewhere()"
    )
    source.execute("UPDATE item SET v = 'new' WHERE id = 1")
    refused(warehouse, "verification failed", error=VerificationError, method=method)
    assert settled(source, warehouse, method=method, triggers="disable")["updated"] == 1


@METHODS
def test_rows_that_are_lost_are_counted_where_not_all_is_done(
    source: Database, warehouse: Database, method: str
) -> None:
    made(source, warehouse)
    for database in (source, warehouse):
        database.execute("UPDATE item SET parent = 5000 WHERE id > 1500")
    warehouse.execute(
        "INSERT INTO item VALUES (5000, NULL, 'gone in the source');"
        " ALTER TABLE item ADD FOREIGN KEY (parent) REFERENCES item ON DELETE CASCADE"
    )
    refused(
        warehouse,
        "changed other rows",
        "2000 rows before, 1500 after",
        error=VerificationError,
        method=method,
        insert=False,
    )


@METHODS
def test_a_foreign_key_to_the_table_itself_that_follows_updates(
    source: Database, warehouse: Database, method: str
) -> None:
    for database in (source, warehouse):
        database.execute(
            "CREATE TABLE item (id int PRIMARY KEY, code text UNIQUE,"
            " parent text REFERENCES item (code) ON UPDATE CASCADE);"
            "INSERT INTO item SELECT i, 'c' || i, CASE WHEN i > 2000 THEN 'c1' END"
            " FROM generate_series(1, 3000) AS i; ANALYZE item"
        )
    # c1 is another row's now, and its children go with it: there only the first row's code changes.
    source.execute("UPDATE item SET code = 'b' WHERE id = 1; INSERT INTO item VALUES (5000, 'c1', NULL)")
    source.execute("UPDATE item SET parent = 'c1' WHERE parent = 'b'")
    refused(warehouse, "verification failed", "rolled back", error=VerificationError, method=method)


@METHODS
def test_a_foreign_key_between_partitions_that_cascades(
    source: Database, warehouse: Database, method: str
) -> None:
    for database in (source, warehouse):
        database.execute(
            "CREATE TABLE item (r text, id int, parent int, PRIMARY KEY (r, id)) PARTITION BY LIST (r);"
            "CREATE TABLE item_a PARTITION OF item FOR VALUES IN ('a');"
            "CREATE TABLE item_b PARTITION OF item FOR VALUES IN ('b');"
            "INSERT INTO item SELECT 'a', i, NULL FROM generate_series(1, 2000) AS i;"
            "INSERT INTO item SELECT 'b', i, CASE WHEN i > 11900 THEN 5 END"
            " FROM generate_series(10000, 12000) AS i; ANALYZE item"
        )
    warehouse.execute(
        "ALTER TABLE item_a ADD UNIQUE (id);"
        " ALTER TABLE item_b ADD FOREIGN KEY (parent) REFERENCES item_a (id) ON DELETE CASCADE"
    )
    source.execute("DELETE FROM item WHERE r = 'a' AND id = 5")
    refused(warehouse, "verification failed", error=VerificationError, method=method)


@METHODS
@pytest.mark.parametrize("way", ["itself", "another table"])
def test_rows_outside_of_where_that_would_follow(
    source: Database, warehouse: Database, method: str, way: str
) -> None:
    for database in (source, warehouse):
        database.execute(
            "CREATE TABLE item (id int PRIMARY KEY, region text, parent int);"
            "INSERT INTO item SELECT i, 'x', NULL FROM generate_series(1, 100) AS i;"
            "INSERT INTO item SELECT i, 'y', NULL FROM generate_series(1001, 2000) AS i"
        )
    warehouse.execute("INSERT INTO item VALUES (500, 'x', NULL)")
    if way == "itself":
        warehouse.execute(
            "UPDATE item SET parent = 500 WHERE region = 'y';"
            "ALTER TABLE item ADD FOREIGN KEY (parent) REFERENCES item ON DELETE CASCADE"
        )
    else:
        warehouse.execute(
            "CREATE TABLE link (id int PRIMARY KEY, item int REFERENCES item ON DELETE CASCADE);"
            "INSERT INTO link VALUES (1, 500); UPDATE item SET parent = 1 WHERE region = 'y';"
            "ALTER TABLE item ADD FOREIGN KEY (parent) REFERENCES link ON DELETE SET NULL"
        )
    refused(warehouse, "changed other rows", error=VerificationError, method=method, where="region = 'x'")


def test_rows_of_another_table_that_follow_are_no_rows_of_this_one(
    source: Database, warehouse: Database
) -> None:
    made(source, warehouse)
    warehouse.execute(
        "INSERT INTO item VALUES (5000, NULL, 'extra'); CREATE TABLE child (id int REFERENCES item"
        " ON DELETE CASCADE); INSERT INTO child VALUES (5000), (1)"
    )
    assert settled(source, warehouse, where="id > 100")["deleted"] == 1
    assert contents(warehouse, "child") == ["(1)"]


@pytest.mark.parametrize("kind", ["partition", "child"])
def test_displacing_rows_that_other_tables_follow_is_refused_whichever_part_they_refer_to(
    source: Database, warehouse: Database, kind: str
) -> None:
    for database in (source, warehouse):
        if kind == "partition":
            database.execute(
                "CREATE TABLE item (r text, id int, v text, PRIMARY KEY (r, id), UNIQUE (r, v))"
                " PARTITION BY LIST (r); CREATE TABLE part PARTITION OF item FOR VALUES IN ('a');"
                "INSERT INTO item SELECT 'a', i, 'v' || i FROM generate_series(1, 100) AS i"
            )
        else:
            database.execute(
                "CREATE TABLE item (id int PRIMARY KEY, v text UNIQUE);"
                "CREATE TABLE part (own text, PRIMARY KEY (id)) INHERITS (item);"
                "INSERT INTO part SELECT i, 'v' || i, 'own' FROM generate_series(1, 100) AS i"
            )
    key = "(r, id)" if kind == "partition" else "(id)"
    columns = "r text, id int" if kind == "partition" else "id int"
    warehouse.execute(f"CREATE TABLE child ({columns}, FOREIGN KEY {key} REFERENCES part ON DELETE CASCADE)")
    words = "child_" if kind == "partition" else "inheritance children"
    refused(warehouse, "on_conflict='replace'", words, on_conflict="replace")
    if kind == "child":
        refused(warehouse, "inheritance children", method="replace", max_delete_fraction=None)


def test_a_dry_run_tells_of_displaced_rows_and_its_plan_has_them(
    source: Database, warehouse: Database
) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, region text, email text UNIQUE)")
        database.execute("INSERT INTO item SELECT i, 'x', 'e' || i FROM generate_series(1, 20) AS i")
    source.execute("INSERT INTO item VALUES (21, 'x', 'a')")
    warehouse.execute("INSERT INTO item VALUES (90, 'y', 'a'), (91, 'y', 'b')")
    arguments: dict[str, Any] = {"where": "region = 'x'", "on_conflict": "replace"}

    plan = sync(plan_only=True, **arguments)
    assert (plan["missing"], plan["extra"], plan["displaced"], plan["refused"]) == (1, 0, 1, [])
    (why,) = sync(plan_only=True, max_delete_fraction=0, **arguments)["refused"]
    assert "max_delete_fraction" in why
    (why,) = sync(plan_only=True, max_change_fraction=0, **arguments)["refused"]
    assert "2 rows" in why  # the one that comes and the one that makes way, told once

    # Another row is in the way now: that was not approved.
    warehouse.execute("UPDATE item SET email = 'c' WHERE id = 90; UPDATE item SET email = 'a' WHERE id = 91")
    refused(warehouse, "the data moved on", plan=plan, **arguments)
    warehouse.execute("UPDATE item SET email = 'b' WHERE id = 91; UPDATE item SET email = 'a' WHERE id = 90")
    done = sync(plan=plan, **arguments)
    assert (done["inserted"], done["displaced"]) == (1, 1)


@METHODS
def test_a_value_that_the_source_has_twice_displaces_no_row(
    source: Database, warehouse: Database, method: str
) -> None:
    made(source, warehouse)
    warehouse.execute("ALTER TABLE item ADD UNIQUE (v)")
    source.execute("UPDATE item SET v = 'v1500' WHERE id = 1")
    refused(warehouse, "two source rows have the same value", method=method, on_conflict="replace")


@pytest.mark.parametrize("plan", ["None", "null", " none "])
def test_a_plan_without_a_value_is_no_leave_to_do_all(
    source: Database, warehouse: Database, plan: str
) -> None:
    made(source, warehouse)
    source.execute("DELETE FROM item WHERE id = 1")
    refused(warehouse, "plan", plan=plan)


def test_a_plan_that_a_template_lost(source: Database, warehouse: Database) -> None:
    made(source, warehouse)
    source.execute("DELETE FROM item WHERE id = 1")
    operator = sync_operator(plan="{{ ti.xcom_pull('plan') }}")
    operator.plan = None  # the value of an XComArg whose task pushed nothing
    with pytest.raises(AirflowFailException, match="plan has no value"):
        operator.execute({"ti": None, "task_state_store": None})  # type: ignore[typeddict-item]
    assert len(contents(warehouse, "item")) == 2000


@pytest.mark.parametrize(
    "name", ["insert", "update", "delete", "allow_empty_source", "reset_sequences", "plan_only"]
)
def test_a_text_is_true_or_false_by_what_it_says(
    source: Database, warehouse: Database, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made(source, warehouse)
    maybe: dict[str, Any] = {name: "maybe"}
    refused(warehouse, f"{name} must be true or false, got 'maybe'", **maybe)
    source.execute("DELETE FROM item WHERE id = 1")
    assert sync(delete="False")["deleted"] == 0
    capsys.readouterr()
    sync(delete="False", plan_only="True")
    assert "0 inserted, 0 updated, 0 deleted" in capsys.readouterr().out
    assert sync(delete="True")["deleted"] == 1


@pytest.mark.parametrize("limit", ["", True, [0.5]])
def test_a_limit_that_is_no_number_is_refused(source: Database, warehouse: Database, limit: Any) -> None:
    made(source, warehouse)
    refused(warehouse, "max_delete_fraction must be a number or None", max_delete_fraction=limit)


def test_no_change_at_all_is_allowed_of_an_empty_table(source: Database, warehouse: Database) -> None:
    made(source, warehouse)
    warehouse.execute("TRUNCATE item")
    refused(warehouse, "max_change_fraction=0", max_change_fraction=0)


@pytest.mark.parametrize("moving", ["now()", "CURRENT_DATE", "clock_timestamp()"])
def test_where_must_mean_the_same_on_both_sides(source: Database, warehouse: Database, moving: str) -> None:
    made(source, warehouse)
    where = f"{moving} > '2020-01-01'"
    refused(warehouse, "where must mean the same on both servers", "where_parameters", where=where)


def test_a_first_load_under_row_level_security(source: Database, warehouse: Database) -> None:
    made(source, warehouse)
    warehouse.execute(
        "TRUNCATE item; ALTER TABLE item ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY every ON item USING (true) WITH CHECK (true)"
    )
    assert sync()["inserted"] == 2000
    words = ("row-level security", "replace_above")
    refused(warehouse, *words, method="replace", max_delete_fraction=None)


def test_statements_of_an_earlier_run_are_not_taken_for_this_ones(
    source: Database, warehouse: Database, tmp_path: Any
) -> None:
    made(source, warehouse)
    source.execute("DELETE FROM item WHERE id = 1")
    file = tmp_path / "plan.sql"
    assert sync(statements_path=file.as_uri())["deleted"] == 1
    assert file.read_text() == 'DELETE FROM "public"."item" WHERE id = \'1\';\n'
    sync(statements_path=file.as_uri())
    assert file.read_text() == ""
