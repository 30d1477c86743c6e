"""The destination's server crashes while a part is copied: what is done stays done, nothing comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from airflow_dblink.core.errors import TransientError
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.embedded.server import Server, servers
from tests.databases import Database, new_database
from tests.parts import FILL, ITEM, Load, load_of, loaded

ROWS = "SELECT * FROM item ORDER BY 1"


@pytest.fixture(scope="module")
def crashing() -> Iterator[Server]:
    """Give a server of the module's own."""
    with servers("crashing") as (server,):
        yield server


@pytest.fixture
def fragile(crashing: Server) -> Iterator[Database]:
    """Give a new database there, with the table."""
    with new_database(crashing, "warehouse") as database:
        database.execute(ITEM)
        yield database


@pytest.fixture
def load(source: Database, fragile: Database) -> Iterator[Load]:
    """Give a load in three parts."""
    source.execute(f"{ITEM}; {FILL}")
    with load_of(source, fragile, part_bytes=800_000, idle_s=600.0) as load:
        yield load


def crash(server: Server) -> None:
    server.crash()
    server.start()


def crashes_before_wait(patch: pytest.MonkeyPatch, server: Server, number: int) -> list[int]:
    """Crash *server* before we wait for it the n-th time; the list that is returned has an entry then."""
    waits, crashed, plain = count(1), list[int](), LinkConnection.wait

    def wait(self: LinkConnection, *args: Any, **kwargs: Any) -> Any:
        if self.info.port == server.port and next(waits) == number:
            crashed.append(number)
            crash(server)
        return plain(self, *args, **kwargs)

    patch.setattr(LinkConnection, "wait", wait)
    return crashed


def test_whenever_the_server_crashes_each_row_comes_once(
    load: Load, source: Database, fragile: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load.begin().parts == 3
    load.copy(1)
    for number in count(1):
        with monkeypatch.context() as patch:
            crashed = crashes_before_wait(patch, fragile.server, number)
            try:
                load.copy(2, number)
            except TransientError:
                assert crashed
        if not crashed:
            break
    assert number > 8, "a part takes more round trips"
    load.copy(3)
    assert load.copy(1, 2).tries == 1, "its rows have outlived the crashes"
    assert load.verify(3).rows == 5000
    assert loaded(fragile, load) == source.rows(ROWS)


def test_a_crash_in_the_middle_of_the_rows(load: Load, source: Database, fragile: Database) -> None:
    crashed: list[int] = []

    def progress(rows: int, _: int, __: int | None) -> None:
        if not crashed:
            crashed.append(rows)
            crash(fragile.server)

    parts = load.begin().parts
    with pytest.raises(TransientError):
        load.copy(1, 1, progress)
    assert loaded(fragile, load) == []
    for part in range(1, parts + 1):
        load.copy(part, 2)
    load.verify(parts)
    load.index()
    load.swap()
    assert fragile.rows(ROWS) == source.rows(ROWS)
