"""### Load a set of tables, all from one snapshot and swapped together.

`dblink_parted_transfer` takes patterns of tables, too. It creates what the destination lacks, copies small
tables together and large ones in parts, and gives all of them their places in one transaction. So readers
never see an order whose customer isn't there.
"""

from airflow.sdk import DAG

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.parts import dblink_parted_transfer

with DAG(dag_id="dblink_set", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):
    fill = DblinkExecOperator(
        task_id="fill_source",
        conn_id="source_db",
        sql="""
        DROP SCHEMA IF EXISTS shop CASCADE;
        CREATE SCHEMA shop;
        CREATE TABLE shop.customer (id int PRIMARY KEY, name text NOT NULL);
        CREATE TABLE shop.orders (
            id int PRIMARY KEY, customer_id int NOT NULL REFERENCES shop.customer, total numeric NOT NULL
        );
        CREATE TABLE shop.session_log (id int);
        INSERT INTO shop.customer SELECT i, 'customer ' || i FROM generate_series(1, 1000) AS i;
        INSERT INTO shop.orders SELECT i, 1 + i % 1000, i / 7.0 FROM generate_series(1, 20000) AS i;
        """,
    )
    load = dblink_parted_transfer(
        group_id="load_shop",
        source_conn_id="source_db",
        destination_conn_id="warehouse_db",
        tables=["shop.*"],
        exclude=["shop.*_log"],
        schemas={"shop": "shop_copy"},  # another name there
        create=True,  # the schema and tables that aren't there yet, with keys, indexes and defaults
        task_arguments={"retries": 3},
    )
    fill >> load
