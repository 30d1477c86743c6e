# ruff: noqa: S608 - names that the tests themselves made
"""Changes that nobody planned: by triggers, cascades, doubled values, or arguments that say another thing."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.sync.verify import VerificationError
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
    refused(warehouse, "has 1500 rows", "not 2000", error=VerificationError, method=method, insert=False)


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
    operator.plan = None  # what an XComArg of a task that pushed nothing comes to
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
