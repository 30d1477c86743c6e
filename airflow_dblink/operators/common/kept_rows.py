"""Handing on the rows that a job kept, and dropping them; a retry after that finds the stored result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_dblink.core.jobs.job import Job, JobHandle
from airflow_dblink.core.once.tries import Tries
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.common.rows import RowSink

if TYPE_CHECKING:
    from airflow.sdk import Context

_KEY = "airflow_dblink_job_result"


def delivered(
    operator: DblinkBaseOperator,
    context: Context,
    hook: DblinkHook,
    handle: JobHandle,
    job: Job,
    sink: RowSink,
    *,
    drop: bool,
) -> dict[str, Any]:
    """Hand on the kept rows and, with *drop*, drop them; a retry after that returns the stored result."""
    tries = Tries(context["task_state_store"], context["ti"].max_tries)
    left = tries.left(_KEY)
    is_this_jobs = left is not None and left.facts.get("job_id") == handle.job_id and not left.is_cleared
    if left is not None and is_this_jobs and job.result_table is None:
        operator.log.info("An earlier try has handed on the rows and dropped them.")
        result: dict[str, Any] = dict(left.facts["result"])
        return result
    with hook.result_link(handle, job) as (link, query):
        result = sink.deliver(link, query, expected=job.row_count)
    operator.log.info("Fetched %s", sink.told(result))
    if drop:
        tries.leave(_KEY, {"job_id": handle.job_id, "result": result})
        hook.drop_result(handle)
    return result
