"""Sends remote jobs, and waits for them as the triggerer does, for :mod:`benchmarks.jobs`."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg

from airflow_dblink.operators.jobs import DblinkJobOperator, DblinkSendQueryOperator
from airflow_dblink.triggers.job import DblinkJobTrigger
from benchmarks.side import PROXIED, Meter, connect, context_of_task, proxied, serve

_DESTINATION = "bench_destination"
_SETTLE_S = 2.0  # until the first look at all is over
_PATIENCE_S = 120.0
#: Goes on when its sender has left, so that the end of its call is never one of the sender's round trips.
_LASTING = "SELECT 1 AS n FROM pg_sleep(0.3)"
_SENDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "parameters": {"sql": "SELECT %s AS n FROM pg_sleep(0.3)", "parameters": [1]},
    "statement_timeout": {"statement_timeout": timedelta(minutes=1)},
    "keep_result": {"keep_result": True},
}


def install(measured: Meter) -> dict[str, Any]:
    """Send a job, the first of which installs what jobs need."""
    _job(_DESTINATION, "SELECT 1")
    return {}


# -- waiting


def wait(measured: Meter, *, job_ids: Sequence[str], per_second: float) -> dict[str, Any]:
    """Wait for all jobs at once, which another process runs; returns when each one's event came."""
    return measured(lambda: asyncio.run(_wait(job_ids, per_second)))


async def _wait(job_ids: Sequence[str], per_second: float) -> dict[str, Any]:
    events: dict[str, float] = {}

    async def run(trigger: DblinkJobTrigger) -> None:
        async for event in trigger.run():
            events[trigger.job_id] = time.time()
            if event.payload["state"] != "succeeded":
                raise RuntimeError(f"job {trigger.job_id}: {event.payload}")

    async with asyncio.timeout(_PATIENCE_S), asyncio.TaskGroup() as waiting:
        for job_id in job_ids:
            waiting.create_task(run(DblinkJobTrigger(conn_id=_DESTINATION, job_id=job_id)))
        await asyncio.sleep(_SETTLE_S)
        caller = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.caller", str(per_second)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await caller.communicate("\n".join(job_ids).encode())
        if caller.returncode:
            raise RuntimeError("the process that runs the jobs has failed")
    return {"events": events, **json.loads(said)}


def poll(measured: Meter, *, job_ids: Sequence[str], poll_s: float, polls: int) -> dict[str, Any]:
    """Wait for all jobs at once through a pooler, where nothing is told; returns messages per poll."""
    with proxied(_DESTINATION, pooling_mode="transaction") as (proxy, _):
        messages, seconds = asyncio.run(_poll(job_ids, poll_s, poll_s * polls, proxy.so_far))
    return {"messages": messages, "polls": seconds / poll_s}


async def _poll(
    job_ids: Sequence[str], poll_s: float, seconds: float, messages: Callable[[], int]
) -> tuple[int, float]:
    async def run(trigger: DblinkJobTrigger) -> None:
        async for event in trigger.run():
            raise RuntimeError(f"job {trigger.job_id}: {event.payload}")

    triggers = [DblinkJobTrigger(conn_id=PROXIED, job_id=job_id, poll_interval=poll_s) for job_id in job_ids]
    tasks = [asyncio.create_task(run(trigger)) for trigger in triggers]
    await asyncio.sleep(_SETTLE_S)
    before, started = messages(), time.monotonic()
    await asyncio.sleep(seconds)
    counted, lasted = messages() - before, time.monotonic() - started
    if ended := [task for task in tasks if task.done()]:
        await ended[0]  # it has failed
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(poll_s)  # the watcher then has seen that nobody waits
    return counted, lasted


# -- sending


def send_round_trips(measured: Meter) -> dict[str, Any]:
    """Count the round trips of sends, those of connecting left out, and of a whole job."""
    counts: dict[str, int] = {}
    with proxied(_DESTINATION) as (proxy, uri):
        for name, arguments in _SENDS.items():
            _send(PROXIED, **{"sql": _LASTING, **arguments})
            counts[name] = proxy.round_trips() + 1  # that of the call, which was left before its end
        _job(PROXIED, "SELECT 1")
        counts["job"] = proxy.round_trips()
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute("SELECT 1")
        counts["psycopg"] = proxy.round_trips()
    return counts


def send_whole(measured: Meter, *, way: str, statement: str, times: int) -> dict[str, Any]:
    """Run *statement* many times, each with a connection of its own."""

    def plain() -> None:
        with connect(_DESTINATION) as connection:
            connection.execute(statement.encode())

    ways: dict[str, Callable[[], None]] = {
        "psycopg": plain,
        "send": lambda: _send(_DESTINATION, sql=statement),
        "job": lambda: _job(_DESTINATION, statement),
    }
    work = ways[way]
    return measured(lambda: [work() for _ in range(times)] and None)


def send_many(measured: Meter, *, statement: str, count: int, at_once: bool) -> dict[str, Any]:
    """Send many jobs until all are seen running; returns how many then run at the same time."""
    barrier = threading.Barrier(count if at_once else 1)

    def send(_: int) -> None:
        barrier.wait()
        _send(_DESTINATION, sql=statement)

    with ThreadPoolExecutor(count if at_once else 1) as threads:
        answer = measured(lambda: list(threads.map(send, range(count))) and None)
    answer["returned"] = _running()
    return answer


def _running() -> int:
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%%CALL run(%%'"
    with connect(_DESTINATION) as connection:
        row = connection.execute(running.encode()).fetchone()
    return int(row[0]) if row else 0


def _send(conn_id: str, **arguments: Any) -> None:
    operator = DblinkSendQueryOperator(task_id="send", conn_id=conn_id, **arguments)
    operator.execute(context_of_task())


def _job(conn_id: str, statement: str) -> None:
    operator = DblinkJobOperator(task_id="job", conn_id=conn_id, sql=statement, deferrable=False)
    operator.execute(context_of_task())


if __name__ == "__main__":
    serve(install, wait, poll, send_round_trips, send_whole, send_many)
