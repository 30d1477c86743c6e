"""Names, kinds of relations, keys and types: what dblink's builders make of them, and ours."""

from __future__ import annotations

import pytest

from tests.databases import Database
from tests.integration.builders.sides import TYPES, Key, Sides

# -- names


@pytest.mark.parametrize(
    "relname",
    [
        "foo",
        "FOO",
        ' "foo" ',
        "public.foo",
        ' public \n . "foo"',
        "other.foo",
        "other.hidden",
        '"Odd.Sch""ema"."T %s ""q"" \'x\' \\"',
        "order",
        '"order"',
        "12345",
        " 12345 ",
        "public.12345",
        "-",
        '"a b"',
        "a b",
        "",
        " ",
        '""',
        "foo.",
        ".foo",
        '"foo',
        "a..b",
        "a.b.c",
        "a.b.c.d",
        "a.b.c.d.e",
        "nope",
        "NOPE",
        "nope.foo",
        "public.nope",
        "f" * 80,
        "é" * 40,
        "FÖÖ",
        "foo_f2",
        "comp",
        "parted_pkey",
        "pg_class",
        "pg_catalog.pg_type",
        "information_schema.tables",
        "seq",
        "v",
        "mv",
        "parted",
        "part1",
        "parent",
        "child",
        "remote_foo",
        "no_handler",
        "no_columns",
        "generated",
        "include_key",
        "only_unique",
        "dropped",
        "nulls",
        "wide",
        "1; DROP TABLE foo",
        "foo\\",
        "E'foo'",
    ],
)
def test_names(admin: Sides, relname: str) -> None:
    admin.check_pkey(relname)
    admin.check(relname, [1], ["1"])


def test_three_parts(admin: Sides, database: Database) -> None:
    assert admin.check_pkey(f"{database.name}.public.foo")[0] == "value"
    assert admin.check(f"{database.name}.other.hidden", [1], ["1"])[0] == "value"


def test_toast_table(admin: Sides) -> None:
    relid = admin.session.execute("SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 'foo'")
    name = relid.fetchone()[0]  # type: ignore[index]
    admin.check_pkey(name)
    assert admin.check(name, [1], ["1"])[0] == "21000"


def test_temporary_tables(admin: Sides) -> None:
    admin.execute("CREATE TEMP TABLE own (id int PRIMARY KEY); INSERT INTO own VALUES (1)")
    admin.execute("CREATE TEMP TABLE foo (id int PRIMARY KEY); INSERT INTO foo VALUES (1)")
    for relname in ("own", "pg_temp.own", "foo", "public.foo", "pg_temp.foo"):
        admin.check_pkey(relname)
        admin.check(relname, [1], ["1"])
    admin.execute("SET search_path = public, pg_temp")
    theirs = admin.theirs("insert", "pg_temp.foo", [1], ["1"], ["1"])
    ours = admin.ours("insert", "pg_temp.foo", [1], ["1"], ["1"])
    assert [text.split(".", 1)[1] for _, text in (ours, theirs)] == ["foo(id) VALUES('1')"] * 2
    assert ours[1].startswith("INSERT INTO pg_temp_")


# -- keys


@pytest.mark.parametrize(
    ("relname", "attnums", "src", "tgt"),
    [
        ("foo", [1, 2], ["0", "a"], ["99", "xyz"]),
        ("foo", [2, 1], ["a", "0"], ["xyz", "99"]),
        ("foo", [1], ["2"], [None]),
        ("foo", [1], ["2"], ["\\ ' \" %L %s \n\t\x01é€😀"]),
        ("foo", [1], ["2"], ["not an int"]),
        ("foo", [2], ["c\\d"], ["c\\d"]),
        ("foo", [2], ['it\'s "x" %L %'], ["%"]),
        ("foo", [2], ["tab\tline\nend"], ["\r\n"]),
        ("foo", [2], [""], [""]),
        ("foo", [2], ["é€😀"], ["é€😀"]),
        ("foo", [1], ["-7"], ["-7"]),
        ("foo", [1, 1], ["5", "5"], ["5", "6"]),
        ("foo", [1, 1], ["5", "6"], ["5", "6"]),
        ("foo", [1] * 40, ["5"] * 40, [str(i) for i in range(40)]),
        ("foo", [3], ["{a0,b0}"], ["{}"]),
        ("foo", [1, 2, 3], ["1", "b", "{}"], ["1", "b", "{}"]),
        ("foo", [1], ["77"], ["77"]),
        ("foo", [1], ["x"], ["x"]),
        ("foo", [1], ["99999999999"], ["1"]),
        ("foo", [], [], []),
        ("foo", [0], ["1"], ["1"]),
        ("foo", [-1], ["1"], ["1"]),
        ("foo", [4], ["1"], ["1"]),
        ("foo", [1, 9], ["1"], []),
        ("foo", [1, 2], ["1"], ["1", "2"]),
        ("foo", [1, 2], ["1", "2"], ["1"]),
        ("foo", [1], [], []),
        ("foo", [9], [], []),
        ("nope", [], [], []),
        ("nulls", [1, 2], ["1", None], [None, "5"]),
        ("nulls", [1, 2], [None, "2"], ["1", None]),
        ("nulls", [1, 2], [None, None], [None, None]),
        ("nulls", [1, 2], ["3", "3"], ["3", "3"]),
        ("nulls", [1, 2], ["4", None], ["3", "3"]),
        ("nulls", [1], [None], ["1"]),
        ("dropped", [1], ["2"], ["3"]),
        ("dropped", [2, 4], ["b", "7"], ["b", "8"]),
        ("dropped", [5], ["b"], ["b"]),
        ("dropped", [6], ["b"], ["b"]),
        ("v", [1], ["3"], ["4"]),
        ("v", [2], ["B"], ["B"]),
        ("mv", [1], ["3"], ["4"]),
        ("parted", [1], ["1"], ["2"]),
        ("part1", [2], ["1"], ["2"]),
        ("parent", [1], ["1"], ["1"]),
        ("parent", [1], ["2"], ["1"]),
        ("remote_foo", [1], ["2"], ["2"]),
        ("remote_foo", [1], ["22"], ["2"]),
        ("seq", [1], ["5"], ["6"]),
        ("generated", [1], ["1"], ["2"]),
        ("pg_class", [2], ["foo"], ["x" * 70]),
        ("pg_namespace", [2], ["other"], ["other"]),
        ("failing", [1], ["1"], ["1"]),
        ("wide", [250, 1], ["250", "1"], ["a", None]),
        ("order", [1, 10], ["1", "u"], ["1", "u"]),
        ('"Odd.Sch""ema"."T %s ""q"" \'x\' \\"', [1, 3], ["1", "\\'"], [None, "%"]),
    ],
)
def test_keys(admin: Sides, relname: str, attnums: list[int], src: Key, tgt: Key) -> None:
    admin.check(relname, attnums, src, tgt)
    admin.check(relname, attnums, src)


@pytest.mark.parametrize("type_name", TYPES)
def test_types(admin: Sides, type_name: str) -> None:
    relname = f"type{list(TYPES).index(type_name)}"
    for value in TYPES[type_name][1]:
        admin.check(relname, [1], [value])
        admin.check(relname, [1, 2], [value, "v"], ["1", None])
