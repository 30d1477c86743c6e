"""Masks a server's texts before they are shown: no row values, no credentials, and a limited length.

The texts may be hostile. So each text is cut before it is searched, and the time of a search is
proportional to its length: a search that fails is made once, not again from every possible beginning.
"""

from __future__ import annotations

import re

#: Number of characters of one text that are searched and shown.
MAX_TEXT_CHARS = 16_384

_NOTE = re.compile(r"\.\.\. \(\d{1,12} more characters left out\)\Z")
_NOTE_CHARS = 60  # more than any note has

# PostgreSQL doesn't double the quotes inside of a value. A setting's name is no value:
# 'invalid value for parameter "work_mem": "much"'. Servers speak other languages, too, with
# quotes of their own.
_OPENING = re.compile(r'(?<!parameter )["»«„“](?!: )')
_CLOSING = '"»«“”'
# The token of a syntax error, if it is a literal: it may be a parameter's bound value.
_LITERAL = re.compile(r"""["»«„“]\s?(?:(?:[bBeEnNxX]|[uU]&)?'|\$(?:[^\W\d]\w*+)?\$|\.?\d)""")
# Languages inside of values: their syntax errors quote a value.
_LANGUAGES = ("jsonpath", "tsquery", "hstore")
# The columns' names in "Key (id)=(5)".
_NAMES = re.compile(r"\([^()]*+\) ?= ?(?=\()")
_CONTEXT_VALUE = re.compile(r"COPY |JSON data, line \d")
_CONTEXT_STATEMENT = re.compile(r'SQL (?:statement|expression) "')
_END_OF_STATEMENT = re.compile(r'"(?=\n|\Z)')
# A quote that is never closed hides all the rest.
_CREDENTIAL = re.compile(
    r"""(?i)\b(password|passfile|sslpassword|oauth_client_secret)
        (?: \s*+=\s*+(?: '(?:[^'\\]++|\\.)*+(?:'|\Z) | \S++ )
          | \s++'(?:[^']++|'')*+(?:'|\Z) )""",
    re.VERBOSE | re.DOTALL,
)
_WORD = re.compile(r"\S++")


def cut(text: str) -> tuple[str, str]:
    """Return the first 16 kB of *text*, and a note about the rest; the note is ``""`` if there is no rest.

    A text that was cut before is split in the same place.
    """
    if found := _NOTE.search(text, max(0, len(text) - _NOTE_CHARS)):
        text, note = text[: found.start()], found[0]
        return text[:MAX_TEXT_CHARS], note
    left_out = len(text) - MAX_TEXT_CHARS
    if left_out <= _NOTE_CHARS:
        return text, ""
    return text[:MAX_TEXT_CHARS], f"... ({left_out} more characters left out)"


def without_credentials(text: str) -> str:
    """Return *text*, at most 16 kB of it, with the values of ``password=`` and passwords in URIs masked."""
    head, note = cut(text)
    masked = _CREDENTIAL.sub(r"\1=***", head)
    if "://" in masked:
        masked = _WORD.sub(lambda word: _without_uri_password(word[0]), masked)
        if note:  # the last word may hold a password whose end was cut off
            masked = _without_begun_uri(masked)
    return masked + note


def _without_uri_password(word: str) -> str:
    """Return *word* with the text between ``://user:`` and the last ``@`` masked."""
    scheme, found, rest = word.partition("://")
    user, is_there, host = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    return f"{scheme}{found}{name}:***@{host}" if found and is_there and colon else word


def _without_begun_uri(text: str) -> str:
    begin = max(text.rfind(space) for space in " \t\r\n") + 1
    scheme, found, _ = text[begin:].partition("://")
    return f"{text[:begin]}{scheme}://***" if found else text


def without_values(message: str, sqlstate: str | None) -> str:
    """Return the server's *message*, or DETAIL, at most 16 kB of it, without texts that may be row values.

    In class 22 (data exception) the quoted text is the value that didn't fit, except
    in 22P04, which quotes column names, and 22P05, which quotes encodings. In classes 23
    (constraint) and 44 (WITH CHECK OPTION) values stand in parentheses, also in a DETAIL
    within the message (dblink's "commit error: ..."). A syntax error (42601) may be at a
    literal, or within one.
    """
    head, note = cut(message)
    primary, line, detail = head.partition("\nDETAIL:  ")
    if line:
        head = primary + line + _without_parentheses(detail, is_cut=bool(note))
    elif sqlstate and sqlstate.startswith(("23", "44")):
        head = _without_parentheses(head, is_cut=bool(note))
    elif sqlstate and sqlstate.startswith("22") and sqlstate not in ("22P04", "22P05"):
        head = _without_quoted(head, _OPENING, is_cut=bool(note))
    elif sqlstate == "42601":
        a_value = any(language in head for language in _LANGUAGES)
        head = _without_quoted(head, _OPENING if a_value else _LITERAL, is_cut=bool(note))
    return head + note


def _without_quoted(text: str, opening: re.Pattern[str], *, is_cut: bool) -> str:
    """Return *text* with everything from the first *opening* to the last closing quote masked."""
    found = opening.search(text)
    if found is None:
        return text
    end = len(text) if is_cut else max(text.rfind(quote) for quote in _CLOSING) + 1
    return f'{text[: found.start()]}"..."{text[end:]}' if end > found.end() else text


def _without_parentheses(text: str, *, is_cut: bool) -> str:
    """Return *text* with everything from the first to the last parenthesis masked, except names before it."""
    begin, end = text.find("("), len(text) if is_cut else text.rfind(")") + 1
    if begin < 0 or end <= begin:
        return text
    if (names := _NAMES.match(text, begin)) and end > names.end():
        begin = names.end()
    return f"{text[:begin]}(...){text[end:]}"


def without_statements(context: str) -> str:
    """Return PostgreSQL's CONTEXT, at most 16 kB of it, without the statements and values that it quotes."""
    head, note = cut(context)
    shown: list[str] = []
    position = 0
    while found := _CONTEXT_STATEMENT.search(head, position):
        end = _END_OF_STATEMENT.search(head, found.end())
        if end is None and not note:
            break
        shown += [head[position : found.end() - 1], '"..."']
        position = end.end() if end else len(head)
    shown.append(head[position:])
    text = "".join(shown)
    value = _CONTEXT_VALUE.search(text)
    colon = text.find(":", value.end()) if value else -1
    return (text if colon < 0 else text[:colon]) + note
