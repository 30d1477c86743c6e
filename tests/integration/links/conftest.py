"""A link ``x`` to a database that serves a whole module, emptied after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_dblink.core.link.link import Link
from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.server import connection
from airflow_dblink.embedded.server import Server
from tests.databases import Database, new_database
from tests.oracle import emptied


@pytest.fixture(scope="module")
def database(pair: tuple[Server, Server]) -> Iterator[Database]:
    with new_database(pair[0], "source") as made:
        yield made


@pytest.fixture
def source(database: Database) -> Iterator[Database]:
    """Lend the module's database, instead of making one for each test."""
    with emptied(database) as lent:
        yield lent


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a server that stands still the time to answer a request to cancel."""
    monkeypatch.setattr(connection, "_CANCEL_S", 60.0)


@pytest.fixture
def links(source: Database) -> Iterator[Links]:
    with Links() as registry:
        yield registry


@pytest.fixture
def link(links: Links, source: Database) -> Link:
    links.connect("x", source.target)
    return links.get("x")
