"""Drafts of jobs: a statement is read and checked before it is sent as a job."""

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
from airflow_dblink.core.sqltext.rules import demand_script, no_query
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

    :ivar statement: the statement as the user wrote it.
    :ivar bound_statement: the statement with its parameters' values; ``None`` if that is the same text.
    :ivar is_query: whether it is one statement that returns rows.
    :ivar keep_result: whether its rows stay in a table.
    :ivar command: the words of its command tag before the row count; ``None`` if the tag has no row count.
    :ivar settings: run-time parameters, local to the job's transaction.
    :ivar statement_timeout: time limit of the job, in PostgreSQL's form, such as ``5min``.
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
    """Return the draft of a job that runs *statement*; every check that needs no run is done here.

    :param keep_result: keep the rows of *statement*, one query, in a table until they are dropped.
    :param settings: run-time parameters, local to the job's transaction.
    :param statement_timeout: time limit of the job, in PostgreSQL's form, such as ``5min``.
    :raises UsageError: if *statement* can't run in a transaction, is COPY from or to the client, or holds NUL
        or a character that UTF-8 lacks; if the parameters don't fit; with *keep_result*, unless it is one
        query whose columns have different names.
    :raises RemoteError: the errors of the server's parser; with *keep_result*, also errors in the query's
        names.
    """
    demand_statement(statement, conn_id)
    found = parts(statement)
    last = found[-1]
    whole = UserText(statement) if params is None else bind(connection, conn_id, statement, params)
    if "\0" in whole.text:
        raise UsageError("a parameter holds a NUL character, which PostgreSQL can't take", conn_id)
    is_query = len(found) == 1 and _gives_rows(last)
    if len(found) == 1:  # CREATE TABLE AS and cursors take a query without its semicolon
        whole = whole.part(0, parts(whole.text)[0].end)
    if keep_result:
        if (other := no_query(found)) or not is_query:
            raise UsageError(
                "only the rows of one query can be kept or handed on (SELECT, VALUES, TABLE, or WITH and one"
                f" of them), got {other or f'{last.verb} INTO'}",
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
    """Raise unless *statement* can be a job, as far as its text shows.

    :raises UsageError: names the problem and its line.
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
    # SELECT INTO returns no rows; the server's own error names the statement to use instead.
    return (no_query([part]) is None and "INTO" not in part.outer_words) or (
        part.verb in _CHANGES and "RETURNING" in part.outer_words
    )


def _demand_syntax(connection: LinkConnection, conn_id: str, script: UserText) -> None:
    """Let only the server's parser read the script, in one round trip.

    Inside the job's procedure, a syntax error would no longer tell its position in the script.

    :raises RemoteError: the parser's error.
    """
    # The parser reads the whole text before the server refuses to prepare several statements. So no name is
    # looked up (an earlier statement of the script may create it), and no lock is awaited.
    message = script + sql.SQL("\n; SELECT 1; SELECT 2")
    result = _read(connection, conn_id, message)
    error = error_from_result(result, encoding=connection.info.encoding)
    if error.diag.sqlstate != "42601" or position_of(error) is not None:
        place = place_of(error, message, connection)
        raise from_psycopg(error, conn_id, "reading the statement", place=place)


def _demand_named_columns(connection: LinkConnection, conn_id: str, query: UserText) -> None:
    """Let the server prepare the query without running it, in one round trip, and read its columns' names.

    :raises UsageError: if two columns have the same name, which no table allows.
    :raises RemoteError: the server's errors.
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
            f"the query has more than one column named {', '.join(map(repr, twice))}, a table can't",
            conn_id,
            hint="give each column a name of its own with AS",
        )


def _read(connection: LinkConnection, conn_id: str, statement: sql.Composable) -> pq.abc.PGresult:
    """Return the server's description of *statement*, or the error in it.

    :raises TransientError: if the connection is lost.
    """
    text = statement.as_string(connection).encode(connection.info.encoding)
    try:
        return connection.wait(_described(connection.pgconn, text))
    except psycopg.Error as error:
        raise from_psycopg(error, conn_id, "reading the statement") from None


def _described(pgconn: pq.abc.PGconn, query: bytes) -> PQGen[pq.abc.PGresult]:
    # One pipeline, since behind a pooler another server may answer the next message.
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
        # The first error counts: the server skips all messages after it.
        if described is None or described.status != pq.ExecStatus.FATAL_ERROR:
            described = result
    pgconn.exit_pipeline_mode()
    if described is None:
        raise psycopg.OperationalError("the server gave no result")
    return described
