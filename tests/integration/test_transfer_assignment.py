# ruff: noqa: S608 - names that the tests themselves made
"""Values between all types that PostgreSQL assigns to each other arrive as its INSERT ... SELECT has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import LiteralString

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException
from psycopg.sql import SQL, Identifier

from airflow_dblink.embedded.server import Server
from tests.databases import Database, new_database
from tests.transfers import transfer

SETUP = """
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE EXTENSION ltree;
GRANT ALL ON SCHEMA public TO PUBLIC;
CREATE TYPE mood AS ENUM ('ok', 'so-so');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN short AS varchar(10);
CREATE DOMAIN loose AS citext;
"""
# Types and some of their values; a value that PostgreSQL itself doesn't take is left out of a comparison.
VALUES: dict[LiteralString, list[LiteralString]] = {
    "bool": ["true", "false"],
    "smallint": ["7", "-1"],
    "int": ["7", "70000"],
    "bigint": ["7", "-5000000000"],
    "numeric": ["2.5", "1.00", "'NaN'"],
    "numeric(6,2)": ["1.5"],
    "real": ["1.5", "0.1", "'-0'"],
    "double precision": ["2.5", "0.1", "'Infinity'"],
    "money": ["'12.50'"],
    "oid": ["7"],
    "text": ["'Ab  '", "'7'"],
    "varchar": ["'Ab '", "'true'"],
    "varchar(4)": ["'Ab'"],
    "char(5)": ["'Ab'", "''"],
    "bpchar": ["'Ab  '"],
    "name": ["'Ab'"],
    '"char"': ["'x'"],
    "citext": ["'MiX '", "'7'"],
    "loose": ["'MiX'"],
    "short": ["'ab '"],
    "mood": ["'ok'"],
    "pair": ["ROW(1, 'b')::pair"],
    "hstore": ["'a=>1'"],
    "ltree": ["'a.b'"],
    "bytea": ["'\\x00ff'"],
    "date": ["'2026-11-22'", "'infinity'"],
    "time": ["'10:00:00.5'"],
    "timetz": ["'10:00:00+02'"],
    "timestamp": ["'2026-11-22 10:00:00.6'"],
    "timestamptz": ["'2026-11-22 10:00:00.6+02'"],
    "interval": ["'1 mon 2 days 03:00:00'"],
    "uuid": ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
    "inet": ["'10.0.0.1'", "'10.0.0.0/8'", "'::1'"],
    "cidr": ["'10.0.0.0/8'", "'10.0.0.1/32'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "macaddr8": ["'08:00:2b:01:02:03:04:05'"],
    "bit(3)": ["B'101'"],
    "varbit": ["B'1'"],
    "json": ["""'{"b": 1,  "a": 2}'"""],
    "jsonb": ["""'{"b": 1, "a": 2}'"""],
    "point": ["'(1,2)'"],
    "lseg": ["'[(1,2),(3,4)]'"],
    "path": ["'((1,2),(3,4))'"],
    "box": ["'(1,2),(3,4)'"],
    "polygon": ["'((1,2),(3,4),(5,0))'"],
    "circle": ["'<(1,2),3>'"],
    "int4range": ["'[1,3)'"],
    "int4multirange": ["'{[1,3)}'"],
    "tsvector": ["'a b:1'"],
    "regclass": ["'pg_class'"],
    "pg_lsn": ["'0/16B3748'"],
    "bool[]": ["'{true,NULL}'"],
    "int[]": ["'{1,NULL}'"],
    "text[]": ["""'{a,"b  ",NULL}'"""],
    "char(3)[]": ["'{a,b}'"],
    "inet[]": ["'{10.0.0.1}'"],
    "citext[]": ["'{A,b}'"],
}
# Refused although PostgreSQL would assign them: each error must give a hint, and no row is moved.
REFUSED = {
    *((kind, "citext[]") for kind in ("bool[]", "int[]", "text[]", "char(3)[]", "inet[]")),
    *(("citext[]", kind) for kind in ("text[]", "char(3)[]")),
}


@pytest.fixture(scope="module")
def databases(pair: tuple[Server, Server]) -> Iterator[tuple[Database, Database]]:
    with new_database(pair[0], "source") as source, new_database(pair[1], "warehouse") as warehouse:
        warehouse.execute("CREATE TYPE moves_the_oids AS ENUM ()")
        for database in (source, warehouse):
            database.admin(SETUP)
        yield source, warehouse


def given_rows(connection: psycopg.Connection, given: LiteralString) -> None:
    """Make the table ``given``, with all values of a type and NULL."""
    connection.execute("DROP TABLE IF EXISTS given")
    connection.execute(SQL("CREATE TABLE given (id int, a {})").format(SQL(given)))
    for number, value in enumerate([*VALUES[given], "NULL"]):
        connection.execute(SQL("INSERT INTO given SELECT {}, {}").format(number, SQL(value)))


def assigned(connection: psycopg.Connection) -> list[LiteralString]:
    """Return the types that PostgreSQL assigns all values of ``given`` to.

    ``expected`` has a column for each of them, with what PostgreSQL assigned; ``arrived`` is empty.
    """
    found: list[LiteralString] = []
    connection.execute("DROP TABLE IF EXISTS expected, arrived")
    for number, wanted in enumerate(VALUES):
        table = Identifier(f"taken_{number}")
        try:
            connection.execute(SQL("INSERT INTO {} SELECT a FROM given").format(table))
        except psycopg.Error:
            continue
        found.append(wanted)
    columns = [SQL("{} {}").format(Identifier(f"c{i}"), SQL(kind)) for i, kind in enumerate(found)]
    for name in ("expected", "arrived"):
        definition = SQL("CREATE TABLE {} (id int, {})").format(Identifier(name), SQL(", ").join(columns))
        connection.execute(definition)
    values = SQL(", ").join([SQL("a")] * len(found))
    connection.execute(SQL("INSERT INTO expected SELECT id, {} FROM given").format(values))
    return found


def _refusal(columns: list[int]) -> str | None:
    query = f"SELECT id, {', '.join(f'a AS c{i}' for i in columns)} FROM given"
    try:
        transfer(source_sql=query, destination_table="arrived")
    except AirflowFailException as error:
        return str(error)
    return None


def loaded(wanted: list[LiteralString]) -> tuple[list[int], list[int]]:
    """Transfer ``given`` to a column of each type; return the accepted and the refused ones."""
    left, refused = [*range(len(wanted))], []
    while left and (reason := _refusal(left)) is not None:
        column = re.search(r"column 'c(\d+)' is of type .* source_sql", reason, re.DOTALL)
        assert column, reason
        left.remove(int(column[1]))
        refused.append(int(column[1]))
    return left, refused


def differences(connection: psycopg.Connection, number: int) -> list[tuple[str, ...]]:
    """Return, as text, PostgreSQL's assigned value and the transferred one, if they differ."""
    query = SQL(
        "SELECT expected.{0}::text, arrived.{0}::text FROM expected FULL JOIN arrived USING (id)"
        " WHERE ROW(expected.{0})::record OPERATOR(pg_catalog.*<>) ROW(arrived.{0})::record"
    )
    return connection.execute(query.format(Identifier(f"c{number}"))).fetchall()


def test_all_pairs_of_types_that_postgresql_assigns(
    databases: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, warehouse = databases
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE", source.uri)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", warehouse.uri)
    refused: set[tuple[str, str]] = set()
    wrong: list[tuple[str, ...]] = []
    compared = 0
    with (
        psycopg.connect(source.conninfo, autocommit=True, prepare_threshold=None) as there,
        psycopg.connect(warehouse.conninfo, autocommit=True, prepare_threshold=None) as here,
    ):
        for number, kind in enumerate(VALUES):
            here.execute(SQL("CREATE TEMP TABLE {} (a {})").format(Identifier(f"taken_{number}"), SQL(kind)))
        for given in VALUES:
            given_rows(there, given)
            given_rows(here, given)
            wanted = assigned(here)
            arrived, not_moved = loaded(wanted)
            refused |= {(given, wanted[i]) for i in not_moved}
            compared += len(arrived)
            wrong += [(given, wanted[i], *row) for i in arrived for row in differences(here, i)]
    assert wrong == []
    assert refused == REFUSED
    assert compared > 400
