"""### Three databases asked at the same time.

One task opens a link to each of three databases and sends each of them its query. All three work while
the task waits for the first, so the task takes as long as the slowest query, not as long as all together.
`send_query`, `is_busy`, `get_result` and `cancel_query` are dblink's.
"""

import logging
import time

from airflow.sdk import DAG, task

from airflow_dblink.hooks.dblink import DblinkHook

log = logging.getLogger(__name__)

QUERY = """
SELECT %(database)s, count(*), sum(length(md5(n::text)))
  FROM generate_series(1, 200000) AS n
"""

with DAG(dag_id="dblink_async", schedule=None, doc_md=__doc__, tags=["dblink", "example"]):

    @task
    def count_everywhere() -> list[list[object]]:
        """Ask all, then gather; a query that takes too long is cancelled."""
        answers: list[list[object]] = []
        with DblinkHook() as hook:
            for database in ("source", "warehouse", "archive"):
                hook.connect(database, f"{database}_db")
                hook.send_query(QUERY, {"database": database}, connname=database)

            deadline = time.monotonic() + 60
            for database in hook.get_connections():
                while hook.is_busy(database):
                    if time.monotonic() > deadline:
                        log.warning("%s is too slow: %s", database, hook.cancel_query(database))
                        break
                    time.sleep(0.1)
                # It raises if the query was cancelled; the end of the block then cancels the others.
                answers += [list(row) for row in hook.get_result(database)]
                assert hook.get_result(database) == []  # noqa: S101 - read to the end: the link is free again
        return answers

    @task
    def copy_one_row() -> str:
        """Make the statement that puts a row of one database into another, as dblink's builders do."""
        with DblinkHook() as hook:
            hook.connect("source", "source_db")
            hook.connect("warehouse", "warehouse_db")
            hook.exec("CREATE TEMP TABLE town (id int PRIMARY KEY, name text)", connname="source")
            hook.exec("CREATE TEMP TABLE town (id int PRIMARY KEY, name text)", connname="warehouse")
            hook.exec("INSERT INTO town VALUES (7, 'Saint-Paul-d''Oueil')", connname="source")
            key = hook.get_pkey("town", connname="source")
            log.info("The key is %s", [field.colname for field in key])
            statement = hook.build_sql_insert("town", [1], [7], [7], connname="source")
            hook.exec(statement, connname="warehouse")
            return str(hook.query("SELECT name FROM town WHERE id = 7", connname="warehouse")[0][0])

    count_everywhere() >> copy_one_row()
