"""### A row changes, a run follows: events that are neither lost nor handled twice.

The shop's table `shop_order` emits an event for each change (its key, no other value). `dblink_events` runs
when events wait: it claims them, brings the changed orders to the warehouse, and acknowledges the events in
the end. A run that fails keeps its events: clear it, and it gets the same ones again.

Trigger `dblink_events_shop`, which plays the shop. The first time it also makes the tables.
"""

from datetime import timedelta

from airflow.sdk import DAG, Asset, AssetWatcher, chain, task

from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.events import DblinkAckEventsOperator, DblinkClaimEventsOperator
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator
from airflow_dblink.triggers.events import DblinkEventTrigger

TABLE = "CREATE TABLE IF NOT EXISTS shop_order (id integer PRIMARY KEY, amount numeric NOT NULL)"
ATTACH = """
CREATE SEQUENCE IF NOT EXISTS shop_order_id;
SELECT airflow_dblink_events.attach('shop_order', 'orders');
"""
SHOP = """
INSERT INTO shop_order SELECT nextval('shop_order_id'), 10 * i FROM generate_series(1, 100) AS i;
UPDATE shop_order SET amount = amount + 1 WHERE id % 10 = 0;
"""
CHANGED = """
SELECT id, amount FROM shop_order WHERE id IN (
    SELECT (payload -> 'key' ->> 'id')::integer FROM airflow_dblink_events.event WHERE claimed_by = %(claim)s
)
"""

order_events = Asset(
    "order_events",
    watchers=[AssetWatcher(name="orders", trigger=DblinkEventTrigger(conn_id="source_db", topic="orders"))],
)

with DAG(dag_id="dblink_events", schedule=[order_events], doc_md=__doc__, tags=["dblink", "example"]):
    claim = DblinkClaimEventsOperator(task_id="claim", conn_id="source_db", topic="orders")
    load = DblinkTransferOperator(
        task_id="load",
        source_conn_id="source_db",
        source_sql=CHANGED,
        source_parameters={"claim": claim.claimed_by},
        destination_conn_id="warehouse_db",
        destination_table="shop_order",
        mode="upsert",
        key=["id"],
        retries=2,
        retry_delay=timedelta(seconds=10),
    )
    ack = DblinkAckEventsOperator(task_id="ack", conn_id="source_db", claimed_by=claim.claimed_by)
    chain(claim, load, ack)


@task
def install() -> None:
    """Install the event table; a DBA would run `airflow dblink install-events source_db`."""
    DblinkHook(dblink_conn_id="source_db").install_events()


with DAG(dag_id="dblink_events_shop", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):
    chain(
        DblinkExecOperator(task_id="make_copy", conn_id="warehouse_db", sql=TABLE),
        DblinkExecOperator(task_id="make_table", conn_id="source_db", sql=TABLE),
        install(),
        DblinkExecOperator(task_id="attach", conn_id="source_db", sql=ATTACH),
        DblinkExecOperator(task_id="shop", conn_id="source_db", sql=SHOP),
    )
