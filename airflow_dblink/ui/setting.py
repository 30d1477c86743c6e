"""Whether there are pages. It imports next to nothing, since every task asks."""

from __future__ import annotations

from airflow.sdk.configuration import conf


def job_page_is_on() -> bool:
    """Return whether the page of jobs is on: ``[dblink] job_page`` of Airflow's configuration."""
    return bool(conf.getboolean("dblink", "job_page", fallback=True))
