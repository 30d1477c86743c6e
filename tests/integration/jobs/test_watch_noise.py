"""Waiting in an event loop where others notify all the time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import uuid4

from airflow_dblink.core.jobs.watch import Watcher
from airflow_dblink.core.listen.listener import Listener
from airflow_dblink.core.server.target import Target
from tests.databases import Database
from tests.integration.jobs.client import SLEEP, Client, lookers, until


def test_a_job_that_was_lost_is_noticed_however_much_is_notified(client: Client, source: Database) -> None:
    """Nothing tells of a lost job: only the poll finds it, and no notification may put that off."""
    job_id = client.send(SLEEP)

    async def get_target() -> Target:
        return client.target

    async def noise() -> None:
        while True:
            await asyncio.to_thread(
                source.execute, "SELECT pg_notify('airflow_dblink_job', %s)", str(uuid4())
            )
            await asyncio.sleep(0.2)

    async def watch() -> str:
        waiting = asyncio.create_task(
            Watcher(Listener(get_target, "noise"), client.target.job_schema).wait(job_id, 2.0)
        )
        noisy = asyncio.create_task(noise())
        await asyncio.to_thread(until, lambda: lookers(source))
        source.execute("SELECT pg_terminate_backend(pid) FROM airflow_dblink.job")
        try:
            job = await asyncio.wait_for(waiting, 20)
        finally:
            noisy.cancel()
            with suppress(asyncio.CancelledError):
                await noisy
        return job.state if job else "missing"

    assert asyncio.run(watch()) == "lost"
