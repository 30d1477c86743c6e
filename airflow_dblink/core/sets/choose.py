"""The tables of a server that a set means."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sets.patterns import Pattern
from airflow_dblink.core.sql.named import statements

log = logging.getLogger(__name__)

_SQL = statements("sets.sql")


@dataclass(frozen=True)
class Pair:
    """A table of the source, and its counterpart in the destination.

    :ivar source: its qualified name, as in SQL.
    :ivar destination: the counterpart's.
    :ivar schema: the counterpart's schema.
    :ivar name: the name of both.
    :ivar renames_schema: whether the source's schema has another name.
    """

    source: str
    destination: str
    schema: str
    name: str
    renames_schema: bool = False

    def __str__(self) -> str:
        return self.source if self.source == self.destination else f"{self.source} ({self.destination})"

    @property
    def destination_identifier(self) -> sql.Identifier:
        """The destination's name for :mod:`psycopg.sql`."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True)
class Choice:
    """What is said of a set's tables.

    :ivar tables: patterns of those that belong to it.
    :ivar exclude: patterns of those that don't.
    :ivar schemas: names of destination schemas, by the source schemas that have another name there.
    """

    tables: tuple[Pattern, ...]
    exclude: tuple[Pattern, ...] = ()
    schemas: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: object, exclude: object = (), schemas: object = None) -> Self:
        """Return the choice that a task's arguments make.

        :raises UsageError: names the argument that makes no sense.
        """
        chosen = cls(_patterns("tables", tables), _patterns("exclude", exclude or ()), _schemas(schemas))
        if not chosen.tables:
            raise UsageError("tables must hold at least one pattern", hint="for example ['sales.*']")
        return chosen

    def pairs(self, source: Side) -> list[Pair]:
        """Return the tables, by name.

        Partitions belong to their tables, and tables of extensions to these: neither is found. Nor are
        tables that a load in parts is filling.

        :raises UsageError: if a pattern finds nothing, a table would come twice, or two would become one.
        """
        found = source.ask(_SQL["tables"])
        chosen: dict[int, dict[str, Any]] = {}
        empty = []
        for pattern in self.tables:
            matching = [row for row in found if _means(pattern, row)]
            if not matching:
                empty.append(pattern.text)
            chosen |= {row["oid"]: row for row in matching if not self._is_excluded(row)}
        for pattern in self.exclude:
            if not any(_means(pattern, row) for row in found):
                log.warning("%s: exclude %r finds no table", source.conn_id, pattern.text)
        if empty or not chosen:
            by = ", ".join(map(repr, empty)) or "tables without those of exclude"
            raise UsageError(
                f"no table is found by {by}",
                source.conn_id,
                "42P01",
                hint="a set holds ordinary and partitioned tables: no views, no foreign tables, partitions"
                " with their table alone; the role must be allowed to use their schemas",
            )
        self._demand_own_rows(source, chosen)
        return self._paired(source, sorted(chosen.values(), key=lambda row: (row["schema"], row["name"])))

    def _is_excluded(self, row: Mapping[str, Any]) -> bool:
        return any(_means(pattern, row) for pattern in self.exclude)

    @staticmethod
    def _demand_own_rows(source: Side, chosen: Mapping[int, Mapping[str, Any]]) -> None:
        twice = [
            f"{row['schema']}.{row['name']} inherits from {chosen[parent]['schema']}.{chosen[parent]['name']}"
            for row in chosen.values()
            for parent in row["ancestors"]
            if parent in chosen
        ]
        if twice:
            raise UsageError(
                f"rows would come twice: {'; '.join(sorted(twice))}",
                source.conn_id,
                hint="a table is read with its children: exclude these",
            )

    def _paired(self, source: Side, rows: Sequence[Mapping[str, Any]]) -> list[Pair]:
        unused = sorted({*self.schemas} - {row["schema"] for row in rows})
        if unused:
            raise UsageError(
                f"schemas: the set has no table of schema {', '.join(map(repr, unused))}",
                source.conn_id,
                hint="names are taken as they are, without double quotes",
            )
        pairs = [self._pair(row["schema"], row["name"]) for row in rows]
        for destination, count in Counter(pair.destination for pair in pairs).items():
            if count > 1:
                both = " and ".join(pair.source for pair in pairs if pair.destination == destination)
                raise UsageError(f"schemas: {both} would both become {destination}", source.conn_id)
        return pairs

    def _pair(self, source_schema: str, name: str) -> Pair:
        schema = self.schemas.get(source_schema, source_schema)
        return Pair(
            _quoted(source_schema, name), _quoted(schema, name), schema, name, schema != source_schema
        )


def _quoted(schema: str, name: str) -> str:
    return sql.Identifier(schema, name).as_string(None)


def _means(pattern: Pattern, row: Mapping[str, Any]) -> bool:
    return pattern.matches(row["schema"], row["name"], is_visible=row["is_visible"])


def _patterns(argument: str, value: object) -> tuple[Pattern, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UsageError(f"{argument} must be a list of patterns, got {type(value).__name__}")
    return tuple(Pattern.of(argument, each) for each in value)


def _schemas(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(
        isinstance(each, str) and each and "\0" not in each for pair in value.items() for each in pair
    ):
        raise UsageError("schemas must map names of source schemas to names of destination schemas")
    return dict(value)
