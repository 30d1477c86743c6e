"""A load in parts: all rows of one snapshot, each once, whatever happens to the source and to the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.errors import (
    LoadLostError,
    NoLoadError,
    TransientError,
    UsageError,
    VerificationError,
)
from airflow_dblink.core.parts import keeper
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Done
from tests.databases import Database
from tests.oracle import wait_until
from tests.parts import FILL, ITEM, Load, killed_at_each_wait, load_of, loaded

ROWS = "SELECT * FROM item ORDER BY 1"
REWRITES = [
    "VACUUM FULL item",
    "TRUNCATE item",
    "CLUSTER item USING item_pkey",
    "ALTER TABLE item ALTER COLUMN id TYPE bigint",
]


@pytest.fixture
def load(source: Database, warehouse: Database) -> Iterator[Load]:
    """Give a load of 5,000 rows in about 20 parts."""
    source.execute(f"{ITEM}; {FILL}")
    warehouse.execute(ITEM)
    with load_of(source, warehouse) as load:
        yield load


def copy_all(load: Load, parts: int, try_number: int = 1) -> list[Done]:
    return [load.copy(part, try_number) for part in range(1, parts + 1)]


def keepers(source: Database) -> int:
    return len([session for session in source.sessions() if "dblink_keeper" in session[1]])


def tables(database: Database) -> list[str]:
    found = database.rows("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'dblink_load%%'")
    return sorted(name for (name,) in found)


# -- the rows


def test_all_rows_of_the_snapshot_come_while_the_source_changes(
    load: Load, source: Database, warehouse: Database
) -> None:
    wanted = source.rows(ROWS)
    parts = load.begin().parts
    assert 5 < parts < 20
    changes = [
        "UPDATE item SET name = 'other' WHERE id % 3 = 0",
        "UPDATE item SET at = now()",
        "DELETE FROM item WHERE id % 5 = 0",
        "VACUUM item",
        "INSERT INTO item SELECT i, repeat('new', 50) FROM generate_series(6000, 9000) AS i",
        "UPDATE item SET id = -id",
        "VACUUM item",
    ]
    done = []
    for part in range(1, parts + 1):
        if part <= len(changes):
            source.execute(changes[part - 1])
        done.append(load.copy(part))
    total = load.verify(parts)
    assert (total.rows, total.parts) == (5000, parts)
    assert sum(each.rows for each in done) == 5000
    assert max(each.rows for each in done) < 3 * 5000 / parts
    assert loaded(warehouse, load) == wanted
    assert warehouse.rows(ROWS) == []
    wait_until(lambda: keepers(source) == 0)


def test_parts_may_be_copied_in_any_order(load: Load, source: Database, warehouse: Database) -> None:
    parts = load.begin().parts
    for part in reversed(range(1, parts + 1)):
        load.copy(part)
    load.verify(parts)
    assert loaded(warehouse, load) == source.rows(ROWS)


def test_an_empty_table_is_one_part_without_rows(load: Load, source: Database) -> None:
    source.execute("TRUNCATE item")
    assert load.begin().parts == 1
    assert load.copy(1).rows == 0
    assert load.verify(1).rows == 0


def test_columns_are_named_and_generated_ones_made_anew(
    load: Load, source: Database, warehouse: Database
) -> None:
    source.execute("ALTER TABLE item ADD COLUMN twice int GENERATED ALWAYS AS (id * 2) STORED")
    warehouse.execute(
        """DROP TABLE item;
        CREATE TABLE item (label text, id bigint, more int GENERATED ALWAYS AS (id * 3) STORED)"""
    )
    renamed = load.but(columns={"id": "id", "name": "label"})
    parts = renamed.begin().parts
    copy_all(renamed, parts)
    renamed.verify(parts)
    query = "SELECT name, id::bigint, id * 3 FROM item ORDER BY 1"
    assert loaded(warehouse, load) == source.rows(query)


PARTITIONS = """
    ALTER TABLE item RENAME TO old;
    CREATE TABLE item (id int, name text, at timestamptz) PARTITION BY RANGE (id);
    CREATE TABLE part_a PARTITION OF item FOR VALUES FROM (0) TO (3000);
    CREATE TABLE part_b (at timestamptz, gone int, name text, id int);
    ALTER TABLE part_b DROP COLUMN gone;
    ALTER TABLE item ATTACH PARTITION part_b FOR VALUES FROM (3000) TO (9000);
    CREATE TABLE part_c PARTITION OF item DEFAULT;
    INSERT INTO item SELECT * FROM old; INSERT INTO item VALUES (-1, 'c')
"""
CHILDREN = """
    CREATE TABLE part_a () INHERITS (item); CREATE TABLE part_b () INHERITS (item);
    WITH gone AS (DELETE FROM item WHERE id > 1000 RETURNING *) INSERT INTO part_a SELECT * FROM gone;
    INSERT INTO part_b VALUES (-1, 'b')
"""


@pytest.mark.parametrize("setup", [PARTITIONS, CHILDREN])
def test_partitions_and_children_are_parts(
    load: Load, source: Database, warehouse: Database, setup: str
) -> None:
    source.execute(setup)
    wanted = source.rows(ROWS)
    parts = load.begin().parts
    copy_all(load, parts)
    assert load.verify(parts).rows == 5001
    assert loaded(warehouse, load) == wanted


# -- tries


def test_a_part_that_is_done_is_not_copied_again(load: Load, source: Database, warehouse: Database) -> None:
    parts = load.begin().parts
    first = copy_all(load, parts)
    second = copy_all(load, parts, try_number=2)
    assert [done.rows for done in first] == [done.rows for done in second]
    assert load.verify(parts).tries == parts
    assert loaded(warehouse, load) == source.rows(ROWS)


def test_a_try_that_was_superseded_never_commits(load: Load, source: Database, warehouse: Database) -> None:
    parts = load.begin().parts
    second: list[Done] = []

    def meanwhile(*_: object) -> None:
        if not second:
            second.append(load.copy(1, 2))

    with pytest.raises(TransientError, match="another try has claimed the part"):
        load.copy(1, 1, meanwhile)
    assert second[0].tries == 2
    assert load.copy(1, 3) == second[0]
    for part in range(2, parts + 1):
        load.copy(part)
    load.verify(parts)
    assert loaded(warehouse, load) == source.rows(ROWS)


def test_a_try_that_comes_late_copies_nothing(load: Load) -> None:
    load.begin()

    def fails(*_: object) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        load.copy(1, 2, fails)
    with pytest.raises(UsageError, match="part 1 can't be copied by try 1: try 2 has claimed it"):
        load.copy(1, 1)
    with pytest.raises(UsageError, match="part 999 can't be copied by try 1: the load has no such part"):
        load.copy(999, 1)
    assert load.copy(1, 3).rows > 0


def test_copying_is_exact_wherever_it_is_killed(load: Load, source: Database, warehouse: Database) -> None:
    parts = load.begin().parts
    assert killed_at_each_wait(lambda try_number: load.copy(1, try_number)) > 20
    for part in range(2, parts + 1):
        load.copy(part)
    load.verify(parts)
    assert loaded(warehouse, load) == source.rows(ROWS)


def test_beginning_is_exact_wherever_it_is_killed(load: Load, source: Database, warehouse: Database) -> None:
    assert killed_at_each_wait(lambda try_number: load.begin(try_number)) > 20
    wait_until(lambda: keepers(source) == 1)
    parts = load.begin(99).parts
    copy_all(load, parts)
    load.verify(parts)
    assert loaded(warehouse, load) == source.rows(ROWS)
    assert tables(warehouse) == sorted([load.key.shadow, load.key.ledger])


def test_beginning_anew_is_exact_wherever_it_is_killed(
    load: Load, source: Database, warehouse: Database
) -> None:
    first = load.begin()
    load.copy(1)
    source.execute("DELETE FROM item WHERE id > 4000")
    assert killed_at_each_wait(lambda n: load.begin(1 + n, is_anew=True)) > 20
    head = load.begin(99)
    assert head.snapshot != first.snapshot
    copy_all(load, head.parts)
    assert load.verify(head.parts).rows == 4000
    assert loaded(warehouse, load) == source.rows(ROWS)


def test_a_second_try_goes_on_with_what_the_first_has_begun(load: Load, source: Database) -> None:
    first = load.begin()
    load.copy(1)
    assert load.begin(2) == first
    wait_until(lambda: keepers(source) == 1)
    assert load.copy(1, 2).tries == 1


def test_an_earlier_try_that_wakes_up_does_not_begin_again(load: Load) -> None:
    head = load.begin(2)
    for is_anew in (False, True):
        with pytest.raises(UsageError, match=f"try 2 has planned load {load.key.text} meanwhile"):
            load.begin(1, is_anew=is_anew)
    assert load.begin(3) == head


# -- what happens to the source


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_table_that_is_rewritten_between_parts_is_found(
    load: Load, source: Database, warehouse: Database, rewrite: str
) -> None:
    loose = load.but(lock=False)
    parts = loose.begin().parts
    loose.copy(1)
    source.execute(rewrite)
    for part in range(2, parts + 1):
        with pytest.raises(LoadLostError, match=r"was truncated, rewritten|copied otherwise than"):
            loose.copy(part)
    with pytest.raises(VerificationError, match=f"of {parts} parts {parts - 1} are not copied: 2, 3, 4"):
        loose.verify(parts)
    assert warehouse.rows(ROWS) == []


def test_another_table_of_the_same_name_is_found(load: Load, source: Database) -> None:
    loose = load.but(lock=False)
    loose.begin()
    source.execute("ALTER TABLE item RENAME TO old; CREATE TABLE item (LIKE old)")
    with pytest.raises(LoadLostError, match=r"since the load was planned|copied otherwise than"):
        loose.copy(1)


def test_a_lost_snapshot_stops_the_load_and_it_begins_anew(
    load: Load, source: Database, warehouse: Database
) -> None:
    parts = load.begin().parts
    load.copy(1)
    load.end_keeper()
    with pytest.raises(LoadLostError, match="clear the task that plans the load"):
        load.copy(2)
    with pytest.raises(VerificationError):
        load.verify(parts)
    source.execute("DELETE FROM item WHERE id > 4000")
    parts = load.begin(2, is_anew=True).parts
    copy_all(load, parts)
    assert load.verify(parts).rows == 4000
    assert loaded(warehouse, load) == source.rows(ROWS)


def test_a_try_that_loses_leaves_the_keeper_to_the_one_that_wins(
    load: Load, source: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = keeper.use
    heads: list[Any] = []

    def late(*args: Any) -> None:
        if not heads:
            heads.append(None)
            heads[:] = [load.begin(2)]  # while the first try stands still
        use(*args)

    monkeypatch.setattr(keeper, "use", late)
    with pytest.raises(UsageError, match="try 2 has planned load"):
        load.begin(1)
    copy_all(load, heads[0].parts)
    load.verify(heads[0].parts)
    assert loaded(warehouse, load) == source.rows(ROWS)


# -- what is found in the end


def a_row_more(load: Load) -> str:
    return f'INSERT INTO "{load.key.shadow}" VALUES (-1)'  # noqa: S608 - hexadecimal


def test_a_row_more_in_the_shadow_is_found(load: Load, warehouse: Database) -> None:
    parts = load.begin().parts
    copy_all(load, parts)
    warehouse.execute(a_row_more(load))
    with pytest.raises(VerificationError, match=r"have brought 5000 rows, and .* has 5001"):
        load.verify(parts)
    assert load.keeper() is not None


def test_another_number_of_parts_is_found(load: Load) -> None:
    parts = load.begin().parts
    copy_all(load, parts)
    with pytest.raises(VerificationError, match=f"{parts} parts of item, and {parts + 1} were to be copied"):
        load.verify(parts + 1)


@pytest.mark.parametrize("step", ["verify", "begin"])
def test_a_try_that_hangs_is_ended(load: Load, warehouse: Database, step: str) -> None:
    parts = load.begin().parts
    copy_all(load, parts)
    with psycopg.connect(warehouse.conninfo) as hangs:
        hangs.execute(a_row_more(load).encode())
        if step == "verify":
            assert load.verify(parts).rows == 5000
        else:
            assert load.begin(2, is_anew=True).parts == parts
        with pytest.raises(psycopg.OperationalError):
            hangs.execute("COMMIT")


def test_a_load_that_has_ended_has_nothing_to_load_into(load: Load, warehouse: Database) -> None:
    parts = load.begin().parts
    warehouse.execute(f'DROP TABLE "{load.key.shadow}", "{load.key.ledger}"')
    for step in (load.copy, load.verify):
        with pytest.raises(NoLoadError, match="there is nothing to load into"):
            step(parts)


# -- what is refused before a row moves


def refused(load: Load, *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load.begin()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    wait_until(lambda: load.keeper() is None)


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ("ALTER TABLE item RENAME TO old; CREATE VIEW item AS TABLE old", ["a view", "no pages"]),
        (
            """ALTER TABLE item RENAME TO old; CREATE TABLE item (LIKE old) PARTITION BY LIST (id);
            CREATE TABLE part_a PARTITION OF item DEFAULT; ALTER TABLE item ENABLE ROW LEVEL SECURITY;
            ALTER TABLE item FORCE ROW LEVEL SECURITY""",
            ["row-level security", "public.part_a"],
        ),
        (
            """ALTER TABLE item RENAME TO old; CREATE TABLE item (LIKE old) PARTITION BY LIST (id);
            CREATE TABLE part_a PARTITION OF item DEFAULT; ALTER TABLE part_a ENABLE ROW LEVEL SECURITY;
            ALTER TABLE part_a FORCE ROW LEVEL SECURITY""",
            ["row-level security", "public.part_a"],
        ),
        ("DROP TABLE item", ['relation "item" does not exist']),
        ("REVOKE SELECT ON item FROM CURRENT_USER", ["no SELECT on public.item"]),
    ],
)
def test_a_source_that_has_no_parts_is_refused(
    load: Load, source: Database, setup: str, words: list[str]
) -> None:
    source.execute(setup)
    refused(load.but(lock=False), "'source'", *words)


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ("DROP TABLE item; CREATE TABLE item (id int) PARTITION BY LIST (id)", ["a partitioned table"]),
        ("CREATE TABLE child () INHERITS (item)", ["child inherits from it"]),
        ("DROP TABLE item", ['relation "item" does not exist']),
        ("ALTER TABLE item DROP COLUMN name", ["'name'"]),
    ],
)
def test_a_destination_that_can_not_be_replaced_is_refused(
    load: Load, warehouse: Database, setup: str, words: list[str]
) -> None:
    warehouse.execute(setup)
    refused(load, "'warehouse'", *words)
    assert tables(warehouse) == []


def test_a_strangers_ledger_is_not_believed(load: Load, warehouse: Database) -> None:
    warehouse.admin(f'CREATE TABLE public."{load.key.ledger}" (part int, facts jsonb)')
    refused(load, "'warehouse'", "belongs to role", load.key.ledger)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"part_bytes": 0}, "part_bytes must be a whole number"),
        ({"max_parts": True}, "max_parts must be a whole number"),
        ({"max_parts": 5000}, "max_parts must be at most 1000"),
        ({"idle_s": 0.0}, "idle must be longer than nothing"),
        ({"deadline_s": float("nan")}, "deadline must be longer than nothing"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(load: Load, spec: dict[str, Any], message: str) -> None:
    refused(load.but(**spec), message)


def test_keys_tell_loads_apart() -> None:
    assert LoadKey.of({"a": 1}) != LoadKey.of({"a": 2})
