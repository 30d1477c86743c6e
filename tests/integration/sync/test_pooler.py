"""A sync through poolers in transaction mode: no transaction asks anything of the one before it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.sync.moments import COUNTED, applied, fill, rows
from tests.pooler import pooler
from tests.stores import MemoryStore, StaleTryError
from tests.syncs import sync

METHODS: list[dict[str, Any]] = [{}, {"method": "reload"}, {"apply": "statements"}, {"lock": "compare"}]


@pytest.mark.parametrize("arguments", METHODS)
def test_both_sides_through_poolers_with_one_session_each(
    source: Database, warehouse: Database, add_connection: AddConnection, arguments: dict[str, Any]
) -> None:
    fill(source, warehouse)
    warehouse.execute(COUNTED)
    pooled: dict[str, Any] = {"conn_type": "dblink", "extra": {"pooling_mode": "transaction"}}
    with (
        pooler(source.server, "transaction", pool_size=1) as there,
        pooler(warehouse.server, "transaction", pool_size=1) as here,
    ):
        add_connection("source", source, port=there, **pooled)
        add_connection("warehouse", warehouse, port=here, **pooled)
        assert sync(plan_only=True, **arguments)["missing"] == 3
        store = MemoryStore(refuse_at=3)
        with pytest.raises(StaleTryError):
            sync(store=store, session_settings={"work_mem": "8MB"}, **arguments)
        store.refuse_at = None
        adopted = sync(store=store, **arguments)
        assert applied(warehouse) == [adopted["xid"]]
        assert sync(**arguments)["changed"] == 0
        assert rows(warehouse) == rows(source)
