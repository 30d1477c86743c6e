"""Calls that run statements, read rows and insert rows."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import ipaddress
import uuid
from typing import Any

from airflow.providers.common.sql.hooks.handlers import fetch_all_handler, fetch_one_handler
from psycopg.types.json import Json, Jsonb
from psycopg.types.range import Range

from tests.differential.stock_side import Side, add, call

# -- run, get_records, get_first


def _run(*args: Any, **kwargs: Any) -> Any:
    return lambda side: side.hook().run(*args, **kwargs)


_INSERT = "INSERT INTO bare VALUES (1, 'a')"

for _name, _call in {
    "without handler": _run("SELECT 1"),
    "with a handler": _run("SELECT 1 AS a UNION SELECT 2 ORDER BY 1", handler=fetch_all_handler),
    "with a handler of one": _run("SELECT 1, 2", handler=fetch_one_handler),
    "with a handler and no rows": _run(_INSERT, handler=fetch_all_handler),
    "with positional parameters": _run("SELECT %s, %s", parameters=[1, "b"], handler=fetch_all_handler),
    "with a tuple of parameters": _run("SELECT %s", parameters=(1,), handler=fetch_all_handler),
    "with named parameters": _run("SELECT %(a)s + %(a)s", parameters={"a": 2}, handler=fetch_all_handler),
    "with a percent sign and no parameters": _run("SELECT 'a%'", handler=fetch_all_handler),
    "with too few parameters": _run("SELECT %s, %s", parameters=[1]),
    "of several statements": _run("SELECT 1; SELECT 2", handler=fetch_all_handler),
    "of several statements with parameters": _run("SELECT %s; SELECT 2", parameters=[1]),
    "split": _run("SELECT 1; SELECT 2", handler=fetch_all_handler, split_statements=True),
    "split and all results": _run(
        "SELECT 1; SELECT 2", handler=fetch_all_handler, split_statements=True, return_last=False
    ),
    "of a list": _run(["SELECT 1", "SELECT 2"], handler=fetch_all_handler),
    "of a list and all results": _run(["SELECT 1", "SELECT 2"], handler=fetch_all_handler, return_last=False),
    "of nothing": _run(" "),
    "of an empty list": _run([]),
    "commits": _run(_INSERT),
    "rolls all back": _run([_INSERT, "SELECT 1/0"]),
    "in autocommit keeps what came before an error": _run([_INSERT, "SELECT 1/0"], autocommit=True),
    "in autocommit of VACUUM": _run("VACUUM bare", autocommit=True),
    "of VACUUM without autocommit": _run("VACUUM bare"),
    "of a syntax error": _run("SELEC 1"),
    "of an undefined table": _run("SELECT * FROM nope"),
    "with a parameter that cannot be adapted": _run("SELECT %s", parameters=[object()]),
    "of a COPY to the client": _run("COPY item TO STDOUT"),
    "of SET and what follows": _run(["SET work_mem = '9MB'", "SHOW work_mem"], handler=fetch_all_handler),
}.items():
    add(f"run {_name}", _call)


@call
def run_with_a_raising_handler(side: Side) -> Any:
    def raising(_: Any) -> Any:
        raise KeyError("the caller's")

    side.hook().run([_INSERT, "SELECT 1"], handler=raising)


@call
def run_leaves_descriptions(side: Side) -> Any:
    hook = side.hook()
    hook.run("SELECT 1 AS a, 'x'::text AS b", handler=fetch_all_handler)
    return [[column[0] for column in each] for each in hook.descriptions], hook.last_description[1][1]


@call
def get_records_of_no_rows(side: Side) -> Any:
    return side.hook().get_records("SELECT 1 WHERE false")


@call
def get_records_with_parameters(side: Side) -> Any:
    return side.hook().get_records("SELECT * FROM item WHERE id < %s ORDER BY id", parameters=[3])


@call
def get_records_of_an_insert(side: Side) -> Any:
    return side.hook().get_records(_INSERT)


@call
def get_first_of_a_row(side: Side) -> Any:
    return side.hook().get_first("SELECT * FROM item ORDER BY id")


@call
def get_first_of_no_rows(side: Side) -> Any:
    return side.hook().get_first("SELECT 1 WHERE false")


@call
def get_first_of_an_error(side: Side) -> Any:
    return side.hook().get_first("SELECT 1/0")


@call
def get_first_commits(side: Side) -> Any:
    return side.hook().get_first("INSERT INTO bare VALUES (1) RETURNING id")


READ = {
    "numbers": "1::smallint, 2::bigint, 1.50::numeric, 'NaN'::numeric, 1.5::float4, 'infinity'::float8,"
    " '1'::money",
    "texts": "'a'::text, 'b'::char(3), 'c'::varchar, 'd'::name, '\"e\"'::json, '{\"f\": [1, null]}'::jsonb,"
    " '<g/>'::xml",
    "times": "'2026-01-01'::date, '10:00'::time, '10:00+02'::timetz, timestamp '2026-01-01 10:00',"
    " timestamptz '2026-01-01 10:00+02', interval '1 year 2 days 3 seconds'",
    "arrays": "'{1,NULL}'::int[], '{}'::text[], '{{a,b},{c,d}}'::text[], ARRAY['\\x00'::bytea],"
    " ARRAY[date '2026-01-01']",
    "others": "true, NULL, '\\x00ff'::bytea, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, '10.0.0.1'::inet,"
    " '10.0.0.0/8'::cidr, '08:00:2b:01:02:03'::macaddr, B'101', '(1,2)'::point, '[1,5)'::int4range, 1::oid,"
    " ROW(1, 'a')",
}


def _read(columns: str) -> Any:
    return lambda side: side.hook().get_first(f"SELECT {columns}")


for _name, _columns in READ.items():
    add(f"get records of {_name}", _read(_columns))


def _styled(setting: str) -> Any:
    query = "SELECT timestamptz '2026-01-01 10:00+02', interval '1 day 2 hours', ARRAY['\\x00'::bytea]"
    return lambda side: side.hook(options=f"-c {setting}").get_first(query)


for _setting in ("datestyle=German", "intervalstyle=iso_8601", "bytea_output=escape", "timezone=Asia/Tokyo"):
    add(f"get records under {_setting}", _styled(_setting))

# -- insert_rows: a value into a column of a type


class Colour(enum.Enum):
    RED = "red"


_WHEN = dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
KINDS: dict[str, tuple[str, Any]] = {
    "an int": ("int", 1),
    "a large int": ("bigint", 2**62),
    "an int into text": ("text", 1),
    "a float": ("float8", 1.5),
    "an infinite float": ("float8", float("inf")),
    "a Decimal": ("numeric", decimal.Decimal("1.50")),
    "a Decimal NaN": ("numeric", decimal.Decimal("NaN")),
    "a text": ("text", "a'b\\c\n%s"),
    "a text into int": ("int", "7"),
    "a text into uuid": ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "a text that is no int": ("int", "x"),
    "an empty text": ("text", ""),
    "a bool": ("bool", True),
    "None": ("text", None),
    "bytes": ("bytea", b"\0\xff"),
    "a date": ("date", _WHEN.date()),
    "a time": ("time", _WHEN.time()),
    "a timestamp": ("timestamp", _WHEN.replace(tzinfo=None)),
    "a timestamptz": ("timestamptz", _WHEN),
    "a timedelta": ("interval", dt.timedelta(days=40, seconds=1)),
    "a UUID": ("uuid", uuid.UUID(int=1)),
    "an address": ("inet", ipaddress.ip_address("10.0.0.1")),
    "a range": ("int4range", Range(1, 5)),
    "an enum": ("text", Colour.RED),
    "a dict into json": ("json", {"b": 1, "a": [None]}),
    "a dict into jsonb": ("jsonb", {"b": 1, "a": [None]}),
    "an empty dict into jsonb": ("jsonb", {}),
    "a dict into text": ("text", {"a": 1}),
    "Json into json": ("json", Json({"a": 1})),
    "Jsonb into jsonb": ("jsonb", Jsonb([1])),
    "a text into jsonb": ("jsonb", '{"a": 1}'),
    "an empty list into jsonb": ("jsonb", []),
    "a list of numbers into jsonb": ("jsonb", [1, 2.5, None]),
    "a list of texts into json": ("json", ["a", "b"]),
    "a list of lists into jsonb": ("jsonb", [[1], []]),
    "a list of dicts into jsonb": ("jsonb", [{"a": 1}, {}]),
    "a list into text": ("text", [1, "a"]),
    "a list into int array": ("int[]", [1, None]),
    "a list into text array": ("text[]", ["a", "b,c", None]),
    "an empty list into an array": ("text[]", []),
    "a list of lists into an array": ("int[]", [[1, 2], [3, 4]]),
    "a list into numeric array": ("numeric[]", [decimal.Decimal("1.5")]),
    "a list of dicts into jsonb array": ("jsonb[]", [{"a": 1}]),
    "an object": ("text", object()),
}


def _insert_value(kind: str, value: Any) -> Any:
    def insert(side: Side) -> Any:
        side.database.execute(f"CREATE TABLE t (id int, v {kind})")
        side.hook().insert_rows("t", [(1, value)], ["id", "v"])

    return insert


for _name, (_kind, _value) in KINDS.items():
    add(f"insert {_name}", _insert_value(_kind, _value))

# -- insert_rows: its arguments

_ROWS = [(11, "a"), (12, "b"), (13, "c"), (11, "d"), (15, "e")]


def _insert(table: str, rows: Any, *args: Any, **kwargs: Any) -> Any:
    return lambda side: side.hook().insert_rows(table, rows, *args, **kwargs)


_ID_NAME = ["id", "name"]
for _name, _call in {
    "without target fields": _insert("bare", _ROWS),
    "of a generator": lambda side: side.hook().insert_rows("bare", (row for row in _ROWS)),
    "of no rows": _insert("bare", []),
    "of lists": _insert("bare", [list(row) for row in _ROWS]),
    "keeps the chunks before an error": _insert("item", _ROWS, _ID_NAME, commit_every=2),
    "with commit every 0": _insert("bare", _ROWS, _ID_NAME, commit_every=0),
    "with executemany": _insert("bare", _ROWS, _ID_NAME, executemany=True),
    "with fast executemany": _insert("bare", _ROWS, _ID_NAME, fast_executemany=True),
    "in autocommit": _insert("item", _ROWS, _ID_NAME, autocommit=True),
    "into no table": _insert("nope", _ROWS),
    "into a table with an alias": _insert("bare AS b", _ROWS),
    "into no column": _insert("bare", _ROWS, ["id", "nope"]),
    "of rows with too many fields": _insert("bare", [(1, "a", 2)]),
    "of a mixed-case column": _insert("pair", [(1, 2, "x")], ["a", "b", '"Full Name"']),
    "with a schema": _insert("public.bare", _ROWS, _ID_NAME),
    "replacing": _insert("item", [(1, "new"), (9, "new")], _ID_NAME, replace=True, replace_index="id"),
    "replacing by two columns": _insert(
        "pair", [(1, 2, "x")], ["a", "b", '"Full Name"'], replace=True, replace_index=["b", "a"]
    ),
    "replacing by the key of a table with schema": _insert(
        "public.item", [(1, "new")], _ID_NAME, replace=True
    ),
    "replacing by the key of a table without schema": _insert("item", [(1, "new")], _ID_NAME, replace=True),
    "replacing without target fields": _insert("item", [(1, "new")], replace=True, replace_index="id"),
    "replacing only the key": _insert("item", [(1,), (9,)], ["id"], replace=True, replace_index="id"),
    "replacing some fields": _insert(
        "item",
        [(1, "new", 9)],
        ["id", "name", "price"],
        replace=True,
        replace_index="id",
        replace_target=["price"],
    ),
}.items():
    add(f"insert rows {_name}", _call)


@call
def insert_rows_tells_lineage(side: Side) -> Any:
    told: list[Any] = []
    for module in ("common.sql.hooks.sql", "postgres.hooks.postgres"):
        side.patch.setattr(
            f"airflow.providers.{module}.send_sql_hook_lineage", lambda **about: told.append(about)
        )
    side.hook().insert_rows("bare", _ROWS, _ID_NAME)
    return [(about["sql"], about.get("row_count")) for about in told]


@call
def upsert_rows(side: Side) -> Any:
    side.hook().upsert_rows("item", [(1, "new"), (9, "new")], _ID_NAME, ["id"])


@call
def upsert_rows_leaving_what_is_there(side: Side) -> Any:
    side.hook().upsert_rows("item", [(1, "new"), (9, "new")], _ID_NAME, ["id"], update_fields=[])


@call
def generate_insert_sql(side: Side) -> Any:
    return side.hook()._generate_insert_sql("t", (1, 2), ["id", "user"], False)


@call
def generate_insert_sql_escaping_all(side: Side) -> Any:
    return side.hook(escape_column_names=True)._generate_insert_sql("t", (1, 2), ["id", "user"], False)


@call
def serialize_cell(side: Side) -> Any:
    hook = side.hook()
    return [hook._serialize_cell(cell, None) for cell in (1, "a", None, b"x", _WHEN)]
