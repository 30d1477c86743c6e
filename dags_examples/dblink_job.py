"""### A query that runs as a job of the server's own.

`send` starts it and is done as soon as it is running; from then on it needs no worker, and nobody's
connection. `wait` waits in the triggerer. The rows are kept on the server, until `load` and `export` have
fetched them.

Kill what you like meanwhile, the worker, the triggerer, the scheduler: the query goes on, and runs once.
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
        keep_result=True,  # in a table of the server's, or nobody could fetch the rows later
        retries=2,  # a retry finds the job that is there, and sends none beside it
    )
    # Gives the job's handle on, so that what comes after it needs only this one.
    wait = DblinkJobSensor(task_id="wait", handle=send.output, deferrable=True)
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
        drop_result=True,  # the last one cleans up; else prune-jobs does, with the job
    )
    chain(table, load, export)
