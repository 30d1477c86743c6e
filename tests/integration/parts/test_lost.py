"""What makes a load in parts fail: source, arguments or snapshot aren't those it was planned with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_dblink.core.errors import LoadLostError
from airflow_dblink.core.parts import keeper
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.transfer.plan import Columns
from tests.databases import Database
from tests.parts import FILL, IDLE_S, ITEM, Load, load_of


@pytest.fixture
def load(source: Database, warehouse: Database) -> Iterator[Load]:
    """Give a load of 5,000 rows that doesn't lock the source table."""
    source.execute(f"{ITEM}; {FILL}")
    warehouse.execute(ITEM)
    with load_of(source, warehouse, lock=False) as load:
        yield load


def test_a_table_that_was_truncated_between_snapshot_and_plan_is_found(load: Load, source: Database) -> None:
    """Its new file is empty in the snapshot, and would be copied without a word."""
    keeper.begin(connect(load.source), "source", load.key, [], deadline_s=600, idle_s=IDLE_S)
    source.execute(f"TRUNCATE item; {FILL}")
    load.begin()
    with pytest.raises(LoadLostError, match="was truncated, rewritten"):
        load.copy(1)


def test_parts_do_not_mix_when_the_source_is_altered(load: Load, source: Database) -> None:
    load.begin()
    load.copy(1)
    source.execute("ALTER TABLE item RENAME at TO old_at; ALTER TABLE item ADD COLUMN at timestamptz")
    with pytest.raises(LoadLostError, match="would be copied otherwise than the load was planned"):
        load.copy(2)


@pytest.mark.parametrize("columns", [["id"], {"id": "id", "at": "at"}])
def test_parts_do_not_mix_when_the_arguments_are_others(load: Load, columns: Columns) -> None:
    load.begin()
    load.copy(1)
    with pytest.raises(LoadLostError, match="would be copied otherwise than the load was planned"):
        load.but(columns=columns).copy(2)
    assert load.copy(2, 2).rows > 0


@pytest.mark.parametrize(
    "change", ["ALTER TABLE item DROP COLUMN at", "ALTER TABLE item RENAME TO other", "DROP TABLE child"]
)
def test_a_table_or_column_that_is_gone_is_not_waited_for(load: Load, source: Database, change: str) -> None:
    source.execute("CREATE TABLE child () INHERITS (item); INSERT INTO child VALUES (0)")
    parts = load.begin().parts
    source.execute(change)
    with pytest.raises(LoadLostError, match=r"is gone since the load was planned: .* does not exist"):
        load.copy(parts)  # the small table is in the last one
