"""### Keep several tables equal, foreign keys among them.

Each table is a mapped task of its own, so they run at the same time, and each has its own tries. Foreign keys
need an order: insert the parents' new rows, then sync the children, and last delete the parents' old rows.

Each task reads its table in a snapshot of its own, and others write to the source meanwhile. So that no child
comes without its parent, all tasks select only rows that were made some minutes ago or earlier.

`change_source` plays a library: it gets an author with a book, and gives away another with theirs.
"""

from typing import Any

import pendulum
from airflow.sdk import DAG, Param, chain, task

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.sync import DblinkSyncOperator

TABLES = """
CREATE TABLE IF NOT EXISTS author (
    id integer PRIMARY KEY, name text NOT NULL, created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS publisher (
    id integer PRIMARY KEY, name text NOT NULL, created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS book (
    id integer PRIMARY KEY,
    author_id integer NOT NULL REFERENCES author,
    publisher_id integer NOT NULL REFERENCES publisher,
    title text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
"""
# The first run makes a hundred authors with a book each; a later one exchanges one author for another.
CHANGES = """
DELETE FROM book WHERE author_id = (SELECT min(id) FROM author);
DELETE FROM author WHERE id = (SELECT min(id) FROM author);
UPDATE publisher SET name = name || '!' WHERE id = 3;
INSERT INTO publisher
SELECT id, 'Publisher ' || id, now() - interval '1 day' FROM generate_series(1, 10) AS id
    ON CONFLICT DO NOTHING;
INSERT INTO author
SELECT last.id + n, 'Author ' || last.id + n, now() - interval '1 hour'
  FROM (SELECT coalesce(max(id), 0) AS id FROM author) AS last,
       generate_series(1, CASE last.id WHEN 0 THEN 100 ELSE 1 END) AS n;
INSERT INTO book
SELECT author.id, author.id, author.id %% 10 + 1, 'Book ' || author.id, author.created_at
  FROM author LEFT JOIN book ON book.author_id = author.id
 WHERE book.id IS NULL;
"""

with DAG(
    dag_id="dblink_sync_tables",
    schedule="@hourly",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,  # an example that is only looked at writes nothing
    params={
        "parents": Param(
            ["author", "publisher"],
            type="array",
            items={"type": "string"},
            description="Tables that others refer to.",
        ),
        "children": Param(
            ["book"], type="array", items={"type": "string"}, description="Tables that refer to them."
        ),
        "minutes_behind": Param(
            15, type="integer", minimum=0, maximum=1440, description="Leave out rows that are younger."
        ),
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):

    @task
    def tables(which: str, **context: Any) -> list[dict[str, str]]:
        """Return the arguments of each mapped sync; they could as well come from a catalog."""
        return [{"source_table": name, "destination_table": name} for name in context["params"][which]]

    make_tables = DblinkExecOperator.partial(task_id="make_tables", sql=TABLES).expand(
        conn_id=["source_db", "warehouse_db"]
    )
    change_source = DblinkExecOperator(
        task_id="change_source",
        conn_id="source_db",
        sql=CHANGES,
        parameters={},  # %% is one %
    )

    common: dict[str, Any] = {
        "source_conn_id": "source_db",
        "destination_conn_id": "warehouse_db",
        # Selects rows on both sides; the same condition in all tasks.
        "where": "created_at < %(until)s",
        "where_parameters": {
            "until": "{{ dag_run.run_after - macros.timedelta(minutes=params.minutes_behind) }}"
        },
        "map_index_template": "{{ task.destination_table }}",
        "retries": 2,
    }
    parents = tables.override(task_id="parents")("parents")
    children = tables.override(task_id="children")("children")
    add_parents = DblinkSyncOperator.partial(task_id="add_parents", delete=False, **common).expand_kwargs(
        parents
    )
    sync_children = DblinkSyncOperator.partial(task_id="sync_children", **common).expand_kwargs(children)
    delete_parents = DblinkSyncOperator.partial(
        task_id="delete_parents", insert=False, update=False, **common
    ).expand_kwargs(parents)
    chain(make_tables, change_source, add_parents, sync_children, delete_parents)
