"""### Move rows from one database into a table of another.

`DblinkTransferOperator` copies by COPY, so every type arrives as it was. Columns are matched by name.
Everything is checked before a row moves, and the destination's transaction is done exactly once.
"""

from airflow.sdk import DAG, chain

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator

with DAG(dag_id="dblink_transfer", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):
    table = DblinkExecOperator(
        task_id="make_table",
        conn_id="warehouse_db",
        sql="""CREATE TABLE IF NOT EXISTS "Time Zone" (name text PRIMARY KEY, "UTC offset" interval)""",
    )
    load = DblinkTransferOperator(
        task_id="load",
        source_conn_id="source_db",
        source_sql="SELECT name, utc_offset FROM pg_timezone_names",
        destination_conn_id="warehouse_db",
        destination_table='"Time Zone"',
        columns={"name": "name", "utc_offset": "UTC offset"},  # source: destination
        mode="upsert",  # inserts, or updates the row with the same primary key
    )
    chain(table, load)
