"""The arguments of a sync, and their checks that need no server."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Literal, Self, get_args

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.bind import Params
from airflow_dblink.core.sqltext.lexer import parts
from airflow_dblink.core.sqltext.names import demand_columns
from airflow_dblink.core.sqltext.rules import demand_one_source, the_query
from airflow_dblink.core.sync.moving import moving, moving_value

Method = Literal["auto", "difference", "reload", "replace"]
Apply = Literal["set", "statements"]
Lock = Literal["apply", "compare"]
OnConflict = Literal["error", "replace"]
Triggers = Literal["fire", "disable"]

#: The operation of a plan's row: the row is missing in the destination, differs there, or is only there.
INSERT, UPDATE, DELETE = "I", "U", "D"

_PLAN = {"seed": int, "digest": str, "arguments": str}
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Spec:
    """The arguments of a sync; see :class:`~airflow_dblink.operators.sync.DblinkSyncOperator`."""

    destination_table: str
    source_table: str | None = None
    source_sql: str | None = None
    source_parameters: Params | None = None
    key: Sequence[str] | None = None
    columns: Sequence[str] | Mapping[str, str] | None = None
    where: str | None = None
    where_parameters: Params | None = None
    insert: bool = True
    update: bool = True
    delete: bool = True
    method: Method = "auto"
    replace_above: float | None = None
    apply: Apply = "set"
    lock: Lock = "apply"
    on_conflict: OnConflict = "error"
    triggers: Triggers = "fire"
    plan: Mapping[str, Any] | None = None
    max_delete_fraction: float | None = 0.25
    max_change_fraction: float | None = None
    allow_empty_source: bool = False
    watermark_column: str | None = None
    watermark_from: str | None = None
    watermark_until: str | None = None
    watermark_overlap: timedelta | int | float | None = None
    sample_keys: int = 5
    reset_sequences: bool = True

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the spec with *values* for its fields, by name; other names are ignored.

        :raises KeyError: if the value of a field is missing.
        """
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def operations(self) -> str:
        """The operations that are on, as the letters in a plan's rows."""
        given = {INSERT: self.insert, UPDATE: self.update, DELETE: self.delete}
        return "".join(operation for operation, on in given.items() if on)

    def fingerprint(self, *more: Any) -> str:
        """Return a hash of all arguments that decide a plan, and of *more*."""
        given = (
            *more,
            *(self.destination_table, self.source_table, self.source_sql, self.source_parameters),
            *(self.key, self.columns, self.where, self.where_parameters),
            *(self.operations, self.on_conflict, self.triggers),
        )
        # Of their JSON, where lists and tuples are the same: templates and XCom turn one into the other.
        return hashlib.sha256(json.dumps(given, default=str, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def is_incremental(self) -> bool:
        """Whether only the source's rows from the watermark on are read; such a sync deletes nothing."""
        return self.watermark_column is not None

    def check(self) -> None:
        """Raise if an argument can't work, alone or with the others.

        :raises UsageError: names the argument.
        """
        self._demand_texts()
        demand_one_source(self.source_table, self.source_sql, self.source_parameters)
        if self.source_sql is not None:
            the_query(self.source_sql)
        if self.where_parameters is not None and self.where is None:
            raise UsageError("where_parameters belong to where")
        self._demand_choices()
        self._demand_numbers()
        self._demand_names()
        if self.plan is not None:
            _demand_plan(self.plan)
        if not self.operations:
            raise UsageError("insert, update and delete are all off: there is nothing to do")
        if self.method == "replace" or self.replace_above is not None:
            self._demand_replaceable()
        if self.is_incremental and self.plan is not None:
            raise UsageError("plan and watermark_column don't go together", hint="approve a full sync")

    def _demand_texts(self) -> None:
        for name in ("destination_table", "source_table", "source_sql", "where", "watermark_column"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise UsageError(f"{name} must be text, got {value!r}" if value else f"{name} is empty")
        self._demand_watermark()

    def _demand_watermark(self) -> None:
        if self.watermark_column is None:
            for name in ("watermark_overlap", "watermark_until"):
                if getattr(self, name) is not None:
                    raise UsageError(f"{name} belongs to watermark_column")
        until: Any = self.watermark_until
        if until is not None and str(until).strip() in ("", "None"):
            hint = "leave it out, or look at the text that its template renders to"
            raise UsageError(f"watermark_until has no value, got {until!r}", hint=hint)
        if isinstance(until, bool) or not isinstance(until, str | int | float | Decimal | date | None):
            raise UsageError(f"watermark_until must be a text, number or time, got {type(until).__name__}")
        overlap: Any = self.watermark_overlap
        is_number = isinstance(overlap, timedelta | int | float) and not isinstance(overlap, bool)
        if overlap is not None and not (is_number and type(overlap)(0) <= overlap and overlap != math.inf):
            raise UsageError(f"watermark_overlap must be a timedelta or number, not below 0, got {overlap!r}")

    def _demand_where(self, where: str) -> None:
        if len(found := parts(where)) != 1:
            raise UsageError("where must be one condition, without a semicolon")
        if found[0].words[:1] == ["WHERE"] and found[0].text[:5].upper() == "WHERE":
            hint = "leave the word out: where='id > 5'"
            raise UsageError("where begins with WHERE, but takes the condition alone", hint=hint)
        if (value := moving(where)) is not None:
            raise moving_value(value)

    def _demand_names(self) -> None:
        demand_columns("columns", self.columns, or_mapping=True)
        demand_columns("key", self.key)
        if self.key is not None and not self.key:
            raise UsageError("key names no column")
        if self.where is not None:
            self._demand_where(self.where)

    def _demand_replaceable(self) -> None:
        """Raise if an argument needs to know single rows: TRUNCATE and COPY know none."""
        given = {
            "where": self.where is not None,
            "watermark_column": self.is_incremental,
            "plan": self.plan is not None,
            "insert, update or delete off": len(self.operations) < 3,
            "apply='statements'": self.apply == "statements",
            "max_delete_fraction (its default, too: give None)": self.max_delete_fraction is not None,
            "max_change_fraction": self.max_change_fraction is not None,
        }
        if against := [name for name, is_given in given.items() if is_given]:
            raise UsageError(
                f"replacing the whole table doesn't go together with {', '.join(against)}",
                hint="use method='auto' without replace_above",
            )

    def _demand_choices(self) -> None:
        choices = {
            "method": Method,
            "apply": Apply,
            "lock": Lock,
            "on_conflict": OnConflict,
            "triggers": Triggers,
        }
        for name, choice in choices.items():
            if (value := getattr(self, name)) not in get_args(choice):
                raise UsageError(f"{name} must be {' or '.join(get_args(choice))}, got {value!r}")

    def _demand_numbers(self) -> None:
        for name in ("max_delete_fraction", "max_change_fraction", "replace_above"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 <= value <= 1):
                hint = f"{value:g} % is {value / 100:g}" if is_number and 1 < value <= 100 else None
                message = f"{name} must be between 0 and 1, or None for no limit, got {value!r}"
                raise UsageError(message, hint=hint)
        if (
            isinstance(self.sample_keys, bool)
            or not isinstance(self.sample_keys, int)
            or self.sample_keys < 0
        ):
            raise UsageError(f"sample_keys must be 0 or more, got {self.sample_keys!r}")


def _demand_plan(plan: object) -> None:
    if not isinstance(plan, Mapping):
        raise _no_plan(f"got {type(plan).__name__}")
    for name, kind in _PLAN.items():
        if name not in plan:
            raise _no_plan(f"and it has no {name}")
        if not isinstance(plan[name], kind) or isinstance(plan[name], bool):
            raise _no_plan(f"its {name} is of type {type(plan[name]).__name__}")
    if not 0 <= plan["seed"] <= _MAX_SEED:
        raise _no_plan("its seed is out of range")


def _no_plan(why: str) -> UsageError:
    return UsageError(f"plan must be the result of a dry run (plan_only=True), {why}")
