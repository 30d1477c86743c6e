# ruff: noqa: S608 - names that the tests themselves made
"""Limits and pauses of a transfer: real servers, real pauses, and every way in which one can end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException
from psycopg.sql import SQL, Identifier

from airflow_dblink.core.errors import RemoteError, TransientError
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.streams import pace, pump
from airflow_dblink.core.streams.pace import Pace, Pause
from airflow_dblink.exceptions import DblinkTaskKilledError
from airflow_dblink.operators.common.pace import hold_before_work
from airflow_dblink.operators.common.progress import Progress
from tests.conftest import AddConnection
from tests.databases import Database
from tests.hostile_server import hostile_server
from tests.integration.jobs.client import until
from tests.stores import MemoryStore
from tests.transfers import TimeIsUp, alarm, execute, meanwhile, operator, transfer

ITEM = "CREATE TABLE item (id int PRIMARY KEY, name text)"
#: 2 MB.
ROWS = "SELECT i AS id, repeat('x', 1000) AS name FROM generate_series(1, 2000) AS i"
#: 10 MB: more than the network's buffers hold.
MANY = ROWS.replace("2000", "10000")
BEFORE = [(0, "before")]
ENDS_WITHIN_S = 25.0  # a pause that isn't left never ends
OFTEN = timedelta(milliseconds=1)
# While the destination's COPY has taken some of the rows, and until the moment that the test says.
IN_THE_MIDDLE = (
    "SELECT clock_timestamp() < until AND EXISTS (SELECT FROM pg_stat_progress_copy"
    " WHERE relid = 'item'::regclass AND bytes_processed >= 500000) FROM hold"
)
END_COPY = "SELECT {}(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY%'"


@pytest.fixture
def both(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases with a table item; the destination's has a row, and a table that says stop."""
    source.execute(ITEM)
    warehouse.execute(f"{ITEM}; INSERT INTO item VALUES (0, 'before')")
    warehouse.execute("CREATE TABLE hold (until timestamptz); INSERT INTO hold VALUES ('infinity')")
    return source, warehouse


def paused(**arguments: Any) -> dict[str, Any]:
    """Return the arguments of a transfer that waits in the middle."""
    pause = {"pause_while": IN_THE_MIDDLE, "pause_check_interval": OFTEN}
    return {"source_sql": MANY, "destination_table": "item", **pause, **arguments}


# -- limits


@pytest.mark.parametrize("mode", ["append", "replace", "upsert", "create", "swap"])
def test_a_limit_holds_in_every_mode(both: tuple[Database, Database], mode: str) -> None:
    _, warehouse = both
    table = "made" if mode == "create" else "item"
    result = transfer(table, source_sql=ROWS, mode=mode, max_mb_per_s=2)
    assert result["rows"] == 2000
    assert result["bytes"] > 2_000_000
    # The first 256 kB don't wait.
    assert result["seconds"] >= (result["bytes"] - 256 * 1024) / 2_000_000
    assert warehouse.rows(f"SELECT count(*), min(name) = max(name) FROM {table} WHERE id > 0") == [
        (2000, True)
    ]


def test_a_long_row_is_held_back_within_itself(both: tuple[Database, Database]) -> None:
    row = "SELECT 1 AS id, repeat('xy', 1000000) AS name"
    result = transfer(source_sql=row, max_mb_per_s="2.0")
    assert result["seconds"] >= (result["bytes"] - 256 * 1024) / 2_000_000
    assert both[1].rows("SELECT name = repeat('xy', 1000000) FROM item WHERE id = 1") == [(True,)]


@pytest.mark.parametrize("limit", [None, "None", 1e9])
def test_no_limit_and_one_that_is_never_reached_change_nothing(
    both: tuple[Database, Database], limit: Any
) -> None:
    assert transfer(source_sql=ROWS, max_mb_per_s=limit)["rows"] == 2000


# -- pauses


def test_a_pause_at_first_lets_nothing_begin(
    both: tuple[Database, Database], is_paused: Callable[[], bool], caplog: pytest.LogCaptureFixture
) -> None:
    source, warehouse = both
    source.execute("CREATE TABLE flag (stop bool); INSERT INTO flag VALUES (true)")
    found: list[Any] = []

    def look() -> None:
        found.extend(
            warehouse.admin(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            )
        )
        source.execute("UPDATE flag SET stop = false")

    with meanwhile(look, is_paused):
        result = transfer(
            source_sql=ROWS,
            mode="replace",
            pause_while="SELECT stop, 'secret' FROM flag;",
            pause_while_conn_id="source",
            pause_check_interval=timedelta(milliseconds=20),
        )
    assert (found, result["rows"]) == ([], 2000)
    assert len(re.findall("Paused: ", caplog.text)) == 1
    assert len(re.findall(r"Going on after a pause of \d+ s", caplog.text)) == 1
    assert "secret" not in caplog.text


@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
def test_a_pause_in_the_middle_goes_on_when_the_query_says_so(
    both: tuple[Database, Database], mode: str, is_paused: Callable[[], bool]
) -> None:
    _, warehouse = both
    query = IN_THE_MIDDLE.replace("relid = 'item'::regclass AND", "") if mode == "upsert" else IN_THE_MIDDLE

    def end() -> None:
        assert mode == "replace" or warehouse.admin("TABLE item") == BEFORE
        warehouse.execute("UPDATE hold SET until = '-infinity'")

    with meanwhile(end, is_paused):
        assert transfer(**paused(mode=mode, pause_while=query))["rows"] == 10_000
    assert warehouse.rows("SELECT count(*) FROM item WHERE id > 0") == [(10_000,)]


@pytest.mark.parametrize(
    "query",
    ["SELECT false", "SELECT NULL::bool", "SELECT true WHERE false", "VALUES (false), (true)", "TABLE none"],
)
def test_false_null_and_no_row_mean_go_on(both: tuple[Database, Database], query: str) -> None:
    both[1].execute("CREATE TABLE none (stop bool)")
    assert transfer(source_sql=ROWS, pause_while=query, pause_check_interval=OFTEN)["rows"] == 2000


def test_notices_in_a_pause_are_no_error(
    both: tuple[Database, Database], is_paused: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "_REST_OF_NOTICE_S", 6.0)
    _, warehouse = both
    warehouse.execute(
        "CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN RAISE NOTICE '%', repeat('n', 2000); RETURN NEW; END $$;"
        "CREATE TRIGGER say BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION say()"
    )
    # Longer than a message that is no notice would be waited for.
    later = "UPDATE hold SET until = clock_timestamp() + interval '7 s'"
    with meanwhile(lambda: warehouse.execute(later), is_paused):
        assert transfer(**paused())["changed"] == 10_000


# -- ends of a pause


@pytest.mark.parametrize("mode", ["append", "replace", "upsert", "swap"])
def test_a_kill_in_a_pause_changes_nothing_and_leaves_no_session(
    both: tuple[Database, Database], mode: str, is_paused: Callable[[], bool]
) -> None:
    source, warehouse = both
    query = IN_THE_MIDDLE.replace("relid = 'item'::regclass AND", "")
    task = operator(**paused(mode=mode, pause_while=query, pause_check_interval=timedelta(milliseconds=1)))
    killed_at: list[float] = []

    def kill() -> None:
        killed_at.append(time.monotonic())
        task.on_kill()

    with meanwhile(kill, is_paused), pytest.raises(DblinkTaskKilledError):
        execute(task)
    ended = time.monotonic()
    assert ended - killed_at[0] < ENDS_WITHIN_S
    assert source.wait_until_left() == warehouse.wait_until_left() == []
    assert warehouse.admin("TABLE item") == BEFORE


def test_a_kill_in_a_long_interval_does_not_wait_for_its_end(
    both: tuple[Database, Database], is_paused: Callable[[], bool]
) -> None:
    task = operator(source_sql=ROWS, destination_table="item", pause_while="SELECT true")
    task.pause_check_interval = timedelta(hours=1)
    with meanwhile(task.on_kill, is_paused), pytest.raises(DblinkTaskKilledError):
        execute(task)
    assert both[1].wait_until_left() == []


def test_an_exception_out_of_a_signal_handler_ends_a_pause(
    both: tuple[Database, Database], is_paused: Callable[[], bool]
) -> None:
    source, warehouse = both
    with alarm(is_paused) as rung_at, pytest.raises(TimeIsUp):
        transfer(**paused())
    ended = time.monotonic()
    assert ended - rung_at[0] < ENDS_WITHIN_S
    assert source.wait_until_left() == warehouse.wait_until_left() == []
    assert warehouse.admin("TABLE item") == BEFORE


def test_a_destination_that_is_lost_in_a_pause_is_noticed_in_it(
    both: tuple[Database, Database], is_paused: Callable[[], bool]
) -> None:
    source, warehouse = both
    end = END_COPY.format("pg_terminate_backend")
    with (
        meanwhile(lambda: warehouse.admin(end), is_paused),
        pytest.raises(
            TransientError, match=r"(?s)connection 'warehouse': .*closed the connection.*while copying"
        ),
    ):
        transfer(**paused())
    assert source.wait_until_left() == warehouse.wait_until_left() == []
    assert warehouse.admin("TABLE item") == BEFORE


def test_a_destination_that_is_lost_before_anything_has_begun_is_noticed(
    both: tuple[Database, Database], is_paused: Callable[[], bool]
) -> None:
    _, warehouse = both
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    arguments = {"pause_while": "SELECT true", "pause_while_conn_id": "source"}
    with (
        meanwhile(lambda: warehouse.admin(f"{end} AND pid <> pg_backend_pid()"), is_paused),
        pytest.raises(TransientError, match=r"connection 'warehouse'"),
    ):
        transfer(source_sql=ROWS, **arguments)


def test_an_error_of_the_destination_is_told_in_the_pause(
    both: tuple[Database, Database], is_paused: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "_REST_OF_NOTICE_S", 2.0)
    _, warehouse = both
    warehouse.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN PERFORM pg_advisory_xact_lock_shared(1); RAISE EXCEPTION 'not this row'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    # From when the first row waits for the lock; and whatever happens then.
    query = (
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
        " OR until < 'infinity' FROM hold"
    )
    with psycopg.connect(warehouse.conninfo) as locker:
        locker.execute("SELECT pg_advisory_xact_lock(1)")

        def let_it_fail() -> None:
            warehouse.execute("UPDATE hold SET until = '-infinity'")
            locker.rollback()

        with (
            meanwhile(let_it_fail, is_paused),
            pytest.raises(RemoteError, match=r"(?s)connection 'warehouse': not this row.*while copying"),
        ):
            transfer(**paused(pause_while=query, max_mb_per_s=1))
    assert warehouse.admin("TABLE item") == BEFORE


def test_a_source_that_is_lost_in_a_pause_is_noticed_in_it(
    both: tuple[Database, Database], is_paused: Callable[[], bool]
) -> None:
    source, warehouse = both
    query = "SELECT EXISTS (SELECT FROM pg_stat_progress_copy WHERE relid = 'item'::regclass)"
    end = END_COPY.format("pg_terminate_backend")
    with (
        meanwhile(lambda: source.admin(end), is_paused),
        pytest.raises(TransientError, match=r"connection 'source'"),
    ):
        transfer(**paused(pause_while=query, source_sql="SELECT 1 AS id, 'x' AS name"))
    assert source.wait_until_left() == warehouse.wait_until_left() == []
    assert warehouse.admin("TABLE item") == BEFORE


def test_a_server_that_never_answers_is_given_up_and_named() -> None:
    with hostile_server() as silent, closing(connect(silent.target("monitor"))) as connection:
        pause = Pause("SELECT true", "monitor", lambda: connection, answer_s=0.1)
        with pytest.raises(
            TransientError, match=r"(?s)'monitor'.*no answer within 5 s.*pause_while is asked"
        ):
            pause.is_wanted()


def test_a_pause_before_work_keeps_the_destinations_session_in_use(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    with connect(warehouse.target) as asking, connect(warehouse.target) as waiting:
        query, pid = "SELECT until = 'infinity' FROM hold", waiting.info.backend_pid
        pace = Pace(pause=Pause(query, "warehouse", lambda: asking, every_s=0.05))

        def has_spoken() -> bool:
            return warehouse.admin("SELECT query FROM pg_stat_activity WHERE pid = %s", pid) == [("SELECT",)]

        with meanwhile(lambda: warehouse.execute("UPDATE hold SET until = now()"), has_spoken):
            hold_before_work(pace, Side(waiting, "warehouse"), awake_s=0.1)


def test_a_lost_session_of_the_query_is_opened_again(
    both: tuple[Database, Database], is_paused: Callable[[], bool]
) -> None:
    source, warehouse = both

    def lose_it() -> None:
        source.admin(_END_OTHERS)
        until(source.sessions)
        source.execute("UPDATE flag SET stop = false")

    with meanwhile(lose_it, is_paused):
        _paused_by_a_flag(source)
    assert warehouse.rows("SELECT count(*) FROM item") == [(2001,)]


def test_a_session_of_the_query_that_cannot_be_opened_again_names_it(
    both: tuple[Database, Database], is_paused: Callable[[], bool]
) -> None:
    source, warehouse = both

    def close_the_door() -> None:
        with psycopg.connect(
            source.server.conninfo(dbname="postgres", superuser=True), autocommit=True
        ) as admin:
            admin.execute(SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(Identifier(source.name)))
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (source.name,)
            )

    with (
        meanwhile(close_the_door, is_paused),
        pytest.raises(TransientError, match=r"(?s)'source'.*pause_while is asked on this connection"),
    ):
        _paused_by_a_flag(source)
    assert warehouse.admin("TABLE item") == BEFORE


_END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def _paused_by_a_flag(source: Database) -> None:
    source.execute("CREATE TABLE flag (stop bool); INSERT INTO flag VALUES (true)")
    transfer(
        source_sql=ROWS,
        pause_while="SELECT stop FROM flag",
        pause_while_conn_id="source",
        pause_check_interval=timedelta(milliseconds=20),
    )


# -- queries that can't be asked


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        ("SELECT 1", AirflowFailException, ["must give true or false, got a value of type int4"]),
        ("SELECT 1 WHERE false", AirflowFailException, ["got a value of type int4"]),
        ("SELECT 'secret'", AirflowFailException, ["got a value of type text"]),
        ("SELECT FROM item", AirflowFailException, ["got no column"]),
        ("SELECT stop FROM nowhere", RemoteError, ["nowhere", "42P01", "LINE 1 of pause_while"]),
        ("SELECT 1 / (id - id) > 1 FROM item", RemoteError, ["22012", "while asking pause_while"]),
        ("SELECT 'secret'::int > 1", RemoteError, ["22P02", "while asking pause_while"]),
        ("WITH d AS (DELETE FROM item RETURNING 1) SELECT true FROM d", RemoteError, ["pause_while"]),
        ("SELECT set_config('x.y', nextval('counter')::text, false) = ''", RemoteError, ["25006"]),
    ],
)
def test_a_query_that_does_not_work_is_named_and_nothing_is_moved(
    both: tuple[Database, Database], query: str, error: type[Exception], words: list[str]
) -> None:
    _, warehouse = both
    warehouse.execute("CREATE SEQUENCE counter")
    store = MemoryStore()
    with pytest.raises(error) as caught:
        execute(operator(source_sql=ROWS, destination_table="item", mode="replace", pause_while=query), store)
    message = str(caught.value)
    assert [word for word in ["'warehouse'", *words] if word not in message] == [], message
    assert "secret" not in message
    assert store.history == []  # not even begun
    assert warehouse.admin("TABLE item") == BEFORE


def test_an_answer_that_takes_too_long_is_an_error(
    both: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_ANSWER_GRACE_S", 60.0)  # it is the server that says so
    with connect(both[1].target) as connection:
        pause = Pause("SELECT pg_sleep(60) IS NULL", "warehouse", lambda: connection, answer_s=0.1)
        with pytest.raises(RemoteError, match=r"(?s)'warehouse'.*57014.*asking pause_while.*it had 0.1 s"):
            pause.is_wanted()


def test_a_connection_that_does_not_open_is_named(
    both: tuple[Database, Database], add_connection: AddConnection
) -> None:
    add_connection("monitor", both[1], port=1)
    with pytest.raises(TransientError, match=r"(?s)connection 'monitor'.*pause_while is asked on this"):
        transfer(source_sql=ROWS, pause_while="SELECT true", pause_while_conn_id="monitor")
    assert both[1].admin("TABLE item") == BEFORE


def test_what_an_earlier_try_has_committed_waits_for_nothing(both: tuple[Database, Database]) -> None:
    store = MemoryStore()
    execute(operator(source_sql=ROWS, destination_table="item"), store)
    store.set("airflow_dblink_once", store.history[-2])  # killed right after the commit
    again = operator(source_sql=ROWS, destination_table="item", pause_while="SELECT 1 / 0 > 1")
    assert execute(again, store)["rows"] == 2000


# -- progress


def test_rows_that_policies_hide_are_no_share_of_the_table(
    both: tuple[Database, Database], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = both
    source.admin(f"INSERT INTO item {ROWS}; ANALYZE item; ALTER TABLE item ENABLE ROW LEVEL SECURITY")
    source.admin("ALTER TABLE item FORCE ROW LEVEL SECURITY; CREATE POLICY few ON item USING (id < 500)")
    monkeypatch.setattr(Progress, "every_s", 0.0)
    assert transfer()["rows"] == 499
    said = capfd.readouterr().out
    assert "So far: " in said
    assert "%" not in "".join(re.findall("So far: .*", said))
