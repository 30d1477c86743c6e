"""DblinkExecOperator's ``execute`` on real servers."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout

from airflow_dblink.core.errors import RemoteError, TransientError
from airflow_dblink.core.once.transaction import KEY, Once
from airflow_dblink.core.server.login import connect
from airflow_dblink.exceptions import DblinkTaskKilledError
from airflow_dblink.operators.execute import DblinkExecOperator
from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.sync.moments import GATE, closed_gate, waiting_at_gate
from tests.integration.tasks import TASK, WAITS, context, kill_when_active
from tests.oracle import wait_until
from tests.stores import MemoryStore, StaleTryError
from tests.transfers import alarm, meanwhile, sleeping

INSERT = "INSERT INTO t VALUES (1)"


@pytest.fixture
def table(source: Database) -> Database:
    source.execute("CREATE TABLE t (a int)")
    return source


def _operator(sql: str, **arguments: Any) -> DblinkExecOperator:
    return DblinkExecOperator(task_id="task", conn_id="source", sql=sql, **arguments)


def _count(database: Database) -> int:
    return int(database.rows("SELECT count(*) FROM t")[0][0])


def test_the_last_tag_is_returned_and_all_are_pushed(table: Database) -> None:
    task = context()

    assert _operator("INSERT INTO t VALUES (1); UPDATE t SET a = a + 1; SELECT 1").execute(task) == "SELECT 1"

    assert task["ti"].xcoms == {"command_tags": ["INSERT 0 1", "UPDATE 1", "SELECT 1"]}
    assert table.rows("SELECT a FROM t") == [(2,)]


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [("INSERT INTO t VALUES (%s), (%s)", [1, None]), ("INSERT INTO t VALUES (%(a)s), (%(a)s)", {"a": 5})],
)
def test_parameters_are_bound(table: Database, sql: str, parameters: Any) -> None:
    assert _operator(sql, parameters=parameters).execute(context()) == "INSERT 0 2"


def test_a_retry_adopts_what_the_first_try_committed(table: Database) -> None:
    store = MemoryStore(refuse_at=2)  # it dies after COMMIT, before it could say so
    with pytest.raises(StaleTryError):
        _operator(INSERT, retries=1).execute(context(store, max_tries=1))
    store.refuse_at = None

    retry = context(store, try_number=2, max_tries=1)
    assert _operator(INSERT, retries=1).execute(retry) == "COMMIT"

    assert retry["ti"].xcoms == {"command_tags": []}
    assert _count(table) == 1


def test_a_cleared_task_runs_anew(table: Database, store: MemoryStore) -> None:
    _operator(INSERT).execute(context(store, max_tries=0))
    _operator(INSERT).execute(context(store, max_tries=0))
    assert _count(table) == 1

    _operator(INSERT).execute(context(store, max_tries=1, try_number=2))
    assert _count(table) == 2


def test_a_stale_try_changes_nothing(table: Database) -> None:
    with pytest.raises(StaleTryError):
        _operator(INSERT).execute(context(MemoryStore(refuse_at=1)))

    assert _count(table) == 0


def test_an_unknown_outcome_fails_without_retries(table: Database, store: MemoryStore) -> None:
    _operator(INSERT).execute(context(store))
    state = store.get(KEY)
    del state["ended"]
    state["ticket"]["system_identifier"] = "1"
    store.set(KEY, state)

    with pytest.raises(AirflowFailException, match="may have committed"):
        _operator(INSERT).execute(context(store))
    assert _count(table) == 1


@pytest.mark.parametrize(
    ("sql", "arguments", "why"),
    [
        ("", {}, "no statement"),
        (f"{INSERT}; COMMIT", {}, "COMMIT"),
        ("VACUUM t", {}, "transaction=False"),
        ("COPY t FROM STDIN", {}, "COPY"),
        (f"{INSERT}; COPY t FROM STDIN", {"transaction": False}, "COPY"),
        ("-- x", {"transaction": False}, "no statement"),
        ("INSERT INTO t VALUES (%s)", {"parameters": [1, 2]}, "parameters do not fit"),
        ("INSERT INTO t VALUES (%s)", {"parameters": {"a": 1}}, "parameters do not fit"),
        (INSERT, {"session_settings": {"a b": 1}}, "session_settings"),
        (5, {}, "sql must be text"),
        ("None", {}, r"sql has no value \(None\)"),
        ("SELECT 1", {"session_settings": ["a"]}, "argument 'session_settings' is 'list'"),
    ],
)
def test_mistakes_fail_without_retries_and_change_nothing(
    table: Database, sql: Any, arguments: dict[str, Any], why: str
) -> None:
    with pytest.raises(AirflowFailException, match=why):
        _operator(sql, **arguments).execute(context())
    assert _count(table) == 0


@pytest.mark.parametrize("value", ["tokenLeak", "token\\Leak", b"tokenLeak", 4711, 47.11, "4711"])
def test_a_parameter_is_not_shown_by_a_syntax_error(table: Database, value: Any) -> None:
    with pytest.raises(RemoteError, match="syntax error at or near") as caught:
        _operator("SELECT 1 %(x)s", parameters={"x": value}).execute(context())
    assert not [word for word in ("Leak", "11", "4711") if word in str(caught.value)]


def test_a_wrong_password_may_be_retried_and_is_not_shown(
    table: Database, add_connection: AddConnection
) -> None:
    add_connection("source", table, password="geheim")

    with pytest.raises(TransientError, match="password authentication failed") as caught:
        _operator(INSERT).execute(context())
    assert "geheim" not in str(caught.value)


def test_a_missing_credential_fails_without_retries(table: Database, add_connection: AddConnection) -> None:
    add_connection("source", table, password=None)

    with pytest.raises(AirflowFailException, match="2F003"):
        _operator(INSERT).execute(context())


def test_the_servers_error_rolls_everything_back(table: Database) -> None:
    with pytest.raises(RemoteError, match="division by zero"):
        _operator(f"{INSERT}; SELECT 1/0").execute(context())
    assert _count(table) == 0


def test_a_procedure_that_commits_is_explained(table: Database) -> None:
    table.execute("CREATE PROCEDURE p() LANGUAGE plpgsql AS $$BEGIN COMMIT; END$$")

    with pytest.raises(RemoteError, match="transaction=False"):
        _operator("CALL p()").execute(context())
    assert _operator("CALL p()", transaction=False).execute(context()) == "CALL"


def test_without_a_transaction_each_statement_is_by_itself(
    table: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    task = context()
    script = f"VACUUM t; {INSERT}; CREATE INDEX CONCURRENTLY i ON t (a); SELECT 1; -- end"

    assert _operator(script, transaction=False).execute(task) == "SELECT 1"

    assert task["ti"].xcoms["command_tags"] == ["VACUUM", "INSERT 0 1", "CREATE INDEX", "SELECT 1"]
    assert "at least once" in capsys.readouterr().out
    with pytest.raises(RemoteError, match="division"):
        _operator(f"{INSERT}; SELECT 1/0", transaction=False).execute(context())
    assert _count(table) == 2


def test_without_a_transaction_a_transaction_pooler_is_refused(
    table: Database, add_connection: AddConnection
) -> None:
    add_connection("source", table, conn_type="dblink", extra={"pooling_mode": "transaction"})

    with pytest.raises(AirflowFailException, match="pooler"):
        _operator("VACUUM t", transaction=False).execute(context())
    assert _operator(INSERT).execute(context()) == "INSERT 0 1"


# -- limits and settings


KEEP = """CREATE TABLE seen AS SELECT name, setting FROM pg_settings
 WHERE name IN ('statement_timeout', 'transaction_timeout', 'work_mem', 'client_min_messages')"""


def _seen(database: Database) -> dict[str, str]:
    return {name: setting for name, setting in database.rows("SELECT name, setting FROM seen")}


@pytest.mark.parametrize("transaction", [True, False])
def test_limits_and_settings_reach_the_server(table: Database, transaction: bool) -> None:
    _operator(
        KEEP,
        transaction=transaction,
        execution_timeout=timedelta(minutes=1),
        session_settings={"work_mem": "7MB"},
        client_min_messages="error",
    ).execute(context())

    seen = _seen(table)
    if "transaction_timeout" in seen:  # since PostgreSQL 17
        assert seen["transaction_timeout"] == ("62000" if transaction else "0")
    assert (seen["statement_timeout"], seen["work_mem"]) == ("62000", "7168")
    assert seen["client_min_messages"] == "error"


def test_the_smaller_limit_holds_and_none_is_too_big(table: Database) -> None:
    _operator(KEEP, execution_timeout=timedelta(days=60), statement_timeout=timedelta(seconds=5)).execute(
        context()
    )

    assert _seen(table)["statement_timeout"] == "5000"
    assert _operator(INSERT, execution_timeout=timedelta(days=60)).execute(context()) == "INSERT 0 1"


def test_statement_timeout_ends_the_statement(table: Database) -> None:
    started = time.monotonic()
    with pytest.raises(RemoteError, match="statement timeout"):
        _operator(f"{INSERT}; SELECT pg_sleep(60)", statement_timeout=timedelta(seconds=1)).execute(context())

    assert time.monotonic() - started < 30
    assert _count(table) == 0


def test_a_time_out_says_that_the_statement_was_cancelled_and_rolled_back(table: Database) -> None:
    says = (
        r"execution_timeout \(0:05:00\) is over: the statement was cancelled, and transaction \d+ rolled back"
    )
    operator = _operator(f"{INSERT}; SELECT pg_sleep(60)", execution_timeout=timedelta(minutes=5))

    with alarm(lambda: sleeping(table), AirflowTaskTimeout), pytest.raises(AirflowTaskTimeout, match=says):
        operator.execute(context())

    assert table.wait_until_left() == []
    assert _count(table) == 0


def test_a_time_out_outside_of_a_transaction_says_what_stays(table: Database) -> None:
    operator = _operator(
        f"{INSERT};\nSELECT pg_sleep(60)", transaction=False, execution_timeout=timedelta(minutes=5)
    )
    says = "the statement in line 2 was cancelled; the statements before it are done"

    with alarm(lambda: sleeping(table), AirflowTaskTimeout), pytest.raises(AirflowTaskTimeout, match=says):
        operator.execute(context())

    assert table.wait_until_left() == []
    assert _count(table) == 1


def test_a_time_out_that_comes_too_late_does_not_say_rolled_back(table: Database) -> None:
    """The server can't cancel a COMMIT that waits for a standby: it is done, but for the waiting."""
    operator = _operator(
        INSERT,
        execution_timeout=timedelta(minutes=5),
        session_settings={"synchronous_commit": "remote_apply"},
    )
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep'"
    table.admin("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    try:
        table.admin("SELECT pg_reload_conf()")
        for _ in range(
            2
        ):  # the checkpointer tells all sessions of the standby, in its next round at the latest
            table.admin("CHECKPOINT")
        with (
            alarm(lambda: table.admin(waits), AirflowTaskTimeout),
            pytest.raises(AirflowTaskTimeout, match=r"transaction \d+ had committed by then"),
        ):
            operator.execute(context())
    finally:
        table.admin("ALTER SYSTEM RESET synchronous_standby_names")
        table.admin("SELECT pg_reload_conf()")
    assert _count(table) == 1


# -- kills


@pytest.mark.parametrize("transaction", [True, False])
def test_a_kill_cancels_within_five_seconds_and_is_no_success(table: Database, transaction: bool) -> None:
    operator = _operator("SELECT pg_sleep(60)", transaction=transaction)
    killer = kill_when_active(operator, table)

    with pytest.raises(DblinkTaskKilledError):
        operator.execute(context(max_tries=3, wanted="failed"))

    killer.join()
    assert table.wait_until_left() == []


def test_a_worker_that_only_stops_leaves_the_statement_to_the_next_try(
    table: Database, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sql = f"SELECT {GATE}; {INSERT}"
    operator = _operator(sql, retries=1)
    with closed_gate(table) as open_gate:
        with (
            meanwhile(operator.on_kill, lambda: waiting_at_gate(table)),
            pytest.raises(DblinkTaskKilledError, match="the next try takes it over"),
        ):
            operator.execute(context(store, max_tries=1))
        assert _count(table) == 0

        with meanwhile(open_gate, lambda: WAITS in caplog.text):
            again = _operator(sql, retries=1).execute(context(store, max_tries=1, try_number=2))
    assert again == "COMMIT"
    assert _count(table) == 1


def test_a_stopping_worker_cancels_where_no_try_is_left(table: Database) -> None:
    operator = _operator("SELECT pg_sleep(60)")
    killer = kill_when_active(operator, table)

    with pytest.raises(DblinkTaskKilledError, match="told to stop"):
        operator.execute(context(max_tries=0))

    killer.join()
    assert table.wait_until_left() == []


def test_a_kill_while_waiting_for_an_orphan_ends_that_too(
    table: Database, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The first try's statement goes on without its worker; then a user marks the retry as failed."""
    caplog.set_level("INFO")
    worker = connect(table.target)
    orphan = Once(worker, "source", store, task=TASK)
    orphan.begin()
    worker.pgconn.send_query(b"INSERT INTO t VALUES (1); SELECT pg_sleep(60); COMMIT")
    task = _operator("INSERT INTO t VALUES (2)", retries=2)
    killed_at: list[float] = []

    def kill() -> None:
        killed_at.append(time.monotonic())
        task.on_kill()

    with meanwhile(kill, lambda: WAITS in caplog.text), pytest.raises(DblinkTaskKilledError):
        task.execute(context(store, try_number=2, max_tries=2, wanted="failed"))
    ended = time.monotonic()

    assert ended - killed_at[0] < 25  # not the 60 s that the statement takes
    wait_until(lambda: table.admin("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == [])
    assert _count(table) == 0
    worker.abort()


def test_a_stopping_worker_leaves_an_orphan_to_the_next_try(
    table: Database, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    worker = connect(table.target)
    orphan = Once(worker, "source", store, task=TASK)
    orphan.begin()
    with closed_gate(table) as open_gate:
        worker.pgconn.send_query(f"INSERT INTO t VALUES (1); SELECT {GATE}; COMMIT".encode())  # noqa: S608 - ours
        task = _operator("INSERT INTO t VALUES (2)", retries=2)
        with meanwhile(task.on_kill, lambda: WAITS in caplog.text), pytest.raises(DblinkTaskKilledError):
            task.execute(context(store, try_number=2, max_tries=2))
        caplog.clear()
        again = _operator("INSERT INTO t VALUES (2)", retries=2)
        with meanwhile(open_gate, lambda: WAITS in caplog.text):
            tag = again.execute(context(store, try_number=3, max_tries=2))

    assert tag == "COMMIT"
    assert table.rows("SELECT a FROM t") == [(1,)]
    worker.abort()


def test_a_kill_after_the_commit_is_looked_into_when_the_task_is_cleared(
    table: Database, store: MemoryStore
) -> None:
    """The task failed, but its effect is there: clearing it must not double that."""
    task = _operator("INSERT INTO t VALUES (1)")
    killed = context(store)
    killed["ti"].xcom_push = lambda *_: task.on_kill()
    with pytest.raises(DblinkTaskKilledError):
        task.execute(killed)

    _operator("INSERT INTO t VALUES (1)").execute(context(store, try_number=2, max_tries=1))
    assert _count(table) == 1
