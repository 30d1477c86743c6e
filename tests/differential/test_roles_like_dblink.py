"""Connecting without a password, and errors about a server that is gone: as in PostgreSQL's own dblink.

dblink asks whether its caller is superuser; here everybody is ordinary, and ``connect_u``
(or ``password_required=false`` in the Airflow connection) is that of a superuser.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from airflow_dblink.core.errors import CredentialError, DblinkError
from airflow_dblink.core.server.target import Target
from airflow_dblink.embedded.server import Server, servers
from tests.databases import Database
from tests.oracle import ONE, Dblinks, Ours, outcome, wait_until

REQUIRED = "password or GSSAPI delegated credentials required"
REQUIRED_15 = "password is required"  # dblink's words before PostgreSQL 16
CALLER = "ordinary_caller"


@pytest.fixture(autouse=True)
def ordinary_caller(dblinks: Dblinks) -> Iterator[None]:
    """Let a role that isn't superuser call the extension."""
    # It has the privileges that it needs here, and no password for other servers.
    dblinks.session.execute(f"CREATE ROLE {CALLER}; GRANT USAGE ON SCHEMA extension TO {CALLER}")
    dblinks.session.execute(f"SET ROLE {CALLER}")
    yield
    dblinks.session.execute(f"RESET ROLE; DROP OWNED BY {CALLER}; DROP ROLE {CALLER}")


@pytest.fixture(scope="module")
def trusting() -> Iterator[Database]:
    """Give a server that lets everybody in."""
    with servers("trusting") as (server,):
        (server.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\n")
        server.restart()
        yield Database("trusting", server, server.dbname)


def _refused(side: Ours | Dblinks, name: str | None, target: Target) -> None:
    state, message, *_ = outcome(side, ("connect", name, target))
    assert state == "2F003"
    assert message == REQUIRED or (message == REQUIRED_15 and isinstance(side, Dblinks))


def test_a_target_without_password_is_refused_before_connecting(ours: Ours, dblinks: Dblinks) -> None:
    # Nothing listens there: it isn't even tried.
    nowhere = Target("nowhere", {"host": "127.0.0.1", "port": 1, "user": "u", "dbname": "d"})
    for side in (ours, dblinks):
        _refused(side, "x", nowhere)
        _refused(side, None, nowhere)
        _refused(side, "x", replace(nowhere, params={**nowhere.params, "password": ""}))
        assert side.connections() == []
        reached = outcome(
            side, ("connect", "x", replace(nowhere, params={**nowhere.params, "password": "p"}))
        )
        assert reached[0] == "08001"
        assert reached[1].startswith("could not establish connection")


def test_the_password_is_looked_at_before_the_name(ours: Ours, dblinks: Dblinks) -> None:
    for side in (ours, dblinks):
        target = side.database.target
        side.connect("x", target)
        _refused(side, "x", replace(target, params={**target.params, "password": None}))
        assert outcome(side, ("connect", "x", target))[:2] == ("42710", "duplicate connection name")
        assert side.query("SELECT 1", ONE) == [(1,)]
        assert side.connections() == ["x"]


def test_a_password_from_a_file_or_the_environment_does_not_count(
    ours: Ours, dblinks: Dblinks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passfile = tmp_path / "pgpass"
    monkeypatch.setenv("PGPASSWORD", ours.database.server.role_password)
    for side in (ours, dblinks):
        server = side.database.server
        passfile.write_text(f"{server.host}:{server.port}:*:{server.role}:{server.role_password}\n")
        os.chmod(passfile, 0o600)
        params = {k: v for k, v in side.database.params.items() if k != "password"} | {
            "passfile": str(passfile)
        }
        _refused(side, "x", Target("x", params))


def test_a_password_that_the_server_did_not_ask_for_does_not_count(
    ours: Ours, dblinks: Dblinks, trusting: Database
) -> None:
    for side in (ours, dblinks):
        _refused(side, "x", trusting.target)
        _refused(side, None, trusting.target)
        assert side.connections() == []
    assert trusting.wait_until_left() == []


def test_connect_u_does_without(ours: Ours, dblinks: Dblinks, trusting: Database) -> None:
    target = replace(trusting.target, params={**trusting.params, "password": None})
    conninfo = target.conninfo()

    with pytest.raises(CredentialError):
        ours.links.connect("myconn", target)
    with pytest.raises(psycopg.Error, match=f"{REQUIRED}|{REQUIRED_15}"):
        dblinks.call("_connect", "myconn", conninfo)
    assert ours.links.connect("myconn", target, own_identity=True) == "OK"
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="dblink_connect_u"):
        dblinks.call("_connect_u", "myconn", conninfo)
    dblinks.session.execute(f"RESET ROLE; GRANT EXECUTE ON FUNCTION dblink_connect_u(text, text) TO {CALLER}")
    dblinks.session.execute(f"SET ROLE {CALLER}")
    assert dblinks.call("_connect_u", "myconn", conninfo) == [("OK",)]

    for side in (ours, dblinks):
        assert side.query("SELECT 1", ONE, "myconn") == [(1,)]
        assert side.disconnect("myconn") == "OK"
    assert trusting.wait_until_left() == []


def test_password_required_false_is_what_being_superuser_is_to_dblink(
    ours: Ours, dblinks: Dblinks, trusting: Database
) -> None:
    target = replace(trusting.target, params={**trusting.params, "password": None}, password_required=False)
    dblinks.session.execute("RESET ROLE")
    for side in (ours, dblinks):
        assert side.connect("x", target) == "OK"
        assert side.query("SELECT 1", ONE) == [(1,)]
        assert side.disconnect("x") == "OK"
    assert trusting.wait_until_left() == []


def test_a_connection_for_one_call_needs_its_credential_too(
    ours: Ours, dblinks: Dblinks, trusting: Database
) -> None:
    for target in (trusting.target, replace(trusting.target, params={**trusting.params, "password": None})):
        with pytest.raises(CredentialError, match=REQUIRED) as caught, ours.links.one_shot(target):
            pass
        assert caught.value.sqlstate == "2F003"
        with pytest.raises(psycopg.Error, match=f"{REQUIRED}|{REQUIRED_15}") as theirs:
            dblinks.call("", target.conninfo(), "SELECT 1", columns=ONE)
        assert theirs.value.sqlstate == "2F003"
    assert trusting.wait_until_left() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"password": "wrong"},
        {"dbname": "no_such"},
        {"user": "no_such"},
        {"port": "1"},
        {"host": "127.0.0.1,127.0.0.1", "port": "1,2"},
        {"host": "127.0.0.1,127.0.0.1", "port": "1,{port}", "password": "wrong"},
    ],
    ids=["password", "database", "role", "port", "two ports", "two reasons"],
)
def test_a_server_that_refuses_is_08001_and_leaves_no_name(
    ours: Ours, dblinks: Dblinks, wrong: dict[str, str]
) -> None:
    target = dblinks.database.target  # of both, since a port stands in the reason
    changed = {name: value.format(port=target.params["port"]) for name, value in wrong.items()}
    target = replace(target, params={**target.params, **changed})

    said = [outcome(side, ("connect", "x", target)) for side in (ours, dblinks)]

    assert [side.connections() for side in (ours, dblinks)] == [[], []]

    assert said[0][:3] == said[1][:3]  # the hint is ours
    assert said[0][0] == "08001"
    assert "failed: " in said[0][2]


# -- a server that is gone


@pytest.fixture
def gone() -> Iterator[Server]:
    with servers("gone") as (server,):
        yield server


def test_a_server_that_is_gone(ours: Ours, dblinks: Dblinks, gone: Server) -> None:
    database = Database("gone", gone, gone.dbname)
    sides: tuple[Ours | Dblinks, ...] = (ours, dblinks)
    for side in sides:
        side.connect("running", database.target)
        side.connect("idle", database.target)
        side.connect("open", database.target)
        side.send("SELECT 1 FROM pg_sleep(120)", "running")
        side.open("c", "SELECT 1", "open")
    wait_until(lambda: len(database.admin("SELECT 1 FROM pg_stat_activity WHERE query LIKE '%120)'")) == 2)

    gone.crash()

    for side in sides:
        for name in ("running", "idle"):
            said = side.cancel(name)  # nobody has noticed yet: libpq tries, and tells why it could not
            assert "refused" in said or said.startswith("PQcancel() -- connect() failed"), said  # 15
            assert "password" not in said
        assert side.ready("running") == 0
        lost = outcome(side, ("result", ONE, "running"))
        assert lost[0] == "08006", lost
        assert "server closed the connection unexpectedly" in lost[1]
        for call in (("fetch", "c", 1, ONE, "open"), ("exec", "SELECT 1", "idle")):
            lost = outcome(side, call)
            # If the server still sent its reason, our error has it; dblink puts it inside of its own error.
            assert lost[0] == "08006" or (side is ours and lost[0] == "57P01"), lost
        assert outcome(side, ("query", "SELECT 1", ONE, "idle"))[0] == "XX000"
        assert side.send("SELECT 1", "idle") == 0
        assert outcome(side, ("connect", "new", database.target))[0] == "08001"
        assert side.connections() == ["idle", "open", "running"]
        assert [side.disconnect(name) for name in ("idle", "open", "running")] == ["OK"] * 3
    gone.start()  # only PostgreSQL frees its shared memory


def test_a_lost_link_is_worth_a_retry(ours: Ours, gone: Server) -> None:
    ours.connect("x", Database("gone", gone, gone.dbname).target)
    link = ours.links.get("x")
    link.pending.send("SELECT pg_sleep(120)")
    gone.stop(mode="immediate")

    calls: list[Callable[[], object]] = [
        link.pending.result,
        link.pending.result,
        lambda: link.query("SELECT 1"),
    ]
    for call in calls:
        with pytest.raises(DblinkError) as caught:
            call()
        assert caught.value.retryable
