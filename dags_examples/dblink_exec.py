"""### Run SQL in a database, exactly once.

`DblinkExecOperator` takes one statement, a script, or the path of a `.sql` file. All of it is one
transaction. Values are bound by name or position, never pasted into the text.

Kill the worker while this runs: PostgreSQL goes on, and the retry finds out how it ended instead of
adding the visit twice.
"""

from datetime import timedelta

from airflow.sdk import DAG

from airflow_dblink.operators.execute import DblinkExecOperator

with DAG(dag_id="dblink_exec", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):
    DblinkExecOperator(
        task_id="count_the_visit",
        conn_id="source_db",
        sql="""
            CREATE TABLE IF NOT EXISTS visit (run_id text, at timestamptz NOT NULL DEFAULT now());
            INSERT INTO visit (run_id) VALUES (%(run_id)s);
        """,
        parameters={"run_id": "{{ run_id }}"},
        session_settings={"lock_timeout": "10s"},
        execution_timeout=timedelta(minutes=5),  # also ends the statement on the server
        retries=2,
    ) >> DblinkExecOperator(
        task_id="clean_up",
        conn_id="source_db",
        sql="VACUUM visit",
        transaction=False,  # VACUUM can't run in one; then it is at least once
    )
