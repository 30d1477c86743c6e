"""What is asked, and in which order, until the first job of a new triggerer is heard of."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow_dblink.core.jobs.watch import Watcher
from airflow_dblink.core.listen.listener import Listener
from airflow_dblink.core.server.target import Target
from airflow_dblink.operators.jobs import DblinkJobOperator
from airflow_dblink.triggers.job import DblinkJobTrigger
from tests.databases import Database
from tests.integration.jobs.client import EFFECT, GATE, Client, held, lookers, until
from tests.integration.tasks import context
from tests.odd import always


def test_airflow_is_asked_for_the_connection_once(client: Client) -> None:
    asked: list[str] = []

    async def get_target() -> Target:
        asked.append(client.target.conn_id)
        return client.target

    job_id = client.run(EFFECT).id
    job = asyncio.run(Watcher(Listener(get_target, "watcher"), client.schema).wait(job_id, 600))
    assert (job and job.state, asked) == ("succeeded", [client.target.conn_id])


def test_what_a_kill_may_need_is_asked_for_after_the_first_look(client: Client, source: Database) -> None:
    had_looked: list[int] = []

    class Trigger(DblinkJobTrigger):
        async def _task_state(self) -> str | None:
            had_looked.append(await asyncio.to_thread(lookers, source))
            return None

    async def wait() -> Any:
        with held(source):
            trigger = Trigger("source", str(client.send(GATE)), poll_interval=600)
            event = asyncio.ensure_future(anext(aiter(trigger.run())))
            await asyncio.to_thread(until, lambda: had_looked)
        return (await event).payload["state"]

    assert asyncio.run(wait()) == "succeeded"
    assert had_looked == [1]


def test_a_first_job_that_has_ended_is_told_of_and_nothing_else_is_asked(
    client: Client, source: Database
) -> None:
    asked: list[bool] = []

    class Trigger(DblinkJobTrigger):
        async def _task_state(self) -> str | None:
            asked.append(True)
            return None

    async def wait(job_id: str) -> Any:
        event = await anext(aiter(Trigger("source", job_id, poll_interval=600).run()))
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
        return event.payload["state"]

    assert asyncio.run(wait(str(client.run(EFFECT).id))) == "succeeded"
    assert asked == []


def test_a_job_that_is_known_to_have_ended_is_looked_at_and_not_listened_for(
    client: Client, source: Database
) -> None:
    job_id = client.run(EFFECT).id
    handle = {"conn_id": "source", "job_id": str(job_id), "schema": client.schema}
    always(source, log_statement="'all'")
    operator = DblinkJobOperator(task_id="task", conn_id="source", sql=EFFECT, deferrable=True)
    event = {"job_id": str(job_id), "state": "succeeded"}
    assert operator.execute_complete(context(), event, handle)["command_tag"] == "INSERT 0 1"
    said = [
        line
        for line in source.server.log.read_text(errors="replace").splitlines()
        if f"@{source.name}/" in line
    ]
    assert any("look" in line for line in said)
    assert not [line for line in said if "LISTEN" in line]
