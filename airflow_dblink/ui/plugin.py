"""DblinkPlugin: mounts the pages at ``/dblink`` of Airflow's api-server.

Airflow finds it by the entry point ``airflow.plugins``. The section ``plugins`` of a provider's info isn't
enough: Airflow reads it only if ``[core] lazy_discover_providers`` is off, and then reports a plugin that
is in both places as an import error.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING

from airflow.plugins_manager import AirflowPlugin

from airflow_dblink.ui.setting import job_page_is_on

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class Pages:
    """The ASGI app of our pages, imported at the first request.

    Every task and every ``airflow`` command imports plugins, but only the api-server needs the app's imports.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; the first one imports the app, in a thread. If the page is off, answer 404."""
        if scope["type"] == "http" and not job_page_is_on():
            await _off(send)
            return
        app = await asyncio.to_thread(_app)
        await app(scope, receive, send)


async def _off(send: Send) -> None:
    text = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 404, "headers": text})
    body = b"The page of jobs is off: see job_page in section [dblink] of Airflow's configuration.\n"
    await send({"type": "http.response.body", "body": body})


@cache
def _app() -> ASGIApp:
    from airflow_dblink.ui.job import app

    return app


class DblinkPlugin(AirflowPlugin):
    """The page of a remote job; see :mod:`airflow_dblink.ui.job`."""

    name = "dblink"
    fastapi_apps = [{"app": Pages(), "url_prefix": "/dblink", "name": "dblink"}]  # noqa: RUF012 - as the base
