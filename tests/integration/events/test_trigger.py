"""The trigger: it fires while events wait, and says nothing of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any, TypeVar

import pytest
from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.events.claims import release
from airflow_dblink.core.events.table import Events, EventTable
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side
from airflow_dblink.triggers.events import DblinkEventTrigger
from tests.databases import Database
from tests.integration.events.conftest import claim_as, emit, install
from tests.integration.jobs.client import until
from tests.loops import run_alone
from tests.own_process import last_line

T = TypeVar("T")
RARELY = 600.0
_FIRED = {"conn_id": "source", "topic": "orders"}


def _trigger(**arguments: Any) -> DblinkEventTrigger:
    given = {"poll_interval": RARELY, "refire_interval": RARELY, "min_interval": 0.01}
    return DblinkEventTrigger("source", **{"topic": "orders", **given, **arguments})


def _run(act: Callable[[], Awaitable[T]]) -> T:
    return run_alone(act, 120.0)


class _Fires:
    """The events of a running trigger."""

    def __init__(self, **arguments: Any) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._task = asyncio.create_task(self._collect(_trigger(**arguments)))

    async def _collect(self, trigger: DblinkEventTrigger) -> None:
        async for event in trigger.run():
            await self._queue.put(event.payload)

    async def next(self) -> Any:
        return await self._queue.get()

    @property
    def is_silent(self) -> bool:
        return self._queue.empty()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def _until(what: Callable[[], object]) -> None:
    await asyncio.to_thread(until, what)


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return a function that returns everything that was logged."""
    said: list[str] = []

    def text() -> str:
        said.append(capsys.readouterr().out)
        return "".join(said)

    return text


async def _in_thread(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return await asyncio.to_thread(function, *arguments, **options)


def test_it_fires_for_events_that_wait_and_at_once_for_new_ones(shop: Database) -> None:
    emit(shop, 1)

    async def act() -> list[Any]:
        fires = _Fires()
        first = await fires.next()
        await _in_thread(emit, shop, 1)
        second = await fires.next()
        await fires.end()
        return [first, second]

    assert _run(act) == [_FIRED, _FIRED]


def test_it_is_silent_when_all_are_claimed_and_fires_for_what_a_claim_leaves(shop: Database) -> None:
    emit(shop, 3)

    async def act() -> bool:
        fires = _Fires(poll_interval=0.05)
        await fires.next()
        await _in_thread(claim_as, "a", shop.target, most=2)
        await fires.next()
        await _in_thread(claim_as, "b", shop.target)
        await _in_thread(emit, shop, 1, "other")
        await _in_thread(emit, shop, 1)
        await fires.next()
        is_silent = fires.is_silent
        await fires.end()
        return is_silent

    assert _run(act)


def test_it_fires_again_while_nobody_claims(shop: Database) -> None:
    emit(shop, 1)

    async def act() -> None:
        fires = _Fires(refire_interval=0.1)
        for _ in range(3):
            await fires.next()
        await fires.end()

    _run(act)


def test_it_fires_for_what_is_given_back(shop: Database) -> None:
    emit(shop, 2)

    async def act() -> None:
        fires = _Fires()
        await fires.next()
        await _in_thread(claim_as, "a", shop.target)
        await _in_thread(_give_back, shop, "a")
        await fires.next()
        await fires.end()

    _run(act)


def _give_back(database: Database, key: str) -> None:
    with closing(connect(database.target)) as connection:
        assert release(Side(connection, "source"), Events("orders"), key, settings={}) == 2


def test_a_burst_is_few_firings(shop: Database) -> None:
    async def act() -> int:
        fires = _Fires(min_interval=2.0)
        await _in_thread(emit, shop, 1)
        await fires.next()
        await _in_thread(emit, shop, 500)
        await fires.next()
        await fires.end()
        return fires._queue.qsize()

    assert _run(act) == 0


def test_it_goes_on_when_the_table_is_made_later(source: Database, log: Callable[[], str]) -> None:
    async def act() -> Any:
        fires = _Fires()
        await _until(lambda: "airflow dblink install-events source" in log())
        await _in_thread(install, source)
        await _in_thread(emit, source, 1)
        fired = await fires.next()
        await fires.end()
        return fired

    assert _run(act) == _FIRED


def test_an_untrusted_table_is_not_read_and_the_log_says_so(shop: Database, log: Callable[[], str]) -> None:
    role = "stranger_of_the_trigger"
    shop.admin(f"CREATE ROLE {role}")
    try:
        shop.admin(f"""
            ALTER TABLE airflow_dblink_events.event RENAME TO true_event;
            CREATE TABLE public.seen (a int); GRANT ALL ON public.seen TO PUBLIC;
            CREATE FUNCTION airflow_dblink_events.spy() RETURNS bool LANGUAGE plpgsql AS
                'BEGIN RAISE NOTICE ''spied''; PERFORM pg_notify(''spied'', ''''); RETURN true; END';
            CREATE VIEW airflow_dblink_events.event AS
                SELECT 1 AS id, NULL::text AS claimed_by, 'orders' AS topic WHERE airflow_dblink_events.spy();
            ALTER VIEW airflow_dblink_events.event OWNER TO {role};
            GRANT ALL ON airflow_dblink_events.event TO PUBLIC
        """)

        async def act() -> bool:
            fires = _Fires()
            await _until(lambda: "could make role" in log())
            is_silent = fires.is_silent
            await fires.end()
            return is_silent

        assert _run(act)
        assert f"belongs to role '{role}'" in log()
    finally:
        shop.admin(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_an_own_table_with_a_channel(source: Database) -> None:
    source.execute("CREATE TABLE queue (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), taken_by text)")
    own = EventTable("queue", claimed_by="taken_by")

    async def act() -> Any:
        fires = _Fires(topic=None, own_table=own, wake_channel="queued")
        await _until(lambda: source.admin(_LISTENS))
        await _in_thread(source.execute, "INSERT INTO queue DEFAULT VALUES; NOTIFY queued")
        fired = await fires.next()
        await fires.end()
        return fired

    assert _run(act) == {"conn_id": "source", "topic": None}


_LISTENS = """
SELECT 1 FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'airflow-dblink triggerer' AND state = 'idle'
"""


def test_it_is_the_same_after_serialization() -> None:
    trigger = _trigger(own_table=EventTable("q", claimed_by="c", topic="kind"), wake_channel="w")
    path, arguments = trigger.serialize()

    again = DblinkEventTrigger(**arguments)

    assert path == "airflow_dblink.triggers.events.DblinkEventTrigger"
    assert again.serialize() == (path, arguments)
    assert again.events == trigger.events


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"topic": None}, "topic is missing"),
        ({"topic": "x" * 201}, "topic must have 1 to 200 bytes, got 201"),
        ({"own_table": EventTable("t")}, "has no column for it"),
        ({"wake_channel": "x" * 64}, "wake_channel must be a name of 1 to 63 bytes"),
        ({"poll_interval": 0}, "poll_interval must be a number of seconds above 0"),
        ({"refire_interval": True}, "refire_interval must be a number of seconds above 0"),
        ({"event_schema": "a\0"}, "NUL"),
        ({"own_table": "q"}, "own_table must be an EventTable, got str"),
        ({"own_table": {"bogus": 1}}, "an event table has no 'bogus'"),
        ({"own_table": {}}, "name of an event table is missing"),
        ({"topic": 5}, "topic must be text, got int"),
        ({"refire_interval": float("inf")}, "refire_interval must be a number of seconds"),
        ({"min_interval": 10**400}, "min_interval must be a number of seconds"),
        ({"min_interval": float("nan")}, "min_interval must be a number of seconds"),
    ],
    ids=str,
)
def test_mistakes_are_seen_when_the_dag_is_parsed(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        _trigger(**arguments)


@pytest.mark.parametrize("name", ["a.b.c", "a b", '"a', "", "1a", "a..b", "a;b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match=r"must be a name|is no name of a table"):
        EventTable(name)


def test_it_is_a_queue_of_airflows_own_trigger() -> None:
    trigger = MessageQueueTrigger(scheme="dblink", conn_id="source", topic="orders", min_interval=1)

    assert trigger.serialize() == DblinkEventTrigger("source", "orders", min_interval=1).serialize()


def test_without_the_messaging_provider_airflow_finds_no_queue_and_goes_on() -> None:
    code = """
import sys
sys.modules["airflow.providers.common.messaging.providers"] = None  # as if it were not installed
from airflow.providers_manager import ProvidersManager
manager = ProvidersManager()
manager.initialize_providers_queues()
print("queues:", [name for name in manager.queue_class_names if "dblink" in name])
"""
    assert last_line(code) == "queues: []"
