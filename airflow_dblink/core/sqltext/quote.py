"""Text as literals, written as PostgreSQL's own functions write them.

psycopg's :class:`~psycopg.sql.Literal` puts a space before ``E'...'`` and a cast after many types;
dblink's statements have neither.
"""

from __future__ import annotations

from collections.abc import Iterable


def quote_literal(text: str) -> str:
    r"""Return *text* as a literal, correct under either ``standard_conforming_strings``.

    Model: ``quote_literal_cstr``: ``E'...'`` if there is a backslash, else ``'...'``.
    """
    quoted = text.replace("'", "''")
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in quoted else "'" + quoted + "'"


def quote_array(texts: Iterable[str]) -> str:
    """Return *texts*, which hold no NUL character, as the literal of a ``text[]``."""
    # Escaped all at once: a list may have a million values.
    joined = "\0".join(texts).replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","')
    return quote_literal('{"' + joined + '"}')
