"""### From one PostgreSQL database to another, every day.

`pgbench`, PostgreSQL's own benchmark, fills `source_db` and works on it. Its accounts and their history
go to `warehouse_db`: first all accounts, then only those that have changed since. In the end both sides
are compared, row by row.

Every task can be retried, cleared or killed at any time. Each exec or transfer operator makes its changes in
one transaction, exactly once. A second run on the same day replaces the rows that the first one loaded.
"""

import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, BaseHook, Param, chain, task

from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.fetch import DblinkFetchOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator

# Unlike logical_date, run_after is there in manual runs as well.
DAY = "{{ dag_run.run_after | ds }}"
BATCH_ROWS = 50_000

log = logging.getLogger(__name__)


def pgbench(*options: str) -> None:
    """Run pgbench on ``source_db``; the password goes through its environment, not its command line."""
    program = os.environ.get("AIRFLOW_DBLINK_PGBENCH") or shutil.which("pgbench")
    if not program:
        raise FileNotFoundError("no pgbench: it comes with PostgreSQL; or set AIRFLOW_DBLINK_PGBENCH")
    connection = BaseHook.get_connection("source_db")
    login = {
        "PGHOST": connection.host,
        "PGPORT": connection.port,
        "PGUSER": connection.login,
        "PGPASSWORD": connection.password,
        "PGDATABASE": connection.schema,
    }
    env = os.environ | {name: str(value) for name, value in login.items() if value}
    done = subprocess.run([program, *options], env=env, capture_output=True, text=True, check=False)
    log.info("%s%s", done.stdout, done.stderr)
    if done.returncode:
        raise RuntimeError(f"pgbench {' '.join(options)} ended with exit code {done.returncode}")


with DAG(
    dag_id="dblink_flagship",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,  # there is one source to fill
    params={
        "scale": Param(
            1, type="integer", minimum=1, maximum=1_000, description="Times 100,000 accounts (13 MB)."
        ),
        "transactions": Param(
            2_000, type="integer", minimum=1, maximum=1_000_000, description="Each pgbench run makes so many."
        ),
        "export_folder": Param(
            Path(tempfile.gettempdir(), "airflow_dblink").as_uri(),
            type="string",
            description="Where the CSV file goes: any URL that Airflow's object storage knows.",
        ),
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):

    @task
    def fill_source(scale: str, transactions: str) -> None:
        """Make pgbench's tables anew and let its clients work on them."""
        pgbench("--initialize", f"--scale={scale}", "--quiet")
        pgbench("--no-vacuum", f"--transactions={transactions}")

    @task
    def more_traffic(transactions: str) -> None:
        """Change accounts that have been loaded already."""
        pgbench("--no-vacuum", f"--transactions={transactions}")

    prepare_source = DblinkExecOperator(
        task_id="prepare_source", conn_id="source_db", sql="sql/prepare_source.sql"
    )
    prepare_warehouse = DblinkExecOperator(
        task_id="prepare_warehouse", conn_id="warehouse_db", sql="sql/warehouse.sql"
    )
    export_history = DblinkFetchOperator(
        task_id="export_history",
        conn_id="source_db",
        sql="SELECT id, aid, delta, mtime FROM pgbench_history ORDER BY id",
        path=f"{{{{ params.export_folder }}}}/history-{DAY}.csv.gz",
        batch_rows=BATCH_ROWS,
    )
    # Read before the load: update_accounts loads all later changes (again).
    watermark = DblinkFetchOperator(
        task_id="watermark",
        conn_id="source_db",
        sql="SELECT coalesce(max(id), 0) FROM pgbench_history",
        max_xcom_rows=1,
    )
    load_accounts = DblinkTransferOperator(
        task_id="load_accounts",
        source_conn_id="source_db",
        source_table="pgbench_accounts",
        destination_conn_id="warehouse_db",
        destination_table="account",
        mode="swap",  # a new table, analyzed, takes the place: readers of the old one wait for milliseconds
    )
    update_accounts = DblinkTransferOperator(
        task_id="update_accounts",
        source_conn_id="source_db",
        source_sql="""
            SELECT * FROM pgbench_accounts
             WHERE aid IN (SELECT aid FROM pgbench_history WHERE id > %(watermark)s)
        """,
        source_parameters={"watermark": "{{ ti.xcom_pull('watermark')['data'][0][0] }}"},
        destination_conn_id="warehouse_db",
        destination_table="account",
        mode="upsert",  # by the primary key of account
    )
    load_history = DblinkTransferOperator(
        task_id="load_history",
        source_conn_id="source_db",
        source_sql="SELECT %(day)s::date AS loaded_on, id, aid, delta, mtime FROM pgbench_history",
        source_parameters={"day": DAY},
        destination_conn_id="warehouse_db",
        destination_table="account_history",
        mode="append",
        # In the same transaction: the day is replaced, other days stay.
        pre_sql="DELETE FROM account_history WHERE loaded_on = '{{ dag_run.run_after | ds }}'",
    )

    @task
    def both_sides_agree(day: str) -> dict[str, int]:
        """Raise unless the warehouse has what the source has; return the counts."""
        with DblinkHook() as hook:
            hook.connect("source", "source_db")
            hook.connect("warehouse", "warehouse_db")

            # Few rows: query returns them all.
            there = hook.query("SELECT count(*), sum(delta) FROM pgbench_history", connname="source")
            here = hook.query(
                "SELECT count(*), sum(delta) FROM account_history WHERE loaded_on = %s",
                [day],
                connname="warehouse",
            )
            if there != here:
                raise ValueError(f"history differs: source {there}, warehouse {here}")

            # Many rows: batches holds only one batch of each side, all from one snapshot.
            columns = "SELECT aid, bid, abalance FROM"
            sides = zip(
                hook.batches(
                    f"{columns} pgbench_accounts ORDER BY aid", batch_rows=BATCH_ROWS, connname="source"
                ),
                hook.batches(f"{columns} account ORDER BY aid", batch_rows=BATCH_ROWS, connname="warehouse"),
                strict=True,
            )
            accounts = 0
            for theirs, ours in sides:
                if theirs != ours:
                    raise ValueError(f"accounts differ between {theirs[0][0]} and {theirs[-1][0]}")
                accounts += len(ours)
            return {"accounts": accounts, "history": here[0][0]}

    @task
    def summary(counts: Any, moved: Any) -> dict[str, Any]:
        """Log what was moved and return the sums."""
        for task_id, result in moved.items():
            log.info("%s: %s", task_id, result)
        return {**counts, "rows_moved": sum(result["rows"] for result in moved.values())}

    filled = fill_source("{{ params.scale }}", "{{ params.transactions }}")
    changed = more_traffic("{{ params.transactions }}")
    agreed = both_sides_agree(DAY)
    chain(filled, prepare_source, [export_history, watermark])
    chain([watermark, prepare_warehouse], load_accounts, changed, [update_accounts, load_history], agreed)
    moves = (export_history, load_accounts, update_accounts, load_history)
    summary(agreed, {operator.task_id: operator.output for operator in moves})
