"""Some rounds of ``make torture``."""

from __future__ import annotations

from airflow_dblink.embedded.server import servers
from tests.torture import torture


def test_loads_are_exact_under_random_deaths() -> None:
    with servers("source", "warehouse") as pair:
        deaths, copies, wrong = torture(pair, 8, 20261201, say=print)
    assert not wrong
    assert deaths["task killed"] > 3
    assert copies > 0
