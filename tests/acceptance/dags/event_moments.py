"""A Dag for each of several topics, started by events: it notes what it has claimed."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, chain, task

from airflow_dblink.operators.events import DblinkAckEventsOperator, DblinkClaimEventsOperator
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.sensors.sql import DblinkSqlSensor
from airflow_dblink.triggers.events import DblinkEventTrigger

# Its effect is not idempotent: an event that two runs get is there twice.
NOTE = """
INSERT INTO handled (event, run)
SELECT id, %(claim)s FROM airflow_dblink_events.event WHERE claimed_by = %(claim)s
"""

for name, runs, limit in (("killed", 16, 10_000), ("one_run", 1, 200)):
    trigger = DblinkEventTrigger(
        conn_id="warehouse_db", topic=name, poll_interval=5, refire_interval=10, min_interval=1
    )
    asset = Asset(f"events_{name}", watchers=[AssetWatcher(name=name, trigger=trigger)])
    with DAG(dag_id=f"events_{name}", schedule=[asset], max_active_runs=runs):
        claim = DblinkClaimEventsOperator(
            task_id="claim",
            conn_id="warehouse_db",
            topic=name,
            limit=limit,
            retries=5,
            retry_delay=timedelta(seconds=1),
        )
        note = DblinkExecOperator(
            task_id="note",
            conn_id="warehouse_db",
            sql=NOTE,
            parameters={"claim": claim.claimed_by},
            retries=5,
            retry_delay=timedelta(seconds=1),
        )
        ack = DblinkAckEventsOperator(
            task_id="ack",
            conn_id="warehouse_db",
            claimed_by=claim.claimed_by,
            retries=5,
            retry_delay=timedelta(seconds=1),
        )
        chain(claim, note, ack)

copied = Asset("copied")

with DAG(dag_id="facts_writer", schedule=None, params={"rows": 1}):
    DblinkExecOperator(
        task_id="write",
        conn_id="warehouse_db",
        sql="INSERT INTO handled SELECT i, 'facts' FROM generate_series(1, {{ params.rows }}) AS i",
        outlets=[copied],
        emit_when_changed=True,
    )

with DAG(dag_id="facts_reader", schedule=[copied]):

    @task
    def read(triggering_asset_events: Mapping[Asset, Any] | None = None) -> list[Any]:
        return [event.extra for events in (triggering_asset_events or {}).values() for event in events]

    read()

with DAG(dag_id="mapped_gates", schedule=None, params={"sensors": 8}):

    @task
    def numbers(params: Mapping[str, Any] | None = None) -> list[list[int]]:
        return [[number] for number in range((params or {})["sensors"])]

    DblinkSqlSensor.partial(
        task_id="wait",
        conn_id="warehouse_db",
        sql="SELECT count(*) > 0 FROM handled WHERE event = -1 - %s",
        deferrable=True,
        poke_interval=20,
        wake_channel="gates",
        timeout=timedelta(hours=1),
    ).expand(parameters=numbers())
