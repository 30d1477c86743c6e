"""### Sync only what a person has approved.

`plan` is a dry run: it reports the difference and changes nothing. Its statements go to a file. `approve` is
Airflow's own operator: it shows the plan to a person, and waits for an answer as long as it takes, without
holding a worker. `apply` makes exactly these changes. If the data has moved on since, on either side, it
fails and changes nothing.

`change_source` plays somebody who works on a price list.
"""

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Param, chain, task

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.sync import DblinkSyncOperator

TABLE = "CREATE TABLE IF NOT EXISTS price (article text PRIMARY KEY, euro numeric(10, 2) NOT NULL)"
CHANGES = """
DELETE FROM price WHERE article IN (SELECT article FROM price ORDER BY random() LIMIT %(changes)s::integer);
UPDATE price SET euro = euro + 1
 WHERE article IN (SELECT article FROM price ORDER BY random() LIMIT %(changes)s::integer);
INSERT INTO price
SELECT 'A-' || gen_random_uuid(), n
  FROM generate_series(1, CASE WHEN EXISTS (SELECT FROM price) THEN %(changes)s::integer ELSE 1000 END) AS n;
"""
BODY = """
{%- set found = ti.xcom_pull(task_ids='plan') -%}
Table `price` of the warehouse has {{ found.destination_rows }} rows, the source has {{ found.source_rows }}.

| | rows | first keys |
|---|--:|---|
{% for what, kind in (('insert', 'missing'), ('update', 'changed'), ('delete', 'extra')) -%}
| {{ what }} | {{ found[kind] }} | {{ found.first_keys[kind] | map('join', ', ') | join('; ') }} |
{% endfor %}
All statements: `{{ params.folder }}/price-{{ dag_run.run_after | ts_nodash }}.sql`
"""

# The same arguments for both tasks: a plan is refused with others.
WHAT: dict[str, Any] = {
    "source_conn_id": "source_db",
    "source_table": "price",
    "destination_conn_id": "warehouse_db",
    "destination_table": "price",
    "max_delete_fraction": None,  # here a person is the guard
}

with DAG(
    dag_id="dblink_sync_approval",
    schedule=None,
    params={
        "changes": Param(
            5, type="integer", minimum=0, maximum=1_000, description="Delete, update and insert so many."
        ),
        "folder": Param(
            Path(tempfile.gettempdir(), "airflow_dblink").as_uri(),
            type="string",
            description="Where the statements go: any URL that Airflow's object storage knows.",
        ),
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):

    @task.short_circuit
    def anything_to_do(found: Any) -> bool:
        """Ask nobody if both sides are equal."""
        return bool(found["missing"] or found["changed"] or found["extra"])

    make_table = DblinkExecOperator.partial(task_id="make_table", sql=TABLE).expand(
        conn_id=["source_db", "warehouse_db"]
    )
    change_source = DblinkExecOperator(
        task_id="change_source",
        conn_id="source_db",
        sql=CHANGES,
        parameters={"changes": "{{ params.changes }}"},
    )
    plan = DblinkSyncOperator(
        task_id="plan",
        plan_only=True,
        statements_path="{{ params.folder }}/price-{{ dag_run.run_after | ts_nodash }}.sql",
        **WHAT,
    )
    approve = ApprovalOperator(
        task_id="approve",
        subject="Change the prices in the warehouse?",
        body=BODY,
        defaults="Reject",  # if nobody answers
        response_timeout=timedelta(days=1),
    )
    apply = DblinkSyncOperator(
        task_id="apply",
        plan=plan.output,
        retries=2,  # but a plan that no longer fits the data fails at once
        **WHAT,
    )
    chain(make_table, change_source, plan, anything_to_do(plan.output), approve, apply)
