"""Limits and pauses of a sync, while rows come and before it begins."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.exceptions import DblinkTaskKilledError
from airflow_dblink.operators.common.progress import Progress
from tests.databases import Database
from tests.integration.sync.moments import fill, rows
from tests.integration.tasks import context
from tests.syncs import sync, sync_operator
from tests.transfers import meanwhile

Both = tuple[Database, Database]
WIDE = "UPDATE item SET s = repeat('x', 1000)"  # 3 MB
OFTEN = timedelta(milliseconds=1)
# While some rows have come, and until the test says that it is enough.
IN_THE_MIDDLE = (
    "SELECT stop AND EXISTS (SELECT FROM pg_stat_progress_copy"
    " WHERE command = 'COPY FROM' AND bytes_processed >= 100000) FROM hold"
)


@pytest.fixture
def both(source: Database, warehouse: Database) -> Both:
    """Give both databases with table item, which differ, and the destination a table that says stop."""
    fill(source, warehouse)
    warehouse.execute("CREATE TABLE hold (stop bool); INSERT INTO hold VALUES (true)")
    return source, warehouse


@pytest.mark.parametrize("method", ["auto", "difference", "reload", "replace"])
def test_a_limit_holds_for_all_ways_in_which_rows_come(both: Both, method: str) -> None:
    source, warehouse = both
    source.execute(WIDE)
    if method == "auto":
        warehouse.execute("TRUNCATE item")  # the first load
    result = sync(method=method, max_mb_per_s=3, max_delete_fraction=None)
    # Groups are compared without a limit, and each stream's first 256 kB don't wait.
    assert result["bytes"] > 3_000_000
    assert result["seconds"] >= (3_000_000 - 256 * 1024) / 3_000_000
    assert rows(warehouse) == rows(source)


def test_a_pause_before_a_sync_lets_nothing_begin(
    both: Both, is_paused: Callable[[], bool], caplog: pytest.LogCaptureFixture
) -> None:
    source, warehouse = both
    found: list[Any] = []

    def look() -> None:
        found.extend(
            source.admin(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        )
        warehouse.execute("UPDATE hold SET stop = false")

    assert source.wait_until_left() == []
    with meanwhile(look, is_paused):
        sync(pause_while="SELECT stop FROM hold", pause_check_interval=timedelta(milliseconds=20))
    assert found == []
    assert "Going on after a pause of " in caplog.text
    assert rows(warehouse) == rows(source)


@pytest.mark.parametrize("method", ["difference", "reload", "replace"])
def test_a_pause_while_rows_come_ends_when_the_query_says_so(
    both: Both, method: str, is_paused: Callable[[], bool]
) -> None:
    source, warehouse = both
    source.execute("UPDATE item SET s = repeat('x', 4000)")  # 12 MB: more than buffers hold
    with meanwhile(lambda: warehouse.execute("UPDATE hold SET stop = false"), is_paused):
        sync(
            method=method,
            pause_while=IN_THE_MIDDLE,
            pause_check_interval=OFTEN,
            max_delete_fraction=None,
        )
    assert rows(warehouse) == rows(source)


def test_a_kill_in_a_pause_changes_nothing_and_leaves_no_session(
    both: Both, is_paused: Callable[[], bool]
) -> None:
    source, warehouse = both
    source.execute("UPDATE item SET s = repeat('x', 4000)")
    before = rows(warehouse)
    task = sync_operator(method="reload", pause_while=IN_THE_MIDDLE, pause_check_interval=OFTEN)
    with meanwhile(task.on_kill, is_paused), pytest.raises(DblinkTaskKilledError):
        task.execute(context())
    assert source.wait_until_left() == warehouse.wait_until_left() == []
    assert rows(warehouse) == before


@pytest.mark.parametrize("plan_only", [True, False])
def test_a_query_that_does_not_work_is_named(both: Both, *, plan_only: bool) -> None:
    _, warehouse = both
    before = rows(warehouse)
    with pytest.raises(RemoteError, match=r"(?s)'warehouse'.*nowhere.*LINE 1 of pause_while"):
        sync(plan_only=plan_only, pause_while="SELECT true FROM nowhere")
    with pytest.raises(AirflowFailException, match=r"'source': pause_while must give true or false"):
        sync(plan_only=plan_only, pause_while="SELECT 1", pause_while_conn_id="source")
    assert rows(warehouse) == before


@pytest.mark.parametrize("method", ["reload", "replace"])
def test_progress_of_a_sync_is_told(
    both: Both, method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = both
    source.execute(f"{WIDE}; ANALYZE item")
    monkeypatch.setattr(Progress, "every_s", 0.0)
    sync(method=method, max_delete_fraction=None)
    said = capsys.readouterr().out
    assert "MB/s, about " in said
    assert "% of 3,000, " in said
    assert "100%" not in said
