"""### Fetch rows in batches.

`DblinkFetchOperator` reads a query's result of any size, in constant memory and from one snapshot. The rows
go to a function, to a CSV file on any object storage that Airflow knows, or (if they are few) to XCom.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_dblink.operators.fetch import DblinkFetchOperator

QUERY = "SELECT n, n * n AS square FROM generate_series(1, 25000) AS n"

log = logging.getLogger(__name__)


def log_batch(rows: list[tuple[Any, ...]]) -> None:
    """Log where a batch begins and ends. A retry begins again with the first batch."""
    log.info("%s rows, from %s to %s", len(rows), rows[0], rows[-1])


with DAG(dag_id="dblink_fetch", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):
    DblinkFetchOperator(
        task_id="to_function", conn_id="source_db", sql=QUERY, handler=log_batch, batch_rows=10_000
    )
    DblinkFetchOperator(
        task_id="to_file",
        conn_id="source_db",
        sql=QUERY,
        path=Path(tempfile.gettempdir(), "airflow_dblink", "squares.csv.gz").as_uri(),
    )
    DblinkFetchOperator(
        task_id="to_xcom",
        conn_id="source_db",
        sql="SELECT max(n), sum(n) FROM generate_series(1, %(last)s) AS n",
        parameters={"last": 100},
        max_xcom_rows=1,
    )
