"""Whatever dies in a sync, and whenever: the destination is as before or equal, and a retry mends it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.errors import TransientError
from airflow_dblink.core.server.side import Side
from airflow_dblink.exceptions import DblinkTaskKilledError
from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.sync.moments import (
    COUNTED,
    DIFFER,
    GATED,
    GATED_CHECK,
    GATED_ROWS,
    GIVES_UP,
    FileStore,
    Network,
    applied,
    at_gate,
    before_each_statement,
    closed_gate,
    end_sessions,
    fill,
    rows,
    run_in_process,
    wait_until_left,
    waiting,
    waiting_at_gate,
)
from tests.integration.tasks import context
from tests.stores import MemoryStore
from tests.syncs import sync, sync_operator
from tests.transfers import TimeIsUp, alarm, meanwhile

Both = tuple[Database, Database]
ROUNDS = int(os.environ.get("AIRFLOW_DBLINK_KILL_ROUNDS", "20"))
SEED = os.environ.get("AIRFLOW_DBLINK_KILL_SEED", "sync")
ENDS_WITHIN_S = 25.0  # what is waited for takes 60 s and more
METHODS: list[dict[str, Any]] = [{}, {"method": "reload"}, {"apply": "statements"}, {"lock": "compare"}]


@pytest.fixture
def both(source: Database, warehouse: Database) -> Both:
    fill(source, warehouse)
    warehouse.execute(COUNTED)
    return source, warehouse


def assert_nobody_left(both: Both) -> None:
    assert [wait_until_left(database) for database in both] == [[], []]


# -- a session ends before each statement in turn


@pytest.mark.parametrize("victim", ["source", "warehouse"])
@pytest.mark.parametrize(("arguments", "every"), [*zip(METHODS, [2, 6, 6, 6], strict=True)])
def test_a_session_that_ends_before_any_statement(
    both: Both, victim: str, arguments: dict[str, Any], every: int
) -> None:
    source, warehouse = both
    dying = both[victim == "warehouse"]
    statements: list[str] = []
    with before_each_statement(lambda side, action: statements.append(action)):
        sync(**arguments)
    assert len(statements) > 20
    failed = 0
    for moment in range(0, len(statements), every):
        warehouse.execute(DIFFER)
        before, after = rows(warehouse), rows(source)
        passed: list[str] = []

        def act(side: Side, action: str, passed: list[str] = passed, moment: int = moment) -> None:
            if len(passed) == moment:
                end_sessions(dying)
            passed.append(action)

        with before_each_statement(act):
            outcome = outcome_of(lambda: sync(**arguments))
        if isinstance(outcome, str):
            failed += 1
            assert f"connection '{victim}'" in outcome, (moment, passed[-1])
            assert "secret" not in outcome
            assert rows(warehouse) == before, (moment, passed[-1])
            sync(**arguments)
        assert rows(warehouse) == after, (moment, statements[moment])
    assert failed > len(statements) // every // 3
    assert_nobody_left(both)


def outcome_of(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except TransientError as error:
        return str(error)


# -- processes, sessions and networks that end at random


@pytest.fixture(scope="module")
def processes() -> Any:
    """Return what makes child processes in which Airflow is imported already."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([__name__])
    return made


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW")}


def begin(processes: Any, path: Path, arguments: dict[str, Any]) -> Any:
    child = processes.Process(target=run_in_process, args=(str(path), environment(), arguments))
    child.start()
    return child


def seconds_of_a_sync(processes: Any, path: Path, both: Both) -> float:
    for attempt in range(2):  # the first one waits for the imports
        both[1].execute(DIFFER)
        started = time.monotonic()
        child = begin(processes, path / f"timed_{attempt}", {})
        child.join(300)
        assert child.exitcode == 0
    return time.monotonic() - started


def edit(chance: random.Random, database: Database) -> None:
    """Change a part of the rows: some of each kind."""
    low, step = chance.randrange(0, 2000), chance.randrange(1, 40)
    database.execute(
        f"""UPDATE item SET s = md5(s || '{low}') WHERE id > {low} AND id % {step} = 0;
        DELETE FROM item WHERE id > {low} AND id % 17 = {step % 17};
        INSERT INTO item SELECT i, 0, 'secret' FROM generate_series({low}, {low + 500}) AS i
            ON CONFLICT (id) DO UPDATE SET k = item.k + 1"""  # noqa: S608 - numbers
    )


@pytest.mark.parametrize("event", ["process", "source", "warehouse", "cut source", "cut warehouse"])
def test_death_at_a_random_moment(
    both: Both, processes: Any, add_connection: AddConnection, tmp_path: Path, event: str
) -> None:
    chance = random.Random(f"{SEED} {event}")  # noqa: S311 - no secret
    source, warehouse = both
    lasts_s = seconds_of_a_sync(processes, tmp_path, both)
    ended: list[int | None] = []
    for number in range(max(1, ROUNDS // 5)):
        edit(chance, source)
        before, after, xids = rows(warehouse), rows(source), applied(warehouse)
        path, arguments = (
            tmp_path / f"state_{number}",
            {**chance.choice(METHODS), "max_delete_fraction": None},
        )
        with network(event, both, add_connection) as cut:
            child = begin(processes, path, arguments)
            time.sleep(chance.uniform(0, lasts_s))
            happen(event, child, both, cut)
            child.join(300)
        ended.append(child.exitcode)
        assert child.exitcode is not None, "it must have ended"
        assert_nobody_left(both)
        assert rows(warehouse) in (before, after), (number, arguments)
        committed = len(applied(warehouse)) - len(xids)
        result = sync(store=FileStore(path), task={"try_number": 2}, **arguments)
        assert rows(warehouse) == after, (number, arguments)
        assert applied(warehouse)[len(xids) :] == [result["xid"]], (number, arguments, committed)
    assert ended, "nothing was tried"


@contextmanager
def network(event: str, both: Both, add_connection: AddConnection) -> Iterator[Callable[[], None]]:
    """Lead one side's connection over a network that can be cut, for the events that need it."""
    if not event.startswith("cut"):
        yield lambda: None
        return
    database = both[event.endswith("warehouse")]
    with Network(database.server) as between:
        add_connection(database.conn_id, database, port=between.port)
        yield between.cut
    add_connection(database.conn_id, database)


def happen(event: str, child: Any, both: Both, cut: Callable[[], None]) -> None:
    if event == "process":
        child.kill()
    elif event.startswith("cut"):
        cut()
    else:
        end_sessions(both[event == "warehouse"])


# -- at named moments

SEEN: dict[str, Callable[[Both], list[tuple[Any, ...]]]] = {
    "comparing": lambda both: waiting_at_gate(both[0]),
    "locking": lambda both: waiting(both[1], "LOCK TABLE"),
    "applying": lambda both: waiting_at_gate(both[1]),
    "checking": lambda both: waiting_at_gate(both[1]),
}


@contextmanager
def stopped_at(moment: str, both: Both) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
    """Let every sync stop at *moment*; gives the arguments for that, and what lets them go on."""
    source, warehouse = both
    if moment in ("applying", "checking"):
        warehouse.execute(GATED_ROWS if moment == "applying" else GATED_CHECK)
    if moment == "locking":
        with psycopg.connect(warehouse.admin_conninfo) as holder:
            holder.execute(GIVES_UP)
            holder.execute("LOCK TABLE item IN ROW EXCLUSIVE MODE")
            yield {}, holder.rollback
    else:
        with closed_gate(source if moment == "comparing" else warehouse) as go_on:
            yield {"source_sql": GATED} if moment == "comparing" else {}, go_on


@pytest.mark.parametrize("moment", SEEN)
def test_a_process_that_is_killed_at_a_moment(
    both: Both, processes: Any, tmp_path: Path, moment: str
) -> None:
    source, warehouse = both
    before = rows(warehouse)
    path = tmp_path / "state"
    with stopped_at(moment, both) as (arguments, _):
        child = begin(processes, path, arguments)
        with meanwhile(child.kill, lambda: SEEN[moment](both)):
            child.join(300)
        assert child.exitcode == -signal.SIGKILL
        assert rows(warehouse) == before
    result = sync(store=FileStore(path), task={"try_number": 2})
    assert rows(warehouse) == rows(source)
    assert applied(warehouse) == [result["xid"]]


@pytest.mark.parametrize(
    ("victim", "moment"),
    [*(("warehouse", moment) for moment in SEEN), *(("source", m) for m in list(SEEN)[:2])],
)
def test_a_session_that_ends_at_a_moment(both: Both, moment: str, victim: str) -> None:
    source, warehouse = both
    before = rows(warehouse)
    with stopped_at(moment, both) as (arguments, go_on):

        def end() -> None:
            end_sessions(both[victim == "warehouse"])
            go_on()

        with (
            meanwhile(end, lambda: SEEN[moment](both)),
            pytest.raises(TransientError, match=f"connection '{victim}'") as caught,
        ):
            sync(**arguments)
        assert "secret" not in str(caught.value)
        assert_nobody_left(both)
        assert rows(warehouse) == before
    sync()
    assert rows(warehouse) == rows(source)


def test_a_source_session_that_ends_while_the_rows_are_written_is_not_needed_any_more(both: Both) -> None:
    source, warehouse = both
    warehouse.execute(GATED_ROWS)
    with at_gate(warehouse, lambda: end_sessions(source)):
        sync()
    assert rows(warehouse) == rows(source)


# -- told to stop


@pytest.mark.parametrize("moment", SEEN)
@pytest.mark.parametrize("tries_left", [0, 2])
def test_a_kill_ends_all_in_time_and_is_no_success(both: Both, moment: str, tries_left: int) -> None:
    source, warehouse = both
    before = rows(warehouse)
    store = MemoryStore()
    with stopped_at(moment, both) as (arguments, _):
        task = sync_operator(**arguments)
        killed_at: list[float] = []

        def kill() -> None:
            killed_at.append(time.monotonic())
            task.on_kill()

        with meanwhile(kill, lambda: SEEN[moment](both)), pytest.raises(DblinkTaskKilledError):
            task.execute(context(store, max_tries=tries_left))
        ended = time.monotonic()
        assert ended - killed_at[0] < ENDS_WITHIN_S
        assert_nobody_left(both)
        assert rows(warehouse) == before
    sync(store=store)
    assert rows(warehouse) == rows(source)


@pytest.mark.parametrize("moment", SEEN)
def test_a_time_limit_ends_all_in_time(both: Both, moment: str) -> None:
    _, warehouse = both
    before = rows(warehouse)
    with stopped_at(moment, both) as (arguments, _):
        with alarm(lambda: SEEN[moment](both)) as rung_at, pytest.raises(TimeIsUp):
            sync(**arguments)
        ended = time.monotonic()
        assert ended - rung_at[0] < ENDS_WITHIN_S
        assert_nobody_left(both)
        assert rows(warehouse) == before


def test_a_kill_in_the_commit_is_looked_into_by_the_next_try(both: Both) -> None:
    source, warehouse = both
    task = sync_operator()

    class KilledAt(MemoryStore):
        def set(self, key: str, value: Any) -> None:
            super().set(key, value)
            if "result" in value and "ended" not in value:
                task.on_kill()

    store = KilledAt()
    with pytest.raises(DblinkTaskKilledError):
        task.execute(context(store))
    result = sync(store=store, task={"max_tries": 1})
    assert applied(warehouse) == [result["xid"]]
    assert rows(warehouse) == rows(source)


@pytest.mark.parametrize("silent", ["source", "warehouse"])
def test_a_kill_ends_a_sync_whose_network_has_fallen_silent(
    both: Both, add_connection: AddConnection, silent: str
) -> None:
    source, warehouse = both
    before = rows(warehouse)
    database = both[silent == "warehouse"]
    with Network(database.server) as network, closed_gate(source):
        add_connection(silent, database, port=network.port)
        task = sync_operator(source_sql=GATED)
        killed_at: list[float] = []

        def kill() -> None:
            network.fall_silent()
            killed_at.append(time.monotonic())
            task.on_kill()

        with meanwhile(kill, lambda: waiting_at_gate(source)), pytest.raises(DblinkTaskKilledError):
            task.execute(context())
        ended = time.monotonic()
        assert ended - killed_at[0] < ENDS_WITHIN_S
        if silent == "warehouse":
            assert wait_until_left(source) == []
    assert_nobody_left(both)
    assert rows(warehouse) == before


def test_an_orphan_that_holds_the_lock_is_ended_by_the_next_try(
    both: Both, add_connection: AddConnection
) -> None:
    """The worker's machine is gone without a word: its session still stands, and keeps writers waiting."""
    source, warehouse = both
    store = MemoryStore()
    with Network(warehouse.server) as network:
        add_connection("warehouse", warehouse, port=network.port)
        task = sync_operator()
        warehouse.execute(GATED_ROWS)

        def lose() -> None:
            network.fall_silent()
            task.on_kill()

        with at_gate(warehouse, lose), pytest.raises(DblinkTaskKilledError):
            task.execute(context(store, max_tries=1))
        assert warehouse.admin("SELECT 1 FROM pg_locks WHERE mode = 'ShareRowExclusiveLock' AND granted")
        add_connection("warehouse", warehouse)
        result = sync(store=store, task={"try_number": 2})
        assert rows(warehouse) == rows(source)
        assert applied(warehouse) == [result["xid"]]
