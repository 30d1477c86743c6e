"""One open connection with dblink's state: the transaction that its first cursor began, the last error."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import ClientCursor, pq, sql
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.generators import execute as execute_generator

from airflow_dblink.core.connection import LinkConnection
from airflow_dblink.core.conninfo import Target
from airflow_dblink.core.errors import RemoteError, UsageError, from_psycopg
from airflow_dblink.core.script import parts

Statement = str | sql.Composable
Params = Sequence[Any] | Mapping[str, Any]
Row = tuple[Any, ...]

log = logging.getLogger(__name__)

_PLAIN_NAME = re.compile(r"[A-Za-z_\u0080-\U0010ffff][\w$]*")
_QUOTED_NAME = re.compile(r'"((?:[^"]|"")+)"')
# A transaction-local setting: it is gone with the transaction that open() began, however
# that ended, so close() never commits a transaction that is somebody else's.
_MARK = "airflow_dblink.cursor_transaction"

_NAME_BYTES = 63  # NAMEDATALEN - 1

# Types whose values Python can't always hold: dates and times, alone, in arrays and in ranges.
_LIMITED = frozenset(
    psycopg.adapters.types[name].oid
    for name in ("date", "time", "timetz", "timestamp", "timestamptz", "interval", "daterange", "tsrange")
) | frozenset(
    psycopg.adapters.types[name].array_oid
    for name in ("date", "time", "timetz", "timestamp", "timestamptz", "interval")
)

_Status = pq.ExecStatus
_FAILED = (_Status.FATAL_ERROR, _Status.BAD_RESPONSE)
_COPY = (_Status.COPY_IN, _Status.COPY_OUT, _Status.COPY_BOTH)


class Link:
    """One open connection with dblink's state. Not thread-safe.

    :ivar name: the ``connname``; ``None`` for the unnamed link.
    :ivar connection: the psycopg connection, in autocommit mode.
    """

    def __init__(self, name: str | None, target: Target, connection: LinkConnection) -> None:
        self.name = name
        self.target = target
        self.connection = connection
        self._cursors: set[str] = set()  # opened in the transaction that open() began
        self._mark: str | None = None  # its token, while such a transaction may be open

    @property
    def label(self) -> str:
        """What errors call this link: its name, else its Airflow connection."""
        return self.target.conn_id if self.name is None else self.name

    # -- query, exec

    def query(
        self, statement: Statement, params: Params | None = None, *, fail_on_error: bool = True
    ) -> list[Row]:
        """Run *statement* and return the rows of its last result.

        Several statements may stand in one string; they are one transaction. A command
        without rows gives one row with its tag. See :meth:`DblinkHook.query`.

        :raises UsageError: for COPY and an empty statement, before anything is sent.
        :raises RemoteError: what the server says; nothing but a warning in the log when
            *fail_on_error* is false, unless the connection was lost.
        """
        results = self._send(statement, params)
        rows: list[Row] = []
        for result in results:
            if result.status == _Status.TUPLES_OK:
                rows = self._rows(result)
            elif result.status == _Status.COMMAND_OK:
                rows = [(_tag(result),)]
            elif not self._tolerate(result, "executing query", fail_on_error):
                break
        return rows

    def exec(self, statement: Statement, params: Params | None = None, *, fail_on_error: bool = True) -> str:
        """Run *statement* and return the command tag of the last statement in it.

        :returns: ``INSERT 0 1``, ``UPDATE 3``, ``CREATE TABLE``, ...; ``ERROR`` when the server
            failed and *fail_on_error* is false.
        :raises UsageError: for COPY and an empty statement, before anything is sent.
        :raises RemoteError: what the server says; 2F003 if the last statement returned rows,
            although it has run.
        """
        last = self._send(statement, params)[-1]
        if last.status == _Status.TUPLES_OK:
            raise RemoteError(
                "statement returning results not allowed",
                self.label,
                "2F003",
                hint="the statement has run; use query for statements that return rows",
            )
        if last.status == _Status.COMMAND_OK:
            return _tag(last)
        self._tolerate(last, "executing command", fail_on_error)
        return "ERROR"

    def command(self, statement: Statement) -> str:
        """Run one *statement* and return its command tag, whether it returns rows or not.

        :raises UsageError: as :meth:`exec`.
        :raises RemoteError: what the server says.
        """
        return _tag(self._require(self.compose(statement, None), "executing command")[-1])

    # -- cursors

    def open(
        self, cursor: str, statement: Statement, params: Params | None = None, *, fail_on_error: bool = True
    ) -> str:
        """Open a cursor; begins a transaction if none is open, which the last :meth:`close` commits.

        :param cursor: name, folded to lower case unless ``"quoted"``, as in dblink.
        :returns: ``OK``, or ``ERROR`` when *fail_on_error* is false; the transaction is then
            aborted and waits for ``exec("ABORT")``, as in dblink.
        :raises UsageError: if *cursor* isn't a name, or *statement* isn't one statement.
        :raises RemoteError: what the server says.
        """
        name = self._cursor_name(cursor)
        query = self.one(statement, params)
        if self.connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
            self._mark = secrets.token_hex(8)
            self._cursors.clear()
            begin = sql.SQL("BEGIN; SELECT pg_catalog.set_config({}, {}, true)").format(_MARK, self._mark)
            self._require(begin, "beginning a transaction")
        declare = sql.SQL("DECLARE {} CURSOR FOR ").format(sql.Identifier(name))
        results = self._send(declare + query, None)
        if not self._done(results, f'opening cursor "{cursor}"', fail_on_error):
            return "ERROR"
        if self._mark is not None:
            self._cursors.add(name)
        return "OK"

    def fetch(self, cursor: str, howmany: int, *, fail_on_error: bool = True) -> list[Row]:
        """Return the next *howmany* rows of *cursor*; 0 reads the current row again, negative goes back.

        :raises UsageError: if *cursor* isn't a name or *howmany* isn't an integer.
        :raises RemoteError: 34000 if there is no such cursor; what else the server says.
        """
        if isinstance(howmany, bool) or not isinstance(howmany, int):
            raise UsageError(f"howmany must be an integer, got {howmany!r}", self.label)
        name = self._cursor_name(cursor)
        fetch = sql.SQL("FETCH {} FROM {}").format(sql.Literal(howmany), sql.Identifier(name))
        results = self._send(fetch, None)
        if not self._done(results, f'fetching from cursor "{cursor}"', fail_on_error):
            return []
        return self._rows(results[-1])

    def close(self, cursor: str, *, fail_on_error: bool = True) -> str:
        """Close a cursor; the last one that :meth:`open` opened commits the transaction it began.

        Transactions that the user opened are never committed here.

        :param cursor: as in :meth:`open`; ``all`` closes every cursor.
        :returns: ``OK``, or ``ERROR`` when *fail_on_error* is false.
        :raises RemoteError: 34000 if there is no such cursor; XX000 ``commit error: ...`` if the
            commit fails (a deferred constraint), also when *fail_on_error* is false.
        """
        name = self._cursor_name(cursor)
        closed = sql.SQL("ALL") if cursor.lower() == "all" else sql.Identifier(name)
        statement: sql.Composable = sql.SQL("CLOSE {}").format(closed)
        if self._mark is not None:
            statement += sql.SQL(
                "; SELECT pg_catalog.current_setting({}, true), ARRAY(SELECT name FROM pg_catalog.pg_cursors)"
            ).format(_MARK)
        results = self._send(statement, None)
        if not self._done(results, f'closing cursor "{cursor}"', fail_on_error):
            return "ERROR"
        if self._mark is not None:
            mark, existing = self._rows(results[-1])[0]
            self._cursors &= set(existing)
            if mark != self._mark:  # that transaction has ended; this one is the user's
                self._mark = None
            elif not self._cursors:
                self._mark = None
                self._commit()
        return "OK"

    def batches(self, statement: Statement, params: Params | None, batch_rows: int) -> Iterator[list[Row]]:
        """Yield the rows of *statement* in lists of at most *batch_rows*, all from one snapshot.

        See :meth:`DblinkHook.batches`.
        """
        if isinstance(batch_rows, bool) or not isinstance(batch_rows, int) or batch_rows < 1:
            raise UsageError(f"batch_rows must be an integer of at least 1, got {batch_rows!r}", self.label)
        return self._batches(self.one(statement, params), batch_rows)

    def _batches(self, query: sql.Composable, batch_rows: int) -> Iterator[list[Row]]:
        own = self.connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        name = sql.Identifier(f"airflow_dblink_{secrets.token_hex(6)}")
        # All rows will be read: the planner should not favour the first, as it does for cursors.
        begin = sql.SQL("BEGIN; SET LOCAL cursor_tuple_fraction = 1; " if own else "")
        self._require(
            begin + sql.SQL("DECLARE {} NO SCROLL CURSOR FOR ").format(name) + query, "executing query"
        )
        fetch = sql.SQL("FETCH {} FROM {}").format(sql.Literal(batch_rows), name)
        complete = False
        try:
            while not complete:
                rows = self._rows(self._require(fetch, "executing query")[-1])
                complete = len(rows) < batch_rows
                if rows:
                    yield rows
        finally:
            # Neither where it is lost nor where a fetch was stopped midway: the error says more.
            status = self.connection.pgconn.transaction_status
            if own and status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR):
                self._require(sql.SQL("COMMIT" if complete else "ROLLBACK"), "executing query")
            elif status == pq.TransactionStatus.INTRANS:
                self._require(sql.SQL("CLOSE {}").format(name), "executing query")

    # -- state

    def error_message(self) -> str:
        """Return libpq's last message on this link, ``OK`` if there is none."""
        return self.connection.pgconn.error_message.decode("utf-8", "replace").rstrip("\n") or "OK"

    def disconnect(self) -> None:
        """Close the connection; an open remote transaction is lost, as in dblink."""
        self.connection.close()

    def abort(self) -> None:
        """Cancel what runs and close, within some seconds; never raises."""
        self.connection.abort()

    # -- the wire

    @property
    def _is_open(self) -> bool:
        return not self.connection.closed and self.connection.pgconn.status == pq.ConnStatus.OK

    def compose(self, statement: Statement, params: Params | None) -> sql.Composable:
        """Return *statement* with *params* bound on this side, as one text."""
        if params is not None:
            return sql.SQL(bind(self.connection, self.label, statement, params))
        return sql.SQL(statement) if isinstance(statement, str) else statement

    def one(self, statement: Statement, params: Params | None) -> sql.SQL:
        """Return *statement* with *params* bound, without its semicolon and what follows that.

        :raises UsageError: if it isn't exactly one statement, or holds a NUL character.
        """
        text = self._text(statement, params)
        found = parts(text)
        if len(found) != 1:
            raise UsageError(f"a query is one statement, got {len(found)}", self.label)
        return sql.SQL(text[: found[0].end])

    def _text(self, statement: Statement, params: Params | None) -> str:
        text = self.compose(statement, params).as_string(self.connection)
        if "\0" in text:
            raise UsageError("the statement holds a NUL character, which PostgreSQL can't take", self.label)
        return text

    def _send(self, statement: Statement, params: Params | None) -> list[pq.abc.PGresult]:
        """Send one simple-protocol message and return all its results; the last may be an error."""
        text = self._text(statement, params)
        found = parts(text)
        if not found:
            raise UsageError("the statement is empty", self.label)
        for part in found:
            if part.is_copy_with_client:
                raise UsageError(
                    f"COPY with the client is not possible here (line {part.line})",
                    self.label,
                    hint="use DblinkTransferOperator or DblinkFetchOperator",
                )
        pgconn = self.connection.pgconn
        try:
            pgconn.send_query(text.encode())
            results: list[pq.abc.PGresult] = self.connection.wait(execute_generator(pgconn))
        except psycopg.Error as error:
            raise from_psycopg(error, self.label, "sending a query", unnamed=self.name is None) from None
        if results[-1].status in _COPY:
            self._leave_copy(results[-1].status)
            raise UsageError("COPY with the client is not possible here", self.label)
        if not self._is_open:
            raise self._error(results[-1], "executing query")
        return results

    def _require(self, statement: sql.Composable, action: str) -> list[pq.abc.PGresult]:
        results = self._send(statement, None)
        self._done(results, action, fail_on_error=True)
        return results

    def _done(self, results: list[pq.abc.PGresult], action: str, fail_on_error: bool) -> bool:
        return results[-1].status not in _FAILED or self._tolerate(results[-1], action, fail_on_error)

    def _tolerate(self, result: pq.abc.PGresult, action: str, fail_on_error: bool) -> bool:
        """Raise the error of *result*, or log it as dblink's NOTICE does; returns false."""
        error = self._error(result, action)
        if fail_on_error:
            raise error
        log.warning("%s", error)
        return False

    def _error(self, result: pq.abc.PGresult, action: str) -> RemoteError:
        error = error_from_result(result, encoding="utf-8")
        return from_psycopg(error, self.label, action, unnamed=self.name is None)

    def _rows(self, result: pq.abc.PGresult) -> list[Row]:
        transformer = Transformer(self.connection)
        transformer.set_pgresult(result)
        try:
            return transformer.load_rows(0, result.ntuples, tuple)
        except (ValueError, psycopg.Error):  # an infinite date, a year beyond 9999; the message holds it
            columns = ", ".join(
                repr((result.fname(i) or b"").decode())
                for i in range(result.nfields)
                if result.ftype(i) in _LIMITED
            )
            raise RemoteError(
                f"a value of column {columns or '?'} is beyond what Python's type holds",
                self.label,
                "22000",
                hint="cast the column to text in the query; a transfer or a fetch to a file takes all values",
            ) from None

    def _commit(self) -> None:
        result = self._send(sql.SQL("COMMIT"), None)[-1]
        if result.status in _FAILED:
            message = self.error_message()
            raise RemoteError(f"commit error: {message}", self.label, "XX000")

    def _cursor_name(self, cursor: str) -> str:
        name = None
        if _PLAIN_NAME.fullmatch(cursor):
            name = "".join(c.lower() if c.isascii() else c for c in cursor)
        elif quoted := _QUOTED_NAME.fullmatch(cursor):
            name = quoted[1].replace('""', '"')
        if name is not None:
            return cut_name(name)  # as PostgreSQL does, or pg_cursors would not have it
        raise UsageError(
            f"{cursor!r} is not a cursor name",
            self.label,
            "42601",
            hint='letters, digits, underscores; anything else in double quotes: "My Cursor"',
        )

    def _leave_copy(self, status: int) -> None:
        """End a COPY that a statement began behind our back, so that the link stays usable."""
        pgconn = self.connection.pgconn
        if status == _Status.COPY_IN:
            pgconn.put_copy_end(b"COPY is not possible here")
        else:
            while pgconn.get_copy_data(0)[0] > 0:
                pass
        self.connection.wait(execute_generator(pgconn))


def bind(connection: LinkConnection, conn_id: str, statement: Statement, params: Params) -> str:
    """Return *statement* with *params* as literals in it.

    :raises UsageError: if they don't fit its placeholders.
    """
    query: Any = statement.encode() if isinstance(statement, str) else statement
    try:
        return ClientCursor(connection).mogrify(query, params)
    except (psycopg.Error, TypeError) as error:
        raise UsageError(f"parameters do not fit the statement: {error}", conn_id) from None


def cut_name(name: str) -> str:
    """Return *name* cut to 63 bytes on a character's edge, as PostgreSQL and dblink do."""
    return name.encode()[:_NAME_BYTES].decode(errors="ignore")


def _tag(result: pq.abc.PGresult) -> str:
    return (result.command_status or b"").decode()
