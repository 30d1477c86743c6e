"""Rows for insert_rows: the column's type decides whether a Python list becomes an array or JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import psycopg

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.parameters import Structure, structures_of_parameters
from airflow_dblink.core.sqltext.names import demand_no_text

if TYPE_CHECKING:
    from airflow.providers.postgres.hooks.postgres import PostgresHook

# Only values of these types are sent by the column's type.
_DEPENDS = (list, dict, int, float)

_NAME = r'(?:[^\W\d][\w$]*|"(?:[^"\0]|"")+")'
_TABLE = re.compile(rf"{_NAME}(?:\.{_NAME}){{0,2}}")
_QUOTED = re.compile(r'"(?:[^"\0]|"")+"')
# Arguments of insert_rows that take no single name; replace_index does.
_LISTS = ("target_fields", "replace_target")


def check_names(table: Any, **columns: Any) -> None:
    """Raise unless *table* and *columns* are names: Airflow puts them into its statement unchanged.

    :param columns: a name, a list of names, or None, by argument. Airflow quotes a name with a special
        character, but doesn't double a double quote in it.
    :raises UsageError: names the argument.
    """
    if not isinstance(table, str) or not _TABLE.fullmatch(table):
        raise UsageError(
            f"table must be a table's name, got {table!r}",
            hint='schema.table; a name with other characters in double quotes: shop."My Table"',
        )
    for argument, given in columns.items():
        if argument in _LISTS:  # or another iterable, which is enough for Airflow
            demand_no_text(argument, given)
        for name in [given] if isinstance(given, str) else given or ():
            if not isinstance(name, str) or "\0" in name or ('"' in name and not _QUOTED.fullmatch(name)):
                raise UsageError(
                    f"{argument} must hold names of columns, got {name!r}",
                    hint='a name with a double quote is written whole: "a ""quoted"" name"',
                )


class Insert:
    """One call of insert_rows: its columns are looked up once, when a value first depends on them.

    :param arguments: arguments of ``DbApiHook._generate_insert_sql`` without the values: table,
        target_fields, ...
    """

    def __init__(self, hook: PostgresHook, table: str, arguments: dict[str, Any]) -> None:
        self._hook = hook
        self._table = table
        self._arguments = arguments
        self._structures: Sequence[Structure] | None = None

    def rows(self, rows: Iterable[Iterable[Any]]) -> Iterator[Row]:
        """Yield *rows*, each with this insert, which adapts its values."""
        return (Row(row, self) for row in rows)

    def adapted(self, cells: tuple[Any, ...], connection: Any) -> tuple[Any, ...]:
        """Return *cells* in the form that psycopg needs for their columns."""
        if self._structures is None and any(isinstance(cell, _DEPENDS) for cell in cells):
            self._structures = self._look_up(cells, connection)
        known = self._structures or ()
        return _Cells(
            self._cell(cell, known[position] if position < len(known) else None, connection)
            for position, cell in enumerate(cells)
        )

    def _cell(self, cell: Any, structure: Structure | None, connection: Any) -> Any:
        if structure is None:
            return self._hook._serialize_cell(cell, connection)
        if structure.is_array and isinstance(cell, list):
            return structure.adapted(cell)
        adapted = structure.adapted(cell)
        return adapted if adapted is not cell else self._hook._serialize_cell(cell, connection)

    def _look_up(self, cells: tuple[Any, ...], connection: Any) -> Sequence[Structure]:
        if not isinstance(connection, LinkConnection):  # a subclass's own
            return ()
        statement = self._hook._generate_insert_sql(self._table, cells, **self._arguments)
        places = ",".join([self._hook.placeholder] * len(cells))
        numbered = ",".join(f"${number}" for number in range(1, len(cells) + 1))
        if statement.count(places) != 1:  # a format of the user's
            return ()
        statement = statement.replace(places, numbered).replace("%%", "%")
        try:
            return structures_of_parameters(connection, statement.encode())
        except psycopg.Error:
            if connection.closed:
                raise
            return ()  # the INSERT itself will raise the error


class Row(tuple[Any, ...]):
    """A row, and the insert that it belongs to."""

    insert: Insert

    def __new__(cls, cells: Iterable[Any], insert: Insert) -> Self:
        """Make a row of *cells*."""
        row = super().__new__(cls, cells)
        row.insert = insert
        return row


class _Cells(tuple[Any, ...]):
    """The values of a row, as they are sent. Their repr hides them: Airflow logs it when an INSERT fails."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} values>"
