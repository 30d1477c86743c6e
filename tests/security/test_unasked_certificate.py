"""A client certificate that the server doesn't ask for is no credential."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_dblink.core.errors import ConnectError, CredentialError
from airflow_dblink.core.server.login import aconnect, connect
from airflow_dblink.core.server.target import Target
from airflow_dblink.embedded.server import Server, servers
from tests.certificates import use_tls
from tests.debian import postgres_bindir


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path, Path]]:
    """Give a server with TLS that lets everybody in, the certificate it shows, and its key."""
    home = tmp_path_factory.mktemp("certificates")
    with servers("trusting", bindir=postgres_bindir()) as (server,):
        trusted = use_tls(server, home, "hostssl all all all trust", "hostnossl all postgres all trust")
        key = home / "client.key"
        key.touch(0o600)
        key.write_bytes((server.data / "server.key").read_bytes())
        os.chown(key, os.getuid(), os.getgid())
        yield server, trusted, key


def _target(server: Server, **params: object) -> Target:
    where = {"host": server.host, "port": server.port, "user": server.role, "dbname": server.dbname}
    return Target("trusting", {**where, "sslmode": "require", **params})


def test_a_server_that_asks_for_nothing_is_refused(trusting: tuple[Server, Path, Path]) -> None:
    server, certificate, key = trusting
    named = _target(server, sslcert=certificate, sslkey=key)
    for target in (named, _target(server, sslcert=certificate, sslkey=key, sslcertmode="allow")):
        with pytest.raises(CredentialError, match="2F003"):
            connect(target)
        with pytest.raises(CredentialError, match="2F003"):
            asyncio.run(aconnect(target))


def test_neither_does_a_certificate_count_that_is_not_there(trusting: tuple[Server, Path, Path]) -> None:
    server, _, _ = trusting

    with pytest.raises((CredentialError, ConnectError)):
        connect(_target(server, sslcert="/nowhere/client.crt"))


def test_a_password_beside_it_that_nobody_asked_for_does_not_help(
    trusting: tuple[Server, Path, Path],
) -> None:
    server, certificate, key = trusting

    with pytest.raises(CredentialError, match="sslcertmode=require"):
        connect(_target(server, sslcert=certificate, sslkey=key, password="unused"))


def test_a_server_that_asks_for_it_is_accepted(trusting: tuple[Server, Path, Path]) -> None:
    server, certificate, key = trusting
    with (server.data / "postgresql.conf").open("a") as settings:
        settings.write("ssl_ca_file = 'server.crt'\n")
    (server.data / "pg_hba.conf").write_text(
        "hostssl all postgres all trust\nhostssl all all all cert map=all\nhostnossl all postgres all trust\n"
    )
    (server.data / "pg_ident.conf").write_text(f"all /^.*$ {server.role}\n")
    server.restart()

    with connect(_target(server, sslcert=certificate, sslkey=key)) as connection:
        found = connection.execute("SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert found.fetchall() != [(None,)]
