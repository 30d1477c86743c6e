"""Names that an argument gives: of columns, and of a channel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_dblink.core.errors import UsageError

_NAME_BYTES = 63  # NAMEDATALEN - 1
_PAYLOAD_BYTES = 7_999
_PART = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\W\d][\w$]*))\s*')


def demand_characters(name: str, value: str) -> None:
    """Raise if *value* holds a character that no server takes: NUL, or half of a surrogate pair.

    :param name: the argument's name, for errors.
    :raises UsageError: names the argument.
    """
    if "\0" in value:
        raise UsageError(f"{name} holds a NUL character, which PostgreSQL can't take")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} holds half of a surrogate pair, which is no character") from None


def demand_channel(name: str, value: str) -> None:
    """Raise unless *value* can be the name of a channel: LISTEN would cut a longer one, NOTIFY refuses it.

    :param name: the argument's name, for errors.
    :raises UsageError: names the argument.
    """
    demand_identifier(name, value)


def demand_identifier(name: str, value: str) -> None:
    """Raise unless *value* can be a name as it is: PostgreSQL would cut a longer one.

    :param name: the argument's name, for errors.
    :raises UsageError: names the argument.
    """
    demand_characters(name, value)
    if not 0 < (size := len(value.encode())) <= _NAME_BYTES:
        raise UsageError(f"{name} must be a name of 1 to {_NAME_BYTES} bytes, got {size} bytes")


def demand_notification(channel: str, payload: str) -> None:
    """Raise unless a notification can be sent; the server's limits are those of ``NOTIFY``.

    :raises UsageError: names the argument.
    """
    demand_channel("channel", channel)
    demand_characters("payload", payload)
    if (size := len(payload.encode())) > _PAYLOAD_BYTES:
        raise UsageError(
            f"payload has at most {_PAYLOAD_BYTES} bytes, got {size} bytes",
            hint="store the data in a table, and send its key",
        )


def demand_columns(name: str, value: Any, *, or_mapping: bool = False) -> None:
    """Raise unless *value* is a list of column names, or ``None``.

    :param name: the argument's name, for errors.
    :param or_mapping: allow a mapping from names to names, too.
    :raises UsageError: names the argument and the wrong type.
    """
    if value is None:
        return
    wanted = "a list or a mapping of columns" if or_mapping else "a list of columns"
    demand_no_text(name, value, wanted)
    names: list[Any]
    if or_mapping and isinstance(value, Mapping):
        names = [*value, *value.values()]
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        names = [*value]
    else:
        raise UsageError(f"{name} must be {wanted}, got {type(value).__name__}")
    if wrong := [type(each).__name__ for each in names if not isinstance(each, str)]:
        raise UsageError(f"{name} must hold names of columns, which are text, got {wrong[0]}")
    if with_nul := [each for each in names if "\0" in each]:
        raise UsageError(f"{name}: {with_nul[0]!r} holds a NUL character, which PostgreSQL can't take")


def demand_no_text(name: str, value: object, wanted: str = "a list of columns") -> None:
    """Raise if a text stands for the list of its one name: it would be read as a list of letters.

    :param name: the argument's name, for errors.
    :param wanted: what the argument takes.
    :raises UsageError: shows the list.
    """
    if isinstance(value, str):
        raise UsageError(f"{name} must be {wanted}, got the text {value!r}", hint=f"{name}=[{value!r}]")


def split_identifier(name: str, value: str) -> tuple[str, ...]:
    """Return the parts of a relation's name that is written as in SQL: schema and name, or the name alone.

    Parts fold to lower case unless they stand in double quotes.

    :param name: the argument's name, for errors.
    :raises UsageError: if it is no such name.
    """
    demand_characters(name, value)
    parts, at = [], 0
    while found := _PART.match(value, at):
        quoted, bare = found.groups()
        # The server folds ASCII letters alone, at least in databases whose encoding is UTF-8.
        folded = "".join(c.lower() if c.isascii() else c for c in bare or "")
        parts.append(quoted.replace('""', '"') if quoted else folded)
        at = found.end()
        if at == len(value) and len(parts) <= 2:
            return tuple(parts)
        if value[at : at + 1] != ".":
            break
        at += 1
    raise UsageError(
        f"{name} {value!r} is no name of a table",
        hint='write schema.table; other names in quotes: "My Table"',
    )
