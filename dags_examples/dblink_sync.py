"""### Keep a table equal to another database's.

`DblinkSyncOperator` has both servers compute checksums, fetches only the rows that differ, and writes
them in one transaction, exactly once. Before the commit it compares again. Equal rows are not touched.

`change_source` plays a shop: the first run fills its table, each later one deletes, updates and inserts some
rows. With `plan_only` the run reports the difference, and changes nothing.
"""

from airflow.sdk import DAG, Param, chain

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.sync import DblinkSyncOperator

TABLE = """
CREATE TABLE IF NOT EXISTS product (
    id integer PRIMARY KEY, name text NOT NULL, price numeric(10, 2) NOT NULL, tags text[]
)
"""
CHANGES = """
DELETE FROM product WHERE id IN (SELECT id FROM product ORDER BY random() LIMIT %(changes)s::integer);
UPDATE product SET price = price + 1
 WHERE id IN (SELECT id FROM product ORDER BY random() LIMIT %(changes)s::integer);
INSERT INTO product
SELECT last.id + n, 'Product ' || last.id + n, n / 100.0, ARRAY['new', md5(n::text)]
  FROM (SELECT coalesce(max(id), 0) AS id FROM product) AS last,
       generate_series(1, CASE last.id WHEN 0 THEN %(rows)s::integer ELSE %(changes)s::integer END) AS n;
"""

with DAG(
    dag_id="dblink_sync",
    schedule=None,
    params={
        "rows": Param(
            100_000, type="integer", minimum=1, maximum=10_000_000, description="The first run makes so many."
        ),
        "changes": Param(
            100,
            type="integer",
            minimum=0,
            maximum=1_000_000,
            description="Later runs delete, update and insert so many each.",
        ),
        "plan_only": Param(False, type="boolean", description="Say what differs, and change nothing."),
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):
    make_table = DblinkExecOperator.partial(task_id="make_table", sql=TABLE).expand(
        conn_id=["source_db", "warehouse_db"]
    )
    change_source = DblinkExecOperator(
        task_id="change_source",
        conn_id="source_db",
        sql=CHANGES,
        parameters={"rows": "{{ params.rows }}", "changes": "{{ params.changes }}"},
    )
    sync = DblinkSyncOperator(
        task_id="sync",
        source_conn_id="source_db",
        source_table="product",
        destination_conn_id="warehouse_db",
        destination_table="product",  # its primary key identifies the rows
        plan_only="{{ params.plan_only }}",
        max_delete_fraction=0.1,  # refuse to delete more: somebody should look
        retries=2,
    )
    chain(make_table, change_source, sync)
