"""For the Dags of the acceptance tests: tasks die at exactly named moments, and a gate keeps jobs running."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
from airflow.sdk import BaseHook
from psycopg.conninfo import make_conninfo

from airflow_dblink.hooks.parts.task import task_name

#: Advisory lock that jobs pass one after the other in shared mode, unless a test holds it shut.
GATE = 4711

_SLEEPS = "SELECT FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'PgSleep'"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def while_it_sleeps(conn_id: str, event: Callable[[], None]) -> None:
    """Call *event* one second after a statement of this task has begun to sleep on a server."""
    connection, name = BaseHook.get_connection(conn_id), task_name()
    conninfo = make_conninfo(
        host=connection.host,
        port=connection.port,
        dbname=connection.schema,
        user=connection.login,
        password=connection.password,
    )

    def watch() -> None:
        with psycopg.connect(conninfo, autocommit=True) as session:
            while not session.execute(_SLEEPS, (name,)).rowcount:
                time.sleep(0.05)
            time.sleep(1)
            event()

    threading.Thread(target=watch, daemon=True).start()


class Store:
    """The task's real state store, with an event before or after its n-th write."""

    def __init__(self, store: Any, when: str, nth: int, event: Callable[[], None]) -> None:
        self._store, self._when, self._nth, self._event = store, when, nth, event
        self._writes = 0

    def get(self, key: str, default: Any = None) -> Any:
        return self._store.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self._writes += 1
        here = self._writes == self._nth
        if here and self._when == "before":
            self._event()
        self._store.set(key, value)
        if here and self._when == "after":
            self._event()
