"""Nothing that a stranger has put into a schema on the search_path runs as our role, whatever we do.

See :mod:`tests.security.planted`. Here the user's own SQL names the schema of each operator, function and
type: what it doesn't name is his to answer for. His triggers, views and functions, without any, still find
their tables by his path.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.sdk import Asset
from psycopg.sql import SQL, Identifier

from airflow_dblink.core.parts.left import keepers_left, loads_left, prune
from airflow_dblink.core.remote_sets.remote import Remote
from airflow_dblink.embedded.server import Server
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.fetch import DblinkFetchOperator
from tests.databases import Database, new_database
from tests.integration.jobs.client import Client
from tests.integration.sync.test_watermark import AssetStores
from tests.integration.tasks import context
from tests.parts import load_of
from tests.queries import run as query
from tests.security.planted import called, plant
from tests.stores import MemoryStore
from tests.syncs import sync, sync_operator
from tests.transfers import transfer

_TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN login AS public.citext;
CREATE TABLE audit (what text);
CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO audit VALUES (TG_OP); RETURN NULL; END $$;
CREATE TABLE item (
    id int PRIMARY KEY, name varchar(20) UNIQUE, price numeric(8, 2), at timestamptz DEFAULT now(),
    day date, tag uuid, data jsonb, raw bytea, feeling mood, size positive, words text[], letter "char",
    short name, small smallint, real float4, big float8, moment timestamp(3),
    twice int GENERATED ALWAYS AS (id * 2) STORED
);
CREATE TABLE audited_item (LIKE item INCLUDING ALL);
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON audited_item EXECUTE FUNCTION audited();
CREATE TABLE keyed (code varchar(9), at date, note text, PRIMARY KEY (code, at));
CREATE TABLE ident (login login PRIMARY KEY, id bigserial, note text);
CREATE TABLE part (id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (MINVALUE) TO (50);
CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (50) TO (MAXVALUE);
CREATE TABLE wide (id bigint PRIMARY KEY, n numeric, at timestamp, v text, feeling mood);
CREATE TABLE tagged (tag uuid PRIMARY KEY, v text);
CREATE TABLE odd (
    id bigint PRIMARY KEY, doc xml, docs xml[], padded char(5), pads char(5)[], nick public.citext,
    kind regclass, note text
);
"""
_ROWS = """
INSERT INTO item
SELECT g, 'n' || g, g + 0.5, timestamptz '2026-01-01' + g * interval '1 hour', date '2026-01-01' + g,
       md5(g::text)::uuid, jsonb_build_object('a', g), decode(md5(g::text), 'hex'), 'happy', g,
       ARRAY['a', g::text], 'x', 'short' || g, g, g, g, timestamp '2026-01-01' + g * interval '1 second'
  FROM generate_series(1, 90) AS g;
INSERT INTO keyed SELECT 'c' || g, date '2026-01-01' + g, 'note' FROM generate_series(1, 90) AS g;
INSERT INTO ident (login, note) SELECT 'Login' || g, 'note' FROM generate_series(1, 90) AS g;
INSERT INTO part SELECT g, 'v' FROM generate_series(1, 90) AS g;
INSERT INTO wide SELECT g, g, timestamp '2026-01-01' + g * interval '1 day', 'v', 'sad'
  FROM generate_series(1, 90) AS g;
INSERT INTO odd SELECT g, NULL, NULL, 'a', '{a,b}', 'Nick', 'odd', 'note'
  FROM generate_series(1, 90) AS g;
INSERT INTO tagged SELECT md5(g::text)::uuid, 'v' FROM generate_series(1, 90) AS g;
"""
_CHANGES = """
TRUNCATE audit;
DELETE FROM {0} WHERE ctid IN (SELECT ctid FROM {0} ORDER BY {1} LIMIT 5);
UPDATE {0} SET {2} = NULL WHERE ctid IN (SELECT ctid FROM {0} ORDER BY {1} DESC LIMIT 5)
"""


_AS_WIDE = "SELECT id, small AS n, day AS at, name AS v, feeling FROM item"


@pytest.fixture(scope="module")
def template(pair: tuple[Server, Server]) -> Iterator[Database]:
    """Give a database in which everything is planted."""
    with new_database(pair[0], "planted") as database:
        database.admin("CREATE EXTENSION citext SCHEMA public")
        plant(database.server, database.name)
        yield database


@pytest.fixture(scope="module", params=["public, app", "public, app, pg_catalog"])
def sides(template: Database, request: pytest.FixtureRequest) -> Iterator[tuple[Database, Database]]:
    """Give two databases whose search_path begins with the stranger's schema."""
    server = template.server
    made = []
    for conn_id in ("source", "warehouse"):
        name = f"{template.name}_{conn_id}"
        with psycopg.connect(server.conninfo(dbname="postgres", superuser=True), autocommit=True) as admin:
            values = {"name": Identifier(name), "role": Identifier(server.role)}
            create = SQL("CREATE DATABASE {name} OWNER {role} TEMPLATE {template}")
            admin.execute(create.format(template=Identifier(template.name), **values))
            path = SQL(", ").join(map(Identifier, str(request.param).split(", ")))
            admin.execute(SQL("ALTER DATABASE {name} SET search_path = {path}").format(path=path, **values))
        made.append(Database(conn_id, server, name))
        fill(made[-1], "CREATE SCHEMA app", _TABLES)
    fill(made[0], _ROWS)
    yield made[0], made[1]
    with psycopg.connect(server.conninfo(dbname="postgres", superuser=True), autocommit=True) as admin:
        for database in made:
            admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(database.name)))


def fill(database: Database, *scripts: str) -> list[Any]:
    """Run scripts as the role, under a safe path."""
    options = "-c search_path=app"
    with psycopg.connect(database.conninfo, options=options, autocommit=True) as connection:
        for script in scripts:
            cursor = connection.execute(script.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def source(sides: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE", sides[0].uri)
    return sides[0]


@pytest.fixture
def warehouse(sides: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Give the destination, its tables emptied; the test fails if anything planted has run."""
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", sides[1].uri)
    fill(sides[1], "TRUNCATE item, audited_item, audit, keyed, ident, part, wide, tagged, odd")
    server = sides[1].server
    offset = server.log.stat().st_size
    yield sides[1]
    found = [line for side in sides for line in called(server, offset, side.name)]
    assert not found, f"{len(found)} calls, the first: {found[0][:3000]}"


def contents(database: Database, table: str, *, but: str = "") -> list[str]:
    """Return the rows as JSON, without column *but*, in order."""
    return sorted(map(str, fill(database, f"SELECT to_jsonb(t) - '{but}' FROM {table} AS t")))  # noqa: S608


def test_what_is_planted_runs_where_it_fits_better_and_is_seen(source: Database) -> None:
    offset = source.server.log.stat().st_size
    source.rows(
        "SELECT relname FROM pg_catalog.pg_class WHERE oid = 'pg_catalog.pg_class'::pg_catalog.regclass"
    )
    assert called(source.server, offset, source.name)


# -- transfer


@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
@pytest.mark.parametrize("table", ["item", "keyed", "ident", "part", "odd"])
def test_transfer(source: Database, warehouse: Database, mode: str, table: str) -> None:
    for _ in range(1 if mode == "append" else 2):
        transfer(table, mode=mode, analyze=True)
    assert contents(warehouse, table) == contents(source, table)


@pytest.mark.parametrize("table", ["item", "keyed", "ident"])
def test_swap(source: Database, warehouse: Database, table: str) -> None:
    for _ in range(2):
        transfer(table, mode="swap")
    assert contents(warehouse, table) == contents(source, table)


@pytest.mark.parametrize("table", ["item", "keyed", "ident"])
def test_a_load_in_parts(source: Database, warehouse: Database, table: str) -> None:
    with load_of(source, warehouse, destination_table=table, source_table=table) as load:
        parts = load.begin().parts
        for part in range(1, parts + 1):
            load.copy(part)
        with load.sides() as sides:
            assert [len(loads_left(side)) + len(keepers_left(side)) for side in sides] == [1, 1]
            assert prune(sides[1], timedelta(days=1)) == (0, 0)
        load.verify(parts)
        load.index()
        load.swap()
        assert contents(warehouse, table) == contents(source, table)
        load.begin()
        with load.sides() as sides:
            assert [prune(side, timedelta(0)) for side in sides] == [(0, 1), (1, 0)]


def test_transfer_of_a_query_with_casts_into_another_table(source: Database, warehouse: Database) -> None:
    transfer(
        source_sql=f"{_AS_WIDE} WHERE id OPERATOR(pg_catalog.>) %s",
        source_parameters=[10],
        destination_table="wide",
        pre_sql="INSERT INTO audit VALUES ('pre')",
        post_sql="INSERT INTO audit VALUES ('post')",
    )
    assert len(contents(warehouse, "wide")) == 80


def test_transfer_that_creates_its_table(source: Database, warehouse: Database) -> None:
    transfer("item", destination_table="app.made", mode="create")
    assert len(contents(warehouse, "made")) == 90
    fill(warehouse, "DROP TABLE made")


def test_a_trigger_still_finds_its_table_by_the_users_path(source: Database, warehouse: Database) -> None:
    transfer(source_table="item", destination_table="audited_item")
    assert fill(warehouse, "SELECT DISTINCT what FROM audit") == [("INSERT",)]
    sync(
        "audited_item", source_table=None, source_sql="SELECT * FROM item LIMIT 50", max_delete_fraction=None
    )
    assert ("DELETE",) in fill(warehouse, "SELECT DISTINCT what FROM audit")


# -- sync

_SYNCED = {
    "item": "name",
    "keyed": "note",
    "ident": "note",
    "part": "v",
    "tagged": "v",
    "wide": "v",
    "odd": "note",
}
_KEYS = {"keyed": "code, at", "ident": "login", "tagged": "tag"}


def synced(source: Database, warehouse: Database, table: str, **arguments: Any) -> None:
    but = {"columns": ["login", "note"]} if table == "ident" else {}
    given: dict[str, Any] = {"max_delete_fraction": None, "max_change_fraction": None, **but, **arguments}
    sync(table, **given)
    assert contents(warehouse, table, but="id") == contents(source, table, but="id")
    fill(warehouse, _CHANGES.format(table, _KEYS.get(table, "id"), _SYNCED[table]))
    sync(table, **given)
    assert contents(warehouse, table, but="id") == contents(source, table, but="id")


@pytest.mark.parametrize("table", _SYNCED)
def test_sync_by_groups(source: Database, warehouse: Database, table: str) -> None:
    synced(source, warehouse, table, method="difference")


@pytest.mark.parametrize("method", ["auto", "reload", "replace"])
@pytest.mark.parametrize("table", ["item", "keyed"])
def test_sync_by_other_methods(source: Database, warehouse: Database, table: str, method: str) -> None:
    synced(source, warehouse, table, method=method)


@pytest.mark.parametrize("table", ["item", "keyed", "part", "tagged"])
def test_sync_by_statements(source: Database, warehouse: Database, table: str) -> None:
    columns = {"columns": [*_SYNCED_COLUMNS]} if table == "item" else {}
    synced(source, warehouse, table, method="difference", apply="statements", **columns)


_SYNCED_COLUMNS = (
    *(
        "id",
        "name",
        "price",
        "at",
        "day",
        "tag",
        "data",
        "raw",
        "feeling",
        "size",
        "words",
        "letter",
        "short",
    ),
    *("small", "real", "big", "moment"),
)


def test_sync_that_makes_way(source: Database, warehouse: Database) -> None:
    sync("item")
    swap = "UPDATE item SET name = CASE name WHEN 'n1' THEN 'n2' WHEN 'n2' THEN 'n1' END WHERE id IN (1, 2)"
    fill(
        warehouse,
        swap.replace("= CASE", "= 'm' || CASE"),
        "UPDATE item SET name = substr(name, 2) WHERE id < 3",
    )
    fill(warehouse, "UPDATE item SET id = 900, name = 'n90' WHERE id = 90")
    sync("item", on_conflict="replace", max_delete_fraction=None)
    assert contents(warehouse, "item") == contents(source, "item")


def test_sync_of_a_query_with_a_condition_and_other_types(source: Database, warehouse: Database) -> None:
    arguments: dict[str, Any] = {
        "source_table": None,
        "source_sql": _AS_WIDE,
        "where": "id OPERATOR(pg_catalog.<=) %s",
        "where_parameters": [40],
        "max_delete_fraction": None,
        "triggers": "disable",
    }
    for method in ("difference", "reload"):
        sync("wide", method=method, **arguments)
        assert len(contents(warehouse, "wide")) == 40
        fill(warehouse, _CHANGES.format("wide", "id", "v"))


@pytest.mark.parametrize(
    ("column", "overlap"),
    [
        *(("at", timedelta(days=1)), ("day", timedelta(days=1)), ("moment", timedelta(hours=1))),
        *(("id", 3), ("price", 3), ("big", None)),
    ],
)
def test_sync_by_watermark(source: Database, warehouse: Database, column: str, overlap: Any) -> None:
    stores = AssetStores(Asset("item"))
    arguments = {"watermark_column": column, "watermark_overlap": overlap, "outlets": [Asset("item")]}
    for until in ("50", None):
        store: Any = {**context(), "asset_state_store": stores}
        until = until if column == "id" else None
        sync_operator("item", watermark_until=until, **arguments).execute(store)
    assert contents(warehouse, "item") == contents(source, "item")


def test_a_dry_run_and_its_plan(source: Database, warehouse: Database) -> None:
    store = MemoryStore()
    plan = sync("item", plan_only=True, store=store)["plan"]
    sync("item", plan=plan)
    assert contents(warehouse, "item") == contents(source, "item")


# -- fetch, query, exec


def test_fetch(source: Database, warehouse: Database, tmp_path: Path) -> None:
    path = tmp_path / "item.csv"
    for more in ({"path": str(path)}, {"max_xcom_rows": 1000}):
        task = DblinkFetchOperator(task_id="fetch", conn_id="source", sql="SELECT * FROM item", **more)
        task.execute(context())
    assert len([*csv.reader(path.open())]) == 91


def test_query_with_remote_sets(source: Database, warehouse: Database) -> None:
    remotes = {
        "there": Remote("source", "SELECT * FROM item", indexes=["id", ["name", "tag"]]),
        "few": Remote("source", "SELECT id, login FROM ident WHERE id OPERATOR(pg_catalog.<) %s", [20]),
    }
    query("INSERT INTO keyed SELECT name, day, short FROM there", remotes)
    assert len(contents(warehouse, "keyed")) == 90
    query("SELECT id, name FROM there", remotes, max_xcom_rows=1000)


def test_exec_and_its_next_try(source: Database, warehouse: Database) -> None:
    store = MemoryStore()
    for _ in range(2):
        task = DblinkExecOperator(task_id="e", conn_id="warehouse", sql="INSERT INTO audit VALUES ('exec')")
        task.execute(context(store))
        store.set("airflow_dblink_once", {**store.get("airflow_dblink_once"), "ended": None})
    assert fill(warehouse, "SELECT count(*) FROM audit") == [(1,)]


# -- the hook


def test_builders_and_keys(source: Database, warehouse: Database) -> None:
    with DblinkHook("source") as hook:
        for name in ("item", "app.item", "keyed", "ident", "part", "tagged"):
            assert hook.get_pkey(name)
        for _ in range(2):  # the second time by a shape that is kept
            assert hook.build_sql_insert("item", [1], ["5"], ["6"])
            assert hook.build_sql_update("keyed", [1, 2], ["c5", "2026-01-06"], ["d", "2026-01-01"])
            assert hook.build_sql_delete("item", [1], ["5"])
            assert hook.build_sql_insert("ident", [1], ["login5"], ["login5"])
            assert hook.build_sql_insert("item", [2], ["n5"], ["n6"])
        for columns, keys in (
            ([1], [[5], [6]]),
            ([2], [["n5"], ["n6"]]),
            ([12, 1], [["x", 7]]),
            ([13], [["short5"]]),
        ):
            assert len(hook.build_sql_insert_many("item", columns, keys)) == len(keys)
        assert len(hook.build_sql_update_many("ident", [1], [["LOGIN5"], ["login6"]])) == 2
        assert len(hook.build_sql_update_many("item", [1], "SELECT id FROM item LIMIT 10")) == 10
        assert len(hook.build_sql_delete_many("item", [1], "SELECT id FROM item LIMIT 10")) == 10
        hook.exec("BEGIN")
        assert len(hook.build_sql_insert_many("item", [1], [[5], [6]])) == 2
        hook.exec("COMMIT")


def test_links(source: Database, warehouse: Database) -> None:
    with DblinkHook("warehouse") as hook:
        hook.attach({"there": Remote("source", "SELECT * FROM item", indexes=["id"])})
        assert len(hook.query("SELECT * FROM there")) == 90
        hook.open("c", "SELECT * FROM there")
        assert len(hook.fetch("c", 10)) == 10
        hook.close("c")
        assert sum(map(len, hook.batches("SELECT * FROM there", batch_rows=40))) == 90


def test_insert_rows(source: Database, warehouse: Database) -> None:
    hook = DblinkHook("warehouse")
    rows = [("1", ["a", "b"], {"a": 1}), ("2", ["c"], [1, 2])]
    hook.insert_rows("item", rows, ["id", "words", "data"])
    assert len(contents(warehouse, "item")) == 2


def test_jobs(source: Database, warehouse: Database) -> None:
    with closing(Client(source.target)) as client:
        client.jobs.install()
        done = client.run(
            "INSERT INTO audit VALUES ('job')", statement_timeout="1min", settings={"work_mem": "8MB"}
        )
        assert (done.state, done.row_count) == ("succeeded", 1)
        kept = client.run("SELECT * FROM item", keep_result=True)
        assert len(client.kept(kept)) == 90
        sleep = "SELECT pg_catalog.pg_sleep(600)"
        assert client.jobs.cancel(client.send(sleep)).state == "cancelled"
        assert len(client.jobs.newest()) == 3
        assert client.jobs.statement(done.id)
        assert client.jobs.prune(timedelta(0)) == 3
    fill(source, "TRUNCATE audit")
