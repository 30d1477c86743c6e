# ruff: noqa: S608 - types and values of these tests only
"""Keys of an upsert: how they are written arrives, too, and NULL where the index takes it for a value."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from tests.databases import Database
from tests.integration.sync.tables import caseless_databases, system_server
from tests.transfers import transfer
from tests.versions import needs_version


def upserted(source: Database, warehouse: Database, key_type: str, old: str, new: str) -> None:
    """Upsert a row whose key is written as *new* over one as *old*; then again, which changes nothing."""
    for database, key in ((source, new), (warehouse, old)):
        database.execute(f"CREATE TABLE item (k {key_type} PRIMARY KEY, v text)")
        database.execute(f"INSERT INTO item VALUES ({key}, 'same')")
    assert transfer(mode="upsert")["changed"] == 1
    same = f"SELECT ROW(k)::record *= ROW(({new})::{key_type})::record FROM item"
    assert warehouse.rows(same) == [(True,)]
    assert transfer(mode="upsert")["changed"] == 0


@pytest.mark.parametrize(
    ("key_type", "old", "new"),
    [
        ("numeric", "1.0", "1.00"),
        ("double precision", "'-0'", "0"),
        ("real", "0", "'-0'"),
        ("citext", "'a'", "'A'"),
        ("interval", "'30 days'", "'1 mon'"),
        ("bpchar", "'a '", "'a'"),
        ("numeric[]", "'{1.0}'", "'{1.00}'"),
        ("jsonb", "'1.0'", "'1.00'"),
    ],
)
def test_the_key_gets_the_form_that_the_source_has(
    source: Database, warehouse: Database, key_type: str, old: str, new: str
) -> None:
    for database in (source, warehouse):
        database.admin("CREATE EXTENSION citext")
    upserted(source, warehouse, key_type, old, new)


def test_a_table_of_nothing_but_the_key_gets_it_too(source: Database, warehouse: Database) -> None:
    for database, key in ((source, "1.00"), (warehouse, "1.0")):
        database.execute(f"CREATE TABLE item (k numeric PRIMARY KEY); INSERT INTO item VALUES ({key})")
    assert transfer(mode="upsert")["changed"] == 1
    assert warehouse.rows("SELECT k::text FROM item") == [("1.00",)]


@pytest.fixture
def with_icu(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Database, Database]]:
    with system_server("icu") as server, caseless_databases(server, monkeypatch) as databases:
        yield databases


def test_a_text_key_under_a_nondeterministic_collation_gets_the_sources_form(
    with_icu: tuple[Database, Database],
) -> None:
    upserted(*with_icu, "text COLLATE caseless", "'a'", "'A'")


def test_rows_that_others_refer_to_by_a_text_key_are_not_locked_against_them(
    source: Database, warehouse: Database
) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (k text PRIMARY KEY, v text)")
    source.execute("INSERT INTO item VALUES ('a', 'new')")
    warehouse.execute("INSERT INTO item VALUES ('a', 'old'); CREATE TABLE child (k text REFERENCES item)")
    with psycopg.connect(warehouse.conninfo) as other:
        other.execute("INSERT INTO child VALUES ('a')")  # holds FOR KEY SHARE on the row
        settings = {"lock_timeout": "20s"}
        assert transfer(mode="upsert", session_settings=settings)["changed"] == 1
        other.rollback()


def test_null_is_a_key_where_nulls_are_not_distinct(source: Database, warehouse: Database) -> None:
    needs_version(warehouse, 15, "NULLS NOT DISTINCT")
    table = "CREATE TABLE item (a text, b int, v text, UNIQUE NULLS NOT DISTINCT (a, b))"
    source.execute(f"{table}; INSERT INTO item VALUES (NULL, 1, 'new'), ('x', NULL, 'x'), (NULL, NULL, 'n')")
    warehouse.execute(f"{table}; INSERT INTO item VALUES (NULL, 1, 'old')")
    assert transfer(mode="upsert", key=["a", "b"])["changed"] == 3
    assert transfer(mode="upsert", key=["a", "b"])["changed"] == 0
    assert warehouse.rows("SELECT v FROM item ORDER BY v") == [("n",), ("new",), ("x",)]


def test_without_update_on_such_a_key_nothing_is_moved(source: Database, warehouse: Database) -> None:
    source.execute("CREATE TABLE item (k numeric, v text); INSERT INTO item VALUES (1, 'new')")
    role = warehouse.server.role
    warehouse.admin("CREATE TABLE item (k numeric PRIMARY KEY, v text)")
    warehouse.admin(f'GRANT SELECT, INSERT, UPDATE (v) ON item TO "{role}"')
    with pytest.raises(AirflowFailException, match=r"no UPDATE on public.item \(k\)"):
        transfer(mode="upsert")
    assert warehouse.admin("SELECT * FROM item") == []
