"""dblink's functions on a link, by its name; those that connect are in DblinkHook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, overload

from airflow_dblink.core.builders import statements
from airflow_dblink.core.builders.statements import PkeyField
from airflow_dblink.core.builders.values import KeySource, Value
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link.link import Link, Notification
from airflow_dblink.core.link.messages import Row
from airflow_dblink.core.server.bind import Params, Statement
from airflow_dblink.hooks.parts.names_params import names_params


class Vocabulary(ABC):
    """The functions that work on an open link; :class:`DblinkHook` opens them."""

    @abstractmethod
    def link(self, connname: str | None = None) -> Link:
        """Return the link.

        :raises UsageError: 08003 if no link of that name is open.
        """

    @abstractmethod
    def _reach(self, connname: str | None) -> AbstractContextManager[Link]:
        """Return the link or, if no link has that name, open a connection for this one call."""

    # -- statements

    @names_params
    def query(
        self,
        sql: Statement,
        params: Params | None = None,
        *,
        connname: str | None = None,
        fail_on_error: bool = True,
    ) -> list[Row]:
        """Run *sql* and return the rows of its last result, typed by psycopg.

        All rows are held in memory; use :meth:`batches` for many rows. The client binds the values,
        so *sql* may hold several statements; they are one transaction.

        :param connname: a link's name. If no link has it, it is an Airflow connection's id or a libpq
            connection string, which is connected to for this one call.
        :returns: tuples; for a command without rows one tuple with its tag. After an error with
            ``fail_on_error=False``, the rows of the statements before it.
        :raises UsageError: 08001 if *connname* is none of these; for COPY, an empty statement, ``None``.
        :raises RemoteError: the server's errors; with ``fail_on_error=False`` they are only warnings in
            the log, unless the connection was lost. XX000 while results of :meth:`send_query` are
            unread on that link; they stay.

        Model: ``dblink``.
        """
        with self._reach(connname) as link:
            return link.query(_given("sql", sql), params, fail_on_error=fail_on_error)

    @names_params
    def exec(
        self,
        sql: Statement,
        params: Params | None = None,
        *,
        connname: str | None = None,
        fail_on_error: bool = True,
    ) -> str:
        """Run *sql* and return the command tag of its last statement.

        :returns: ``INSERT 0 1``, ``UPDATE 3``, ``CREATE TABLE``, ...; ``ERROR`` after an error with
            ``fail_on_error=False``.
        :raises UsageError: as :meth:`query`.
        :raises RemoteError: as :meth:`query`; 2F003 if the last statement returned rows, and has run.

        Model: ``dblink_exec``.
        """
        with self._reach(connname) as link:
            return link.exec(_given("sql", sql), params, fail_on_error=fail_on_error)

    # -- cursors

    @names_params
    def open(
        self,
        cursor: str,
        sql: Statement,
        params: Params | None = None,
        *,
        connname: str | None = None,
        fail_on_error: bool = True,
    ) -> str:
        """Open a cursor on a link, and begin a transaction if none is open.

        The :meth:`close` of the last cursor in that transaction commits it. A transaction
        that you began yourself (``exec("BEGIN")``) is never ended here.

        :param cursor: folded to lower case unless ``"quoted"``.
        :returns: ``OK``; ``ERROR`` after an error with ``fail_on_error=False``: the transaction is
            then aborted, and waits for ``exec("ABORT")``.
        :raises UsageError: 08003 if no link of that name is open; 42601 if *cursor* isn't a name; for
            COPY, an empty statement, several statements, ``None``.
        :raises RemoteError: the server's errors.

        Model: ``dblink_open``.
        """
        link = self.link(connname)
        return link.open(
            given_text("cursor", cursor), _given("sql", sql), params, fail_on_error=fail_on_error
        )

    def fetch(
        self, cursor: str, howmany: int, *, connname: str | None = None, fail_on_error: bool = True
    ) -> list[Row]:
        """Return the next *howmany* rows of a cursor, fewer at its end.

        :param howmany: rows; 0 reads the current row again, a negative number goes back.
        :raises UsageError: 08003 if no link of that name is open; if *howmany* is no integer.
        :raises RemoteError: 34000 if there is no such cursor.

        Model: ``dblink_fetch``.
        """
        return self.link(connname).fetch(given_text("cursor", cursor), howmany, fail_on_error=fail_on_error)

    def close(self, cursor: str, *, connname: str | None = None, fail_on_error: bool = True) -> str:
        """Close a cursor. The last cursor of :meth:`open` commits the transaction that it began.

        :returns: ``OK``; ``ERROR`` after an error with ``fail_on_error=False``.
        :raises UsageError: 08003 if no link of that name is open.
        :raises RemoteError: 34000 if there is no such cursor; XX000 ``commit error: ...``.

        Model: ``dblink_close``.
        """
        return self.link(connname).close(given_text("cursor", cursor), fail_on_error=fail_on_error)

    @names_params
    def batches(
        self,
        sql: Statement,
        params: Params | None = None,
        *,
        batch_rows: int = 10_000,
        connname: str | None = None,
    ) -> Iterator[list[Row]]:
        """Yield the rows of *sql* in lists, all from one snapshot; only one batch is in memory.

        A server-side cursor holds the result. Its transaction, unless you have begun one, stays open
        until the iterator is exhausted or closed. Other statements on the link belong to this transaction,
        and are committed with it.

        :param batch_rows: rows per list, at least 1; the last list may be shorter.
        :returns: an iterator, without any list for an empty result.
        :raises UsageError: as :meth:`open`; if *batch_rows* is below 1.
        :raises TransientError: if the connection is lost. Batches already yielded stay valid, but you can't
            go on in the same snapshot.

        Model: ``dblink_open``, ``dblink_fetch``, ``dblink_close``.
        """
        return self.link(connname).batches(_given("sql", sql), params, batch_rows)

    # -- asynchronous

    @names_params
    def send_query(self, sql: Statement, params: Params | None = None, *, connname: str | None = None) -> int:
        """Send *sql* without waiting for its end; :meth:`get_result` reads its results.

        The statement goes on, and is committed, also if the link is closed before its end is read.

        :returns: 1; 0, with a warning in the log, while results of an earlier query are unread
            (they stay) or if the connection is lost.
        :raises UsageError: as :meth:`open`, but several statements are fine; while :meth:`batches` of
            that link are being read.

        Model: ``dblink_send_query``.
        """
        return self.link(connname).pending.send(_given("sql", sql), params)

    def is_busy(self, connname: str | None = None) -> int:
        """Return 1 if :meth:`get_result` would wait, 0 if its result (or its first rows) is there.

        :raises UsageError: 08003 if no link of that name is open.

        Model: ``dblink_is_busy``.
        """
        return self.link(connname).pending.is_busy()

    @overload
    def get_result(
        self, connname: str | None = None, *, fail_on_error: bool = True, batch_rows: None = None
    ) -> list[Row]: ...

    @overload
    def get_result(
        self, connname: str | None = None, *, fail_on_error: bool = True, batch_rows: int
    ) -> Iterator[list[Row]]: ...

    def get_result(
        self, connname: str | None = None, *, fail_on_error: bool = True, batch_rows: int | None = None
    ) -> list[Row] | Iterator[list[Row]]:
        """Return the rows of the next result of :meth:`send_query`, waiting for it.

        Each statement of the query has a result of its own. Call it until it gives an empty list:
        only then the link takes another statement. (An empty SELECT looks the same, as in dblink.)

        :param batch_rows: rows per list: the result then comes as an iterator of lists, and memory
            here is one list, however many rows there are. ``None``: all rows at once.
        :returns: tuples, typed by psycopg; for a command without rows one tuple with its tag; an empty list
            when all results are read, or no query was sent.
        :raises UsageError: 08003 if no link of that name is open, or it was closed before all lists were
            read; if *batch_rows* is below 1; if another call has read past these lists.
        :raises RemoteError: the server's errors; with ``fail_on_error=False`` a warning in the log
            and no rows instead.
        :raises TransientError: if the connection is lost.

        Model: ``dblink_get_result``.
        """
        pending = self.link(connname).pending
        if batch_rows is None:
            return pending.result(fail_on_error=fail_on_error)
        return pending.batches(batch_rows, fail_on_error=fail_on_error)

    def cancel_query(self, connname: str | None = None) -> str:
        """Ask the server to cancel the link's running query, whose error you still have to read.

        :returns: ``OK`` once the server has the request, also if no query ran; otherwise the reason as
            text: ``connection not open``, ``cancel request timed out`` after 30 s, or libpq's message.
        :raises UsageError: 08003 if no link of that name is open.

        Model: ``dblink_cancel_query``.
        """
        return self.link(connname).pending.cancel()

    def error_message(self, connname: str | None = None) -> str:
        """Return the last message of the link, ``OK`` if there is none.

        :raises UsageError: 08003 if no link of that name is open.

        Model: ``dblink_error_message``.
        """
        return self.link(connname).error_message()

    def get_notify(self, connname: str | None = None) -> list[Notification]:
        """Return the notifications that came since the last call, in order, without waiting.

        ``exec("LISTEN channel")`` asks for them. The server delivers none during a transaction.

        :returns: tuples ``(notify_name, be_pid, extra)``: channel, process id of the backend that
            notified, payload or ``""``.
        :raises UsageError: 08003 if no link of that name is open.
        :raises TransientError: if the connection is lost; its LISTENs are lost, too.

        Model: ``dblink_get_notify``.
        """
        return self.link(connname).get_notify()

    # -- keys and builders

    def get_pkey(self, relname: str, *, connname: str | None = None) -> list[PkeyField]:
        """Return the primary key of a table, in the order of its index.

        :param relname: read as in SQL: folded to lower case unless in double quotes, found through
            ``search_path`` unless qualified.
        :returns: tuples ``(position, colname)``, position from 1; none for a relation without key.
        :raises UsageError: 08003 if no link of that name is open.
        :raises RemoteError: 42P01 if there is no such relation, 3F000 if there is no such schema, 42602 or
            42601 if *relname* is no name, 42809 for an index, 42501 without SELECT on the relation.

        Model: ``dblink_get_pkey``.
        """
        return statements.get_pkey(self.link(connname), given_text("relname", relname))

    def build_sql_insert(
        self,
        relname: str,
        primary_key_attnums: Sequence[int],
        src_pk_att_vals: Sequence[Value],
        tgt_pk_att_vals: Sequence[Value],
        *,
        connname: str | None = None,
    ) -> str:
        """Return the INSERT for a copy of the row with key *src_pk_att_vals*, with another key.

        :param relname: as in :meth:`get_pkey`; the row is read from it now.
        :param primary_key_attnums: numbers of the key's columns; 1 is the first column that wasn't dropped.
        :param src_pk_att_vals: the row's key; text as PostgreSQL reads it, ``None`` for NULL, or a
            Python value of the column's type.
        :param tgt_pk_att_vals: the key in the text that is returned.
        :returns: the text, byte for byte dblink's. It holds row values: don't log it.
        :raises UsageError: 22023 for a wrong number of a column, 2202E for the wrong number of values.
        :raises RemoteError: as :meth:`get_pkey`; 21000 if not exactly one row has that key; the server's
            error for a value that isn't of the column's type.

        Model: ``dblink_build_sql_insert``.
        """
        return statements.build_sql_insert(
            self.link(connname), relname, primary_key_attnums, src_pk_att_vals, tgt_pk_att_vals
        )

    def build_sql_update(
        self,
        relname: str,
        primary_key_attnums: Sequence[int],
        src_pk_att_vals: Sequence[Value],
        tgt_pk_att_vals: Sequence[Value],
        *,
        connname: str | None = None,
    ) -> str:
        """Return the UPDATE that gives row *tgt_pk_att_vals* the values of row *src_pk_att_vals*.

        Parameters, result and errors are those of :meth:`build_sql_insert`.

        Model: ``dblink_build_sql_update``.
        """
        return statements.build_sql_update(
            self.link(connname), relname, primary_key_attnums, src_pk_att_vals, tgt_pk_att_vals
        )

    def build_sql_delete(
        self,
        relname: str,
        primary_key_attnums: Sequence[int],
        tgt_pk_att_vals: Sequence[Value],
        *,
        connname: str | None = None,
    ) -> str:
        """Return the DELETE of the row with key *tgt_pk_att_vals*. No row is read, or has to exist.

        Parameters, result and errors are those of :meth:`build_sql_insert`.

        Model: ``dblink_build_sql_delete``.
        """
        return statements.build_sql_delete(self.link(connname), relname, primary_key_attnums, tgt_pk_att_vals)

    def build_sql_insert_many(
        self,
        relname: str,
        primary_key_attnums: Sequence[int],
        src: KeySource,
        tgt: Sequence[Sequence[Value]] | None = None,
        *,
        connname: str | None = None,
    ) -> list[str]:
        """Return the texts of :meth:`build_sql_insert` for many rows, in one round trip.

        :param src: one key per row; or a query in the link's database whose columns are the key's, in
            the order of *primary_key_attnums*.
        :param tgt: as many keys; ``None``: the same keys as in *src*.
        :returns: one text per key, in the order of the keys; all are in memory.
        :raises UsageError: as :meth:`build_sql_insert`; if *src* and *tgt* have different lengths.
        :raises RemoteError: as :meth:`build_sql_insert`; then no text is returned at all.
        """
        return statements.build_sql_insert_many(self.link(connname), relname, primary_key_attnums, src, tgt)

    def build_sql_update_many(
        self,
        relname: str,
        primary_key_attnums: Sequence[int],
        src: KeySource,
        tgt: Sequence[Sequence[Value]] | None = None,
        *,
        connname: str | None = None,
    ) -> list[str]:
        """Return the texts of :meth:`build_sql_update` for many rows, in one round trip.

        Parameters, result and errors are those of :meth:`build_sql_insert_many`.
        """
        return statements.build_sql_update_many(self.link(connname), relname, primary_key_attnums, src, tgt)

    def build_sql_delete_many(
        self,
        relname: str,
        primary_key_attnums: Sequence[int],
        tgt: KeySource,
        *,
        connname: str | None = None,
    ) -> list[str]:
        """Return the texts of :meth:`build_sql_delete` for many keys, in one round trip.

        Parameters, result and errors are those of :meth:`build_sql_insert_many`.
        """
        return statements.build_sql_delete_many(self.link(connname), relname, primary_key_attnums, tgt)


def _given(argument: str, value: Any) -> Any:
    """Return *value*, which must not be ``None``: dblink's functions are STRICT and would do nothing."""
    if value is None:
        raise UsageError(f"{argument} must not be None")
    return value


def given_text(argument: str, value: object) -> str:
    """Return *value*, which must be text."""
    if not isinstance(value, str):
        raise UsageError(f"{argument} must be text, got {type(value).__name__}")
    return value
