"""What a table is cut into: each page once, the last range open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Head
from airflow_dblink.core.parts.ranges import Range, piece_of
from airflow_dblink.core.parts.slices import Leaf, Piece, cut

MB = 1024 * 1024


def leaf(oid: int, pages: int, size: int | None = None, *, is_heap: bool = True) -> Leaf:
    size = pages * 8192 if size is None else size
    return Leaf(oid, "public", f"t{oid}", False, is_heap, oid, size, pages, True, False)


@given(
    pages=st.lists(st.integers(0, 5000), min_size=1, max_size=30),
    part_bytes=st.integers(1, 64 * MB),
    min_parts=st.integers(1, 50),
    max_parts=st.integers(1, 60),
)
def test_each_page_is_in_one_part(pages: list[int], part_bytes: int, min_parts: int, max_parts: int) -> None:
    leaves = [leaf(oid, count) for oid, count in enumerate(pages)]
    parts = cut(leaves, part_bytes=part_bytes, min_parts=min_parts, max_parts=max_parts)
    assert 1 <= len(parts) <= max_parts
    assert all(parts)
    pieces = [piece for part in parts for piece in part]
    for each in leaves:
        own = sorted((p for p in pieces if p.leaf == each.oid), key=lambda p: p.first)
        assert own[0].first == 0
        assert own[-1].end is None
        assert [p.end for p in own[:-1]] == [p.first for p in own[1:]]
        assert all(p.end is None or p.first < p.end for p in own)


def test_a_large_table_has_parts_of_the_size_that_was_asked_for() -> None:
    (table,) = [leaf(1, 10 * 1024**3 // 8192)]
    assert len(cut([table])) == 10
    assert len(cut([table], min_parts=16)) == 16
    assert len(cut([table], part_bytes=1024**2)) <= 200


def test_a_small_table_is_not_cut_for_the_sake_of_workers() -> None:
    assert len(cut([leaf(1, 100)], min_parts=16)) == 1


def test_toast_counts() -> None:
    assert len(cut([leaf(1, 1000, 4 * 1024**3)])) == 4


def test_small_partitions_share_a_part_and_large_ones_have_their_own() -> None:
    parts = cut([*(leaf(oid, 100) for oid in range(20)), leaf(99, 400_000)])
    assert [len(part) for part in parts] == [1, 1, 1, 1, 20]


def test_an_empty_table_is_one_part() -> None:
    assert cut([leaf(7, 0)]) == [(Piece(7, 7, 0, None),)]


def test_what_is_no_heap_is_read_as_a_whole() -> None:
    assert cut([leaf(7, 1000, 9 * 1024**3, is_heap=False)]) == [(Piece(7, 7, 0, None),)]


@pytest.mark.parametrize(
    "stored", [None, {}, [], [1], [1, 2, 0], ["1", 2, 0, 3], [1, 2, -1, 3], [1, 2, 0, "x"], [True, 2, 0, 1]]
)
def test_what_is_no_piece_is_refused(stored: object) -> None:
    with pytest.raises(UsageError, match="something else than ranges of pages"):
        Piece.of(stored)


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"column": "id"},
        {"column": 1, "first": None, "end": None},
        {"column": "id", "first": 1, "end": None},
        {"column": "id", "first": None, "end": None, "more": 1},
    ],
)
def test_what_is_no_range_is_refused(stored: object) -> None:
    with pytest.raises(UsageError, match="something else than ranges of values"):
        piece_of(stored)


def test_a_range_is_stored_and_read() -> None:
    for part in (Range("id"), Range("id", "a", "b"), Range("id", None, "1"), Piece(1, 2)):
        assert piece_of(part.stored) == part


def test_a_piece_is_stored_and_read() -> None:
    for piece in (Piece(1, 2, 3, 4), Piece(1, 2)):
        assert Piece.of(piece.stored) == piece


@pytest.mark.parametrize(
    "change",
    [
        {"snapshot": "'; DROP TABLE x"},
        {"snapshot": 1},
        {"parts": "1"},
        {"shadow": -1},
        {"definition": None},
        {"route": 1},
        {"columns": "id"},
        {"units": ["1"]},
        {"rows": "1"},
        {"files": [["1", 2]]},
        {"files": {"1": 2}},
    ],
)
def test_what_is_no_head_is_refused(change: dict[str, object]) -> None:
    facts = {
        **{"snapshot": "0-A-1", "taken_at": 1, "parts": 1, "shadow": 1, "destination": 1, "planned_by": 1},
        **{
            "run": "a",
            "definition": "b" * 32,
            "route": "c" * 32,
            "columns": ["id"],
            "units": [1],
            "keeper": "0" * 16,
        },
    }
    assert Head.of(facts).parts == 1
    with pytest.raises(UsageError, match="the ledger of the load"):
        Head.of({**facts, **change})


@pytest.mark.parametrize("text", ["", "xyz", "0" * 15, "A" * 16, "0" * 17])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="16 hexadecimal digits"):
        LoadKey(text)


def test_a_key_in_halves_is_what_postgresql_makes_of_it() -> None:
    key = LoadKey("ffffffff80000000")
    assert (key.number, key.high, key.low) == (-(2**31), 2**32 - 1, 2**31)
    assert (key.params["high_int"], key.params["low_int"]) == (-1, -(2**31))
