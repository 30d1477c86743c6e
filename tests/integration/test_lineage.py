"""OpenLineage datasets of a transfer: which tables, and nothing secret."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.query import DblinkQueryOperator
from tests.databases import Database
from tests.integration.tasks import context
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


def _statistics(dataset: Any) -> tuple[int | None, int | None]:
    facet = dataset.outputFacets["outputStatistics"]
    return facet.rowCount, facet.size


def test_a_transfer_tells_how_much_it_wrote(source: Database, warehouse: Database) -> None:
    source.execute("CREATE TABLE item AS SELECT generate_series(1, 3) AS id")
    warehouse.execute("CREATE TABLE item (id int)")
    task = operator(source_table="item", destination_table="item")
    result = task.execute(context())
    found = task.get_openlineage_facets_on_complete(None)

    assert found is not None
    assert _statistics(found.outputs[0]) == (3, result["bytes"])


def test_a_script_is_parsed_and_one_output_has_statistics(source: Database) -> None:
    source.execute(
        "CREATE TABLE a (id int); CREATE SCHEMA s; CREATE TABLE s.b (id int); CREATE TABLE c (id int)"
    )
    given: dict[str, Any] = {"task_id": "t", "conn_id": "source"}
    insert = DblinkExecOperator(**given, sql="INSERT INTO a SELECT 1 FROM s.b UNION SELECT 2")
    insert.execute(context())
    two = DblinkExecOperator(**given, sql="UPDATE a SET id = 1; DELETE FROM c")
    two.execute(context(task_id="two"))
    unread = DblinkExecOperator(
        **given, sql="DO $$ BEGIN PERFORM 1; END $$; SELECT set_config('a.b', '', true)"
    )

    found = insert.get_openlineage_facets_on_complete(None)
    assert found is not None
    assert datasets(found.inputs) == [place(source, "s.b")]
    assert datasets(found.outputs) == [place(source, "public.a")]
    assert _statistics(found.outputs[0]) == (1, None)
    both = two.get_openlineage_facets_on_complete(None)
    assert both is not None
    assert sorted(datasets(both.outputs)) == [place(source, "public.a"), place(source, "public.c")]
    assert both.outputs[0].outputFacets in (None, {})
    nothing = unread.get_openlineage_facets_on_complete(None)
    assert nothing is not None
    assert (nothing.inputs, nothing.outputs) == ([], [])


def test_remote_sets_are_inputs_by_the_tables_that_they_read(source: Database, warehouse: Database) -> None:
    task = DblinkQueryOperator(
        task_id="t",
        conn_id="warehouse",
        sql="INSERT INTO copy SELECT far.id FROM far JOIN near USING (id)",
        remotes={"far": {"conn_id": "source", "sql": "SELECT id FROM item"}},
    )
    found = task.get_openlineage_facets_on_complete(None)

    assert found is not None
    assert sorted(datasets(found.inputs)) == sorted(
        [place(source, "public.item"), place(warehouse, "public.near")]
    )
    assert datasets(found.outputs) == [place(warehouse, "public.copy")]
