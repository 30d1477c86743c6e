"""Questions to the catalogs that can't use a stranger's operators, functions or types.

PostgreSQL searches the schemas of ``search_path`` for the operator that fits best. pg_catalog has no
``=`` for ``oid`` and ``regclass``, so PostgreSQL would take one that a stranger has put into ``public``,
and run it as our role. So our questions are parsed under :data:`PATH`, whose objects are all
PostgreSQL's own.

But they are executed under the session's own path, since ``to_regclass`` and ``format_type`` use it,
and names must mean what they mean to the user. A cursor makes that possible: DECLARE parses the question,
FETCH executes it. All of it is one message, so it costs no round trip.

Statements on a user's tables can't be protected in this way, since their triggers, views and policies need
the user's path. So they name the schema of every operator (``OPERATOR(pg_catalog.=)``), function and type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import ClientCursor, sql
from psycopg.rows import dict_row

T = TypeVar("T")

#: The path under which questions are parsed. pg_temp is named, since it would be searched first otherwise.
PATH = "pg_catalog, pg_temp"

_KEPT = "airflow_dblink.search_path"  # keeps the session's own path during the transaction
#: Sets :data:`PATH` in the transaction; in a message of its own, or before :data:`UNPIN` in the same one.
PIN = sql.SQL(
    "SELECT pg_catalog.set_config({kept}, pg_catalog.current_setting('search_path'), true),"
    " pg_catalog.set_config('search_path', {path}, true)"
).format(kept=_KEPT, path=PATH)
#: Sets the session's own path again.
UNPIN = sql.SQL("SELECT pg_catalog.set_config('search_path', pg_catalog.current_setting({}), true)").format(
    _KEPT
)
_BEFORE_ROWS = 3  # results, of one question: of PIN, DECLARE and UNPIN


def message(*questions: sql.Composable) -> list[sql.Composable]:
    """Return the statements of one message that asks *questions*, each a SELECT about the catalogs.

    :func:`rows_of` finds the rows among its results. The message works with and without a transaction.
    """
    cursors = [sql.Identifier(f"airflow_dblink_question_{i}") for i in range(len(questions))]
    declare = sql.SQL("DECLARE {} NO SCROLL CURSOR FOR {}")
    return [
        PIN,
        *(declare.format(*pair) for pair in zip(cursors, questions, strict=True)),
        UNPIN,
        *(sql.SQL("FETCH ALL FROM {}").format(cursor) for cursor in cursors),
        *(sql.SQL("CLOSE {}").format(cursor) for cursor in cursors),
    ]


def rows_of(results: Sequence[T]) -> Sequence[T]:
    """Return the results with rows of the questions, from all results of a :func:`message`."""
    count = (len(results) - 2) // 3
    return results[2 + count : 2 + 2 * count]


def question(
    connection: psycopg.Connection[Any], statement: str, params: Mapping[str, Any] | None = None
) -> sql.SQL:
    """Return the complete statement of a text with ``%(name)s`` placeholders.

    :param params: values for the placeholders.
    """
    return sql.SQL(ClientCursor(connection).mogrify(statement, params or {}))


def ask(
    connection: psycopg.Connection[Any],
    statement: str | sql.Composable,
    params: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of one SELECT about the catalogs, in one round trip, in a transaction or not.

    :param statement: a text with ``%(name)s`` placeholders (from a ``.sql`` file), or a complete statement.
    :param params: values for the placeholders.
    :raises psycopg.Error: the server's errors.
    """
    asked = question(connection, statement, params) if isinstance(statement, str) else statement
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(sql.SQL("; ").join(message(asked)))
        for _ in range(_BEFORE_ROWS):
            cursor.nextset()
        return cursor.fetchall()
