"""### A join over three databases.

Orders are in the warehouse, customers in the shop's own database, prices of former years in an archive.
`DblinkQueryOperator` reads customers and prices at the same time, makes temporary tables of them in a session
of the warehouse, and runs the SQL there, all in one transaction and exactly once.
The last task does the same in Python, with `hook.attach`.
"""

from typing import Any

from airflow.sdk import DAG, Param, chain, task

from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.query import DblinkQueryOperator, Remote

CUSTOMERS = Remote(
    "source_db",
    "SELECT id, name FROM customer WHERE country = %(country)s",
    parameters={"country": "{{ params.country }}"},
    indexes=["id"],
)
# It stands for a table of the archive.
PRICES = """
SELECT item, year, (item * 10 + year % 10)::numeric(10, 2) AS price
  FROM generate_series(1, 100) AS item, generate_series(2020, 2025) AS year
"""

with DAG(
    dag_id="dblink_join",
    schedule=None,
    params={
        "country": Param("FR", type="string", enum=["FR", "DE"], description="Whose customers."),
        "top": Param(3, type="integer", minimum=1, maximum=100, description="How many of them are shown."),
    },
    doc_md=__doc__,
    tags=["dblink", "example"],
):
    customers = DblinkExecOperator(
        task_id="make_customers",
        conn_id="source_db",
        sql="""
            CREATE TABLE IF NOT EXISTS customer (id int PRIMARY KEY, name text, country text);
            INSERT INTO customer
            SELECT n, 'Customer ' || n, CASE n % 2 WHEN 0 THEN 'FR' ELSE 'DE' END
              FROM generate_series(1, 1000) AS n
                ON CONFLICT DO NOTHING;
        """,
    )
    orders = DblinkExecOperator(
        task_id="make_orders",
        conn_id="warehouse_db",
        sql="""
            CREATE TABLE IF NOT EXISTS customer_order (id int PRIMARY KEY, customer int, item int, day date);
            INSERT INTO customer_order
            SELECT n, n % 1000 + 1, n % 100 + 1, '2020-01-01'::date + n % 2000
              FROM generate_series(1, 20000) AS n
                ON CONFLICT DO NOTHING;
            CREATE TABLE IF NOT EXISTS revenue (
                country text, customer int, name text, amount numeric, PRIMARY KEY (country, customer)
            );
        """,
    )
    revenue = DblinkQueryOperator(
        task_id="revenue",
        conn_id="warehouse_db",
        remotes={
            "customer": CUSTOMERS,
            "item_price": Remote("archive_db", PRICES, indexes=[["item", "year"]]),
        },
        sql="""
            DELETE FROM revenue WHERE country = %(country)s;
            INSERT INTO revenue
            SELECT %(country)s, customer.id, customer.name, sum(item_price.price)
              FROM customer_order
              JOIN customer ON customer.id = customer_order.customer
              JOIN item_price ON item_price.item = customer_order.item
                        AND item_price.year = extract(year FROM customer_order.day)
             GROUP BY customer.id, customer.name;
        """,
        parameters={"country": "{{ params.country }}"},
        retries=2,
    )
    best = DblinkQueryOperator(
        task_id="best_customers",
        conn_id="warehouse_db",
        sql="""
            SELECT name, amount FROM revenue WHERE country = %(country)s
             ORDER BY amount DESC, customer LIMIT %(top)s
        """,
        parameters={"country": "{{ params.country }}", "top": "{{ params.top }}"},
        max_xcom_rows=100,
    )

    @task
    def customers_without_orders(**context: Any) -> int:
        """Compare the two databases in Python."""
        with DblinkHook(dblink_conn_id="warehouse_db") as hook:
            hook.attach(
                {
                    "customer": {
                        "conn_id": "source_db",
                        "sql": "SELECT id FROM customer WHERE country = %s",
                        "parameters": [context["params"]["country"]],
                    }
                }
            )
            missing = "SELECT id FROM customer EXCEPT SELECT customer FROM customer_order"
            return len(hook.query(missing))

    chain([customers, orders], revenue, best, customers_without_orders())
