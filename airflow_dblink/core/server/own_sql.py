"""Questions to the catalogs that no operator, function or type of somebody else's can get into.

PostgreSQL looks for an operator along ``search_path`` and takes the one that fits best: there is no
``=`` for ``oid`` and ``regclass`` in pg_catalog, so one that a stranger has put into ``public`` would
be taken, and would run as our role. So a question of ours is read by the parser under
:data:`PATH`, in which only PostgreSQL itself creates anything.

It is executed under the session's own path all the same: ``to_regclass`` and ``format_type`` go by it,
and a name means what it means to the user. A cursor makes that possible: DECLARE reads the question,
FETCH executes it. All of it is one message, so it costs no round trip.

Statements that touch a user's tables can't be helped so, since his triggers, views and policies need his
path: they name the schema of every operator, ``OPERATOR(pg_catalog.=)``, function and type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import ClientCursor, sql
from psycopg.rows import dict_row

T = TypeVar("T")

#: The path that questions are read under. pg_temp would be looked through first if it weren't named.
PATH = "pg_catalog, pg_temp"

_KEPT = "airflow_dblink.search_path"  # where the session's own is, in the same transaction
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

    :func:`rows_of` finds the rows among its results. It needs no transaction, and may be part of one.
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
    """Return the results, of all that a :func:`message` gave, which are the questions' answers."""
    count = (len(results) - 2) // 3
    return results[2 + count : 2 + 2 * count]


def ask(
    connection: psycopg.Connection[Any],
    statement: str | sql.Composable,
    params: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of one SELECT about the catalogs, in one round trip, in a transaction or not.

    :param statement: with ``%(name)s`` placeholders if it is of a ``.sql`` file; else complete.
    :param params: values for the placeholders.
    :raises psycopg.Error: what the server says.
    """
    if isinstance(statement, str):
        question: sql.Composable = sql.SQL(ClientCursor(connection).mogrify(statement, params or {}))
    else:
        question = statement
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(sql.SQL("; ").join(message(question)))
        for _ in range(_BEFORE_ROWS):
            cursor.nextset()
        return cursor.fetchall()
