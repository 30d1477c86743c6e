"""Fixtures of the tests of events: a database with the event table, other roles, and claims."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest

from airflow_dblink.core.events.claims import claim_ids
from airflow_dblink.core.events.install import install_script
from airflow_dblink.core.events.table import SCHEMA, Events
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.server.target import Target
from tests.databases import Database
from tests.integration.jobs.conftest import MakeRole, _role_names, new_role

__all__ = ["MakeRole", "_role_names", "new_role"]

TABLE = f"{SCHEMA}.event"
ORDERS = Events("orders")

Claim = Callable[..., list[Any]]


def install(database: Database, **roles: list[str]) -> None:
    """Install the event schema as the database's owner."""
    database.execute(install_script(SCHEMA, **roles))


def emit(database: Database, number: int = 1, topic: str = "orders") -> None:
    """Emit events that carry numbers from 1, each in a transaction of its own."""
    query = f"SELECT {SCHEMA}.emit(%s, jsonb_build_object('n', %s::int))"
    with psycopg.connect(database.conninfo, autocommit=True) as connection:
        for i in range(number):
            connection.execute(query.encode(), (topic, i + 1))


def claim_as(key: str, target: Target, events: Events = ORDERS, **options: Any) -> list[Any]:
    """Claim events with *key*, and return their ids."""
    with closing(connect(target)) as connection:
        given = {"most": 1_000, "settings": {}, **options}
        return claim_ids(Side(connection, target.conn_id), events, key, **given)


@pytest.fixture
def shop(source: Database) -> Database:
    """Return ``source`` with the event schema."""
    install(source)
    return source
