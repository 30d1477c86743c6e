"""The rows of a query as the bytes of a file: PostgreSQL's own COPY formats, in constant memory.

That is some megabytes, or a few times the longest row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql
from psycopg.abc import Buffer

from airflow_dblink.core.errors import from_psycopg
from airflow_dblink.core.link.messages import Wire
from airflow_dblink.core.server.bind import Params, Statement
from airflow_dblink.core.sqltext.user_text import place_of

_CHUNK_BYTES = 1024 * 1024


def csv_chunks(
    link: Wire, statement: Statement, params: Params | None, *, header: bool, **options: str
) -> Iterator[tuple[Buffer, int]]:
    """Yield the rows of *statement* as CSV, about a megabyte at a time, all from one snapshot.

    :param header: whether the column names come first; they don't count as a row.
    :param options: options of COPY: ``delimiter``, ``null``, ``quote``, ``escape``.
    :returns: (bytes, whole rows in them) per chunk.
    :raises UsageError: if *statement* isn't one statement.
    :raises RemoteError: the server's errors.
    """
    given: list[Any] = [
        sql.SQL("{} {}").format(sql.SQL(name.upper()), sql.Literal(value)) for name, value in options.items()
    ]
    copy = sql.SQL("COPY ({}\n) TO STDOUT (FORMAT csv, HEADER {}{})").format(
        link.one(statement, params),
        sql.SQL(str(header)),
        sql.SQL("").join(sql.SQL(", ") + option for option in given),
    )
    return _chunks(link, copy, header)


def _chunks(link: Wire, copy: sql.Composed, header: bool) -> Iterator[tuple[Buffer, int]]:
    # libpq hands out one row at a time; the header comes as a row of its own.
    rows = -1 if header else 0
    lines: list[Buffer] = []
    size = 0
    try:
        with link.connection.cursor() as cursor, cursor.copy(copy) as data:
            for line in data:
                if lines and size + len(line) > _CHUNK_BYTES:
                    yield b"".join(lines), max(rows, 0)
                    rows, size = min(rows, 0), 0
                    lines.clear()
                rows += 1
                if len(line) >= _CHUNK_BYTES:  # not copied: a copy would take as much memory again
                    yield line, max(rows, 0)
                    rows = min(rows, 0)
                    continue
                lines.append(line)
                size += len(line)
    except psycopg.Error as error:
        place = place_of(error, copy, link.connection)
        raise from_psycopg(error, link.label, "executing query", place=place) from None
    if lines:
        yield b"".join(lines), max(rows, 0)
