"""A database with relations of every kind, and both sides in it."""

# ruff: noqa: S608 - names and queries that the tests themselves made

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict

from airflow_dblink.embedded.server import Server
from tests.databases import Database, new_database
from tests.integration.builders.sides import SETUP, TYPES, TYPES_SETUP, Sides


@pytest.fixture(scope="module")
def database(pair: tuple[Server, Server]) -> Iterator[Database]:
    with new_database(pair[0], "builders") as made:
        made.admin(SETUP)
        made.admin(TYPES_SETUP)
        for number, (type_name, (value, _)) in enumerate(TYPES.items()):
            made.admin(f"CREATE TABLE type{number} (k {type_name}, v text, a {type_name}[])")
            row = f"{value}, 'v', ARRAY[({value})::{type_name}]"
            made.admin(f"INSERT INTO type{number} VALUES ({row})")
        made.admin(
            "CREATE SERVER loop FOREIGN DATA WRAPPER postgres_fdw"
            f" OPTIONS (host '{made.server.host}', port '{made.server.port}', dbname '{made.name}')"
        )
        params = conninfo_to_dict(made.admin_conninfo)
        made.admin(
            f"CREATE USER MAPPING FOR postgres SERVER loop"
            f" OPTIONS (user '{params['user']}', password '{params['password']}')"
        )
        made.admin("CREATE FOREIGN TABLE remote_foo (f1 int, f2 text) SERVER loop OPTIONS (table_name 'foo')")
        yield made


@pytest.fixture
def admin(database: Database) -> Iterator[Sides]:
    sides = Sides(database.admin_conninfo)
    yield sides
    sides.close()


@pytest.fixture
def job(database: Database) -> Iterator[Sides]:
    sides = Sides(database.conninfo)
    yield sides
    sides.close()
