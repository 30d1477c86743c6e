"""DblinkFetchOperator's ``execute`` on real servers."""

from __future__ import annotations

import gzip
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.exceptions import DblinkTaskKilledError
from airflow_dblink.operators.fetch import DblinkFetchOperator
from tests.databases import Database
from tests.integration.tasks import context, kill_when_active

pytestmark = pytest.mark.usefixtures("source")

SERIES = "SELECT g AS a, 'x,' || g AS b FROM generate_series(1, 5) g"


def _fetch(sql: str, **arguments: Any) -> dict[str, Any]:
    return DblinkFetchOperator(task_id="task", conn_id="source", sql=sql, **arguments).execute(context())


def test_a_handler_gets_every_batch() -> None:
    batches: list[Any] = []

    result = _fetch(SERIES, handler=batches.append, batch_rows=2)

    assert result == {"rows": 5, "batches": 3}
    assert batches == [[(1, "x,1"), (2, "x,2")], [(3, "x,3"), (4, "x,4")], [(5, "x,5")]]


def test_an_error_of_the_handler_is_the_tasks() -> None:
    def handler(batch: list[Any]) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        _fetch(SERIES, handler=handler)


def test_few_rows_go_to_xcom_as_json() -> None:
    sql = """SELECT 1, 1.5::numeric, 'NaN'::float8, '2026-11-22'::date, ARRAY['a', NULL], '{"k": 1}'::jsonb,
             '\\x00ff'::bytea, NULL, true -- end"""

    result = _fetch(sql, max_xcom_rows=1)

    row = [1, "1.5", "NaN", "2026-11-22", ["a", None], '{"k": 1}', "\\x00ff", None, True]
    assert result == {"rows": 1, "batches": 1, "data": [row]}


def test_more_rows_than_allowed_fail_without_retries() -> None:
    assert len(_fetch(SERIES, max_xcom_rows=5)["data"]) == 5
    with pytest.raises(AirflowFailException, match="more than max_xcom_rows=4"):
        _fetch(SERIES, max_xcom_rows=4)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "got none"),
        ({"path": "file:///tmp/x", "max_xcom_rows": 1}, "got path, max_xcom_rows"),
        ({"max_xcom_rows": 5, "batch_rows": 0}, "batch_rows"),
        ({"max_xcom_rows": 5, "csv_options": {"format": "binary"}}, "csv_options has no format"),
        ({"path": "file:///tmp"}, "path must be a file, got the directory"),
        ({"path": "file:///tmp/new/"}, "path must be a file, got the directory"),
        ({"path": 5}, "path must be text, got int"),
        ({"path": ""}, "path has no value"),
        ({"path": "None"}, "path has no value"),
        ({"handler": "print"}, "handler must be a function"),
        ({"max_xcom_rows": "five"}, "max_xcom_rows must be an integer of at least 0, got 'five'"),
        ({"max_xcom_rows": -1}, "max_xcom_rows must be"),
        ({"max_xcom_rows": True}, "max_xcom_rows must be"),
        ({"max_xcom_rows": 1, "max_xcom_bytes": 0}, "max_xcom_bytes must be an integer of at least 1, got 0"),
        ({"path": "file:///tmp/x", "header": "no"}, "header must be true or false"),
        ({"path": "file:///tmp/x", "batch_rows": 2.0}, "batch_rows must be"),
        ({"max_xcom_rows": 5, "sql": None}, r"sql has no value \(None\)"),
        ({"max_xcom_rows": 5, "sql": 5}, "sql must be text, got int"),
        ({"max_xcom_rows": 5, "session_settings": ["a"]}, "argument 'session_settings' is 'list'"),
        ({"max_xcom_rows": 5, "sql": "SELECT 1; SELECT 2"}, "one statement"),
        ({"max_xcom_rows": 5, "sql": ""}, "the statement is empty"),
        ({"max_xcom_rows": 5, "sql": "SELECT %s", "parameters": []}, "parameters do not fit"),
    ],
)
def test_mistakes_fail_without_retries(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(AirflowFailException, match=why):
        _fetch(**{"sql": SERIES, **arguments})


def test_a_directory_is_left_as_it_is(tmp_path: Path) -> None:
    for path in (tmp_path.as_uri(), f"{tmp_path.as_uri()}/", f"{tmp_path.as_uri()}/new/"):
        with pytest.raises(AirflowFailException, match="path must be a file"):
            _fetch(SERIES, path=path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("end", ["", ";", "; -- end"])
def test_a_file_is_postgresqls_csv(tmp_path: Path, end: str) -> None:
    path = tmp_path / "new" / "rows.csv"

    result = _fetch(SERIES + end, path=f"file://{path}", batch_rows=2)

    assert result == {"rows": 5, "path": f"file://{path}"}
    assert path.read_text() == 'a,b\n1,"x,1"\n2,"x,2"\n3,"x,3"\n4,"x,4"\n5,"x,5"\n'
    assert [file.name for file in path.parent.iterdir()] == ["rows.csv"]


def test_a_compressed_file_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    made = []
    for _ in range(2):
        _fetch(SERIES, path=f"file://{path}", header=False)
        made.append(path.read_bytes())

    assert gzip.decompress(made[0]).decode().splitlines()[0] == '1,"x,1"'
    assert made[0] == made[1]


def test_csv_options_and_parameters_are_used(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"

    _fetch(
        "SELECT %(a)s::text, NULL, 'it''s'",
        parameters={"a": "x;y"},
        path=f"file://{path}",
        header=False,
        csv_options={"delimiter": ";", "null": "\\N", "quote": "'"},
    )

    assert path.read_text() == "'x;y';\\N;'it''s'\n"


def test_an_empty_result_is_a_file_with_a_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"

    result = _fetch("SELECT 1 AS a WHERE false", path=f"file://{path}")

    assert result == {"rows": 0, "path": f"file://{path}"}
    assert path.read_text() == "a\n"


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_a_failure_leaves_the_old_file_and_no_part(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")

    with pytest.raises(RemoteError, match="division by zero"):
        _fetch("SELECT 1 / (90000 - g) FROM generate_series(1, 100000) g", path=f"file://{path}")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["path", "handler"])
def test_a_kill_cancels_and_leaves_no_part(source: Database, tmp_path: Path, where: str) -> None:
    target: dict[str, Any] = (
        {"path": f"file://{tmp_path / 'rows.csv'}"} if where == "path" else {"handler": id}
    )
    sql = "SELECT g, pg_sleep(0.2) FROM generate_series(1, 300) g"
    operator = DblinkFetchOperator(task_id="task", conn_id="source", sql=sql, **target)
    killer = kill_when_active(operator, source)

    with pytest.raises(DblinkTaskKilledError):
        operator.execute(context())

    killer.join()
    assert list(tmp_path.iterdir()) == []
    assert source.wait_until_left() == []


def test_settings_and_limits_reach_the_server() -> None:
    result = _fetch(
        "SELECT name, setting FROM pg_settings WHERE name IN ('statement_timeout', 'work_mem') ORDER BY 1",
        max_xcom_rows=2,
        execution_timeout=timedelta(minutes=1),
        session_settings={"work_mem": "7MB"},
    )

    assert result["data"] == [["statement_timeout", "62000"], ["work_mem", "7168"]]


def test_statement_timeout_ends_the_query() -> None:
    with pytest.raises(RemoteError, match="statement timeout"):
        _fetch("SELECT pg_sleep(60)", max_xcom_rows=1, statement_timeout=timedelta(milliseconds=300))


def test_a_query_that_writes_is_refused(source: Database, tmp_path: Path) -> None:
    """Killed after its commit, the retry would find no rows and replace the file by an empty one."""
    source.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    file = tmp_path / "t.csv"
    with pytest.raises(RemoteError, match="read-only transaction"):
        _fetch("DELETE FROM t RETURNING a", path=file.as_uri())

    assert not file.exists()
    assert source.rows("SELECT a FROM t") == [(1,)]
