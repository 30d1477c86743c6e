"""The setting that switches the pages on or off. It imports almost nothing, since every task reads it."""

from __future__ import annotations

from airflow.sdk.configuration import conf


def job_page_is_on() -> bool:
    """Return whether the page of jobs is on: ``[dblink] job_page`` of Airflow's configuration."""
    return bool(conf.getboolean("dblink", "job_page", fallback=True))
