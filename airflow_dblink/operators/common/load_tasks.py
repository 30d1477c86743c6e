"""The tasks of a load in parts, of one table or of a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow.sdk import XComArg

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.once.tries import Tries
from airflow_dblink.core.parts.beginning import Begun, begin, choose_tables
from airflow_dblink.core.parts.copying import copy_part
from airflow_dblink.core.parts.indexing import build_indexes
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Done
from airflow_dblink.core.parts.load import DEADLINE, IDLE, Load, LoadSpec, set_key
from airflow_dblink.core.parts.slices import MAX_PARTS, PART_BYTES
from airflow_dblink.core.parts.swapping import is_left, swap
from airflow_dblink.core.parts.verifying import verify
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.sets.choose import Choice, Pair
from airflow_dblink.core.transfer.creating import create_missing
from airflow_dblink.core.transfer.swappable import SWAP_TIMEOUT, demand_swap_arguments
from airflow_dblink.hooks.parts.task import task_name
from airflow_dblink.operators.common.arguments import demand_timedelta, flag, whole_number
from airflow_dblink.operators.common.known import check_known, constructing
from airflow_dblink.operators.common.load_base import (
    Both,
    Item,
    LoadBaseOperator,
    PacedLoadBaseOperator,
    units_of,
)
from airflow_dblink.operators.common.once import ExactlyOnceOperator
from airflow_dblink.operators.common.pace import hold_before_work
from airflow_dblink.operators.common.progress import Progress

if TYPE_CHECKING:
    from airflow.sdk import Context

INDEX_SESSIONS = 2
OLDER_TRANSACTIONS_TIMEOUT = timedelta(minutes=10)
_KEY = "airflow_dblink_load"
MIN_PARTS = 16


class DblinkPartsPlanOperator(PacedLoadBaseOperator):
    """Begin a load in parts: keep a snapshot of the source, make the table that is loaded, cut the source.

    With *pause_while* it waits before it begins anything. No rows move, so *max_mb_per_s* is only checked.

    :param tables: patterns of the tables of a set, such as ``sales.*``. (templated)
    :param exclude: patterns of tables that don't belong to it. (templated)
    :param schemas: destination schemas, by the source schemas that have another name there. (templated)
    :param create: of a set, make the schemas and tables that the destination lacks.
    :param part_bytes: how large a part is at most, TOAST included.
    :param min_parts: so many parts at least, if they would have 8 MB.
    :param max_parts: so many parts at most; they are larger then.
    :param lock: lock the source table in ACCESS SHARE mode while the snapshot is kept: TRUNCATE, VACUUM FULL
        and ALTER TABLE wait. Without it such a change is found, and the load fails.
    :param deadline: the most that the snapshot is kept.
    :param idle: how long the snapshot is kept while no part uses it.

    :returns: (XCom) the numbers of the parts, to be mapped over. Of a set: for each task a list of source
        table, destination table and number of a part of this table.
    """

    template_fields: Sequence[str] = (*PacedLoadBaseOperator.template_fields, "tables", "exclude", "schemas")

    def __init__(
        self,
        *,
        tables: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        schemas: Mapping[str, str] | None = None,
        create: bool = False,
        part_bytes: int = PART_BYTES,
        min_parts: int = MIN_PARTS,
        max_parts: int = MAX_PARTS,
        lock: bool = True,
        deadline: timedelta = DEADLINE,
        idle: timedelta = IDLE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        with constructing(self):
            for name, value in (("deadline", deadline), ("idle", idle)):
                demand_timedelta(name, value)
            self.lock = flag("lock", lock)
            self.create = flag("create", create)
        self.tables = tables
        self.exclude = exclude
        self.schemas = schemas
        self.part_bytes = part_bytes
        self.min_parts = min_parts
        self.max_parts = max_parts
        self.deadline = deadline
        self.idle = idle
        check_known(self)

    def _check_early(self) -> None:
        super()._check_early()
        if self.is_set:
            if self.tables is None:
                raise UsageError(
                    "no table is given", hint="give source_table and destination_table, or tables"
                )
            self._choice()
            self._cut(LoadSpec("", "")).check()
        for name in ("tables", "exclude", "schemas", "create"):
            if not self.is_set and getattr(self, name) not in (None, False):
                hint = f"leave {name} out, or source_table and destination_table"
                raise UsageError(f"{name} is for a set of tables", hint=hint)

    def _choice(self) -> Choice:
        return Choice.of(self.tables, self.exclude, self.schemas)

    def _spec(self) -> LoadSpec:
        return self._cut(super()._spec())

    def _cut(self, spec: LoadSpec) -> LoadSpec:
        return replace(
            spec,
            part_bytes=self.part_bytes,
            min_parts=self.min_parts,
            max_parts=self.max_parts,
            lock=self.lock,
            deadline_s=self.deadline.total_seconds(),
            idle_s=self.idle.total_seconds(),
        )

    def execute(self, context: Context) -> list[Any]:
        """Begin the load, or go on with what an earlier try has begun."""
        ti = context["ti"]
        tries = Tries(context["task_state_store"], ti.max_tries)
        left = tries.left(_KEY)
        # If no try of this run has begun, what is there is another run's: it had this name, and was deleted.
        is_anew = left is None or left.is_cleared or bool(left.facts.get("anew"))
        if self.pause_while is not None and is_anew:
            self._hold()
        # The store refuses this if a later try is running. "anew" stays until a try has begun the load.
        run = uuid4().hex if left is None else str(left.facts.get("run", ""))
        tries.leave(_KEY, {"run": run, "anew": is_anew})
        with self._sides() as both:
            begun = self._begin(context, both, run, is_anew=is_anew)
            tries.leave(_KEY, {"run": run})
            if self.is_set:
                return _units(begun)
            (one,) = begun
            self.log.info("The load's table is %s until it takes its place", one.ledger.shadow.as_string())
            return list(range(1, one.head.parts + 1))

    def _begin(self, context: Context, both: Both, run: str, *, is_anew: bool) -> list[Begun]:
        source, destination = both.source, both.destination
        settings = self._settings(source.connection, source.conn_id)
        destination_settings = self._settings(destination.connection, destination.conn_id)
        if self.is_set:
            named = {"tables": self.tables, "exclude": self.exclude, "schemas": self.schemas}
            key = set_key(destination, {**self._names(context), **named})
            pairs = choose_tables(
                source, key, lambda: self._choice().pairs(source), settings, is_anew=is_anew
            )
            if self.create:
                create_missing(source, destination, pairs, settings, destination_settings)
            specs = self._specs(pairs)
            self.log.info("The set has %s tables", len(specs))
            load = self._load_of(context, destination, specs)
        else:
            load = self._load_of(context, destination, [self._spec()])
            key = load.tables[0].key
        return begin(
            source,
            destination,
            lambda: connect(both.source_hook.target(), application_name=task_name(), check=self._check),
            key,
            load,
            (lambda: self._specs(self._choice().pairs(source))) if self.is_set else None,
            try_number=context["ti"].try_number,
            run=run,
            is_anew=is_anew,
            source_settings=settings,
            destination_settings=destination_settings,
        )

    def _hold(self) -> None:
        with self._destination() as (_, destination), self._pace(self.destination_conn_id) as pace:
            if pace is not None:
                hold_before_work(pace, destination)

    def _specs(self, pairs: Sequence[Pair]) -> list[LoadSpec]:
        return [self._cut(LoadSpec(pair.destination, pair.source)) for pair in pairs]


def _units(begun: Sequence[Begun]) -> list[list[tuple[str, str, int]]]:
    """Return what each task copies: parts of one or more tables."""
    units: dict[int, list[tuple[str, str, int]]] = {}
    for each in begun:
        spec = each.table.spec
        for part, unit in enumerate(each.head.units, 1):
            units.setdefault(unit, []).append((spec.source_table, spec.destination_table, part))
    return [units[unit] for unit in sorted(units)]


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
            total = Done.sum(copied)
            return {"rows": total.rows, "bytes": total.bytes, "seconds": total.seconds, "tries": total.tries}

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
            return result
