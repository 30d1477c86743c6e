"""hook.attach: remote sets on a link, in its transaction or as long as it is open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_dblink.core.errors import RemoteError, StoppedError, TransientError, UsageError
from airflow_dblink.core.remote_sets.remote import Remote
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database
from tests.pooler import pooler
from tests.queries import source as remote
from tests.transfers import meanwhile, sleeping

pytestmark = pytest.mark.usefixtures("source", "warehouse")

SERIES = "SELECT g AS a, 'x' || g AS b FROM generate_series(1, 5) AS g"
SUM = "SELECT sum(a) FROM c"


@pytest.fixture
def hook(source: Database, warehouse: Database) -> Iterator[DblinkHook]:
    with DblinkHook(dblink_conn_id="warehouse") as opened:
        yield opened


def test_outside_of_a_transaction_the_tables_stay_as_long_as_the_link(hook: DblinkHook) -> None:
    assert hook.attach({"c": remote(SERIES, indexes=["a"]), "D": {"conn_id": "source", "sql": SERIES}}) == {
        "c": 5,
        "D": 5,
    }
    assert hook.query("SELECT sum(c.a) FROM c JOIN d USING (a, b)") == [(15,)]
    assert hook.query("SELECT reltuples::int FROM pg_class WHERE oid = 'c'::regclass") == [(5,)]
    assert hook.link().is_idle
    assert hook.get_connections() == []

    hook.disconnect()
    assert hook.query("SELECT to_regclass('c') IS NULL") == [(True,)]


def test_in_a_transaction_they_go_with_it(hook: DblinkHook, warehouse: Database) -> None:
    hook.exec("BEGIN; CREATE TABLE t AS SELECT 1 AS a")
    hook.attach({"c": remote(SERIES)}, analyze=False)
    hook.exec("INSERT INTO t SELECT a FROM c")
    hook.exec("COMMIT")
    assert hook.query("SELECT to_regclass('c') IS NULL") == [(True,)]
    assert warehouse.rows("SELECT count(*) FROM t") == [(6,)]


def test_on_a_named_link(hook: DblinkHook) -> None:
    hook.connect("home", "warehouse")
    assert hook.attach({"c": Remote("warehouse", SERIES)}, connname="home") == {"c": 5}
    assert hook.query(SUM, connname="home") == [(15,)]
    assert hook.query("SELECT to_regclass('c') IS NULL") == [(True,)]
    with pytest.raises(UsageError, match="08003"):
        hook.attach({"c": remote(SERIES)}, connname="nobody")


def test_a_table_that_is_there_already_is_said_to_be_the_sessions(hook: DblinkHook) -> None:
    hook.attach({"c": remote(SERIES), '"D d"': remote(SERIES)})
    with pytest.raises(UsageError, match=r"'c'.*session already has a temporary table 'c'") as caught:
        hook.attach({"c": remote(SERIES)})
    assert "pg_temp_" not in str(caught.value)
    with pytest.raises(UsageError, match=r'DROP TABLE pg_temp\."D d"'):
        hook.attach({'"D d"': remote(SERIES)})
    hook.exec('DROP TABLE pg_temp.c, pg_temp."D d"')
    assert hook.attach({"c": remote(SERIES), '"D d"': remote(SERIES)}) == {"c": 5, '"D d"': 5}


def test_nothing_is_nothing(hook: DblinkHook) -> None:
    assert hook.attach({}) == {}
    assert hook.link().is_idle


FAILURES = [
    (remote("SELECT 1 / (90000 - g) AS a FROM generate_series(1, 100000) AS g"), RemoteError, "division"),
    (remote("SELECT 'b'::mood AS mood FROM generate_series(1, 100000)"), RemoteError, "invalid input"),
    (remote("SELECT 1 AS a, 2 AS a"), UsageError, "more than one"),
    (remote("SELECT '{}'::json AS a", indexes=["a"]), UsageError, "operator class"),
    (remote("SELECT pg_terminate_backend(pg_backend_pid())::text AS a"), TransientError, "'source'"),
]


@pytest.mark.parametrize(("bad", "error", "words"), FAILURES, ids=lambda value: getattr(value, "sql", None))
@pytest.mark.parametrize("begun", [True, False])
def test_a_failure_leaves_link_and_transaction_as_before(
    hook: DblinkHook, source: Database, warehouse: Database, bad: Remote, error: Any, words: str, begun: bool
) -> None:
    source.execute("CREATE TYPE mood AS ENUM ('a', 'b')")
    warehouse.execute("CREATE TYPE mood AS ENUM ('a'); CREATE TABLE t (a int)")
    if begun:
        hook.exec("BEGIN; INSERT INTO t VALUES (1)")

    with pytest.raises(error, match=words):
        hook.attach({"good": remote(SERIES), "bad": bad})

    assert hook.query("SELECT to_regclass('good') IS NULL") == [(True,)]
    assert hook.attach({"bad": remote(SERIES)}) == {"bad": 5}
    if begun:
        hook.exec("COMMIT")
    assert warehouse.rows("TABLE t") == ([(1,)] if begun else [])


def test_a_result_that_is_unread_is_said_in_dblinks_words(hook: DblinkHook) -> None:
    hook.send_query("SELECT 1")
    with pytest.raises(RemoteError, match="another command is already in progress"):
        hook.attach({"c": remote(SERIES)})
    assert hook.get_result() == [(1,)]
    assert hook.get_result() == []


def test_a_stop_ends_the_link(source: Database, warehouse: Database) -> None:
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise StoppedError("stop")

    with DblinkHook(dblink_conn_id="warehouse", check=check) as hook:
        with meanwhile(stopped.set, lambda: sleeping(source)), pytest.raises(StoppedError):
            hook.attach({"c": remote("SELECT pg_sleep(60)::text AS a")})
        assert not hook.link().is_open
        assert source.wait_until_left() == warehouse.wait_until_left() == []


def test_a_transaction_pooler_needs_a_transaction(warehouse: Database, add_connection: AddConnection) -> None:
    with pooler(warehouse.server, "transaction", pool_size=1) as port:
        extra = {"pooling_mode": "transaction"}
        add_connection("pooled", warehouse, conn_type="dblink", host="127.0.0.1", port=port, extra=extra)
        with DblinkHook(dblink_conn_id="pooled") as hook:
            with pytest.raises(UsageError, match=r"'pooled'.*pooler in transaction mode"):
                hook.attach({"c": remote(SERIES)})
            hook.exec("BEGIN")
            hook.attach({"c": remote(SERIES)})
            assert hook.query(SUM) == [(15,)]
            hook.exec("COMMIT")
            assert hook.query("SELECT to_regclass('c') IS NULL") == [(True,)]


def test_a_cursors_transaction_is_one(hook: DblinkHook) -> None:
    hook.open("n", "SELECT generate_series(1, 3)")
    hook.attach({"c": remote(SERIES)})
    assert hook.query(SUM) == [(15,)]
    hook.close("n")
    assert hook.link().is_idle
    assert hook.query("SELECT to_regclass('c') IS NULL") == [(True,)]
