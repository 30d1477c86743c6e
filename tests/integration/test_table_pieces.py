"""The pieces of a table, made again: the catalogs' description is the same before and after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.tables.catalog import get_relation
from airflow_dblink.core.tables.pieces import (
    TableName,
    build_indexes,
    comment_statements,
    grant_question,
    protection_statements,
    read_foreign_keys,
    read_indexes,
    read_sequences,
    read_statistics,
    run_all,
    storage_statements,
)
from tests.databases import Database
from tests.descriptions import EVERYTHING, describe

TABLE = TableName("public", "everything")
OTHER = TableName("public", 'the "other"')


@pytest.fixture
def side(warehouse: Database) -> Iterator[Side]:
    """Give a connection to the database with a table that has all kinds of pieces."""
    warehouse.execute(EVERYTHING)
    with closing(connect(warehouse.target)) as connection:
        yield Side(connection, "warehouse")


def grants(side: Side, oid: int, new_oid: int, on: TableName) -> list[str]:
    return [str(row["statement"]) for row in side.ask(grant_question(side, oid, new_oid, on))]


def test_indexes_and_keys_are_dropped_and_built_again_on_their_table(side: Side, warehouse: Database) -> None:
    before = describe(warehouse)
    oid = get_relation(side, "everything").oid
    indexes, keys = read_indexes(side, oid), read_foreign_keys(side, oid)
    side.run("ALTER TABLE everything DROP CONSTRAINT to_self, DROP CONSTRAINT to_country", "dropping")
    for index in indexes:
        side.run(index.drop(TABLE), "dropping")
    assert describe(warehouse)["indexes"] == []

    run_all(side, build_indexes([(index, None) for index in indexes], TABLE), "building")
    run_all(
        side,
        [statement for key in keys for statement in (*key.add(TABLE, {}), *key.validate(TABLE))],
        "building",
    )

    after = describe(warehouse)
    assert after.pop("indexes") == before.pop("indexes")
    assert after == before


def test_another_table_gets_all_pieces_and_takes_the_name(side: Side, warehouse: Database) -> None:
    before = describe(warehouse)
    oid = get_relation(side, "everything").oid
    indexes = {f"tmp_{i}": index for i, index in enumerate(read_indexes(side, oid))}
    statistics = {f"tmp_{i}": each for i, each in enumerate(read_statistics(side, oid))}
    keys = read_foreign_keys(side, oid)
    run_all(
        side,
        [
            f"CREATE TABLE {OTHER} (LIKE everything INCLUDING ALL"
            " EXCLUDING INDEXES EXCLUDING STATISTICS EXCLUDING COMMENTS)",
            *storage_statements(side, oid, OTHER),
        ],
        "creating",
    )
    run_all(side, build_indexes([(index, name) for name, index in indexes.items()], OTHER), "building")
    for name, each in statistics.items():
        run_all(side, each.build(OTHER, name), "building")
    for key in keys:
        run_all(side, [*key.add(OTHER, {oid: OTHER}), *key.validate(OTHER)], "building")
    new = get_relation(side, str(OTHER))
    sequences = read_sequences(side, oid)
    (identity,), (new_identity,) = (
        [each for each in read_sequences(side, table) if each.is_identity] for table in (oid, new.oid)
    )
    side.run(identity.give_type(new_identity), "creating")
    last = [
        *protection_statements(side, oid, TABLE),
        *comment_statements(side, oid, TABLE),
        *grants(side, oid, new.oid, TABLE),
        *grants(side, identity.oid, new_identity.oid, TableName("public", identity.name)),
        f"COMMENT ON SEQUENCE {identity.name} IS '{identity.comment}'",
    ]
    run_all(
        side,
        [
            *(f"ALTER SEQUENCE {each.name} OWNED BY {OTHER}.{each.column_name}"
              for each in sequences if not each.is_identity),
            "DROP TABLE everything",
            f"ALTER TABLE {OTHER} RENAME TO everything",
            *(index.rename(TABLE, name) for name, index in indexes.items()),
            *(each.rename(name) for name, each in statistics.items()),
            f"ALTER SEQUENCE {new_identity.identifier.as_string(None)} RENAME TO {identity.name}",
            *last,
        ],
        "swapping",
    )  # fmt: skip

    after = describe(warehouse)
    for what, rows in before.items():
        assert after[what] == rows, what
    assert identity.column_name == "id"


def test_what_others_need_is_not_dropped(side: Side, warehouse: Database) -> None:
    warehouse.execute("CREATE TABLE detail (everything int REFERENCES everything)")
    (key,) = [i for i in read_indexes(side, get_relation(side, "everything").oid) if i.name == "the_key"]

    with pytest.raises(RemoteError, match=r"cannot drop constraint the_key .*other objects depend on it"):
        side.run(key.drop(TABLE), "dropping")


def test_default_tablespace_is_the_sessions_own_afterwards(side: Side) -> None:
    side.run("BEGIN; SET LOCAL default_tablespace = 'pg_default'", "setting up")
    (index,) = [i for i in read_indexes(side, get_relation(side, "everything").oid) if i.name == "lower_name"]
    run_all(side, build_indexes([(index, "another")], TABLE), "building")
    (row,) = side.ask("SELECT pg_catalog.current_setting('default_tablespace') AS space")
    side.run("ROLLBACK", "rolling back")

    assert row["space"] == "pg_default"


def test_default_privileges_do_not_stay(side: Side, warehouse: Database) -> None:
    warehouse.execute(
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC; CREATE TABLE plain (id int)"
    )
    warehouse.execute("REVOKE SELECT ON plain FROM PUBLIC")
    before = describe(warehouse, "plain")["table"]
    old = get_relation(side, "plain")
    side.run("CREATE TABLE copy (LIKE plain)", "creating")
    statements = grants(side, old.oid, get_relation(side, "copy").oid, TableName("public", "plain"))
    run_all(side, ["DROP TABLE plain", "ALTER TABLE copy RENAME TO plain", *statements], "swapping")

    assert describe(warehouse, "plain")["table"] == before
