"""The task that plans a load in parts, of one table or of a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.once.tries import Tries
from airflow_dblink.core.parts.beginning import Begun, begin, choose_tables
from airflow_dblink.core.parts.load import DEADLINE, IDLE, LoadSpec
from airflow_dblink.core.parts.slices import MAX_PARTS, PART_BYTES
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.sets.choose import Choice, Pair
from airflow_dblink.core.transfer.creating import create_missing
from airflow_dblink.hooks.parts.task import task_name
from airflow_dblink.operators.common.arguments import demand_timedelta, flag
from airflow_dblink.operators.common.known import check_known, constructing
from airflow_dblink.operators.common.load_base import (
    Both,
    PacedLoadBaseOperator,
)
from airflow_dblink.operators.common.pace import hold_before_work

if TYPE_CHECKING:
    from airflow.sdk import Context

_KEY = "airflow_dblink_load"
MIN_PARTS = 16


class DblinkPartsPlanOperator(PacedLoadBaseOperator):
    """Begin a load in parts: keep a snapshot of the source, make the table that is loaded, cut the source.

    With *pause_while* it waits before it begins anything. No rows move, so *max_mb_per_s* is only checked.

    :param tables: patterns of the tables of a set, such as ``sales.*``. (templated)
    :param exclude: patterns of tables that don't belong to it. (templated)
    :param schemas: destination schemas, by the source schemas that have another name there. (templated)
    :param create: of a set, make the schemas and tables that the destination lacks.
    :param part_column: cut the source into ranges of this column's values, and not of its pages: a view or
        a query has none. (templated)
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

    template_fields: Sequence[str] = (
        *PacedLoadBaseOperator.template_fields,
        "tables",
        "exclude",
        "schemas",
        "part_column",
    )

    def __init__(
        self,
        *,
        tables: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        schemas: Mapping[str, str] | None = None,
        create: bool = False,
        part_column: str | None = None,
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
        self.part_column = part_column
        self._note_given(part_column=part_column)
        self.part_bytes = part_bytes
        self.min_parts = min_parts
        self.max_parts = max_parts
        self.deadline = deadline
        self.idle = idle
        check_known(self)

    def _check_early(self) -> None:
        super()._check_early()
        if not self.is_set:
            self._spec().check()
        else:
            if self.tables is None:
                raise UsageError(
                    "no table is given", hint="give source_table and destination_table, or tables"
                )
            if self.part_column is not None:
                raise UsageError("part_column is for one source, not for a set", hint="leave part_column out")
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
            part_column=self.part_column,
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
            key = self._set_key(context, destination, self.tables, self.exclude, self.schemas)
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
            units.setdefault(unit, []).append((spec.name, spec.destination_table, part))
    return [units[unit] for unit in sorted(units)]
