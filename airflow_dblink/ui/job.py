"""The page of a remote job, for users who may read the task logs of the Dag that sent it.

It is an app of its own, which Airflow mounts, so it has neither Airflow's error handlers nor its
documentation pages. Airflow's middlewares and dependencies identify the user.

The answer is the same in all these cases: the job belongs to another Dag; its connection, schema or row is
missing; the Dag has nothing to do with the connection. So it tells a user nothing about other Dags.

Servers are not trusted. A server is asked in READ ONLY transactions, for a few seconds and a few megabytes,
and only a few are asked at the same time, so that the threads of Airflow's API stay free.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import closing
from dataclasses import replace
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

from airflow.api_fastapi.app import API_ROOT_PATH
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from airflow_dblink.core.errors import DblinkError
from airflow_dblink.core.jobs.client import Jobs
from airflow_dblink.core.jobs.job import SCHEMA, Job, JobHandle
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.connection import time_limit
from airflow_dblink.core.server.login import connect
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.ui.access import may_read_connection, uses_connection
from airflow_dblink.ui.facts import MEANING, facts

log = logging.getLogger(__name__)

app = FastAPI(title="airflow-dblink", docs_url=None, redoc_url=None, openapi_url=None)

_templates = Environment(
    loader=PackageLoader("airflow_dblink.ui"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

# Each page makes a thread of the api-server wait, which has 40 threads for all requests.
_AT_ONCE = 4
_places = BoundedSemaphore(_AT_ONCE)
_CONNECT_S = 5
_ANSWER_S = 5.0  # connecting included
_MOST_BYTES = 16 * 1024 * 1024
_MOST_CHARACTERS = 100_000  # of a statement

_MESSAGES = {
    HTTPStatus.UNAUTHORIZED: ("Log in first", "This page is for users of Airflow."),
    HTTPStatus.FORBIDDEN: ("Not allowed", "You may not read the task logs of this Dag."),
    HTTPStatus.NOT_FOUND: (
        "No such job",
        "This Dag has no such job there. It may have been pruned, or the connection may be gone. If no"
        " task of the Dag names the connection, the page is only for users who may read connections.",
    ),
}


@app.get(
    "/jobs/{dag_id}/{conn_id:path}/{job_id}",
    response_class=HTMLResponse,
    dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.TASK_LOGS))],
)
def job_page(dag_id: str, conn_id: str, job_id: UUID, user: GetUserDep, schema: str = SCHEMA) -> Response:
    """Return the page of a job.

    :param dag_id: the Dag that sent the job, which the user may read.
    :param conn_id: Airflow connection of the database in which the job runs.
    :param schema: schema of the job table there; the link leaves out the usual one.
    """
    if not conn_id or dag_id == "~" or "\0" in conn_id + schema:  # to Airflow "~" is any Dag
        raise HTTPException(HTTPStatus.NOT_FOUND)
    may_read = may_read_connection(user, conn_id)
    if not may_read and not uses_connection(dag_id, conn_id):
        raise HTTPException(HTTPStatus.NOT_FOUND)
    handle = JobHandle(conn_id, str(job_id), schema)
    if not _places.acquire(blocking=False):
        return PlainTextResponse(
            "Other pages of jobs are waiting for their servers. Try again in a few seconds.\n",
            HTTPStatus.SERVICE_UNAVAILABLE,
            {"Retry-After": "5", "Cache-Control": "no-store"},
        )
    try:
        found = _find(handle, dag_id)
    except DblinkError as error:
        log.warning("Looking at job %s: %s", job_id, error)
        return _not_found_out(conn_id, error, may_read=may_read)
    finally:
        _places.release()
    if found is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    job, statement = found
    return _page(
        "job.html",
        HTTPStatus.OK,
        job=job,
        meaning=MEANING[job.state],
        facts=facts(job, handle, API_ROOT_PATH),
        error=job.error(conn_id),
        statement=without_credentials(statement or ""),
    )


def _find(handle: JobHandle, dag_id: str) -> tuple[Job, str | None] | None:
    """Return the job and its statement; ``None`` unless the job is there and belongs to that Dag.

    :raises DblinkError: if the server can't be asked, or must not be.
    """
    try:
        target = DblinkHook(dblink_conn_id=handle.conn_id).target()
    except AirflowNotFoundException:
        return None
    connection = connect(
        replace(target, params={**target.params, "connect_timeout": _CONNECT_S}),
        application_name="airflow dblink job page",
        check=time_limit(handle.conn_id, _ANSWER_S),
        direct=True,
        most_bytes=_MOST_BYTES,
    )
    connection.abort_when_stopped = True
    with closing(connection):
        jobs = Jobs(connection, handle.conn_id, handle.schema, read_only=True)
        installation = jobs.installation()
        if installation.version is None:
            return None
        # The URL chooses the schema; a stranger's schema could run its triggers as this role.
        installation.demand_usable(handle.conn_id)
        job = jobs.see(handle.uuid)
        if job is None or job.dag_id != dag_id:
            return None
        return job, jobs.statement(job.id, most=_MOST_CHARACTERS)


def _not_found_out(conn_id: str, error: DblinkError, *, may_read: bool) -> HTMLResponse:
    """Return the page for a server that didn't answer.

    :param may_read: whether the user may read the connection; only then the reason is shown, since it
        names hosts and roles.
    """
    if error.retryable:
        status, title = HTTPStatus.SERVICE_UNAVAILABLE, "The server doesn't answer"
    else:
        status, title = HTTPStatus.BAD_GATEWAY, "The server can't be asked"
    return _page(
        "message.html",
        status,
        title=title,
        text=f"Only the database of connection {conn_id!r} knows the state of the job.",
        reason=str(error) if may_read else "The reason is in the log of Airflow's api-server.",
        login=None,
    )


@app.exception_handler(HTTPException)
def refuse(request: Request, error: HTTPException) -> Response:
    """Return the page for a refusal, or redirect a browser to Airflow's login and back."""
    status = HTTPStatus(error.status_code)
    login = f"{API_ROOT_PATH}api/v2/auth/login?{urlencode({'next': _own_path(request)})}"
    asks_anonymously = status == HTTPStatus.UNAUTHORIZED and "authorization" not in request.headers
    if asks_anonymously and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(login)
    title, text = _MESSAGES.get(status, (status.phrase, status.description))
    needs_login = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    return _page(
        "message.html", status, title=title, text=text, reason=None, login=login if needs_login else None
    )


@app.exception_handler(RequestValidationError)
def refuse_parameters(request: Request, error: RequestValidationError) -> Response:
    """Return the page for a missing job: no job has such an id."""
    return refuse(request, HTTPException(HTTPStatus.NOT_FOUND))


def _own_path(request: Request) -> str:
    """Return the path and query of the browser's address."""
    below = request.scope["path"].removeprefix(request.scope.get("app_root_path", ""))
    query = f"?{request.url.query}" if request.url.query else ""
    return API_ROOT_PATH + quote(below.lstrip("/")) + query


def _page(template: str, status: HTTPStatus, **values: Any) -> HTMLResponse:
    nonce = secrets.token_urlsafe(16)
    policy = f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'"
    return HTMLResponse(
        _templates.get_template(template).render(nonce=nonce, **values),
        status,
        {
            "Content-Security-Policy": f"{policy}; frame-ancestors 'self'",
            "Cache-Control": "no-store",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        },
    )
