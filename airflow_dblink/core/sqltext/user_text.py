"""SQL as a user wrote it, and the place of an error in it, however the text was bound, embedded and sent.

A server counts a position in the statement that it was sent. That holds the user's text, but with parameters'
values, and between ``COPY (`` and ``) TO STDOUT``, behind ``DECLARE ... CURSOR FOR``, and so on.
:class:`UserText` is the user's part of such a statement, and :func:`place_of` finds the error's place in it.
Errors show the user's text with its placeholders, and never the values.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import BaseConnection, sql

from airflow_dblink.core.errors import AT_OR_NEAR, Place
from airflow_dblink.core.masking import MAX_TEXT_CHARS, without_credentials
from airflow_dblink.core.sqltext.lexer import tokens

# As psycopg finds them: %s, %(name)s, and %% for a percent sign.
_PLACEHOLDER = re.compile(r"%(?:\(([^)]+)\).|.)", re.DOTALL)
_PERCENT = re.compile(r"%%|%\([^)]+\)[sbt]|%[sbt]|%")
_SYNTAX_ERROR = "42601"
_STRINGS = ("string", "estring")
_MOST_DIGITS = 10
_NEAR_CHARS = MAX_TEXT_CHARS // 2
_SHOWN_CHARS = 100
_BEFORE_CARET_CHARS = 70


@dataclass(frozen=True)
class _Source:
    """The text that the user wrote.

    :ivar name: the argument's name; ``None`` if no other argument holds SQL.
    :ivar sent: the part of *written* that is sent, with values in place of its placeholders.
    :ivar begins: index in *written* at which this part begins.
    :ivar ends: index in *written* at which this part ends.
    """

    name: str | None
    written: str
    sent: str = field(repr=False)
    begins: int
    ends: int
    params: Sequence[Any] | Mapping[str, Any] | None = field(default=None, repr=False)
    connection: BaseConnection[Any] | None = field(default=None, repr=False)

    def index_of(self, index: int) -> int | None:
        """Return the index in *written* for the *index* in *sent*; a value stands at its placeholder."""
        if self.params is None:
            return self.begins + index
        there = 0
        for start, end, value in self._pieces():
            text = self.written[start:end] if value is None else value
            if index < there + len(text):
                return start + (index - there if value is None else 0)
            there += len(text)
        return self.ends if index == there else None

    def _pieces(self) -> Iterator[tuple[int, int, str | None]]:
        """Yield the spans of *written*, each with the value in its place; nothing if they don't fit."""
        pieces: list[tuple[int, int, str | None]] = []
        end, count = self.begins, 0
        for found in _PLACEHOLDER.finditer(self.written, self.begins, self.ends):
            pieces.append((end, found.start(), None))
            end = found.end()
            if found[0] == "%%":
                value = "%"
            else:
                given: Any = self.params
                parameter = given[found[1]] if found[1] is not None else given[count]
                value = sql.Literal(parameter).as_string(self.connection)
                count += 1
            pieces.append((found.start(), end, value))
        pieces.append((end, self.ends, None))
        sent = "".join(self.written[a:b] if value is None else value for a, b, value in pieces)
        return iter(pieces if sent == self.sent else ())


class UserText(sql.SQL):
    """The user's SQL in the form in which it is sent, also inside of other statements; it knows its origin.

    :param text: the text to send.
    :param name: the argument's name, for errors; ``None`` if no other argument holds SQL.
    """

    def __init__(self, text: str, name: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self._source = _Source(name, text, text, 0, len(text))
        self._offset = 0

    def part(self, start: int, end: int) -> UserText:
        """Return the characters from *start* to *end*."""
        part = UserText(self.text[start:end])
        part._source, part._offset = self._source, self._offset + start
        return part

    def bound(
        self, text: str, params: Sequence[Any] | Mapping[str, Any], connection: BaseConnection[Any]
    ) -> UserText:
        """Return *text*, the form of this text with *params* in the place of its placeholders."""
        source, begins = self._source, self._offset
        ends = begins + len(self.text)
        bound = UserText(text)
        bound._source = _Source(source.name, source.written, text, begins, ends, params, connection)
        return bound

    def literal_percent(self) -> str | None:
        """Return the line of the first literal percent sign that isn't doubled; ``None`` if there is none."""
        for found in _PERCENT.finditer(self.text):
            if found[0] == "%":
                return self.lines(found.start(), shows_values=True)
        return None

    def lines(self, index: int, *, shows_values: bool, backslashes: bool = False) -> str | None:
        """Return the line of the sent text's character *index*, with a caret; ``None`` if it isn't known.

        :param shows_values: whether the text's own string literals may be shown.
        :param backslashes: whether they are escapes in all literals: ``standard_conforming_strings`` is off.
        """
        where = self._source.index_of(self._offset + index)
        if where is None:
            return None
        written = self._source.written
        start = written.rfind("\n", 0, where) + 1
        end = written.find("\n", where)
        end = len(written) if end < 0 else end
        hidden = list(_hidden(written, where, shows_values=shows_values, backslashes=backslashes))
        line, caret = _shown(written, start, end, where, hidden)
        number = written.count("\n", 0, where) + 1
        name = f" of {self._source.name}" if self._source.name else ""
        head = f"LINE {number}{name}, column {where - start + 1}: "
        return f"{head}{line}\n{' ' * (len(head) + _width(line[:caret]))}^"


def place_of(
    error: psycopg.Error, statement: sql.Composable, connection: BaseConnection[Any]
) -> Place | None:
    """Return the place in the user's text where the server found *error*; ``None`` if it isn't known.

    :param statement: the statement that was sent; it contains a :class:`UserText`.
    """
    position = position_of(error)
    if position is None or connection.closed:
        return None
    sent = statement.as_string(connection)
    index = _index(position, sent, connection)
    if index is None:
        return None
    texts = list(_texts(statement, connection, 0))
    is_syntax = error.diag.sqlstate == _SYNTAX_ERROR
    for start, text in texts:
        end = start + len(text.text)
        # An error in our text behind the user's is shown at the end of the user's, which is unfinished then.
        is_unfinished = not sent[end:index].strip() or (is_syntax and len(texts) == 1)
        if start <= index and (index < end or is_unfinished):
            backslashes = connection.info.parameter_status("standard_conforming_strings") == "off"
            where = min(index, end) - start
            # A generated text, such as the builders', holds rows; but it has no syntax errors.
            lines = text.lines(where, shows_values=is_syntax, backslashes=backslashes)
            quoted = AT_OR_NEAR.search(error.diag.message_primary or "")
            if quoted is None or len(quoted[1]) <= end - index:
                return Place(lines)
            return Place(lines, " at end of input" if index >= end else "")
    return None


def position_of(error: psycopg.Error) -> int | None:
    """Return the server's position in the sent statement, from 1; ``None`` if it is missing, or no number."""
    text = error.diag.statement_position or ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else None


def _index(position: int, sent: str, connection: BaseConnection[Any]) -> int | None:
    """Return the index in *sent* of the character at the server's *position*."""
    index = position - 1
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":  # it counts bytes
        index = len(sent.encode(connection.info.encoding)[:index].decode(connection.info.encoding, "ignore"))
    return index if 0 <= index <= len(sent) else None


def _texts(
    statement: sql.Composable, connection: BaseConnection[Any], start: int
) -> Iterator[tuple[int, UserText]]:
    """Yield the users' texts in *statement*, each with the index of its beginning."""
    if isinstance(statement, UserText):
        yield start, statement
    elif isinstance(statement, sql.Composed):
        for part in statement:
            yield from _texts(part, connection, start)
            start += len(part.as_string(connection))


def _shown(text: str, start: int, end: int, where: int, hidden: Sequence[tuple[int, int]]) -> tuple[str, int]:
    """Return the line from *start* to *end* as it may be shown, and the index in it of character *where*."""
    caret = next((max(a, start) for a, b in hidden if a <= where < b), where)
    # Masking would cut a longer line. This keeps the keyword before a credential near the caret.
    start, end = max(start, caret - _NEAR_CHARS), min(end, caret + _NEAR_CHARS)
    before, whole = (
        without_credentials(_masked(text, start, caret, hidden) + rest)
        for rest in ("", _masked(text, caret, end, hidden))
    )
    return _window(whole, len(before) if whole.startswith(before) else 0)


def _hidden(text: str, where: int, *, shows_values: bool, backslashes: bool) -> Iterator[tuple[int, int]]:
    """Yield the insides of string literals that must be hidden; only passwords if values may be shown.

    If the error is inside of a body in dollar quotes, that body is code, such as a ``DO`` block's.
    """
    before = ""
    for kind, start, end in tokens(text, backslashes=backslashes):
        token = text[start:end]
        if kind in _STRINGS or kind == "dollar":
            first, last = (start + offset for offset in _inside(token))
            is_shown = shows_values or (kind == "dollar" and first <= where < last)
            if first < last and (before.upper() == "PASSWORD" or not is_shown):
                yield first, last
        before = token


def _inside(token: str) -> tuple[int, int]:
    """Return the begin and end of the inside of a string literal, which may be unfinished."""
    quote = token[: token.index("$", 1) + 1] if token.startswith("$") else "'"
    first = token.index(quote) + len(quote)
    is_finished = len(token) >= first + len(quote) and token.endswith(quote)
    return first, len(token) - len(quote) if is_finished else len(token)


def _masked(text: str, start: int, end: int, hidden: Sequence[tuple[int, int]]) -> str:
    shown = []
    for a, b in hidden:
        if max(a, start) < min(b, end):
            shown += [text[start : max(a, start)], "..."]
            start = min(b, end)
    return "".join([*shown, text[start:end]]).replace("\t", " ")


def _window(line: str, caret: int) -> tuple[str, int]:
    """Return the part of a long *line* around the caret, and the caret's index in it."""
    line = line.rstrip()
    if len(line) <= _SHOWN_CHARS:
        return line, caret
    start = max(0, min(caret - _BEFORE_CARET_CHARS, len(line) - _SHOWN_CHARS))
    end = start + _SHOWN_CHARS
    head, tail = "..." if start else "", "..." if end < len(line) else ""
    return f"{head}{line[start:end]}{tail}", caret - start + len(head)


def _width(text: str) -> int:
    """Return the number of columns that *text* takes in a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
