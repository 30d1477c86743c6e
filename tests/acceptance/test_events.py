"""Events under a real scheduler and triggerer: whatever dies, each event is handled by one run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_dblink.core.events.install import install_script
from airflow_dblink.core.events.table import SCHEMA
from airflow_dblink.embedded.server import Server
from tests.acceptance.conftest import Killing, execute, rows
from tests.soak_events import kill_a_task

_DONE = "SELECT count(*) FROM airflow_dblink_events.event WHERE done_at IS NOT NULL"
_HANDLED = "SELECT event FROM handled ORDER BY event"
_WAITING_S = 240.0


@pytest.fixture
def shop(pair: tuple[Server, Server]) -> Iterator[Server]:
    """Give the server of the events, with an empty event table."""
    server = pair[1]
    execute(server, f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; DROP TABLE IF EXISTS handled")
    execute(server, "CREATE TABLE handled (event bigint, run text)")
    execute(server, install_script(SCHEMA))
    yield server
    execute(server, f"DROP SCHEMA {SCHEMA} CASCADE; DROP TABLE handled")


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAITING_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def _emit(server: Server, topic: str, number: int) -> None:
    emit = f"SELECT {SCHEMA}.emit('{topic}', '{{\"secret\": \"hidden-value\"}}')"
    execute(server, f"{emit} FROM generate_series(1, {number})")


def _wait_until_done(server: Server, number: int) -> None:
    _until(lambda: rows(server, _DONE) == [(number,)])
    assert rows(server, _HANDLED) == [(i,) for i in range(1, number + 1)]


def test_events_are_handled_once_while_workers_triggerer_and_scheduler_are_killed(
    killing: Killing, shop: Server
) -> None:
    airflow = killing.airflow
    number = 0
    for kill in ("worker", "triggerer.1", "worker", "scheduler", "worker", "triggerer.1"):
        _emit(shop, "killed", 150)
        number += 150
        if kill == "worker":
            _until(kill_a_task)
        else:
            airflow.kill_component(kill)
            _emit(shop, "killed", 50)
            number += 50
            airflow.start_component(kill)

    _wait_until_done(shop, number)
    assert "hidden-value" not in airflow.all_logs()


def test_an_assets_event_has_the_facts_and_there_is_none_without_a_change(
    killing: Killing, shop: Server
) -> None:
    airflow = killing.airflow
    for number in (0, 3):
        run = airflow.trigger("facts_writer", {"rows": number})
        assert airflow.wait("facts_writer", run, timeout_s=_WAITING_S) == "success"

    def runs() -> list[Any]:
        found: list[Any] = airflow.api("GET", "/dags/facts_reader/dagRuns")["dag_runs"]
        return [run["dag_run_id"] for run in found if run["state"] == "success"]

    _until(lambda: bool(runs()))
    (reader,) = runs()
    assert airflow.xcom("facts_reader", reader, "read") == [{"changed": 3}]
    assert rows(shop, "SELECT count(*) FROM handled") == [(3,)]


def test_mapped_sensors_go_on_in_a_new_triggerer(killing: Killing, shop: Server) -> None:
    airflow = killing.airflow
    run = airflow.trigger("mapped_gates", {"sensors": 8})
    for number in range(8):
        airflow.wait_for_task(
            "mapped_gates", run, "wait", {"deferred"}, timeout_s=_WAITING_S, map_index=number
        )
    airflow.kill_component("triggerer.1")
    execute(shop, "INSERT INTO handled SELECT -i FROM generate_series(1, 8) AS i; NOTIFY gates")
    airflow.start_component("triggerer.1")

    assert airflow.wait("mapped_gates", run, timeout_s=_WAITING_S) == "success"


def test_a_paused_dag_claims_all_when_it_goes_on_one_run_after_the_other(
    killing: Killing, shop: Server
) -> None:
    api = killing.airflow.api
    _emit(shop, "one_run", 10)
    _wait_until_done(shop, 10)
    execute(shop, "UPDATE airflow_dblink_events.event SET done_at = NULL WHERE id = 1")
    listed = killing.airflow.cli("dblink", "list-events", "warehouse_db", "--output", "json").stdout
    (_, claim) = json.loads(listed)
    assert (claim["claimed"], claim["run"]) == ("1", "success")
    execute(shop, "UPDATE airflow_dblink_events.event SET done_at = now()")
    api("PATCH", "/dags/events_one_run", json={"is_paused": True})
    _emit(shop, "one_run", 1_000)
    api("PATCH", "/dags/events_one_run", json={"is_paused": False})
    _emit(shop, "one_run", 100)

    _wait_until_done(shop, 1_110)
    runs = rows(shop, "SELECT count(DISTINCT run) FROM handled")[0][0]
    assert 1 + 6 <= runs <= 20
