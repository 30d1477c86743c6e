"""Values bound into a statement on the client's side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import psycopg
from psycopg import ClientCursor, sql

from airflow_dblink.core.errors import UsageError

Statement = str | sql.Composable


Params = Sequence[Any] | Mapping[str, Any]


_WANTED = "a list for %s, or a dict for %(name)s"


def bind(
    connection: psycopg.Connection[Any],
    conn_id: str,
    statement: Statement,
    params: Params,
    name: str = "parameters",
) -> str:
    """Return *statement* with *params* as literals in it.

    :param name: name of the argument *params* in errors.
    :raises UsageError: if *params* don't fit the placeholders.
    """
    if isinstance(params, str | bytes) or not isinstance(params, Sequence | Mapping):
        raise UsageError(f"{name} must be {_WANTED}, got {type(params).__name__}", conn_id)
    try:
        return ClientCursor(connection).mogrify(cast("Any", statement), params)  # LiteralString, to psycopg
    except (psycopg.Error, TypeError, ValueError, RecursionError, OverflowError) as error:
        _, missing, which = str(error).partition("query parameter missing: ")
        why = f"{name} do not fit the placeholders: " + (f"{which!r} is missing" if missing else str(error))
        raise UsageError(why, conn_id, hint=_WANTED) from None
