"""The how-to's step by step, run as often as its Dag would be: a second run loads the same rows again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.databases import Database
from tests.integration.tasks import context

PAGE = Path(__file__).parents[3] / "docs/how-to/jobs.md"


def test_a_second_run_of_the_how_tos_load_succeeds(
    source: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_DB", source.uri)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE_DB", warehouse.uri)
    source.execute("CREATE TABLE orders (id bigint, day date, status text)")
    source.execute("INSERT INTO orders VALUES (1, '2026-01-01', 'paid'), (2, '2026-01-02', 'new')")
    names: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(block, PAGE.name, "exec"), names)  # noqa: S102 - what the page says
    loaded = []
    for _ in range(2):
        names["make_table"].execute(context())
        names["load"].handle = names["load"].given_handle = names["send"].execute(context())
        names["load"].execute(context())
        loaded.append(warehouse.rows("SELECT * FROM orders_by_status ORDER BY status"))
        source.execute("UPDATE orders SET status = 'paid'")
    assert loaded == [[("new", 1), ("paid", 1)], [("new", 1), ("paid", 2)]]
