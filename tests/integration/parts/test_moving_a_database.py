"""The page on moving a database, done as it says."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path
from textwrap import dedent
from typing import Any
from unittest.mock import patch

from airflow.sdk import DAG

from tests.databases import Database
from tests.integration.parts.test_sets import Run

PAGE = Path(__file__).parents[3] / "docs/how-to/moving-a-database.md"
OLD = """
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE SCHEMA sales;
CREATE FUNCTION sales.next_price() RETURNS numeric LANGUAGE sql AS 'SELECT 9.5';
CREATE TABLE sales.customer (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name citext UNIQUE, mood mood);
CREATE TABLE sales.orders (
    id bigserial PRIMARY KEY, customer int REFERENCES sales.customer, at date NOT NULL,
    price numeric DEFAULT sales.next_price()
);
CREATE TABLE public.empty (a int);
CREATE VIEW sales.best AS SELECT customer, sum(price) AS total FROM sales.orders GROUP BY 1;
CREATE FUNCTION sales.touch() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.price := coalesce(NEW.price, 1); RETURN NEW; END';
CREATE TRIGGER touch BEFORE INSERT ON sales.orders FOR EACH ROW EXECUTE FUNCTION sales.touch();
INSERT INTO sales.customer (name, mood) SELECT 'Name ' || i, 'glad' FROM generate_series(1, 100) AS i;
INSERT INTO sales.orders (customer, at) SELECT 1 + i % 100, '2026-01-01' FROM generate_series(1, 1000) AS i
"""
CATALOG = """
SELECT n.nspname, c.relname, c.relkind::text, c.relispartition,
       ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint AS k
              WHERE k.conrelid = c.oid AND k.contype <> 'n' ORDER BY 1),
       ARRAY(SELECT tgname::text FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal),
       ARRAY(SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = c.oid ORDER BY adnum)
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname IN ('sales', 'public') AND c.relkind <> 'c' ORDER BY 1, 2
"""


def console(block: str, source: Database, warehouse: Database, folder: Path) -> None:
    """Run a block of the page, as a DBA would."""
    env = os.environ | {"OLD": source.admin_conninfo, "NEW": warehouse.conninfo}
    env["PATH"] = f"{source.server.bindir}:{env['PATH']}"
    subprocess.run(["bash", "-euc", dedent(block)], cwd=folder, env=env, check=True)


def test_a_database_is_moved(source: Database, warehouse: Database, tmp_path: Path) -> None:
    source.execute(OLD)
    warehouse.admin("CREATE EXTENSION citext")
    text = PAGE.read_text()
    first, last = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    console(first, source, warehouse, tmp_path)

    names: dict[str, Any] = {}
    with DAG("page", schedule=None) as page, patch("airflow.sdk.DAG", lambda _: nullcontext()):
        exec(compile(dedent(code), str(PAGE), "exec"), names)  # noqa: S102 - the test is to run it
    plan: Any = page.get_task("all_tables.plan")
    run = Run()
    for _ in range(2):  # tried in advance, and once more
        result = run.whole(*plan.tables, exclude=plan.exclude)
        run = Run()
    console(last, source, warehouse, tmp_path)

    assert result["tables"] == 3
    assert warehouse.rows(CATALOG) == source.rows(CATALOG)
    for table in ("sales.customer", "sales.orders", "sales.best"):
        query = f"SELECT t::text FROM {table} AS t ORDER BY 1"  # noqa: S608 - the test's own name
        assert warehouse.rows(query) == source.rows(query), table
    warehouse.execute("INSERT INTO sales.orders (customer, at, price) VALUES (1, '2026-01-02', NULL)")
    assert warehouse.rows("SELECT id, price FROM sales.orders ORDER BY id DESC LIMIT 1") == [(1001, 1)]
