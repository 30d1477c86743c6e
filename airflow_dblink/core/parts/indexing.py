"""Building the indexes of shadows, in several sessions at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import Empty, SimpleQueue
from threading import Event

from airflow_dblink.core.errors import RemoteError, StoppedError
from airflow_dblink.core.parts.ledger import end_holders
from airflow_dblink.core.parts.load import Load, Settings, TableLoad
from airflow_dblink.core.parts.shadow import index_names, pieces_of
from airflow_dblink.core.server.connection import Check, LinkConnection
from airflow_dblink.core.server.side import Side, in_transaction, own_path, set_local
from airflow_dblink.core.tables.pieces import Index, TableName, run_all

log = logging.getLogger(__name__)

# A session of an earlier try has built it before this one began; or commits it while this one builds it.
_NOT_UNIQUE = "23505"
_THERE = ("42P07", _NOT_UNIQUE)
_IN_CATALOG = "pg_class_relname_nsp_index"


def build_indexes(
    destination: Side,
    connect: Callable[[Check], LinkConnection],
    load: Load,
    *,
    sessions: int,
    check: Check,
    settings: Settings,
) -> int:
    """Build the shadows' indexes, unless an earlier try has done so; returns how many were built.

    Each is built in a transaction of its own. What can be built in no other session than its constraint, such
    as an exclusion constraint, is left to the swap.

    :param connect: opens a session on the destination, which asks the check whenever it waits.
    :param sessions: how many indexes are built at the same time.
    :param check: raises if the task is told to stop.
    :param settings: run-time parameters, local to the transactions.
    :raises NoLoadError: if the load's tables are gone.
    :raises RemoteError: what the server says: two rows have one key; others are not begun then.
    """
    with in_transaction(destination, settings, "looking for the load"):
        missing = [index for table in load.tables for index in _missing(destination, table)]
    work: SimpleQueue[tuple[TableName, str, Index]] = SimpleQueue()
    for index in missing:
        work.put(index)
    count = len(missing)
    stop = Event()

    def ask() -> None:
        check()
        if stop.is_set():
            raise StoppedError("another index could not be built")

    def take() -> None:
        with closing(connect(ask)) as connection:
            side = Side(connection, destination.conn_id)
            try:
                while True:
                    _build(side, *work.get_nowait(), settings)
            except Empty:
                return
            except BaseException:
                stop.set()
                connection.abort()
                raise

    with ThreadPoolExecutor(max(min(sessions, count), 1), thread_name_prefix="index") as pool:
        futures = [pool.submit(take) for _ in range(min(sessions, count))]
    failures = [error for future in futures if (error := future.exception()) is not None]
    for failure in sorted(failures, key=lambda error: isinstance(error, StoppedError)):
        raise failure
    return count


def _missing(destination: Side, table: TableLoad) -> list[tuple[TableName, str, Index]]:
    """Return the indexes that the shadow of a table lacks, with its name and theirs."""
    target, ledger = table.find(destination)
    head = ledger.head(destination)
    end_holders(destination, head.shadow)  # an index that an earlier try still builds
    there = index_names(destination, head.shadow)
    pieces = pieces_of(destination, target.oid, ledger)
    return [
        (ledger.shadow_name, name, index)
        for name, index in pieces.indexes.items()
        if name not in there and index.is_separable
    ]


def _build(side: Side, table: TableName, name: str, index: Index, settings: Settings) -> None:
    side.run("BEGIN", "building an index")
    set_local(side, settings)
    try:
        with own_path(side):  # the definition was read under it
            run_all(side, index.create(table, name), f"building the index {index.name}")
    except RemoteError as error:
        if error.sqlstate not in _THERE or (
            error.sqlstate == _NOT_UNIQUE and _IN_CATALOG not in error.message
        ):
            raise
        side.run("ROLLBACK", "building an index")  # a session of an earlier try has built it meanwhile
        return
    side.run("COMMIT", "building an index")
    log.info("%s: index %s is built", side.conn_id, index.name)
