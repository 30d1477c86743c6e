"""DblinkJobTrigger where Airflow itself gives no connection; the rest needs servers."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from typing import Any

import pytest

from airflow_dblink.triggers.job import DblinkJobTrigger

JOB_ID = "00000000-0000-4000-8000-000000000000"


async def _only_event(trigger: DblinkJobTrigger, seconds: float) -> dict[str, Any]:
    async with asyncio.timeout(seconds):
        async for event in trigger.run():
            payload: dict[str, Any] = event.payload
            return payload
    raise AssertionError("no event")


def test_a_connection_that_is_not_there_is_an_error_with_its_name() -> None:
    event = asyncio.run(_only_event(DblinkJobTrigger("nowhere", JOB_ID), 30))

    assert (event["job_id"], event["state"]) == (JOB_ID, "error")
    assert "nowhere" in event["message"]
    assert event["is_mistake"] is False  # Airflow says the same while a secrets backend is away


def test_a_server_that_never_answers_is_waited_for_until_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", "postgres://me:secret@127.0.0.1:1/db")
    trigger = DblinkJobTrigger("away", JOB_ID, deadline=time.time() + 1.0)

    event = asyncio.run(_only_event(trigger, 30))

    assert event == {"job_id": JOB_ID, "state": "timeout"}


@pytest.mark.parametrize(
    "kwargs",
    [
        {
            "conn_id": "warehouse_db",
            "job_id": JOB_ID,
            "schema": "airflow_dblink",
            "poll_interval": 10.0,
            "cancel_on_kill": True,
            "password_required": None,
            "deadline": 1796040270.939,
        },
        {
            "conn_id": "warehouse_db",
            "job_id": JOB_ID,
            "schema": "jobs",
            "poll_interval": 60.0,
            "cancel_on_kill": False,
            "password_required": False,
            "deadline": None,
        },
    ],
    ids=["of the operator", "of the sensor"],
)
def test_triggers_that_airflow_has_stored_are_understood(kwargs: dict[str, Any]) -> None:
    """These are the values that version 0.1 has stored: who waits meanwhile must not be left waiting."""
    trigger = import_module("airflow_dblink.triggers.job").DblinkJobTrigger(**kwargs)

    assert trigger.serialize() == ("airflow_dblink.triggers.job.DblinkJobTrigger", kwargs)
    assert trigger.cancel_on_kill is kwargs["cancel_on_kill"]
