"""Wrong values that are known when a DAG is parsed fail there; each names its argument."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.fetch import DblinkFetchOperator
from airflow_dblink.operators.jobs import (
    DblinkCancelQueryOperator,
    DblinkGetResultOperator,
    DblinkJobOperator,
    DblinkSendQueryOperator,
)
from airflow_dblink.operators.query import DblinkQueryOperator
from airflow_dblink.operators.sync import DblinkSyncOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator

ACROSS: dict[str, Any] = {"source_conn_id": "a", "destination_conn_id": "b", "destination_table": "t"}
TABLE: dict[str, Any] = {**ACROSS, "source_table": "t"}
HOME: dict[str, Any] = {"conn_id": "a"}
QUERY: dict[str, Any] = {**HOME, "sql": "SELECT 1"}
FILE: dict[str, Any] = {**QUERY, "path": "file:///x"}
RESULT: dict[str, Any] = {"handle": {"conn_id": "a", "job_id": "x", "schema": "s"}}
PLACES = "give exactly one of handler, path and max_xcom_rows"

#: Class, right arguments, a wrong one, and its error.
WRONG: list[tuple[type[BaseOperator], dict[str, Any], dict[str, Any], str]] = [
    (DblinkTransferOperator, TABLE, {"mode": "apend"}, "mode must be append, replace"),
    (DblinkTransferOperator, TABLE, {"source_sql": "SELECT 1"}, "are both given"),
    (DblinkTransferOperator, ACROSS, {}, "neither source_table nor source_sql is given"),
    (DblinkTransferOperator, TABLE, {"key": ["id"]}, "key is for mode='upsert'"),
    (DblinkTransferOperator, TABLE, {"columns": "id"}, "columns must be a list"),
    (DblinkTransferOperator, TABLE, {"pre_sql": "COMMIT"}, "pre_sql: .* COMMIT"),
    (DblinkTransferOperator, ACROSS, {"source_sql": "DELETE FROM t"}, "must be a query, got DELETE"),
    (DblinkTransferOperator, TABLE, {"source_parameters": [1]}, "belong to source_sql"),
    (DblinkTransferOperator, TABLE, {"destination_table": ""}, "destination_table has no"),
    (DblinkTransferOperator, TABLE, {"allow_empty_source": "ja"}, "allow_empty_source"),
    (DblinkTransferOperator, TABLE, {"max_mb_per_s": 0}, "max_mb_per_s must be above 0"),
    (DblinkTransferOperator, TABLE, {"max_mb_per_s": "fast"}, "max_mb_per_s must be a number"),
    (DblinkTransferOperator, TABLE, {"max_mb_per_s": float("nan")}, "max_mb_per_s must be above 0"),
    (DblinkTransferOperator, TABLE, {"max_mb_per_s": float("inf")}, "max_mb_per_s must be above 0"),
    (DblinkTransferOperator, TABLE, {"max_mb_per_s": True}, "max_mb_per_s must be a number"),
    (DblinkTransferOperator, TABLE, {"pause_while": "DELETE FROM t"}, "pause_while must be a query, got DEL"),
    (DblinkTransferOperator, TABLE, {"pause_while": "SELECT true; SELECT false"}, "pause_while must be one"),
    (DblinkTransferOperator, TABLE, {"pause_while": ""}, "pause_while has no value"),
    (DblinkTransferOperator, TABLE, {"pause_while_conn_id": "a"}, "pause_while_conn_id belongs to pause_whi"),
    (DblinkTransferOperator, TABLE, {"pause_check_interval": 5}, "pause_check_interval must be a timedelta"),
    (DblinkTransferOperator, TABLE, {"pause_check_interval": timedelta(0)}, "must be above 0"),
    (DblinkSyncOperator, TABLE, {"max_mb_per_s": -1}, "max_mb_per_s must be above 0, or None"),
    (DblinkSyncOperator, TABLE, {"pause_while": "VACUUM"}, "pause_while must be a query, got VACUUM"),
    (DblinkTransferOperator, TABLE, {"verify": "sum"}, "verify must be count, checksum or None"),
    (DblinkTransferOperator, TABLE, {"verify": "checksum"}, "mode='append' adds to rows"),
    (DblinkTransferOperator, {**TABLE, "mode": "upsert"}, {"verify": "count"}, "DblinkSyncOperator"),
    (DblinkTransferOperator, TABLE, {"rebuild_indexes": 1}, "rebuild_indexes must be True, False or None"),
    (DblinkTransferOperator, TABLE, {"rebuild_indexes": True}, "needs lock=True"),
    (DblinkTransferOperator, {**TABLE, "mode": "create"}, {"rebuild_indexes": True}, "not for 'create'"),
    (DblinkTransferOperator, TABLE, {"like": "some"}, "like must be columns or all"),
    (DblinkTransferOperator, TABLE, {"like": "all"}, "like='all' is for mode='create'"),
    (DblinkTransferOperator, {**TABLE, "mode": "create", "like": "all"}, {"columns": ["a"]}, "all columns"),
    (DblinkTransferOperator, {**ACROSS, "mode": "create", "source_sql": "TABLE t"}, {"like": "all"}, "query"),
    (DblinkSyncOperator, TABLE, {"method": "diff"}, "method must be auto or"),
    (DblinkSyncOperator, TABLE, {"apply": "copy"}, "apply must be set or statements"),
    (DblinkSyncOperator, TABLE, {"source_sql": "SELECT 1"}, "are both given"),
    (DblinkSyncOperator, TABLE, {"where": "WHERE id > 5"}, "where begins with WHERE"),
    (DblinkSyncOperator, TABLE, {"max_delete_fraction": 25}, "25 % is 0.25"),
    (DblinkSyncOperator, TABLE, {"key": "id"}, "key must be a list of columns"),
    (DblinkSyncOperator, {**TABLE, "statements_path": "x"}, {"on_conflict": "replace"}, "no statement could"),
    (DblinkSyncOperator, {**TABLE, "statements_path": "x"}, {"file_mode": "rw"}, "file_mode must be octal"),
    (DblinkFetchOperator, QUERY, {}, PLACES),
    (DblinkFetchOperator, FILE, {"max_xcom_rows": 1}, PLACES),
    (DblinkFetchOperator, QUERY, {"max_xcom_rows": "many"}, "max_xcom_rows must be"),
    (DblinkFetchOperator, QUERY, {"handler": "print"}, "handler must be a function"),
    (DblinkQueryOperator, QUERY, {"remotes": {"x": {"sql": "TABLE t"}}}, "conn_id is"),
    (DblinkQueryOperator, {"conn_id": "a", "max_xcom_rows": 1}, {"sql": "DELETE FROM t"}, "is DELETE, but"),
    (DblinkExecOperator, HOME, {"sql": "INSERT INTO t VALUES (1); COMMIT"}, "sql contains COMMIT"),
    (DblinkExecOperator, {**QUERY, "transaction": False}, {"deferrable": True}, "deferrable=True needs"),
    (DblinkExecOperator, HOME, {"sql": " -- nothing"}, "sql holds no statement"),
    (DblinkExecOperator, HOME, {"sql": "DELETE FROM t WHERE a = %s", "params": {"a": 1}}, "from parameters"),
    (DblinkTransferOperator, ACROSS, {"source_sql": "SELECT %(a)s", "params": {"a": 1}}, "source_parameters"),
    (DblinkSyncOperator, TABLE, {"where": "a = %(a)s", "params": {"a": 1}}, "value from where_parameters"),
    (DblinkSendQueryOperator, HOME, {"sql": "VACUUM t"}, "VACUUM .line 1. cannot run"),
    (DblinkJobOperator, FILE, {"max_xcom_rows": 1}, PLACES),
    (DblinkGetResultOperator, RESULT, {}, PLACES),
    (DblinkGetResultOperator, RESULT, {"destination_table": "t"}, "give both"),
    (DblinkGetResultOperator, {**RESULT, **dict.fromkeys(("destination_conn_id", "destination_table"), "x")},
     {"mode": "merge"}, "mode must be append"),
    *((kind, given, {"connname": "x"}, "takes no connname") for kind, given in (
        (DblinkFetchOperator, FILE), (DblinkCancelQueryOperator, RESULT))),
    (DblinkExecOperator, QUERY, {"statement_timeout": 5}, "statement_timeout must be a timedelta, got int"),
    (DblinkTransferOperator, TABLE, {"orphan_timeout": 60}, "orphan_timeout must be a timedelta, got int"),
    (DblinkJobOperator, QUERY, {"grace_period": None}, "grace_period must be a timedelta, got NoneType"),
    *((kind, given, {"poll_interval": 0}, "poll_interval must be a number of seconds above 0, got 0")
      for kind, given in ((DblinkExecOperator, QUERY), (DblinkGetResultOperator, {**RESULT, "path": "x"}))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "right", "wrong", "says"),
    [pytest.param(*case, id=f"{case[0].__name__} {case[3]}") for case in WRONG],
)
def test_the_constructor_refuses(
    kind: type[BaseOperator], right: dict[str, Any], wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(AirflowFailException, match=says) as caught:
        kind(task_id="load", **{**right, **wrong})
    assert f"{kind.__name__} 'load'" in str(caught.value)


TEMPLATES: list[Callable[[Any], BaseOperator]] = [
    lambda unknown: DblinkTransferOperator(task_id="a", **ACROSS, source_table="t", mode=unknown, key=["id"]),
    lambda unknown: DblinkTransferOperator(task_id="a", **ACROSS, source_sql=unknown, columns=unknown),
    lambda unknown: DblinkTransferOperator(task_id="a", **ACROSS, source_table=unknown, pre_sql=unknown),
    lambda unknown: DblinkTransferOperator(
        task_id="a",
        **ACROSS,
        source_table="t",
        max_mb_per_s=unknown,
        pause_while=unknown,
        pause_while_conn_id=unknown,
    ),
    lambda unknown: DblinkTransferOperator(
        task_id="a", **ACROSS, source_table="t", mode="upsert", verify=unknown
    ),
    lambda unknown: DblinkTransferOperator(
        task_id="a", **ACROSS, source_table="t", mode=unknown, verify="count"
    ),
    lambda unknown: DblinkTransferOperator(
        task_id="a", **ACROSS, source_table="t", mode=unknown, verify="checksum"
    ),
    lambda unknown: DblinkTransferOperator(
        task_id="a", **ACROSS, source_table="t", mode=unknown, rebuild_indexes=True
    ),
    lambda unknown: DblinkTransferOperator(task_id="a", **ACROSS, source_table="t", mode=unknown, like="all"),
    lambda unknown: DblinkSyncOperator(
        task_id="a", **ACROSS, source_table="t", method=unknown, where=unknown, max_mb_per_s=unknown
    ),
    lambda unknown: DblinkSyncOperator(
        task_id="a", **ACROSS, source_table="t", delete=unknown, key=unknown, plan=unknown, plan_only=unknown
    ),
    lambda unknown: DblinkFetchOperator(task_id="a", conn_id=unknown, sql=unknown, path=unknown),
    lambda unknown: DblinkQueryOperator(task_id="a", conn_id="a", sql=unknown, max_xcom_rows=1),
    lambda unknown: DblinkQueryOperator(
        task_id="a", conn_id="a", sql="SELECT 1", remotes={"x": {"conn_id": "a", "sql": unknown}}
    ),
    lambda unknown: DblinkExecOperator(task_id="a", conn_id="a", sql=unknown, parameters=unknown),
    lambda unknown: DblinkJobOperator(task_id="a", conn_id="a", sql=unknown, max_xcom_rows=1),
    lambda unknown: DblinkGetResultOperator(
        task_id="a",
        handle=unknown,
        destination_conn_id="b",
        destination_table=unknown,
        mode=unknown,
        key=["a"],
    ),
]


@pytest.mark.parametrize("make", TEMPLATES)
def test_what_only_the_task_will_know_is_left_to_it(make: Callable[[Any], BaseOperator]) -> None:
    make("{{ params.what }}")
    with DAG("dag", schedule=None):

        @task
        def before() -> str:
            return "x"

        make(before())


@pytest.mark.parametrize(
    ("marks", "text"),
    [
        ({"variable_start_string": "<<", "variable_end_string": ">>"}, "<< params.mode >>"),
        ({"block_start_string": "<%", "block_end_string": "%>"}, "<% if true %>append<% endif %>"),
        ({"line_statement_prefix": "#"}, "# if true\nappend\n# endif"),
    ],
)
def test_a_dag_may_have_other_marks_for_templates(marks: dict[str, str], text: str) -> None:
    with DAG("dag", schedule=None, jinja_environment_kwargs=marks):
        DblinkTransferOperator(task_id="a", **ACROSS, source_sql=text, mode=text)
    with DAG("usual", schedule=None), pytest.raises(AirflowFailException):
        DblinkTransferOperator(task_id="a", **ACROSS, source_sql=text, mode=text)


def test_a_mapped_task_is_checked_when_its_arguments_are_known() -> None:
    with DAG("dag", schedule=None):
        partial = DblinkTransferOperator.partial(task_id="a", **ACROSS, source_sql="SELECT 1")
        mapped = partial.expand(mode=["append", "apend"])
    assert vars(mapped.unmap({"mode": "append"}))["mode"] == "append"
    with pytest.raises(AirflowFailException, match="mode must be"):
        mapped.unmap({"mode": "apend"})


def test_a_mapped_task_of_a_wrong_type_is_not_tried_again() -> None:
    with DAG("dag", schedule=None):
        mapped = DblinkExecOperator.partial(task_id="a", conn_id="a", statement_timeout=5).expand(
            sql=["TABLE t"]
        )
    with pytest.raises(AirflowFailException, match="'a': statement_timeout must be a timedelta"):
        mapped.unmap({"sql": "TABLE t"})


@pytest.mark.parametrize("sql", [5, ["a %s"], None])
def test_what_is_no_sql_is_said_to_be_none(sql: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"'a': .*sql"):
        DblinkExecOperator(task_id="a", conn_id="a", sql=sql, params={"a": 1})


def test_params_are_for_templates() -> None:
    params: dict[str, Any] = {"a": 1}
    DblinkExecOperator(task_id="a", conn_id="a", sql="SELECT {{ params.a }}, %s", params=params)
    DblinkExecOperator(task_id="a", conn_id="{{ params.a }}", sql="SELECT format('%s', 1)", params=params)
    DblinkExecOperator(task_id="a", conn_id="a", sql="SELECT %s", parameters=[1], params=params)
    DblinkExecOperator(task_id="a", conn_id="a", sql="SELECT %s", parameters=["{{ ds }}"], params=params)
    with DAG("with_params", schedule=None, params=params):  # a task that has no use for them
        DblinkExecOperator(task_id="a", conn_id="a", sql="SELECT 5 %(a) FROM (SELECT 1 AS a) AS t")
        DblinkExecOperator(task_id="b", conn_id="a", sql="SELECT 5 %s FROM (SELECT 1 AS s) AS t")


def test_a_file_of_sql_is_read_by_the_task() -> None:
    DblinkQueryOperator(task_id="b", conn_id="a", sql="rows.sql", max_xcom_rows=1)
    DblinkQueryOperator(
        task_id="c", conn_id="a", sql="SELECT 1", remotes={"x": {"conn_id": "a", "sql": "rows.sql"}}
    )
    DblinkTransferOperator(task_id="a", **ACROSS, source_sql="rows.sql", post_sql="end.sql")


def test_a_subclass_may_set_more_in_its_constructor() -> None:
    class ToHandler(DblinkFetchOperator):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.handler = print

    assert ToHandler(task_id="a", conn_id="a", sql="SELECT 1").handler is print


def test_a_dag_bag_is_red(tmp_path: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    path = tmp_path / "dag.py"
    path.write_text(
        "from airflow.sdk import DAG\n"
        "from airflow_dblink.operators.transfer import DblinkTransferOperator\n"
        "with DAG('typo', schedule=None):\n"
        "    DblinkTransferOperator(task_id='load', source_conn_id='a', destination_conn_id='b',\n"
        "        destination_table='t', source_table='t', mode='apend')\n",
        encoding="utf-8",
    )
    bag = DagBag(tmp_path)

    assert "mode must be append, replace, upsert, create or swap, got 'apend'" in bag.import_errors[str(path)]
