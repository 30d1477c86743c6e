"""dblink's wait events: who waits, for what, for how long, as ``Links(observe=...)`` hears it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from airflow_dblink.core.errors import DblinkError, TransientError
from airflow_dblink.core.link.link import Link
from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.server.login import connect
from tests.databases import Database
from tests.oracle import wait_until

RESULT = ("DblinkGetResult", "source")
SLEEP = "SELECT pg_sleep(0.3)"


class Observed(list[tuple[str, str, float]]):
    """What was reported."""

    def __call__(self, event: str, conn_id: str, seconds: float) -> None:
        self.append((event, conn_id, seconds))

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(event, conn_id) for event, conn_id, _ in self]


@pytest.fixture
def observed() -> Observed:
    return Observed()


@pytest.fixture
def links(source: Database, observed: Observed) -> Iterator[Links]:
    with Links(observe=observed) as registry:
        yield registry


@pytest.fixture
def link(links: Links, source: Database, observed: Observed) -> Link:
    links.connect("x", source.target)
    observed.clear()
    return links.get("x")


def test_connecting_is_reported_with_the_connections_id(
    links: Links, source: Database, observed: Observed
) -> None:
    links.connect("x", source.target)
    links.connect(None, source.target)
    assert observed.events == [("DblinkConnect", "source")] * 2
    assert all(0 < seconds < 30 for _, _, seconds in observed)


def test_a_connection_for_one_call_is_an_event_of_its_own(
    links: Links, source: Database, observed: Observed
) -> None:
    with links.one_shot(source.target) as link:
        link.query("SELECT 1")
    assert observed.events == [("DblinkGetConnect", "source"), RESULT]


def test_a_failure_to_connect_is_reported_too(links: Links, source: Database, observed: Observed) -> None:
    with pytest.raises(TransientError):
        links.connect("x", replace(source.target, params={**source.params, "password": "wrong"}))
    with (
        pytest.raises(TransientError),
        links.one_shot(replace(source.target, params={**source.params, "port": 1})),
    ):
        pass
    assert observed.events == [("DblinkConnect", "source"), ("DblinkGetConnect", "source")]


def test_what_is_refused_before_connecting_is_no_wait(
    links: Links, source: Database, observed: Observed
) -> None:
    links.connect("x", source.target)
    observed.clear()
    with pytest.raises(DblinkError, match="duplicate"):
        links.connect("x", source.target)
    with pytest.raises(DblinkError, match="password"):
        links.connect("y", replace(source.target, params={**source.params, "password": None}))
    assert observed.events == []


CALLS: dict[str, Callable[[Link], Any]] = {
    "query": lambda link: link.query("SELECT 1"),
    "query that shall not fail": lambda link: link.query("SELECT 1", fail_on_error=False),
    "exec": lambda link: link.exec("CREATE TABLE t (a int)"),
    "open": lambda link: link.open("c", "SELECT 1"),
    "open in the user's transaction": lambda link: link.open("c", "SELECT 1"),
    "fetch": lambda link: link.fetch("c", 1),
    "close": lambda link: link.close("c"),
    "get_result": lambda link: link.pending.result(),
    "get_result, streamed": lambda link: list(link.pending.batches(10)),
}
BEFORE: dict[str, Callable[[Link], Any]] = {
    "open in the user's transaction": lambda link: link.exec("BEGIN"),
    "fetch": lambda link: link.open("c", "SELECT 1"),
    "close": lambda link: (link.exec("BEGIN"), link.exec("DECLARE c CURSOR FOR SELECT 1")),
    "get_result": lambda link: link.pending.send("SELECT 1"),
    "get_result, streamed": lambda link: link.pending.send("SELECT generate_series(1, 2000)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_waits_for_a_result_is_reported(link: Link, observed: Observed, name: str) -> None:
    BEFORE.get(name, bool)(link)
    observed.clear()

    CALLS[name](link)

    assert set(observed.events) == {RESULT}
    assert len(observed) <= 2  # open also begins the transaction


def test_each_message_of_the_users_is_one_wait(link: Link, observed: Observed) -> None:
    link.exec("BEGIN")
    link.query("SELECT 1; SELECT 2")
    link.open("c", "SELECT 1")
    link.fetch("c", 5)
    link.close("c")
    assert observed.events == [RESULT] * 5


def test_a_wait_has_its_seconds(link: Link, observed: Observed) -> None:
    link.query("SELECT pg_sleep(2)")  # longer than 0.3 s: it runs before it is waited for
    link.exec("DO $$BEGIN PERFORM pg_sleep(2); END$$")
    link.pending.send("SELECT pg_sleep(2)")
    link.pending.result()
    assert observed.events == [RESULT] * 3
    assert all(0.29 < seconds < 30 for _, _, seconds in observed)


def test_what_does_not_wait_is_not_reported(link: Link, observed: Observed) -> None:
    link.exec("LISTEN a; NOTIFY a")
    observed.clear()

    link.pending.send(SLEEP)
    wait_until(lambda: link.pending.is_busy() == 0)
    assert len(link.get_notify()) == 1
    assert link.pending.cancel() == "OK"
    assert link.error_message() == "OK"
    assert observed.events == []


@pytest.mark.parametrize("fail", [True, False])
def test_failures_are_reported_too(link: Link, observed: Observed, fail: bool) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: link.query("SELECT 1/0", fail_on_error=fail),
        lambda: link.exec("SELECT 1/0", fail_on_error=fail),
        lambda: link.fetch("c", 1, fail_on_error=fail),
        lambda: link.close("c", fail_on_error=fail),
        lambda: link.pending.send("SELECT 1/0") and link.pending.result(fail_on_error=fail),
    ]
    for call in calls:
        if fail:
            with pytest.raises(DblinkError):
                call()
        else:
            call()
    assert observed.events == [RESULT] * len(calls)


def test_a_lost_connection_is_reported_too(link: Link, source: Database, observed: Observed) -> None:
    link.pending.send("SELECT pg_sleep(60)")
    source.admin("SELECT pg_terminate_backend(%s, 10000)", link.pgconn.backend_pid)
    with pytest.raises(TransientError):
        link.pending.result()
    assert observed.events == [RESULT]


def test_a_refused_statement_is_no_wait(link: Link, observed: Observed) -> None:
    for statement in ("", "COPY t FROM STDIN"):
        with pytest.raises(DblinkError):
            link.query(statement)
    assert observed.events == []


class StopNowError(Exception):
    """What a check raises in these tests."""


def test_a_wait_that_is_stopped_is_reported_too(source: Database, observed: Observed) -> None:
    wanted = [True]

    def check() -> None:
        if not wanted[0]:
            raise StopNowError

    link = Link("x", source.target, connect(source.target, check=check, observe=observed))
    wanted[0] = False
    with pytest.raises(StopNowError):
        link.query("SELECT pg_sleep(60)")
    link.abort()
    assert observed.events == [("DblinkConnect", "source"), RESULT]


def test_the_log_has_every_wait(source: Database, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "airflow_dblink"), Links() as links:  # nobody observes
        links.connect("x", source.target)
        links.get("x").query("SELECT 1")
    waits = [r.getMessage() for r in caplog.records if r.name == "airflow_dblink.core.server.wait_events"]
    assert [wait.split(" took ")[0] for wait in waits] == ["source: DblinkConnect", "source: DblinkGetResult"]
