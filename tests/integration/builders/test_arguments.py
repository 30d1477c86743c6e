"""Python values, wrong arguments, and errors."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable

import pytest

from airflow_dblink.core.builders import statements
from airflow_dblink.core.errors import RemoteError, TransientError, UsageError
from airflow_dblink.core.link.link import Link
from tests.databases import Database
from tests.integration.builders.sides import TYPES, Sides, count_messages

# -- values of Python


def test_values_of_python(admin: Sides) -> None:
    key = uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
    cases: list[tuple[str, object]] = [
        ("bool", True),
        ("int4", 7),
        ("numeric(6,2)", decimal.Decimal("1.50")),
        ("date", datetime.date(2024, 2, 29)),
        ("timestamptz", datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)),
        ("interval", datetime.timedelta(hours=23)),
        ("uuid", key),
        ("bytea", b"\x00\xff\\"),
        ("int[]", [1, 2]),
        ("mood", "sad"),
    ]
    for setting in ("RESET ALL", "SET standard_conforming_strings = off; SET escape_string_warning = off"):
        admin.execute(setting)
        for type_name, value in cases:
            relname = f"type{list(TYPES).index(type_name)}"
            one = statements.build_sql_insert(admin.link, relname, [1], [value], [value])
            many = statements.build_sql_insert_many(admin.link, relname, [1], [[value], (value,)])
            assert many == [one, one]
    relname = f"type{list(TYPES).index('bool')}"
    assert statements.build_sql_delete(admin.link, relname, [1], [True]).endswith(" WHERE k = 't'")


WRONG: list[tuple[str, Callable[[Link], object]]] = [
    ("primary_key_attnums", lambda link: statements.build_sql_delete(link, "foo", "1", ["1"])),  # type: ignore[arg-type]
    ("primary_key_attnums", lambda link: statements.build_sql_delete(link, "foo", ["1"], ["1"])),  # type: ignore[list-item]
    ("primary_key_attnums", lambda link: statements.build_sql_delete(link, "foo", [True], ["1"])),
    ("tgt_pk_att_vals", lambda link: statements.build_sql_delete(link, "foo", [1], "1")),
    ("tgt_pk_att_vals", lambda link: statements.build_sql_delete(link, "foo", [1], {"1"})),  # type: ignore[arg-type]
    ("tgt_pk_att_vals", lambda link: statements.build_sql_delete(link, "foo", [1], ["a\0"])),
    ("tgt_pk_att_vals", lambda link: statements.build_sql_delete(link, "foo", [1], [object()])),
    ("src_pk_att_vals", lambda link: statements.build_sql_insert(link, "foo", [1], None, ["1"])),  # type: ignore[arg-type]
    ("src", lambda link: statements.build_sql_insert_many(link, "foo", [1], 5)),  # type: ignore[arg-type]
    ("each key in src", lambda link: statements.build_sql_insert_many(link, "foo", [1], ["1"])),
    ("each key in tgt", lambda link: statements.build_sql_delete_many(link, "foo", [1], [["1"], 2])),  # type: ignore[list-item]
    ("src", lambda link: statements.build_sql_insert_many(link, "foo", [1], [["1"], ["\0"]])),
    ("src and tgt", lambda link: statements.build_sql_insert_many(link, "foo", [1], [["1"]], [])),
    ("relname", lambda link: statements.get_pkey(link, None)),  # type: ignore[arg-type]
    ("relname", lambda link: statements.get_pkey(link, "foo\0")),
]


@pytest.mark.parametrize(("argument", "call"), WRONG)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    admin: Sides, monkeypatch: pytest.MonkeyPatch, argument: str, call: Callable[[Link], object]
) -> None:
    sent = count_messages(monkeypatch)
    with pytest.raises(UsageError, match=argument):
        call(admin.link)
    assert sent == []


def test_classes_of_errors(admin: Sides) -> None:
    link = admin.link
    for attnums, key, sqlstate in (([9], ["1"], "22023"), ([], [], "22023"), ([1], [], "2202E")):
        with pytest.raises(UsageError) as caught:
            statements.build_sql_insert(link, "foo", attnums, key, key)
        assert caught.value.sqlstate == sqlstate
    for relname, key in (("foo", ["77"]), ("nope", ["1"]), ("foo", ["x"])):
        with pytest.raises(RemoteError):
            statements.build_sql_insert(link, relname, [1], key, key)


def test_unread_results_are_kept(admin: Sides) -> None:
    link = admin.link
    statements.build_sql_delete(link, "foo", [1], ["1"])
    link.pending.send("SELECT 42")
    with pytest.raises(RemoteError, match="another command is already in progress"):
        statements.build_sql_delete(link, "foo", [1], ["1"])
    assert link.pending.result() == [(42,)]
    assert link.pending.result() == []


def test_a_lost_connection_is_told(database: Database, admin: Sides) -> None:
    statements.build_sql_delete(admin.link, "foo", [1], ["1"])
    database.admin("SELECT pg_terminate_backend(%s)", admin.link.pgconn.backend_pid)
    with pytest.raises(TransientError):
        statements.build_sql_delete(admin.link, "foo", [1], ["1"])
