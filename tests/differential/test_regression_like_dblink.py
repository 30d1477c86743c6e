"""What contrib/dblink's own regression test goes through, asked of both sides.

Not here: what a column definition list does (we have none), foreign servers (here that's an Airflow
connection) and LDAP. Roles are in ``test_roles_like_dblink.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_dblink.core.errors import UsageError
from airflow_dblink.hooks.dblink import DblinkHook
from tests.oracle import ONE, TAG, Call, Dblinks, Ours, outcome, same

FOO = "a int, b text, c text[]"
ALL = "SELECT * FROM foo"
LAST = "SELECT * FROM foo WHERE f1 > 7"

TABLES = """
CREATE TABLE foo (f1 int, f2 text, f3 text[], PRIMARY KEY (f1, f2));
INSERT INTO foo SELECT i, chr(97 + i), ARRAY['a' || i, 'b' || i, 'c' || i] FROM generate_series(0, 9) i;
CREATE TABLE foo_1 (f1 int, f2 text, f3 text[], PRIMARY KEY (f1, f2) INCLUDE (f3));
INSERT INTO foo_1 TABLE foo;
CREATE SCHEMA "MySchema";
CREATE TABLE "MySchema"."Foo" (f1 int, f2 text, f3 text[], PRIMARY KEY (f1, f2));
INSERT INTO "MySchema"."Foo" VALUES (0, 'a', '{a0,b0,c0}');
CREATE TABLE test_dropped (
    col1 int NOT NULL DEFAULT 111,
    id serial PRIMARY KEY,
    col2 int NOT NULL DEFAULT 112,
    col2b int NOT NULL DEFAULT 113
);
INSERT INTO test_dropped VALUES (DEFAULT);
ALTER TABLE test_dropped
    DROP COLUMN col1,
    DROP COLUMN col2,
    ADD COLUMN col3 varchar(10) NOT NULL DEFAULT 'foo',
    ADD COLUMN col4 int NOT NULL DEFAULT 42
"""


def _data(link: str | None) -> list[Call]:
    """Return how rows are put in, changed and deleted."""
    return [
        ("exec", """INSERT INTO foo VALUES (11, 'l', '{"a11","b11","c11"}')""", link),
        ("query", ALL, FOO, link),
        ("query", "SELECT * FROM foobar", FOO, link, False),
        ("exec", "UPDATE foo SET f3[2] = 'b99' WHERE f1 = 11", link),
        ("query", "SELECT * FROM foo WHERE f1 = 11", FOO, link),
        ("exec", "UPDATE foobar SET f3[2] = 'b99' WHERE f1 = 11", link, False),
        ("exec", "DELETE FROM foo WHERE f1 = 11", link),
        ("query", "SELECT * FROM foo WHERE f1 = 11", FOO, link),
    ]


def _cursor(link: str | None) -> list[Call]:
    """Return how a cursor is read to its end, and another that doesn't exist."""
    return [
        ("open", "rmt_foo_cursor", ALL, link),
        ("fetch", "rmt_foo_cursor", 4, FOO, link),
        ("fetch", "rmt_foo_cursor", 4, FOO, link),
        ("fetch", "rmt_foo_cursor", 4, FOO, link),
        ("fetch", "rmt_foobar_cursor", 4, FOO, link, False),
        ("exec", "ABORT", link),
        ("close", "rmt_foobar_cursor", link, False),
        ("fetch", "rmt_foo_cursor", 4, FOO, link),
        ("fetch", "rmt_foo_cursor", 4, FOO, link, False),
    ]


DECLARE = ("exec", "DECLARE xact_test CURSOR FOR SELECT * FROM foo", "myconn")
RELATIONS = ("foo", "foo_1", '"MySchema"."Foo"')

ROWS = "SELECT a::timestamptz FROM (VALUES ('12.03.2013 00:00:00+00'), ('13.03.2013 07:08:09+00')) t (a)"
STYLED: list[Call] = [
    call
    for text in (ROWS, ROWS + " LIMIT 1")
    for call in (
        ("query", text, "a timestamptz", "myconn"),
        ("send", text, "myconn"),
        ("result", "a timestamptz", "myconn"),
        ("result", "a timestamptz", "myconn"),
    )
]

SCENARIOS: dict[str, list[Call]] = {
    "builders": [
        ("connect", "x"),
        *[("pkey", relation) for relation in RELATIONS],
        *[("build", "insert", relation, [1, 2], ["0", "a"], ["99", "xyz"]) for relation in RELATIONS],
        *[("build", "update", relation, [1, 2], ["0", "a"], ["99", "xyz"]) for relation in RELATIONS],
        *[("build", "delete", relation, [1, 2], ["0", "a"]) for relation in RELATIONS],
        ("build", "insert", "foo", [1, 2, 3, 4], ["0", "a", "{a0,b0,c0}"], ["99", "xyz", "{za0,zb0,zc0}"]),
        ("build", "update", "foo", [1, 2, 3, 4], ["0", "a", "{a0,b0,c0}"], ["99", "xyz", "{za0,zb0,zc0}"]),
        ("build", "delete", "foo", [1, 2, 3, 4], ["0", "a", "{a0,b0,c0}"]),
        # f3 is in the key's index, but not in the key.
        ("build", "insert", "foo_1", [1, 2, 3, 4], ["0", "a", "{a0,b0,c0}"], ["99", "xyz", "{za0,zb0,zc0}"]),
        ("build", "update", "foo_1", [1, 2, 3, 4], ["0", "a", "{a0,b0,c0}"], ["99", "xyz", "{za0,zb0,zc0}"]),
        ("build", "delete", "foo_1", [1, 2, 3, 4], ["0", "a", "{a0,b0,c0}"]),
    ],
    "dropped columns": [
        ("connect", "x"),
        ("build", "insert", "test_dropped", [1], ["1"], ["2"]),
        ("build", "update", "test_dropped", [1], ["1"], ["2"]),
        ("build", "delete", "test_dropped", [1], ["2"]),
    ],
    "for one call, and no connection": [
        ("query_once", LAST, FOO),
        ("query", ALL, FOO, None),
        ("exec_once", "INSERT INTO foo VALUES (10, 'k', '{a10,b10,c10}')"),
        ("query_once", LAST, FOO),
    ],
    "the unnamed connection": [
        ("connect", None),
        ("query", LAST, FOO, None),
        ("open", "rmt_foo_cursor", "SELECT * FROM foobar", None, False),
        ("exec", "ABORT", None),
        ("open", "rmt_foo_cursor", ALL, None),
        ("close", "rmt_foo_cursor", None, False),
        *_cursor(None),
        ("disconnect", None),
        ("query", ALL, FOO, None),
        ("connect", None),
        *_data(None),
        ("disconnect", None),
    ],
    "named connections": [
        ("connect", "myconn"),
        ("query", LAST, FOO, "myconn"),
        ("query", "SELECT * FROM foobar", FOO, "myconn", False),
        ("connect", "myconn"),
        ("connect", "myconn2"),
        ("query", LAST, FOO, "myconn2"),
        ("disconnect", "myconn2"),
        ("open", "rmt_foo_cursor", "SELECT * FROM foobar", "myconn", False),
        ("exec", "ABORT", "myconn"),
        *_cursor("myconn"),
        ("disconnect", "myconn"),
        ("connect", "myconn"),
        *_data("myconn"),
        ("disconnect", "myconn"),
        ("disconnect", "myconn"),
    ],
    "a cursor in a transaction of the user's": [
        ("connect", "myconn"),
        ("exec", "BEGIN", "myconn"),
        ("open", "rmt_foo_cursor", ALL, "myconn"),
        ("close", "rmt_foo_cursor", "myconn"),
        DECLARE,
        ("exec", "COMMIT", "myconn"),
    ],
    "an automatic transaction of two cursors": [
        ("connect", "myconn"),
        ("open", "rmt_foo_cursor", ALL, "myconn"),
        ("open", "rmt_foo_cursor2", ALL, "myconn"),
        ("close", "rmt_foo_cursor2", "myconn"),
        DECLARE,
        ("close", "rmt_foo_cursor", "myconn"),
        DECLARE,
        ("exec", "ABORT", "myconn"),
        *_cursor("myconn"),
    ],
    "an error thrown by fetch": [
        ("connect", "myconn"),
        ("open", "rmt_foo_cursor", ALL, "myconn"),
        ("fetch", "rmt_foobar_cursor", 4, FOO, "myconn"),
        ("message", "myconn"),
        ("exec", "ABORT", "myconn"),
        ("fetch", "rmt_foo_cursor", 4, FOO, "myconn"),
    ],
    "results after the last one": [
        ("connect", "dtest1"),
        ("send", "SELECT * FROM foo WHERE f1 < 3", "dtest1"),
        ("result", FOO, "dtest1"),
        ("result", FOO, "dtest1"),
        ("result", FOO, "dtest1"),
        ("send", "SELECT * FROM foo WHERE f1 < 2", "dtest1"),
        ("result", FOO, "dtest1"),
        ("result", FOO, "dtest1"),
    ],
    "three asynchronous queries": [
        ("connect", "dtest1"),
        ("send", "SELECT * FROM foo WHERE f1 < 3", "dtest1"),
        ("connect", "dtest2"),
        ("send", "SELECT * FROM foo WHERE f1 > 2 AND f1 < 7", "dtest2"),
        ("connect", "dtest3"),
        ("send", "SELECT * FROM foo WHERE f1 > 6", "dtest3"),
        ("result", FOO, "dtest1"),
        ("result", FOO, "dtest2"),
        ("result", FOO, "dtest3"),
        ("connections",),
        ("is_busy", "dtest1"),
        ("disconnect", "dtest1"),
        ("disconnect", "dtest2"),
        ("disconnect", "dtest3"),
    ],
    "cancel": [
        ("connect", "dtest1"),
        ("send", "SELECT * FROM foo WHERE f1 < 3", "dtest1"),
        ("cancel", "dtest1"),
        ("message", "dtest1"),
        ("disconnect", "dtest1"),
    ],
    "connecting again and again": [
        ("connect", None),
        ("connect", None),
        ("disconnect", None),
        ("disconnect", None),
    ],
    "notifications": [
        ("connect", None),
        ("exec", "LISTEN regression", None),
        ("exec", "LISTEN foobar", None),
        ("exec", "NOTIFY regression", None),
        ("exec", "NOTIFY foobar", None),
        ("get_notify", None),
        ("get_notify", None),
        ("disconnect", None),
    ],
    "styles of dates and intervals that change": [
        ("connect", "myconn"),
        ("exec", "SET timezone = 'UTC'; SET datestyle = GERMAN, DMY", "myconn"),
        *STYLED,
        ("exec", "SET intervalstyle = sql_standard", "myconn"),
        ("query", "SELECT '-1 2:03:04'::interval", "i interval", "myconn"),
        ("exec", "SET datestyle = ISO, MDY", "myconn"),
        ("query", "SELECT '03.12.2013 00:00:00+00'::timestamptz", "a timestamptz", "myconn"),
        ("exec", "SET datestyle = GERMAN, DMY", "myconn"),
        ("query", "SELECT '12.03.2013 00:00:00+00'::timestamptz", "a timestamptz", "myconn"),
    ],
    "a string with several commands": [
        ("connect", "myconn"),
        ("exec", "SET datestyle = GERMAN, DMY;", "myconn"),
        ("query", "SET datestyle = ISO; SELECT 1;", ONE, "myconn"),
        ("query", "SELECT 1; SET datestyle = ISO;", TAG, "myconn"),
    ],
}


@pytest.fixture(autouse=True)
def tables(ours: Ours, dblinks: Dblinks) -> None:
    for side in (ours, dblinks):
        side.database.execute(TABLES)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_the_same_as_dblink(scenario: list[Call], ours: Ours, dblinks: Dblinks) -> None:
    same(scenario, ours, dblinks)
    foo = "SELECT * FROM foo ORDER BY f1"
    assert ours.database.rows(foo) == dblinks.database.rows(foo)


#: Calls of the hook, and the extension's, with the name of no link: dblink and dblink_exec take it for a
#: connection string, the others refuse it.
NO_LINK: dict[str, tuple[Callable[[DblinkHook], Any], Call]] = {
    "query": (lambda hook: hook.query("SELECT 1", connname="nope"), ("query", "SELECT 1", ONE, "nope")),
    "exec": (lambda hook: hook.exec("SELECT 1", connname="nope"), ("exec", "SELECT 1", "nope")),
    "open": (lambda hook: hook.open("c", "SELECT 1", connname="nope"), ("open", "c", "SELECT 1", "nope")),
    "fetch": (lambda hook: hook.fetch("c", 1, connname="nope"), ("fetch", "c", 1, ONE, "nope")),
    "close": (lambda hook: hook.close("c", connname="nope"), ("close", "c", "nope")),
    "send_query": (lambda hook: hook.send_query("SELECT 1", connname="nope"), ("send", "SELECT 1", "nope")),
    "get_result": (lambda hook: hook.get_result("nope"), ("result", ONE, "nope")),
    "cancel_query": (lambda hook: hook.cancel_query("nope"), ("cancel", "nope")),
    "error_message": (lambda hook: hook.error_message("nope"), ("message", "nope")),
    "disconnect": (lambda hook: hook.disconnect("nope"), ("disconnect", "nope")),
}


@pytest.mark.parametrize("function", NO_LINK)
def test_a_name_that_is_no_link_through_the_hook(function: str, dblinks: Dblinks) -> None:
    through_hook, call = NO_LINK[function]
    theirs = outcome(dblinks, call)

    with DblinkHook() as hook, pytest.raises(UsageError) as error:
        through_hook(hook)

    assert (error.value.sqlstate, error.value.message) == theirs[:2]
