"""### Begin when the day's data is complete, without a worker that waits.

Another system loads the day's orders in several batches, and counts on its own how many there must be. The
first row is no sign that all are there: `wait` waits until the numbers agree. It waits in the triggerer,
which the other system wakes by a NOTIFY after each batch; every 30 seconds it looks anyway. If the other
system gives the day up, `wait` fails at once.

`other_system` plays that system.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param, chain

from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator
from airflow_dblink.sensors.sql import DblinkSqlSensor

# Unlike logical_date, run_after is there in manual runs as well.
DAY = "{{ dag_run.run_after | ds }}"

TABLES = """
CREATE TABLE IF NOT EXISTS day_order (day date, id integer, amount numeric NOT NULL, PRIMARY KEY (day, id));
CREATE TABLE IF NOT EXISTS order_day (day date PRIMARY KEY, orders integer NOT NULL, state text NOT NULL);
"""
BEGIN_DAY = """
DELETE FROM day_order WHERE day = %(day)s;
INSERT INTO order_day VALUES (%(day)s, 3000, 'open')
    ON CONFLICT (day) DO UPDATE SET orders = excluded.orders, state = excluded.state;
"""
BATCH = """
SELECT pg_sleep(%(seconds)s::integer);
INSERT INTO day_order SELECT %(day)s, id, 1.5 * id
  FROM generate_series(1000 * (%(batch)s::integer - 1) + 1, 1000 * %(batch)s::integer) AS id;
NOTIFY orders_loaded;
"""

with DAG(
    dag_id="dblink_gate",
    schedule=None,
    params={
        "seconds": Param(
            3, type="integer", minimum=0, maximum=3_600, description="A batch takes the other system so long."
        ),
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):
    make_tables = DblinkExecOperator(task_id="make_tables", conn_id="source_db", sql=TABLES)
    begin_day = DblinkExecOperator(
        task_id="begin_day", conn_id="source_db", sql=BEGIN_DAY, parameters={"day": DAY}
    )
    batches = [
        DblinkExecOperator(
            task_id=f"other_system_{batch}",
            conn_id="source_db",
            sql=BATCH,
            parameters={"day": DAY, "batch": batch, "seconds": "{{ params.seconds }}"},
        )
        for batch in (1, 2, 3)
    ]
    wait = DblinkSqlSensor(
        task_id="wait",
        conn_id="source_db",
        sql="SELECT (SELECT count(*) FROM day_order WHERE day = d.day) = d.orders"
        " FROM order_day AS d WHERE d.day = %(day)s",
        parameters={"day": DAY},
        failure_sql=f"SELECT state = 'given up' FROM order_day WHERE day = '{DAY}'",  # noqa: S608 - our own date
        wake_channel="orders_loaded",
        poke_interval=30,
        timeout=timedelta(hours=6),
        deferrable=True,
    )
    load = DblinkTransferOperator(
        task_id="load",
        source_conn_id="source_db",
        source_table="day_order",
        destination_conn_id="warehouse_db",
        destination_table="day_order",
        mode="swap",
    )
    make_copy = DblinkExecOperator(task_id="make_copy", conn_id="warehouse_db", sql=TABLES)
    chain(make_tables, begin_day, *batches)
    chain(begin_day, wait, load)
    chain(make_copy, load)
