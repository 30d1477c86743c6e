# ruff: noqa: S608 - names that the tests themselves made
"""What goes wrong in a transfer: said clearly, in time, and with the destination as it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import RemoteError, TransientError
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.transfer.plan import Spec
from airflow_dblink.core.transfer.run import prepare, run
from airflow_dblink.exceptions import DblinkTaskKilledError
from tests.conftest import AddConnection
from tests.databases import Database
from tests.stores import MemoryStore
from tests.transfers import TimeIsUp, alarm, execute, meanwhile, operator, sleeping, transfer

ITEM = "CREATE TABLE item (id int PRIMARY KEY, name text)"
BEFORE = [(0, "before")]
ENDS_WITHIN_S = 25.0  # what is waited for takes 60 s and more


@pytest.fixture
def both(source: Database, warehouse: Database) -> Iterator[tuple[Database, Database]]:
    """Give both databases with a table item; whatever a test does, the destination's keeps its row."""
    source.execute(f"{ITEM}; INSERT INTO item VALUES (1, 'secret value'), (2, 'b')")
    warehouse.execute(f"{ITEM}; INSERT INTO item VALUES (0, 'before')")
    yield source, warehouse
    assert warehouse.admin("TABLE item") == BEFORE


def before_each_row(database: Database, body: str, table: str = "item") -> None:
    database.execute(
        f"""CREATE FUNCTION before_row() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN {body} RETURN NEW; END $$;
        CREATE TRIGGER before_row BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION before_row()"""
    )


def end_sleeper(database: Database) -> None:
    database.admin(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event = 'PgSleep'"
    )


# -- refused before anything moves


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (("source", "ALTER TABLE item ADD more int"), {},
         ["'warehouse'", "the source (source) has a column 'more' that public.item lacks", "columns=[...]"]),
        (("warehouse", "CREATE TABLE other (id int, name text, more int NOT NULL)"),
         {"destination_table": "other"}, ["'warehouse'", "public.other", "'more'", "NOT NULL"]),
        (None, {"source_table": "nowhere"}, ["'source'", "nowhere", "42P01"]),
        (None, {"destination_table": "nowhere"}, ["'warehouse'", "nowhere", "42P01"]),
        (None, {"destination_table": "no.such"}, ["'warehouse'", "no.such", "42P01"]),
        (None, {"source_table": "a.b.c.d"}, ["'source'", "a.b.c.d"]),
        (None, {"source_table": "not a name"}, ["'source'", "not a name"]),
        (None, {"source_table": "other.public.item"}, ["'source'", "other.public.item"]),
        (None, {"columns": ["id", "nope"]}, ["'source'", "'nope'", "it has: id, name"]),
        (None, {"columns": {"id": "nope"}},
         ["'warehouse'", "columns maps 'id' to 'nope', which public.item lacks", "has: id, name"]),
        (None, {"columns": {"id": "id", "name": "id"}}, ["'warehouse'", "'id'"]),
        (None, {"columns": "id"}, ["list or a mapping"]),
        (None, {"columns": []}, ["no column"]),
        (None, {"source_sql": "SELECT 1 AS id, 2 AS id"}, ["'source'", "more than one", "'id'"]),
        (None, {"source_sql": "SELECT FROM item"}, ["'source'", "no columns"]),
        (None, {"source_sql": "DROP TABLE item"}, ["'source'", "source_sql must be a query, got DROP"]),
        (None, {"source_sql": "SELEC 1"}, ["'source'", "source_sql must be a query, got SELEC"]),
        (None, {"source_sql": "DELETE FROM item RETURNING *"}, ["'source'", "must be a query, got DELETE"]),
        (None, {"source_sql": "SELECT %(x)s", "source_parameters": {"y": 1}},
         ["'source'", "source_parameters do not fit the placeholders: 'x' is missing", "dict for %(name)s"]),
        (None, {"source_sql": "SELECT %s AS id", "source_parameters": 5},
         ["'source'", "source_parameters must be a list for %s, or a dict for %(name)s, got int"]),
        (None, {"source_sql": "TABLE item LIMIT %s"},
         ["'source'", "source_sql has a placeholder (%s), but source_parameters is missing"]),
        (None, {"source_sql": "SELECT 1 AS id; SELECT 2 AS id"}, ["one query, got 2"]),
        (None, {"source_sql": " -- nothing\n"}, ["one query, got 0"]),
        (None, {"source_sql": "TABLE item", "source_table": "item"}, ["are both given"]),
        (None, {"source_parameters": [1]}, ["source_parameters"]),
        (None, {"mode": "merge"}, ["append, replace, upsert, create or swap", "merge"]),
        (None, {"key": ["id"]}, ["upsert"]),
        (None, {"mode": "upsert", "key": "id"}, ["key must be a list"]),
        (None, {"mode": "upsert", "key": ["name"]}, ["'warehouse'", "public.item", "name", "42P10"]),
        (None, {"mode": "upsert", "columns": ["name"], "key": ["id"]}, ["'id'", "needs a value"]),
        (("warehouse", "CREATE TABLE other (id int)"),
         {"mode": "upsert", "destination_table": "other", "columns": ["id"]},
         ["public.other", "no primary key"]),
        (("warehouse", "CREATE TABLE other (id int UNIQUE DEFERRABLE)"),
         {"mode": "upsert", "destination_table": "other", "columns": ["id"], "key": ["id"]},
         ["public.other", "42P10"]),
        (("warehouse", "CREATE TABLE other (id int); CREATE UNIQUE INDEX ON other (id) WHERE id > 0"),
         {"mode": "upsert", "destination_table": "other", "columns": ["id"], "key": ["id"]},
         ["public.other", "42P10"]),
        (None, {"mode": "create"}, ["'warehouse'", "public.item", "already exists"]),
        (("warehouse", "CREATE SEQUENCE other"), {"destination_table": "other"},
         ["public.other", "is not a table"]),
        (("warehouse", "CREATE MATERIALIZED VIEW other AS TABLE item"), {"destination_table": "other"},
         ["public.other", "is not a table"]),
        (None, {"pre_sql": "COMMIT"}, ["pre_sql", "COMMIT", "line 1"]),
        (None, {"post_sql": "SELECT 1;\nROLLBACK"}, ["post_sql", "ROLLBACK", "line 2"]),
        (None, {"pre_sql": "VACUUM item"}, ["pre_sql", "VACUUM"]),
        (None, {"pre_sql": "COPY item FROM STDIN"}, ["pre_sql", "COPY"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named_and_nothing_is_moved(
    both: tuple[Database, Database],
    change: tuple[str, str] | None,
    arguments: dict[str, Any],
    words: list[str],
) -> None:
    if change:
        (both[0] if change[0] == "source" else both[1]).execute(change[1])
    with pytest.raises(AirflowFailException) as caught:
        transfer(**arguments)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


def test_a_table_without_columns_is_refused(both: tuple[Database, Database]) -> None:
    both[0].execute("CREATE TABLE nothing ()")
    with pytest.raises(AirflowFailException, match=r"returns no columns"):
        transfer(source_table="nothing")


@pytest.mark.parametrize(
    ("side", "grants", "arguments", "words"),
    [
        ("source", "", {}, ["'source'", "SELECT", "public.closed", "id, name"]),
        ("source", "SELECT (id)", {}, ["'source'", "SELECT", "public.closed", "(name)"]),
        ("warehouse", "SELECT", {}, ["'warehouse'", "INSERT", "public.closed", "id, name"]),
        ("warehouse", "INSERT (id)", {}, ["'warehouse'", "INSERT", "public.closed", "(name)"]),
        ("warehouse", "INSERT", {"mode": "replace"}, ["'warehouse'", "TRUNCATE", "public.closed"]),
        ("warehouse", "INSERT", {"mode": "upsert"}, ["'warehouse'", "SELECT", "public.closed", "id, name"]),
        ("warehouse", "INSERT, SELECT, UPDATE (id)", {"mode": "upsert"}, ["'warehouse'", "UPDATE", "(name)"]),
    ],
)
def test_a_missing_privilege_is_named(
    both: tuple[Database, Database], side: str, grants: str, arguments: dict[str, Any], words: list[str]
) -> None:
    for database in both:
        database.admin(ITEM.replace("item", "closed"))
        role = f'"{database.server.role}"'
        given = grants if database.conn_id == side else "ALL"
        if given:
            database.admin(f"GRANT {given} ON closed TO {role}")
    with pytest.raises(AirflowFailException) as caught:
        transfer("closed", **arguments)
    message = str(caught.value)
    assert [word for word in [*words, "42501"] if word not in message] == [], message


def test_columns_that_are_granted_suffice(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    closed = "CREATE TABLE closed (id {}, name text, hidden int, PRIMARY KEY (id)) PARTITION BY HASH (id)"
    part = "CREATE TABLE part PARTITION OF closed FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
    source.admin(f"{closed.format('int')}; {part}; INSERT INTO closed VALUES (1, 'a', 2)")
    source.admin(f'GRANT SELECT (id, name) ON closed TO "{source.server.role}"')
    warehouse.admin(f"{closed.format('bigint')}; {part}")
    grants = "INSERT (id, name), SELECT (id, name), UPDATE (name)"
    warehouse.admin(f'GRANT {grants} ON closed TO "{warehouse.server.role}"')
    for mode in ("append", "upsert"):
        assert transfer("closed", columns=["id", "name"], mode=mode)["rows"] == 1
    assert warehouse.admin("TABLE closed") == [(1, "a", None)]


@pytest.mark.parametrize("side", ["source", "warehouse"])
def test_a_schema_that_is_closed_is_named(both: tuple[Database, Database], side: str) -> None:
    for database in both:
        database.admin("CREATE SCHEMA closed; CREATE TABLE closed.item (id int)")
    table = "source_table" if side == "source" else "destination_table"
    with pytest.raises(
        AirflowFailException, match=rf"'{side}'.*closed.item.*permission denied for schema closed"
    ):
        transfer(**{table: "closed.item"})


def test_replace_of_a_referenced_table_says_which_reference(both: tuple[Database, Database]) -> None:
    both[1].execute("CREATE TABLE detail (item int REFERENCES item)")
    with pytest.raises(
        RemoteError, match=r"'warehouse'.*cannot truncate a table referenced in a foreign key"
    ):
        transfer(mode="replace")


def test_the_same_table_on_the_same_database_is_never_emptied_before_it_is_read(
    both: tuple[Database, Database],
) -> None:
    with pytest.raises(AirflowFailException, match=r"public.item would be emptied before it is read"):
        transfer(source_conn_id="warehouse", mode="replace")
    started = time.monotonic()
    settings = {"lock_timeout": "1s"}
    for arguments in ({"mode": "replace"}, {"pre_sql": "LOCK item"}):
        query = "SELECT id + 1 AS id, name FROM item"
        with pytest.raises(RemoteError, match=r"lock timeout"):
            transfer(source_conn_id="warehouse", source_sql=query, session_settings=settings, **arguments)
    assert time.monotonic() - started < 18


def test_a_locked_source_table_does_not_keep_a_kill_waiting(both: tuple[Database, Database]) -> None:
    source, _ = both
    with psycopg.connect(source.conninfo) as locker:
        locker.execute("LOCK item")
        task = operator(source_table="item", destination_table="item")
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        with meanwhile(task.on_kill, lambda: source.admin(waiting)), pytest.raises(DblinkTaskKilledError):
            execute(task)


# -- the destination refuses


def test_a_session_that_ends_while_the_parser_waits_is_a_lost_connection(
    both: tuple[Database, Database],
) -> None:
    source, _ = both
    waiting = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(source.conninfo) as other:
        other.execute("LOCK TABLE item")
        with (
            meanwhile(
                lambda: source.admin(f"SELECT pg_terminate_backend(pid) {waiting}"),
                lambda: source.admin(f"SELECT 1 {waiting}"),
            ),
            pytest.raises(TransientError) as raised,
        ):
            transfer()
    assert raised.value.connname == "source"
    assert raised.value.sqlstate == "57P01"


def test_upsert_refuses_a_null_key_and_a_key_that_comes_twice(both: tuple[Database, Database]) -> None:
    for query, message in (
        ("SELECT NULL::int AS id, 'x' AS name", "NULL in key"),
        ("SELECT 1 AS id, 'x' AS name FROM generate_series(1, 2)", "several source rows have the same key"),
    ):
        with pytest.raises(AirflowFailException, match=rf"'warehouse'.*{message} \(id\) of public.item"):
            transfer(source_sql=query, mode="upsert")


def test_a_deferred_constraint_fails_at_the_commit(both: tuple[Database, Database]) -> None:
    both[1].execute("CREATE TABLE child (id int REFERENCES item DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(
        RemoteError, match=r"(?s)'warehouse'.*violates foreign key constraint.*while committing"
    ) as it:
        transfer(destination_table="child", columns=["id"])
    assert "(1)" not in str(it.value)
    assert both[1].rows("TABLE child") == []


@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
def test_a_trigger_that_raises_in_the_end_changes_nothing(both: tuple[Database, Database], mode: str) -> None:
    source, warehouse = both
    source.execute("INSERT INTO item SELECT i, 'secret value' FROM generate_series(3, 20000) AS i")
    before_each_row(warehouse, "IF NEW.id = 19000 THEN RAISE EXCEPTION 'no more'; END IF;")
    with pytest.raises(RemoteError, match=r"'warehouse'.*no more") as caught:
        transfer(mode=mode)
    assert "secret" not in str(caught.value)


def test_a_value_that_does_not_fit_is_not_in_the_error(both: tuple[Database, Database]) -> None:
    both[1].execute("CREATE TABLE narrow (id int, name varchar(3)); CREATE TABLE low (id int CHECK (id < 2))")
    with pytest.raises(RemoteError, match=r"(?s)value too long.*COPY narrow, line 1, column name") as caught:
        transfer(destination_table="narrow")
    assert "secret" not in str(caught.value)
    with pytest.raises(RemoteError, match=r"violates check constraint"):
        transfer(destination_table="low", columns=["id"])


def test_an_error_at_the_first_row_is_heard_long_before_the_last(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    before_each_row(warehouse, "RAISE EXCEPTION 'at once';")
    spec = Spec(
        "item", source_sql="SELECT i AS id, repeat('x', 1000) AS name FROM generate_series(1, 300000) AS i"
    )
    sizes: list[int] = []
    with connect(source.target) as there, connect(warehouse.target) as here:
        sides = Side(there, "source"), Side(here, "warehouse")
        once = Once(here, "warehouse", MemoryStore())
        with pytest.raises(RemoteError, match=r"'warehouse'.*at once"):
            run(*sides, prepare(*sides, spec, {}, {}), once, {}, lambda rows, size, total: sizes.append(size))
        there.abort()
        here.abort()
    assert sizes[-1] < 60_000_000  # of 300 MB


def test_many_long_notices_are_no_error_and_no_hang(
    both: tuple[Database, Database], caplog: pytest.LogCaptureFixture
) -> None:
    _, warehouse = both
    warehouse.execute("CREATE TABLE loud (id int, filler text)")
    before_each_row(warehouse, "RAISE NOTICE '%', repeat('n', 2000);", "loud")
    # About 26 MB of data cross 24 MB of notices on the way.
    query = "SELECT i AS id FROM generate_series(1, 12000) AS i"
    caplog.set_level("WARNING")
    result = transfer("loud", source_sql=f"SELECT id, repeat('x', 2200) AS filler FROM ({query}) AS q")
    assert result["changed"] == 12000


def test_a_character_that_the_destination_lacks_is_named(
    both: tuple[Database, Database], add_connection: AddConnection
) -> None:
    _, warehouse = both
    name = f"{warehouse.name}_latin1"
    warehouse.admin(
        f"CREATE DATABASE {name} OWNER {warehouse.server.role}"
        " ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    )
    latin1 = Database("latin1", warehouse.server, name)
    add_connection("latin1", latin1)
    try:
        latin1.execute(ITEM)
        transfer(destination_conn_id="latin1", source_sql="SELECT 1 AS id, 'ä' AS name")
        assert latin1.rows("SELECT name, octet_length(name) FROM item") == [("ä", 1)]
        with pytest.raises(
            RemoteError, match=r"(?s)'latin1'.*byte sequence.*22P05.*COPY item, line 1, column name"
        ):
            transfer(destination_conn_id="latin1", source_sql="SELECT 2 AS id, '€' AS name", mode="replace")
        assert latin1.rows("SELECT id FROM item") == [(1,)]
    finally:
        assert latin1.wait_until_left() == []
        warehouse.admin(f"DROP DATABASE {name} WITH (FORCE)")


# -- a side dies, the task is told to stop


def middle(seconds: int = 60) -> str:
    """Return a query that sends 20 MB and then takes its time."""
    return (
        "SELECT i AS id, repeat('x', 1000) || CASE WHEN i = 20000"
        f" THEN pg_sleep({seconds})::text ELSE '' END AS name FROM generate_series(1, 20000) AS i"
    )


@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
def test_a_source_session_that_ends_in_the_middle(both: tuple[Database, Database], mode: str) -> None:
    source, warehouse = both
    with (
        meanwhile(lambda: end_sleeper(source), lambda: sleeping(source)),
        pytest.raises(TransientError, match=r"connection 'source'"),
    ):
        transfer(source_sql=middle(), mode=mode)
    assert source.wait_until_left() == warehouse.wait_until_left() == []


@pytest.mark.parametrize("rows", [2, 100_000])
def test_a_destination_session_that_ends_in_the_middle(both: tuple[Database, Database], rows: int) -> None:
    source, warehouse = both
    before_each_row(warehouse, "PERFORM pg_sleep(60);")
    with (
        meanwhile(lambda: end_sleeper(warehouse), lambda: sleeping(warehouse)),
        pytest.raises(TransientError, match=r"connection 'warehouse'"),
    ):
        transfer(source_sql=f"SELECT i AS id, repeat('x', 1000) AS name FROM generate_series(1, {rows}) AS i")
    assert source.wait_until_left() == warehouse.wait_until_left() == []


@pytest.mark.parametrize("asleep", ["source", "warehouse", "post_sql"])
def test_a_kill_ends_both_sessions_in_time(both: tuple[Database, Database], asleep: str) -> None:
    source, warehouse = both
    arguments: dict[str, Any] = {"source_table": "item"}
    if asleep == "source":
        arguments = {"source_sql": middle()}
    elif asleep == "warehouse":
        before_each_row(warehouse, "PERFORM pg_sleep(60);")
    else:
        arguments["post_sql"] = "SELECT pg_sleep(60)"
    task = operator(destination_table="item", **arguments)
    killed_at: list[float] = []

    def kill() -> None:
        killed_at.append(time.monotonic())
        task.on_kill()

    where = source if asleep == "source" else warehouse
    with meanwhile(kill, lambda: sleeping(where)), pytest.raises(DblinkTaskKilledError):
        execute(task)
    ended = time.monotonic()
    assert ended - killed_at[0] < ENDS_WITHIN_S
    assert source.wait_until_left() == warehouse.wait_until_left() == []


@pytest.mark.parametrize("asleep", ["source", "warehouse"])
def test_an_exception_out_of_a_signal_handler_ends_both_sessions_in_time(
    both: tuple[Database, Database], asleep: str
) -> None:
    source, warehouse = both
    if asleep == "warehouse":
        before_each_row(warehouse, "PERFORM pg_sleep(60);")
    where = source if asleep == "source" else warehouse
    with alarm(lambda: sleeping(where)) as rung_at, pytest.raises(TimeIsUp):
        transfer(**({"source_sql": middle()} if asleep == "source" else {}))
    ended = time.monotonic()
    assert ended - rung_at[0] < ENDS_WITHIN_S
    assert source.wait_until_left() == warehouse.wait_until_left() == []


def test_a_source_query_that_writes_is_refused(both: tuple[Database, Database]) -> None:
    """Its deletion would be committed apart from the destination: a retry would find no rows."""
    source, _ = both
    deleted = "WITH gone AS (DELETE FROM item RETURNING *) TABLE gone"
    with pytest.raises(RemoteError, match="read-only transaction") as caught:
        transfer(source_sql=deleted, destination_table="item")
    assert caught.value.connname == "source"
    assert len(source.admin("TABLE item")) == 2
