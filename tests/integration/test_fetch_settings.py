"""Values are written in the same forms, whatever the settings of database and role: to files and to XCom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_dblink.operators.fetch import DblinkFetchOperator
from airflow_dblink.operators.query import DblinkQueryOperator
from tests.databases import Database
from tests.integration.tasks import context

SQL = """SELECT 1.5::float8 AS f, 0.1::float4 AS g, '2026-02-03'::date AS d, '1 mon'::interval AS i,
 '\\x00ff'::bytea AS b, '2026-02-03 04:05:06'::timestamp AS t, ARRAY['2026-02-03'::date] AS a"""
SETTINGS = {
    "extra_float_digits": "-5",
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
}
ROW = [1.5, 0.1, "2026-02-03", "1 mon", "\\x00ff", "2026-02-03 04:05:06", ["2026-02-03"]]
CSV = "f,g,d,i,b,t,a\n1.5,0.1,2026-02-03,1 mon,\\x00ff,2026-02-03 04:05:06,{2026-02-03}\n"

Operator = Callable[..., Any]


@pytest.fixture(params=["ALTER DATABASE {database} SET", "ALTER ROLE {role} IN DATABASE {database} SET"])
def odd(source: Database, request: pytest.FixtureRequest) -> Database:
    alter = request.param.format(database=source.name, role=source.server.role)
    for name, value in SETTINGS.items():
        source.admin(f"{alter} {name} = '{value}'")
    return source


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("kind", [DblinkFetchOperator, DblinkQueryOperator])
def test_files_and_xcom(kind: Operator, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    kind(task_id="t", conn_id="source", sql=SQL, path=path.as_uri()).execute(context())
    kept = kind(task_id="t", conn_id="source", sql=SQL, max_xcom_rows=1).execute(context())

    assert path.read_text() == CSV
    assert kept["data"] == [ROW]


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("name", ["datestyle", "DateStyle"])
@pytest.mark.parametrize("kind", [DblinkFetchOperator, DblinkQueryOperator])
def test_the_tasks_own_settings_come_first(kind: Operator, name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    operator = kind(
        task_id="t",
        conn_id="source",
        sql="SELECT '2026-02-03'::date",
        path=path.as_uri(),
        header=False,
        session_settings={name: "SQL, MDY"},
    )
    operator.execute(context())

    assert path.read_text() == "02/03/2026\n"


@pytest.mark.usefixtures("odd")
def test_a_handler_gets_exact_numbers() -> None:
    seen: list[Any] = []
    DblinkFetchOperator(task_id="t", conn_id="source", sql=SQL, handler=seen.extend).execute(context())

    assert seen[0][:2] == (1.5, 0.1)


@pytest.mark.parametrize(("order", "day"), [("DMY", "2026-02-01"), ("MDY", "2026-01-02")])
@pytest.mark.parametrize("kind", [DblinkFetchOperator, DblinkQueryOperator])
def test_the_order_of_day_and_month_is_the_sessions(
    source: Database, kind: Operator, order: str, day: str
) -> None:
    """The setting decides a query's meaning."""
    source.admin(f"ALTER DATABASE {source.name} SET datestyle = 'SQL, {order}'")
    sql = "SELECT '01/02/2026'::date"
    kept = kind(task_id="t", conn_id="source", sql=sql, max_xcom_rows=1).execute(context())

    assert kept["data"] == [[day]]


@pytest.mark.usefixtures("odd")
def test_the_time_zone_is_the_sessions(source: Database, tmp_path: Path) -> None:
    """The setting decides a query's meaning (``now()::date``), and a timestamptz's text shows the offset."""
    source.admin(f"ALTER DATABASE {source.name} SET timezone = 'Asia/Tokyo'")
    path = tmp_path / "rows.csv"
    sql = "SELECT '2026-02-03 00:00+00'::timestamptz, '2026-02-03 20:00+00'::timestamptz::date"
    DblinkFetchOperator(task_id="t", conn_id="source", sql=sql, path=path.as_uri(), header=False).execute(
        context()
    )

    assert path.read_text() == "2026-02-03 09:00:00+09,2026-02-04\n"
