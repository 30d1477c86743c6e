"""From the hook's Airflow connections to targets: finds the connection, and reads its fields."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, Connection
from airflow.providers.postgres.hooks.postgres import PostgresHook

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.target import Target, is_libpq_option, target_from_extra

# Arguments of PostgresHook and its bases.
_PASSED_ON = {
    *("connection", "database", "options", "schema", "sqlalchemy_scheme"),
    *("enable_log_db_messages", "log_sql"),
    *("escape_column_names", "escape_word_format", "insert_statement_format", "replace_statement_format"),
}
# The other options only describe the hook's own connection.
_OF_EVERY_LINK = ("password_required", "session_settings", "job_schema")
_AIRFLOWS = {name: getattr(BaseHook, name).__func__ for name in ("get_connection", "aget_connection")}


class TargetSide(PostgresHook):
    """Finds the targets of connections: of the hook's own, given or named to its constructor, and others.

    Connections are looked up by the hook's ``get_connection`` and ``aget_connection``, so that a subclass
    or a test can replace these. The hook's own connection is looked up once.
    """

    _own: dict[str, Any]  # our own options, as the constructor got them
    _connection: Any
    _looked_up: str | None = None  # the id that _connection was looked up by; None if it was given
    _conn_id: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The base class ignores unknown names. Airflow's own SQL operators pass on the fields of Extra.
        known = _PASSED_ON | self.ignored_extra_options | {self.conn_name_attr}
        if unknown := sorted(name for name in kwargs if name not in known and not is_libpq_option(name)):
            raise TypeError(
                f"DblinkHook takes no {', '.join(unknown)}; the connection is {self.conn_name_attr}, and"
                " run-time parameters such as statement_timeout are session_settings"
            )
        database = kwargs.pop("schema", None)  # DbApiHook's name for it
        given = kwargs.get("connection")
        super().__init__(*args, **kwargs)
        self.database = self.database or database
        if given is not None and not args and self.conn_name_attr not in kwargs:
            # Jobs, errors and metrics show the connection's id.
            self.conn_id = getattr(given, "conn_id", None) or self.conn_id

    @property
    def conn_id(self) -> str:
        """Airflow connection of the unnamed link. Can be set before it is used."""
        if self.conn_name_attr == "conn_id":
            return self._conn_id or self.default_conn_name
        return str(self.get_conn_id())

    @conn_id.setter
    def conn_id(self, conn_id: str) -> None:
        if self.conn_name_attr == "conn_id":  # a subclass's name for it
            self._conn_id = conn_id
        else:
            setattr(self, self.conn_name_attr, conn_id)

    @property
    def connection(self) -> Any:  # the base names another of Airflow's two classes
        """The hook's own Airflow connection; it can be set.

        :raises AirflowNotFoundException: see :meth:`target`.
        """
        conn_id, connection = self.conn_id, self._known
        if connection is None:
            with _what_to_do(conn_id):
                connection = self.get_connection(conn_id)
            self._connection, self._looked_up = connection, conn_id
        return connection

    @connection.setter
    def connection(self, connection: Any) -> None:
        self._connection, self._looked_up = connection, None

    @property
    def _known(self) -> Any:
        """The hook's own connection if it was given, or looked up by the current id; otherwise None."""
        return self._connection if self._looked_up in (None, self.conn_id) else None

    def target(self, conn_id: str | None = None) -> Target:
        """Return the target of *conn_id* (default: the hook's connection).

        :raises UsageError: names the field of the connection with a wrong value.
        :raises AirflowNotFoundException: if no secrets backend has *conn_id*. Airflow also raises this while
            a secrets backend is away, so a retry may help.
        """
        if conn_id is None or conn_id == self.conn_id:
            return self._target(self.conn_id, self.connection)
        with _what_to_do(conn_id):
            connection = self.get_connection(conn_id)
        return self._target(conn_id, connection)

    async def atarget(self, conn_id: str | None = None) -> Target:
        """Return the result of :meth:`target` without blocking; for triggers."""
        conn_id = self.conn_id if conn_id is None else conn_id
        if conn_id != self.conn_id:
            connection = await self._alook_up(conn_id)
        elif (connection := self._known) is None:
            connection = await self._alook_up(conn_id)
            self._connection, self._looked_up = connection, conn_id
        if connection.extra_dejson.get("iam", False):  # asking a cloud for a token blocks
            return await asyncio.to_thread(self._target, conn_id, connection)
        return self._target(conn_id, connection)

    async def _alook_up(self, conn_id: str) -> Connection:
        with _what_to_do(conn_id):
            if self._is_replaced("get_connection") and not self._is_replaced("aget_connection"):
                return await asyncio.to_thread(self.get_connection, conn_id)
            connection: Connection = await self.aget_connection(conn_id)
            return connection

    def _is_replaced(self, name: str) -> bool:
        """Whether a subclass or a test has replaced Airflow's method of that *name*."""
        return getattr(getattr(self, name), "__func__", None) is not _AIRFLOWS[name]

    def _target(self, conn_id: str, connection: Connection) -> Target:
        try:
            return self._read(conn_id, connection)
        except UsageError as error:
            # Raised again, without the frames whose locals hold the password: a traceback may show them.
            raise error.with_traceback(None)  # noqa: B904
        finally:
            del connection

    def _read(self, conn_id: str, connection: Connection) -> Target:
        # A connection that was made in code may have no type.
        if connection.conn_type and connection.conn_type not in ("postgres", "postgresql", "dblink"):
            raise UsageError(
                f"the connection is of type {connection.conn_type!r}",
                conn_id,
                hint="give it the type postgres or dblink",
            )
        extra = connection.extra_dejson
        login, password, port = connection.login, connection.password, connection.port
        if extra.get("iam", False):
            login, password, port = self.get_iam_token(connection)
        params: dict[str, Any] = {
            "host": connection.host,
            "port": port,
            "user": login,
            "password": password,
            "dbname": connection.schema,
            # As in PostgresHook, Extra overrides the fields.
            **{k: v for k, v in extra.items() if k not in self.ignored_extra_options and v not in (None, "")},
        }
        if conn_id == self.conn_id:
            if self.database:
                params["dbname"] = self.database
            if self.options:
                params["options"] = self.options
        return target_from_extra(conn_id, params, extra, self._given_options(conn_id))

    def _given_options(self, conn_id: str) -> dict[str, Any]:
        """Return our own options from the constructor, which override those of a connection.

        A direct address belongs to the hook's own connection only.
        """
        return {
            name: value
            for name, value in self._own.items()
            if value is not None and (conn_id == self.conn_id or name in _OF_EVERY_LINK)
        }


@contextmanager
def _what_to_do(conn_id: str) -> Iterator[None]:
    """Add a hint to Airflow's error, and keep its type: it doesn't tell whether a retry can help."""
    try:
        yield
    except AirflowNotFoundException as error:
        variable = f"AIRFLOW_CONN_{conn_id.upper()}"
        raise AirflowNotFoundException(
            f"{error}: create it under Admin > Connections, or set {variable}; if it is there, check whether"
            " the secrets backend that has it answers"
        ) from None
