"""A load in parts from an empty source, into a table whose rows policies hide from its owner."""

from __future__ import annotations

import pytest

from airflow_dblink.core.errors import UsageError
from tests.databases import Database
from tests.parts import ITEM, load_of


def test_rows_that_policies_hide_from_their_owner_are_not_lost_to_an_empty_source(
    source: Database, warehouse: Database
) -> None:
    source.execute(ITEM)
    warehouse.execute(ITEM)
    warehouse.execute("INSERT INTO item VALUES (0, 'before')")
    warehouse.execute("ALTER TABLE item ENABLE ROW LEVEL SECURITY; ALTER TABLE item FORCE ROW LEVEL SECURITY")
    warehouse.execute("CREATE POLICY nobody ON item USING (false)")
    with load_of(source, warehouse) as load:
        parts = load.begin().parts
        for part in range(1, parts + 1):
            load.copy(part)
        load.verify(parts)
        load.index()
        with pytest.raises(UsageError, match="may have rows, which policies hide from this role"):
            load.swap()
        assert warehouse.admin("SELECT id, name FROM item") == [(0, "before")]
        assert load.swap(allow_empty_source=True)["rows"] == 0
    assert warehouse.admin("SELECT id, name FROM item") == []
