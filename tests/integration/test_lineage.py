"""OpenLineage datasets of a transfer: which tables, and nothing secret."""

from __future__ import annotations

from typing import Any

import pytest

from tests.databases import Database
from tests.own_process import last_line
from tests.transfers import operator

WITHOUT_PROVIDER = """
import sys
import airflow.sdk
sys.modules["airflow.providers.openlineage"] = None  # as if it were not installed
sys.modules["airflow.providers.openlineage.extractors"] = None
from tests.transfers import operator, transfer
assert transfer()["rows"] == 1
print("lineage:", operator(source_table="item", destination_table="item")
      .get_openlineage_facets_on_complete(None))
"""


def place(database: Database, table: str) -> tuple[str, str]:
    return f"postgres://{database.server.host}:{database.server.port}", f"{database.name}.{table}"


def datasets(found: list[Any]) -> list[tuple[str, str]]:
    return [(dataset.namespace, dataset.name) for dataset in found]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("item", "public.item"),
        ("Sales.Item", "sales.item"),
        ('"Sales"."My.Item"', "Sales.My.Item"),
        ('"a ""b"""', 'public.a "b"'),
    ],
)
def test_tables_are_datasets(source: Database, warehouse: Database, written: str, meant: str) -> None:
    task = operator(source_table=written, destination_table=written)
    found = task.get_openlineage_facets_on_complete(None)
    assert found is not None
    assert datasets(found.inputs) == [place(source, meant)]
    assert datasets(found.outputs) == [place(warehouse, meant)]
    for database in (source, warehouse):
        assert database.server.role_password not in repr(found)


def test_the_tables_of_a_query_are_inputs(source: Database, warehouse: Database) -> None:
    query = "SELECT * FROM a JOIN (SELECT * FROM sales.b) AS b USING (id)"
    found = operator(source_sql=query, destination_table="item").get_openlineage_facets_on_complete(None)
    assert found is not None
    assert sorted(datasets(found.inputs)) == [place(source, "public.a"), place(source, "sales.b")]
    assert datasets(found.outputs) == [place(warehouse, "public.item")]


def test_a_query_that_the_parser_does_not_understand_breaks_nothing(
    source: Database, warehouse: Database
) -> None:
    task = operator(source_sql="SELECT $$;$$ FROM (", destination_table="item")
    found = task.get_openlineage_facets_on_complete(None)
    assert found is not None
    assert datasets(found.outputs) == [place(warehouse, "public.item")]


def test_without_the_provider_nothing_breaks(source: Database, warehouse: Database) -> None:
    source.execute("CREATE TABLE item AS SELECT 1 AS id")
    warehouse.execute("CREATE TABLE item (id int)")
    assert last_line(WITHOUT_PROVIDER) == "lineage: None"
    assert warehouse.rows("TABLE item") == [(1,)]
