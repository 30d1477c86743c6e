"""Fixtures of the tests of jobs: a client that sends them, other roles, and a server that may be crashed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier, Literal

from airflow_dblink.core.jobs.client import Jobs
from airflow_dblink.core.server.target import Target
from airflow_dblink.embedded.server import Server, servers
from tests.databases import Database
from tests.integration.jobs.client import Client

MakeClient = Callable[..., Client]
MakeRole = Callable[..., Target]


@pytest.fixture
def new_client(source: Database) -> Iterator[MakeClient]:
    """Give a function that makes a client of ``source``, or of another target."""
    made: list[Client] = []

    def new(target: Target | None = None, **options: str) -> Client:
        made.append(Client(target or source.target, **options))
        return made[-1]

    yield new
    for client in made:
        client.close()


@pytest.fixture
def client(new_client: MakeClient, source: Database) -> Client:
    """Return the owner of ``source``, which has a table ``effect``."""
    source.execute("CREATE TABLE effect (a int)")
    return new_client()


@pytest.fixture
def jobs(client: Client) -> Jobs:
    return client.jobs


@pytest.fixture(scope="module")
def _role_names(pair: tuple[Server, Server]) -> Iterator[list[str]]:
    # For the module: a role can only be dropped after the databases in which it owns or may use objects.
    made: list[str] = []
    yield made
    with psycopg.connect(pair[0].conninfo(superuser=True), autocommit=True) as admin:
        for name in made:
            admin.execute(SQL("DROP ROLE {}").format(Identifier(name)))


@pytest.fixture
def new_role(_role_names: list[str], source: Database) -> MakeRole:
    """Return a function that makes a role without any rights, and returns its target in ``source``."""

    def new(prefix: str = "other") -> Target:
        name, password = f"{prefix}_{uuid4().hex[:8]}", uuid4().hex
        with psycopg.connect(source.admin_conninfo, autocommit=True) as admin:
            make = SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(Identifier(name), Literal(password))
            admin.execute(make)
        _role_names.append(name)
        return replace(source.target, params={**source.params, "user": name, "password": password})

    return new


@pytest.fixture(scope="module")
def fragile() -> Iterator[Database]:
    """Give a database on a server of the module's own, to be stopped and crashed."""
    with servers("jobs") as (server,):
        database = Database("fragile", server, server.dbname)
        database.execute("CREATE TABLE effect (a int)")
        yield database
