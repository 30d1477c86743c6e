"""Values of keys as texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import abc
from psycopg.adapt import PyFormat, Transformer

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link.messages import Wire

#: A key's value: text as it is, ``None`` for NULL, anything else through psycopg's text dumper.
Value = Any
#: Its text, ``None`` for NULL.
Text = str | None


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
