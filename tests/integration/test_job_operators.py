"""``execute`` of the operators and the sensor of remote jobs, on real servers; without a triggerer."""

from __future__ import annotations

import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    TaskDeferralTimeout,
    TaskDeferred,
)
from airflow.sdk.execution_time.context import set_current_context

from airflow_dblink.core.errors import RemoteError, TransientError, UsageError
from airflow_dblink.core.jobs.call import call
from airflow_dblink.core.jobs.client import Jobs
from airflow_dblink.core.jobs.draft import draft
from airflow_dblink.core.jobs.job import JobHandle
from airflow_dblink.exceptions import DblinkJobError, DblinkTaskKilledError
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.jobs import (
    DblinkCancelQueryOperator,
    DblinkGetResultOperator,
    DblinkJobOperator,
    DblinkSendQueryOperator,
)
from airflow_dblink.sensors.job import DblinkJobSensor
from airflow_dblink.triggers.job import DblinkJobTrigger
from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.jobs.client import GATE, held, lookers, until
from tests.integration.tasks import context, kill_when_active
from tests.stores import MemoryStore, StaleTryError
from tests.transfers import meanwhile

INSERT = "INSERT INTO t VALUES (1)"
PATIENT: dict[str, Any] = {"deferrable": True, "grace_period": timedelta(minutes=1)}
GATED = "SELECT n FROM generate_series(1, 3) AS n, (SELECT pg_advisory_xact_lock_shared(1)) AS gate (passed)"
NUMBERS = "SELECT n, 'row ' || n AS label FROM generate_series(1, 25) AS n ORDER BY n DESC"


@pytest.fixture
def table(source: Database) -> Database:
    source.execute("CREATE TABLE t (a int)")
    return source


@pytest.fixture(autouse=True)
def _as_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hook find the context that ``execute`` is given."""
    for kind in (DblinkJobOperator, DblinkSendQueryOperator, DblinkExecOperator):
        for name in ("execute", "execute_complete", "resume_execution"):
            if (method := getattr(kind, name, None)) is not None:
                monkeypatch.setattr(kind, name, _in_context(method))


def _in_context(method: Any) -> Any:
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        values: list[Any] = [*args, *kwargs.values()]
        given = next(value for value in values if isinstance(value, dict) and "ti" in value)
        with set_current_context(cast("Context", given)):
            return method(self, *args, **kwargs)

    return called


def _job(sql: str, **arguments: Any) -> DblinkJobOperator:
    return DblinkJobOperator(task_id="task", conn_id="source", sql=sql, **arguments)


def _send(sql: str, task: Any = None, **arguments: Any) -> dict[str, str]:
    operator = DblinkSendQueryOperator(task_id="send", conn_id="source", sql=sql, **arguments)
    return operator.execute(task or context())


def _count(database: Database) -> int:
    return int(database.rows("SELECT count(*) FROM t")[0][0])


def _states(database: Database) -> list[str]:
    return [state for (state,) in database.rows("SELECT state FROM airflow_dblink.job ORDER BY sent_at")]


# -- DblinkJobOperator


def test_a_job_ends_within_the_grace_period_and_never_defers(table: Database) -> None:
    task = context()
    result = _job(INSERT, **PATIENT).execute(task)

    assert result["command_tag"] == "INSERT 0 1"
    assert result["row_count"] == 1
    assert JobHandle.read(result).conn_id == "source"
    assert _count(table) == 1


def test_a_longer_job_defers_with_ids_only(table: Database) -> None:
    operator = _job(
        "SELECT pg_sleep(%s)",
        parameters=["20.25"],
        deferrable=True,
        grace_period=timedelta(0),
        execution_timeout=timedelta(minutes=5),
    )
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context())

    path, arguments = deferred.value.trigger.serialize()
    assert path == "airflow_dblink.triggers.job.DblinkJobTrigger"
    assert DblinkJobTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)
    text = json.dumps([arguments, deferred.value.kwargs])
    assert "pg_sleep" not in text
    assert table.server.role_password not in text
    assert deferred.value.timeout == timedelta(minutes=5, seconds=30)
    assert arguments["deadline"] - time.time() == pytest.approx(300, abs=60)

    event = {"job_id": arguments["job_id"], "state": "succeeded"}
    resumed = _job("SELECT pg_sleep(6.25)", deferrable=True)
    kept = deferred.value.kwargs or {}
    assert resumed.execute_complete(context(), event, **kept)["command_tag"] == "SELECT 1"


@pytest.mark.parametrize(
    ("event", "error", "why"),
    [
        ({"state": "error", "message": "denied", "is_mistake": True}, AirflowFailException, "denied"),
        ({"state": "error", "message": "denied", "is_mistake": False}, RemoteError, "denied"),
        ({"state": "missing"}, AirflowFailException, "there is no job"),
        ({"state": "timeout"}, AirflowTaskTimeout, "execution_timeout"),
    ],
)
def test_the_triggers_other_events(
    table: Database, event: dict[str, Any], error: type[BaseException], why: str
) -> None:
    handle = _send("SELECT pg_sleep(30)")
    store = MemoryStore()
    store.set("airflow_dblink_job", {"job_id": handle["job_id"], "life": 0, "sent": True, "server": {}})
    with pytest.raises(error, match=why):
        _job("SELECT 1").execute_complete(context(store), event, handle)

    assert _states(table) == ["cancelled" if event["state"] == "timeout" else "running"]
    DblinkHook(dblink_conn_id="source").cancel_job(handle)


def test_a_deferral_that_took_too_long_cancels(table: Database, store: MemoryStore) -> None:
    operator = _job("SELECT pg_sleep(30)", deferrable=True, grace_period=timedelta(0))
    with pytest.raises(TaskDeferred):
        operator.execute(context(store))

    with pytest.raises(TaskDeferralTimeout, match="Trigger timeout: execution_timeout"):
        _job("SELECT pg_sleep(30)", deferrable=True).resume_execution(
            "__fail__", {"error": "Trigger timeout"}, context(store)
        )
    assert _states(table) == ["cancelled"]


def test_the_servers_time_limit_names_execution_timeout(table: Database, store: MemoryStore) -> None:
    limits = {"execution_timeout": timedelta(seconds=1), "grace_period": timedelta(0)}
    operator = _job("SELECT pg_sleep(60)", deferrable=True, **limits)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context(store))
    until(lambda: _states(table) == ["failed"])  # no triggerer has looked at it

    with pytest.raises(RemoteError, match=r"statement timeout(.|\n)*execution_timeout \(0:00:01\)"):
        operator.execute_complete(context(store), {"state": "failed"}, **(deferred.value.kwargs or {}))


def test_a_job_that_a_dba_cancels_has_not_met_its_limit(table: Database, store: MemoryStore) -> None:
    operator = _job("SELECT pg_sleep(60)", execution_timeout=timedelta(minutes=5))
    sleeps = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    cancel, is_there = f"SELECT pg_cancel_backend(pid) {sleeps}", f"SELECT 1 {sleeps}"
    with (
        meanwhile(lambda: table.rows(cancel), when=lambda: table.rows(is_there)),
        pytest.raises(RemoteError, match="user request") as caught,
    ):
        operator.execute(context(store))
    assert (caught.value.sqlstate, caught.value.hint) == ("57014", None)


def test_a_failed_job_raises_the_servers_error_and_a_retry_sends_a_new_one(
    table: Database, store: MemoryStore
) -> None:
    operator = _job("INSERT INTO t VALUES (1); SELECT 1/(count(*) - 1) FROM t", retries=1)
    with pytest.raises(RemoteError) as failed:
        operator.execute(context(store, max_tries=1))

    assert failed.value.sqlstate == "22012"
    assert "while running job" in str(failed.value)
    assert _count(table) == 0
    table.execute("INSERT INTO t VALUES (0)")

    operator.execute(context(store, max_tries=1, try_number=2))
    assert _states(table) == ["failed", "succeeded"]
    assert table.rows(
        "SELECT new.try_number FROM airflow_dblink.job AS new JOIN airflow_dblink.job AS old"
        " ON new.replaces = old.id WHERE old.try_number = 1"
    ) == [(2,)]


def test_a_retry_takes_what_succeeded_and_a_clearing_sends_anew(table: Database) -> None:
    store = MemoryStore(refuse_at=3)  # the worker dies when all is done but saying so
    with pytest.raises(StaleTryError):
        _job(INSERT).execute(context(store, max_tries=1))
    store.refuse_at = None

    assert _job(INSERT).execute(context(store, max_tries=1, try_number=2))["command_tag"] == "INSERT 0 1"
    assert _count(table) == 1

    _job(INSERT).execute(context(store, max_tries=2, try_number=3))
    assert _count(table) == 2


def test_a_superseded_try_sends_nothing(table: Database) -> None:
    with pytest.raises(StaleTryError):
        _job(INSERT).execute(context(MemoryStore(refuse_at=1)))
    assert _count(table) == 0
    assert _states(table) == []


@pytest.mark.parametrize(
    ("sql", "arguments", "why"),
    [
        ("", {}, "no statement"),
        ("VACUUM t", {}, r"DblinkExecOperator\(transaction=False\)"),
        (f"{INSERT}; COMMIT", {}, "COMMIT"),
        ("COPY t FROM STDIN", {}, "COPY"),
        ("SELECT '\0'", {}, "NUL"),
        ("SELECT %s", {"parameters": ["a\0b"]}, "NUL"),
        ("SELECT '\ud800'", {}, "U\\+D800"),
        ("SELECT %s", {"parameters": [1, 2]}, "parameters do not fit"),
        (INSERT, {"max_xcom_rows": 5}, "only the rows of one query .* got INSERT"),
        ("SELECT 1; SELECT 2", {"max_xcom_rows": 5}, "got 2 statements"),
        ("SELECT 1 AS a, 2 AS a", {"max_xcom_rows": 5}, "more than one column named 'a'"),
        (INSERT, {"handler": print, "max_xcom_rows": 5}, "exactly one of"),
        (INSERT, {"session_settings": {"a b": 1}}, "session_settings"),
        (5, {}, "sql must be text"),
    ],
)
def test_mistakes_fail_without_retries_and_send_nothing(
    table: Database, sql: Any, arguments: dict[str, Any], why: str
) -> None:
    with pytest.raises(AirflowFailException, match=why):
        _job(sql, **arguments).execute(context())
    assert _count(table) == 0
    assert table.rows("SELECT to_regclass('airflow_dblink.job')") == [(None,)]


def test_settings_and_limits_reach_the_job(table: Database) -> None:
    shown = "INSERT INTO seen SELECT name, setting FROM pg_settings WHERE name IN "
    shown += "('statement_timeout', 'transaction_timeout', 'work_mem', 'client_connection_check_interval')"
    table.execute("CREATE TABLE seen (name text, setting text)")
    _job(shown, execution_timeout=timedelta(minutes=1), session_settings={"work_mem": "7MB"}).execute(
        context()
    )

    seen: dict[str, str] = dict(table.rows("SELECT name, setting FROM seen"))
    assert (seen["statement_timeout"], seen["work_mem"]) == ("62000", "7168")
    assert seen.get("transaction_timeout", "62000") == "62000"
    assert seen["client_connection_check_interval"] == "0"


def test_a_statement_timeout_through_a_transaction_pooler_is_refused(
    table: Database, add_connection: AddConnection
) -> None:
    add_connection("source", table, conn_type="dblink", extra={"pooling_mode": "transaction"})

    with pytest.raises(AirflowFailException, match="direct_host"):
        _job(INSERT, statement_timeout=timedelta(minutes=1)).execute(context())
    _job(INSERT, execution_timeout=timedelta(minutes=1)).execute(context())
    assert _count(table) == 1


# -- kills


def test_a_users_kill_cancels_the_job(table: Database, store: MemoryStore) -> None:
    operator = _job(f"{INSERT}; SELECT pg_sleep(60)")
    killer = _kill_when_running(operator, table)
    with pytest.raises(DblinkTaskKilledError):
        operator.execute(context(store, max_tries=3, wanted="failed"))
    killer.join()

    assert _states(table) == ["cancelled"]
    assert _count(table) == 0


@pytest.mark.parametrize("max_tries", [0, 3])
def test_a_restart_of_the_worker_leaves_the_job_even_without_another_try(
    table: Database, store: MemoryStore, max_tries: int
) -> None:
    operator = _job(f"{GATE}; {INSERT}")
    with ThreadPoolExecutor() as pool:
        with held(table):
            killer = _kill_when_running(operator, table)
            with pytest.raises(DblinkTaskKilledError, match="the next try takes it over"):
                operator.execute(context(store, max_tries=max_tries))
            killer.join()
            assert _states(table) == ["running"]

            again = context(store, max_tries=max_tries, try_number=2)
            waiting = pool.submit(_job(INSERT).execute, again)
            until(lambda: lookers(table))
        waiting.result()
    assert _states(table) == ["succeeded"]
    assert _count(table) == 1


def test_cancel_on_kill_can_be_switched_off(table: Database, store: MemoryStore) -> None:
    operator = _job(GATE, cancel_on_kill=False)
    with held(table):
        killer = _kill_when_running(operator, table)
        with pytest.raises(DblinkTaskKilledError, match="goes on"):
            operator.execute(context(store, wanted="failed"))
        killer.join()
        assert _states(table) == ["running"]


def _kill_when_running(operator: BaseOperator, database: Database) -> Any:
    return kill_when_active(
        operator, database, "query LIKE '/* CALL run(%%' AND wait_event IN ('PgSleep', 'advisory')"
    )


# -- send, get the result, cancel


def test_send_returns_at_once_and_get_result_waits(table: Database, warehouse: Database) -> None:
    with ThreadPoolExecutor() as pool:
        with held(table):
            handle = _send(GATED, keep_result=True)
            assert set(handle) == {"conn_id", "job_id", "schema"}
            assert _states(table) == ["running"]

            get = DblinkGetResultOperator(task_id="get", handle=handle, max_xcom_rows=3)
            waiting = pool.submit(get.execute, context())
            until(lambda: lookers(table))
            assert not waiting.done()
        result = waiting.result()
    assert result == {"rows": 3, "batches": 1, "data": [[1], [2], [3]]}


def test_the_result_goes_where_it_is_told_and_in_order(
    table: Database, warehouse: Database, tmp_path: Path
) -> None:
    handle = _send(NUMBERS, keep_result=True)
    seen: list[Any] = []
    get: dict[str, Any] = {"task_id": "get", "handle": json.dumps(handle)}

    DblinkGetResultOperator(**get, handler=seen.append, batch_rows=10).execute(context())
    assert [len(batch) for batch in seen] == [10, 10, 5]
    assert [row[0] for batch in seen for row in batch] == list(range(25, 0, -1))

    path = tmp_path / "numbers.csv.gz"
    DblinkGetResultOperator(**get, path=f"file://{path}").execute(context())
    assert gzip.decompress(path.read_bytes()).splitlines()[:2] == [b"n,label", b"25,row 25"]

    moved = DblinkGetResultOperator(
        **get, destination_conn_id="warehouse", destination_table="numbers", mode="create", drop_result=True
    ).execute(context())
    assert moved["rows"] == 25
    assert warehouse.rows("SELECT count(*), max(label) FROM numbers") == [(25, "row 9")]
    for place in ({"max_xcom_rows": 100}, {"destination_conn_id": "warehouse", "destination_table": "n"}):
        with pytest.raises(AirflowFailException, match="dropped"):
            DblinkGetResultOperator(**get, **place).execute(context())


@pytest.mark.usefixtures("table")
def test_a_job_writes_its_file_as_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    options = {"delimiter": ";"}
    _job(NUMBERS, path=f"file://{path}", header=False, csv_options=options).execute(context())
    assert path.read_text().splitlines()[:2] == ["25;row 25", "24;row 24"]


def test_a_retry_after_the_result_was_dropped_returns_what_was_returned(table: Database) -> None:
    handle = _send(NUMBERS, keep_result=True)
    store = MemoryStore()
    get = DblinkGetResultOperator(task_id="get", handle=handle, max_xcom_rows=100, drop_result=True)
    first = get.execute(context(store))
    assert get.execute(context(store, try_number=2)) == first
    assert table.rows("SELECT count(*) FROM pg_class WHERE relname LIKE 'result\\_%'") == [(0,)]


def test_a_load_whose_worker_died_is_not_done_twice(table: Database, warehouse: Database) -> None:
    warehouse.execute("CREATE TABLE numbers (n int, label text)")
    handle = _send(NUMBERS, keep_result=True)
    store = MemoryStore(refuse_at=3)
    load = DblinkGetResultOperator(
        task_id="get",
        handle=handle,
        destination_conn_id="warehouse",
        destination_table="numbers",
        drop_result=True,
    )
    with pytest.raises(StaleTryError):
        load.execute(context(store, max_tries=1))
    store.refuse_at = None

    load.execute(context(store, max_tries=1, try_number=2))
    load.execute(context(store, max_tries=1, try_number=3))  # the rows are dropped by now
    assert warehouse.rows("SELECT count(*) FROM numbers") == [(25,)]
    with pytest.raises(AirflowFailException, match="its result was dropped"):  # cleared, it can't load again
        load.execute(context(store, max_tries=2, try_number=4))


def test_somebody_changed_the_result(table: Database, warehouse: Database) -> None:
    handle = _send(NUMBERS, keep_result=True)
    table.execute(
        "DO $$BEGIN EXECUTE format('DELETE FROM airflow_dblink_results.%I WHERE n = 1',"
        " (SELECT result_table FROM airflow_dblink.job)); END$$"
    )

    with pytest.raises(AirflowFailException, match="24 rows, but the job wrote 25"):
        DblinkGetResultOperator(task_id="get", handle=handle, max_xcom_rows=100).execute(context())
    with pytest.raises(RemoteError, match="24 rows, but job"):
        DblinkGetResultOperator(
            task_id="get",
            handle=handle,
            destination_conn_id="warehouse",
            destination_table="numbers",
            mode="create",
        ).execute(context())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "exactly one of"),
        ({"destination_table": "t"}, "give both"),
        ({"destination_table": "t", "destination_conn_id": "source", "max_xcom_rows": 1}, "give both"),
        ({"max_xcom_rows": 1, "handle": "no-uuid"}, "of which database"),
        ({"max_xcom_rows": 1, "handle": "no-uuid", "conn_id": "source"}, "not a job id"),
        ({"max_xcom_rows": 1, "handle": None}, "return value of DblinkSendQueryOperator"),
        ({"max_xcom_rows": 1, "handle": {"job_id": "x"}}, "conn_id, job_id and schema"),
    ],
)
def test_get_results_mistakes(table: Database, arguments: dict[str, Any], why: str) -> None:
    handle = _send("SELECT 1 AS one", keep_result=True)
    with pytest.raises(AirflowFailException, match=why):
        DblinkGetResultOperator(**{"task_id": "get", "handle": handle, **arguments}).execute(context())


def test_cancel_takes_one_many_or_nothing(table: Database) -> None:
    running, other = _send("SELECT pg_sleep(60)"), _send("SELECT pg_sleep(60)")
    ended = _send(INSERT)
    DblinkHook(dblink_conn_id="source").wait_for_job(ended)

    def cancelled(handle: Any, **arguments: Any) -> dict[str, str]:
        return DblinkCancelQueryOperator(task_id="cancel", handle=handle, **arguments).execute(context())

    assert cancelled(running) == {running["job_id"]: "cancelled"}
    assert cancelled([other, None, ended]) == {
        other["job_id"]: "cancelled",
        ended["job_id"]: "succeeded",
    }
    assert cancelled(running["job_id"], conn_id="source") == {running["job_id"]: "cancelled"}
    assert cancelled(None) == cancelled("None") == {}
    assert _count(table) == 1


# -- DblinkExecOperator(deferrable=True), the sensor, the hook


def test_exec_deferrable_is_a_job(table: Database) -> None:
    task = context()
    operator = DblinkExecOperator(task_id="task", conn_id="source", sql=INSERT, **PATIENT)
    assert operator.execute(task) == "INSERT 0 1"
    assert task["ti"].xcoms["command_tags"] == ["INSERT 0 1"]
    assert _states(table) == ["succeeded"]

    ddl = DblinkExecOperator(task_id="task", conn_id="source", sql="CREATE TABLE u (a int)", **PATIENT)
    assert ddl.execute(context()) == "COMMIT"
    with pytest.raises(AirflowFailException, match="transaction=True"):
        DblinkExecOperator(
            task_id="task", conn_id="source", sql="VACUUM", deferrable=True, transaction=False
        ).execute(context())


@pytest.mark.parametrize("how", [{"soft_fail": True}, {"never_fail": True}, {}])
def test_a_deferrable_sensor_looks_once_before_it_defers(table: Database, how: dict[str, Any]) -> None:
    done = _send(INSERT)
    failed = _send("SELECT 1/0")
    hook = DblinkHook(dblink_conn_id="source")
    for handle in (done, failed):
        hook.wait_for_job(handle)

    sensed = DblinkJobSensor(task_id="sense", handle=done, deferrable=True, **how).execute(context())
    assert sensed == {**done, "command_tag": "INSERT 0 1", "row_count": 1}
    with pytest.raises(AirflowSkipException if how else DblinkJobError):
        DblinkJobSensor(task_id="sense", handle=failed, deferrable=True, **how).execute(context())


def test_a_sensor_waits_for_a_server_that_is_away(table: Database, add_connection: AddConnection) -> None:
    handle = _send(INSERT)
    add_connection("source", table, port=1)

    assert not DblinkJobSensor(task_id="sense", handle=handle).poke(context())
    with pytest.raises(TaskDeferred):
        DblinkJobSensor(task_id="sense", handle=handle, deferrable=True).execute(context())


def test_the_hooks_asynchronous_functions_take_a_handle(table: Database) -> None:
    with DblinkHook(dblink_conn_id="source") as hook:
        with ThreadPoolExecutor() as pool:
            with held(table):
                slow = hook.send_job(GATED, keep_result=True)
                assert hook.is_busy(slow) == 1
                waiting = pool.submit(hook.get_result, slow)
                until(lambda: lookers(table))
                assert not waiting.done()
            assert waiting.result() == [(1,), (2,), (3,)]
        assert list(hook.get_result(slow, batch_rows=2)) == [[(1,), (2,)], [(3,)]]
        assert hook.is_busy(slow) == 0
        assert hook.error_message(slow) == "OK"
        hook.drop_result(slow)
        with pytest.raises(UsageError, match="dropped"):
            hook.get_result(slow)

        assert hook.get_result(hook.send_job(INSERT)) == [("INSERT 0 1",)]
        wrong = hook.send_job("SELECT 1/0")
        with pytest.raises(RemoteError, match="division by zero"):
            hook.get_result(wrong)
        assert hook.get_result(wrong, fail_on_error=False) == []
        assert hook.error_message(wrong).startswith("ERROR:  division by zero\nCONTEXT:")

        long = hook.send_job("SELECT pg_sleep(60)")
        assert hook.cancel_query(long) == "OK"
        with pytest.raises(RemoteError, match="user request"):
            hook.get_result(long)
        with pytest.raises(UsageError, match="there is no job"):
            hook.is_busy({**long, "job_id": "00000000-0000-0000-0000-000000000000"})


def test_a_lost_job_is_told_as_such(table: Database) -> None:
    with DblinkHook(dblink_conn_id="source") as hook:
        handle = hook.send_job("SELECT pg_sleep(60)")
        table.execute("SELECT pg_terminate_backend(pid) FROM airflow_dblink.job")
        with pytest.raises(TransientError, match="nothing was changed"):
            hook.get_result(handle)


@pytest.mark.parametrize(
    ("cancel_on_kill", "states"), [(True, ["cancelled", "running"]), (False, ["running"])]
)
def test_a_cleared_sender_whose_job_still_runs_has_one_job_running(
    table: Database, store: MemoryStore, cancel_on_kill: bool, states: list[str]
) -> None:
    sql = "SELECT pg_sleep(60)"
    first = _send(sql, context(store), cancel_on_kill=cancel_on_kill)
    second = _send(sql, context(store, max_tries=1, try_number=2), cancel_on_kill=cancel_on_kill)

    assert _states(table) == states
    assert (first == second) is not cancel_on_kill
    DblinkHook(dblink_conn_id="source").cancel_job(second)


def test_a_job_of_a_task_can_have_limits_and_be_pruned(table: Database) -> None:
    with DblinkHook(dblink_conn_id="source") as hook:
        limited = hook.send_job("SELECT pg_sleep(60)", statement_timeout=timedelta(seconds=5))
        with pytest.raises(RemoteError, match="statement timeout"):
            hook.get_result(limited)
        kept = hook.send_job(
            "SELECT current_setting('work_mem') AS w",
            session_settings={"work_mem": "7MB"},
            keep_result=True,
        )
        assert hook.get_result(kept) == [("7MB",)]
        running = hook.send_job("SELECT pg_sleep(60)")

        assert hook.prune_jobs(timedelta(days=1)) == 0
        assert hook.prune_jobs(timedelta(0)) == 2
        assert _states(table) == ["running"]
        assert table.rows("SELECT count(*) FROM pg_class WHERE relname LIKE 'result\\_%'") == [(0,)]
        hook.cancel_query(running)


def test_hooks_of_one_try_know_of_each_others_jobs(table: Database, store: MemoryStore) -> None:
    """A task that is cleared after its success sends them anew."""

    def work(**fields: Any) -> list[dict[str, str]]:
        handles = []
        with set_current_context(context(store, **fields)):
            for _ in range(2):
                with DblinkHook(dblink_conn_id="source") as hook:
                    handles.append(hook.send_job(INSERT))
                    hook.wait_for_job(handles[-1])
            with DblinkHook(dblink_conn_id="source") as hook:
                hook.send_job(INSERT, name=f"mine of try {fields['try_number']}")
            with DblinkHook(dblink_conn_id="source") as hook, pytest.raises(UsageError, match="already"):
                hook.send_job(INSERT, name=f"mine of try {fields['try_number']}")
        return handles

    first = work(task_id="python", try_number=1)
    assert first[0] != first[1]
    assert _count(table) == 3
    assert work(task_id="python", try_number=2, max_tries=0) == first
    assert work(task_id="python", try_number=3, max_tries=3) != first
    assert _count(table) == 7


def test_a_cleared_task_cancels_its_job_itself(table: Database, store: MemoryStore) -> None:
    """The triggerer may learn of the clearing later than the scheduler starts the new try."""
    waiting = _job("SELECT pg_sleep(60)", deferrable=True, grace_period=timedelta(0))
    handles = []
    for fields in ({}, {"max_tries": 1, "try_number": 2}):
        with pytest.raises(TaskDeferred) as deferred:
            waiting.execute(context(store, **fields))
        handles.append((deferred.value.kwargs or {})["handle"])

    assert handles[0] != handles[1]
    assert _states(table) == ["cancelled", "running"]
    DblinkHook(dblink_conn_id="source").cancel_job(handles[1])


def test_a_task_that_a_user_has_stopped_does_not_defer(table: Database, store: MemoryStore) -> None:
    with pytest.raises(DblinkTaskKilledError):
        _job("SELECT pg_sleep(60)", deferrable=True, grace_period=timedelta(0)).execute(
            context(store, wanted="failed")
        )
    assert _states(table) == ["cancelled"]


def test_a_call_that_ends_before_the_job_began_is_no_success(table: Database, store: MemoryStore) -> None:
    """A statement_timeout that strikes while somebody holds a lock on the job table."""
    hook = DblinkHook(dblink_conn_id="source")
    hook.wait_for_job(_send("SELECT 1"))
    with closing(hook.open_direct("source")) as connection, psycopg.connect(table.admin_conninfo) as admin:
        job_id, submission = uuid4(), hook.submission("source")
        made = draft(connection, "source", INSERT)
        submission._insert(Jobs(connection, "source", "airflow_dblink"), made, job_id, None)
        admin.execute("LOCK TABLE airflow_dblink.job IN SHARE MODE")
        with pytest.raises(TransientError, match="statement timeout"):
            call(connection, "source", "airflow_dblink", job_id, "300ms")
    assert sorted(_states(table)) == ["sent", "succeeded"]


def test_one_job_that_cannot_be_cancelled_keeps_no_other_from_it(table: Database) -> None:
    running = _send("SELECT pg_sleep(60)")
    missing = {**running, "job_id": str(uuid4())}
    with pytest.raises(AirflowFailException, match="there is no job"):
        DblinkCancelQueryOperator(task_id="cancel", handle=[missing, running]).execute(context())
    assert _states(table) == ["cancelled"]


def test_nobody_can_have_another_table_dropped_by_who_prunes(table: Database) -> None:
    _send("SELECT 1")
    table.execute("CREATE TABLE airflow_dblink_results.precious (a int)")
    with pytest.raises(psycopg.errors.CheckViolation):
        table.execute("UPDATE airflow_dblink.job SET result_table = 'precious'")


def test_returning_in_a_functions_body_makes_no_query_of_it(table: Database) -> None:
    body = (
        "CREATE FUNCTION f() RETURNS int LANGUAGE SQL BEGIN ATOMIC INSERT INTO t VALUES (1) RETURNING a; END"
    )
    assert _job(body).execute(context())["command_tag"] is None


def test_a_cleared_delivery_of_a_dropped_result_is_no_silent_success(table: Database) -> None:
    store = MemoryStore()
    get = DblinkGetResultOperator(
        task_id="get", handle=_send(NUMBERS, keep_result=True), max_xcom_rows=100, drop_result=True
    )
    get.execute(context(store))
    with pytest.raises(AirflowFailException, match="its result was dropped"):
        get.execute(context(store, try_number=2, max_tries=1))
