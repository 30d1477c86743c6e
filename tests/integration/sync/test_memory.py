"""Memory of a sync does not grow with the rows, whether few of them differ or some in many groups."""

from __future__ import annotations

import json

from tests.databases import Database
from tests.own_process import MB, last_line

LIMIT = 64 * MB  # over what the imports take
FEW, MANY = 300_000, 3_000_000

# Peak of the resident memory, first after the imports and a sync of one row, then after the big one.
RUN = """
import json, sys
from tests.own_process import peak
from tests.syncs import sync

sync("small")
before = peak()
result = sync(sys.argv[1], **json.loads(sys.argv[2]))
print(json.dumps({**result, "grown": peak() - before}))
"""


def synced(table: str, **arguments: object) -> dict[str, int]:
    result: dict[str, int] = json.loads(last_line(RUN, table, json.dumps(arguments)))
    return result


def test_long_keys_are_fetched_back_a_few_at_a_time(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE small (id bigint PRIMARY KEY); INSERT INTO small VALUES (1)")
        database.execute("CREATE TABLE long (id text PRIMARY KEY, v int)")
        database.execute(
            "INSERT INTO long SELECT i || string_agg(md5(i || '.' || j), ''), 0"
            " FROM generate_series(1, 20000) AS i, generate_series(1, 64) AS j GROUP BY i"
        )
        database.execute("ANALYZE long")
    warehouse.execute("UPDATE long SET v = 1 WHERE id ~ '^[1-9]{2}'")  # about 30 MB of keys
    result = synced("long", method="difference", max_change_fraction=None)
    assert result["updated"] > 15_000
    assert result["grown"] < LIMIT, result


def test_a_nearly_empty_destination_does_not_make_a_group_of_each_row(
    source: Database, warehouse: Database
) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE small (id bigint PRIMARY KEY); INSERT INTO small VALUES (1)")
        database.execute("CREATE TABLE fresh (id bigint PRIMARY KEY)")
    source.execute(f"INSERT INTO fresh SELECT generate_series(1, {FEW})")
    warehouse.execute("INSERT INTO fresh VALUES (5)")
    result = synced("fresh", method="difference")
    assert result["inserted"] == FEW - 1
    assert result["groups"] < FEW / 8
    assert result["grown"] < LIMIT, result


def test_ten_times_the_rows_take_the_same_memory(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE small (id bigint PRIMARY KEY); INSERT INTO small VALUES (1)")
        for table, rows in (("few", FEW), ("many", MANY)):
            database.execute(f"CREATE UNLOGGED TABLE {table} (id bigint, k int)")
            database.execute(f"INSERT INTO {table} SELECT i, i % 1000 FROM generate_series(1, {rows}) AS i")  # noqa: S608
            database.execute(f"ALTER TABLE {table} ADD PRIMARY KEY (id); ANALYZE {table}")
    for table in ("few", "many"):  # a thousandth, near each other
        warehouse.execute(f"UPDATE {table} SET k = -1 WHERE id <= (SELECT max(id) / 1000 FROM {table})")  # noqa: S608
    few, many = synced("few"), synced("many")
    assert (few["updated"], many["updated"]) == (FEW // 1000, MANY // 1000)
    assert many["grown"] < LIMIT, many
    assert many["grown"] - few["grown"] < 8 * MB, (few["grown"], many["grown"])
    # One row in every other group.
    warehouse.execute("UPDATE many SET k = -1 WHERE id % 64 = 0")
    scattered = synced("many", method="difference")
    assert scattered["updated"] == MANY // 64
    assert scattered["groups_differing"] > 40_000
    assert scattered["grown"] < LIMIT, scattered


def test_a_statement_of_a_large_row_is_there_few_times(source: Database, warehouse: Database) -> None:
    """Received data stays in libpq, which also makes two copies of data to send; we have one copy."""
    for database in (source, warehouse):
        database.execute("CREATE TABLE small (id bigint PRIMARY KEY); INSERT INTO small VALUES (1)")
        database.execute("CREATE TABLE large (id bigint PRIMARY KEY, v text)")
    source.execute("INSERT INTO large SELECT i, 'v' FROM generate_series(7, 3000) AS i")
    rows = "INSERT INTO large SELECT i, repeat(chr(96 + i), %s) FROM generate_series(4, 6) AS i"
    source.execute(rows, 64 * MB)
    grown = []
    for _ in range(8):
        warehouse.execute("TRUNCATE large; INSERT INTO large VALUES (4, 'v')")
        result = synced("large", method="reload", apply="statements")
        assert (result["inserted"], result["updated"]) == (2994 + 2, 1)
        grown.append(result["grown"])
        # Four times. libpq's buffer has room for twice a row, and by chance the next row is in it as well.
        if grown[-1] < 5 * 64 * MB:
            return
    raise AssertionError(f"more than five times each time: {grown}")
