"""Both sides of a comparison, on databases that serve a whole module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_dblink.embedded.server import Server
from tests.databases import Database, new_database
from tests.oracle import Dblinks, Ours, emptied


@pytest.fixture(scope="module")
def databases(pair: tuple[Server, Server]) -> Iterator[tuple[Database, Database]]:
    """Give the database of ours and that of the extension."""
    with new_database(pair[0], "dblink") as theirs, new_database(pair[1], "ours") as own:
        yield own, theirs


@pytest.fixture
def ours(databases: tuple[Database, Database]) -> Iterator[Ours]:
    """Give this package's side, without any link; a link that is left open fails the test."""
    with emptied(databases[0]) as database, Ours(database) as side:
        yield side


@pytest.fixture
def dblinks(databases: tuple[Database, Database]) -> Iterator[Dblinks]:
    """Give the extension's side, called by a superuser."""
    with emptied(databases[1]) as database, Dblinks(database) as side:
        yield side
