"""One open connection with dblink's state: its cursors, the transaction of the first one, the last error."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import psycopg
from psycopg import pq, sql
from psycopg.abc import AdaptContext

from airflow_dblink.core.errors import RemoteError, TransientError, UsageError, context_line
from airflow_dblink.core.link.messages import Message, Row, Wire, tag
from airflow_dblink.core.link.pending import Pending
from airflow_dblink.core.server.bind import Params, Statement
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.target import Target

log = logging.getLogger(__name__)

_PLAIN_NAME = re.compile(r"[A-Za-z_\u0080-\U0010ffff][\w$]*")
_QUOTED_NAME = re.compile(r'"((?:[^"]|"")+)"')
# A transaction-local setting: it ends with the transaction that open() began, however that ends. So close()
# never commits another transaction.
_MARK = "airflow_dblink.cursor_transaction"
_BATCHES_MARK = "airflow_dblink.batches_transaction"  # the same for batches()

_NAME_BYTES = 63  # NAMEDATALEN - 1

_Status = pq.ExecStatus


class Notification(NamedTuple):
    """A notification: its channel, the process id of the backend that sent it, its payload (or "")."""

    notify_name: str
    be_pid: int
    extra: str


class Link(Wire):
    """One open connection with dblink's state. Not thread-safe.

    :ivar pending: the link's asynchronous query.
    """

    def __init__(self, name: str | None, target: Target, connection: LinkConnection) -> None:
        super().__init__(name, target, connection)
        self.pending = Pending(self)
        self._notifications: list[Notification] = []
        connection.add_notify_handler(self._notified)
        self._cursors: set[str] = set()  # opened in the transaction that open() began
        self._batches_mark: str | None = None
        self._mark: str | None = None  # token of that transaction, while it may be open

    # -- query, exec

    def query(
        self, statement: Statement, params: Params | None = None, *, fail_on_error: bool = True
    ) -> list[Row]:
        """Run *statement* and return the rows of its last result.

        Several statements may stand in one string; they are one transaction. A command
        without rows gives one row with its tag. See :meth:`DblinkHook.query`.

        :raises UsageError: for COPY and an empty statement, before anything is sent.
        :raises RemoteError: the server's errors; if *fail_on_error* is false, they are only warnings
            in the log, unless the connection was lost. XX000 while another query's results are
            unread.
        """
        self.begin(self.message(statement, params))
        if fail_on_error:
            last = self.finish("executing query")[-1]
            self.succeeded(last, "executing query", fail_on_error=True)
            rows = self.rows(last) if last.status == _Status.TUPLES_OK else []
        else:
            rows, last = self.finish_by_row("executing query")
            self.succeeded(last, "executing query", fail_on_error=False)
        return [(tag(last),)] if last.status == _Status.COMMAND_OK else rows

    def exec(self, statement: Statement, params: Params | None = None, *, fail_on_error: bool = True) -> str:
        """Run *statement* and return the command tag of the last statement in it.

        :returns: ``INSERT 0 1``, ``UPDATE 3``, ``CREATE TABLE``, ...; ``ERROR`` when the server
            failed and *fail_on_error* is false.
        :raises UsageError: for COPY and an empty statement, before anything is sent.
        :raises RemoteError: the server's errors; 2F003 if the last statement returned rows; it has
            run all the same.
        """
        last = self._command(self.message(statement, params), "executing command", fail_on_error)
        if last is None:
            return "ERROR"
        if last.status == _Status.TUPLES_OK:
            raise RemoteError(
                "statement returning results not allowed",
                self.label,
                "2F003",
                hint="the statement has run; use query for statements that return rows",
            )
        return tag(last)

    def command(self, statement: Statement) -> str:
        """Run one *statement* and return its command tag, whether it returns rows or not.

        :raises UsageError: as :meth:`exec`.
        :raises RemoteError: the server's errors.
        """
        self.begin(self.message(statement, None))
        last = self.finish("executing command")[-1]
        self.succeeded(last, "executing command", fail_on_error=True)
        return tag(last)

    def _command(self, message: Message, action: str, fail_on_error: bool) -> pq.abc.PGresult | None:
        """Send one message and return its last result, ``None`` for an error that is only logged."""
        try:
            self.begin(message)
        except RemoteError as error:
            # dblink() says "could not send query" here, but libpq's PQexec only gives no result.
            words = error.message.removeprefix("could not send query: ")
            context = context_line(action, self.name)
            failure = type(error)(words, self.label, "08006", None, error.hint, context)
            if fail_on_error or isinstance(failure, TransientError):
                raise failure from None
            log.warning("%s", failure)
            return None
        last = self.finish(action)[-1]
        return last if self.succeeded(last, action, fail_on_error=fail_on_error) else None

    # -- cursors

    def open(
        self, cursor: str, statement: Statement, params: Params | None = None, *, fail_on_error: bool = True
    ) -> str:
        """Open a cursor. If no transaction is open, begin one; the last :meth:`close` commits it.

        :param cursor: name, folded to lower case unless ``"quoted"``, as in dblink.
        :returns: ``OK``, or ``ERROR`` when *fail_on_error* is false; the transaction is then
            aborted and waits for ``exec("ABORT")``, as in dblink.
        :raises UsageError: if *cursor* isn't a name, or *statement* isn't one statement.
        :raises RemoteError: the server's errors.
        """
        name = self._cursor_name(cursor)
        query = self.one(statement, params)
        declare = sql.SQL("DECLARE {} CURSOR FOR ").format(sql.Identifier(name))
        message = self.message(declare + query, None)  # before BEGIN: a refusal must leave no transaction
        if self.is_idle:
            self._mark = secrets.token_hex(8)
            self._cursors.clear()
            begin = sql.SQL("BEGIN; SELECT pg_catalog.set_config({}, {}, true)").format(_MARK, self._mark)
            self.run(begin, "beginning a transaction")
        if self._command(message, f'opening cursor "{cursor}"', fail_on_error) is None:
            return "ERROR"
        if self._mark is not None:
            self._cursors.add(name)
        return "OK"

    def fetch(self, cursor: str, howmany: int, *, fail_on_error: bool = True) -> list[Row]:
        """Return the next *howmany* rows of *cursor*; 0 reads the current row again, negative goes back.

        :raises UsageError: if *cursor* isn't a name or *howmany* isn't an integer.
        :raises RemoteError: 34000 if there is no such cursor; other errors of the server.
        """
        if isinstance(howmany, bool) or not isinstance(howmany, int):
            raise UsageError(f"howmany must be an integer, got {howmany!r}", self.label)
        name = self._cursor_name(cursor)
        fetch = sql.SQL("FETCH {} FROM {}").format(sql.Literal(howmany), sql.Identifier(name))
        result = self._command(self.message(fetch, None), f'fetching from cursor "{cursor}"', fail_on_error)
        return [] if result is None else self.rows(result)

    def close(self, cursor: str, *, fail_on_error: bool = True) -> str:
        """Close a cursor. The last cursor of :meth:`open` commits the transaction that it began.

        A transaction that the user began is never committed here.

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
        result = self._command(self.message(statement, None), f'closing cursor "{cursor}"', fail_on_error)
        if result is None:
            return "ERROR"
        if self._mark is not None:
            mark, existing = self.rows(result)[0]
            self._cursors &= set(existing)
            if mark != self._mark:  # that transaction has ended; this one is the user's
                self._mark = None
            elif not self._cursors:
                self._mark = None
                self._commit()
        return "OK"

    def batches(
        self,
        statement: Statement,
        params: Params | None,
        batch_rows: int,
        values: AdaptContext | None = None,
    ) -> Iterator[list[Row]]:
        """Yield the rows of *statement* in lists of at most *batch_rows*, all from one snapshot.

        See :meth:`DblinkHook.batches`.

        :param values: the psycopg context that reads the values; by default the connection.
        """
        if isinstance(batch_rows, bool) or not isinstance(batch_rows, int) or batch_rows < 1:
            raise UsageError(f"batch_rows must be an integer of at least 1, got {batch_rows!r}", self.label)
        return self._batches(self.one(statement, params), batch_rows, values)

    def _batches(
        self, query: sql.Composable, batch_rows: int, values: AdaptContext | None
    ) -> Iterator[list[Row]]:
        cursor = f"airflow_dblink_{secrets.token_hex(6)}"
        if begins := self.is_idle:
            self.batch_cursors.clear()
        if begins or self.batch_cursors:  # batches() began the transaction; its last cursor ends it
            self.batch_cursors.add(cursor)
        name = sql.Identifier(cursor)
        # All rows will be read, so the planner must not favour the first rows, as it does for cursors.
        begin: sql.Composable = sql.SQL("")
        if begins:
            self._batches_mark = secrets.token_hex(8)
            begin = sql.SQL(
                "BEGIN; SET LOCAL cursor_tuple_fraction = 1; SELECT pg_catalog.set_config({}, {}, true); "
            ).format(_BATCHES_MARK, self._batches_mark)
        fetch = sql.SQL("FETCH {} FROM {}").format(sql.Literal(batch_rows), name)
        # The first rows come with the answer to DECLARE: a round trip less.
        declare = begin + sql.SQL("DECLARE {} NO SCROLL CURSOR FOR ").format(name) + query
        message: sql.Composable = declare + sql.SQL("\n; ") + fetch
        complete = False
        try:
            while not complete:
                rows = self.rows(self.run(message, "executing query")[-1], values)
                message = fetch
                complete = len(rows) < batch_rows
                if rows:
                    yield rows
        finally:
            ours = cursor in self.batch_cursors
            self.batch_cursors.discard(cursor)
            self._end_batches(name, ours=ours)

    def _end_batches(self, cursor: sql.Identifier, *, ours: bool) -> None:
        # Nothing if the connection is lost or a fetch was stopped midway: that error tells more.
        status = self.pgconn.transaction_status
        if ours and not self.batch_cursors:
            if status == pq.TransactionStatus.INERROR:
                self.run(sql.SQL("ROLLBACK"), "executing query")
            elif status == pq.TransactionStatus.INTRANS:
                setting = sql.SQL("SELECT pg_catalog.current_setting({}, true)").format(_BATCHES_MARK)
                mark = self.rows(self.run(setting, "executing query")[-1])[0][0]
                if mark == self._batches_mark:  # else that transaction has ended; this one is the user's
                    self.run(sql.SQL("COMMIT"), "executing query")
        elif status == pq.TransactionStatus.INTRANS:
            self.run(sql.SQL("CLOSE {}").format(cursor), "executing query")

    # -- state

    def get_notify(self) -> list[Notification]:
        """Return the notifications that have come since the last call, without waiting.

        :raises UsageError: behind a pooler in transaction mode, where LISTEN doesn't last.
        :raises TransientError: 08006 if the connection is lost; its LISTENs are lost, too.
        """
        if self.target.leads_through_pooler():
            raise UsageError(
                "LISTEN does not survive a pooler in transaction mode",
                self.label,
                hint="use an Airflow connection that leads around the pooler",
            )
        self._consume()
        while (note := self.pgconn.notifies()) is not None:
            encoding = self.connection.info.encoding
            channel, extra = note.relname.decode(encoding), note.extra.decode(encoding)
            self._notifications.append(Notification(channel, note.be_pid, extra))
            self._consume()
        found, self._notifications = self._notifications, []
        if not found and not self.is_open:
            raise self.no_connection()
        return found

    def _consume(self) -> None:
        with suppress(psycopg.OperationalError):  # notifications from before the loss are still there
            self.pgconn.consume_input()

    def _notified(self, note: psycopg.Notify) -> None:
        """Keep a notification that came while another answer was awaited."""
        self._notifications.append(Notification(note.channel, note.pid, note.payload))

    def disconnect(self) -> None:
        """Close the connection; an open remote transaction is lost, as in dblink."""
        self.connection.close()

    def abort(self) -> None:
        """Cancel the running statement and close the connection, within a few seconds; never raises."""
        self.connection.abort()

    def _commit(self) -> None:
        self.begin(Message(b"COMMIT"))
        result = self.finish("executing query")[-1]
        if result.status != _Status.COMMAND_OK:
            raise RemoteError(f"commit error: {self.error_message()}", self.label, "XX000")

    def _cursor_name(self, cursor: str) -> str:
        name = None
        if "\0" in cursor:
            pass  # PostgreSQL would cut it there
        elif _PLAIN_NAME.fullmatch(cursor):
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


def cut_name(name: str) -> str:
    """Return *name* cut to 63 bytes on a character's edge, as PostgreSQL and dblink do."""
    return name.encode(errors="surrogatepass")[:_NAME_BYTES].decode(errors="ignore")
