"""What DblinkHook inherits from Airflow's DbApiHook and PostgresHook, on a connection of type ``dblink``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg.errors
import pytest
from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from sqlalchemy import create_engine, text

from airflow_dblink.core.errors import CredentialError
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database
from tests.transfers import TimeIsUp, alarm, sleeping

ITEM = """
CREATE TABLE item (id int PRIMARY KEY, name text, "Full Price" numeric, tags text[], more jsonb, raw bytea)
"""


@pytest.fixture
def hook(source: Database, add_connection: AddConnection) -> DblinkHook:
    """Return the hook that Airflow makes for the connection ``shop``; its database has a table ``item``."""
    source.execute(ITEM)
    add_connection("shop", source, conn_type="dblink")
    return of("shop")


def of(conn_id: str) -> DblinkHook:
    hook = BaseHook.get_connection(conn_id).get_hook()  # type: ignore[no-untyped-call] # Airflow's
    assert isinstance(hook, DblinkHook)
    return hook


def insert(hook: DblinkHook, rows: Any, *columns: str, **arguments: Any) -> None:
    hook.insert_rows("item", rows, list(columns), **arguments)


def names(database: Database) -> list[Any]:
    return database.rows("SELECT id, name FROM item ORDER BY id")


# -- reading


def test_reading(hook: DblinkHook) -> None:
    assert hook.get_records(["SELECT 1", "SELECT %(n)s"], {"n": 2}) == [[(1,)], [(2,)]]
    assert hook.get_first("SELECT %s", parameters=["a"]) == ("a",)
    assert hook.get_first("SELECT 1 WHERE false") is None
    assert hook.get_first("CREATE TEMP TABLE t (a int)") is None
    assert hook.run("SELECT 1 AS a", handler=lambda cursor: cursor.fetchall()) == [(1,)]
    assert [column[0] for column in hook.last_description or ()] == ["a"]
    assert hook.run("SELECT 1") is None
    with pytest.raises(ValueError, match="empty"):
        hook.run(" ")


def test_a_cursor_is_its_users(hook: DblinkHook) -> None:
    cursor = hook.get_cursor()
    with cursor.connection:
        assert cursor.execute("SELECT 1").fetchall() == [(1,)]


# -- insert_rows


def test_insert_rows_takes_every_iterable_and_every_type(hook: DblinkHook, source: Database) -> None:
    insert(hook, ((n, f"item {n}") for n in range(5)), "id", "name", commit_every=2)
    insert(hook, [], "id")
    row = (9, 1.5, ["a", None], {"k": [1, {"l": None}]}, b"\0\xff")
    insert(hook, [row], "id", '"Full Price"', "tags", "more", "raw", autocommit=True)

    assert names(source) == [*((n, f"item {n}") for n in range(5)), (9, None)]
    assert source.rows('SELECT id, "Full Price", tags, more, raw FROM item WHERE id = 9') == [row]


def test_insert_rows_keeps_the_chunks_before_an_error(hook: DblinkHook, source: Database) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation):
        insert(hook, [(1,), (2,), (3,), (1,), (5,)], "id", commit_every=2)
    assert names(source) == [(1, None), (2, None)]


def test_replace_and_upsert(hook: DblinkHook, source: Database) -> None:
    insert(hook, [(1, "a"), (2, "b")], "id", "name")
    insert(hook, [(2, "c"), (3, "c")], "id", "name", replace=True, replace_index="id")
    rows = [(3, "d"), (4, "d")]
    # The key is looked up for a table with its schema only: for "item" Airflow asks for the schema NULL.
    hook.insert_rows("public.item", rows, ["id", "name"], replace=True)
    hook.upsert_rows("item", [(4, "e"), (5, "e")], ["id", "name"], ["id"])
    hook.upsert_rows("item", [(5, "f"), (6, "f")], ["id", "name"], ["id"], update_fields=[])

    assert names(source) == [(1, "a"), (2, "c"), (3, "d"), (4, "e"), (5, "e"), (6, "f")]


# -- COPY


def test_copy_from_and_to_files(hook: DblinkHook, source: Database, tmp_path: Path) -> None:
    given, dumped = tmp_path / "given", tmp_path / "dumped"
    given.write_text("1\tä\n2\t\\N\n")

    hook.copy_expert("COPY item (id, name) FROM STDIN", str(given))
    hook.copy_expert("COPY (SELECT id, name FROM item ORDER BY id) TO STDOUT WITH (FORMAT csv)", str(dumped))
    assert dumped.read_text() == "1,ä\n2,\n"

    hook.bulk_dump("item", str(dumped))
    source.execute("TRUNCATE item")
    hook.bulk_load("item", str(dumped))
    assert names(source) == [(1, "ä"), (2, None)]

    with pytest.raises(psycopg.errors.UniqueViolation):
        hook.bulk_load("item", str(dumped))
    with pytest.raises(psycopg.errors.UndefinedTable):
        hook.bulk_dump("nope", str(dumped))
    assert len(names(source)) == 2


# -- the catalog, SQLAlchemy, OpenLineage


def test_what_a_table_is_like(hook: DblinkHook) -> None:
    assert hook.get_table_primary_key("item") == ["id"]
    assert hook.get_table_primary_key("nope") is None
    columns = ["id", "name", "Full Price", "tags", "more", "raw"]
    assert hook.dialect.get_column_names("item", "public") == columns
    assert [column["name"] for column in hook.get_table_schema("item")] == columns
    assert hook.get_table_schema("item")[0]["type"] == "INTEGER"
    hook.inspector.engine.dispose()


def test_sqlalchemy(hook: DblinkHook, source: Database) -> None:
    for engine in (hook.get_sqlalchemy_engine(), create_engine(hook.get_uri())):
        with engine.begin() as connection:
            assert connection.execute(text("SELECT current_database()")).scalar() == source.name
        engine.dispose()
        assert source.server.role_password not in repr(engine)


def test_another_database(add_connection: AddConnection, source: Database) -> None:
    add_connection("other", source, conn_type="dblink", schema="nope")
    connection = BaseHook.get_connection("other")
    hook = connection.get_hook(hook_params={"database": source.name})  # type: ignore[no-untyped-call]
    assert hook.get_first("SELECT current_database()") == (source.name,)


def test_the_connection_can_be_tested(
    hook: DblinkHook, source: Database, add_connection: AddConnection
) -> None:
    fine, message = BaseHook.get_connection("shop").test_connection()
    assert fine
    assert source.name in message
    add_connection("wrong", source, conn_type="dblink", password="wrong")
    fine, message = BaseHook.get_connection("wrong").test_connection()
    assert not fine
    assert "password authentication failed" in message


def test_openlineage(hook: DblinkHook, source: Database) -> None:
    authority = f"{source.server.host}:{source.server.port}"
    connection = BaseHook.get_connection("shop")
    info = hook.get_openlineage_database_info(connection)
    assert (info.scheme, info.authority, info.database) == ("postgres", authority, source.name)
    assert hook.get_openlineage_database_dialect(connection) == "postgres"
    assert hook.get_openlineage_default_schema() == "public"

    source.execute("CREATE TABLE copy AS TABLE item")
    copy = SQLExecuteQueryOperator(task_id="copy", conn_id="shop", sql="INSERT INTO copy SELECT * FROM item")
    found = copy.get_openlineage_facets_on_start()
    assert found is not None
    for datasets, table in ((found.inputs, "item"), (found.outputs, "copy")):
        assert [(d.namespace, d.name) for d in datasets] == [
            (f"postgres://{authority}", f"{source.name}.public.{table}")
        ]
    assert source.server.role_password not in repr(found)


# -- where the inherited way would do harm


def test_all_rows_in_one_transaction(hook: DblinkHook, source: Database) -> None:
    source.execute("INSERT INTO item VALUES (3, 'there already')")
    rows = [(1, "a"), (2, "b"), (3, "c")]

    with pytest.raises(psycopg.errors.UniqueViolation):
        insert(hook, rows, "id", "name", commit_every=0)
    assert names(source) == [(3, "there already")]

    insert(hook, rows[:2], "id", "name", commit_every=0)
    assert names(source) == [(1, "a"), (2, "b"), (3, "there already")]


def test_lists_are_arrays_and_lists_of_mappings_json(hook: DblinkHook, source: Database) -> None:
    insert(hook, [(1, ["x", "y"], [{"a": 1}])], "id", "tags", "more")

    assert source.rows("SELECT tags, more FROM item") == [(["x", "y"], [{"a": 1}])]


def test_the_database_is_chosen_by_airflows_name_for_it(hook: DblinkHook, source: Database) -> None:
    assert hook.get_first("SELECT current_database()") == (source.name,)
    hook.schema = "postgres"
    assert hook.get_first("SELECT current_database()") == ("postgres",)
    other = DblinkHook(dblink_conn_id="shop", schema="postgres")
    assert other.get_first("SELECT current_database()") == ("postgres",)


def test_an_engine_connects_as_the_hook_does(
    source: Database, add_connection: AddConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_connection("shop", source, conn_type="dblink", extra={"session_settings": {"work_mem": "9MB"}})
    engine = of("shop").get_sqlalchemy_engine()
    with engine.begin() as connection:
        assert connection.execute(text("SHOW work_mem")).scalar() == "9MB"
        connection.execute(text("CREATE TABLE made (a int)"))
    engine.dispose()
    assert source.rows("SELECT * FROM made") == []

    monkeypatch.setenv("PGPASSWORD", source.server.role_password)
    add_connection("bare", source, conn_type="dblink", password=None)
    with pytest.raises(CredentialError):  # not before: a listener to do_connect may bring a token
        of("bare").get_sqlalchemy_engine().connect()
    with pytest.raises(CredentialError):
        of("bare").get_uri()


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_time_out_ends_the_statement_on_the_server(
    hook: DblinkHook, source: Database, autocommit: bool
) -> None:
    with alarm(lambda: sleeping(source)), pytest.raises(TimeIsUp):
        hook.run("INSERT INTO item (id) SELECT 1 FROM pg_sleep(30)", autocommit=autocommit)

    assert source.wait_until_left() == []
    assert names(source) == []


@pytest.mark.parametrize(
    ("extra", "written"), [("", b"\xc3\xa9\n"), ('{"client_encoding": "LATIN1"}', b"\xe9\n")]
)
def test_a_dump_is_in_the_encoding_that_the_connection_asks_for(
    source: Database, add_connection: AddConnection, tmp_path: Path, extra: str, written: bytes
) -> None:
    source.execute("CREATE TABLE word (a text)")
    source.execute("INSERT INTO word VALUES ('é')")
    add_connection("latin", source, extra=extra or None)
    hook = DblinkHook(dblink_conn_id="latin")

    hook.bulk_dump("word", str(tmp_path / "dumped"))

    assert (tmp_path / "dumped").read_bytes() == written
    assert hook.get_records("SELECT a FROM word") == [("é",)]
    with hook:
        assert hook.query("SELECT a FROM word") == [("é",)]
