"""Views and queries in parts: ranges of a column's values, each row once."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from airflow_dblink.core.errors import LoadLostError, RemoteError, UsageError, VerificationError
from tests.databases import Database
from tests.oracle import wait_until
from tests.parts import FILL, ITEM, Load, load_of, loaded

VIEW = "CREATE VIEW items AS SELECT i.id, i.name, i.at FROM item AS i JOIN item AS j USING (id)"


@pytest.fixture
def load(source: Database, warehouse: Database) -> Iterator[Load]:
    """Give a load of 5,000 rows of a view in several parts, by ``id``."""
    source.execute(f"{ITEM}; {FILL}; {VIEW}; ANALYZE item")
    warehouse.execute(ITEM)
    with load_of(source, warehouse, source_table="items", part_column="id") as load:
        yield load


def copy_all(load: Load, parts: int) -> list[int]:
    return [load.copy(part).rows for part in range(1, parts + 1)]


def test_a_view_comes_in_parts_of_one_snapshot(load: Load, source: Database, warehouse: Database) -> None:
    wanted = source.rows("SELECT * FROM items ORDER BY 1")
    parts = load.begin().parts
    assert parts > 4
    first = load.copy(1).rows
    source.execute("DELETE FROM item WHERE id % 2 = 0; INSERT INTO item VALUES (9000, 'new')")
    rest = [load.copy(part).rows for part in range(2, parts + 1)]
    assert load.verify(parts).rows == 5000
    assert max(first, *rest) < 2 * 5000 / parts
    assert load.index() == 1
    assert load.swap()["rows"] == 5000
    assert warehouse.rows("SELECT * FROM item ORDER BY 1") == wanted


def test_a_query_with_parameters_comes_in_parts(load: Load, source: Database, warehouse: Database) -> None:
    query = "SELECT id, name, at FROM items WHERE id > %s -- the newer ones"
    asked = load.but(source_table=None, source_sql=query, source_parameters=[1000])
    parts = asked.begin().parts
    assert parts > 4
    assert sum(copy_all(asked, parts)) == 4000
    asked.verify(parts)
    assert loaded(warehouse, load) == source.rows("SELECT * FROM items WHERE id > 1000 ORDER BY 1")


VALUES = {
    "null": ("UPDATE item SET at = NULL WHERE id % 3 = 0", "at"),
    "one value": ("UPDATE item SET at = '2026-02-01Z'", "at"),
    "times": ("UPDATE item SET at = at + id * interval '1 hour' WHERE id % 7 > 0", "at"),
    "texts": ("UPDATE item SET name = repeat(chr(60 + id % 100), 200) || '''\\%s'", "name"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_whatever_the_values_are_each_row_comes_once(
    load: Load, source: Database, warehouse: Database, kind: str
) -> None:
    setup, column = VALUES[kind]
    source.execute(setup)
    cut = load.but(part_column=column)
    parts = cut.begin().parts
    copy_all(cut, parts)
    assert cut.verify(parts).rows == 5000
    assert loaded(warehouse, load) == source.rows("SELECT * FROM item ORDER BY 1")


TYPES = {
    "numeric": "CASE id % 4 WHEN 0 THEN 'NaN' WHEN 1 THEN id / 7.0 ELSE -id END::numeric",
    "float8": "CASE id % 5 WHEN 0 THEN 'NaN' WHEN 1 THEN '-Infinity' ELSE id / 3.0 END::float8",
    "mood": "(ARRAY['sad', 'ok', 'glad'])[id % 3 + 1]::mood",
    "code": "('x' || id)::code",
    "uuid": "md5(id::text)::uuid",
    "char(6)": "(id % 50)::char(6)",
    'text COLLATE "C"': "repeat(md5(id::text), 2)",
}


@pytest.mark.parametrize("kind", TYPES)
def test_ranges_of_all_kinds_of_types(load: Load, source: Database, warehouse: Database, kind: str) -> None:
    types = "CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad'); CREATE DOMAIN code AS varchar(9)"
    for database in (source, warehouse):
        database.execute(f"{types}; ALTER TABLE item ADD COLUMN value {kind}")
    source.execute(f"UPDATE item SET value = {TYPES[kind]}")  # noqa: S608 - the test's own
    source.execute("CREATE VIEW typed AS SELECT id, value FROM item; ANALYZE item")
    cut = load.but(source_table="typed", part_column="value", part_bytes=9_000)
    parts = cut.begin().parts
    assert parts > 2
    copy_all(cut, parts)
    assert cut.verify(parts).rows == 5000
    query = "SELECT id, value::text FROM {} ORDER BY 1"
    shadow = f'public."{load.key.shadow}"'
    assert warehouse.rows(query.format(shadow)) == source.rows(query.format("item"))


def test_partitions_that_a_range_leaves_out_are_no_loss(
    load: Load, source: Database, warehouse: Database
) -> None:
    source.execute(
        """CREATE TABLE parted (id int, name text) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (2500);
        CREATE TABLE high PARTITION OF parted FOR VALUES FROM (2500) TO (9000);
        INSERT INTO parted SELECT id, name FROM item; ANALYZE parted"""
    )
    cut = load.but(source_table="parted")
    parts = cut.begin().parts
    assert parts > 4
    copy_all(cut, parts)
    assert cut.verify(parts).rows == 5000


def test_an_empty_view_is_one_part(load: Load, source: Database) -> None:
    source.execute("DELETE FROM item")
    assert load.begin().parts == 1
    assert load.copy(1).rows == 0
    assert load.verify(1).rows == 0


def test_a_materialized_view_has_pages(load: Load, source: Database, warehouse: Database) -> None:
    source.execute("CREATE MATERIALIZED VIEW kept AS TABLE item")
    cut = load.but(source_table="kept", part_column=None)
    parts = cut.begin().parts
    assert parts > 4
    cut.copy(1)
    source.execute("REFRESH MATERIALIZED VIEW kept")
    with pytest.raises(LoadLostError, match="was truncated, rewritten"):
        cut.copy(2)


@pytest.mark.parametrize("lock", [True, False])
def test_a_table_behind_the_view_that_is_truncated_is_found(load: Load, source: Database, lock: bool) -> None:
    cut = load.but(lock=lock)
    cut.begin()
    cut.copy(1)
    if lock:
        with pytest.raises(Exception, match="lock timeout"):
            source.execute("SET lock_timeout = 100; TRUNCATE item")
        assert cut.copy(2).rows > 0
    else:
        source.execute("TRUNCATE item")
        with pytest.raises(LoadLostError, match=r"public\.item was truncated or rewritten"):
            cut.copy(2)


def test_a_view_that_gives_other_rows_each_time_is_found(load: Load, source: Database) -> None:
    source.execute(
        """CREATE VIEW few AS SELECT * FROM item
        WHERE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 77)"""
    )
    cut = load.but(source_table="few")
    parts = cut.begin().parts
    with psycopg.connect(source.conninfo) as other:
        other.execute("SELECT pg_advisory_lock(77)")
        assert sum(copy_all(cut, parts)) == 0
    with pytest.raises(VerificationError, match="doesn't give the same rows each time"):
        cut.verify(parts)


def test_what_can_not_be_cut_is_refused_and_nothing_stays(
    load: Load, source: Database, warehouse: Database
) -> None:
    source.execute(
        "CREATE VIEW odd AS SELECT id, name, at, json_build_object('id', id) AS doc,"
        " ARRAY[id] AS ids FROM item"
    )
    with pytest.raises(UsageError, match=r"(?s)has no pages to be cut into parts.*part_column"):
        load.but(part_column=None).begin()
    with pytest.raises(RemoteError, match="none"):
        load.but(part_column="none").begin()
    for column in ("doc", "ids"):
        odd = load.but(source_table="odd", columns=["id", "name", "at"], part_column=column)
        with pytest.raises(UsageError, match=f"part_column '{column}' can't be cut into ranges"):
            odd.begin()
    with pytest.raises(UsageError, match="source_sql has no pages"):
        load.but(source_table=None, source_sql="TABLE item", part_column=None).begin()
    left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'dblink_load%%'"
    assert warehouse.rows(left) == [(0,)]
    wait_until(lambda: load.keeper() is None)


def test_a_foreign_table_behind_the_view_is_named(load: Load, source: Database) -> None:
    source.admin(
        """CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;
        CREATE FOREIGN TABLE away (id int, name text) SERVER far;
        ALTER FOREIGN TABLE away OWNER TO dblink_job"""
    )
    source.execute("CREATE VIEW mixed AS TABLE away")
    with pytest.raises(UsageError, match=r"foreign tables are read.*public\.away"):
        load.but(source_table="mixed").begin()
