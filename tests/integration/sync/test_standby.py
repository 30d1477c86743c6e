# ruff: noqa: S608 - names that the tests themselves made
"""A standby: it can be read, and not be written."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.embedded.server import Server
from tests.databases import Database
from tests.integration.sync.tables import contents
from tests.oracle import wait_until
from tests.standby import standby_of
from tests.syncs import sync

ITEM = "CREATE TABLE item (id int PRIMARY KEY, v text)"
FILL = "INSERT INTO item SELECT i, 'v' || i FROM generate_series(1, 200) AS i"


@pytest.fixture(scope="module")
def standby(pair: tuple[Server, Server]) -> Iterator[Server]:
    with standby_of(pair[0]) as server:
        yield server


@pytest.fixture
def replica(source: Database, standby: Server) -> Database:
    """Give the source's replica on the standby, with a table of 200 rows."""
    source.execute(f"{ITEM}; {FILL}")
    (written,) = source.admin("SELECT pg_current_wal_lsn()")[0]
    with psycopg.connect(standby.conninfo(dbname="postgres", superuser=True), autocommit=True) as admin:
        query = "SELECT WHERE pg_last_wal_replay_lsn() >= %s"
        wait_until(lambda: admin.execute(query, (written,)).rowcount == 1)
    return Database("replica", standby, source.name)


@pytest.mark.parametrize("method", ["difference", "reload"])
def test_a_standby_is_a_source(
    replica: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE", replica.uri)
    warehouse.execute(f"{ITEM}; INSERT INTO item VALUES (1, 'other'), (900, 'extra')")
    result = sync(method=method, max_delete_fraction=None)
    assert (result["inserted"], result["updated"], result["deleted"]) == (199, 1, 1)
    assert contents(warehouse) == contents(replica)


@pytest.mark.parametrize("plan_only", [False, True])
def test_a_standby_is_no_destination(
    replica: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch, plan_only: bool
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE", warehouse.uri)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", replica.uri)
    warehouse.execute(f"{ITEM}; {FILL}; UPDATE item SET v = 'new' WHERE id = 1")
    with pytest.raises(AirflowFailException, match="'warehouse': the destination's server is a standby"):
        sync(plan_only=plan_only)
