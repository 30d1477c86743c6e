"""No password is among the locals of a traceback, nor of the errors behind it."""

from __future__ import annotations

import asyncio
import json
import socket
import traceback
from collections.abc import Callable, Iterator

import pytest

from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.server.login import aconnect, connect
from airflow_dblink.core.server.target import Target
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database
from tests.hostile_server import PASSWORD, HostileServer

pytestmark = pytest.mark.usefixtures("source")


def _shown(error: BaseException | None) -> Iterator[str]:
    """Yield everything that tools show: the locals of each frame, also of earlier errors in the chain."""
    while error is not None:
        for cause in (error, *(each for each in (error.__cause__,) if each is not None)):
            yield from traceback.TracebackException.from_exception(cause, capture_locals=True).format()
            yield repr(cause.args)
        error = error.__context__


def _fails(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - the one that is looked at
        return error
    raise AssertionError("nothing was raised")


def _demand_hidden(call: Callable[[], object], secret: str = PASSWORD) -> None:
    shown = list(_shown(_fails(call)))
    assert any("in connect" in text or "in aconnect" in text for text in shown)
    assert [text for text in shown if secret in text] == []


CLOSED = Target(
    "closed", {"host": "127.0.0.1", "port": 1, "user": "u", "password": PASSWORD, "connect_timeout": 2}
)
REFUSED = {
    "away": CLOSED,
    "unknown parameter": Target("c", {**CLOSED.params, "nonsense": "1"}),
    "a NUL": Target("c", {**CLOSED.params, "dbname": "a\0b"}),
    "unreadable": Target("c", {**CLOSED.params, "port": "x"}),
}


@pytest.mark.parametrize("target", [pytest.param(target, id=name) for name, target in REFUSED.items()])
def test_where_no_connection_comes_about(target: Target) -> None:
    _demand_hidden(lambda: connect(target))
    _demand_hidden(lambda: Links().connect("x", target))
    _demand_hidden(lambda: asyncio.run(aconnect(target)))


def test_where_the_server_refuses(source: Database) -> None:
    wrong = Target("source", {**source.params, "password": PASSWORD})

    _demand_hidden(lambda: connect(wrong))
    _demand_hidden(lambda: asyncio.run(aconnect(wrong)))
    bad = Target("source", source.params, session_settings={"work_mem": "much"})
    _demand_hidden(lambda: connect(bad), source.params["password"])


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_where_connecting_is_stopped(kind: type[BaseException]) -> None:
    def check() -> None:
        raise kind

    with socket.create_server(("127.0.0.1", 0)) as nobody_accepts:
        target = HostileServer(nobody_accepts.getsockname()[1]).target()
        _demand_hidden(lambda: connect(target, check=check))


def test_the_hooks_own_frames(add_connection: AddConnection) -> None:
    for conn_id, extra in (("closed", {}), ("bad", {"direct_port": "x"})):
        add_connection(
            conn_id,
            conn_type="dblink",
            host="127.0.0.1",
            port=1,
            login="u",
            password=PASSWORD,
            extra=json.dumps(extra),
        )

        for call in ("get_conn", "link"):
            error = _fails(getattr(DblinkHook(dblink_conn_id=conn_id), call))
            assert [text for text in _shown(error) if PASSWORD in text] == []
