"""A transfer over TLS, on the system's PostgreSQL: the embedded one has no TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.core.remote_sets.remote import Remote
from airflow_dblink.core.streams import fan_in as gather
from airflow_dblink.embedded.server import servers
from tests.certificates import use_tls
from tests.conftest import AddConnection
from tests.databases import Database, new_database
from tests.debian import postgres_bindir
from tests.queries import rows as joined_rows
from tests.transfers import transfer


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Database, Path]]]:
    """Give two databases on servers with TLS, and the certificates that they show."""
    home = tmp_path_factory.mktemp("certificates")
    hba = ("hostssl all all all scram-sha-256", "hostnossl all postgres all scram-sha-256")
    with servers("source", "warehouse", bindir=postgres_bindir()) as pair:
        trusted = [use_tls(server, home, *hba) for server in pair]
        with new_database(pair[0], "source") as source, new_database(pair[1], "warehouse") as warehouse:
            yield list(zip((source, warehouse), trusted, strict=True))


@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
def test_a_transfer_over_tls(
    encrypted: list[tuple[Database, Path]], add_connection: AddConnection, mode: str
) -> None:
    (source, _), (warehouse, trusted) = encrypted
    add_connection("source", source, extra={"sslmode": "require"})
    verified = {"sslmode": "verify-full", "sslrootcert": str(trusted)}
    add_connection("warehouse", warehouse, host="localhost", extra={**verified, "hostaddr": "127.0.0.1"})
    tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert source.rows(tls) == [(True,)]
    source.execute("CREATE TABLE IF NOT EXISTS item (id int PRIMARY KEY, name text, over_tls boolean)")
    warehouse.execute("CREATE TABLE IF NOT EXISTS item (id int PRIMARY KEY, name text, over_tls boolean)")
    warehouse.execute("TRUNCATE item")
    rows = "SELECT i AS id, repeat('x', 2000) AS name, ({}) AS over_tls FROM generate_series(1, 20000) AS i"
    result = transfer(
        source_sql=rows.format(tls),
        mode=mode,
        post_sql=f"DO $$ BEGIN ASSERT ({tls}); END $$",
    )
    assert result["rows"] == result["changed"] == 20000
    assert warehouse.rows("SELECT count(*), bool_and(over_tls), sum(length(name)) FROM item") == [
        (20000, True, 40_000_000)
    ]


def test_an_error_over_tls_is_heard_and_notices_are_none(
    encrypted: list[tuple[Database, Path]], add_connection: AddConnection
) -> None:
    (source, _), (warehouse, _) = encrypted
    for database in (source, warehouse):
        add_connection(database.conn_id, database, extra={"sslmode": "require"})
    warehouse.execute(
        """CREATE TABLE loud (id int, name text);
        CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE NOTICE 'row % %', NEW.id, repeat('n', 1000);
            IF NEW.id = 15000 THEN RAISE EXCEPTION 'enough'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER loud BEFORE INSERT ON loud FOR EACH ROW EXECUTE FUNCTION loud()"""
    )
    query = "SELECT i AS id, repeat('x', 2000) AS name FROM generate_series(1, {}) AS i"
    assert transfer("loud", source_sql=query.format(14999))["changed"] == 14999
    with pytest.raises(RemoteError, match=r"'warehouse'.*enough"):
        transfer("loud", source_sql=query.format(100_000))


def test_remote_sets_over_tls(
    encrypted: list[tuple[Database, Path]], add_connection: AddConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS may hold data that it has already read: nobody waits for data that has come."""
    (source, _), (warehouse, _) = encrypted
    for database in (source, warehouse):
        add_connection(database.conn_id, database, extra={"sslmode": "require"})
    query = (
        "SELECT i AS id, repeat('x', i % 500) AS name,"
        " (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS over_tls"
        " FROM generate_series(1, 150000) AS i"
    )
    sets = {"a": Remote("source", query), "b": Remote("warehouse", query), "c": Remote("source", query)}
    joined = "SELECT count(*), bool_and(a.over_tls AND b.over_tls), sum(length(a.name))::int FROM a"
    looks: list[str] = []
    look_closer = gather._Gathering._look_closer

    def counted(self: Any, tasks: Any) -> None:
        looks.append("after 0.1 s in which nothing came")
        assert len(looks) < 400, "what has come is waited for"  # chunks: 450, messages: 450,000
        look_closer(self, tasks)

    monkeypatch.setattr(gather._Gathering, "_look_closer", counted)
    found = joined_rows(f"{joined} JOIN b USING (id, name) JOIN c USING (id, name)", sets)
    assert found == [[150_000, True, 37_425_000]]
