"""How the tests load a table in parts, from ``source`` to ``warehouse``, each step as a task of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from airflow_dblink.core.errors import DblinkError
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.once.tries import Store
from airflow_dblink.core.parts import keeper
from airflow_dblink.core.parts.beginning import begin
from airflow_dblink.core.parts.copying import copy_part
from airflow_dblink.core.parts.indexing import build_indexes
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Done, Head, Ledger
from airflow_dblink.core.parts.load import Load as CoreLoad
from airflow_dblink.core.parts.load import LoadSpec, TableLoad
from airflow_dblink.core.parts.swapping import swap
from airflow_dblink.core.parts.verifying import verify
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.server.target import Target
from tests.databases import Database
from tests.oracle import wait_until
from tests.stores import MemoryStore

#: 5,000 rows in some 300 pages.
ITEM = "CREATE TABLE item (id int PRIMARY KEY, name text, at timestamptz DEFAULT '2026-01-01Z')"
FILL = "INSERT INTO item SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 5000) AS i"
#: About eight parts of it.
PART_BYTES = 250_000
#: Ends with the last part; a test that fails leaves no session for long.
IDLE_S = 60.0


@dataclass(frozen=True)
class Load:
    """One load of table ``item``, whose steps open connections of their own."""

    source: Target
    destination: Target
    spec: LoadSpec
    key: LoadKey

    @property
    def core(self) -> CoreLoad:
        """The load as the core takes it."""
        return CoreLoad((TableLoad(self.key, self.spec),))

    @contextmanager
    def sides(self) -> Iterator[tuple[Side, Side]]:
        """Give a connection to each server; aborted afterwards, as the hook does."""
        sides = [Side(connect(target), target.conn_id) for target in (self.source, self.destination)]
        try:
            yield sides[0], sides[1]
        finally:
            for side in sides:
                side.connection.abort()

    def begin(self, try_number: int = 1, *, is_anew: bool = False) -> Head:
        """Begin the load, as the task that plans it."""
        with self.sides() as (source, destination):
            (begun,) = begin(
                source,
                destination,
                lambda: connect(self.source),
                self.key,
                self.core,
                try_number=try_number,
                run="",
                is_anew=is_anew,
                source_settings={},
                destination_settings={},
            )
            return begun.head

    def copy(
        self, part: int, try_number: int = 1, progress: Callable[[int, int, int | None], None] | None = None
    ) -> Done:
        """Copy one part."""
        with self.sides() as (source, destination):
            return copy_part(
                source,
                destination,
                self.core.tables[0],
                part,
                try_number,
                source_settings={},
                destination_settings={},
                progress=progress or (lambda *_: None),
            )

    def verify(self, parts: int) -> Done:
        """Verify the load."""
        with self.sides() as (source, destination):
            return verify(source, destination, self.core, {self.key: parts}, {})

    def index(self) -> int:
        """Build the indexes, two at a time."""
        with self.sides() as (_, destination):
            return build_indexes(
                destination,
                lambda check: connect(self.destination, check=check),
                self.core,
                sessions=2,
                check=lambda: None,
                settings={},
            )

    def swap(
        self,
        store: Store | None = None,
        wait: timedelta = timedelta(minutes=1),
        *,
        allow_empty_source: bool = False,
    ) -> dict[str, Any]:
        """Swap the tables, unless an earlier try has done so."""
        with self.sides() as (_, destination):
            once = Once(destination.connection, destination.conn_id, store or MemoryStore())
            if (result := once.recall()) is None:
                result = swap(
                    destination,
                    self.core,
                    once,
                    {},
                    swap_timeout=timedelta(minutes=1),
                    older_transactions_timeout=wait,
                    reset_sequences=True,
                    allow_empty_source=allow_empty_source,
                )
            return result

    def keeper(self) -> keeper.Keeper | None:
        """Return the load's keeper, if there is one."""
        with self.sides() as (source, _):
            return keeper.find(source, self.key)

    def end_keeper(self) -> None:
        """End the keeper, and wait until it has gone."""
        with self.sides() as (source, _):
            keeper.release(source, self.key)
            wait_until(lambda: keeper.find(source, self.key) is None)

    def ledger(self) -> Ledger:
        """Return the ledger, of the schema ``public``."""
        return Ledger(self.key, "public")

    def but(self, **changed: Any) -> Load:
        """Return the load with another spec."""
        return replace(self, spec=replace(self.spec, **changed))


@contextmanager
def load_of(source: Database, warehouse: Database, **spec: Any) -> Iterator[Load]:
    """Give a load of ``item`` in many parts; its keeper is ended afterwards."""
    given = {"destination_table": "item", "source_table": "item", "part_bytes": PART_BYTES, "idle_s": IDLE_S}
    load = Load(source.target, warehouse.target, LoadSpec(**{**given, **spec}), LoadKey.of({"run": "1"}))
    try:
        yield load
    finally:
        with suppress(DblinkError):
            load.end_keeper()


def loaded(database: Database, load: Load) -> list[tuple[Any, ...]]:
    """Return the rows of the load's shadow, by their first column."""
    return database.rows(f'SELECT * FROM public."{load.key.shadow}" ORDER BY 1')  # noqa: S608 - hexadecimal


def killed_at_each_wait(work: Callable[[int], object], step: int = 1) -> int:
    """Do *work* in processes that are killed later and later, until one comes to its end.

    :param work: is given a number that grows, as a try's.
    :param step: how many waits later the next one is killed.
    :returns: how many were killed.
    """
    dies_at = 1
    while _is_killed(partial(work, dies_at), dies_at):
        dies_at += step
    return dies_at // step


def _is_killed(work: Callable[[], object], dies_at: int) -> bool:
    """Do *work* in a child that is killed before its n-th wait for a server; returns whether it got that far.

    A child that ends before it has failed or done its work: then the answer is false.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(_child(work, dies_at))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the child's work failed"
    return False


def _child(work: Callable[[], object], dies_at: int) -> int:
    waits, plain = 0, LinkConnection.wait

    def wait(self: LinkConnection, *args: Any, **kwargs: Any) -> Any:
        nonlocal waits
        waits += 1
        if waits == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *args, **kwargs)

    LinkConnection.wait = wait  # type: ignore[method-assign]
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - a child must not run pytest's own code
        print(error, file=sys.stderr)  # noqa: T201 - the test shows it
        return 1
    return 0
