"""### Sync new rows every hour, and all rows every day.

Each hour, only rows that have changed since the last run are read: those whose `changed_at` is above the
highest value so far, the *watermark*. Airflow keeps it with the asset, and moves it on when the rows are
committed.

This misses some changes: a deleted row leaves no `changed_at` behind, and a very late commit is below the
watermark by then. So once a day both tables are compared as a whole. That reads all rows, but moves only the
difference.

`change_source` plays the devices.
"""

from datetime import timedelta

import pendulum
from airflow.sdk import DAG, Asset, Param, chain

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.sync import DblinkSyncOperator

READINGS = Asset("warehouse_readings")

TABLE = """
CREATE TABLE IF NOT EXISTS reading (
    device integer,
    number integer,
    value double precision,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device, number)
)
"""
# The first run makes rows that changed a minute apart, the last of them an hour ago.
CHANGES = """
DELETE FROM reading WHERE (device, number) IN (
    SELECT device, number FROM reading ORDER BY random() LIMIT %(changes)s::integer);
UPDATE reading SET value = value + 1, changed_at = now() WHERE (device, number) IN (
    SELECT device, number FROM reading ORDER BY random() LIMIT %(changes)s::integer);
INSERT INTO reading
SELECT 7, last.number + n, random(),
       CASE last.number WHEN 0 THEN now() - n * interval '1 minute' - interval '1 hour' ELSE now() END
  FROM (SELECT coalesce(max(number), 0) AS number FROM reading) AS last,
       generate_series(1, CASE last.number WHEN 0 THEN 1000 ELSE %(changes)s::integer END) AS n;
"""


with DAG(
    dag_id="dblink_sync_incremental",
    schedule="@hourly",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,  # an example that is only looked at writes nothing
    params={
        "changes": Param(
            10,
            type="integer",
            minimum=0,
            maximum=1_000,
            description="The devices delete, update and insert so many.",
        )
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):
    make_table = DblinkExecOperator.partial(task_id="make_table", sql=TABLE).expand(
        conn_id=["source_db", "warehouse_db"]
    )
    change_source = DblinkExecOperator(
        task_id="change_source",
        conn_id="source_db",
        sql=CHANGES,
        parameters={"changes": "{{ params.changes }}"},
    )
    sync_new = DblinkSyncOperator(
        task_id="sync_new",
        source_conn_id="source_db",
        source_table="reading",
        destination_conn_id="warehouse_db",
        destination_table="reading",
        watermark_column="changed_at",
        # now() is the time at which a transaction began; its rows are seen when it has committed.
        # No transaction takes longer than this.
        watermark_overlap=timedelta(minutes=10),
        outlets=[READINGS],  # has the watermark, and tells other Dags that there is something new
        retries=2,
    )
    chain(make_table, change_source, sync_new)

with DAG(
    dag_id="dblink_sync_incremental_full",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    params={
        "plan_only": Param(False, type="boolean", description="Report the difference, and change nothing.")
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):
    DblinkSyncOperator(
        task_id="sync_all",
        source_conn_id="source_db",
        source_table="reading",
        destination_conn_id="warehouse_db",
        destination_table="reading",
        plan_only="{{ params.plan_only }}",
        outlets=[READINGS],
        retries=2,
    )
