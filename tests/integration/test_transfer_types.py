"""Every type and value arrives as it was, in binary and as text; PostgreSQL itself compares."""

# ruff: noqa: S608 - table and type names of these tests only
from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.embedded.server import Server
from tests.databases import Database, new_database
from tests.transfers import transfer

# Type, and an expression of that type that either server evaluates.
BUILT_IN = [
    ("int", "NULL"),
    ("text", "NULL"),
    ("boolean", "true"),
    ("boolean", "false"),
    ("smallint", "-32768"),
    ("int", "2147483647"),
    ("bigint", "-9223372036854775808"),
    ("real", "'1.17549435e-38'"),
    ("real", "0.1::real"),
    ("double precision", "'NaN'"),
    ("double precision", "'-Infinity'"),
    ("double precision", "'-0'"),
    ("double precision", "0.1::float8 + 0.2::float8"),
    ("numeric", "'NaN'"),
    ("numeric", "'Infinity'"),
    ("numeric", "'-Infinity'"),
    ("numeric", "'1.500'"),
    ("numeric", "repeat('9', 2000)::numeric"),
    ("numeric", "('0.' || repeat('0', 500) || '1')::numeric"),
    ("numeric(5,2)", "'999.99'"),
    ("money", "'-12345.67'"),
    ("text", "''"),
    ("text", "E'\\\\N'"),
    ("text", "E'tab\\t newline\\n return\\r backslash\\\\ \\\\. quote'' end'"),
    ("text", "E'\\u00e4\\u20ac\\U0001F600 e\\u0301'"),
    ("text", "repeat('x', 1000000)"),
    ("varchar(5)", "'ab   '"),
    ("char(5)", "'ab'"),
    ('"char"', "'x'"),
    ('"char"', "''"),
    ("name", "'Name with spaces'"),
    ("bytea", "'\\x'"),
    ("bytea", "'\\x00ff5c0a0d09'"),
    ("date", "'infinity'"),
    ("date", "'-infinity'"),
    ("date", "'4713-01-01 BC'"),
    ("date", "'12026-11-22'"),
    ("timestamp", "'infinity'"),
    ("timestamp", "'0044-03-15 12:00:00.000001 BC'"),
    ("timestamp", "'294276-12-31 23:59:59.999999'"),
    ("timestamptz", "'-infinity'"),
    ("timestamptz", "'2026-03-29 01:59:59.999999+00'"),
    ("timestamptz", "'1880-01-01 00:00:00+00'"),
    ("timestamp(0)", "'2026-11-22 10:00:00'"),
    ("time", "'24:00'"),
    ("time", "'23:59:59.999999'"),
    ("timetz", "'24:00:00-15:59:59'"),
    ("timetz", "'10:00:00.5+05:30'"),
    ("interval", "'1 mon'"),
    ("interval", "'30 days'"),
    ("interval", "'-1 year +2 mons -3 days +04:05:06.000007'"),
    ("interval", "'178000000 years'"),
    ("bit(10)", "B'1010000001'"),
    ("bit varying", "B''"),
    ("bit varying(70)", "repeat('10', 33)::bit varying"),
    ("inet", "'192.168.0.5/24'"),
    ("inet", "'::ffff:1.2.3.4/96'"),
    ("cidr", "'10.0.0.0/8'"),
    ("macaddr", "'08:00:2b:01:02:03'"),
    ("macaddr8", "'08:00:2b:01:02:03:04:05'"),
    ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    ("json", """'  {"b" : 1,  "a":[ ] , "b":2}  '"""),
    ("jsonb", "'null'"),
    ("jsonb", """'{"a": 1e400, "b": 1.10, "c": "\\u00e4"}'"""),
    ("jsonpath", "'$.a[*] ? (@ > 1)'"),
    ("point", "'(0.1,-0)'"),
    ("line", "'{1,-1,0.3}'"),
    ("lseg", "'[(0,0),(1,0.1)]'"),
    ("box", "'(1,1),(0,0)'"),
    ("path", "'[(0,0),(1,1),(2,0)]'"),
    ("path", "'((0,0),(1,1),(2,0))'"),
    ("polygon", "'((0,0),(1,1),(2,0))'"),
    ("circle", "'<(0.1,0.2),3>'"),
    ("int4range", "'empty'"),
    ("int4range", "'(,)'"),
    ("numrange", "'(1.10,2.0]'"),
    ("daterange", "'[-infinity,infinity)'"),
    ("tstzrange", """'["2026-01-01 00:00:00+00",)'"""),
    ("int8multirange", "'{[1,3),[5,8)}'"),
    ("datemultirange", "'{}'"),
    ("tsvector", """'a:1A fat:2B,4C ''it''''s'':7 rat:9'"""),
    ("tsquery", "'fat & (rat | !cat) <2> dog:*AB'"),
    ("pg_lsn", "'FFFFFFFF/1A2B3C4D'"),
    ("txid_snapshot", "'10:20:10,14,15'"),
    ("xid", "'4294967295'"),
    ("xid8", "'18446744073709551615'"),
    ("tid", "'(42,7)'"),
    ("oid", "4294967295"),
    ("int[]", "'{}'"),
    ("int[]", "'{{1,2},{3,NULL}}'"),
    ("int[]", "'[0:2]={1,2,3}'"),
    ("int[]", "'[-1:0][5:6]={{1,2},{3,4}}'"),
    ("text[]", """'{"",NULL,"NULL","a,b","{}","\\"","\\\\"}'"""),
    ("date[]", "'{infinity,NULL,0044-03-15 BC}'"),
    ("jsonb[]", """ARRAY['null', '{"a":[1]}']::jsonb[]"""),
    ("bytea[]", "ARRAY['\\x00', '']::bytea[]"),
    ("numrange[]", "ARRAY['empty', '[1,2)']::numrange[]"),
    ("numeric(4,1)[]", "'{1.5,NaN}'"),
]
# Never in binary: either PostgreSQL can't, or the binary form holds this server's oids.
AS_TEXT = [
    ("int2vector", "'1 -2 3'"),
    ("int2vector", "''"),
    ("oidvector", "'1 4294967295'"),
    ("oidvector", "''"),
    ("regclass", "'pg_catalog.pg_class'"),
    ("regtype", "'int'"),
    ("regtype", "'pg_catalog.pg_class'"),
    ("regproc", "'pg_catalog.now'"),
    ("regprocedure", "'pg_catalog.abs(integer)'"),
    ("regoperator", "'pg_catalog.+(integer,integer)'"),
    ("regrole", "'postgres'"),
    ("regnamespace", "'pg_catalog'"),
    ("regclass[]", "ARRAY['pg_class', NULL]::regclass[]"),
    ("regclass", "'mine'"),  # another oid on each side
    ("mine_reference", "'mine'"),
    ("aclitem", "'=r/postgres'"),
    ("aclitem[]", "ARRAY['=r/postgres', 'postgres=arwdDxt/postgres']::aclitem[]"),
]
# Types of users, and the same in other words: made on both sides, with other oids.
OF_USERS = [
    ("mood", "'so-so'"),
    ("mood", "''"),
    ("mood", "NULL"),
    ("mood[]", """'{so-so,"",NULL}'"""),
    ("mood[]", "'[3:4]={ok,ok}'"),
    ("mood_not_ok", "'so-so'"),
    ("mood_not_ok[]", "'{so-so}'"),
    ("short[]", "'{abc,NULL}'"),
    ("pair", """ROW(1, 'a "quoted", (thing)')::pair"""),
    ("pair", "ROW(NULL, '')::pair"),
    ("pair[]", "ARRAY[ROW(1, NULL), ROW(2, 'b')]::pair[]"),
    ("nested", "ROW(ROW(1, 'x'), '{ok}')::nested"),
    ("mood_range", "'[so-so,ok]'"),
    ("mood_multirange", "'{[so-so,ok]}'"),
    ("elsewhere.mood", "'other'"),
    ('"Öther".mood', "'third'"),
    ("row_of", "ROW(1)::row_of"),
    ("citext", "'MiXed'"),
    ("citext[]", "'{A,b}'"),
    ("hstore", """'a=>1, "b c"=>NULL'"""),
]
# A domain of a built-in type travels in binary.
DOMAINS = [
    ("short", "'abc'"),
    ("positive", "5"),
    ("numbers", "'{1,NULL}'"),
    ("positive_again", "7"),
]

SETUP = """
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
GRANT ALL ON SCHEMA public TO PUBLIC
"""
SCHEMA = """
CREATE TABLE mine ();
CREATE TYPE mood AS ENUM ('', 'so-so', 'ok');
CREATE SCHEMA elsewhere;
CREATE TYPE elsewhere.mood AS ENUM ('other');
CREATE SCHEMA "Öther";
CREATE TYPE "Öther".mood AS ENUM ('third');
CREATE DOMAIN mood_not_ok AS mood CHECK (VALUE <> 'ok');
CREATE DOMAIN short AS varchar(3);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN positive_again AS positive CHECK (VALUE < 100);
CREATE DOMAIN numbers AS int[];
CREATE DOMAIN mine_reference AS regclass;
CREATE TYPE pair AS (a int, b text);
CREATE TYPE nested AS (p pair, m mood[]);
CREATE TYPE mood_range AS RANGE (subtype = mood);
CREATE TABLE row_of (a int)
"""

_numbers = count()


@pytest.fixture(scope="module")
def databases(pair: tuple[Server, Server]) -> Iterator[tuple[Database, Database]]:
    with new_database(pair[0], "source") as source, new_database(pair[1], "warehouse") as warehouse:
        warehouse.execute("CREATE TYPE moves_the_oids AS ENUM ()")
        for database in (source, warehouse):
            database.admin(SETUP)
            database.execute(SCHEMA)
        oids = [
            database.rows("SELECT 'mine'::regclass::oid, 'mood'::regtype::oid")[0]
            for database in (source, warehouse)
        ]
        assert oids[0] != oids[1]
        yield source, warehouse


@pytest.fixture
def here(databases: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch) -> tuple[Database, Database]:
    source, warehouse = databases
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE", source.uri)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", warehouse.uri)
    return source, warehouse


def moved(here: tuple[Database, Database], type_name: str, value: str, *, forced: bool) -> str:
    """Move one row, check it in PostgreSQL, and return the format it travelled in."""
    source, warehouse = here
    table = f"value_{next(_numbers)}"
    force = ", forced mood DEFAULT 'ok'" if forced else ""
    for database in here:
        database.execute(f"CREATE TABLE {table} (id int, a {type_name}{force})")
    source.execute(f"INSERT INTO {table} (id, a) SELECT 1, {value}")
    result = transfer(table)
    assert result["rows"] == 1
    # Of a tsquery PostgreSQL itself builds another image from the binary form than from text.
    equal = "a = ({})" if type_name == "tsquery" else "record_image_eq(ROW(a), ROW(({})::{}))"
    assert warehouse.rows(f"SELECT {equal.format(value, type_name)}, id FROM {table}") == [(True, 1)]
    as_text = f"SELECT a::text, a IS NULL FROM {table}"
    assert warehouse.rows(as_text) == source.rows(as_text)
    return str(result["format"])


@pytest.mark.parametrize(("type_name", "value"), BUILT_IN + DOMAINS)
def test_a_built_in_value_arrives_as_it_was_in_binary_and_as_text(
    here: tuple[Database, Database], type_name: str, value: str
) -> None:
    assert moved(here, type_name, value, forced=False) == "binary"
    assert moved(here, type_name, value, forced=True) == "text"


@pytest.mark.parametrize(("type_name", "value"), AS_TEXT + OF_USERS)
def test_a_value_that_has_no_portable_binary_form_arrives_as_it_was(
    here: tuple[Database, Database], type_name: str, value: str
) -> None:
    assert moved(here, type_name, value, forced=False) == "text"


@pytest.mark.parametrize(
    ("given", "value", "wanted", "arrives"),
    [
        ("smallint", "7", "bigint", "7"),
        ("int", "7", "numeric(4,1)", "7.0"),
        ("numeric", "2.5", "int", "3"),
        ("numeric", "-2.5", "int", "-3"),
        ("double precision", "2.5", "int", "2"),
        ("numeric", "1.005", "numeric(6,2)", "1.01"),
        ("bigint", "7", "smallint", "7"),
        ("real", "1.5", "double precision", "1.5"),
        ("varchar(3)", "'abc'", "text", "abc"),
        ("text", "'abc'", "varchar(3)", "abc"),
        ("char(5)", "'ab'", "text", "ab"),
        ("text", "'ab'", "char(5)", "ab   "),
        ("text", "'abc'", "name", "abc"),
        ("name", "'abc'", "text", "abc"),
        ("date", "'2026-11-22'", "timestamp", "2026-11-22 00:00:00"),
        ("timestamp", "'2026-11-22 10:00'", "date", "2026-11-22"),
        ("timestamp", "'2026-11-22 10:00:00.6'", "timestamp(0)", "2026-11-22 10:00:01"),
        ("int", "7", "text", "7"),
        ("boolean", "true", "text", "true"),
        ("jsonb", """'{"a":1}'""", "text", '{"a": 1}'),
        ("json", """'{"a":1}'""", "jsonb", '{"a": 1}'),
        ("inet", "'10.0.0.1'", "text", "10.0.0.1/32"),
        ("cidr", "'10.0.0.0/8'", "inet", "10.0.0.0/8"),
        ("varchar[]", "'{a,NULL}'", "text[]", "{a,NULL}"),
        ("int[]", "'{1,NULL}'", "bigint[]", "{1,NULL}"),
        ("int", "7", "positive", "7"),
        ("positive", "7", "bigint", "7"),
        ("int4range", "'[1,3)'", "text", "[1,3)"),
        ("mood", "'ok'", "text", "ok"),
        ("mood", "'ok'", "varchar(2)", "ok"),
        ("text", "'ok'", "mood", "ok"),
        ("mood_not_ok", "'so-so'", "mood", "so-so"),
        ("mood", "'so-so'", "mood_not_ok", "so-so"),
        ("citext", "'MiX'", "text", "MiX"),
        ("text", "'MiX'", "citext", "MiX"),
        ("hstore", "'a=>1'", "text", '"a"=>"1"'),
        ("pair", "ROW(1, 'b')::pair", "text", "(1,b)"),
        ("citext", "'a'", "varchar", "a"),
        ("regclass", "'pg_class'", "text", "pg_class"),
    ],
)
def test_a_type_that_differs_is_assigned_as_postgresql_does(
    here: tuple[Database, Database], given: str, value: str, wanted: str, arrives: str
) -> None:
    source, warehouse = here
    table = f"value_{next(_numbers)}"
    source.execute(f"CREATE TABLE {table} (a {given}); INSERT INTO {table} SELECT {value}")
    warehouse.execute(f"CREATE TABLE {table} (a {wanted})")
    transfer(table)
    assert warehouse.rows(f"SELECT format('%s', a), pg_typeof(a)::text FROM {table}") == [
        (arrives, warehouse.rows(f"SELECT pg_typeof(a)::text FROM (SELECT NULL::{wanted} AS a) AS t")[0][0])
    ]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("text", "int"),
        ("int", "boolean"),
        ("int", "date"),
        ("bytea", "text[]"),
        ("text[]", "int[]"),
        ("mood", "int"),
        ("mood", "elsewhere_only"),
        ("pair", "nested"),
        ("json", "int"),
        ("point", "box[]"),
    ],
)
def test_types_that_postgresql_would_not_assign_are_refused_by_name(
    here: tuple[Database, Database], given: str, wanted: str
) -> None:
    source, warehouse = here
    table = f"value_{next(_numbers)}"
    if wanted == "elsewhere_only":
        warehouse.execute("CREATE TYPE elsewhere_only AS ENUM ('ok')")
    source.execute(f"CREATE TABLE {table} (a int, b {given}); INSERT INTO {table} VALUES (1, NULL)")
    warehouse.execute(f"CREATE TABLE {table} (a int, b {wanted})")
    with pytest.raises(AirflowFailException) as caught:
        transfer(table)
    message = str(caught.value)
    assert all(word in message for word in ("'warehouse'", "'source'", "'b'", "42804", "source_sql")), message
    assert warehouse.rows(f"SELECT * FROM {table}") == []


@pytest.mark.parametrize(
    ("type_name", "value"), [("citext", "'A'"), ("hstore", "'a=>1'"), ("own.kind", "'x'")]
)
def test_create_makes_text_of_a_type_that_only_the_source_has(
    source: Database, warehouse: Database, type_name: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    source.admin(SETUP)
    source.execute("CREATE SCHEMA own; CREATE TYPE own.kind AS ENUM ('x')")
    source.execute(
        f"CREATE TABLE item (id int PRIMARY KEY, a {type_name}); INSERT INTO item SELECT 1, {value}"
    )
    transfer(mode="create")
    assert warehouse.rows("SELECT a, pg_typeof(a)::text FROM item") == [
        (source.rows("SELECT a::text FROM item")[0][0], "text")
    ]
    assert f"has no type {type_name}: 'a' becomes text" in caplog.text


def test_create_keeps_types_modifiers_not_null_and_key(source: Database, warehouse: Database) -> None:
    source.execute(
        """CREATE TABLE item (
            "Key" bigint GENERATED ALWAYS AS IDENTITY, part char(2), n numeric(10,2) NOT NULL, v varchar(7),
            t timestamptz(3), i interval day to second(2), b bit(3), bv bit varying(5), a numeric(4,1)[],
            c "char", u uuid, PRIMARY KEY (part, "Key"));
        INSERT INTO item (part, n, t) VALUES ('x', 1.5, now())"""
    )
    transfer(mode="create")
    columns = """SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
                  WHERE attrelid = 'item'::regclass AND attnum > 0 ORDER BY attnum"""
    assert warehouse.rows(columns) == source.rows(columns)
    key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'item_pkey'"
    assert warehouse.rows(key) == source.rows(key) == [('PRIMARY KEY (part, "Key")',)]
    assert warehouse.rows("TABLE item") == source.rows("TABLE item")
