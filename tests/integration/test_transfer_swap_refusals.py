# ruff: noqa: S608 - names that the tests themselves made
"""mode='swap' looks at the very table that it swaps, and its errors say that table's name."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import RemoteError
from tests.databases import Database
from tests.transfers import transfer

ITEM = "CREATE TABLE item (id int PRIMARY KEY, name text)"
ROWS = "SELECT 1 AS id, 'a' AS name"


@pytest.fixture
def item(source: Database, warehouse: Database) -> Database:
    """Give the destination's database, with a table of one row."""
    warehouse.execute(f"{ITEM}; INSERT INTO item VALUES (0, 'before')")
    return warehouse


def test_rows_that_policies_hide_from_their_owner_are_not_lost_to_an_empty_source(item: Database) -> None:
    item.execute("ALTER TABLE item ENABLE ROW LEVEL SECURITY; ALTER TABLE item FORCE ROW LEVEL SECURITY")
    item.execute("CREATE POLICY nobody ON item USING (false)")
    with pytest.raises(AirflowFailException, match="may have rows, which policies hide from this role"):
        transfer("item", mode="swap", source_sql=f"{ROWS} WHERE false")
    assert item.admin("TABLE item") == [(0, "before")]


def test_the_path_that_pre_sql_sets_leads_to_no_other_table(item: Database) -> None:
    item.execute("CREATE SCHEMA other; CREATE TABLE other.item (LIKE public.item INCLUDING ALL)")
    item.execute("INSERT INTO other.item VALUES (9, 'other')")

    transfer("item", mode="swap", source_sql=ROWS, pre_sql="SET LOCAL search_path = other, public")

    assert item.rows("TABLE public.item") == [(1, "a")]
    assert item.rows("TABLE other.item") == [(9, "other")]


@pytest.mark.parametrize(
    "pre_sql", ["ALTER TABLE item ADD extra int", "REVOKE INSERT ON item FROM CURRENT_USER"]
)
def test_pre_sql_that_alters_the_table_is_named_and_not_tried_again(item: Database, pre_sql: str) -> None:
    with pytest.raises(AirflowFailException, match=r"public\.item is not as it was .* pre_sql"):
        transfer("item", mode="swap", source_sql=ROWS, pre_sql=pre_sql)
    assert item.rows("TABLE item") == [(0, "before")]


def test_a_row_that_breaks_a_constraint_is_refused_by_the_table_s_own_name(item: Database) -> None:
    item.execute("ALTER TABLE item ADD CONSTRAINT short CHECK (length(name) < 9)")
    for query in ("SELECT NULL::int AS id, 'a' AS name", "SELECT 1 AS id, 'much too long' AS name"):
        with pytest.raises(RemoteError, match='relation "item" violates') as caught:
            transfer("item", mode="swap", source_sql=query)
        assert "airflow_dblink_" not in str(caught.value)
    assert item.rows("TABLE item") == [(0, "before")]
