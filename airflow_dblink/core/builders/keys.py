"""Keys as the builders take them: lists of Python values, or a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from psycopg import sql

from airflow_dblink.core.builders.values import Keys, Value
from airflow_dblink.core.link.messages import Wire
from airflow_dblink.core.server.bind import Statement

#: Keys, each a list of values in the order of the attnums; or the query that returns them.
KeySource: TypeAlias = Sequence[Sequence[Value]] | Statement


def read_keys(link: Wire, argument: str, source: KeySource, length: int) -> Keys | sql.SQL:
    """Return the keys, or the query for them without its semicolon and later comments.

    :raises UsageError: as :meth:`Keys.of`; if *source* isn't exactly one statement.
    """
    if isinstance(source, str | sql.Composable):
        return link.one(source, None)
    return Keys.of(link, argument, source, length)
