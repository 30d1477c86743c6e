"""### A job that nobody wants any more is cancelled.

While the job runs, `meanwhile` does something else. If it fails, nobody waits for the job, which would
go on for nothing. `cancel` is the teardown of `send`: Airflow runs it at the end, whatever failed in
between. It leaves an ended job as it is, so after a good run it does nothing.

A teardown does not decide how the run ends: `meanwhile` and `wait` do.
"""

from typing import Any

from airflow.sdk import DAG, Param, chain, task

from airflow_dblink.operators.jobs import DblinkCancelQueryOperator, DblinkSendQueryOperator
from airflow_dblink.sensors.job import DblinkJobSensor

with DAG(
    dag_id="dblink_job_teardown",
    schedule=None,
    params={
        "seconds": Param(20, type="integer", minimum=0, maximum=3_600, description="The job takes so long."),
        "meanwhile_fails": Param(False, type="boolean", description="See how the job is cancelled then."),
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):
    send = DblinkSendQueryOperator(
        task_id="send",
        conn_id="warehouse_db",
        sql="""
            CREATE TABLE IF NOT EXISTS report (run_id text, at timestamptz NOT NULL DEFAULT now());
            INSERT INTO report (run_id) SELECT %(run_id)s FROM pg_sleep(%(seconds)s);
        """,  # one transaction: a cancelled job leaves nothing of it
        parameters={"run_id": "{{ run_id }}", "seconds": "{{ params.seconds }}"},
        retries=2,
    )

    @task
    def meanwhile(**context: Any) -> None:
        """Do what doesn't need the job's outcome."""
        if context["params"]["meanwhile_fails"]:
            raise RuntimeError("failed, as the run was asked to")

    wait = DblinkJobSensor(task_id="wait", handle=send.output, deferrable=True)
    cancel = DblinkCancelQueryOperator(task_id="cancel", handle=send.output, retries=2)
    chain(send, meanwhile(), wait, cancel.as_teardown(setups=send))
