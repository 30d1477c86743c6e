"""Values bound into a statement on the client's side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import ClientCursor, sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.sqltext.user_text import UserText

Statement = str | sql.Composable
Params = Sequence[Any] | Mapping[str, Any]

_WANTED = "a list for %s, or a dict for %(name)s"


def bind(
    connection: psycopg.Connection[Any],
    conn_id: str,
    statement: Statement,
    params: Params,
    name: str = "parameters",
) -> UserText:
    """Return *statement* with *params* as literals in it.

    :param name: name of the argument *params* in errors.
    :raises UsageError: if *params* don't fit the placeholders.
    """
    if isinstance(params, str | bytes) or not isinstance(params, Sequence | Mapping):
        raise UsageError(f"{name} must be {_WANTED}, got {type(params).__name__}", conn_id)
    if not isinstance(statement, UserText):
        statement = UserText(statement if isinstance(statement, str) else statement.as_string(connection))
    try:
        text = ClientCursor(connection).mogrify(statement, params)
    except (psycopg.Error, TypeError, ValueError, RecursionError, OverflowError) as error:
        _, missing, which = str(error).partition("query parameter missing: ")
        why = f"{name} do not fit the placeholders: " + (f"{which!r} is missing" if missing else str(error))
        if (lines := statement.literal_percent()) is not None:
            hint = f"write %% for a percent sign where {name} are given"
            raise UsageError(why, conn_id, hint=hint, place=lines) from None
        raise UsageError(why, conn_id, hint=_WANTED) from None
    return statement.bound(text, params, connection)
