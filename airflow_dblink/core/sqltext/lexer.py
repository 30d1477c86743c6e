"""The statements of a SQL script, found as PostgreSQL's lexer finds them: to refuse, never to rewrite.

Scripts are always sent unchanged. This module only finds the beginnings of statements, so that transaction
control and COPY, which would break an exactly-once message, are refused before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# One alternative per lexical form that may hide a semicolon or a keyword (PostgreSQL's
# scan.l). An unfinished form runs to the end; the server will say so. The quantifiers are
# possessive, since backtracking would cost memory for each character of a string.
_TOKEN = re.compile(
    r"""
      (?P<space>\s+ | --[^\r\n]*)
    | (?P<comment>/\*)
    | (?P<estring>[eE]'(?:[^'\\]++|\\.|'')*+(?:'|\Z)(?:[ \t\f\v]*[\r\n]\s*'(?:[^'\\]++|\\.|'')*+(?:'|\Z))*+)
    | (?P<string>(?:[bBxXnN]|[uU]&)?'(?:[^']++|'')*+(?:'|\Z))
    | (?P<quoted>(?:[uU]&)?"(?:[^"]++|"")*+(?:"|\Z))
    | (?P<dollar>\$(?P<tag>[^\W\d][\w]*)?\$)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<end>;)
    | (?P<other>\d[\w.]*|.)
    """,
    re.VERBOSE | re.DOTALL,
)
# The same with standard_conforming_strings off: a backslash escapes in every string.
_TOKEN_BACKSLASHES = re.compile(
    _TOKEN.pattern.replace(r"'(?:[^']++|'')*+", r"'(?:[^'\\]++|\\.|'')*+"),
    _TOKEN.flags,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")

_ENDS_TRANSACTION = {
    ("BEGIN",),
    ("START", "TRANSACTION"),
    ("COMMIT",),
    ("END",),
    ("ROLLBACK",),
    ("ABORT",),
    ("PREPARE", "TRANSACTION"),
}
_OUTSIDE_TRANSACTION = {
    ("VACUUM",),
    ("CREATE", "DATABASE"),
    ("DROP", "DATABASE"),
    ("CREATE", "TABLESPACE"),
    ("DROP", "TABLESPACE"),
    ("ALTER", "SYSTEM"),
    ("CREATE", "INDEX", "CONCURRENTLY"),
    ("CREATE", "UNIQUE", "INDEX", "CONCURRENTLY"),
    ("DROP", "INDEX", "CONCURRENTLY"),
    ("DISCARD", "ALL"),
}
_AFTER_WITH = {"SELECT", "VALUES", "TABLE", "INSERT", "UPDATE", "DELETE", "MERGE"}
_REINDEX_KINDS = ("INDEX", "TABLE", "SCHEMA", "DATABASE", "SYSTEM")


@dataclass
class Part:
    """One statement of a script.

    :ivar words: its bare words in upper case.
    :ivar outer_words: the words outside of parentheses.
    """

    script: str = field(repr=False)
    start: int
    end: int
    words: list[str] = field(default_factory=list)
    outer_words: list[str] = field(default_factory=list)

    @property
    def verb(self) -> str:
        """The command, such as ``INSERT``: the first word or, after WITH, the main statement's first word."""
        if self.words[:1] == ["WITH"]:
            return next((word for word in self.outer_words if word in _AFTER_WITH), "WITH")
        return self.words[0] if self.words else ""

    @property
    def text(self) -> str:
        """The statement as it stands in the script, without the semicolon."""
        return self.script[self.start : self.end]

    @property
    def line(self) -> int:
        """The line on which the statement begins, from 1."""
        return self.script.count("\n", 0, self.start) + 1

    def begins_with(self, forms: set[tuple[str, ...]]) -> str | None:
        """Return the form of *forms* that this statement begins with, or ``None``."""
        for form in forms:
            if tuple(self.words[: len(form)]) == form:
                return " ".join(form)
        return None

    @property
    def transaction_control(self) -> str | None:
        """The command, if it begins or ends a transaction (savepoints don't), or ``None``."""
        if self.words[:1] == ["ROLLBACK"] and "TO" in self.words[1:3]:
            return None
        return self.begins_with(_ENDS_TRANSACTION)

    @property
    def outside_transaction(self) -> str | None:
        """The command, if PostgreSQL is known to refuse it in a transaction block, or ``None``."""
        if self.words[:1] == ["REINDEX"]:
            kind = next((word for word in self.words if word in _REINDEX_KINDS), "")
            if kind in ("SCHEMA", "DATABASE", "SYSTEM"):
                return f"REINDEX {kind}"
            return "REINDEX CONCURRENTLY" if "CONCURRENTLY" in self.words else None
        return self.begins_with(_OUTSIDE_TRANSACTION)

    @property
    def is_copy_with_client(self) -> bool:
        """Whether it is a COPY that speaks to the client (from STDIN or to STDOUT)."""
        return self.words[:1] == ["COPY"] and bool({"STDIN", "STDOUT"} & set(self.words))


def parts(script: str, *, backslashes: bool = False) -> list[Part]:
    """Return the statements of *script*, empty ones left out.

    :param backslashes: ``standard_conforming_strings`` is off: a backslash escapes in every string.
    """
    found: list[Part] = []
    current: Part | None = None
    # Semicolons end nothing in BEGIN ATOMIC bodies, with the CASEs in them, and in parentheses
    # (CREATE RULE ... DO (...; ...)).
    depth = parentheses = 0
    for kind, start, end in tokens(script, backslashes=backslashes):
        if kind == "end" and depth == 0 and parentheses == 0:
            current = None
            continue
        if current is None:
            current = Part(script, start, end)
            found.append(current)
        current.end = end
        if kind == "other" and script[start] in "()":
            parentheses = max(0, parentheses + (1 if script[start] == "(" else -1))
        if kind == "word":
            word = script[start:end].upper()
            depth = _depth(depth, current, word)
            current.words.append(word)
            if parentheses == 0:
                current.outer_words.append(word)
    return found


def _depth(depth: int, part: Part, word: str) -> int:
    """Return the nesting after *word*, as psql counts it for SQL-standard function bodies."""
    if depth == 0:
        routine = part.words[:1] == ["CREATE"] and {"FUNCTION", "PROCEDURE"} & set(part.words[:4])
        return 1 if routine and part.words[-1:] == ["BEGIN"] and word == "ATOMIC" else 0
    if word in ("BEGIN", "CASE"):
        return depth + 1
    return depth - 1 if word == "END" else depth


def tokens(script: str, *, backslashes: bool = False) -> Iterator[tuple[str, int, int]]:
    """Yield ``(kind, start, end)`` without white space and comments.

    :param backslashes: as in :func:`parts`.
    """
    token = _TOKEN_BACKSLASHES if backslashes else _TOKEN
    position = 0
    while position < len(script):
        match = token.match(script, position)
        if match is None:  # the last alternative takes any character
            return
        kind, end = match.lastgroup or "other", match.end()
        if match["comment"]:
            position = _comment_end(script, end)
            continue
        if match["dollar"]:
            kind = "dollar"
            closing = script.find(match["dollar"], end)
            end = len(script) if closing < 0 else closing + len(match["dollar"])
        if kind != "space":
            yield kind, match.start(), end
        position = end


def _comment_end(script: str, position: int) -> int:
    """Return the end of the comment that began before *position*; comments nest."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(script, position)
        if edge is None:
            return len(script)
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return position
