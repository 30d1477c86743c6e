# ruff: noqa: S608 - names that the tests themselves made
"""The query operator when something fails, is killed or is tried again: all of it once, or nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import RemoteError, TransientError
from airflow_dblink.core.once.transaction import KEY
from airflow_dblink.core.remote_sets.remote import Remote
from airflow_dblink.core.streams import fan_in as gather
from airflow_dblink.embedded.server import Server
from airflow_dblink.exceptions import DblinkTaskKilledError
from tests.conftest import AddConnection
from tests.databases import Database, new_database
from tests.integration.sync.moments import GATE, closed_gate, waiting_at_gate
from tests.integration.tasks import WAITS, context
from tests.queries import operator, run, source
from tests.stores import MemoryStore, StaleTryError
from tests.transfers import TimeIsUp, alarm, meanwhile, sleeping

INSERT = "INSERT INTO t SELECT a FROM c"
SETS = {"c": source("SELECT 1 AS a")}
SLEEPS = (
    "SELECT g AS a, CASE WHEN g = 20000 THEN pg_sleep(60)::text END AS x FROM generate_series(1, 20000) g"
)
ENDS_WITHIN_S = 25.0  # not cancelled, a statement takes 60 s


@pytest.fixture
def third(pair: tuple[Server, Server], add_connection: AddConnection) -> Iterator[Database]:
    with new_database(pair[0], "third") as database:
        add_connection("third", database)
        yield database


@pytest.fixture(autouse=True)
def home(source: Database, warehouse: Database) -> Database:
    """Home, with a table t."""
    warehouse.execute("CREATE TABLE t (a int)")
    return warehouse


def _end(database: Database, which: str) -> None:
    database.admin(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE datname = current_database() AND pid <> pg_backend_pid() AND {which}"
    )


# -- exactly once


def test_a_retry_adopts_what_the_first_try_committed(home: Database) -> None:
    store = MemoryStore(refuse_at=3)  # it dies after COMMIT, before it could say so
    with pytest.raises(StaleTryError):
        run(INSERT, SETS, store=store)
    store.refuse_at = None

    again = operator(INSERT, {"c": source("SELECT 1 / 0 AS a")})
    assert again.execute(context(store, try_number=2, max_tries=1)) == {"sets": {"c": 1}, "command_tags": []}
    assert home.rows("TABLE t") == [(1,)]


def test_a_retry_adopts_the_rows_that_were_delivered(home: Database) -> None:
    store = MemoryStore(refuse_at=3)
    batches: list[Any] = []
    script = f"{INSERT}; TABLE t"
    with pytest.raises(StaleTryError):
        run(script, SETS, store=store, handler=batches.append)
    store.refuse_at = None

    result = run(script, SETS, store=store, handler=batches.append)

    assert result == {"sets": {"c": 1}, "command_tags": ["INSERT 0 1"], "rows": 1, "batches": 1}
    assert batches == [[(1,)]]
    assert home.rows("TABLE t") == [(1,)]


@pytest.mark.parametrize("refuse_at", [1, 2])
@pytest.mark.parametrize("sink", [{}, {"max_xcom_rows": 5}])
def test_a_stale_try_changes_nothing(home: Database, refuse_at: int, sink: dict[str, Any]) -> None:
    with pytest.raises(StaleTryError):
        run(f"{INSERT}; SELECT 1", SETS, store=MemoryStore(refuse_at=refuse_at), **sink)
    assert home.rows("TABLE t") == []


def test_a_cleared_task_runs_anew_and_a_finished_one_does_not(home: Database, store: MemoryStore) -> None:
    for _ in range(2):
        result = run(INSERT, SETS, store=store)
        assert result == {"sets": {"c": 1}, "command_tags": ["INSERT 0 1"]}
    assert home.rows("TABLE t") == [(1,)]

    operator(INSERT, SETS).execute(context(store, max_tries=1, try_number=2))
    assert home.rows("TABLE t") == [(1,), (1,)]


def test_an_unknown_outcome_fails_without_retries(home: Database, store: MemoryStore) -> None:
    run(INSERT, SETS, store=store)
    state = store.get(KEY)
    del state["ended"]
    state["ticket"]["system_identifier"] = "1"
    store.set(KEY, state)
    with pytest.raises(AirflowFailException, match="may have committed"):
        run(INSERT, SETS, store=store)


def test_a_worker_that_only_stops_leaves_the_script_to_the_next_try(
    home: Database, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    script = f"SELECT {GATE}; {INSERT}"
    task = operator(script, SETS, retries=1)
    with closed_gate(home) as open_gate:
        with (
            meanwhile(task.on_kill, lambda: waiting_at_gate(home)),
            pytest.raises(DblinkTaskKilledError, match="the next try takes it over"),
        ):
            task.execute(context(store, max_tries=1))
        assert home.rows("TABLE t") == []

        with meanwhile(open_gate, lambda: WAITS in caplog.text):
            result = operator(script, SETS, retries=1).execute(context(store, max_tries=1, try_number=2))
    assert result == {"sets": {"c": 1}, "command_tags": []}
    assert home.rows("TABLE t") == [(1,)]


# -- errors


@pytest.mark.parametrize("sink", [{}, {"max_xcom_rows": 5}])
def test_an_error_of_the_script_rolls_everything_back(home: Database, sink: dict[str, Any]) -> None:
    with pytest.raises(RemoteError, match=r"'warehouse'.*division by zero"):
        run(f"{INSERT}; SELECT 1 / (a - 1) FROM c", SETS, **sink)
    assert home.rows("TABLE t") == []


def test_a_failing_delivery_rolls_everything_back(home: Database, tmp_path: Path) -> None:
    def handler(batch: list[Any]) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(f"{INSERT}; TABLE t", SETS, handler=handler)
    path = tmp_path / "x.csv"
    with pytest.raises(RemoteError, match="division by zero"):
        run(f"{INSERT}; SELECT 1 / (a - 1) FROM c", SETS, path=path.as_uri())
    assert home.rows("TABLE t") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", [1, 30_000])
def test_one_remote_of_several_fails(source: Database, third: Database, home: Database, at: int) -> None:
    sets = {
        "slow": Remote("source", SLEEPS),
        "bad": Remote("third", f"SELECT 1 / (g - {at}) AS secret FROM generate_series(1, 50000) AS g"),
    }
    started = time.monotonic()
    with pytest.raises(RemoteError, match=r'(?s)\'third\'.*division by zero.*fetching remote set "bad"'):
        run("INSERT INTO t VALUES (1)", sets)
    assert time.monotonic() - started < 30  # it does not wait for the slow one
    assert source.wait_until_left() == third.wait_until_left() == home.wait_until_left() == []
    assert home.rows("TABLE t") == []


@pytest.mark.parametrize("which", ["source", "third"])
def test_a_remote_session_that_ends_in_the_middle(
    source: Database, third: Database, home: Database, which: str
) -> None:
    database = source if which == "source" else third
    sets = {"a": Remote("source", SLEEPS), "b": Remote("third", SLEEPS)}
    with (
        meanwhile(lambda: _end(database, "wait_event = 'PgSleep'"), lambda: sleeping(database)),
        pytest.raises(TransientError, match=rf"connection '{which}'"),
    ):
        run(INSERT, sets)
    assert source.wait_until_left() == third.wait_until_left() == home.wait_until_left() == []


@pytest.mark.parametrize("query", [SLEEPS, "SELECT 1 AS a, pg_sleep(60)::text"])
def test_home_ends_while_a_remote_is_slow(source: Database, home: Database, query: str) -> None:
    """With a COPY open, which has taken some rows; and before the first row."""
    with (
        meanwhile(lambda: _end(home, "true"), lambda: sleeping(source)),
        pytest.raises(TransientError, match=r"connection 'warehouse'"),
    ):
        run(INSERT, {"c": Remote("source", query)})
    assert source.wait_until_left() == []


def test_home_refuses_early_rows_of_a_slow_remote(source: Database, home: Database) -> None:
    """An error that home has at once is not kept back until the remote is through."""
    for database, labels in ((source, "'a', 'b'"), (home, "'a'")):
        database.execute(f"CREATE TYPE mood AS ENUM ({labels})")
    query = (
        "SELECT 'b'::mood AS mood, repeat('x', 1000) AS filler, CASE g WHEN 20000 THEN pg_sleep(60)::text END"
        " FROM generate_series(1, 20000) AS g"
    )
    started = time.monotonic()
    with pytest.raises(RemoteError, match=r"'warehouse'.*invalid input value"):
        run(INSERT, {"c": Remote("source", query)})
    assert time.monotonic() - started < 30  # it does not wait for the slow one


def test_rows_that_home_does_not_keep_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nothing should be able to do: a row is lost on the way."""
    monkeypatch.setattr(gather._Arriving, "add", lambda self, chunk, rows: None)
    with pytest.raises(RemoteError, match=r'home has 0 rows of remote set "c", but \'source\' sent 1'):
        run(INSERT, SETS)


def test_a_wrong_password_of_one_remote_is_named(third: Database, add_connection: AddConnection) -> None:
    add_connection("third", third, password="wrong")
    with pytest.raises(TransientError, match=r"'third'.*could not establish connection"):
        run(INSERT, {"c": source("SELECT 1 AS a"), "d": Remote("third", "SELECT 1 AS a")})


def test_the_time_limit_of_a_remote_is_its_servers(home: Database) -> None:
    with pytest.raises(RemoteError, match=r"'source'.*statement timeout"):
        run(INSERT, {"c": source(SLEEPS)}, statement_timeout=timedelta(seconds=3))
    assert home.rows("TABLE t") == []


def test_homes_patience_is_not_the_sessions(home: Database) -> None:
    """While it waits for the first row it is idle in its transaction, and that may take long."""
    home.admin(f"ALTER DATABASE \"{home.name}\" SET idle_in_transaction_session_timeout = '3s'")
    slow = {"c": source("SELECT 1 AS a, pg_sleep(4)::text"), "d": source("SELECT 1 AS a")}
    assert run(INSERT, slow)["sets"] == {"c": 1, "d": 1}


# -- kills


@pytest.mark.parametrize("where", ["remote", "script", "delivery"])
def test_a_kill_ends_all_sessions_in_time(
    source: Database, third: Database, home: Database, where: str
) -> None:
    sleeps = SLEEPS if where == "remote" else "SELECT 1 AS a"
    sets = {"c": Remote("source", sleeps), "d": Remote("third", sleeps)}
    sink = {"max_xcom_rows": 5} if where == "delivery" else {}
    task = operator(f"{INSERT}; SELECT pg_sleep(60)", sets, **sink)
    killed_at: list[float] = []

    def kill() -> None:
        killed_at.append(time.monotonic())
        task.on_kill()

    asleep = source if where == "remote" else home
    with meanwhile(kill, lambda: sleeping(asleep)), pytest.raises(DblinkTaskKilledError):
        task.execute(context(max_tries=3, wanted="failed"))
    ended = time.monotonic()
    assert ended - killed_at[0] < ENDS_WITHIN_S
    assert source.wait_until_left() == third.wait_until_left() == home.wait_until_left() == []
    assert home.rows("TABLE t") == []


def test_an_exception_out_of_a_signal_handler_ends_all_sessions(
    source: Database, third: Database, home: Database
) -> None:
    def all_sleep() -> bool:
        return bool(sleeping(source) and sleeping(third))

    with alarm(all_sleep) as rung_at, pytest.raises(TimeIsUp):
        run(INSERT, {"c": Remote("source", SLEEPS), "d": Remote("third", SLEEPS)})
    ended = time.monotonic()
    assert ended - rung_at[0] < ENDS_WITHIN_S
    assert source.wait_until_left() == third.wait_until_left() == home.wait_until_left() == []
