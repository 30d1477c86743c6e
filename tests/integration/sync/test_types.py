# ruff: noqa: S608 - names that the tests themselves made
"""Columns whose types differ: a sync comes to rest, or says why it can't."""

from __future__ import annotations

import pytest

from tests.databases import Database
from tests.integration.sync.tables import refused, refused_by_server
from tests.syncs import sync

METHODS = pytest.mark.parametrize("method", ["auto", "difference", "reload"])
TYPES = """
CREATE TYPE mood AS ENUM ('ok', 'so-so');
CREATE DOMAIN price AS numeric(8,2);
CREATE DOMAIN label AS varchar(5);
CREATE DOMAIN whole_seconds AS timestamp(0)
"""


@pytest.fixture
def typed(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases with types of users, under other oids."""
    warehouse.execute("CREATE TYPE moves_the_oids AS ENUM ()")
    for database in (source, warehouse):
        database.admin("CREATE EXTENSION citext")
        database.execute(TYPES)
    return source, warehouse


# The source's type, two values of it, the destination's type, and the two values there.
PAIRS = [
    ("int", "7", "8", "bigint", "7", "8"),
    ("bigint", "7", "8", "int", "7", "8"),
    ("int", "7", "8", "numeric(10,2)", "7.00", "8.00"),
    ("numeric", "1.005", "1.0149", "numeric(8,2)", "1.01", "1.01"),
    ("numeric", "1.005", "2.5", "price", "1.01", "2.50"),
    ("numeric[]", "'{1.005}'", "'{2}'", "numeric(8,2)[]", "{1.01}", "{2.00}"),
    ("float8", "1.005", "2.5", "numeric(8,1)", "1.0", "2.5"),
    ("numeric", "2.5", "3.5", "int", "3", "4"),
    ("date", "'2026-11-22'", "'2026-11-23'", "timestamp", "2026-11-22 00:00:00", "2026-11-23 00:00:00"),
    (
        "timestamp",
        "'2026-11-22 10:00:00.6'",
        "'2026-11-22 10:00'",
        "timestamp(0)",
        "2026-11-22 10:00:01",
        "2026-11-22 10:00:00",
    ),
    (
        "timestamp",
        "'2026-11-22 10:00:00.6'",
        "'2026-11-22 10:00'",
        "whole_seconds",
        "2026-11-22 10:00:01",
        "2026-11-22 10:00:00",
    ),
    ("time", "'10:00:00.6'", "'11:00'", "time(0)", "10:00:01", "11:00:00"),
    ("interval", "'1 day 02:03:04.6'", "'1 day'", "interval(0)", "1 day 02:03:05", "1 day"),
    ("interval", "'1 day 02:03:04'", "'1 day'", "interval day to hour", "1 day 02:00:00", "1 day"),
    ("interval", "'14 mons'", "'1 day'", "interval year", "1 year", "00:00:00"),
    ("varchar(9)", "'abc'", "'abd '", "text", "abc", "abd "),
    ("text", "'abc'", "'ab '", "varchar(5)", "abc", "ab "),
    ("text", "'abc'", "'ab '", "label", "abc", "ab "),
    ("text", "'ab'", "'abc  '", "char(5)", "ab", "abc"),
    ("char(5)", "'ab'", "'abc'", "text", "ab", "abc"),
    ("char(5)", "'ab'", "'abc'", "char(9)", "ab", "abc"),
    ("text", "'ok'", "'so-so'", "mood", "ok", "so-so"),
    ("mood", "'ok'", "'so-so'", "text", "ok", "so-so"),
    ("mood", "'ok'", "'so-so'", "varchar(5)", "ok", "so-so"),
    ("citext", "'Ok'", "'oK'", "text", "Ok", "oK"),
    ("text", "'Ok'", "'oK'", "citext", "Ok", "oK"),
    ("json", """'{"b":1.50, "a":2}'""", "'[]'", "jsonb", '{"a": 2, "b": 1.50}', "[]"),
    ("jsonb", """'{"b":1.50}'""", "'[]'", "text", '{"b": 1.50}', "[]"),
    ("int", "7", "8", "text", "7", "8"),
    ("bool", "true", "false", "text", "true", "false"),
    ("real", "0.1", "1e10", "float8", "0.10000000149011612", "10000000000"),
    ("real", "0.1", "2", "numeric", "0.1", "2"),
    ("int[]", "'{1,NULL}'", "'{}'", "bigint[]", "{1,NULL}", "{}"),
    ("cidr", "'10.0.0.0/8'", "'10.0.0.1'", "inet", "10.0.0.0/8", "10.0.0.1/32"),
    ("text", "repeat('x', 70)", "'y'", "name", "x" * 63, "y"),
]


@METHODS
def test_values_that_are_assigned_come_to_rest(typed: tuple[Database, Database], method: str) -> None:
    """Column i differs in row i; afterwards nothing is found any more."""
    source, warehouse = typed
    for database, at in ((source, 0), (warehouse, 3)):
        columns = ", ".join(f"c{i} {case[at]}" for i, case in enumerate(PAIRS))
        database.execute(f"CREATE TABLE item (id int PRIMARY KEY, {columns})")
    one, other = (", ".join(f"({case[at]})::{case[0]}" for case in PAIRS) for at in (1, 2))
    source.execute(f"INSERT INTO item SELECT i, {one} FROM generate_series(0, {len(PAIRS)}) AS i")
    assert sync(method=method)["inserted"] == len(PAIRS) + 1
    source.execute(
        f"UPDATE item SET ({', '.join(f'c{i}' for i in range(len(PAIRS)))}) = ROW({other}) WHERE id = 1"
    )
    source.execute("INSERT INTO item (id) VALUES (-1)")
    result = sync(method=method)
    assert (result["inserted"], result["updated"]) == (1, 1)
    again = sync(method=method)
    assert (again["missing"], again["changed"], again["extra"]) == (0, 0, 0)
    texts = ", ".join(f"c{i}::text" for i in range(len(PAIRS)))
    assert warehouse.rows(f"SELECT {texts} FROM item WHERE id IN (0, 1) ORDER BY id") == [
        tuple(case[4] for case in PAIRS),
        tuple(case[5] for case in PAIRS),
    ]


@METHODS
@pytest.mark.parametrize(
    ("given", "wanted", "value", "sqlstate"),
    [
        ("text", "varchar(5)", "'too long'", "22001"),
        ("text", "char(5)", "'too long'", "22001"),
        ("int", "numeric(3,2)", "10", "22003"),
        ("bigint", "int", "3000000000", "22003"),
        ("text", "mood", "'bad'", "22P02"),
        ("text", "label", "'too long'", "22001"),
        ("bit varying", "bit(3)", "B'1010'", "22026"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(
    typed: tuple[Database, Database], given: str, wanted: str, value: str, sqlstate: str, method: str
) -> None:
    source, warehouse = typed
    source.execute(f"CREATE TABLE item (id int PRIMARY KEY, v {given}); INSERT INTO item VALUES (1, NULL)")
    warehouse.execute(
        f"CREATE TABLE item (id int PRIMARY KEY, v {wanted}); INSERT INTO item VALUES (2, NULL)"
    )
    source.execute(f"INSERT INTO item VALUES (3, {value})")
    refused_by_server(warehouse, sqlstate, method=method, max_delete_fraction=None)


def test_a_type_that_is_not_assigned_is_refused_by_name(typed: tuple[Database, Database]) -> None:
    source, warehouse = typed
    source.execute("CREATE TABLE item (id int PRIMARY KEY, v text)")
    warehouse.execute("CREATE TABLE item (id int PRIMARY KEY, v date); INSERT INTO item VALUES (1)")
    refused(warehouse, "'v'", "date", "text", "source", "warehouse", "42804")


@METHODS
def test_values_whose_bytes_differ_come_to_rest_when_text_carries_them(
    typed: tuple[Database, Database], method: str
) -> None:
    """An enum makes all of a row travel as text, which has one NaN, and one form of a search."""
    source, warehouse = typed
    for database in typed:
        database.execute(
            "CREATE TABLE item (id int PRIMARY KEY, m mood, f float8, r real, q tsquery, a float8[], p point)"
        )
    source.execute(
        """INSERT INTO item SELECT 1, 'ok', 'inf'::float8 - 'inf'::float8, 'inf'::real - 'inf'::real,
        'a'::tsquery && ('b'::tsquery && 'c'::tsquery), ARRAY['inf'::float8 - 'inf'::float8],
        point('inf'::float8 - 'inf'::float8, -0.0)"""
    )
    warehouse.execute("INSERT INTO item (id) VALUES (2)")
    sync(method=method, max_delete_fraction=None)
    again = sync(method=method)
    assert (again["missing"], again["changed"], again["extra"]) == (0, 0, 0)
