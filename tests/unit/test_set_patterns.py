"""Patterns that name tables: as pg_dump reads them."""

from __future__ import annotations

import pytest

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.sets.choose import Choice
from airflow_dblink.core.sets.patterns import Pattern
from airflow_dblink.core.sets.problems import for_each


@pytest.mark.parametrize(
    ("text", "schema", "table", "is_visible", "is_meant"),
    [
        ("sales.*", "sales", "a", False, True),
        ("sales.*", "sale", "a", False, False),
        ("SALES.Orders", "sales", "orders", False, True),
        ('"SALES".orders', "sales", "orders", False, False),
        ('"SALES".orders', "SALES", "orders", False, True),
        ("orders_?", "any", "orders_1", True, True),
        ("orders_?", "any", "orders_1", False, False),
        ("orders_?", "any", "orders_12", True, False),
        ('"a.b"."c*"', "a.b", "c*", False, True),
        ('"a.b"."c*"', "a.b", "cd", False, False),
        ('a."say ""hi"""', "a", 'say "hi"', False, True),
        ('a."b+"', "a", "b+", False, True),
        ("a.Ä", "a", "Ä", False, True),
        ("a.b$", "a", "b$", False, True),
        ("a.*", "a", "two\nlines", False, True),
        ("*.b", "a.x", "b", False, True),
        (' a."B"* ', "a", "Bcd", False, True),
    ],
)
def test_a_pattern_means(text: str, schema: str, table: str, *, is_visible: bool, is_meant: bool) -> None:
    assert Pattern.of("tables", text).matches(schema, table, is_visible=is_visible) is is_meant


@pytest.mark.parametrize(
    "text", ["", "  ", ".", "a.", ".a", "a.b.c", '"a', 'a"', "a\0b", "a.b+", "a.[0-9]", "a|b", None, 7, ["a"]]
)
def test_what_is_no_pattern_is_refused(text: object) -> None:
    with pytest.raises(
        UsageError, match=r"exclude: .*(is no pattern of table names|which stands for nothing else)"
    ):
        Pattern.of("exclude", text)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("a.*",), "tables must be a list of patterns, got str"),
        (({"a": 1},), "tables must be a list"),
        ((["a"], "b"), "exclude must be a list of patterns, got str"),
        ((["a"], (), "s"), "schemas must map names"),
        ((["a"], (), {"s": 1}), "schemas must map names"),
        ((["a"], (), {"s": ""}), "schemas must map names"),
        ((["a"], (), {"s": "a\0"}), "schemas must map names"),
    ],
)
def test_arguments_that_make_no_choice_are_refused(arguments: tuple[object, ...], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Choice.of(*arguments)


def test_what_is_wrong_with_all_tables_is_one_error() -> None:
    def work(number: int) -> int:
        if number % 2:
            raise UsageError(f"{number} is odd", "x", "42601", hint="give others")
        return number

    assert for_each([2, 4], work, str) == [2, 4]
    with pytest.raises(UsageError) as caught:
        for_each([1], work, str)
    assert caught.value.message == "1 is odd"
    with pytest.raises(UsageError) as caught:
        for_each(range(50), work, str)
    assert caught.value.message.startswith("25 of 50 tables can't be used: 1: 1 is odd; 3: 3 is odd; ")
    assert caught.value.message.endswith("; and 5 more tables")
    assert (caught.value.connname, caught.value.sqlstate) == ("x", "42601")
    assert caught.value.hint == "give others"
