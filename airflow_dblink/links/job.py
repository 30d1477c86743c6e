"""DblinkJobLink: from a task to the page of its remote job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

from airflow_dblink.core.jobs.job import SCHEMA, JobHandle
from airflow_dblink.ui.setting import job_page_is_on

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator


class DblinkJobLink(BaseOperatorLink):
    """Link from a task to the page of its job; see :mod:`airflow_dblink.ui.job`."""

    name = "Remote job"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Return the page's address; empty if the task has sent no job, or the page is off."""
        handle = getattr(operator, "job_handle", None)
        return job_url(operator.dag_id, handle) if isinstance(handle, JobHandle) else ""


def job_url(dag_id: str, handle: JobHandle) -> str:
    """Return the address of a job's page, under Airflow's own (``[api] base_url``, its path included).

    It is empty, so that no link appears, if the page is off.
    """
    if not job_page_is_on():
        return ""
    base = conf.get("api", "base_url", fallback="") or ""
    return f"{base.rstrip('/')}/{job_path(dag_id, handle)}"


def page_note(dag_id: str, handle: JobHandle) -> str:
    """Return the address for the end of a log line; an empty text if the page is off."""
    url = job_url(dag_id, handle)
    return f" (page: {url})" if url else ""


def job_path(dag_id: str, handle: JobHandle) -> str:
    """Return our part of that address."""
    path = "/".join(quote(part, safe="") for part in (dag_id, handle.conn_id, handle.job_id))
    query = "" if handle.schema == SCHEMA else f"?schema={quote(handle.schema, safe='')}"
    return f"dblink/jobs/{path}{query}"
