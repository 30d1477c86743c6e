"""### Load a table anew while others read it.

`mode="swap"` loads a table beside the destination, builds its indexes after the load, and lets it take the
destination's place. Readers wait milliseconds, not for the load. Keys, indexes, grants, policies, triggers
and comments are those of the old table. Everything is one transaction: if it fails, nothing has changed.
"""

from datetime import timedelta

from airflow.sdk import DAG, chain

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator

with DAG(dag_id="dblink_transfer_swap", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):
    table = DblinkExecOperator(
        task_id="make_table",
        conn_id="warehouse_db",
        sql="""
            CREATE TABLE IF NOT EXISTS setting (name text PRIMARY KEY, category text NOT NULL, setting text);
            CREATE INDEX IF NOT EXISTS setting_category ON setting (category, name);
            GRANT SELECT ON setting TO PUBLIC;
        """,
    )
    load = DblinkTransferOperator(
        task_id="load",
        source_conn_id="source_db",
        source_sql="SELECT name, category, setting FROM pg_settings",
        destination_conn_id="warehouse_db",
        destination_table="setting",
        mode="swap",
        swap_timeout=timedelta(minutes=2),  # how long to ask for the lock while a long report reads the table
    )
    chain(table, load)
