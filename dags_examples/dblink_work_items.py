"""### One run per work item, from a table that another system fills.

`work_item` is an ordinary table with a column for the run that has claimed an item: the queue needs nothing
of ours in the database. `dblink_work_items` claims what waits and starts a run of `dblink_work_item` for each
item. The run's id holds the item's, so a retry or a clear starts none twice.

Trigger `dblink_work_items_shop`, which plays the other system; then `dblink_work_items` looks once a minute,
and at once when it is told by `NOTIFY work_items`.
"""

from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Asset, AssetWatcher, Param, chain

from airflow_dblink.core.events.table import EventTable
from airflow_dblink.operators.events import (
    DblinkAckEventsOperator,
    DblinkClaimEventsOperator,
    DblinkNotifyOperator,
)
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.triggers.events import DblinkEventTrigger

TABLE = """
CREATE TABLE IF NOT EXISTS work_item (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, taken_by text, handed_on timestamptz, result text
);
CREATE INDEX IF NOT EXISTS work_item_waits ON work_item (id) WHERE taken_by IS NULL;
CREATE INDEX IF NOT EXISTS work_item_taken_by ON work_item (taken_by) WHERE taken_by IS NOT NULL;
"""
WORK = "UPDATE work_item SET result = coalesce(result, '') || 'done' WHERE id = %(id)s::bigint"

work_item = EventTable("work_item", claimed_by="taken_by", done_at="handed_on")
trigger = DblinkEventTrigger(
    conn_id="source_db", own_table=work_item, wake_channel="work_items", poll_interval=60
)
items = Asset("work_items", watchers=[AssetWatcher(name="work_items", trigger=trigger)])


def as_run(item: int) -> dict[str, Any]:
    """Return the arguments of the run for an item."""
    return {"trigger_run_id": f"item_{item}", "conf": {"id": item}}


with DAG(dag_id="dblink_work_items", schedule=[items], doc_md=__doc__, tags=["dblink", "example"]):
    claim = DblinkClaimEventsOperator(task_id="claim", conn_id="source_db", own_table=work_item, limit=100)
    hand_on = TriggerDagRunOperator.partial(
        task_id="hand_on", trigger_dag_id="dblink_work_item", skip_when_already_exists=True
    ).expand_kwargs(claim.output.map(as_run))
    ack = DblinkAckEventsOperator(
        task_id="ack",
        conn_id="source_db",
        own_table=work_item,
        claimed_by=claim.claimed_by,
        trigger_rule="none_failed",  # a run that was there already is a skip
    )
    chain(hand_on, ack)

with DAG(
    dag_id="dblink_work_item",
    schedule=None,
    params={"id": Param(0, type="integer")},
    tags=["dblink", "example"],
):
    DblinkExecOperator(task_id="work", conn_id="source_db", sql=WORK, parameters={"id": "{{ params.id }}"})

with DAG(dag_id="dblink_work_items_shop", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):
    chain(
        DblinkExecOperator(task_id="make_table", conn_id="source_db", sql=TABLE),
        DblinkExecOperator(
            task_id="add_items",
            conn_id="source_db",
            sql="INSERT INTO work_item SELECT FROM generate_series(1, 5)",
        ),
        DblinkNotifyOperator(task_id="tell", conn_id="source_db", channel="work_items"),
    )
