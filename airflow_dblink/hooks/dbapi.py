"""What DbApiHook's users get of the hook: Airflow's own SQL operators, SQLAlchemy, connection tests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.postgres.hooks.postgres import PostgresHook
from psycopg.types.json import Json

from airflow_dblink.core.connection import Check, LinkConnection, check_credential, connect
from airflow_dblink.core.conninfo import Target
from airflow_dblink.core.errors import UsageError
from airflow_dblink.hooks.task import report, task_name

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine


class DbApiSide(PostgresHook):
    """PostgresHook on psycopg 3, under the credential rule; :class:`DblinkHook` says where it connects."""

    _check: Check | None

    @abstractmethod
    def target(self, conn_id: str | None = None) -> Target:
        """Return where and how *conn_id* connects."""

    @property
    @abstractmethod
    def conn_id(self) -> str:
        """Airflow connection of the unnamed link."""

    @property
    def schema(self) -> str | None:
        """The database, where it isn't the connection's: stock operators set it by this name."""
        return self.database

    @schema.setter
    def schema(self, database: str | None) -> None:
        self.database = database

    def get_conn(self) -> LinkConnection:
        """Return a new psycopg 3 connection, not in autocommit mode, under the credential rule.

        For :class:`~airflow.providers.common.sql.hooks.sql.DbApiHook` and its users, who close
        it: never a link's. An ``execution_timeout`` cancels what it runs.

        :raises CredentialError: 2F003, see :meth:`connect`.
        :raises TransientError: 08001 where the server can't be reached or refuses.
        """
        cursor = self.connection.extra_dejson.get("cursor")
        self.conn = connection = self._new_connection(self._get_cursor(cursor) if cursor else None)
        if self.enable_log_db_messages:
            connection.add_notice_handler(self._notice_handler)
        return connection

    def _new_connection(self, row_factory: Any = None) -> LinkConnection:
        connection = connect(
            self.target(),
            application_name=task_name(),
            row_factory=row_factory,
            autocommit=False,
            check=self._check,
            observe=report,
            event="DblinkGetConnect",
        )
        connection.abort_when_stopped = True
        return connection

    def get_sqlalchemy_engine(self, engine_kwargs: dict[str, Any] | None = None) -> Engine:
        """Return an engine whose connections are made as :meth:`get_conn` makes them.

        Under the credential rule, that is, and with the connection's session settings.

        :param engine_kwargs: of :func:`sqlalchemy.create_engine`.
        """
        return super().get_sqlalchemy_engine({"creator": self._new_connection, **(engine_kwargs or {})})

    def insert_rows(
        self,
        table: str,
        rows: Any,
        target_fields: Any = None,
        commit_every: int = 1000,
        replace: bool = False,
        **kwargs: Any,
    ) -> None:
        """Insert rows as :meth:`DbApiHook.insert_rows`, also all of them in one transaction.

        :param commit_every: rows per transaction; 0 for one transaction (DbApiHook, which says the
            same, then inserts nothing).
        """
        super().insert_rows(  # type: ignore[no-untyped-call] # Airflow's
            table, rows, target_fields, commit_every or None, replace, **kwargs
        )

    @property
    def sqlalchemy_url(self) -> URL:
        """The URL for SQLAlchemy, with every libpq option of the connection (TLS, several hosts).

        :raises CredentialError: 2F003 where the connection brings no credential; see :meth:`connect`.
        """
        from sqlalchemy.engine import URL

        target = self.target()
        check_credential(target, own_identity=False)
        params = {k: str(v) for k, v in target.params.items() if v not in (None, "")}
        user, password = params.pop("user", None), params.pop("password", None)
        database = params.pop("dbname", None)
        more = self.connection.extra_dejson.get("sqlalchemy_query") or {}
        if not isinstance(more, Mapping):
            raise UsageError("field 'sqlalchemy_query' of the connection must be an object", self.conn_id)
        hosts = params.get("host", "").count(",") + 1
        if "port" in params and "," not in params["port"]:  # libpq's rule: one port is all hosts'
            params["port"] = ",".join([params["port"]] * hosts)
        return URL.create(
            self.sqlalchemy_scheme,
            username=user,
            password=password,
            database=database,
            query={**params, **more},
        )

    @staticmethod
    def _serialize_cell(cell: object, conn: Any = None) -> Any:
        """Leave values to psycopg, lists too (arrays); mappings, and lists of them, are JSON."""
        is_json = isinstance(cell, dict) or (
            isinstance(cell, list) and any(isinstance(element, dict) for element in cell)
        )
        return Json(cell) if is_json else cell

    def test_connection(self) -> tuple[bool, str]:  # type: ignore[override] # the base has no annotation
        """Connect under the credential rule and say what answered; for the UI and CLI."""
        try:
            with connect(self.target(), application_name="airflow connections test") as connection:
                info = connection.info
                version = info.parameter_status("server_version")
                message = f"PostgreSQL {version}, database {info.dbname}, role {info.user}"
                if info.parameter_status("is_superuser") == "on":
                    message += " (a superuser: jobs need none)"
                return True, message
        except Exception as error:  # noqa: BLE001 - whatever it is, the form wants it as text
            return False, str(error)
