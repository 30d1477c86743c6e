"""### A query that the server runs by itself, as a job.

`send` starts the job and ends as soon as the job is running; from then on the job needs no worker and no
connection. `wait` waits in the triggerer. The server keeps the rows until `load` and `export` have
fetched them.

Kill worker, triggerer or scheduler meanwhile: the query goes on, and runs once.
"""

import tempfile
from pathlib import Path

from airflow.sdk import DAG, Param, chain

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.jobs import DblinkGetResultOperator, DblinkSendQueryOperator
from airflow_dblink.sensors.job import DblinkJobSensor

with DAG(
    dag_id="dblink_job",
    schedule=None,
    params={
        "rows": Param(10_000, type="integer", minimum=1, maximum=10_000_000, description="So many rows."),
        "seconds": Param(
            10, type="integer", minimum=0, maximum=3_600, description="The query takes so long at least."
        ),
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):
    table = DblinkExecOperator(
        task_id="make_table",
        conn_id="warehouse_db",
        sql="CREATE TABLE IF NOT EXISTS number_digest (n integer PRIMARY KEY, digest text NOT NULL)",
    )
    send = DblinkSendQueryOperator(
        task_id="send",
        conn_id="source_db",
        sql="""
            SELECT n, md5(n::text) AS digest
              FROM pg_sleep(%(seconds)s), generate_series(1, %(rows)s, 2) AS n
             ORDER BY n
        """,
        parameters={"seconds": "{{ params.seconds }}", "rows": "{{ params.rows }}"},
        keep_result=True,  # in a table on the server, so that the rows can be fetched later
        retries=2,  # a retry finds this job, and sends no second one
    )
    # Returns the job's handle, so later tasks depend only on this one.
    wait = DblinkJobSensor(task_id="wait", handle=send.output, deferrable=True, retries=2)
    load = DblinkGetResultOperator(
        task_id="load",
        handle=wait.output,
        destination_conn_id="warehouse_db",  # another server: COPY, through the worker
        destination_table="number_digest",
        mode="upsert",
    )
    export = DblinkGetResultOperator(
        task_id="export",
        handle=wait.output,
        path=Path(tempfile.gettempdir(), "airflow_dblink", "number_digests.csv.gz").as_uri(),
        drop_result=True,  # the last reader cleans up; otherwise prune-jobs does, with the job
    )
    chain(table, load, export)
