"""What is to be sent as a job, read before it is sent: what can't work is refused here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
from psycopg import pq, sql
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import fetch, send

from airflow_dblink.core.errors import UsageError, from_psycopg
from airflow_dblink.core.server.bind import Params, bind
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.sqltext.lexer import Part, parts
from airflow_dblink.core.sqltext.rules import QUERIES, demand_script
from airflow_dblink.core.sqltext.user_text import UserText, place_of, position_of

_CHANGES = ("INSERT", "UPDATE", "DELETE", "MERGE")
_TAGS = {
    "INSERT": "INSERT 0",
    **{verb: verb for verb in ("UPDATE", "DELETE", "MERGE", "SELECT")},
    **dict.fromkeys(("VALUES", "TABLE"), "SELECT"),
}


@dataclass(frozen=True)
class Draft:
    """A job that isn't sent yet.

    :ivar statement: as it was written.
    :ivar bound_statement: with its parameters' values in it, ``None`` where there are none.
    :ivar is_query: it is one statement that gives rows.
    :ivar command: what its command tag begins with, if it has a row count.
    :ivar settings: run-time parameters, local to the job's transaction.
    :ivar statement_timeout: the server ends the job after it; as PostgreSQL takes it, such as ``5min``.
    """

    statement: str
    bound_statement: str | None = None
    is_query: bool = False
    keep_result: bool = False
    command: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    statement_timeout: str | None = None


def draft(
    connection: LinkConnection,
    conn_id: str,
    statement: str,
    params: Params | None = None,
    *,
    keep_result: bool = False,
    settings: Mapping[str, str] | None = None,
    statement_timeout: str | None = None,
) -> Draft:
    """Return the job that *statement* is, all checked that can be before it is sent.

    :param keep_result: of one query: its rows stay in a table until they are dropped.
    :param settings: run-time parameters, local to the job's transaction.
    :param statement_timeout: as PostgreSQL takes it, such as ``5min``.
    :raises UsageError: for what no transaction can run, COPY with the client, NUL, characters that UTF-8
        lacks, parameters that don't fit; with *keep_result*, for anything but one query whose columns
        have names of their own.
    :raises RemoteError: what the server's parser says of the statement; with *keep_result*, what it says of
        the query's names, too.
    """
    demand_statement(statement, conn_id)
    found = parts(statement)
    last = found[-1]
    whole = UserText(statement) if params is None else bind(connection, conn_id, statement, params)
    if "\0" in whole.text:
        raise UsageError("a parameter holds a NUL character, which PostgreSQL can't take", conn_id)
    is_query = len(found) == 1 and _gives_rows(last)
    if len(found) == 1:  # a semicolon can't stand in CREATE TABLE AS, nor in a cursor
        whole = whole.part(0, parts(whole.text)[0].end)
    if keep_result:
        if not (is_query and last.verb in QUERIES):
            raise UsageError(
                "rows can be kept, or handed on, of one query only (SELECT, VALUES, TABLE, or WITH and one of"
                f" them), got {f'{len(found)} statements' if len(found) > 1 else last.verb or '?'}",
                conn_id,
                hint="rows of RETURNING: WITH changed AS (UPDATE ... RETURNING *) SELECT * FROM changed",
            )
        _demand_named_columns(connection, conn_id, whole)
    else:
        _demand_syntax(connection, conn_id, whole)
    return Draft(
        statement=statement,
        bound_statement=None if whole.text == statement else whole.text,
        is_query=is_query,
        keep_result=keep_result,
        command=_TAGS.get(last.verb),
        settings=settings or {},
        statement_timeout=statement_timeout,
    )


def demand_statement(statement: object, conn_id: str) -> None:
    """Refuse what can't be a job, as far as it can be seen without a server.

    :raises UsageError: says what, and in which line.
    """
    if not isinstance(statement, str):
        raise UsageError(f"sql must be text, got {type(statement).__name__}", conn_id)
    demand_script(statement, conn_id, alternative="DblinkExecOperator(transaction=False)")
    try:
        statement.encode()
    except UnicodeEncodeError as error:
        character = ord(error.object[error.start])
        raise UsageError(f"sql holds U+{character:04X}, which is no character", conn_id) from None


def _gives_rows(part: Part) -> bool:
    # SELECT INTO gives none; the server says what to write instead.
    return (part.verb in QUERIES and "INTO" not in part.outer_words) or (
        part.verb in _CHANGES and "RETURNING" in part.outer_words
    )


def _demand_syntax(connection: LinkConnection, conn_id: str, script: UserText) -> None:
    """Have the server's parser read the script, and nothing else of the server: one round trip.

    In the job's procedure it would no longer tell the place of an error.

    :raises RemoteError: what the parser says.
    """
    # It reads all of it before it says that these are several statements. So no name is looked up, which
    # an earlier statement of the script may make, and no lock is waited for.
    message = script + sql.SQL("\n; SELECT 1; SELECT 2")
    result = _read(connection, conn_id, message)
    error = error_from_result(result, encoding=connection.info.encoding)
    if error.diag.sqlstate != "42601" or position_of(error) is not None:
        place = place_of(error, message, connection)
        raise from_psycopg(error, conn_id, "reading the statement", place=place)


def _demand_named_columns(connection: LinkConnection, conn_id: str, query: UserText) -> None:
    """Have the server read the query, without running it: one round trip.

    :raises UsageError: if two columns have one name, as a table's can't.
    :raises RemoteError: what the server says.
    """
    encoding = connection.info.encoding
    result = _read(connection, conn_id, query)
    if result.status == pq.ExecStatus.FATAL_ERROR:
        error = error_from_result(result, encoding=encoding)
        place = place_of(error, query, connection)
        raise from_psycopg(error, conn_id, "reading the query", place=place)
    names = Counter((result.fname(i) or b"").decode(encoding) for i in range(result.nfields))
    if twice := sorted(name for name, times in names.items() if times > 1):
        raise UsageError(
            f"the query gives more than one column named {', '.join(map(repr, twice))}, a table can't",
            conn_id,
            hint="give each column a name of its own with AS",
        )


def _read(connection: LinkConnection, conn_id: str, statement: sql.Composable) -> pq.abc.PGresult:
    """Return the parser's answer, which may be an error.

    :raises TransientError: if the connection is lost.
    """
    text = statement.as_string(connection).encode(connection.info.encoding)
    try:
        return connection.wait(_described(connection.pgconn, text))
    except psycopg.Error as error:
        raise from_psycopg(error, conn_id, "reading the statement") from None


def _described(pgconn: pq.abc.PGconn, query: bytes) -> PQGen[pq.abc.PGresult]:
    # In one go, since a pooler may have another server answer the next message.
    pgconn.enter_pipeline_mode()
    pgconn.send_prepare(b"", query)
    pgconn.send_describe_prepared(b"")
    pgconn.pipeline_sync()
    described: pq.abc.PGresult | None = None
    yield from send(pgconn)
    while True:
        result = yield from fetch(pgconn)
        if result is None:  # between two answers
            continue
        if result.status == pq.ExecStatus.PIPELINE_SYNC:
            break
        # The first error is what counts; what came after it was not looked at.
        if described is None or described.status != pq.ExecStatus.FATAL_ERROR:
            described = result
    pgconn.exit_pipeline_mode()
    if described is None:
        raise psycopg.OperationalError("the server gave no result")
    return described
