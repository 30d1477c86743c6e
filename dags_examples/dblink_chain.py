"""### One Dag after the other, by an asset that says how much has changed.

`dblink_chain` keeps the copy of a price list equal to its source. If nothing differs there is no event, and
no run follows. If something does, the asset's event says how many rows were inserted, updated and deleted.
`dblink_chain_report` runs after each event, and reads these numbers: it doesn't have to look at the table.
"""

from collections.abc import Mapping
from typing import Any

from airflow.sdk import DAG, Asset, chain, task

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.sync import DblinkSyncOperator

TABLE = "CREATE TABLE IF NOT EXISTS price (product text PRIMARY KEY, cents integer NOT NULL)"
PRICES = """
INSERT INTO price VALUES ('tea', 250), ('milk', 99) ON CONFLICT DO NOTHING;
"""

price_copy = Asset("price_copy", uri="postgres://warehouse/dblink/public/price")

with DAG(dag_id="dblink_chain", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):
    chain(
        DblinkExecOperator(task_id="make_prices", conn_id="source_db", sql=TABLE + ";" + PRICES),
        DblinkExecOperator(task_id="make_copy", conn_id="warehouse_db", sql=TABLE),
        DblinkSyncOperator(
            task_id="copy",
            source_conn_id="source_db",
            source_table="price",
            destination_conn_id="warehouse_db",
            destination_table="price",
            outlets=[price_copy],
            emit_when_changed=True,
        ),
    )

with DAG(dag_id="dblink_chain_report", schedule=[price_copy], doc_md=__doc__, tags=["dblink", "example"]):

    @task
    def report(triggering_asset_events: Mapping[Asset, Any] | None = None) -> list[str]:
        """Return a line for each event that this run is for."""
        facts = [event.extra for events in (triggering_asset_events or {}).values() for event in events]
        return [
            f"{fact['inserted']} new, {fact['updated']} changed, {fact['deleted']} gone" for fact in facts
        ]

    report()  # Airflow gives the events
