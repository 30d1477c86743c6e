"""Arguments that templates have left without a value, and those of a wrong type: nothing is done then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.operators.transfer import DblinkTransferOperator
from tests.databases import Database
from tests.integration.sync.tables import contents
from tests.integration.tasks import context
from tests.syncs import sync, sync_operator


@pytest.fixture
def items(source: Database, warehouse: Database) -> Database:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, s text)")
    source.execute("INSERT INTO item VALUES (1, 'a')")
    return warehouse


def transfer(**arguments: Any) -> DblinkTransferOperator:
    given = {"source_conn_id": "source", "destination_conn_id": "warehouse", "destination_table": "item"}
    if "source_sql" not in arguments:
        given["source_table"] = "item"
    return DblinkTransferOperator(task_id="transfer", **{**given, **arguments})


OF_BOTH = ["source_conn_id", "destination_conn_id", "destination_table", "source_table", "source_sql"]
LOST: list[tuple[Any, str]] = [
    *((sync_operator, name) for name in (*OF_BOTH, "where", "statements_path", "watermark_column")),
    *((transfer, name) for name in (*OF_BOTH, "pre_sql", "post_sql")),
]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("template", ["{{ none }}", "{{ '' }}"])
@pytest.mark.parametrize(("make", "name"), LOST)
def test_what_renders_to_nothing_is_named(
    items: Database, make: Any, name: str, template: str, native: bool
) -> None:
    with DAG("d", schedule=None, render_template_as_native_obj=native):
        task = make(**{name: template})
    task.render_template_fields({})
    with pytest.raises(AirflowFailException, match=rf"^{name} has no value \((None|empty text)\)\nHINT"):
        task.execute(context())
    assert contents(items) == []


@pytest.mark.parametrize("make", [sync_operator, transfer])
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"destination_table": None}, r"destination_table has no value \(None\)"),
        ({"source_table": 5}, "source_table must be text, got int"),
        ({"columns": 5}, "columns must be a list or a mapping of columns, got int"),
        ({"columns": {"id": ["x"]}}, "columns must hold names of columns, which are text, got list"),
        ({"columns": ["id", 5]}, "columns must hold names of columns, which are text, got int"),
        ({"columns": "id"}, "columns must be a list or a mapping of columns, got the text 'id'"),
        ({"key": 5}, "key must be a list of columns, got int"),
        ({"key": {"id": "id"}}, "key must be a list of columns, got dict"),
        ({"key": "id"}, "key must be a list of columns, got the text 'id'"),
        ({"key": [None]}, "key must hold names of columns"),
        ({"session_settings": ["a"]}, "argument 'session_settings' is 'list'"),
        ({"password_required": "maybe"}, "argument 'password_required' is 'maybe'"),
    ],
)
def test_a_wrong_type_is_named(items: Database, make: Any, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(AirflowFailException, match=why):
        make(**arguments).execute(context())
    assert contents(items) == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"where": {"token": "x1y2"}}, "where must be text, got dict"),
        ({"where": ["x1y2"]}, "where must be text, got list"),
        ({"statements_path": 5}, "statements_path must be text, got int"),
        ({"statements_path": "file:///tmp"}, "statements_path must be a file, got the directory"),
        ({"statements_path": "file:///tmp/new/"}, "statements_path must be a file, got the directory"),
    ],
)
def test_a_wrong_type_of_a_syncs_argument_is_named(
    items: Database, arguments: dict[str, Any], why: str
) -> None:
    with pytest.raises(AirflowFailException, match=why) as caught:
        sync(**arguments)
    assert "x1y2" not in str(caught.value)
    assert contents(items) == []


@pytest.mark.parametrize("name", ["app.sql", '"app.sql"'])
def test_a_name_that_ends_like_a_file_is_a_name(source: Database, warehouse: Database, name: str) -> None:
    for database in (source, warehouse):
        database.execute(f"CREATE SCHEMA app; CREATE TABLE {name} (id int PRIMARY KEY, file text)")
    source.execute(f"INSERT INTO {name} VALUES (1, 'report.sql'), (2, 'other')")  # noqa: S608
    with DAG("d", schedule=None, template_searchpath=["/nowhere"]):
        task = sync_operator(name, where="file = %(f)s", where_parameters={"f": "{{ which }}.sql"})
    task.resolve_template_files()
    task.render_template_fields({"which": "report"})  # type: ignore[typeddict-unknown-key]
    assert task.execute(context())["inserted"] == 1
    assert contents(warehouse, name) == ["(1,report.sql)"]


def test_files_of_sql_are_read(items: Database, tmp_path: Path) -> None:
    (tmp_path / "rows.sql").write_text("SELECT 7 AS id, '{{ ds }}' AS s")
    with DAG("d", schedule=None, template_searchpath=[str(tmp_path)]):
        task = transfer(source_sql="rows.sql")
    task.render_template_fields({"ds": "2026-11-22"})
    task.execute(context())
    assert contents(items) == ["(7,2026-11-22)"]
    task.resolve_template_files()  # before rendering, by the Dag processor
    assert task.template_ext == (".sql",)
    assert task.template_fields == DblinkTransferOperator.template_fields


def test_the_path_of_the_statements_is_a_template(items: Database, tmp_path: Path) -> None:
    with DAG("d", schedule=None):
        task = sync_operator(statements_path=f"{tmp_path.as_uri()}/{{{{ ds }}}}.sql")
    task.render_template_fields({"ds": "2026-11-22"})
    task.execute(context())
    assert (tmp_path / "2026-11-22.sql").read_text().startswith("INSERT INTO")
