"""DblinkQueryOperator's arguments as templates make them: files, texts, and nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from jinja2 import TemplateNotFound

from airflow_dblink.operators.query import DblinkQueryOperator
from tests.databases import Database
from tests.integration.tasks import context
from tests.queries import operator, run, source

pytestmark = pytest.mark.usefixtures("source", "warehouse")


def test_only_sql_is_read_from_files() -> None:
    with DAG("d", schedule=None, template_searchpath=["/nowhere"]):
        task = operator(
            "SELECT %(f)s",
            {"c": {"conn_id": "source", "sql": "SELECT %s AS a", "parameters": ["{{ ds }}.sql"]}},
            parameters={"f": "report.sql"},
            path="file:///tmp/{{ ds }}.sql",
        )
    task.resolve_template_files()
    task.render_template_fields({"ds": "2026-11-22"})
    assert (task.parameters, task.path) == ({"f": "report.sql"}, "file:///tmp/2026-11-22.sql")
    assert task.remotes == {
        "c": {"conn_id": "source", "sql": "SELECT %s AS a", "parameters": ["2026-11-22.sql"]}
    }


def test_only_sql_is_read_from_files_by_a_mapped_task(tmp_path: Path) -> None:
    (tmp_path / "home.sql").write_text("SELECT '{{ ds }}'")
    (tmp_path / "set.sql").write_text("SELECT %s AS a")
    with DAG("d", schedule=None, template_searchpath=[str(tmp_path)]):
        mapped = DblinkQueryOperator.partial(
            task_id="task",
            conn_id="warehouse",
            sql="home.sql",
            remotes={"c": {"conn_id": "source", "sql": "set.sql", "parameters": ["x.sql"]}},
        ).expand(parameters=[["report.sql"]])
    given: Any = {"ds": "2026-11-22", "ti": SimpleNamespace(map_index=0)}
    task: Any = mapped.unmap({"parameters": ["report.sql"]})
    # As MappedOperator.render_template_fields calls it.
    task._do_render_template_fields(
        parent=task,
        template_fields=mapped.template_fields,
        context=given,
        jinja_env=mapped.get_template_env(),
        seen_oids=set(),
    )
    assert (task.sql, task.parameters) == ("SELECT '2026-11-22'", ["report.sql"])
    assert task.remotes["c"] == {"conn_id": "source", "sql": "SELECT %s AS a", "parameters": ["x.sql"]}


def test_a_file_of_sql_that_is_not_there_is_an_error() -> None:
    for remotes in ({"c": source("set.sql")}, {"c": {"conn_id": "source", "sql": "set.sql"}}):
        with DAG("d", schedule=None, template_searchpath=["/nowhere"]):
            task = operator("SELECT 1", remotes)
        with pytest.raises(TemplateNotFound):
            task.render_template_fields({})


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("template", ["{{ none }}", "{{ '' }}"])
def test_a_path_that_renders_to_nothing_throws_no_rows_away(
    warehouse: Database, template: str, native: bool
) -> None:
    warehouse.execute("CREATE TABLE t (a int)")
    with DAG("d", schedule=None, render_template_as_native_obj=native):
        task = operator("INSERT INTO t VALUES (1); TABLE t", path=template)
    task.render_template_fields({})
    with pytest.raises(AirflowFailException, match="path has no value"):
        task.execute(context())
    assert warehouse.rows("TABLE t") == []


def test_texts_that_templates_make_are_flags_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    run("SELECT 1 AS a", path=path.as_uri(), header="false", batch_rows="5")
    assert path.read_text() == "1\n"
    assert run("SELECT 1 AS a", max_xcom_rows="1")["data"] == [[1]]
