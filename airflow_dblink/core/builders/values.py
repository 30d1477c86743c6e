"""Keys and their values as texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import psycopg
from psycopg import abc, sql
from psycopg.adapt import PyFormat, Transformer

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link.messages import Wire
from airflow_dblink.core.server.bind import Statement

#: A key's value: an unchanged text, ``None`` for NULL, anything else through psycopg's text dumper.
Value = Any
#: Its text, ``None`` for NULL.
Text = str | None
#: Keys, each a list of values in the order of the attnums; or the query that returns them.
KeySource: TypeAlias = Sequence[Sequence[Value]] | Statement


def to_texts(link: Wire, argument: str, values: Sequence[Value]) -> list[Text]:
    """Return the texts of *values*.

    :param argument: their name in errors.
    :raises UsageError: if *values* isn't a list, or a value has no text, or contains a NUL character.
    """
    demand_sequence(link, argument, values)
    kinds = set(map(type, values))
    if kinds == {int}:
        return [str(value) for value in values]
    if kinds and kinds != {str}:
        dumpers = Transformer(link.connection)
        values = [
            value if value is None or isinstance(value, str) else _dump(link, argument, value, dumpers)
            for value in values
        ]
    if "\0" in "".join(filter(None, values)):
        raise UsageError(f"{argument} holds a NUL character, which PostgreSQL can't take", link.label)
    return list(values)


def demand_sequence(link: Wire, argument: str, values: object) -> None:
    """Raise unless *values* is a list or another sequence.

    :raises UsageError: if it is a text, bytes, or no sequence.
    """
    if type(values) in (list, tuple):
        return
    if isinstance(values, str | bytes | bytearray | memoryview) or not isinstance(values, Sequence):
        raise UsageError(f"{argument} must be a list, got {type(values).__name__}", link.label)


def _dump(link: Wire, argument: str, value: Value, dumpers: abc.Transformer) -> Text:
    try:
        dumped = dumpers.get_dumper(value, PyFormat.TEXT).dump(value)
    except (psycopg.Error, ValueError, TypeError):  # the message may hold the value
        problem = f"{argument}: a value of type {type(value).__name__} can't be sent to PostgreSQL"
        raise UsageError(problem, link.label) from None
    return None if dumped is None else bytes(dumped).decode(link.connection.info.encoding)


@dataclass(frozen=True)
class Keys:
    """A list of keys, as columns of texts.

    :ivar odd: number, from 1, of the first key with a wrong length, and that length; there are
        no columns then.
    """

    columns: list[list[Text]]
    count: int
    odd: tuple[int, int] | None = None

    @classmethod
    def of(cls, link: Wire, argument: str, keys: Sequence[Sequence[Value]], length: int) -> Self:
        """Return *keys*, each of which should have *length* values.

        :raises UsageError: if they aren't lists, or a value has no text.
        """
        demand_sequence(link, argument, keys)
        if not set(map(type, keys)) <= {list, tuple}:
            for key in keys:
                demand_sequence(link, f"each key in {argument}", key)
        for number, key in enumerate(keys, 1):
            if len(key) != length:
                return cls([], len(keys), (number, len(key)))
        return cls([to_texts(link, argument, column) for column in zip(*keys, strict=True)], len(keys))

    @property
    def rows(self) -> Iterator[tuple[Text, ...]]:
        """The keys."""
        return zip(*self.columns, strict=True)

    @property
    def has_nulls(self) -> bool:
        """Whether any value is NULL."""
        return any(None in column for column in self.columns)

    def demand_length(self, link: Wire, side: str, length: int) -> None:
        """Raise unless all keys have the *wanted* length.

        :raises UsageError: 2202E.
        """
        if self.odd is not None:
            number, found = self.odd
            demand_length(link, side, length, found, f"Key {number} has length {found}.")


def read_keys(link: Wire, argument: str, source: KeySource, length: int) -> Keys | sql.SQL:
    """Return the keys, or the query for them without its semicolon and later comments.

    :raises UsageError: as :meth:`Keys.of`; if *source* isn't exactly one statement.
    """
    if isinstance(source, str | sql.Composable):
        return link.one(source, None)
    return Keys.of(link, argument, source, length)


def demand_length(link: Wire, side: str, wanted: int, found: int, detail: str | None = None) -> None:
    """Raise unless a key's length, *found*, is the *wanted* one.

    :raises UsageError: 2202E ``source key array length must match number of key attributes``.
    """
    if found != wanted:
        raise UsageError(
            f"{side} key array length must match number of key attributes", link.label, "2202E", detail
        )
