"""What becomes of each type in XCom: JSON's own values, or PostgreSQL's own text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_dblink.operators.fetch import DblinkFetchOperator
from tests.databases import Database
from tests.integration.tasks import context

TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN exact AS numeric(9, 2)
"""
# (SQL, in XCom)
VALUES: list[tuple[str, Any]] = [
    ("true", True),
    ("NULL::bool", None),
    ("(-32768)::int2", -32768),
    ("2147483647::int4", 2147483647),
    ("9223372036854775807::int8", 9223372036854775807),
    ("4294967295::oid", 4294967295),
    ("5::positive", 5),
    ("0.1::float4", 0.1),
    ("1e300::float8", 1e300),
    ("(1.0 / 3)::float8", 1 / 3),
    ("'NaN'::float8", "NaN"),
    ("'Infinity'::float8", "Infinity"),
    ("'-Infinity'::float4", "-Infinity"),
    ("'é „x“ \\ \"'::text", 'é „x“ \\ "'),
    ("'ab'::char(4)", "ab  "),
    ("'v'::varchar(5)", "v"),
    ("'n'::name", "n"),
    ("'c'::\"char\"", "c"),
    ("'happy'::mood", "happy"),
    ("1.50::numeric", "1.50"),
    ("12345678901234567890.123456789::numeric", "12345678901234567890.123456789"),
    ("'NaN'::numeric", "NaN"),
    ("'Infinity'::numeric", "Infinity"),
    ("1e-20::numeric", "0.00000000000000000001"),
    ("2.5::exact", "2.50"),
    ("12.5::money", "$12.50"),
    ("""'{"a": 1.00, "a": 12345678901234567890}'::json""", '{"a": 1.00, "a": 12345678901234567890}'),
    ("'{\"a\": 12345678901234567890.10}'::jsonb", '{"a": 12345678901234567890.10}'),
    ("'null'::jsonb", "null"),
    ("NULL::jsonb", None),
    ("'\"text\"'::jsonb", '"text"'),
    ("'$.a'::jsonpath", '$."a"'),
    ("'2026-11-22'::date", "2026-11-22"),
    ("'infinity'::date", "infinity"),
    ("'0044-03-15 BC'::date", "0044-03-15 BC"),
    ("'12:34:56.7'::time", "12:34:56.7"),
    ("'24:00'::time", "24:00:00"),
    ("'12:34+02'::timetz", "12:34:00+02"),
    ("'2026-11-22 01:02:03.5'::timestamp", "2026-11-22 01:02:03.5"),
    ("'20000-01-01'::timestamp", "20000-01-01 00:00:00"),
    ("'2026-11-22 01:02:03+00'::timestamptz", "2026-11-22 01:02:03+00"),
    ("'1 mon'::interval", "1 mon"),
    ("'1 year -2 days 03:04:05.6'::interval", "1 year -2 days +03:04:05.6"),
    ("'\\x00ff'::bytea", "\\x00ff"),
    ("'6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
    ("'10.0.0.1/8'::inet", "10.0.0.1/8"),
    ("'10.0.0.0/8'::cidr", "10.0.0.0/8"),
    ("'08:00:2b:01:02:03'::macaddr", "08:00:2b:01:02:03"),
    ("B'0101'", "0101"),
    ("'(1,2)'::point", "(1,2)"),
    ("'a & b'::tsquery", "'a' & 'b'"),
    ("'[1,5)'::int4range", "[1,5)"),
    ("'empty'::int4range", "empty"),
    ("'[1.0,)'::numrange", "[1.0,)"),
    ("'{[1,2),[5,6)}'::int4multirange", "{[1,2),[5,6)}"),
    ("'[2026-01-01,infinity)'::daterange", "[2026-01-01,infinity)"),
    ("ROW(1, 'x y')::pair", '(1,"x y")'),
    ("ROW(1, NULL)", "(1,)"),
    ("ARRAY[1, NULL, 3]", [1, None, 3]),
    ("'{}'::int[]", []),
    ("'{{1,2},{3,4}}'::int[]", [[1, 2], [3, 4]]),
    ("'[0:1]={1,2}'::int[]", "[0:1]={1,2}"),
    ("'{t,f}'::bool[]", [True, False]),
    ("'{1.5,NaN,-Infinity}'::float8[]", [1.5, "NaN", "-Infinity"]),
    ("ARRAY['a,b', 'NULL', NULL, '\"', '{}']", ["a,b", "NULL", None, '"', "{}"]),
    ("ARRAY[1.10, 2]::numeric[]", ["1.10", "2"]),
    ("ARRAY['1 mon', '1 year 5 days']::interval[]", ["1 mon", "1 year 5 days"]),
    ("ARRAY['\\x00ff', '\\x']::bytea[]", ["\\x00ff", "\\x"]),
    ("ARRAY['{\"a\": 1.0}', 'null']::jsonb[]", ['{"a": 1.0}', "null"]),
    ("ARRAY['infinity', '2026-11-22']::date[]", ["infinity", "2026-11-22"]),
    ("ARRAY['[1,5)']::int4range[]", ["[1,5)"]),
    ("ARRAY['(1,2),(0,0)']::box[]", ["(1,2),(0,0)"]),
    ("ARRAY['happy']::mood[]", "{happy}"),
    ("ARRAY[ROW(1, 'x')]::pair[]", '{"(1,x)"}'),
]
# What makes PostgreSQL write the same values otherwise.
SETTINGS = {
    "extra_float_digits": "-5",
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
}


def rows(sql: str, **arguments: Any) -> Any:
    operator = DblinkFetchOperator(task_id="t", conn_id="source", sql=sql, max_xcom_rows=1, **arguments)
    return json.loads(json.dumps(operator.execute(context()), allow_nan=False))["data"]


@pytest.mark.parametrize("odd", [False, True])
def test_each_type(source: Database, *, odd: bool) -> None:
    source.execute(TYPES)
    for name, value in {**(SETTINGS if odd else {}), "timezone": "UTC", "lc_monetary": "C"}.items():
        source.execute(f"ALTER DATABASE {source.name} SET {name} = '{value}'")
    (row,) = rows("SELECT " + ", ".join(sql for sql, _ in VALUES))

    for (sql, expected), value in zip(VALUES, row, strict=True):
        assert (sql, value, type(value)) == (sql, expected, type(expected))


def test_each_text_is_read_back_as_the_same_value(source: Database) -> None:
    source.execute(TYPES)
    for sql, text in VALUES:
        if not isinstance(text, str):
            continue
        kind = source.rows(f"SELECT pg_typeof({sql})::text")[0][0]
        if kind == "record":  # PostgreSQL reads no row without a type
            continue
        kind = {"character": "bpchar", "bit": "varbit"}.get(kind, kind)  # these two mean a length of 1
        assert source.rows(f"SELECT (%s::{kind})::text = ({sql})::text", text) == [(True,)], sql
