"""The tasks of a load in parts once it is planned, of one table or of a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from airflow.sdk import XComArg

from airflow_dblink.core.errors import DblinkError, TransientError, UsageError
from airflow_dblink.core.parts.copying import copy_part
from airflow_dblink.core.parts.indexing import build_indexes
from airflow_dblink.core.parts.keeper import release
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Done
from airflow_dblink.core.parts.left import drop_load
from airflow_dblink.core.parts.load import Load, TableLoad
from airflow_dblink.core.parts.so_far import so_far
from airflow_dblink.core.parts.swapping import is_left, swap
from airflow_dblink.core.parts.verifying import verify
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side, in_transaction
from airflow_dblink.core.transfer.swappable import SWAP_TIMEOUT, demand_swap_arguments
from airflow_dblink.hooks.parts.task import task_name
from airflow_dblink.operators.common.arguments import demand_timedelta, flag, whole_number
from airflow_dblink.operators.common.known import constructing
from airflow_dblink.operators.common.load_base import (
    Item,
    LoadBaseOperator,
    PacedLoadBaseOperator,
    units_of,
)
from airflow_dblink.operators.common.once import ExactlyOnceOperator
from airflow_dblink.operators.common.progress import Progress, say_so_far

if TYPE_CHECKING:
    from airflow.sdk import Context

INDEX_SESSIONS = 2
OLDER_TRANSACTIONS_TIMEOUT = timedelta(minutes=10)


class DblinkPartsLoadOperator(PacedLoadBaseOperator):
    """Copy one part of a load, once, across retries and killed workers.

    :param part: its number; of a set, an item of what the plan has returned. (templated)

    :returns: (XCom) ``rows`` and ``bytes`` of the part, ``seconds`` and ``tries`` that it took.
    """

    template_fields: Sequence[str] = (*PacedLoadBaseOperator.template_fields, "part")

    def __init__(self, *, part: int | Sequence[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part = part

    def execute(self, context: Context) -> dict[str, Any]:
        """Copy the part; the counts become the XCom return value."""
        with self._sides() as both, self._pace(self.destination_conn_id) as pace:
            load = self._load(context, both.destination, [self.part])
            items = units_of([self.part])[0] if self.is_set else [self._item()]
            copied = []
            for table, item in zip(load.tables, items, strict=True):
                progress = Progress(self.log.info, pace)
                paused_s = pace.paused_s if pace else 0
                done = copy_part(
                    both.source,
                    both.destination,
                    table,
                    item.part,
                    context["ti"].try_number,
                    source_settings=self._settings(both.source.connection, both.source.conn_id),
                    destination_settings=self._settings(
                        both.destination.connection, both.destination.conn_id
                    ),
                    progress=progress.report,
                    pace=pace,
                )
                paused_s = pace.paused_s - paused_s if pace else 0
                what = f"{item.source}, part {item.part}" if self.is_set else f"Part {item.part}"
                progress.say(what, done.rows, done.bytes, done.seconds - paused_s)
                copied.append(done)
            self._say_so_far(both.destination, load.tables[-1])  # a large table has tasks of its own
            total = Done.sum(copied)
            return {"rows": total.rows, "bytes": total.bytes, "seconds": total.seconds, "tries": total.tries}

    def _say_so_far(self, destination: Side, table: TableLoad) -> None:
        """Log how far all parts of the table have come, if it has several; the part is committed by now."""
        with suppress(DblinkError, psycopg.Error):
            settings = self._settings(destination.connection, destination.conn_id)
            with in_transaction(destination, settings, "asking how far the load has come"):
                _, ledger = table.find(destination)
                found = so_far(destination, ledger)
            if found is not None and found.parts > 1:
                say_so_far(self.log.info, f"{table.name} so far", found)

    def _item(self) -> Item:
        part = whole_number("part", self.part, least=1)
        return Item(str(self.source_table), str(self.destination_table), part)


class DblinkPartsVerifyOperator(LoadBaseOperator):
    """Look whether all parts of a load are there, and let go of the source's snapshot.

    :param parts: the parts, as the plan has returned them. (templated)

    :returns: (XCom) ``rows``, ``bytes`` and ``parts``.
    """

    template_fields: Sequence[str] = (*LoadBaseOperator.template_fields, "parts")

    def __init__(self, *, parts: Sequence[Any] | XComArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = parts

    def execute(self, context: Context) -> dict[str, Any]:
        """Verify the load; the counts become the XCom return value."""
        with self._sides() as both:
            if not isinstance(self.parts, Sequence) or isinstance(self.parts, str):
                raise UsageError(f"parts must be a list of numbers, got {type(self.parts).__name__}")
            source, destination = both.source, both.destination
            settings = self._settings(destination.connection, destination.conn_id)
            load = self._load(context, destination, self.parts)
            done = verify(source, destination, load, self._counts(load, self.parts), settings)
            self.log.info("%s rows in %s parts, %.1f MB", f"{done.rows:,}", done.parts, done.bytes / 1e6)
            return {"rows": done.rows, "bytes": done.bytes, "parts": done.parts}

    def _counts(self, load: Load, parts: Sequence[Any]) -> dict[LoadKey, int]:
        """Return how many parts each table has."""
        if not self.is_set:
            return {load.tables[0].key: len(parts)}
        counts = Counter(item.source for unit in units_of(parts) for item in unit)
        return {table.key: counts[table.name] for table in load.tables}


class DblinkPartsIndexOperator(LoadBaseOperator):
    """Build the indexes of the tables that were loaded, several at once.

    :param parts: of a set, what the plan has returned. (templated)
    :param index_sessions: how many at once; each is a session of its own.

    :returns: (XCom) ``indexes``: how many were built.
    """

    template_fields: Sequence[str] = (*LoadBaseOperator.template_fields, "parts")

    def __init__(
        self,
        *,
        parts: Sequence[Any] | XComArg | None = None,
        index_sessions: int = INDEX_SESSIONS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.parts = parts
        with constructing(self):
            self.index_sessions = whole_number("index_sessions", index_sessions, least=1)

    def execute(self, context: Context) -> dict[str, Any]:
        """Build the indexes that an earlier try hasn't built."""
        with self._destination() as (hook, destination):
            target = hook.target()
            built = build_indexes(
                destination,
                lambda check: connect(target, application_name=task_name(), check=check),
                self._load(context, destination, self.parts),
                sessions=self.index_sessions,
                check=self._check,
                settings=self._settings(destination.connection, destination.conn_id),
            )
            return {"indexes": built}


class DblinkPartsSwapOperator(LoadBaseOperator, ExactlyOnceOperator):
    """Give loaded tables the destinations' places, exactly once: readers wait for the rename alone.

    :param parts: of a set, what the plan has returned. (templated)
    :param swap_timeout: how long to try to lock the destination, each time for a second.
    :param older_transactions_timeout: how long to wait for transactions that hold an older snapshot: they
        would find an empty table afterwards. ``None``: don't wait.
    :param reset_sequences: move the destination's sequences beyond the values that came.
    :param allow_empty_source: let an empty source empty the destination.

    :returns: (XCom) ``rows``, ``bytes`` and ``seconds`` of all parts together, ``parts``, ``retries``,
        ``snapshot`` (when it was taken, as ISO text), ``tables`` (how many) and ``xid``.
    """

    template_fields: Sequence[str] = (*LoadBaseOperator.template_fields, "parts")

    def __init__(
        self,
        *,
        parts: Sequence[Any] | XComArg | None = None,
        swap_timeout: timedelta = SWAP_TIMEOUT,
        older_transactions_timeout: timedelta | None = OLDER_TRANSACTIONS_TIMEOUT,
        reset_sequences: bool = True,
        allow_empty_source: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        with constructing(self):
            demand_swap_arguments("swap", swap_timeout, None)
            if older_transactions_timeout is not None:
                demand_timedelta("older_transactions_timeout", older_transactions_timeout)
            self.reset_sequences = flag("reset_sequences", reset_sequences)
            self.allow_empty_source = flag("allow_empty_source", allow_empty_source)
        self.parts = parts
        self.swap_timeout = swap_timeout
        self.older_transactions_timeout = older_transactions_timeout

    def execute(self, context: Context) -> dict[str, Any]:
        """Swap the tables, once across all tries."""
        with self._destination() as (hook, destination):
            settings = self._settings(destination.connection, destination.conn_id)
            once = self._once(context, destination.connection, destination.conn_id)
            result = self._recall(context, hook, once)
            load = self._load(context, destination, self.parts)
            if result is not None and is_left(destination, load, settings):
                self.log.info("An earlier try has swapped a load that was planned anew since.")
                result = None
            if result is not None:
                self.log.info("An earlier try has committed: nothing is swapped. %s", result)
            else:
                result = swap(
                    destination,
                    load,
                    once,
                    settings,
                    swap_timeout=self.swap_timeout,
                    older_transactions_timeout=self.older_transactions_timeout,
                    reset_sequences=self.reset_sequences,
                    allow_empty_source=self.allow_empty_source,
                )
                self._check()
            once.finish(result)
            self._tell_assets(context, result, changed=True)
            return result


class DblinkPartsDropOperator(LoadBaseOperator):
    """Remove what a load that has failed would leave: its tables, and the keeper of its snapshot.

    :param tables: of a set, as the plan was given them. (templated)
    :param exclude: the same. (templated)
    :param schemas: the same. (templated)

    :returns: (XCom) ``dropped``: how many tables were being loaded; 0 after a swap.
    """

    template_fields: Sequence[str] = (*LoadBaseOperator.template_fields, "tables", "exclude", "schemas")

    def __init__(
        self,
        *,
        tables: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        schemas: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tables = tables
        self.exclude = exclude
        self.schemas = schemas

    def execute(self, context: Context) -> dict[str, Any]:
        """End the keeper, if its server is there, and drop the tables."""

        def demand_wanted() -> None:
            if not self._is_marked_running(context):
                why = "Airflow doesn't have this task as running: its load may be planned anew by now"
                raise TransientError(why, self.destination_conn_id)

        with self._destination() as (_, destination):
            if self.is_set:
                key = self._set_key(context, destination, self.tables, self.exclude, self.schemas)
            else:
                key = self._load(context, destination, None).tables[0].key
            demand_wanted()
            self._release(key)
            dropped = drop_load(destination, key, demand_wanted, is_set=self.is_set)
            self.log.info("Tables of this load that were dropped: %s", dropped)
            return {"dropped": dropped}

    def _release(self, key: LoadKey) -> None:
        try:
            with self._hook(self.source_conn_id) as source:
                ended = release(Side(source.link().connection, self.source_conn_id), key)
        except DblinkError as error:
            self.log.warning("The snapshot, if there still is one, is kept until idle is over: %s", error)
        else:
            self.log.info("%s: snapshot of this load that was ended: %s", self.source_conn_id, ended)
