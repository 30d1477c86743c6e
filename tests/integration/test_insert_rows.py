"""insert_rows: the column's type decides about a Python list; whatever PostgresHook does right stays."""

from __future__ import annotations

from typing import Any

import psycopg.errors
import pytest
from airflow.providers.common.sql.operators.generic_transfer import GenericTransfer
from airflow.providers.postgres.hooks.postgres import PostgresHook

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database

TABLES = """
CREATE DOMAIN document AS jsonb; CREATE DOMAIN deep AS document; CREATE DOMAIN numbers AS int[];
CREATE DOMAIN letter AS json;
CREATE TABLE item (id int GENERATED ALWAYS AS IDENTITY, n int, j json, b jsonb, a int[], t text[], js json[],
 bs jsonb[], x text, "Full Price" jsonb, document document, deep deep, letter letter, numbers numbers,
 documents document[], deeps deep[], grid text[][], v varchar(9)[]);
"""
JSON = ("j", "b", '"Full Price"', "document", "deep", "letter")
ARRAYS_OF_JSON = ("js", "bs", "documents", "deeps")


@pytest.fixture
def tables(source: Database) -> Database:
    """Give a database with a table that has every kind of column for a list."""
    source.execute(TABLES)
    return source


def stored(
    database: Database, column: str, value: Any, hook_class: Any = DblinkHook, **arguments: Any
) -> Any:
    database.execute("TRUNCATE item")
    hook_class("source").insert_rows("item", [(1, value)], ["n", column], **arguments)
    ((text,),) = database.rows(f"SELECT {column}::text FROM item WHERE n = 1")  # noqa: S608 - ours
    return text


# -- what stock does right


@pytest.mark.parametrize("hook_class", [PostgresHook, DblinkHook])
@pytest.mark.parametrize("column", JSON)
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "[]"),
        ([1, None, "a"], '[1, null, "a"]'),
        (["a"], '["a"]'),
        ([{"a": [1]}], '[{"a": [1]}]'),
        ([[1], [2]], "[[1], [2]]"),
        ({}, "{}"),
        ({"a": [1]}, '{"a": [1]}'),
        ('{"a": 1}', '{"a": 1}'),
        ('"text"', '"text"'),
        ("5", "5"),
        (None, None),
    ],
)
def test_lists_and_dicts_are_json_in_a_column_of_that(
    tables: Database, hook_class: Any, column: str, value: Any, text: str | None
) -> None:
    assert stored(tables, column, value, hook_class) == text


@pytest.mark.parametrize("hook_class", [PostgresHook, DblinkHook])
@pytest.mark.parametrize(
    ("value", "text"), [([1], "[1]"), (["a"], '["a"]'), ({"a": 1}, '{"a": 1}'), (5, "5")]
)
def test_in_a_column_of_text_they_are_jsons_text(
    tables: Database, hook_class: Any, value: Any, text: str
) -> None:
    assert stored(tables, "x", value, hook_class) == text


@pytest.mark.parametrize("hook_class", [PostgresHook, DblinkHook])
def test_text_that_is_no_json_and_a_table_that_is_not_there_are_the_servers_errors(
    tables: Database, hook_class: Any
) -> None:
    hook = hook_class("source")
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        stored(tables, "b", "abc", hook_class)
    with pytest.raises(psycopg.errors.UndefinedTable, match='relation "nope" does not exist'):
        hook.insert_rows("nope", [([1],)], ["a"])
    with pytest.raises(psycopg.errors.UndefinedColumn, match=r'column "nope" .* does not exist'):
        hook.insert_rows("item", [([1],)], ["nope"])
    with pytest.raises(psycopg.errors.SyntaxError, match="more expressions than target columns"):
        hook.insert_rows("item", [([1], 2)], ["a"])
    assert tables.rows("SELECT count(*) FROM item") == [(0,)]


# -- what it doesn't


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("a", [], "{}"),
        ("a", [1, None], "{1,NULL}"),
        ("numbers", [1], "{1}"),
        ("t", ["a", 'b"'], '{a,"b\\""}'),
        ("t", [], "{}"),
        ("v", ["a"], "{a}"),
        ("grid", [["a"], ["b"]], "{{a},{b}}"),
        *((column, 5, "5") for column in JSON),
        *((column, True, "true") for column in JSON),
        ("b", 1.5, "1.5"),
        ("b", 2**70, str(2**70)),
        *((column, [{"a": 1}, None], '{"{\\"a\\": 1}",NULL}') for column in ARRAYS_OF_JSON),
        *((column, ["a", 1, True], '{"\\"a\\"",1,true}') for column in ARRAYS_OF_JSON),
        *((column, [], "{}") for column in ARRAYS_OF_JSON),
        ("bs", [[1], [2]], "{[1],[2]}"),
    ],
)
def test_lists_are_arrays_in_a_column_of_those_and_scalars_json_in_one_of_that(
    tables: Database, column: str, value: Any, text: str
) -> None:
    assert stored(tables, column, value) == text


# -- each way to insert


@pytest.mark.parametrize(
    "arguments",
    [
        {"executemany": True},
        {"fast_executemany": True},
        {"autocommit": True},
        {"commit_every": 0},
        {"commit_every": 1, "executemany": True},
        {"replace": True, "replace_index": "n"},
    ],
    ids=str,
)
def test_each_way_to_insert_looks_at_the_columns_once(
    tables: Database, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.execute("CREATE UNIQUE INDEX ON item (n)")
    asked: list[str] = []
    transaction = LinkConnection.transaction

    def counting(connection: LinkConnection, *args: Any, **kwargs: Any) -> Any:
        asked.append("once")
        return transaction(connection, *args, **kwargs)

    monkeypatch.setattr(LinkConnection, "transaction", counting)
    rows = [(None, None, None), *((n, [n], [n]) for n in range(1, 4))]
    DblinkHook("source").insert_rows("item", rows, ["n", "a", "b"], **arguments)

    assert tables.rows("SELECT n, a, b FROM item ORDER BY n NULLS FIRST") == rows
    assert len(asked) == 1


def test_without_target_fields_and_by_every_name_of_the_table(
    tables: Database, add_connection: AddConnection
) -> None:
    tables.execute(
        'CREATE SCHEMA "Other One"; CREATE TABLE "Other One"."My Table" (a int[], b jsonb, "50%" int)'
    )
    tables.execute('CREATE VIEW looked_at AS SELECT a, b FROM "Other One"."My Table"')
    add_connection(
        "pathed", tables, conn_type="dblink", extra={"options": '-csearch_path="Other\\ One",public'}
    )
    hook = DblinkHook("pathed")
    for table in ('"Other One"."My Table"', '"My Table"', f'"{tables.name}"."Other One"."My Table"'):
        hook.insert_rows(table, [([1], [1])])
    hook.insert_rows("LOOKED_at", [([1], [1])], ["A", "b"])
    assert tables.rows('SELECT a, b FROM "Other One"."My Table"') == [([1], [1])] * 4
    hook.insert_rows('"My Table"', [([2], [2], 3)], ["a", "b", '"50%%"'])
    assert tables.rows('SELECT "50%" FROM "Other One"."My Table" WHERE a = \'{2}\'') == [(3,)]


def test_upsert_rows(tables: Database) -> None:
    tables.execute("CREATE UNIQUE INDEX ON item (n)")
    hook = DblinkHook("source")
    hook.upsert_rows("item", [(1, [1], [1])], ["n", "a", "b"], ["n"])
    hook.upsert_rows("item", [(1, [2], [2]), (2, [], [])], ["n", "a", "b"], ["n"])
    assert tables.rows("SELECT n, a, b FROM item ORDER BY n") == [(1, [2], [2]), (2, [], [])]


def test_a_role_that_may_only_insert_needs_no_more(tables: Database, add_connection: AddConnection) -> None:
    role = f"only_inserts_{tables.name}"
    tables.admin(f"CREATE ROLE {role} LOGIN PASSWORD 'geheim'")
    try:
        tables.admin(f"GRANT INSERT ON item TO {role}")
        add_connection("writer", tables, conn_type="dblink", login=role, password="geheim")
        DblinkHook("writer").insert_rows("item", [([1], [1])], ["a", "b"])
        assert tables.rows("SELECT a, b FROM item") == [([1], [1])]
    finally:
        tables.admin(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_subclass_serializes_its_own_values(tables: Database) -> None:
    class Point:
        pass

    class Own(DblinkHook):
        @staticmethod
        def _serialize_cell(cell: object, conn: Any = None) -> Any:
            return "a point" if isinstance(cell, Point) else DblinkHook._serialize_cell(cell, conn)

    class OwnRows(Own):
        @classmethod
        def _serialize_cells(cls, row: Any, conn: Any = None) -> tuple[Any, ...]:
            assert row[2] is row[-1]
            return super()._serialize_cells(row, conn)

    for hook_class in (Own, OwnRows):
        hook_class("source").insert_rows("item", [([1], [1], Point())], ["a", "b", "x"])
    assert tables.rows("SELECT a, b, x FROM item") == [([1], [1], "a point")] * 2


# -- GenericTransfer


def test_generic_transfer_of_json_and_arrays(source: Database, warehouse: Database) -> None:
    values = """
    SELECT * FROM (VALUES (1, '[]'::jsonb, '{}'::int[], '[1, "a"]'::json, ARRAY['{"a": 1}', '2']::jsonb[]),
      (2, '[{"a": [1]}]', '{1,NULL}', '{}', '{}'), (3, '5', NULL, 'true', NULL), (4, '1.5', '{}', '"a"', NULL)
    ) AS item (id, b, a, j, bs)
    """
    source.execute(f"CREATE TABLE item AS {values}")
    warehouse.execute("CREATE TABLE item (id int, b jsonb, a int[], j json, bs jsonb[])")
    as_text = "SELECT id, b::text, a::text, j::text, bs::text FROM item ORDER BY id"

    class Ours(GenericTransfer):
        @classmethod
        def get_hook(cls, conn_id: str, hook_params: Any = None) -> Any:
            return DblinkHook(conn_id)

    Ours(
        task_id="copy",
        sql="SELECT * FROM item WHERE id < 4",
        destination_table="item",
        source_conn_id="source",
        destination_conn_id="warehouse",
    ).execute({})

    assert warehouse.rows(as_text) == [row for row in source.rows(as_text) if row[0] < 4]


# -- names


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("table", "item (id) VALUES (1); DROP TABLE item; INSERT INTO item"),
        ("table", 'a"b'),
        ("table", ""),
        ("target_fields", ['id", (SELECT 1) AS "x']),
        ("target_fields", ["id\0"]),
        ("target_fields", "id"),
        ("replace_index", 'id"'),
        ("replace_target", ['id" = (SELECT 1/0) --']),
        ("replace_target", "id"),
    ],
)
def test_what_is_no_name_is_refused(source: Database, argument: str, value: Any) -> None:
    source.execute("CREATE TABLE item (id int PRIMARY KEY)")
    arguments = {"table": "item", "target_fields": ["id"], "replace": True, "replace_index": "id"}

    with pytest.raises(UsageError, match=f"{argument} must "):
        DblinkHook("source").insert_rows(rows=[(1,)], **{**arguments, argument: value})

    assert source.rows("SELECT * FROM item") == []


def test_names_as_they_are_written_in_sql(source: Database) -> None:
    source.execute(
        'CREATE SCHEMA "my shop"; CREATE TABLE "my shop"."Item ""1""" ("Id" int PRIMARY KEY, "a b" int)'
    )

    DblinkHook("source").insert_rows('"my shop"."Item ""1"""', [(1, 2)], target_fields=['"Id"', "a b"])

    assert source.rows('SELECT * FROM "my shop"."Item ""1"""') == [(1, 2)]


def test_a_failed_insert_shows_no_value_in_the_log(
    source: Database, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    source.execute("CREATE TABLE item (id int CHECK (id < 10), name text)")

    with pytest.raises(psycopg.errors.CheckViolation):
        DblinkHook("source").insert_rows("item", [(10, "of a patient")], target_fields=["id", "name"])

    logged = caplog.text + "".join(capfd.readouterr())
    assert "<2 values>" in logged
    assert "of a patient" not in logged
