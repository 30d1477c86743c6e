"""The same calls through PostgreSQL's own dblink and through ours, and their outcomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import pq

from airflow_dblink.core.builders import statements
from airflow_dblink.core.errors import DblinkError
from airflow_dblink.core.link.link import Link
from tests.differential.kinds import Value

Outcome = tuple[Any, ...]
Arguments = tuple[Value, ...]
Key = tuple[Arguments, Arguments]

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")  # as Python writes it


class Extension:
    """PostgreSQL's dblink, called in a session of its own."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def get_pkey(self, relname: str) -> Outcome:
        return self._outcome("SELECT * FROM public.dblink_get_pkey(%s)", relname)

    def build(self, function: str, relname: str, attnums: tuple[int, ...], key: Key) -> Outcome:
        arrays = key[1:] if function == "delete" else key
        # Element by element: with array_nulls = off, NULL in the text of an array is a string.
        parameters = "".join(f", ARRAY[{', '.join(['%s'] * len(array))}]::text[]" for array in arrays)
        query = f"SELECT public.dblink_build_sql_{function}(%s, %s::int2vector, %s{parameters})"
        vector = " ".join(map(str, attnums))
        return self._outcome(query, relname, vector, len(attnums), *(v for array in arrays for v in array))

    def keys(self, query: str) -> tuple[Key, ...]:
        """Return the rows of *query* as keys, in the text that the types' output functions make."""
        try:
            rows = raw_rows(self.connection, query)
        except psycopg.Error:
            return ()
        return tuple((tuple(row), tuple(row)) for row in rows)

    def _outcome(self, query: str, *arguments: Any) -> Outcome:
        try:
            return ("value", self.connection.execute(query.encode(), arguments).fetchall())
        except psycopg.Error as error:
            return (error.diag.sqlstate, error.diag.message_primary)


class Ours:
    """This package's functions on a link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.connection: psycopg.Connection[Any] = link.connection

    def get_pkey(self, relname: str) -> Outcome:
        return self._outcome(lambda: [tuple(field) for field in statements.get_pkey(self.link, relname)])

    def build(self, function: str, relname: str, attnums: tuple[int, ...], key: Key) -> Outcome:
        build: Callable[..., str] = getattr(statements, f"build_sql_{function}")
        arguments = key[1:] if function == "delete" else key
        return self._outcome(lambda: [(build(self.link, relname, list(attnums), *map(list, arguments)),)])

    def build_many(
        self, function: str, relname: str, attnums: tuple[int, ...], keys: tuple[Key, ...], query: str | None
    ) -> Outcome:
        build: Callable[..., list[str]] = getattr(statements, f"build_sql_{function}")
        src, tgt = ([list(key[i]) for key in keys] for i in (0, 1))
        arguments: tuple[Any, ...] = (src, tgt)
        if query is not None:
            arguments = (query,)
        elif function.startswith("delete"):
            arguments = (tgt,)
        elif src == tgt:
            arguments = (src,)
        return self._outcome(
            lambda: [(text,) for text in build(self.link, relname, list(attnums), *arguments)]
        )

    @staticmethod
    def _outcome(call: Callable[[], list[Any]]) -> Outcome:
        try:
            return ("value", call())
        except DblinkError as error:
            return (error.sqlstate, error.message)


@contextmanager
def transaction(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Run the block in a transaction that ends with ROLLBACK."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


@contextmanager
def unharmed(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Undo the block's effects in an open transaction, and check that it is still the same one."""
    is_open = connection.info.transaction_status == pq.TransactionStatus.INTRANS
    if is_open:
        connection.execute("SAVEPOINT before_call")
    yield
    if is_open:
        connection.execute("ROLLBACK TO before_call; RELEASE before_call")
    else:
        assert connection.info.transaction_status == pq.TransactionStatus.IDLE


def raw_rows(connection: psycopg.Connection[Any], query: str) -> list[list[Value]]:
    """Return rows in the text that the types' output functions make."""
    result = connection.execute(query.encode()).pgresult
    assert result is not None
    return [
        [
            None if (value := result.get_value(row, column)) is None else value.decode()
            for column in range(result.nfields)
        ]
        for row in range(result.ntuples)
    ]


def as_integers(keys: tuple[Key, ...]) -> Any:
    """Return *keys* with integers for texts that are integers."""

    def typed(value: Value) -> int | Value:
        return int(value) if value is not None and _INTEGER.fullmatch(value) else value

    return tuple((tuple(map(typed, src)), tuple(map(typed, tgt))) for src, tgt in keys)
