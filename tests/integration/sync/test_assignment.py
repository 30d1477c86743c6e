# ruff: noqa: S608 - types and values of these tests only
"""Columns whose types differ: what PostgreSQL assigns is equal afterwards, and found to be equal."""

from __future__ import annotations

import pytest

from tests.databases import Database
from tests.syncs import sync


@pytest.mark.parametrize("method", ["difference", "reload"])
@pytest.mark.parametrize(
    ("given", "value", "wanted"),
    [
        ("boolean", "true", "citext"),
        ("inet", "'10.0.0.1'", "citext"),
        ("char(5)", "'Ab'", "citext"),
        ("citext", "'Ab  '", "char(6)"),
        ("text[]", """'{"a ",b,NULL}'""", "char(3)[]"),
        ("char(2)[]", "'{a,bb}'", "char(4)[]"),
        ("text[]", """'{"a ",b}'""", "char(20)"),
    ],
)
def test_a_type_that_differs_is_assigned_as_postgresql_does_and_then_equal(
    source: Database, warehouse: Database, given: str, value: str, wanted: str, method: str
) -> None:
    for database in (source, warehouse):
        database.admin("CREATE EXTENSION citext")
    source.execute(f"CREATE TABLE item (id int PRIMARY KEY, a {given})")
    source.execute(f"INSERT INTO item VALUES (1, {value}), (2, NULL)")
    warehouse.execute(f"CREATE TABLE item (id int PRIMARY KEY, a {wanted})")
    warehouse.execute(
        f"CREATE TABLE given (a {given}); INSERT INTO given SELECT {value};"
        f" CREATE TABLE expected (a {wanted}); INSERT INTO expected TABLE given"
    )
    assert sync(method=method)["inserted"] == 2
    same = "SELECT ROW(item.a)::record *= ROW(expected.a)::record FROM item, expected WHERE id = 1"
    assert warehouse.rows(same) == [(True,)]
    again = sync(method=method)
    assert (again["missing"], again["changed"], again["extra"]) == (0, 0, 0)
