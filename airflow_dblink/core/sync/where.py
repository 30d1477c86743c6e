"""The condition *where*: it must mean the same on both sides, and its errors show only its own text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from airflow_dblink.core.errors import DblinkError, RemoteError, UsageError, from_psycopg
from airflow_dblink.core.server.bind import bind
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sqltext.rules import demand_parameters
from airflow_dblink.core.sqltext.user_text import UserText, place_of
from airflow_dblink.core.sync.moving import OF_THE_TEXT, moving_texts, moving_value
from airflow_dblink.core.tables.catalog import parse

if TYPE_CHECKING:
    from airflow_dblink.core.sync.spec import Spec
    from airflow_dblink.core.sync.work import Part

_NOT_BOOLEAN = re.compile(r"CASE/WHEN\W.*boolean, not type (.+)", re.DOTALL)
_IN_LIST = re.compile(r"\bIN\s*%", re.IGNORECASE)


def condition(side: Side, spec: Spec) -> UserText | None:
    """Return the condition with its parameters bound; ``None`` for all rows.

    :raises UsageError: if the parameters don't fit.
    """
    if spec.where is None:
        return None
    given = UserText(spec.where, "where")
    if spec.where_parameters is None:
        return given
    return bind(side.connection, side.conn_id, given, spec.where_parameters, "where_parameters")


def demand_where(part: Part, spec: Spec, given: UserText, names: Sequence[str]) -> None:
    """Let the parser read the condition.

    :raises UsageError: the parser's error, which shows the condition alone; if it has a moving value.
    """
    # Without parentheses: the text could close them, and be another condition than it seems.
    query = sql.SQL("SELECT CASE WHEN {}\n THEN 1 END FROM {}")
    # Not as the user's text: the source's query was read before, so what is wrong now is the condition.
    rows = sql.SQL(part.rows.as_string(part.side.connection))
    text, whole = given.text, query.format(given, rows)
    try:
        parse(part.side, whole)
    except psycopg.Error as error:
        place = place_of(error, whole, part.side.connection)
        ours = from_psycopg(error, part.side.conn_id, "checking where", place=place)
        raise _where_error(ours, spec, names) from None
    if not (spans := moving_texts(text)):
        return

    def is_read(other: str) -> bool:
        return _is_read(part.side, query.format(sql.SQL(_with(text, spans, other)), part.rows))

    # 'today' may be a plain text. It is a date if the parser takes another date in its place, but no text.
    if not is_read("('today'::pg_catalog.text)") and is_read("'2000-01-01 00:00'"):
        raise moving_value(text[slice(*spans[0])])


def _with(text: str, spans: Sequence[tuple[int, int]], other: str) -> str:
    for start, end in reversed(spans):
        text = text[:start] + other + text[end:]
    return text


def _is_read(side: Side, query: sql.Composed) -> bool:
    side.run("SAVEPOINT airflow_dblink_where", "checking where")
    try:
        parse(side, query)
    except psycopg.Error as error:
        ours = from_psycopg(error, side.conn_id, "checking where")
        if not (ours.sqlstate or "").startswith(OF_THE_TEXT):
            raise ours from None
        side.run("ROLLBACK TO airflow_dblink_where", "checking where")
        return False
    return True


def _where_error(ours: RemoteError, spec: Spec, names: Sequence[str]) -> DblinkError:
    """Return the error for a condition that the parser refused: what *where* takes."""
    sqlstate = ours.sqlstate or ""
    if not sqlstate.startswith(OF_THE_TEXT):
        return ours
    if spec.where is not None and spec.where_parameters is None:
        demand_parameters("where", spec.where, "where_parameters", ours.connname)
    message, hint = f"where: {ours.message}", ours.hint
    if kind := _NOT_BOOLEAN.search(message):
        message = f"where must be true or false for each row; it is of type {kind[1]}"
    if sqlstate in ("42702", "42703") or '"part"' in (hint or ""):
        hint = f"where takes the destination's column names, without a table: {', '.join(names)}"
    elif "part." in (hint or ""):
        hint = None
    elif sqlstate == "42601" and _IN_LIST.search(spec.where or ""):
        hint = "a list is one parameter: = ANY(...) takes it, IN doesn't"
    return UsageError(message, ours.connname, sqlstate, ours.detail, hint, ours.context, ours.place)
