"""What other sessions do to other tables of the two databases is nothing to a sync."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.databases import Database
from tests.integration.sync.moments import waiting
from tests.syncs import sync

# Instead of waiting for good, a session gives up: long enough for a loaded machine's own locks.
GIVES_UP = {"lock_timeout": "5s"}
METHODS = pytest.mark.parametrize("method", ["difference", "reload"])


@METHODS
@pytest.mark.parametrize("statement", ["TRUNCATE other", "DROP TABLE other", "ALTER TABLE other ADD x int"])
def test_a_lock_on_another_table_keeps_nobody_waiting(
    source: Database, warehouse: Database, method: str, statement: str
) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, v text)")
        database.execute("CREATE TABLE other (id int PRIMARY KEY, v text UNIQUE)")
    source.execute("INSERT INTO item SELECT i, 'v' FROM generate_series(1, 50) AS i")
    with psycopg.connect(source.conninfo) as one, psycopg.connect(warehouse.conninfo) as another:
        for holder in (one, another):
            holder.execute(statement.encode())
        assert sync(method=method, session_settings=GIVES_UP)["inserted"] == 50


def test_a_table_that_is_gone_at_the_next_moment_is_no_error(source: Database, warehouse: Database) -> None:
    """Another session's DROP, of tables that our session sees locked, is committed while it looks."""
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1)")
        database.execute("CREATE TABLE other (id int PRIMARY KEY)")
    with psycopg.connect(source.conninfo) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("DROP TABLE other")
        found = pool.submit(sync)
        while not found.done() and not waiting(source, ""):
            pass
        holder.commit()
        assert found.result()["missing"] == 0
