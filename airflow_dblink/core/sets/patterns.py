"""Patterns that name tables, as those of ``pg_dump --table`` do, without regular expressions.

``sales.orders`` is one table, ``sales.*`` are all of a schema, ``orders_?`` those that the search path finds.
Letters fold to lower case, and ``*`` and ``?`` stand for others, unless in double quotes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from airflow_dblink.core.errors import UsageError

_TOKEN = re.compile(r'"((?:[^"]|"")*)"|([^"])', re.DOTALL)
_WILD = {"*": ".*", "?": "."}


@dataclass(frozen=True)
class Pattern:
    """A pattern of table names.

    :ivar text: as its author wrote it.
    :ivar schema: matches the schema's name; ``None``: tables that the search path finds.
    :ivar table: matches the table's name.
    """

    text: str
    schema: re.Pattern[str] | None
    table: re.Pattern[str]

    @classmethod
    def of(cls, argument: str, text: object) -> Self:
        """Return the pattern that *text* is.

        :param argument: holds it, for errors.
        :raises UsageError: if it is none.
        """
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            raise UsageError(f"{argument}: {text!r} is no pattern of table names", hint=_hint())
        parts = [""]
        end = 0
        for match in _TOKEN.finditer(text.strip()):
            if match.start() != end:
                break
            end = match.end()
            quoted, plain = match.groups()
            if quoted is not None:
                parts[-1] += re.escape(quoted.replace('""', '"'))
            elif plain == ".":
                parts.append("")
            elif plain in _WILD:
                parts[-1] += _WILD[plain]
            elif plain.isalnum() or plain in "_$":  # PostgreSQL folds ASCII alone, in UTF-8
                parts[-1] += re.escape(plain.lower() if plain.isascii() else plain)
            else:
                raise UsageError(
                    f"{argument}: {text!r} holds {plain!r}, which stands for nothing else here", hint=_hint()
                )
        if end != len(text.strip()) or not all(parts) or len(parts) > 2:
            raise UsageError(f"{argument}: {text!r} is no pattern of table names", hint=_hint())
        *schema, table = (re.compile(part, re.DOTALL) for part in parts)
        return cls(text, schema[0] if schema else None, table)

    def matches(self, schema: str, table: str, *, is_visible: bool) -> bool:
        """Return whether the pattern means that table."""
        has_schema = is_visible if self.schema is None else self.schema.fullmatch(schema)
        return bool(has_schema and self.table.fullmatch(table))


def _hint() -> str:
    return (
        """write 'schema.table', 'schema.*' or 'table'; names with other letters: '"My Schema"."My Table"'"""
    )
