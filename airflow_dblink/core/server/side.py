"""A side: a connection, and its name for errors."""

from __future__ import annotations

import select
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from airflow_dblink.core.errors import DblinkError, UsageError, from_psycopg
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.own_sql import PATH, ask, message, rows_of
from airflow_dblink.core.server.settings import TEXT_FORMS, Settings, set_config
from airflow_dblink.core.sqltext.user_text import place_of


@dataclass(frozen=True)
class Side:
    """A connection, and its name for errors."""

    connection: LinkConnection
    conn_id: str

    def ask(
        self,
        statement: str | sql.Composable,
        params: Mapping[str, Any] | None = None,
        action: str = "reading the catalogs",
    ) -> list[dict[str, Any]]:
        """Return the rows of a question that reads no user's table; see :func:`.own_sql.ask`.

        :param action: the purpose of the question, for errors.
        :raises RemoteError: the server's errors.
        """
        try:
            return ask(self.connection, statement, params)
        except psycopg.Error as error:
            raise from_psycopg(error, self.conn_id, action) from None

    def ask_after(
        self, first: Sequence[sql.Composable], questions: Sequence[sql.Composable], action: str
    ) -> list[list[dict[str, Any]]]:
        """Run *first* and ask questions as :meth:`ask`, in one message; return the rows of each.

        :raises RemoteError: the server's errors.
        """
        try:
            with self.connection.cursor(row_factory=dict_row) as cursor:
                cursor.execute(sql.SQL("; ").join([*first, *message(*questions)]))
                results = [cursor.fetchall() if cursor.description else []]
                while cursor.nextset():
                    results.append(cursor.fetchall() if cursor.description else [])
        except psycopg.Error as error:
            raise from_psycopg(error, self.conn_id, action) from None
        return list(rows_of(results[len(first) :]))

    def run(self, statement: str | bytes | sql.SQL | sql.Composed, action: str) -> int:
        """Run *statement* and return the number of rows it touched.

        :raises RemoteError: the server's errors.
        """
        query = statement.encode() if isinstance(statement, str) else statement
        try:
            return self.connection.execute(query).rowcount
        except psycopg.Error as error:
            place = place_of(error, query, self.connection) if isinstance(query, sql.Composable) else None
            raise from_psycopg(error, self.conn_id, action, place=place) from None

    def fetch(self, statement: sql.SQL | sql.Composed, action: str) -> list[dict[str, Any]]:
        """Run *statement* and return its rows.

        :raises RemoteError: the server's errors.
        """
        try:
            with self.connection.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(statement).fetchall()
        except psycopg.Error as error:
            raise from_psycopg(error, self.conn_id, action) from None

    def idle(self, seconds: float) -> None:
        """Wait for at most *seconds* between two statements, and call the connection's check first.

        :raises TransientError: if the connection is lost meanwhile.
        """
        if self.connection.check:
            self.connection.check()
        poll = select.poll()
        poll.register(self.connection.pgconn.socket, select.POLLIN)
        try:
            if poll.poll(seconds * 1000):
                self.connection.pgconn.consume_input()
        except psycopg.Error as error:
            raise from_psycopg(error, self.conn_id, "waiting") from None


def begin(
    side: Side,
    statement: str,
    settings: Settings,
    action: str = "beginning the transaction",
    questions: Sequence[sql.Composable] = (),
) -> list[list[dict[str, Any]]]:
    """Begin a transaction under :data:`TEXT_FORMS` and *settings*, and ask *questions*: one round trip.

    :param statement: ``BEGIN``, and the transaction's modes.
    :param action: the transaction's purpose, for errors.
    :param questions: as :meth:`Side.ask_after` takes them.
    :returns: the rows of each question.
    :raises RemoteError: the server's errors; the transaction may be open then.
    """
    first = [sql.SQL(statement), local_settings(settings)]
    if questions:
        return side.ask_after(first, questions, action)
    side.run(sql.SQL("; ").join(first), action)
    return []


def set_local(side: Side, settings: Settings) -> None:
    """Do the same to a transaction that is open on *side*.

    :raises RemoteError: the server's errors.
    """
    side.run(local_settings(settings), "setting up the transaction")


def local_settings(settings: Settings) -> sql.Composed:
    """Return the statement that sets :data:`TEXT_FORMS` and *settings* for the open transaction."""
    return set_config({**TEXT_FORMS, **settings, "standard_conforming_strings": "on"}.items(), local=True)


@contextmanager
def in_transaction(side: Side, settings: Mapping[str, str], action: str) -> Iterator[None]:
    """Give a transaction on *side*, of READ COMMITTED, with these *settings*; it commits in the end.

    For a question that names a table as its user does: a setting such as ``search_path`` says which one is
    meant, and holds in a transaction only.

    :param action: its purpose, for errors.
    :raises RemoteError: the server's errors.
    """
    try:
        begin(side, "BEGIN ISOLATION LEVEL READ COMMITTED", settings, action)
        yield
    except DblinkError:
        with suppress(DblinkError):
            side.run("ROLLBACK", action)
        raise
    side.run("COMMIT", action)


@contextmanager
def own_path(side: Side) -> Iterator[None]:
    """Give the open transaction of *side* the path of :mod:`.own_sql`, and then the user's again.

    For definitions that the server writes: under this path they name all schemas but pg_catalog, so they mean
    the same to whoever runs them under it.

    :raises RemoteError: the server's errors.
    """
    action = "setting up the transaction"
    before = side.ask("SELECT current_setting('search_path') AS path", action=action)[0]["path"]
    side.run(set_config([("search_path", PATH)], local=True), action)
    yield
    side.run(set_config([("search_path", str(before))], local=True), action)


def demand(granted: bool, side: Side, message: str) -> None:
    """Raise with *message* unless the connection's role has the privilege.

    :raises UsageError: 42501 unless *granted*.
    """
    if not granted:
        raise UsageError(message, side.conn_id, "42501", hint="grant it to the connection's role")
