"""Runs the transfer operator for tests as a task does, from database ``source`` to ``warehouse``."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from airflow_dblink.operators.transfer import DblinkTransferOperator
from tests.databases import Database
from tests.integration.tasks import context
from tests.stores import MemoryStore


def operator(**arguments: Any) -> DblinkTransferOperator:
    """Return the operator, between the two databases unless *arguments* name others."""
    given = {"source_conn_id": "source", "destination_conn_id": "warehouse", **arguments}
    return DblinkTransferOperator(task_id="move", **given)


def execute(task: DblinkTransferOperator, store: MemoryStore | None = None, max_tries: int = 0) -> Any:
    """Execute *task* as its first try."""
    return task.execute(context(store, max_tries=max_tries))


def transfer(table: str = "item", **arguments: Any) -> Any:
    """Execute the operator: from *table* to *table* unless *arguments* name others."""
    if "source_sql" not in arguments:
        arguments.setdefault("source_table", table)
    arguments.setdefault("destination_table", table)
    return execute(operator(**arguments))


@contextmanager
def meanwhile(
    action: Callable[[], object], when: Callable[[], object], timeout_s: float = 120
) -> Iterator[None]:
    """Do *action* in another thread, as soon as *when* returns a true value; fail if it never does."""
    happened: list[bool] = []
    failures: list[BaseException] = []
    left = threading.Event()

    def act() -> None:
        deadline = time.monotonic() + timeout_s
        try:
            while time.monotonic() < deadline and not left.is_set():
                if when():
                    action()
                    happened.append(True)
                    return
                time.sleep(0.02)
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
        assert not failures, failures
        assert happened, "what the test waits for did not happen"


def sleeping(database: Database) -> list[tuple[Any, ...]]:
    """Return the process ids of the sessions that are in pg_sleep."""
    return database.admin(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    )


class TimeIsUp(BaseException):
    """The error that a signal handler raises; like AirflowTaskTimeout, it is no Exception."""


@contextmanager
def alarm(when: Callable[[], object], kind: type[BaseException] = TimeIsUp) -> Iterator[list[float]]:
    """Raise an error of *kind* in a signal handler as soon as *when* is true; give the time of that."""

    def handler(*_: object) -> None:
        raise kind

    rung_at: list[float] = []

    def ring() -> None:
        rung_at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGALRM)

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with meanwhile(ring, when):
            yield rung_at
    finally:
        signal.signal(signal.SIGALRM, previous)
