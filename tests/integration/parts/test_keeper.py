"""The keeper: a snapshot that outlives the process that asked for it, within its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from airflow_dblink.core.errors import LoadLostError, RemoteError, UsageError
from airflow_dblink.core.parts import keeper
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.server.target import Target
from airflow_dblink.embedded.server import Server
from tests.databases import Database
from tests.oracle import wait_until
from tests.pooler import pooler
from tests.standby import standby_of

KEY = LoadKey.of({"run": "keeper"})
ITEM = [sql.Identifier("public", "item")]
COUNT = sql.SQL("SELECT count(*) FROM public.item")
WAITS_FOR_ITEM = """
SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'item'::regclass AND database =
       (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@contextmanager
def side_of(target: Target) -> Iterator[Side]:
    side = Side(connect(target), target.conn_id)
    try:
        yield side
    finally:
        side.connection.close()


@pytest.fixture
def side(source: Database) -> Iterator[Side]:
    """Give a session of the source, which has a table item of 1,000 rows; ends what keeper is left."""
    source.execute("CREATE TABLE item AS SELECT i AS id FROM generate_series(1, 1000) AS i")
    with side_of(source.target) as side:
        yield side
        keeper.release(side, KEY)


def keep(target: Target, *, deadline_s: float = 60, idle_s: float = 60, lock: bool = True) -> None:
    tables = ITEM if lock else []
    keeper.begin(connect(target), target.conn_id, KEY, tables, deadline_s=deadline_s, idle_s=idle_s)


def read_at(side: Side, snapshot: str) -> int:
    """Return how many rows the snapshot has."""
    side.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "reading")
    try:
        keeper.use(side, KEY, snapshot)
        (counted,) = side.fetch(COUNT, "reading")
    finally:
        side.run("ROLLBACK", "reading")
    return int(counted["count"])


def ended(side: Side) -> bool:
    return keeper.find(side, KEY) is None


def kept(side: Side) -> keeper.Keeper:
    found = keeper.find(side, KEY)
    assert found is not None
    return found


def test_a_snapshot_is_kept_when_its_client_has_left(source: Database, side: Side) -> None:
    assert ended(side)
    keep(source.target)
    found = kept(side)
    source.execute("DELETE FROM item WHERE id > 10")
    assert read_at(side, found.snapshot) == 1000
    assert source.rows("SELECT count(*) FROM item") == [(10,)]
    (now,) = source.rows("SELECT extract(epoch FROM now())::float8")[0]
    assert abs(found.taken_at - now) < 60


def test_a_second_one_finds_the_first(source: Database, side: Side) -> None:
    keep(source.target)
    first = kept(side)
    keep(source.target)
    assert kept(side) == first
    # The second one's server process ends a moment after its client has left.
    wait_until(lambda: len([s for s in source.sessions() if "dblink_keeper" in s[1]]) == 1)


def test_it_ends_at_once_when_it_is_released(source: Database, side: Side) -> None:
    keep(source.target)
    snapshot = kept(side).snapshot
    assert keeper.release(side, KEY)
    wait_until(lambda: ended(side))
    assert not keeper.release(side, KEY)
    with pytest.raises(LoadLostError, match=f"snapshot of load {KEY.text} is gone"):
        read_at(side, snapshot)


def test_it_ends_by_itself_when_nobody_needs_it(source: Database, side: Side) -> None:
    keep(source.target, idle_s=0.5)
    wait_until(lambda: ended(side))


def test_it_stays_while_a_part_uses_it_and_ends_after_its_deadline_even_so(
    source: Database, side: Side
) -> None:
    with psycopg.connect(source.conninfo, autocommit=True) as user, side_of(source.target) as part:
        # A part's lock, so that the idle bound can't be over before there is a part.
        user.execute("SELECT pg_advisory_lock_shared(%(high_int)s::int, %(low_int)s::int)", KEY.params)
        keep(source.target, idle_s=1, deadline_s=8)
        found = kept(side)
        part.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "reading")
        keeper.use(part, KEY, found.snapshot)
        wait_until(lambda: ended(side))
        lasted = "SELECT extract(epoch FROM clock_timestamp())::float8 - %s"
        assert source.admin(lasted, found.taken_at)[0][0] > 7  # far beyond its idle bound
        assert part.fetch(COUNT, "reading")[0]["count"] == 1000  # a part that has the snapshot keeps it


def test_whoever_would_rewrite_the_table_waits_for_its_end(source: Database, side: Side) -> None:
    keep(source.target)
    impatient = psycopg.connect(source.conninfo, options="-c lock_timeout=50ms")
    with impatient, pytest.raises(psycopg.errors.LockNotAvailable):
        impatient.execute("TRUNCATE item")
    keeper.release(side, KEY)
    wait_until(lambda: ended(side))
    source.execute("TRUNCATE item")


def test_the_snapshot_is_taken_after_the_table_was_locked(source: Database, side: Side) -> None:
    """Else a table that was rewritten meanwhile would be empty in the snapshot."""
    from threading import Thread

    with psycopg.connect(source.conninfo) as rewriter:
        rewriter.execute("TRUNCATE item; INSERT INTO item SELECT i FROM generate_series(1, 7) AS i")
        thread = Thread(target=keep, args=(source.target,))
        thread.start()
        wait_until(lambda: bool(source.admin(WAITS_FOR_ITEM)))
        rewriter.commit()
        thread.join()
    assert read_at(side, kept(side).snapshot) == 7


def test_what_the_role_has_set_does_not_end_it(source: Database, side: Side) -> None:
    target = Target(
        "source",
        source.params,
        session_settings={
            "statement_timeout": "3s",
            "client_connection_check_interval": "100ms",
            "default_transaction_isolation": "serializable",
            "search_path": "public",
        },
    )
    source.execute("CREATE FUNCTION public.pg_sleep(float8) RETURNS void LANGUAGE sql AS 'SELECT 1/0'")
    keep(target)
    first = kept(side)
    source.admin("SELECT pg_sleep(4)")
    assert kept(side) == first


def test_a_missing_table_is_said(source: Database) -> None:
    with pytest.raises(RemoteError, match=r"'source': relation \"public.item\" does not exist"):
        keep(source.target)


def test_what_a_strangers_session_says_is_not_believed(source: Database, side: Side) -> None:
    with psycopg.connect(source.admin_conninfo) as stranger:
        stranger.execute("SELECT pg_advisory_lock(%s::bigint)", (KEY.number,))
        stranger.execute(
            "SELECT set_config('application_name', %s, false)", (f"dblink_keeper {KEY.text} 0-1-1 1",)
        )
        with pytest.raises(UsageError, match="is no keeper of this load"):
            keeper.find(side, KEY)
        assert not keeper.release(side, KEY)
        assert stranger.execute("SELECT 1").fetchone() == (1,)


def test_an_expected_snapshot_that_is_not_the_keepers_is_refused(source: Database, side: Side) -> None:
    keep(source.target)
    with psycopg.connect(source.conninfo) as other:
        row = other.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        with pytest.raises(LoadLostError):
            read_at(side, row[0])


def test_it_lives_behind_a_pooler_in_transaction_mode(source: Database, side: Side) -> None:
    with pooler(source.server, "transaction") as port:
        pooled = Target("source", {**source.params, "port": port}, pooling_mode="transaction")
        keep(pooled)
        found = kept(side)
        source.execute("DELETE FROM item WHERE id > 10")
        with side_of(pooled) as part:
            assert read_at(part, found.snapshot) == 1000
            assert keeper.release(part, KEY)
    wait_until(lambda: ended(side))


def test_it_works_on_a_standby(source: Database, side: Side, pair: tuple[Server, Server]) -> None:
    with standby_of(pair[0]) as standby:
        target = Database("replica", standby, source.name).target
        keep(target)
        with side_of(target) as part:
            found = kept(part)
            source.execute("DELETE FROM item WHERE id > 10")
            wait_until(lambda: part.fetch(COUNT, "reading")[0]["count"] == 10)
            assert read_at(part, found.snapshot) == 1000
            assert keeper.release(part, KEY)
            wait_until(lambda: ended(part))


def test_a_standby_without_feedback_is_warned_of(
    source: Database, pair: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    with standby_of(pair[0]) as standby, side_of(Database("replica", standby, source.name).target) as replica:
        keeper.warn_of_standby(replica)
        assert "without hot_standby_feedback" in caplog.text
        caplog.clear()
        with side_of(source.target) as primary:
            keeper.warn_of_standby(primary)
        assert not caplog.text
