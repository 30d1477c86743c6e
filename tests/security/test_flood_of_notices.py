"""A server that raises notices without end fills the task's log."""

from __future__ import annotations

import pytest

from airflow_dblink.core.server.notices import MAX_CHARS, MAX_NOTICES
from airflow_dblink.hooks.dblink import DblinkHook

FLOOD = "DO $$BEGIN FOR i IN 1..{} LOOP RAISE NOTICE '%', repeat('x', {}); END LOOP; END$$"


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(("notices", "chars"), [(MAX_NOTICES + 500, 10), (300, 20_000)])
def test_a_flood_is_cut_and_counted(notices: int, chars: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with DblinkHook("source") as hook:
        hook.exec(FLOOD.format(notices, chars))

    shown = [record for record in caplog.records if "NOTICE" in record.getMessage()]
    assert 0 < len(shown) <= MAX_NOTICES
    assert sum(len(record.getMessage()) for record in shown) < 2 * MAX_CHARS
    assert f"{notices - len(shown):,} messages of the servers were left out" in caplog.text
    assert caplog.text.count("further messages of the servers are left out") == 1
