"""### The same query in several databases at the same time.

Each database runs one job, all at the same time, and no worker waits for them. Each job has tries of its own,
so a database that is away for a while delays only its own job.
"""

from typing import Any

from airflow.sdk import DAG, Param, chain, task

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.jobs import DblinkGetResultOperator, DblinkSendQueryOperator
from airflow_dblink.sensors.job import DblinkJobSensor

QUERY = """
SELECT %(run_id)s AS run_id, current_setting('port')::integer AS port, current_database() AS database,
       count(*) AS tables, sum(pg_total_relation_size(oid)) AS bytes
  FROM pg_class
 WHERE relkind = 'r'
"""

with DAG(
    dag_id="dblink_jobs_parallel",
    schedule=None,
    params={
        "conn_ids": Param(
            ["source_db", "warehouse_db"],
            type="array",
            items={"type": "string"},
            minItems=1,
            description="Connections of the databases that are asked.",
        )
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):

    @task
    def databases(**context: Any) -> list[str]:
        """Return what the run was asked for; any task that returns a list would do."""
        return [str(conn_id) for conn_id in context["params"]["conn_ids"]]

    table = DblinkExecOperator(
        task_id="make_table",
        conn_id="warehouse_db",
        sql="""
            CREATE TABLE IF NOT EXISTS database_size (
                run_id text, port integer, database text, tables bigint, bytes numeric,
                PRIMARY KEY (run_id, port, database)
            )
        """,
    )
    send = DblinkSendQueryOperator.partial(
        task_id="send", sql=QUERY, parameters={"run_id": "{{ run_id }}"}, keep_result=True, retries=2
    ).expand(conn_id=databases())
    wait = DblinkJobSensor.partial(task_id="wait", deferrable=True).expand(handle=send.output)
    gather = DblinkGetResultOperator.partial(
        task_id="gather",
        destination_conn_id="warehouse_db",
        destination_table="database_size",
        mode="upsert",  # a cleared task replaces its own row
        drop_result=True,
    ).expand(handle=wait.output)
    chain(table, gather)
