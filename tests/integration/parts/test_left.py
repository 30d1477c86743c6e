"""What loads leave is found by its names, told, and removed on request; what somebody uses stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta

import psycopg
import pytest
from airflow.cli.cli_parser import get_parser
from psycopg import sql

from airflow_dblink.core.errors import NoLoadError, RemoteError
from airflow_dblink.core.parts import keeper
from airflow_dblink.core.parts.left import KeeperLeft, LoadLeft, keepers_left, loads_left, prune
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side
from tests.databases import Database
from tests.parts import FILL, ITEM, Load, load_of

WEEK, ANY = timedelta(days=7), timedelta(0)
TABLES = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname LIKE 'dblink_load%%'"
AGED = """
UPDATE {} SET facts = jsonb_set(facts, '{{taken_at}}', to_jsonb((facts ->> 'taken_at')::int - 8 * 86400))
 WHERE part = 0
"""


@pytest.fixture
def load(source: Database, warehouse: Database) -> Iterator[Load]:
    """Give a load whose run has failed: one part of several is copied."""
    source.execute(f"{ITEM}; {FILL}")
    warehouse.execute(ITEM)
    with load_of(source, warehouse) as load:
        load.begin()
        load.copy(1)
        yield load


@contextmanager
def side(database: Database) -> Iterator[Side]:
    with closing(connect(database.target)) as connection:
        yield Side(connection, database.conn_id)


def loads(database: Database) -> list[LoadLeft]:
    with side(database) as there:
        return loads_left(there)


def keepers(database: Database) -> list[KeeperLeft]:
    with side(database) as there:
        return keepers_left(there)


def pruned(database: Database, older_than: timedelta) -> tuple[int, int]:
    with side(database) as there:
        return prune(there, older_than)


def age(load: Load, warehouse: Database) -> None:
    """Let the load be eight days old."""
    with psycopg.connect(warehouse.conninfo) as connection:
        connection.execute(sql.SQL(AGED).format(load.ledger().name))


def test_tables_and_keeper_are_told(load: Load, source: Database, warehouse: Database) -> None:
    (found,) = loads(warehouse)
    assert found.head is not None
    assert (found.key, found.schema_name, found.table, found.is_ours) == (
        load.key,
        "public",
        "public.item",
        True,
    )
    assert (found.done, found.sessions) == (1, 0)
    assert found.head.parts > 4
    assert (found.bytes or 0) > 100_000
    (kept,) = keepers(source)
    assert (kept.key, kept.keeper, kept.is_used) == (load.key, load.keeper(), False)
    assert kept.taken_at == found.taken_at
    assert (loads(source), keepers(warehouse)) == ([], [])


def test_an_old_load_goes_and_a_new_one_stays(load: Load, warehouse: Database) -> None:
    assert pruned(warehouse, WEEK) == (0, 0)
    age(load, warehouse)
    assert pruned(warehouse, WEEK) == (1, 0)
    assert warehouse.rows(TABLES) == [(0,)]
    with pytest.raises(NoLoadError, match="clear the task that plans the load"):
        load.copy(2)
    load.begin(2)
    assert warehouse.rows(TABLES) == [(2,)]


def test_a_keeper_that_no_part_uses_is_ended(load: Load, source: Database) -> None:
    assert pruned(source, WEEK) == (0, 0)
    with side(source) as part:
        part.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "using the snapshot")
        keeper.use(part, load.key, keepers(source)[0].keeper.snapshot)
        assert keepers(source)[0].is_used
        assert pruned(source, ANY) == (0, 0)
        part.run("ROLLBACK", "letting go of the snapshot")
    assert pruned(source, ANY) == (0, 1)


def test_a_load_that_a_session_uses_stays_and_is_named(load: Load, warehouse: Database) -> None:
    with psycopg.connect(warehouse.conninfo) as user:
        user.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(load.ledger().shadow))
        assert loads(warehouse)[0].sessions == 1
        with pytest.raises(
            RemoteError, match=f"not be removed: 1: public.{load.key.shadow} .*lock"
        ) as caught:
            pruned(warehouse, ANY)
        assert caught.value.sqlstate == "55P03"
    assert warehouse.rows(TABLES) == [(2,)]
    assert pruned(warehouse, ANY) == (1, 0)


def test_a_load_that_something_depends_on_keeps_no_other(load: Load, warehouse: Database) -> None:
    with psycopg.connect(warehouse.conninfo) as connection:
        connection.execute(sql.SQL("CREATE VIEW looks AS TABLE {}").format(load.ledger().shadow))
        connection.execute('CREATE TABLE "dblink_load_00000000000000ff" ()')
    with pytest.raises(RemoteError, match=r"loads removed: 1, .*: view looks depends on table"):
        pruned(warehouse, ANY)
    assert [left.key for left in loads(warehouse)] == [load.key]


def test_a_load_whose_age_is_not_known_goes_only_on_request(load: Load, warehouse: Database) -> None:
    with psycopg.connect(warehouse.conninfo) as connection:
        connection.execute(sql.SQL("DROP TABLE {}").format(load.ledger().name))
    assert [(left.head, left.is_lost, left.names) for left in loads(warehouse)] == [
        (None, True, [load.key.shadow])
    ]
    assert pruned(warehouse, WEEK) == (0, 0)
    assert pruned(warehouse, ANY) == (1, 0)


def test_a_load_that_can_not_be_read_is_told_and_stays(load: Load, warehouse: Database) -> None:
    """Another version of the package may have planned it."""
    with psycopg.connect(warehouse.conninfo) as connection:
        change = "UPDATE {} SET facts = facts - 'route' WHERE part = 0"
        connection.execute(sql.SQL(change).format(load.ledger().name))
        connection.execute('CREATE TABLE "dblink_load_00000000000000ff_parts" ()')
        connection.execute('CREATE TABLE "dblink_load_00000000000000ff" ()')
    problems = [left.problem for left in loads(warehouse)]
    assert ["doesn't tell how it was planned" in str(problems), "does not exist" in str(problems)] == [
        True
    ] * 2
    assert pruned(warehouse, ANY) == (0, 0)
    assert warehouse.rows(TABLES) == [(4,)]


def test_a_swap_that_has_locked_the_tables_is_not_waited_for(load: Load, warehouse: Database) -> None:
    with psycopg.connect(warehouse.conninfo) as swaps:
        swaps.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(load.ledger().name))
        swaps.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(load.ledger().shadow))
        (found,) = loads(warehouse)
        assert (found.bytes, found.sessions, found.head) == (None, 1, None)
        assert "lock timeout" in str(found.problem)
        assert pruned(warehouse, ANY) == (0, 0)
    assert pruned(warehouse, ANY) == (1, 0)


def test_another_roles_tables_are_told_and_not_touched(warehouse: Database) -> None:
    """Nor is their ledger read: it may be anything."""
    warehouse.admin('CREATE TABLE public."dblink_load_0123456789abcdef_parts" (part int, facts jsonb)')
    (found,) = loads(warehouse)
    assert (found.is_ours, found.owner, found.head) == (False, warehouse.server.superuser, None)
    assert pruned(warehouse, ANY) == (0, 0)
    assert warehouse.rows(TABLES) == [(1,)]


def test_the_commands(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> str:
        capsys.readouterr()
        args = get_parser().parse_args(["dblink", *words])
        args.func(args)
        return capsys.readouterr().out

    (tables,) = json.loads(run("list-loads", "warehouse", "--output", "json"))
    (kept,) = json.loads(run("list-loads", "source", "--output", "json"))
    assert tables["load"] == kept["load"] == load.key.text
    assert tables["snapshot"] == kept["snapshot"]
    assert tables["parts"].startswith("1 of ")
    assert "keeper, pid" in run("list-loads", "source")
    assert run("prune-loads", "warehouse", "--yes") == "Loads removed: 0. Snapshots ended: 0.\n"
    pruning = ("--older-than", "0", "--yes")
    assert run("prune-loads", "warehouse", *pruning) == "Loads removed: 1. Snapshots ended: 0.\n"
    assert run("prune-loads", "source", *pruning) == "Loads removed: 0. Snapshots ended: 1.\n"
