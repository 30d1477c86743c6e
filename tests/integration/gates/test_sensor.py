"""The sensor's questions in the worker: which answers open the gate, which errors wait, and what is told."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from airflow_dblink.sensors.sql import DblinkSqlSensor
from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.tasks import context
from tests.pooler import pooler
from tests.standby import standby_of

_GIVEN: dict[str, Any] = {"task_id": "wait", "conn_id": "source", "timeout": 30.0, "poke_interval": 0.1}


def _sensor(sql: str, **arguments: Any) -> DblinkSqlSensor:
    return DblinkSqlSensor(**{**_GIVEN, "sql": sql, **arguments})


def _poke(sql: str, **arguments: Any) -> Any:
    """Return the value that opens the gate, or ``"not yet"``."""
    result = _sensor(sql, **arguments).poke(context())
    return result.xcom_value if result.is_done else "not yet"


# -- answers


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("true", True),
        ("1", 1),
        ("-0.5::float8", -0.5),
        ("'NaN'::float8", "NaN"),
        ("0.10::numeric", "0.10"),
        ("'0'", "0"),
        ("'no'", "no"),
        ("date '2026-12-01'", "2026-12-01"),
        ("timestamp 'infinity'", "infinity"),
        ("date '4000-01-01 BC'", "4000-01-01 BC"),
        ("ARRAY[0]", [0]),
        ("""'{"a": 0}'::jsonb""", '{"a": 0}'),
        (r"'\x00'::bytea", r"\x00"),
        ("ROW(NULL, NULL)", "(,)"),
        ("interval '0'", "00:00:00"),
    ],
    ids=str,
)
def test_true_values(source: Database, value: str, kept: Any) -> None:
    assert _poke(f"SELECT {value}") == kept


@pytest.mark.parametrize(
    "value",
    [
        *("NULL", "false", "0", "0::float8", "0.00::numeric", "''", r"'\x'::bytea", "ARRAY[]::int[]"),
        *("'{}'::json", "'0'::jsonb", "'null'::json", "'\"\"'::jsonb"),
    ],
)
def test_false_values(source: Database, value: str) -> None:
    assert _poke(f"SELECT {value}") == "not yet"


def test_the_names_of_the_columns_do_not_matter(source: Database) -> None:
    assert _poke("SELECT 1 AS value, 2 AS value, 3 AS is_there, 4 AS given, 5 AS asked") == 1


def test_a_value_that_python_cannot_hold(source: Database) -> None:
    for query in ("SELECT date '5874897-12-31'", "SELECT timestamptz 'infinity'"):
        assert _poke(query) != "not yet"
        with pytest.raises(AirflowFailException, match="Python can't read the first value") as raised:
            _poke(query, success=bool)
        assert "5874897" not in str(raised.value)


def test_a_function_is_not_called_with_a_value_that_was_not_read(source: Database) -> None:
    with pytest.raises(AirflowFailException, match="the first value has more than 65536 bytes"):
        _poke("SELECT repeat('x', 70000)", success=lambda value: value is None)


def test_a_domain_counts_as_its_base_type(source: Database) -> None:
    source.execute("CREATE DOMAIN amount AS numeric CHECK (value >= 0)")
    assert _poke("SELECT 0.0::amount") == "not yet"
    assert _poke("SELECT 0.5::amount") == "0.5"


def test_the_first_value_of_the_first_row_counts(source: Database) -> None:
    query = "SELECT v, 'x', NULL FROM (VALUES (1, false), (0, true)) AS t (n, v) ORDER BY n -- the second\n ;"
    assert _poke(query) is True


def test_no_row_means_not_yet(source: Database) -> None:
    assert _poke("SELECT true WHERE false") == "not yet"
    with pytest.raises(AirflowFailException, match="gives no row, and fail_on_empty is set"):
        _poke("SELECT true WHERE false", fail_on_empty=True)


def test_min_rows(source: Database) -> None:
    assert _poke("SELECT FROM generate_series(1, 4)", min_rows=5) == "not yet"
    assert _poke("SELECT NULL FROM generate_series(1, 9) LIMIT 6;", min_rows="5") == 5


@pytest.mark.parametrize(
    ("value", "equals", "is_right"),
    [
        ("'done'", "done", True),
        ("'done'", "Done", False),
        ("date '2026-12-01'", "2026-12-01", True),
        ("5", "5", True),
        ("5", 5, True),
        ("5", 6, False),
        ("1", True, False),
        ("true", True, True),
        ("false", False, True),
        ("0", 0, True),
        ("2.5::float8", 2.5, True),
        ("NULL", "", False),
    ],
    ids=str,
)
def test_equals(source: Database, value: str, equals: Any, is_right: bool) -> None:
    assert (_poke(f"SELECT {value}", equals=equals) != "not yet") is is_right


def test_parameters(source: Database) -> None:
    assert _poke("SELECT %s > 1 AND '100%%' = %s", parameters=[2, "100%"]) is True
    assert (
        _poke("SELECT %(day)s::date", parameters={"day": "2026-12-01"}, equals="2026-12-01") == "2026-12-01"
    )


def test_criteria_get_the_value_by_its_type(source: Database) -> None:
    seen: list[Any] = []

    def success(value: Any) -> bool:
        seen.append(value)
        return True

    assert _poke("SELECT 1.50", success=success) == "1.50"
    assert seen == [Decimal("1.50")]
    assert _poke("SELECT 5", success=lambda value: value > 5) == "not yet"
    with pytest.raises(AirflowFailException, match="failure is true for the first value") as raised:
        _poke("SELECT 'secret'", failure=lambda value: value == "secret")
    assert "secret" not in str(raised.value)


def test_failure_sql_comes_first(source: Database) -> None:
    with pytest.raises(AirflowFailException, match="source: failure_sql is true"):
        _poke("SELECT true", failure_sql="SELECT 1")
    assert _poke("SELECT true", failure_sql="SELECT 1 WHERE false") is True
    with pytest.raises(AirflowSkipException):
        _sensor("SELECT true", failure_sql="SELECT 1", soft_fail=True, deferrable=False).execute(context())


def test_a_long_value_opens_the_gate_but_stays_on_the_server(
    source: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _poke("SELECT repeat('x', 65536)") == "x" * 65_536
    assert _poke("SELECT repeat('x', 200000000)") is None
    told = capsys.readouterr().out
    assert "more than 65536 bytes: XCom doesn't get it" in told
    assert "xxx" not in told


# -- what fails, and what is waited for


@pytest.mark.parametrize(
    ("sql", "arguments", "words"),
    [
        ("SELECT ?", {}, r"(?s)syntax error.*LINE 1 of sql, column 9"),
        ("SELECT true FROM missing", {}, r'(?s)source.*relation "missing" does not exist.*LINE 1 of sql'),
        ("SELECT true", {"failure_sql": "SELECT missing"}, "(?s)does not exist.*LINE 1 of failure_sql"),
        ("DELETE FROM item", {}, "sql must be a query, got DELETE"),
        ("SELECT 1; SELECT 2", {}, "sql must be one query, got 2 statements"),
        ("SELECT true", {"failure_sql": "SELECT 1; SELECT 2"}, "failure_sql must be one query"),
        ("WITH gone AS (DELETE FROM item RETURNING 1) SELECT true", {}, "must be at the top level"),
        ("SELECT nextval('counter')", {}, "read-only transaction"),
        ("SELECT", {}, "sql gives no column"),
        ("SELECT 1, 2", {"equals": 1}, "equals is compared with one value, and sql gives 2 columns"),
        ("SELECT 1/0", {}, "division by zero"),
        ("SELECT pg_read_file('/etc/passwd')", {}, "permission denied"),
        ("SELECT %s", {}, "sql has a placeholder"),
        ("SELECT %s", {"parameters": []}, "parameters do not fit the placeholders"),
        ("SELECT true", {"session_settings": {"work_mem": "much"}}, "work_mem"),
    ],
)
def test_what_waiting_cannot_help_fails_at_once(
    source: Database, sql: str, arguments: dict[str, Any], words: str
) -> None:
    source.execute("CREATE TABLE item (id int); CREATE SEQUENCE counter")
    with pytest.raises(AirflowFailException, match=words):
        _poke(sql, **arguments)


def test_values_of_parameters_are_not_shown(source: Database) -> None:
    with pytest.raises(AirflowFailException) as raised:
        _poke("SELECT %s FROM", parameters=["hidden"])
    assert "hidden" not in str(raised.value)
    with pytest.raises(AirflowFailException) as raised:
        _poke("SELECT %s::int", parameters=["hidden"])
    assert "hidden" not in str(raised.value)


def test_a_query_that_takes_too_long_is_waited_for(
    source: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _poke("SELECT pg_sleep(60)", query_timeout=timedelta(milliseconds=50)) == "not yet"
    assert "statement timeout" in capsys.readouterr().out


def test_a_locked_table_is_waited_for(source: Database, capsys: pytest.CaptureFixture[str]) -> None:
    source.execute("CREATE TABLE item (id int)")
    with psycopg.connect(source.conninfo) as other:
        other.execute("LOCK TABLE item")
        assert _poke("SELECT count(*) FROM item", query_timeout=timedelta(minutes=1)) == "not yet"
    assert "lock timeout" in capsys.readouterr().out


def test_a_server_that_is_away_is_waited_for(
    source: Database, add_connection: AddConnection, capsys: pytest.CaptureFixture[str]
) -> None:
    away = add_connection("away", source, port=1)
    assert _poke("SELECT true", conn_id=away) == "not yet"
    assert "Connection refused" in capsys.readouterr().out
    with pytest.raises(TaskDeferred) as deferred:
        _sensor("SELECT %s", parameters=["hidden"], conn_id=away, deferrable=True).execute(context())
    trigger = deferred.value.trigger
    assert trigger.question["query"] == "SELECT true", "the parameters aren't written yet"
    assert trigger.first_look == trigger.poll_interval, "no worker is started again at once"


def test_a_worker_that_disagrees_with_the_triggerer_is_not_started_again_at_once(source: Database) -> None:
    sensor = _sensor("SELECT false", deferrable=True)
    with pytest.raises(TaskDeferred) as first:
        sensor.execute(context())
    assert first.value.kwargs is not None
    with pytest.raises(TaskDeferred) as second:
        sensor.execute_complete(context(), {"state": "answered"}, first.value.kwargs["until"])
    looks = [deferred.value.trigger.first_look for deferred in (first, second)]
    assert looks == [0.0, sensor.poke_interval]


def test_a_wrong_password_is_waited_for(source: Database, add_connection: AddConnection) -> None:
    wrong = add_connection("wrong", source, password="wrong")
    assert _poke("SELECT true", conn_id=wrong) == "not yet", "libpq tells no SQLSTATE: it may be put right"


# -- sessions


def test_a_hostile_search_path_changes_nothing(source: Database) -> None:
    source.execute(
        "CREATE SCHEMA evil;"
        "CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE sql AS 'SELECT 1/0';"
        "CREATE FUNCTION evil.count() RETURNS bigint LANGUAGE sql AS 'SELECT 99::bigint';"
        "CREATE FUNCTION evil.never(int, int) RETURNS bool LANGUAGE sql AS 'SELECT 1/0 = 1';"
        "CREATE OPERATOR evil.<= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.never)"
    )
    settings = {"search_path": "evil, pg_catalog"}
    assert _poke("SELECT 'yes'", session_settings=settings) == "yes"
    assert _poke("SELECT 1", min_rows=2, session_settings=settings) == "not yet"


def test_through_a_pooler_in_transaction_mode(source: Database, add_connection: AddConnection) -> None:
    with pooler(source.server, "transaction") as port:
        pooled = add_connection("pooled", source, port=port, extra={"pooling_mode": "transaction"})
        assert _poke("SELECT current_setting('statement_timeout')", conn_id=pooled) == "5s"
        assert _poke("SELECT current_setting('transaction_read_only')", conn_id=pooled) == "on"


def test_on_a_standby(source: Database, add_connection: AddConnection) -> None:
    with standby_of(source.server) as standby:
        conn_id = add_connection("standby", source, port=int(standby.port))
        assert _poke("SELECT pg_is_in_recovery()", conn_id=conn_id) is True


# -- when the Dag is parsed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sql": "DELETE FROM item"}, "sql must be a query"),
        ({"sql": " "}, "sql must be one query, got 0 statements"),
        ({"failure_sql": ""}, "failure_sql has no value"),
        ({"min_rows": 0}, "min_rows must be an integer of at least 1"),
        ({"min_rows": 1, "equals": 1}, "give one of min_rows, equals and success, got min_rows and equals"),
        ({"min_rows": 1, "failure": bool}, "failure is called with the first value"),
        ({"equals": [1]}, "equals must be a text, a number or a bool, got list"),
        ({"query_timeout": 5}, "query_timeout must be a timedelta"),
        ({"query_timeout": timedelta(0)}, "query_timeout must be above 0"),
        ({"wake_channel": "x" * 64}, "wake_channel must be a name of 1 to 63 bytes, got 64 bytes"),
        ({"wake_channel": "a\0b"}, "NUL"),
        ({"success": True}, "success must be a function, got bool"),
        ({"success": bool, "deferrable": True}, "success and failure are called in the worker"),
        (
            {"sql": "SELECT %s", "params": {"a": 1}},
            "the placeholder %s in sql takes its value from parameters",
        ),
        ({"session_settings": {"work_mem": None}}, "session_settings"),
    ],
)
def test_mistakes_are_found_when_the_dag_is_parsed(arguments: dict[str, Any], words: str) -> None:
    with DAG("dag", schedule=None), pytest.raises(AirflowFailException, match=words):
        _sensor(arguments.pop("sql", "SELECT true"), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"conn_id": "sou\0rce"},
        {"sql": "SELECT '\0'"},
        {"failure_sql": "SELECT '\0'"},
        {"sql": "SELECT %s", "parameters": ["\0"]},
        {"wake_channel": "\0"},
        {"session_settings": {"work_mem": "\0"}},
        {"session_settings": {"work\0mem": "1MB"}},
        {"sql": "SELECT '\ud800'"},
        {"failure_sql": "SELECT '\ud800'"},
        {"sql": "SELECT %s", "parameters": ["\ud800"]},
        {"wake_channel": "\ud800"},
    ],
    ids=ascii,
)
def test_no_text_that_a_server_cannot_take_is_tried_again(
    source: Database, arguments: dict[str, Any]
) -> None:
    with pytest.raises(AirflowFailException) as raised:
        _sensor(arguments.pop("sql", "SELECT true"), **arguments).poke(context())
    text = str(raised.value)
    assert any(word in text for word in ("NUL", "x00", "\0", "surrogate"))


def test_templates_are_checked_in_the_task(source: Database) -> None:
    sensor = _sensor("{{ 'DELETE' }} FROM item", wake_channel="{{ 'x' * 64 }}", min_rows="{{ 3 }}")
    sensor.sql, sensor.wake_channel = "SELECT 1", "x" * 64
    with pytest.raises(AirflowFailException, match="wake_channel must be"):
        sensor.poke(context())


def test_only_fields_with_sql_are_files() -> None:
    sensor = _sensor("SELECT 'done.sql'", equals="done.sql")
    sensor.resolve_template_files()
    assert sensor.equals == "done.sql"
