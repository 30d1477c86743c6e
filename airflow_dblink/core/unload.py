"""The rows of a query as the bytes of a file: PostgreSQL's own COPY formats, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from airflow_dblink.core.errors import UsageError, from_psycopg
from airflow_dblink.core.wire import Params, Statement, Wire


def csv_batches(
    link: Wire, statement: Statement, params: Params | None, *, batch_rows: int, header: bool, **options: str
) -> Iterator[tuple[bytes, int]]:
    """Yield the rows of *statement* as CSV, *batch_rows* rows at a time, all from one snapshot.

    :param header: whether the column names come first; they count as no row.
    :param options: of COPY: ``delimiter``, ``null``, ``quote``, ``escape``.
    :returns: (bytes, rows) per batch.
    :raises UsageError: if *batch_rows* is below 1, or *statement* isn't one statement.
    :raises RemoteError: what the server says.
    """
    if batch_rows < 1:
        raise UsageError(f"batch_rows must be at least 1, got {batch_rows!r}", link.label)
    given: list[Any] = [
        sql.SQL("{} {}").format(sql.SQL(name.upper()), sql.Literal(value)) for name, value in options.items()
    ]
    copy = sql.SQL("COPY ({}\n) TO STDOUT (FORMAT csv, HEADER {}{})").format(
        link.one(statement, params),
        sql.SQL(str(header)),
        sql.SQL("").join(sql.SQL(", ") + option for option in given),
    )
    return _batches(link, copy, batch_rows, header)


def _batches(link: Wire, copy: sql.Composed, batch_rows: int, header: bool) -> Iterator[tuple[bytes, int]]:
    # libpq hands out one row at a time; the header comes as a row of its own.
    rows = -1 if header else 0
    lines: list[bytes] = []
    try:
        with link.connection.cursor() as cursor, cursor.copy(copy) as data:
            for line in data:
                lines.append(bytes(line))
                rows += 1
                if rows >= batch_rows:
                    yield b"".join(lines), rows
                    lines, rows = [], 0
    except psycopg.Error as error:
        raise from_psycopg(error, link.label, "executing query") from None
    if lines:
        yield b"".join(lines), max(rows, 0)
