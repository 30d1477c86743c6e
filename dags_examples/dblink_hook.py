"""### dblink's own functions, in Python.

`DblinkHook` has the names and the behaviour of PostgreSQL's dblink: named links, `query`, `exec`, and
cursors with `open`, `fetch` and `close`. A link goes to an Airflow connection; leaving the `with` block
closes all of them.
"""

import logging

from airflow.sdk import DAG, task

from airflow_dblink.hooks.dblink import DblinkHook

log = logging.getLogger(__name__)

with DAG(dag_id="dblink_hook", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):

    @task
    def compare_servers() -> dict[str, str]:
        """Ask two databases the same, then read a result through a cursor."""
        with DblinkHook() as hook:
            hook.connect("source", "source_db")
            hook.connect("warehouse", "warehouse_db")
            versions: dict[str, str] = {}
            for name in hook.get_connections():
                versions[name] = hook.query("SHOW server_version", connname=name)[0][0]

            hook.exec("CREATE TEMP TABLE number AS SELECT generate_series(1, 10) AS n", connname="source")
            hook.open("numbers", "SELECT n FROM number ORDER BY n", connname="source")
            while rows := hook.fetch("numbers", 4, connname="source"):
                log.info("%s", rows)
            hook.close("numbers", connname="source")  # also ends the transaction that open began

            if hook.exec("SELECT nonsense", connname="source", fail_on_error=False) == "ERROR":
                log.info("As expected: %s", hook.error_message("source"))
            return versions

    compare_servers()
