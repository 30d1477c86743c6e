# ruff: noqa: S608 - names that the tests themselves made
"""What is wrong with ``where``, its parameters and other arguments is said of them, in the user's words."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import DblinkError, RemoteError, UsageError
from airflow_dblink.core.sync.spec import Spec
from tests.databases import Database
from tests.integration.sync.tables import refused, settled
from tests.syncs import sync

Both = tuple[Database, Database]
INTERNAL = ("THEN", "part.", '"part"', "given.", "source query", "CASE", "OR\n", "connname", "SELECT")


@pytest.fixture
def both(source: Database, warehouse: Database) -> Both:
    """Give both databases with 100 rows; the source calls nm name, and each has a column of its own."""
    for database, name in ((source, "name"), (warehouse, "nm")):
        database.execute(
            f"CREATE TABLE item (id int PRIMARY KEY, {name} text, flag int, state text, d timestamptz);"
            "INSERT INTO item SELECT i, 'v' || i, i % 10, 'today', '2024-01-01'"
            " FROM generate_series(1, 100) AS i;"
            f"ALTER TABLE item ADD only_{database.conn_id} int"
        )
    return source, warehouse


def wrong(warehouse: Database, *words: str, **arguments: Any) -> str:
    """Sync the columns that both sides have, which must be refused without a word of ours."""
    columns = {"id": "id", "name": "nm", "flag": "flag", "state": "state", "d": "d"}
    message = refused(warehouse, *words, **{"columns": columns, **arguments})
    ours = "\n".join(
        line for line in message.splitlines() if not line.startswith("LINE ")
    )  # that is the user's
    assert not [word for word in INTERNAL if word in ours], message
    return message


HINT = "where takes the destination's column names, without a table: id, nm, flag, state, d"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("id =", ["'source'", "where: syntax error at end of input", "42601"]),
        ("(id = 1", ["where: syntax error at end of input"]),
        ("id = 1) OR (true", ['where: syntax error at or near ")"']),
        ("id == 1 flag", ["'source'", 'where: syntax error at or near "flag"', "checking where"]),
        ("nm = 'open", ["'source'", "where: unterminated quoted string [SQLSTATE 42601]"]),
        ('"nm = 1', ["where: syntax error at end of input"]),
        ("id = 1 /* open", ["where: unterminated /* comment [SQLSTATE"]),
        ("id", ["'source'", "where must be true or false for each row; it is of type integer", "42804"]),
        ("name = 'v1'", ["'source'", 'where: column "name" does not exist', HINT]),
        ("only_source = 1", ["'warehouse'", 'where: column "only_source" does not exist', HINT]),
        ("only_warehouse = 1", ["'source'", 'where: column "only_warehouse" does not exist', HINT]),
        ("item.id = 1", ["where: ", '"item"']),
        ("id IN (SELECT id FROM few)", ["'source'", 'where: relation "few" does not exist', "42P01"]),
        ("id = 'abc'", ["where: invalid input syntax for type integer"]),
        ("nope(id)", ["where: function nope(integer) does not exist"]),
        ("id = %(x)s", ["where has a placeholder (%(x)s), but where_parameters is missing"]),
        ("id = %s", ["where has a placeholder (%s), but where_parameters is missing"]),
    ],
)
def test_a_condition_that_is_wrong_is_never_tried_again(both: Both, where: str, words: list[str]) -> None:
    wrong(both[1], *words, where=where)


def test_a_table_that_only_the_source_has_is_not_looked_for_in_its_query(both: Both) -> None:
    both[0].execute("CREATE TABLE few AS SELECT 1 AS id")
    words = [
        "'warehouse'",
        'relation "few" does not exist',
        'checking where on dblink connection named "ware',
    ]
    wrong(both[1], *words, where="id IN (SELECT id FROM few)")


@pytest.mark.parametrize("where", [None, "id > 0"])
def test_a_wait_for_the_destination_is_said_to_be_there(both: Both, where: str | None) -> None:
    _, warehouse = both
    with psycopg.connect(warehouse.conninfo) as holder:
        holder.execute("LOCK TABLE item")
        columns, settings = ["id", "flag"], {"lock_timeout": "300ms"}
        with pytest.raises(RemoteError, match="lock timeout") as caught:
            sync(columns=columns, where=where, session_settings=settings)
    action = "checking where" if where else "reading the destination"
    assert f'while {action} on dblink connection named "warehouse"' in str(caught.value)


@pytest.mark.parametrize(
    ("where", "given", "why"),
    [
        ("id = %(x)s", {"nope": 1}, "where_parameters do not fit the placeholders: 'x' is missing"),
        (
            "id = %s",
            [1, 2],
            "where_parameters do not fit the placeholders: the query has 1 placeholders but 2",
        ),
        ("id = %s", {"x": 1}, "where_parameters do not fit the placeholders"),
        ("id = %s", 5, "where_parameters must be a list for %s, or a dict for %(name)s, got int"),
        ("id = %s", "5", "where_parameters must be a list for %s, or a dict for %(name)s, got str"),
    ],
)
def test_parameters_that_do_not_fit_are_named(both: Both, where: str, given: Any, why: str) -> None:
    wanted = "a list for %s, or a dict for %(name)s"
    wrong(both[1], why, wanted, "'source'", where=where, where_parameters=given)
    query = f"SELECT id, nm, flag, state, d FROM item WHERE {where}".replace("nm", "name AS nm")
    why = why.replace("where_", "source_")
    wrong(both[1], why, wanted, "'source'", source_sql=query, source_parameters=given, columns=None)


def test_placeholders_of_a_query_without_parameters(both: Both) -> None:
    words = "source_sql has a placeholder (%(x)s), but source_parameters is missing"
    wrong(both[1], words, "'source'", source_sql="TABLE item LIMIT %(x)s")
    assert sync(where="id %(flag + 1) = 0", columns=["id", "flag"])["changed"] == 0


def test_a_list_is_no_list_of_values(both: Both) -> None:
    words = ["where: syntax error at or near", "= ANY(...) takes it, IN doesn't"]
    message = wrong(both[1], *words, where="id IN %(ids)s", where_parameters={"ids": [4711, 4712]})
    assert "471" not in message


@pytest.mark.parametrize("argument", ["where", "source_sql"])
def test_no_parameter_is_shown_by_a_syntax_error(both: Both, argument: str) -> None:
    text = {"where": "id = 1 %(x)s", "source_sql": "SELECT id, flag FROM item WHERE 1 %(x)s"}[argument]
    for value in ("tokenLeak", "token\\Leak", b"tokenLeak", 47114711):
        given: dict[str, Any] = {argument: text, f"{argument.split('_')[0]}_parameters": {"x": value}}
        with pytest.raises((AirflowFailException, RemoteError), match="syntax error") as caught:
            sync(columns=["id", "flag"], **given)
        assert "Leak" not in str(caught.value)
        assert "4711" not in str(caught.value)


# -- values that move


@pytest.mark.parametrize(
    "where",
    [
        *("USER = 'x'", "SESSION_USER <> nm", "CURRENT_SCHEMA = nm", "current_schema() = nm"),
        *("random() < 2", "d < now()", "d < now ()", "d < pg_catalog.now()", "pg_backend_pid() % 2 = 0"),
        *("age(d) < '1 day'", "age((d)) < '1 day'", "d < localtimestamp(0)", "gen_random_uuid() IS NULL"),
        *("d <= 'now'", "d <= ' NOW '", "d::date = 'today'", "d < timestamptz 'tomorrow'", "d < E'now'"),
        *("d > 'yesterday'::date", "d > CAST('today' AS timestamp)", "d BETWEEN 'yesterday' AND 'today'"),
        *("d < timestamp with time zone 'now'", "state = 'today' AND d < 'now'", "current_database() = nm"),
    ],
)
def test_values_that_are_others_on_each_server(both: Both, where: str) -> None:
    wrong(both[1], "where must mean the same on both servers", "where_parameters", where=where)


def test_texts_and_columns_that_look_like_such_values(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute(
            "CREATE TYPE mood AS ENUM ('now'); CREATE TABLE item (id int PRIMARY KEY, \"user\" text, now int,"
            " random int, age int, state text, kind varchar(9), d timestamptz, m mood);"
            "INSERT INTO item SELECT i, 'u', i, i, i, 'today', 'now', '2024-01-01', 'now'"
            " FROM generate_series(1, 100) i"
        )
    for where in (
        "\"user\" = 'u'", "now < 50", "random IN (1, 2)", "state = 'today'", "kind IN ('now', 'x')",
        "m = 'now'",
        "age (d, '2020-01-01') > '1 day'", "age > 5", "nullif(state, 'it''s now()') IS NOT NULL -- random()",
        "state = 'today' AND d < '2030-01-01'", "state LIKE '%now%'", "state = 'now'::text",
    ):  # fmt: skip
        assert sync(where=where)["changed"] == 0, where


# -- other arguments


def test_what_is_no_query_is_said_before_anything_else(both: Both) -> None:
    hint = "SELECT, VALUES, TABLE, or WITH and one of these"
    for text, verb in (("DELETE FROM item", "DELETE"), ("SELEC 1", "SELEC"), ("(1)", "no keyword")):
        refused(both[1], f"source_sql must be a query, got {verb}", hint, source_sql=text)
    refused(both[1], "source_sql must be one query, got 2 statements", source_sql="SELECT 1; SELECT 2")


def test_columns_that_the_destination_has_not(both: Both) -> None:
    _, warehouse = both
    warehouse.execute("ALTER TABLE item DROP only_warehouse; ALTER TABLE item RENAME nm TO name")
    words = "the source (source) has a column 'only_source' that public.item lacks"
    refused(warehouse, words, "'warehouse'", "columns=[...]")
    words = "columns maps 'name' to 'nosuch', which public.item lacks"
    refused(warehouse, words, "public.item has: id, name, flag", columns={"id": "id", "name": "nosuch"})
    refused(warehouse, "columns names 'only_source', which public.item lacks", columns=["id", "only_source"])


def test_columns_need_no_value_where_nothing_is_inserted(source: Database, warehouse: Database) -> None:
    source.execute("CREATE TABLE item (id int PRIMARY KEY, v int)")
    source.execute("INSERT INTO item SELECT i, 1 FROM generate_series(1, 100) i")
    warehouse.execute("CREATE TABLE item (id int PRIMARY KEY, v int, own text NOT NULL)")
    warehouse.execute("INSERT INTO item SELECT i, i % 2, 'o' FROM generate_series(1, 99) i")
    words = "needs a value for column 'own'"
    refused(warehouse, words, columns=["id", "v"])
    refused(warehouse, words, columns=["id", "v"], insert=False, on_conflict="replace")
    for apply in ("set", "statements"):
        result = sync(columns=["id", "v"], insert=False, apply=apply)
        assert result["missing"] == 1
        assert warehouse.rows("SELECT count(*) FROM item WHERE v = 1 AND own = 'o'") == [(99,)]
        warehouse.execute("UPDATE item SET v = 2 WHERE id < 20")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_delete_fraction": 60}, ["max_delete_fraction must be between 0 and 1", "60 % is 0.6"]),
        ({"max_change_fraction": 2.5}, ["max_change_fraction must be between 0 and 1", "2.5 % is 0.025"]),
        ({"plan": {"seed": "x", "digest": "", "arguments": ""}}, ["plan must be", "its seed is of type str"]),
        ({"plan": {"seed": 1, "digest": 5, "arguments": ""}}, ["plan must be", "its digest is of type int"]),
        ({"plan": {"seed": -1, "digest": "", "arguments": ""}}, ["plan must be", "its seed is out of range"]),
        ({"plan": {"seed": 1}}, ["plan must be the result of a dry run", "it has no digest"]),
        ({"source_conn_id": "warehouse"}, ["both source and destination", "warehouse", "same database"]),
    ],
)
def test_arguments_that_can_not_be_meant(both: Both, arguments: dict[str, Any], words: list[str]) -> None:
    refused(both[1], *words, **arguments)


@pytest.mark.parametrize("argument", ["key", "columns"])
def test_a_text_for_a_list_of_columns(argument: str) -> None:
    given: dict[str, Any] = {argument: "id"}
    with pytest.raises(
        UsageError, match=f"{argument} must be a list( or a mapping)? of columns, got the text 'id'"
    ) as caught:
        Spec("item", source_table="item", **given).check()
    assert caught.value.hint == f"{argument}=['id']"


# -- keys that dblink's statements can't name


def test_statements_for_a_key_whose_operator_is_out_of_sight(source: Database, warehouse: Database) -> None:
    for database, name in ((source, "Ann"), (warehouse, "ANN")):
        database.admin(
            "CREATE SCHEMA extensions; GRANT USAGE ON SCHEMA extensions TO PUBLIC;"
            " CREATE EXTENSION citext SCHEMA extensions; CREATE EXTENSION ltree SCHEMA extensions"
        )
        database.execute(
            "CREATE TABLE item (k extensions.citext PRIMARY KEY, v int);"
            "CREATE TABLE tree (k extensions.ltree PRIMARY KEY, v int);"
            f"INSERT INTO item VALUES ('{name}', 1), ('Bob', 1), ('Cy', 1), ('D', 1);"
            "INSERT INTO tree VALUES ('a.b', 1), ('a', 1)"
        )
    source.execute("UPDATE item SET v = 2; UPDATE tree SET v = 2")
    path = {"search_path": "public, extensions"}
    for table, kind in (("item", "citext"), ("tree", "ltree")):
        words = ["'warehouse'", f"can't find a row by k: the = of its type {kind} is in schema extensions"]
        refused(
            warehouse, *words, f"session_settings={path}".replace("'", '"'), table=table, apply="statements"
        )
        result = settled(source, warehouse, table, apply="statements", session_settings=path)
        assert result["updated"] == warehouse.rows(f"SELECT count(*) FROM {table}")[0][0]


@pytest.mark.parametrize("kind", ["regclass", "regtype"])
def test_statements_for_a_key_that_is_an_entry_of_the_catalog(
    source: Database, warehouse: Database, kind: str
) -> None:
    for database, value in ((source, 2), (warehouse, 1)):
        database.execute(f"CREATE TABLE item (k {kind} PRIMARY KEY, v int)")
        name = "pg_catalog.pg_type" if kind == "regclass" else "integer"
        database.execute(f"INSERT INTO item VALUES ('{name}', {value})")
    refused(warehouse, f"can't find a row by k: it is of type {kind}", "apply='set'", apply="statements")
    assert settled(source, warehouse)["updated"] == 1


# -- columns that aren't kept equal


@pytest.mark.parametrize("fill", ["", "INSERT INTO item VALUES (1, 'old', 'x')"])
def test_where_on_a_column_that_is_left_out_says_so_where_an_inserted_row_is_not_in_the_part(
    source: Database, warehouse: Database, fill: str
) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, v text, \"Region\" text DEFAULT 'y')")
    source.execute("INSERT INTO item VALUES (1, 'v', 'x'), (2, 'v', 'x')")
    warehouse.execute(fill or "SELECT")
    arguments: dict[str, Any] = {"columns": ["id", "v"], "where": "\"Region\" = 'x'"}
    words = ("where names Region, which columns leaves out", "insert=False")
    refused(warehouse, *words, error=DblinkError, **arguments)
    if fill:
        assert sync(insert=False, **arguments)["updated"] == 1
    warehouse.execute("ALTER TABLE item ALTER \"Region\" SET DEFAULT 'x'")
    assert sync(**arguments)["inserted"] == (1 if fill else 2)
