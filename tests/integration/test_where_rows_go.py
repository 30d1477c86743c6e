"""What operators with a place for rows share: bytes in XCom are bounded, and the log says where rows went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.operators.fetch import DblinkFetchOperator
from airflow_dblink.operators.jobs import DblinkGetResultOperator, DblinkJobOperator, DblinkSendQueryOperator
from airflow_dblink.operators.query import DblinkQueryOperator
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("source")

FIVE = "SELECT n FROM generate_series(1, 5) AS n"
TEN_UMLAUTS = "SELECT repeat('\u00e4', 10) AS umlauts"  # in JSON 64 bytes


def get_result(sql: str, **place: Any) -> dict[str, Any]:
    send = DblinkSendQueryOperator(task_id="send", conn_id="source", sql=sql, keep_result=True)
    return DblinkGetResultOperator(task_id="get", handle=send.execute(context()), **place).execute(context())


def run(kind: type[Any], sql: str, **place: Any) -> dict[str, Any]:
    result: dict[str, Any] = kind(task_id="task", conn_id="source", sql=sql, **place).execute(context())
    return result


def fetch(sql: str, **place: Any) -> dict[str, Any]:
    return run(DblinkFetchOperator, sql, **place)


def query(sql: str, **place: Any) -> dict[str, Any]:
    return run(DblinkQueryOperator, sql, **place)


def job(sql: str, **place: Any) -> dict[str, Any]:
    return run(DblinkJobOperator, sql, **place)


Run = Callable[..., dict[str, Any]]
EACH = pytest.mark.parametrize("run_it", [fetch, query, job, get_result])


@EACH
def test_xcom_takes_no_more_bytes_than_allowed(run_it: Run) -> None:
    assert len(run_it(TEN_UMLAUTS, max_xcom_rows=1, max_xcom_bytes=64)["data"]) == 1
    for sql in (TEN_UMLAUTS, "SELECT 1 AS one FROM generate_series(1, 22)"):
        with pytest.raises(
            AirflowFailException,
            match=r"(?s)'source'.*more than max_xcom_bytes=63 bytes.*HINT.*path or handler",
        ):
            run_it(sql, max_xcom_rows=100, max_xcom_bytes=63)


@EACH
def test_by_default_these_are_10_mb(run_it: Run) -> None:
    with pytest.raises(AirflowFailException, match="more than max_xcom_bytes=10000000 bytes"):
        run_it("SELECT repeat('x', 10000000) AS x", max_xcom_rows=1)


@EACH
def test_the_log_says_where_the_rows_went(
    run_it: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = (tmp_path / "rows.csv").as_uri()
    run_it(FIVE, path=path)
    assert f" 5 rows to {path}" in capsys.readouterr().out
    run_it(FIVE, handler=print, batch_rows=2)
    assert " 5 rows in 3 batches to handler print" in capsys.readouterr().out
    run_it(FIVE, max_xcom_rows=5)
    assert " 5 rows to XCom" in capsys.readouterr().out
