"""What makes a load in parts fail: source, arguments or snapshot aren't those it was planned with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_dblink.core.errors import LoadLostError
from airflow_dblink.core.parts import keeper
from airflow_dblink.core.server.login import connect
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
