"""The contents of a job's page, as text; templates format them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from airflow_dblink.core.jobs.job import Job, JobHandle, State
from airflow_dblink.links.job import job_path

MEANING: dict[State, str] = {
    "sent": "Not begun yet.",
    "running": "A session of the server runs it.",
    "succeeded": "Committed.",
    "failed": "Ended by an error; nothing was changed.",
    "cancelled": "Ended by a request; nothing was changed.",
    "lost": "Its session ended before it could commit; nothing was changed.",
}


@dataclass(frozen=True)
class Fact:
    """One line: *label*, *text* and the address that the text links to."""

    label: str
    text: str
    href: str | None = None


def facts(job: Job, handle: JobHandle, root: str) -> list[Fact]:
    """Return a line for each known fact about the job.

    :param root: path of Airflow's web interface, with ``/`` at its end.
    """
    lines = [
        ("Command", job.command_tag, None),
        ("Dag", job.dag_id, f"{root}dags/{_quoted(job.dag_id)}"),
        ("Run", job.run_id, f"{root}dags/{_quoted(job.dag_id)}/runs/{_quoted(job.run_id)}"),
        ("Task", job.task_id, task_path(job, root)),
        ("Map index", job.map_index if job.map_index != -1 else None, None),
        ("Try", job.try_number, None),
        ("Sent", _time(job.sent_at), None),
        ("Started", _time(job.started_at), None),
        ("Cancel requested", _time(job.cancel_requested_at), None),
        ("Ended", _time(job.ended_at), None),
        ("Duration", _duration(job), None),
        ("Time limit", job.statement_timeout, None),
        ("Connection", handle.conn_id, None),
        ("Role", job.owner, None),
        ("Server process", job.pid, None),
        (
            "Result table",
            job.result_table and f"{job.result_schema or handle.schema}.{job.result_table}",
            None,
        ),
        ("Replaces", job.replaces, _replaced(job, handle, root)),
    ]
    return [Fact(label, str(text), href) for label, text, href in lines if text is not None]


def task_path(job: Job, root: str) -> str | None:
    """Return the path of the task instance's page, at the try that sent the job; ``None`` if unknown."""
    if job.dag_id is None or job.run_id is None or job.task_id is None:
        return None
    path = f"{root}dags/{_quoted(job.dag_id)}/runs/{_quoted(job.run_id)}/tasks/{_quoted(job.task_id)}"
    if job.map_index is not None and job.map_index >= 0:
        path += f"/mapped/{job.map_index}"
    return f"{path}?{urlencode({'try_number': job.try_number})}" if job.try_number else path


def duration_text(seconds: float) -> str:
    """Return a duration for readers, in two units at most: ``2 h 5 min``."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, smaller_size in _UNITS:
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


_UNITS = (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1))


def _duration(job: Job) -> str | None:
    if job.started_at is None:
        return None
    if job.ended_at is not None:
        return duration_text((job.ended_at - job.started_at).total_seconds())
    # By the server's clock, since ours may differ.
    waited = (job.started_at - job.sent_at).total_seconds()
    return f"{duration_text(job.age_s - waited)} so far"


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _replaced(job: Job, handle: JobHandle, root: str) -> str | None:
    if job.replaces is None or job.dag_id is None:
        return None
    return root + job_path(job.dag_id, JobHandle(handle.conn_id, str(job.replaces), handle.schema))


def _quoted(part: str | None) -> str:
    return quote(part or "", safe="")
