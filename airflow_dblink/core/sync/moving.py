"""Moving values in a condition: values such as ``now()``, which differ by server. Only its text is read."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.sqltext.lexer import tokens

#: Classes of SQLSTATE that mean: the text itself is wrong. Other errors, such as a lock's, may pass.
OF_THE_TEXT = ("0A", "22", "23", "3F", "42", "54")

# Values that depend on the server, the moment or the session: words, unless in double quotes; functions, if a
# parenthesis follows, since columns may have their names; texts, where a date or time is expected.
_MOVING_WORDS = frozenset(
    {
        *("CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP", "LOCALTIME", "LOCALTIMESTAMP"),
        *("USER", "CURRENT_USER", "SESSION_USER", "SYSTEM_USER", "CURRENT_ROLE"),
        *("CURRENT_CATALOG", "CURRENT_SCHEMA"),
    }
)
_MOVING_FUNCTIONS = frozenset(
    {
        *("NOW", "CLOCK_TIMESTAMP", "STATEMENT_TIMESTAMP", "TRANSACTION_TIMESTAMP", "TIMEOFDAY"),
        *("RANDOM", "RANDOM_NORMAL", "GEN_RANDOM_UUID", "GEN_RANDOM_BYTES", "UUIDV4", "UUIDV7"),
        *("UUID_GENERATE_V1", "UUID_GENERATE_V1MC", "UUID_GENERATE_V4", "ARRAY_SAMPLE", "ARRAY_SHUFFLE"),
        *("NEXTVAL", "CURRVAL", "LASTVAL", "CURRENT_SETTING", "CURRENT_DATABASE", "CURRENT_SCHEMAS"),
        *("CURRENT_QUERY", "VERSION", "PG_BACKEND_PID", "PG_IS_IN_RECOVERY", "PG_CURRENT_WAL_LSN"),
        *("TXID_CURRENT", "TXID_CURRENT_SNAPSHOT", "PG_CURRENT_XACT_ID", "PG_CURRENT_SNAPSHOT"),
        *("INET_CLIENT_ADDR", "INET_CLIENT_PORT", "INET_SERVER_ADDR", "INET_SERVER_PORT"),
        *("PG_POSTMASTER_START_TIME", "PG_CONF_LOAD_TIME"),
    }
)
_MOVING_TEXTS = frozenset({"now", "today", "tomorrow", "yesterday"})
_DATE_TYPES = frozenset({"DATE", "TIME", "TIMESTAMP", "TIMESTAMPTZ", "TIMETZ", "ZONE"})  # ... WITH TIME ZONE


def moving(where: str) -> str | None:
    """Return the first moving value in *where* that the text shows; ``None`` if it shows none."""
    found = [("", "")] * 2 + [(kind, where[start:end]) for kind, start, end in tokens(where)]
    for i, (kind, text) in enumerate(found):
        before, after = found[i - 1][1].upper(), [text.upper() for _, text in found[i + 1 : i + 4]]
        word = text.upper() if kind == "word" else ""
        called = after[:1] == ["("]
        if word in _MOVING_WORDS and before != ".":
            return text
        if called and (word in _MOVING_FUNCTIONS or (word == "AGE" and _is_alone(found[i + 1 :]))):
            return f"{text}()"
        cast = after[2:] if after[:2] == [":", ":"] else after[1:2] if after[:1] == ["AS"] else [before]
        if _is_moving_text(kind, text) and _DATE_TYPES & set(cast):
            return text
    return None


def moving_texts(where: str) -> list[tuple[int, int]]:
    """Return the places of the texts in *where* that are moving values if PostgreSQL takes them for dates."""
    return [(start, end) for kind, start, end in tokens(where) if _is_moving_text(kind, where[start:end])]


def moving_value(name: str) -> UsageError:
    """Return the error for a moving value in *where*."""
    return UsageError(
        f"where must mean the same on both servers, but {name.lower()} has another value on each",
        hint="give the value: where_parameters, or a template such as '{{ data_interval_end }}'",
    )


def _is_moving_text(kind: str, text: str) -> bool:
    return kind in ("string", "estring") and text.partition("'")[2].strip("' ").lower() in _MOVING_TEXTS


def _is_alone(tokens: Sequence[tuple[str, str]]) -> bool:
    """Return whether the parentheses at the beginning of *tokens* hold just one argument."""
    depth = 0
    for kind, text in tokens:
        depth += {"(": 1, ")": -1}.get(text, 0) if kind == "other" else 0
        if depth == 0 or (depth == 1 and text == ","):
            return depth == 0
    return True


def in_where(where: str | None, names: Sequence[str]) -> list[str]:
    """Return the column *names* that seem to stand in *where*."""
    texts = {(where or "")[start:end] for _, start, end in tokens(where or "")}
    found = {text[1:-1].replace('""', '"') if text.startswith('"') else text.lower() for text in texts}
    return [name for name in names if name in found]
