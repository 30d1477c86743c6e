"""Waits as the triggerer does, and claims events as a worker does, for :mod:`benchmarks.gates`."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from airflow.providers.common.sql.triggers.sql import SQLExecuteQueryTrigger
from airflow.triggers.base import TriggerEvent

from airflow_dblink.core.events.install import install_script
from airflow_dblink.core.events.table import SCHEMA
from airflow_dblink.core.gates.question import Question, serialized
from airflow_dblink.operators.events import DblinkClaimEventsOperator
from airflow_dblink.triggers.sql import DblinkSqlTrigger
from benchmarks.side import Meter, connect, context_of_task, serve

_CONN_ID = "bench_destination"
_CHANNEL = "bench_gate"
_RARELY_S = 3_600.0
_PATIENCE_S = 120.0
_SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'airflow-dblink triggerer'"
    " AND datname = current_database()"
)
_claims = itertools.count()


def _question(number: int) -> Question:
    return Question(f"SELECT EXISTS (SELECT FROM bench_gate WHERE id = {number})")  # noqa: S608 - a number


def _trigger(number: int, poll_s: float) -> DblinkSqlTrigger:
    return DblinkSqlTrigger(_CONN_ID, serialized(_question(number)), poll_s, _CHANNEL)


async def _event(trigger: DblinkSqlTrigger | SQLExecuteQueryTrigger) -> float:
    """Return the time of the trigger's event."""
    events: AsyncIterator[TriggerEvent] = trigger.run()  # type: ignore[assignment] # Airflow's is not told
    async for event in events:
        if event.payload.get("state") == "error" or event.payload.get("status") == "failure":
            raise RuntimeError(str(event.payload))
        return time.monotonic()
    raise RuntimeError("the trigger has ended without an event")


async def _waiting(count: int, poll_s: float) -> list[asyncio.Task[float]]:
    """Return the running triggers, once all have asked."""
    tasks = [asyncio.create_task(_event(_trigger(number, poll_s))) for number in range(count)]
    last = asyncio.create_task(_event(_trigger(-1, poll_s)))  # asked after all others, and answered
    await asyncio.to_thread(_open, [-1])
    await last
    return tasks


def _open(numbers: Sequence[int]) -> float:
    """Open gates in one transaction, with one NOTIFY; return the moment before its commit."""
    with connect(_CONN_ID) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO bench_gate SELECT unnest(%s::int[])", (list(numbers),))
        connection.execute(f"NOTIFY {_CHANNEL}".encode())
        before = time.monotonic()
        connection.execute("COMMIT")
    return before


async def _leave(tasks: Sequence[asyncio.Task[float]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    async def in_time() -> Any:
        async with asyncio.timeout(_PATIENCE_S):
            return await work

    return asyncio.run(in_time())


def told(measured: Meter, *, count: int, notifications: int) -> dict[str, Any]:
    """Open one gate of many after the other; return the delays, and the sessions that wait."""

    async def act() -> dict[str, Any]:
        tasks = await _waiting(count, _RARELY_S)
        delays = []
        for number in range(notifications):
            opened = await asyncio.to_thread(_open, [number])
            delays.append(await tasks[number] - opened)
        with connect(_CONN_ID) as connection:
            (sessions,) = connection.execute(_SESSIONS).fetchone() or (0,)
        opened = await asyncio.to_thread(_open, range(notifications, count))
        last = max(await asyncio.gather(*tasks[notifications:]))
        return {"delays": delays, "all": last - opened, "sessions": sessions}

    return measured(lambda: _run(act()))


def polled(measured: Meter, *, count: int, poll_s: float, seconds: float) -> dict[str, Any]:
    """Let many wait, each with a question every *poll_s* seconds; return the share of a core."""

    async def act() -> dict[str, Any]:
        tasks = await _waiting(count, poll_s)
        before, started = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        share = (time.process_time() - before) / (time.monotonic() - started)
        await _leave(tasks)
        return {"share": share}

    return measured(lambda: _run(act()))


def looks(measured: Meter, *, way: str, count: int) -> dict[str, Any]:
    """Ask *count* questions once, all at the same time."""
    _open(range(count))

    async def act() -> None:
        triggers: list[DblinkSqlTrigger | SQLExecuteQueryTrigger] = [
            _trigger(number, _RARELY_S)
            if way == "ours"
            else SQLExecuteQueryTrigger(sql=_question(number).query, conn_id=_CONN_ID)
            for number in range(count)
        ]
        await asyncio.gather(*map(_event, triggers))

    return measured(lambda: _run(act()))


def install(measured: Meter) -> dict[str, Any]:
    """Make the tables."""
    with connect(_CONN_ID) as connection:
        connection.execute("CREATE TABLE bench_gate (id integer PRIMARY KEY)")
        connection.execute(install_script(SCHEMA).encode())
    return {}


def claim(measured: Meter, *, count: int) -> dict[str, Any]:
    """Claim *count* events of many that wait, in a run of its own."""
    operator = DblinkClaimEventsOperator(task_id="claim", conn_id=_CONN_ID, topic="bench", limit=count)
    context = context_of_task()
    context["ti"].run_id = f"run_{next(_claims)}"
    return measured(lambda: len(operator.execute(context)))


if __name__ == "__main__":
    serve(install, told, polled, looks, claim)
