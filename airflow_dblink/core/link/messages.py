"""Messages of the simple protocol over one connection, their results and errors in dblink's words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg import pq, sql
from psycopg.abc import AdaptContext, PQGen
from psycopg.abc import Transformer as AbcTransformer
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.generators import execute, fetch, send

from airflow_dblink.core.errors import RemoteError, TransientError, UsageError, from_psycopg
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.bind import Params, Statement, bind
from airflow_dblink.core.server.connection import COPY, LinkConnection
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.server.wait_events import waiting
from airflow_dblink.core.sqltext.lexer import Part, parts
from airflow_dblink.core.sqltext.rules import client_copy, demand_no_client
from airflow_dblink.core.sqltext.user_text import UserText, place_of

Row = tuple[Any, ...]
RV = TypeVar("RV")

log = logging.getLogger(__name__)

# Types whose values Python can't always hold: dates and times, alone, in arrays, ranges, multiranges.
_LIMITED = frozenset(
    oid
    for info in psycopg.adapters.types
    if info.name.startswith(("date", "time", "interval", "tsrange", "tstzrange", "tsmulti", "tstzmulti"))
    for oid in (info.oid, info.array_oid)
)

_LOST = "the link is lost: disconnect it, and connect anew"
_Status = pq.ExecStatus
_FAILED = (_Status.FATAL_ERROR, _Status.BAD_RESPONSE)


@dataclass(frozen=True)
class Message:
    """One message to the server; its *text* is in the session's encoding.

    :ivar statement: the statement that it was made of, to find an error's place in it; ``None`` if it holds
        no text of a user.
    """

    text: bytes
    statement: sql.Composable | None = None


class Wire:
    """One open connection under the name that a link gives it. Not thread-safe.

    :ivar name: the link's ``connname``; ``None`` for the unnamed link.
    :ivar connection: the psycopg connection, in autocommit mode.
    """

    def __init__(self, name: str | None, target: Target, connection: LinkConnection) -> None:
        self.name = name
        self.target = target
        self.connection = connection
        self.pgconn = connection.pgconn
        self._sent: sql.Composable | None = None  # the statement of the last message
        self._kept_message = ""  # libpq's error about the last message
        self.batch_cursors: set[str] = set()  # of batches(), in a transaction that the first of them began

    @property
    def label(self) -> str:
        """The name of this link in errors: its own, or that of its Airflow connection."""
        return self.target.conn_id if self.name is None else self.name

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as libpq knows."""
        return not self.connection.closed and self.pgconn.status == pq.ConnStatus.OK

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open and no query runs."""
        return self.pgconn.transaction_status == pq.TransactionStatus.IDLE

    def error_message(self) -> str:
        """Return libpq's last message, ``OK`` if there is none."""
        message = self.pgconn.error_message.decode(self.connection.info.encoding, "replace")
        return message.rstrip("\n") or self._kept_message or "OK"

    def demand_not_closed(self) -> None:
        """Raise if this side has closed the link: an iterator may outlive its hook, for example.

        :raises UsageError: 08003.
        """
        if self.connection.closed and not self.connection.broken:
            raise UsageError(
                "the link was closed before this was read",
                self.label,
                "08003",
                hint="read results and batches inside the hook's with block, before disconnect()",
            )

    def no_connection(self) -> TransientError:
        """Return the error for the use of a lost link."""
        return TransientError("no connection to the server", self.label, "08006", hint=_LOST)

    # -- statements

    def compose(self, statement: Statement, params: Params | None) -> sql.Composable:
        """Return *statement* as one text, with *params* bound on the client's side."""
        if not isinstance(statement, str | sql.Composable):
            kind = type(statement).__name__
            raise UsageError(f"sql must be text or of psycopg.sql, got {kind}", self.label)
        if params is not None:
            return bind(self.connection, self.label, statement, params)
        return UserText(statement) if isinstance(statement, str) else statement

    def one(self, statement: Statement, params: Params | None) -> UserText:
        """Return *statement* with *params* bound, without its semicolon and later comments.

        :raises UsageError: if it isn't exactly one statement, or holds a NUL character.
        """
        composed, text = self._composed(statement, params)
        found = parts(text, backslashes=self._backslashes)
        self._demand_sendable(found)
        if len(found) != 1:
            raise UsageError(f"a query is one statement, got {len(found)}", self.label)
        whole = composed if isinstance(composed, UserText) else UserText(text)
        return whole.part(0, found[0].end)

    def message(self, statement: Statement, params: Params | None) -> Message:
        """Return the message for *statement* with *params* bound.

        :raises UsageError: for COPY with the client, a NUL character and an empty statement.
        """
        composed, text = self._composed(statement, params)
        self._demand_sendable(parts(text, backslashes=self._backslashes))
        return Message(self.encoded(text), composed)

    def _demand_sendable(self, found: list[Part]) -> None:
        if not found:
            raise UsageError("the statement is empty", self.label)
        for part in found:
            demand_no_client(part, self.label)

    def _composed(self, statement: Statement, params: Params | None) -> tuple[sql.Composable, str]:
        """Return *statement* with *params* bound, and its text."""
        self.demand_not_closed()
        if isinstance(params, str | bytes):
            message = f"params must be a list or a mapping, got {type(params).__name__}"
            raise UsageError(message, self.label, hint="the link goes by keyword: connname=...")
        try:
            composed = self.compose(statement, params)
            text = composed.as_string(self.connection)
        except UnicodeEncodeError as error:
            raise self._not_in_encoding(error) from None
        if "\0" in text:
            raise UsageError("the statement holds a NUL character, which PostgreSQL can't take", self.label)
        return composed, text

    def encoded(self, text: str) -> bytes:
        """Return *text* in the session's encoding.

        :raises UsageError: for a character that this encoding doesn't have.
        """
        try:
            return text.encode(self.connection.info.encoding)
        except UnicodeEncodeError as error:
            raise self._not_in_encoding(error) from None

    def _not_in_encoding(self, error: UnicodeEncodeError) -> UsageError:
        character = ord(error.object[error.start])
        return UsageError(
            f"the session's client_encoding ({error.encoding}) has no character U+{character:04X}",
            self.label,
            hint="SET client_encoding = 'UTF8', which is how every link begins",
        )

    @property
    def _backslashes(self) -> bool:
        return self.pgconn.parameter_status(b"standard_conforming_strings") == b"off"

    # -- messages and results

    def run(self, statement: sql.Composable, action: str, *, timed: bool = True) -> list[pq.abc.PGresult]:
        """Send one message of our own and return its results.

        :param timed: whether it counts as the wait event ``DblinkGetResult``.
        :raises RemoteError: the server's errors.
        """
        composed, text = self._composed(statement, None)
        self.begin(Message(self.encoded(text), composed))
        results = self.finish(action, timed=timed)
        self.succeeded(results[-1], action, fail_on_error=True)
        return results

    def begin(self, message: Message) -> None:
        """Hand *message* to libpq.

        :raises RemoteError: XX000, in dblink's words, while another query's results are unread.
        :raises TransientError: XX000, in dblink's words, if the connection is lost.
        """
        try:
            self.pgconn.send_query(message.text)
            self._sent, self._kept_message = message.statement, ""
        except psycopg.Error as error:
            kind = RemoteError if self.is_open else TransientError
            # libpq adds a line each time; a closed connection has no message.
            reason = self.error_message().splitlines()[-1] if self.pgconn.error_message else str(error)
            hint = "read the results with get_result, up to the empty one" if self.is_open else _LOST
            raise kind(f"could not send query: {reason}", self.label, "XX000", hint=hint) from error

    def flush(self) -> None:
        """Send the message that :meth:`begin` took to the server, without waiting for results.

        :raises TransientError: if the connection is lost.
        """
        try:
            self.connection.wait(send(self.pgconn))
        except psycopg.Error as error:
            raise self.lost(error, "sending a query") from None

    def finish(self, action: str, *, timed: bool = True) -> list[pq.abc.PGresult]:
        """Wait for all results of the message that :meth:`begin` took; the last may be an error.

        :param timed: whether it counts as the wait event ``DblinkGetResult``.
        :raises TransientError: if the connection is lost.
        :raises UsageError: for a COPY that the statement's text didn't show; the link stays usable.
        """
        results: list[pq.abc.PGresult] = self._wait(execute(self.pgconn), action, timed=timed)
        self._look_at_last(results[-1], action)
        return results

    def finish_by_row(self, action: str) -> tuple[list[Row], pq.abc.PGresult]:
        """Read the results of the message that :meth:`begin` took row by row; rows before an error are kept.

        :returns: the rows of the last result that has rows, complete or not; the last result.
        :raises UsageError, RemoteError: as :meth:`finish` and :meth:`rows`; all results have been read then.
        """
        self.pgconn.set_single_row_mode()
        rows: list[Row] = []
        complete = True
        beyond: RemoteError | None = None
        transformer = Transformer(self.connection)

        def take(result: pq.abc.PGresult) -> None:
            nonlocal complete, beyond
            if result.status in (_Status.SINGLE_TUPLE, _Status.TUPLES_OK):
                if complete:
                    rows.clear()
                transformer.set_pgresult(result, set_loaders=complete)
                complete = result.status == _Status.TUPLES_OK
                try:
                    rows.extend(self._load(transformer, result) if beyond is None else ())
                except RemoteError as error:  # the rest is read, but not kept
                    beyond = error

        last = self._wait(_each(self.pgconn, take), action, timed=True)
        self._look_at_last(last, action)
        if beyond is not None:
            raise beyond
        return rows, last

    def _wait(self, results: PQGen[RV], action: str, *, timed: bool) -> RV:
        try:
            with self.timed() if timed else nullcontext():
                return self.connection.wait(results)
        except psycopg.Error as error:
            raise self.lost(error, action) from None
        except BaseException:  # a time-out, a kill: the statement must not go on without the caller
            self._cancel()
            raise

    def _cancel(self) -> None:
        """Cancel the running statement and read the rest of its results; close if that takes too long."""
        ended = False
        with suppress(psycopg.Error):
            ended = self.connection.cancel_running()
        if not ended:
            self.connection.close()

    def _look_at_last(self, result: pq.abc.PGresult, action: str) -> None:
        if result.status in COPY:
            raise self.refused_copy(result.status)
        if not self.is_open:
            raise self.error(result, action)

    def timed(self) -> AbstractContextManager[None]:
        """Return a context that counts as waiting for a result."""
        return waiting("DblinkGetResult", self.target.conn_id, self.connection.observe)

    def succeeded(self, result: pq.abc.PGresult, action: str, *, fail_on_error: bool) -> bool:
        """Return whether *result* is no error; raise an error, or only log it, as dblink's NOTICE does."""
        if result.status not in _FAILED:
            return True
        error = self.error(result, action)
        # FATAL: the server has ended the session, though libpq may not have seen its end yet.
        if fail_on_error or not self.is_open or _is_fatal(result):
            raise error
        log.warning("%s", error)
        return False

    def error(self, result: pq.abc.PGresult, action: str) -> RemoteError:
        """Return the error in *result*."""
        error = error_from_result(result, encoding=self.connection.info.encoding)
        place = None
        if self._sent is not None and error.diag.statement_position:
            self._kept_message = self.error_message()  # quoting names, to find the place, clears libpq's
            place = place_of(error, self._sent, self.connection)
        return from_psycopg(error, self.label, action, unnamed=self.name is None, place=place)

    def lost(self, error: psycopg.Error, action: str) -> RemoteError:
        """Return the error for a connection that broke, with libpq's words instead of psycopg's."""
        ours = from_psycopg(error, self.label, action, unnamed=self.name is None)
        if error.diag.sqlstate is None and self.pgconn.error_message:
            message = without_credentials(self.error_message())
            return TransientError(message, self.label, "08006", context=ours.context)
        return ours

    def refused_copy(self, status: int) -> UsageError:
        """End a COPY that a statement's text didn't show, so that the link stays usable; return its error."""
        if status == _Status.COPY_IN:
            self.pgconn.put_copy_end(b"COPY is not possible here")
        else:
            while self.pgconn.get_copy_data(0)[0] > 0:
                pass
        self.connection.wait(execute(self.pgconn))
        return client_copy(self.label)

    def rows(self, result: pq.abc.PGresult, values: AdaptContext | None = None) -> list[Row]:
        """Return the rows of *result* as Python values, read by *values* (default: the connection).

        :raises RemoteError: 22000, with the columns' names, for a value that Python can't hold.
        """
        transformer = Transformer(values or self.connection)
        transformer.set_pgresult(result)
        return self._load(transformer, result)

    def _load(self, transformer: AbcTransformer, result: pq.abc.PGresult) -> list[Row]:
        try:
            return transformer.load_rows(0, result.ntuples, tuple)
        except RemoteError as error:  # from a loader of server/text_styles.py
            raise RemoteError(error.message, self.label, error.sqlstate, hint=error.hint) from None
        # An infinite date, a year beyond 9999; psycopg's message holds the value, so it isn't passed on.
        except (ValueError, RecursionError, psycopg.Error):
            raise self._beyond_python(result) from None

    def _beyond_python(self, result: pq.abc.PGresult) -> RemoteError:
        columns = ", ".join(
            repr((result.fname(i) or b"").decode(self.connection.info.encoding))
            for i in range(result.nfields)
            if result.ftype(i) in _LIMITED
        )
        return RemoteError(
            f"a value of column {columns or '?'} is beyond what Python's type holds",
            self.label,
            "22000",
            hint="cast the column to text in the query; a transfer or a fetch to a file takes all values",
        )


def _each(pgconn: pq.abc.PGconn, take: Callable[[pq.abc.PGresult], None]) -> PQGen[pq.abc.PGresult]:
    """Send the message and give each result to *take* as it comes; return the last one."""
    yield from send(pgconn)
    last: pq.abc.PGresult | None = None
    while True:
        try:
            result: pq.abc.PGresult | None = yield from fetch(pgconn)
        except psycopg.DatabaseError:
            if last is not None and last.status in _FAILED:  # the server said why it ended the session
                return last
            raise
        if result is None:
            break
        take(result)
        last = result
        if result.status in COPY:  # libpq would return it again and again
            break
    if last is None:
        raise psycopg.OperationalError("the server gave no result")
    return last


def _is_fatal(result: pq.abc.PGresult) -> bool:
    return result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in (b"FATAL", b"PANIC")


def tag(result: pq.abc.PGresult) -> str:
    """Return the command tag."""
    return (result.command_status or b"").decode()
