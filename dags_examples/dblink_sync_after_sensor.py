"""### Sync as soon as the source is ready.

Another system loads the day's sales into the source, and sets a mark when it is done. Airflow's own sensor
waits for the mark, without holding a worker. Then only that day is synced.

`other_system` plays that system.
"""

from datetime import timedelta

from airflow.providers.common.sql.sensors.sql import SqlSensor
from airflow.sdk import DAG, Param, chain

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.sync import DblinkSyncOperator

# Unlike logical_date, run_after is there in manual runs as well.
DAY = "{{ dag_run.run_after | ds }}"

TABLES = """
CREATE TABLE IF NOT EXISTS sale (day date, id integer, amount numeric NOT NULL, PRIMARY KEY (day, id));
CREATE TABLE IF NOT EXISTS sales_loaded (day date PRIMARY KEY);
"""
# The rows, and the mark that they are complete, are committed together.
LOAD = """
SELECT pg_sleep(%(seconds)s::integer);
DELETE FROM sale WHERE day = %(day)s;
INSERT INTO sale SELECT %(day)s, id, round(random()::numeric * 100, 2) FROM generate_series(1, 1000) AS id;
INSERT INTO sales_loaded VALUES (%(day)s);
"""

with DAG(
    dag_id="dblink_sync_after_sensor",
    schedule=None,
    params={
        "seconds": Param(
            20, type="integer", minimum=0, maximum=3_600, description="The other system takes so long."
        ),
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):
    make_tables = DblinkExecOperator.partial(task_id="make_tables", sql=TABLES).expand(
        conn_id=["source_db", "warehouse_db"]
    )
    begin_day = DblinkExecOperator(
        task_id="begin_day",
        conn_id="source_db",
        sql="DELETE FROM sales_loaded WHERE day = %(day)s",
        parameters={"day": DAY},
    )
    other_system = DblinkExecOperator(
        task_id="other_system",
        conn_id="source_db",
        sql=LOAD,
        parameters={"day": DAY, "seconds": "{{ params.seconds }}"},
    )
    wait = SqlSensor(
        task_id="wait",
        conn_id="source_db",
        sql="SELECT EXISTS (SELECT FROM sales_loaded WHERE day = %(day)s)",
        parameters={"day": DAY},
        mode="reschedule",  # no worker while it waits
        poke_interval=5,
        timeout=timedelta(hours=6),
        retries=2,
        retry_delay=timedelta(seconds=10),
    )
    sync_day = DblinkSyncOperator(
        task_id="sync_day",
        source_conn_id="source_db",
        source_table="sale",
        destination_conn_id="warehouse_db",
        destination_table="sale",
        where="day = %(day)s",  # on both sides; other days are left alone
        where_parameters={"day": DAY},
        max_delete_fraction=None,  # a day that was loaded again may have other rows
        retries=2,
    )
    chain(make_tables, begin_day, [other_system, wait])
    chain(wait, sync_day)
