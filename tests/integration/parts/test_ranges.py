"""Views and queries in parts: ranges of a column's values, each row once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.errors import (
    LoadLostError,
    RemoteError,
    TransientError,
    UsageError,
    VerificationError,
)
from airflow_dblink.core.parts import keeper, ranges
from airflow_dblink.core.server.login import connect
from tests.databases import Database
from tests.oracle import wait_until
from tests.parts import FILL, ITEM, Load, load_of, loaded
from tests.transfers import meanwhile

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


def test_a_sample_cuts_as_well(
    load: Load, source: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_SAMPLE_ROWS", 1_500)
    wanted = source.rows("SELECT * FROM item ORDER BY 1")
    parts = load.begin().parts
    rows = copy_all(load, parts)
    assert parts > 4
    assert max(rows) < 3 * 5000 / parts
    load.verify(parts)
    assert loaded(warehouse, load) == wanted


def test_a_wrong_guess_of_the_planner_makes_no_part_too_large(load: Load, source: Database) -> None:
    source.execute("CREATE FUNCTION many() RETURNS SETOF item LANGUAGE sql ROWS 1e12 STABLE AS 'TABLE item'")
    source.execute("ALTER FUNCTION many SET work_mem = '1MB'")  # so that it isn't inlined
    cut = load.but(source_table=None, source_sql="SELECT * FROM many()")
    assert cut.begin().parts > 4


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


def test_a_partition_that_is_new_is_no_loss_and_one_with_rows_is_found(load: Load, source: Database) -> None:
    source.execute(
        """CREATE TABLE parted (id int, name text) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (9000);
        CREATE TABLE older AS SELECT 9001 AS id, 'older' AS name;
        INSERT INTO parted SELECT id, name FROM item; ANALYZE parted"""
    )
    cut = load.but(source_table="parted")
    parts = cut.begin().parts
    cut.copy(1)
    source.execute("CREATE TABLE newer AS SELECT 20000 AS id, 'newer' AS name")
    source.execute("ALTER TABLE parted ATTACH PARTITION newer FOR VALUES FROM (20000) TO (30000)")
    for part in range(2, parts):
        cut.copy(part)
    source.execute("ALTER TABLE parted ATTACH PARTITION older FOR VALUES FROM (9000) TO (9999)")
    cut.copy(parts)
    with pytest.raises(VerificationError, match="had 5000 rows when the load was planned"):
        cut.verify(parts)


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
        WHERE NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 77
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"""
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
    with pytest.raises(UsageError, match=r"has no column 'ID', which part_column names(?s:.*)id, name, at"):
        load.but(part_column="ID").begin()
    for column in ("doc", "ids"):
        odd = load.but(source_table="odd", columns=["id", "name", "at"], part_column=column)
        with pytest.raises(UsageError, match=f"part_column '{column}' can't be cut into ranges"):
            odd.begin()
    with pytest.raises(UsageError, match="source_sql has no pages"):
        load.but(source_table=None, source_sql="TABLE item", part_column=None).begin()
    left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'dblink_load%%'"
    assert warehouse.rows(left) == [(0,)]
    wait_until(lambda: load.keeper() is None)


def test_a_number_that_a_window_function_gives_is_no_bound(load: Load, source: Database) -> None:
    source.execute(
        """CREATE VIEW numbered AS SELECT id, name, at, row_number() OVER () AS n FROM item;
        CREATE VIEW deep AS TABLE numbered;
        CREATE VIEW first AS SELECT id, name, at FROM
            (SELECT *, row_number() OVER (PARTITION BY name ORDER BY id) AS n FROM item) AS i WHERE n = 1"""
    )
    some = load.but(columns=["id", "name", "at"])
    query = "SELECT id, name, at, rank() OVER (ORDER BY at) AS n FROM item"
    for changed in ({"source_table": "deep"}, {"source_table": None, "source_sql": query}):
        with pytest.raises(UsageError, match="part_column 'n' is computed, perhaps by a window function"):
            some.but(**changed, part_column="n").begin()
    parts = some.but(source_table="first").begin().parts  # id isn't
    assert parts > 4
    assert sum(copy_all(some.but(source_table="first"), parts)) == 5000


def test_an_error_of_the_view_itself_is_told_as_it_is(load: Load, source: Database) -> None:
    source.execute(
        """CREATE FUNCTION broken(int) RETURNS int LANGUAGE plpgsql STABLE
           AS 'BEGIN RETURN no_such_function($1); END';
        CREATE VIEW bad AS SELECT id, name, at FROM item WHERE broken(id) > 0"""
    )
    with pytest.raises(RemoteError, match="function no_such_function"):
        load.but(source_table="bad").begin()
    with pytest.raises(UsageError, match=r"has placeholders|source_parameters"):
        load.but(source_table=None, source_sql="SELECT id FROM item WHERE id > %s").begin()


@pytest.mark.parametrize("value", ["id::text::regtype", "ROW(id, name)"])
def test_a_type_whose_text_is_no_bound_is_refused_at_once(load: Load, source: Database, value: str) -> None:
    types = "SELECT oid::int AS id, typname::text AS name, now() AS at, oid::regtype AS kind FROM pg_type"
    rows = "SELECT id, name, at, ROW(id, name) AS kind FROM item"
    odd = load.but(columns=["id", "name", "at"], source_table=None, part_column="kind", part_bytes=2_000)
    with pytest.raises(UsageError, match="part_column 'kind' can't be cut into ranges"):
        odd.but(source_sql=types if "regtype" in value else rows).begin()


def test_what_was_rewritten_before_the_plan_had_read_it_is_found(load: Load, source: Database) -> None:
    with load.sides() as (there, _):
        keeper.begin(connect(load.source), "source", load.key, [], deadline_s=60, idle_s=60)
        assert keeper.find(there, load.key) is not None
    source.execute("TRUNCATE item; INSERT INTO item VALUES (1, 'new')")
    again = load.but(lock=False)
    with pytest.raises(LoadLostError, match=r"public\.item was truncated or rewritten"):
        again.begin()
    assert load.keeper() is not None  # another try's, which a cleared plan ends
    assert again.begin(2, is_anew=True).parts == 1


def test_a_plan_is_tried_again_if_its_own_snapshot_came_before_a_rewrite(
    load: Load, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = keeper.use

    def rewritten_before(*args: Any) -> None:
        source.execute("TRUNCATE item; INSERT INTO item VALUES (1, 'new')")
        use(*args)

    again = load.but(lock=False)
    with monkeypatch.context() as patched:
        patched.setattr(keeper, "use", rewritten_before)
        with pytest.raises(TransientError, match="was truncated or rewritten"):
            again.begin()
    wait_until(lambda: again.keeper() is None)
    assert again.begin(2).parts == 1
    assert again.copy(1).rows == 1


def test_a_table_that_took_another_ones_name_is_found(load: Load, source: Database) -> None:
    names = "CREATE TABLE {} AS SELECT id, name FROM item"
    source.execute(names.format("dim"))
    query = "SELECT id, upper(dim.name) AS name, at FROM item JOIN dim USING (id)"
    cut = load.but(source_table=None, source_sql=query, lock=False)
    cut.begin()
    cut.copy(1)
    source.execute(f"ALTER TABLE dim RENAME TO old; {names.format('dim')}")
    with pytest.raises(LoadLostError, match=r"dim is read, and was not when the load was planned"):
        cut.copy(2)


def test_an_index_that_is_new_is_no_loss(load: Load, source: Database) -> None:
    parts = load.begin().parts
    load.copy(1)
    source.execute("CREATE INDEX newer ON item (at)")
    rest = sum(load.copy(part).rows for part in range(2, parts + 1))
    assert 0 < rest < 5000
    assert load.verify(parts).rows == 5000


def test_a_plan_that_takes_long_keeps_no_transaction_open_on_the_destination(
    load: Load, source: Database, warehouse: Database
) -> None:
    source.execute(
        """CREATE FUNCTION held() RETURNS bool LANGUAGE plpgsql STABLE
           AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(77); RETURN true; END';
        CREATE VIEW slow AS SELECT id, name, at FROM item WHERE held()"""
    )
    states: list[str] = []
    with psycopg.connect(source.conninfo, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(77)")

        def look() -> None:
            states.extend(state for _, _, state, _ in warehouse.sessions())
            other.execute("SELECT pg_advisory_unlock(77)")

        waits = """SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
        with meanwhile(look, when=lambda: source.admin(waits)):
            assert load.but(source_table="slow").begin().parts > 4
    assert set(states) == {"idle"}


def test_a_table_of_which_the_role_sees_some_columns_comes_unlocked(
    load: Load, source: Database, caplog: pytest.LogCaptureFixture
) -> None:
    source.admin(
        """CREATE SCHEMA hidden; CREATE TABLE hidden.base AS TABLE public.item;
        CREATE TABLE secret AS SELECT *, 'x' AS more FROM public.item; ANALYZE secret;
        GRANT SELECT ON hidden.base TO PUBLIC; GRANT SELECT (id, name, at) ON secret TO PUBLIC;
        CREATE VIEW shown AS TABLE hidden.base; GRANT SELECT ON shown TO PUBLIC;
        CREATE VIEW mine WITH (security_invoker) AS SELECT id, name, at FROM secret;
        GRANT SELECT ON mine TO PUBLIC"""
    )
    assert load.but(source_table="shown").begin().parts > 4
    load.end_keeper()
    invoker = load.but(source_table="mine")
    with pytest.raises(UsageError, match=r"(?s)permission denied for table secret.*lock=False"):
        invoker.begin(2)
    some = load.but(source_table="secret", columns=["id", "name", "at"])
    assert some.begin(2).parts > 4
    assert "can't be locked, and the load fails if somebody rewrites it: public.secret" in caplog.text


def test_other_values_of_the_query_are_refused_and_not_shown(load: Load) -> None:
    query = "SELECT id, name, at FROM item WHERE name <> %s"
    asked = load.but(source_table=None, source_sql=query, source_parameters=["secret"])
    asked.begin()
    with pytest.raises(LoadLostError, match="source_sql would be copied otherwise") as caught:
        asked.but(source_parameters=["other-secret"]).copy(1)
    assert "secret" not in str(caught.value)


def test_a_foreign_table_behind_the_view_is_named(load: Load, source: Database) -> None:
    source.admin(
        """CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;
        CREATE FOREIGN TABLE away (id int, name text) SERVER far;
        ALTER FOREIGN TABLE away OWNER TO dblink_job"""
    )
    source.execute("CREATE VIEW mixed AS TABLE away")
    with pytest.raises(UsageError, match=r"foreign tables are read.*public\.away"):
        load.but(source_table="mixed").begin()
