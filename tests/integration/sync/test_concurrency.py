"""Others who write while a sync runs: its result is right all the same, and they wait no longer than said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.core.sync.other_writers import is_quiet
from airflow_dblink.embedded.server import servers
from tests.databases import Database
from tests.integration.sync.moments import (
    COUNTED,
    FILL,
    GATED,
    GATED_ROWS,
    ITEM,
    Meanwhile,
    applied,
    at_gate,
    fill,
    rows,
    waiting,
)
from tests.oracle import wait_until
from tests.syncs import sync
from tests.transfers import meanwhile

Both = tuple[Database, Database]
AT_ONCE = "SET lock_timeout = '300ms'; "


@pytest.fixture
def both(source: Database, warehouse: Database) -> Both:
    fill(source, warehouse)
    return source, warehouse


def write(database: Database, statement: str) -> None:
    """Run *statement*; fail if a lock keeps it waiting."""
    database.execute(AT_ONCE + statement)


# -- writers on the destination


@pytest.mark.parametrize("apply", ["set", "statements"])
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO item VALUES (-100, 1, 'new')",
        "UPDATE item SET s = 'new' WHERE id = 1500",
        "DELETE FROM item WHERE id BETWEEN 1500 AND 1600",
        "UPDATE item SET s = md5((3001 - id)::text) WHERE id IN (1500, 1501)",
        "INSERT INTO item VALUES (1, 1, 'was missing')",
    ],
)
def test_what_is_written_after_the_compare_is_found(both: Both, statement: str, apply: str) -> None:
    source, warehouse = both

    def act() -> None:
        write(warehouse, statement)

    with at_gate(source, act):
        sync(source_sql=GATED, apply=apply, max_delete_fraction=None)
    assert rows(warehouse) == rows(source)


def test_a_table_that_is_emptied_before_the_lock_is_filled_again(both: Both) -> None:
    source, warehouse = both
    sync(store=Meanwhile(lambda: write(warehouse, "TRUNCATE item")))
    assert rows(warehouse) == rows(source)


@pytest.mark.parametrize("nth", [1, 2])
def test_what_is_written_between_compare_and_lock_is_found(both: Both, nth: int) -> None:
    source, warehouse = both
    seen: list[str] = []

    def act() -> None:
        try:
            write(warehouse, "UPDATE item SET s = 'new' WHERE id = 1500")
            seen.append("written")
        except psycopg.errors.LockNotAvailable:
            seen.append("locked")

    sync(store=Meanwhile(act, nth))
    assert seen == [["written", "locked"][nth - 1]]
    assert rows(warehouse) == rows(source)


def test_a_difference_that_somebody_else_removes_is_no_difference(both: Both) -> None:
    source, warehouse = both
    result = sync(store=Meanwhile(lambda: sync(max_delete_fraction=None)))
    assert (result["inserted"], result["updated"], result["deleted"]) == (0, 0, 0)
    assert rows(warehouse) == rows(source)


@pytest.mark.parametrize("lock", ["apply", "compare"])
def test_writers_wait_from_the_lock_on_and_readers_never_do(both: Both, lock: str) -> None:
    source, warehouse = both
    warehouse.execute(GATED_ROWS)
    before = rows(warehouse)
    seen: list[Any] = []

    def in_compare() -> None:
        assert rows(warehouse) == before
        if lock == "apply":
            write(warehouse, "UPDATE item SET k = 99 WHERE id = 77")
        else:
            with pytest.raises(psycopg.errors.LockNotAvailable):
                write(warehouse, "UPDATE item SET k = 99 WHERE id = 77")
        seen.append("compare")

    def in_apply() -> None:
        assert len(rows(warehouse)) == len(before)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            write(warehouse, "UPDATE item SET k = 99 WHERE id = 77")
        seen.append("apply")

    with at_gate(source, in_compare), at_gate(warehouse, in_apply):
        sync(source_sql=GATED, lock=lock)
    assert seen == ["compare", "apply"]
    assert rows(warehouse) == rows(source)


def test_one_who_holds_the_table_too_long_is_a_clear_error(both: Both) -> None:
    _, warehouse = both
    before = rows(warehouse)
    with psycopg.connect(warehouse.conninfo) as writer:
        writer.execute("UPDATE item SET s = 'x' WHERE id = 5")
        with pytest.raises(
            RemoteError, match=r"'warehouse'.*lock timeout(?s:.*)locking the destination"
        ) as it:
            sync(session_settings={"lock_timeout": "300ms"})
        assert it.value.sqlstate == "55P03"
        writer.rollback()
    assert rows(warehouse) == before


# -- writers on the source


@pytest.mark.parametrize("lock", ["apply", "compare"])
@pytest.mark.parametrize("busy", [False, True], ids=["quiet", "busy"])
def test_the_result_is_one_state_of_the_source(both: Both, lock: str, busy: bool) -> None:
    source, warehouse = both
    states = [rows(source)]

    def act() -> None:
        write(source, "UPDATE item SET s = 'after'; DELETE FROM item WHERE id < 10")
        write(source, "INSERT INTO item VALUES (5000000, 1, 'after')")
        states.append(rows(source))
        if busy:
            warehouse.execute("CREATE TABLE somebody_elses (id int)")

    with at_gate(source, act):
        sync(source_sql=GATED, lock=lock)
    assert rows(warehouse) in states


def reloaded(source: Database, table: str, fresh: str) -> ExitStack:
    """Empty and fill a source table in one transaction, which commits once somebody waits for it."""
    stack = ExitStack()
    writer = stack.enter_context(psycopg.connect(source.conninfo))
    writer.execute(f"TRUNCATE {table}".encode())
    writer.execute(fresh.encode())
    stack.enter_context(meanwhile(writer.commit, lambda: waiting(source, "")))
    return stack


@pytest.mark.parametrize("method", ["difference", "reload"])
@pytest.mark.parametrize("kind", ["table", "query"])
def test_a_source_table_that_is_reloaded_meanwhile_is_never_seen_empty(
    both: Both, method: str, kind: str
) -> None:
    """TRUNCATE ignores snapshots: a snapshot from before its commit sees neither old nor new rows."""
    source, warehouse = both
    before = rows(warehouse)
    arguments: dict[str, Any] = {} if kind == "table" else {"source_sql": "SELECT * FROM item WHERE id > -9"}
    arguments |= {"method": method, "allow_empty_source": True, "max_delete_fraction": None}
    fresh = "INSERT INTO item SELECT i, 1, 'fresh' FROM generate_series(1, 2000) AS i"
    with reloaded(source, "item", fresh):
        outcome = outcome_of(lambda: sync(**arguments))
    assert_all_or_nothing(outcome, both, before)


@pytest.mark.parametrize("method", ["difference", "reload"])
@pytest.mark.parametrize("plan_only", [False, True])
def test_a_source_partition_that_is_reloaded_meanwhile_is_never_seen_empty(
    source: Database, warehouse: Database, method: str, plan_only: bool
) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, s text) PARTITION BY RANGE (id)")
        for i in range(4):
            database.execute(
                f"CREATE TABLE item_{i} PARTITION OF item FOR VALUES FROM ({i * 1000}) TO ({i * 1000 + 1000})"
            )
        database.execute("INSERT INTO item SELECT i, 'x' FROM generate_series(0, 3999) AS i; ANALYZE item")
    warehouse.execute("UPDATE item SET s = 'y' WHERE id = 3500")
    before = rows(warehouse)
    fresh = "INSERT INTO item SELECT i, 'fresh' FROM generate_series(1000, 1999) AS i"
    with reloaded(source, "item_1", fresh):
        outcome = outcome_of(lambda: sync(method=method, plan_only=plan_only))
    if plan_only:
        assert outcome in ("RemoteError", "TransientError") or outcome["extra"] == 0
        assert rows(warehouse) == before
    else:
        assert_all_or_nothing(outcome, (source, warehouse), before)


def outcome_of(work: Callable[[], Any]) -> Any:
    """Return the result of *work*, or the name of the server's error that it raised."""
    try:
        return work()
    except RemoteError as error:
        if "connection '" not in str(error):
            raise
        return type(error).__name__


def assert_all_or_nothing(outcome: Any, both: Both, before: list[Any]) -> None:
    source, warehouse = both
    if isinstance(outcome, str):
        assert rows(warehouse) == before
    else:
        assert rows(warehouse) == rows(source)


# -- two syncs of one table


@pytest.mark.parametrize("lock", ["apply", "compare"])
def test_a_second_sync_waits_and_both_succeed(both: Both, lock: str) -> None:
    source, warehouse = both
    warehouse.execute(COUNTED)
    warehouse.execute(GATED_ROWS)
    results: list[Any] = []
    second = threading.Thread(target=lambda: results.append(sync(lock=lock)))

    def begin_second() -> None:
        second.start()
        wait_until(lambda: bool(waiting(warehouse, "LOCK TABLE")))

    with at_gate(warehouse, begin_second):
        first = sync(lock=lock)
    second.join()
    assert [first["inserted"], *(result["inserted"] for result in results)] == [3, 0]
    assert len(applied(warehouse)) == 2  # statement triggers fire for no rows, too
    assert rows(warehouse) == rows(source)


@pytest.mark.parametrize(
    "arguments", [{}, {"lock": "compare"}, {"method": "reload"}, {"apply": "statements"}]
)
def test_a_sync_that_began_earlier_does_not_undo_a_later_one(both: Both, arguments: dict[str, Any]) -> None:
    """The earlier one's snapshot is older; written last, it would take the table back in time."""
    source, warehouse = both

    def act() -> None:
        source.execute(
            "UPDATE item SET s = 'newer' WHERE id BETWEEN 500 AND 600; DELETE FROM item WHERE id = 9"
        )
        sync()
        assert rows(warehouse) == rows(source)

    sync(store=Meanwhile(act), **arguments)
    assert rows(warehouse) == rows(source)


# -- who has written on the server since


def snapshot(connection: psycopg.Connection[Any]) -> str:
    (text,) = connection.execute("SELECT pg_current_snapshot()::text").fetchone() or ("",)
    return str(text)


@pytest.fixture
def sessions(warehouse: Database) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """Give a function that opens a session on the destination's server."""
    warehouse.execute("CREATE TABLE t (a int)")
    with ExitStack() as stack:

        def new(**options: Any) -> psycopg.Connection[Any]:
            return stack.enter_context(psycopg.connect(warehouse.admin_conninfo, **options))

        yield new


Sessions = Callable[..., psycopg.Connection[Any]]


def own_xid(connection: psycopg.Connection[Any]) -> int:
    (xid,) = connection.execute("SELECT pg_current_xact_id()::text").fetchone() or ("0",)
    return int(xid)


def test_a_subtransaction_is_somebody(sessions: Sessions) -> None:
    looker, writer, own = sessions(autocommit=True), sessions(), sessions()
    writer.execute("SAVEPOINT a; INSERT INTO t VALUES (1); RELEASE a; SAVEPOINT b; INSERT INTO t VALUES (2)")
    before = snapshot(looker)
    writer.commit()
    assert not is_quiet(before, snapshot(own), own_xid(own))


def test_one_who_began_before_and_committed_since_is_somebody(sessions: Sessions) -> None:
    looker, writer, later, own = sessions(autocommit=True), sessions(), sessions(), sessions()
    writer.execute("INSERT INTO t VALUES (1)")
    later.execute("INSERT INTO t VALUES (2)")
    later.commit()  # so that the first one's id lies below the snapshot's end
    before = snapshot(looker)
    writer.commit()
    xid = own_xid(own)
    assert not is_quiet(before, snapshot(own), xid)


def test_one_who_began_and_committed_since_is_somebody(sessions: Sessions) -> None:
    looker, own = sessions(autocommit=True), sessions()
    before = snapshot(looker)
    looker.execute("INSERT INTO t VALUES (1)")
    xid = own_xid(own)
    assert not is_quiet(before, snapshot(own), xid)


def test_one_in_another_database_of_the_server_is_somebody(sessions: Sessions) -> None:
    looker, elsewhere, own = sessions(autocommit=True), sessions(dbname="postgres"), sessions()
    before = snapshot(looker)
    own_xid(elsewhere)
    elsewhere.commit()
    xid = own_xid(own)
    assert not is_quiet(before, snapshot(own), xid)


@pytest.mark.parametrize(
    ("before", "now", "own", "quiet"),
    [
        ("100:100:", "100:100:", 100, True),
        ("100:100:", "100:101:100", 100, True),
        ("100:100:", "101:101:", 99, False),  # 100 began and ended
        ("90:100:90", "90:100:90", 100, True),  # 90 still runs: it can't have the table's lock
        ("90:100:90", "100:100:", 100, False),
        ("90:100:90,95", "90:100:90", 100, False),
        ("90:100:90", "90:102:90,100", 101, True),  # 100 runs
        ("90:100:90", "90:103:90,101", 102, False),  # 100 ended, or is part of another
        ("100:100:", "100:5000:100", 4999, False),  # too many to say
    ],
)
def test_quiet_is_only_what_surely_is(before: str, now: str, own: int, quiet: bool) -> None:
    assert is_quiet(before, now, own) is quiet


def test_a_prepared_transaction_that_has_written_the_table_is_waited_for() -> None:
    with servers("prepared") as (server,), pytest.MonkeyPatch.context() as patch:
        database = Database("warehouse", server, server.dbname)
        patch.setenv("AIRFLOW_CONN_SOURCE", database.uri)
        patch.setenv("AIRFLOW_CONN_WAREHOUSE", database.uri)
        database.admin("ALTER SYSTEM SET max_prepared_transactions = 1")
        server.restart()
        database.execute(f"{ITEM}; {FILL}; CREATE TABLE copied (LIKE item INCLUDING ALL)")
        sync("copied", source_table="item")
        database.execute("DELETE FROM copied WHERE id = 1")
        writer = "UPDATE copied SET s = 'p' WHERE id = 1500; PREPARE TRANSACTION 'p'"
        with psycopg.connect(database.conninfo, autocommit=True) as session:
            session.execute(f"BEGIN; {writer}".encode())
        with meanwhile(
            lambda: database.execute("COMMIT PREPARED 'p'"), lambda: waiting(database, "LOCK TABLE")
        ):
            sync("copied", source_table="item")
        assert rows(database, "copied") == rows(database)
        assert database.wait_until_left() == []


# -- the table changes between compare and lock


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE item ADD more int DEFAULT 5",
        "ALTER TABLE item DROP COLUMN k",
        "ALTER TABLE item ALTER k TYPE bigint",
        "ALTER TABLE item ALTER s TYPE varchar(3) USING left(s, 3)",
        "ALTER TABLE item DROP CONSTRAINT item_pkey",
        "ALTER TABLE item RENAME s TO other",
        "BEGIN; ALTER TABLE item RENAME TO old; ALTER TABLE fresh RENAME TO item; COMMIT",
        "BEGIN; ALTER TABLE item RENAME TO old; ALTER TABLE instant RENAME TO item; COMMIT",
        "DROP TABLE item",
    ],
)
@pytest.mark.parametrize("lock", ["apply", "compare"])
def test_a_table_that_is_altered_meanwhile_is_right_or_an_error(
    both: Both, statement: str, lock: str
) -> None:
    """While it is compared an ALTER waits, and comes before the sync's lock."""
    source, warehouse = both
    warehouse.execute("CREATE TABLE fresh (LIKE item INCLUDING ALL); INSERT INTO fresh VALUES (1500, 1, 'f')")
    warehouse.execute("CREATE TABLE instant (id bigint PRIMARY KEY, k int NOT NULL, s text, at timestamptz)")
    altering = threading.Thread(target=lambda: warehouse.execute(statement))

    def alter() -> None:
        altering.start()
        altering.join()

    if lock == "compare":  # no compare to wait for
        outcome = altered_outcome(lambda: sync(store=Meanwhile(alter), lock=lock))
    else:

        def act() -> None:
            altering.start()
            wait_until(lambda: bool(waiting(warehouse, statement[:20])))

        with at_gate(source, act):
            outcome = altered_outcome(lambda: sync(source_sql=GATED))
        altering.join()
    if not isinstance(outcome, str):
        assert rows(warehouse) == rows(source)
    elif "DROP TABLE" not in statement:
        assert warehouse.rows("SELECT id FROM item WHERE id % 1000 = 1") == [], "nothing may be inserted"


def altered_outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (RemoteError, AirflowFailException) as error:
        if "'warehouse'" not in str(error):
            raise
        return str(error)
