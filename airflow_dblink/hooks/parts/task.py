"""The running task's name for the server, its key for stored state, and its waits for Airflow's stats."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import get_current_context
from airflow.sdk.observability.stats import normalize_name_for_stats, timing

from airflow_dblink.core.server.target import application_name
from airflow_dblink.core.server.wait_events import WaitEvent


def task_name() -> str | None:
    """Return the running task's name for ``pg_stat_activity``; ``None`` outside of a task."""
    try:
        ti = get_current_context()["ti"]
    except RuntimeError:
        return None
    return application_name(**task_key(ti))


def task_key(ti: Any) -> dict[str, Any]:
    """Return the key of the task of *ti*, the same for all of its tries."""
    map_index = -1 if ti.map_index is None else ti.map_index
    return {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id, "map_index": map_index}


def report(event: WaitEvent, conn_id: str, seconds: float) -> None:
    """Report a wait to Airflow's stats."""
    tag = normalize_name_for_stats(conn_id, log_warning=False)  # "host:5432/db" would break StatsD's lines
    timing(event, timedelta(seconds=seconds), tags={"conn_id": tag})
