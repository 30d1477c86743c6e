"""A load in parts: what is asked for, of which tables, and how their rows travel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any, Self

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.ledger import Ledger
from airflow_dblink.core.parts.slices import MAX_PARTS, PART_BYTES
from airflow_dblink.core.server.bind import Params
from airflow_dblink.core.server.side import Side, in_transaction
from airflow_dblink.core.sets.problems import for_each
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.catalog import describe, get_relation
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.transfer.plan import Columns, Plan, Spec, plan

Settings = Mapping[str, str]

DEADLINE = timedelta(hours=24)
IDLE = timedelta(minutes=30)

_SQL = statements("parts_ledger.sql")
_MOST_PARTS = 1000  # Airflow maps over 1024 values at most, by default


@dataclass(frozen=True)
class LoadSpec:
    """What is to be loaded, and how it is cut.

    :ivar part_column: the source is cut into ranges of this column's values, and not of its pages.
    :ivar part_bytes: how large a part is, TOAST included.
    :ivar min_parts: so many parts at least, so that workers end together; small tables have fewer, and
        *max_parts* is the limit.
    :ivar max_parts: so many parts at most.
    :ivar lock: lock the source table in ACCESS SHARE mode while the snapshot is kept: whoever would rewrite
        it waits. Without it such a rewrite is found, and the load fails.
    :ivar deadline_s: the most that the snapshot is kept, in seconds.
    :ivar idle_s: how long it is kept while no part uses it, in seconds.
    """

    destination_table: str
    source_table: str | None = None
    columns: Columns | None = None
    source_sql: str | None = None
    source_parameters: Params | None = None
    part_column: str | None = None
    part_bytes: int = PART_BYTES
    min_parts: int = 1
    max_parts: int = MAX_PARTS
    lock: bool = True
    deadline_s: float = DEADLINE.total_seconds()
    idle_s: float = IDLE.total_seconds()

    def check(self) -> None:
        """Refuse numbers that make no sense.

        :raises UsageError: names the argument.
        """
        for name in ("part_bytes", "min_parts", "max_parts"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.max_parts > _MOST_PARTS:
            raise UsageError(f"max_parts must be at most {_MOST_PARTS}, got {self.max_parts}")
        if self.part_column is not None and not (isinstance(self.part_column, str) and self.part_column):
            raise UsageError(f"part_column must be a column's name, got {self.part_column!r}")
        if self.source_sql is not None and self.part_column is None:
            raise UsageError(
                "source_sql has no pages to be cut into parts",
                hint="name a column whose values cut it: part_column",
            )
        for name in ("deadline_s", "idle_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name.removesuffix('_s')} must be longer than nothing")

    def into(self, ledger: Ledger, destination: Side) -> Spec:
        """Return the transfer into the load's shadow."""
        return self.of(ledger.shadow.as_string(destination.connection))

    def of(self, destination_table: str) -> Spec:
        """Return the transfer into a table."""
        return Spec(
            destination_table=destination_table,
            source_table=self.source_table,
            source_sql=self.source_sql,
            source_parameters=self.source_parameters,
            columns=self.columns,
        )

    @property
    def name(self) -> str:
        """The source, for errors."""
        return self.source_table or "source_sql"


@dataclass(frozen=True)
class TableLoad:
    """One table of a load.

    :ivar key: of this table's shadow and ledger.
    """

    key: LoadKey
    spec: LoadSpec

    @property
    def name(self) -> str:
        """The table, for errors."""
        return self.spec.name

    def find(self, destination: Side) -> tuple[Relation, Ledger]:
        """Return the destination table, and the ledger beside it, which need not be there.

        :raises UsageError: if there is no such table.
        """
        target = get_relation(destination, self.spec.destination_table)
        return target, Ledger(self.key, target.schema_name)


@dataclass(frozen=True)
class Load:
    """A load: of one table, or of a set that is swapped together."""

    tables: tuple[TableLoad, ...]

    @classmethod
    def of(
        cls, destination: Side, specs: Sequence[LoadSpec], settings: Settings, names: Mapping[str, Any]
    ) -> Self:
        """Return the load that *names*, JSON-able, tell from others into the same tables.

        The snapshot is on the source, which may have many readers: staging and production may load from it,
        in runs that have the same names.

        :param specs: of the tables; of a set perhaps not of all of them.
        :param settings: run-time parameters of the destination, local to the transaction.
        :raises UsageError: if there is no such table in the destination; names all of them.
        """
        with in_transaction(destination, settings, "looking for the destination table"):
            targets = for_each(
                specs,
                lambda spec: get_relation(destination, spec.destination_table),
                lambda spec: spec.name,
            )
            (place,) = destination.ask(_SQL["place"])
        keys = [
            LoadKey.of({**names, **place, "table": [target.schema_name, target.name]}) for target in targets
        ]
        return cls(tuple(TableLoad(key, spec) for key, spec in zip(keys, specs, strict=True)))


def set_key(destination: Side, names: Mapping[str, Any]) -> LoadKey:
    """Return the key of the snapshot that all tables of the set share which *names* tell from others."""
    (place,) = destination.ask(_SQL["place"])
    return LoadKey.of({**names, **place})


def work_of(source: Side, destination: Side, ledger: Ledger, spec: LoadSpec) -> Plan:
    """Return how rows travel from the source into the shadow, as the catalogs say now."""
    return plan(source, destination, spec.into(ledger, destination))


def route_of(source: Side, work: Plan) -> str:
    """Return a hash of what all parts must agree in: source (with its values), columns, casts and format.

    The numbers of the columns are the parser's, which has locked the table: the catalogs, read by an old
    snapshot, don't know of a column that was renamed since.

    :param source: in a transaction.
    :raises RemoteError: what the server says: 42703 if a column is gone.
    """
    names = sql.SQL(", ").join(sql.Identifier(pair.source) for pair in work.pairs)
    columns = describe(source, sql.SQL("SELECT {} FROM {} AS source").format(names, work.read))
    facts = [
        (column.table, column.number, pair.destination, pair.cast)
        for column, pair in zip(columns, work.pairs, strict=True)
    ]
    query = work.read.as_string(source.connection) if work.spec.source_sql else None
    return sha256(json.dumps([work.format, facts, query]).encode()).hexdigest()
