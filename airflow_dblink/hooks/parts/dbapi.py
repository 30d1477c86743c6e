"""The hook's side for users of DbApiHook: Airflow's own SQL operators, SQLAlchemy, connection tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_dblink.core.server.connection import Check, LinkConnection
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.target import Target
from airflow_dblink.hooks.parts.engine import EngineSide
from airflow_dblink.hooks.parts.insert import Insert, Row, check_names
from airflow_dblink.hooks.parts.task import report, task_name

# Arguments of insert_rows that don't reach the statement.
_HOW_TO_INSERT = ("executemany", "fast_executemany", "autocommit")


class DbApiSide(EngineSide):
    """PostgresHook on psycopg 3, under the credential rule; :class:`DblinkHook` finds the connections."""

    _check: Check | None

    @property
    def schema(self) -> str | None:
        """The database, if it isn't the connection's: Airflow's own operators set it by this name."""
        return self.database

    @schema.setter
    def schema(self, database: str | None) -> None:
        self.database = database

    def get_conn(self) -> LinkConnection:
        """Return a new psycopg 3 connection under the credential rule.

        Not in autocommit mode, unless the connection's Extra says ``autocommit``.

        It is for :class:`~airflow.providers.common.sql.hooks.sql.DbApiHook` and its users, who close
        it, so it is never a link's connection. An ``execution_timeout`` cancels its running statement.

        :raises CredentialError: 2F003, see :meth:`connect`.
        :raises TransientError: 08001 if the server can't be reached, or refuses.
        """
        target = self.target()
        arguments = {k: v for k, v in target.psycopg.items() if k == "autocommit"}
        if cursor := self.connection.extra_dejson.get("cursor"):
            arguments["row_factory"] = self._get_cursor(cursor)
        self.conn = connection = self._new_connection(target, arguments)
        if self.enable_log_db_messages:
            connection.add_notice_handler(self._notice_handler)
        return connection

    def _new_connection(self, target: Target, arguments: Mapping[str, Any] | None = None) -> LinkConnection:
        others = dict(arguments or {})
        connection = connect(
            target,
            application_name=task_name(),
            autocommit=bool(others.pop("autocommit", False)),
            arguments=others,
            check=self._check,
            observe=report,
            event="DblinkGetConnect",
            keeps_encoding=True,
            prepares=True,
        )
        connection.abort_when_stopped = True
        return connection

    def insert_rows(
        self,
        table: str,
        rows: Any,
        target_fields: Any = None,
        commit_every: int = 1000,
        replace: bool = False,
        **kwargs: Any,
    ) -> None:
        """Insert rows as :meth:`DbApiHook.insert_rows` does, also all of them in one transaction.

        The column's type decides how a list is sent: as an array, whose elements may be JSON, or as JSON.
        Dicts, numbers and booleans become JSON in a JSON column; a text there is taken as the text of some
        JSON. The columns are looked up once per call.

        :param commit_every: rows per transaction; 0 for one transaction (DbApiHook promises that, too, but
            then inserts nothing).
        :raises UsageError: if *table*, *target_fields*, ``replace_index`` or ``replace_target`` holds
            anything but names. In ``upsert_rows`` the last two are ``conflict_fields`` and
            ``update_fields``.
        """
        replaced = {name: kwargs.get(name) for name in ("replace_index", "replace_target")}
        check_names(table, target_fields=target_fields, **replaced)
        generated = {name: value for name, value in kwargs.items() if name not in _HOW_TO_INSERT}
        arguments = {"target_fields": target_fields, "replace": replace, **generated}
        super().insert_rows(  # type: ignore[no-untyped-call] # Airflow's
            table,
            Insert(self, table, arguments).rows(rows),
            target_fields,
            commit_every or None,
            replace,
            **kwargs,
        )

    @classmethod
    def _serialize_cells(cls, row: Any, conn: Any = None) -> tuple[Any, ...]:
        if isinstance(row, Row):
            return row.insert.adapted(row, conn)
        cells: tuple[Any, ...] = super()._serialize_cells(row, conn)
        return cells

    def test_connection(self) -> tuple[bool, str]:  # type: ignore[override] # the base has no annotation
        """Connect under the credential rule, and report version, database and role; for the UI and CLI."""
        try:
            with connect(self.target(), application_name="airflow connections test") as connection:
                info = connection.info
                version = info.parameter_status("server_version")
                message = f"PostgreSQL {version}, database {info.dbname}, role {info.user}"
                if info.parameter_status("is_superuser") == "on":
                    message += " (a superuser: jobs need none)"
                return True, message
        except Exception as error:  # noqa: BLE001 - the form shows any error as text
            return False, str(error)
