"""Fixtures of the attacks on remote jobs: a database, its owner, other roles, and a table worth stealing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.sql import SQL, Identifier

from airflow_dblink.core.server.target import Target
from tests.databases import Database
from tests.integration.jobs.client import Client, role_of
from tests.integration.jobs.conftest import (
    MakeRole,
    _role_names,
    client,
    new_client,
    new_role,
)

__all__ = ["_role_names", "client", "new_client", "new_role"]


class Attacker:
    """A role with rights that a careless DBA gives; it attacks the table ``secret`` of ``source``."""

    def __init__(self, target: Target, source: Database) -> None:
        self.target = target
        self.role = role_of(target)
        self._source = source
        source.execute("CREATE TABLE public.secret (a int)")
        source.admin(f"CREATE SCHEMA lair AUTHORIZATION {self.role}")
        source.admin("GRANT USAGE ON SCHEMA lair TO PUBLIC")
        self.client = Client(target)
        grant = SQL("GRANT SELECT ON public.secret TO {}").format(Identifier(self.role)).as_string()
        steal = f"BEGIN EXECUTE '{grant}'; EXCEPTION WHEN insufficient_privilege THEN NULL; END"
        self.execute(
            "CREATE FUNCTION lair.steal() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN {steal}; RETURN coalesce(NEW, OLD); END$$"
        )
        self.execute(
            "CREATE FUNCTION lair.steal_now(a anyelement DEFAULT NULL::int) RETURNS boolean"
            f" LANGUAGE plpgsql AS $$BEGIN {steal}; RETURN true; END$$"
        )

        self.execute("CREATE FUNCTION lair.pure(uuid) RETURNS int IMMUTABLE LANGUAGE sql RETURN 1")

    def execute(self, sql: str) -> None:
        self.client.jobs.connection.execute(sql.encode())

    @property
    def has_stolen(self) -> bool:
        query = "SELECT has_table_privilege(%s, 'public.secret', 'SELECT')"
        return bool(self._source.admin(query, self.role)[0][0])


@pytest.fixture
def attacker(client: Client, source: Database, new_role: MakeRole) -> Iterator[Attacker]:
    made = Attacker(new_role("hostile"), source)
    yield made
    made.client.close()
