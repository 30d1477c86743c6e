"""### Load a large table with many workers.

`dblink_parted_transfer` is a group of tasks: it copies a table in parts, each a task of its own, all from one
snapshot of the source. The loaded table then takes the destination's place, and readers wait for the rename
alone. A killed part is tried again, alone.
"""

from airflow.sdk import DAG, chain

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.parts import dblink_parted_transfer

with DAG(dag_id="dblink_parts", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):
    fill = DblinkExecOperator(
        task_id="fill_source",
        conn_id="source_db",
        sql="""
        DROP TABLE IF EXISTS measurement;
        CREATE TABLE measurement (id bigint PRIMARY KEY, at timestamptz NOT NULL, value float8 NOT NULL);
        INSERT INTO measurement
        SELECT i, timestamptz '2026-01-01Z' + i * interval '1 s', sqrt(i)
          FROM generate_series(1, 100000) AS i;
        """,
    )
    table = DblinkExecOperator(
        task_id="make_table",
        conn_id="warehouse_db",
        sql="""
        CREATE TABLE IF NOT EXISTS measurement (
            id bigint PRIMARY KEY, at timestamptz NOT NULL, value float8 NOT NULL
        );
        CREATE INDEX IF NOT EXISTS measurement_at ON measurement (at);
        """,
    )
    load = dblink_parted_transfer(
        group_id="load_measurement",
        source_conn_id="source_db",
        source_table="measurement",
        destination_conn_id="warehouse_db",
        destination_table="measurement",
        part_bytes=1_000_000,  # small, so that a small table has several parts
        task_arguments={"retries": 3},
    )
    chain([fill, table], load)
