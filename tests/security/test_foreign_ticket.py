"""A ticket of another task, put into a task's state, makes that task adopt or end another's transaction."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import OutcomeUnknownError, TransientError
from airflow_dblink.core.once.transaction import KEY, Once
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.login import connect
from airflow_dblink.operators.execute import DblinkExecOperator
from tests.databases import Database
from tests.integration.tasks import TASK, WAITS, context
from tests.oracle import wait_until
from tests.stores import MemoryStore

VICTIM = {**TASK, "task_id": "victim"}
SLEEPS = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
INSERT = b"INSERT INTO t VALUES ('victim')"


@pytest.fixture
def table(source: Database) -> Database:
    source.execute("CREATE TABLE t (who text)")
    return source


@contextmanager
def a_transaction(table: Database, store: MemoryStore, **options: Any) -> Iterator[LinkConnection]:
    """Give the session of a transaction that has inserted a row; its ticket is in *store*."""
    connection = connect(table.target, application_name="dag.victim run")
    try:
        Once(connection, "source", store, **options).begin()
        connection.execute(INSERT)
        yield connection
    finally:
        connection.close()


def run(store: MemoryStore, **fields: Any) -> str:
    """Execute a task of its own with *store* as its state."""
    operator = DblinkExecOperator(
        task_id="task",
        conn_id="source",
        sql="INSERT INTO t VALUES ('task')",
        orphan_timeout=timedelta(0),
    )
    return operator.execute(context(store, **fields))


def who(table: Database) -> list[str]:
    return [row[0] for row in table.rows("SELECT who FROM t ORDER BY 1")]


@pytest.mark.parametrize(
    "named", [{"dag_id": "x"}, {"task_id": "x"}, {"run_id": "x"}, {"map_index": 0}, {"more": 1}]
)
def test_a_ticket_that_names_another_task_is_not_taken_over(table: Database, named: dict[str, Any]) -> None:
    store = MemoryStore()
    with a_transaction(table, store, task={**TASK, **named}) as victim:
        with pytest.raises(AirflowFailException, match="another task's"):
            run(store)
        assert who(table) == []
        victim.execute("COMMIT")

    with pytest.raises(AirflowFailException, match="another task's"):
        run(store)
    assert who(table) == ["victim"]


def test_a_result_that_names_another_task_is_not_returned(table: Database) -> None:
    store = MemoryStore()
    with a_transaction(table, store, task=VICTIM) as victim:
        victim.execute("COMMIT")
        store.set(KEY, {**store.get(KEY), "ended": "returned", "result": {"tags": ["INSERT 0 1"]}})

    with pytest.raises(AirflowFailException, match="another task's"):
        run(store)


def test_a_user_who_clears_the_task_gets_it_run(table: Database) -> None:
    store = MemoryStore()
    with a_transaction(table, store, task=VICTIM), pytest.raises(AirflowFailException):
        run(store)

    assert run(store, max_tries=1) == "INSERT 0 1"
    assert who(table) == ["task"]


def test_a_forged_ticket_does_not_end_a_transaction_of_another_application_name(table: Database) -> None:
    """It names this task, but the transaction is another's: it waits for its client, and is left alone."""
    store = MemoryStore()
    with a_transaction(table, store, task=TASK) as victim:
        with pytest.raises(TransientError, match="this task can't end it"):
            run(store)
        victim.execute("COMMIT")
    assert who(table) == ["victim"]


def test_a_forged_ticket_does_not_cancel_a_statement_either(table: Database) -> None:
    store = MemoryStore()
    with a_transaction(table, store, task=TASK) as victim, connect(table.target) as other:
        victim.pgconn.send_query(b"SELECT pg_sleep(60)")
        wait_until(lambda: bool(table.admin(SLEEPS)))
        waiting = Once(other, "source", store, task=TASK, application_name="dag.task run")
        waiting.awaited = store.get(KEY)["ticket"]
        waiting.end_awaited()
        assert table.admin(SLEEPS)
        victim.cancel_running()


def test_what_another_application_name_committed_is_not_taken_over(
    table: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = MemoryStore()
    found: list[BaseException] = []
    with a_transaction(table, store, task=TASK) as victim, connect(table.target) as other:

        def recall() -> None:
            try:
                Once(other, "source", store, task=TASK, application_name="dag.task run").recall()
            except OutcomeUnknownError as error:
                found.append(error)

        thread = threading.Thread(target=recall)
        thread.start()
        wait_until(lambda: WAITS in caplog.text)
        victim.execute("COMMIT")
        thread.join()
    assert "its session's application_name was not 'dag.task run'" in str(found[0])


def test_a_session_of_the_same_application_name_is_ended(table: Database) -> None:
    store = MemoryStore()
    with a_transaction(table, store, task=TASK), connect(table.target) as other:
        assert Once(other, "source", store, task=TASK, application_name="dag.victim run").recall() is None
    assert who(table) == []


def test_the_name_that_session_settings_give_is_the_transactions(table: Database) -> None:
    store = MemoryStore()
    name = "x" * 70  # of which the server keeps 63
    with connect(table.target) as connection, connect(table.target) as other:
        Once(connection, "source", store, task=TASK, application_name=name).begin({"application_name": name})
        assert [row for row in table.sessions() if row[1] == name[:63]]
        assert Once(other, "source", store, task=TASK, application_name=name).recall() is None
        with pytest.raises(Exception, match="terminating connection"):
            connection.execute("SELECT 1")


# -- what the version before has stored


def without_task(store: MemoryStore, **more: Any) -> None:
    """Make of the ticket one of the version before, which named no task."""
    state = store.get(KEY)
    del state["task"]
    store.set(KEY, {**state, **more})


def test_a_ticket_of_the_version_before_that_was_rolled_back_is_run_again(table: Database) -> None:
    store = MemoryStore()
    with a_transaction(table, store) as victim:
        victim.execute("ROLLBACK")
    without_task(store)

    assert run(store) == "INSERT 0 1"
    assert who(table) == ["task"]


@pytest.mark.parametrize("more", [{}, {"ended": "returned", "result": {"tags": ["INSERT 0 1"]}}])
def test_a_ticket_of_the_version_before_that_was_committed_is_for_a_human(
    table: Database, more: dict[str, Any]
) -> None:
    """It can't be proven to be this task's: neither run again nor taken over."""
    store = MemoryStore()
    with a_transaction(table, store) as victim:
        victim.execute("COMMIT")
    without_task(store, **more)

    with pytest.raises(AirflowFailException, match="by an earlier version, doesn't say whose"):
        run(store)
    assert who(table) == ["victim"]


# -- what is no ticket at all


@pytest.mark.parametrize(
    "change",
    [
        {"xid": "1; DROP TABLE t"},
        {"xid": 5},
        {"xid": "9" * 400},
        {"pid": "1); DROP TABLE t; --"},
        {"backend_start": None},
        {"timeline": 1},
        {"crash_epoch": []},
    ],
)
def test_what_cannot_be_a_ticket_is_not_sent_to_the_server(table: Database, change: dict[str, Any]) -> None:
    store = MemoryStore()
    with a_transaction(table, store, task=TASK):
        pass
    state = store.get(KEY)
    store.set(KEY, {**state, "ticket": {**state["ticket"], **change}})

    with pytest.raises(AirflowFailException, match="can't be read"):
        run(store)
    assert run(store, max_tries=1) == "INSERT 0 1"


@pytest.mark.parametrize("state", ["returned", [], {}, {"ended": "returned"}, {"ticket": [], "life": "0"}])
@pytest.mark.usefixtures("table")
def test_a_state_that_is_none_is_not_guessed(state: Any) -> None:
    store = MemoryStore()
    store.set(KEY, state)

    with pytest.raises(AirflowFailException, match=r"can't be read|doesn't say whose"):
        run(store)
    assert run(store, max_tries=1) == "INSERT 0 1"
