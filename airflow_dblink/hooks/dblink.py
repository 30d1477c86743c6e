"""DblinkHook: the only place where an Airflow connection becomes a link."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from airflow.providers.common.compat.sdk import BaseHook, Connection
from airflow.providers.postgres.hooks.postgres import PostgresHook
from psycopg.types.json import Json

from airflow_dblink.core.connection import LinkConnection, connect
from airflow_dblink.core.conninfo import OWN_OPTIONS, Target, application_name, target_from_extra
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link import Link, Params, Row, Statement
from airflow_dblink.core.links import Links

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


class DblinkHook(PostgresHook):
    """dblink's vocabulary over Airflow connections of type ``postgres`` or ``dblink``.

    A context manager: leaving it closes all links, and cancels what still runs when it is left
    by an exception. The unnamed link opens by itself, to *dblink_conn_id*, when first used.

    Functions of one link take ``connname`` first; all others take it last, by keyword.
    ``connname=None`` is the unnamed link.

    :param dblink_conn_id: Airflow connection of the unnamed link.
    :param password_required: dblink's credential rule: the credential must come from the Airflow
        connection. ``None``: what the connection says, else true.
    :param direct_host: address that doesn't lead through the pooler.
    :param direct_port: port of that address.
    :param pooling_mode: ``none``, ``session`` or ``transaction``: the pooler's mode.
    :param session_settings: run-time parameters for every session, by name.
    :param check: called about ten times a second while a link waits; raises to stop.
    :param kwargs: of :class:`~airflow.providers.postgres.hooks.postgres.PostgresHook`.
    """

    conn_name_attr = "dblink_conn_id"
    default_conn_name = "dblink_default"
    conn_type = "dblink"
    hook_name = "PostgreSQL dblink"
    ignored_extra_options = PostgresHook.ignored_extra_options | OWN_OPTIONS

    def __init__(
        self,
        *args: Any,
        password_required: bool | None = None,
        direct_host: str | None = None,
        direct_port: int | None = None,
        pooling_mode: str | None = None,
        session_settings: Mapping[str, Any] | None = None,
        check: Callable[[], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._own = {
            "password_required": password_required,
            "direct_host": direct_host,
            "direct_port": direct_port,
            "pooling_mode": pooling_mode,
            "session_settings": session_settings,
        }
        self._check = check
        self._links: Links | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.links.close_all()
        else:
            self.links.abort_all()

    # -- from an Airflow connection to a link

    @property
    def conn_id(self) -> str:
        """Airflow connection of the unnamed link."""
        return str(self.get_conn_id())

    @property
    def links(self) -> Links:
        """The links of this hook."""
        if self._links is None:
            self._links = Links(application_name=_task_name(), check=self._check)
        return self._links

    def link(self, connname: str | None = None) -> Link:
        """Return the link; the unnamed one is opened when first asked for.

        :raises UsageError: 08003 if no link of that name is open.
        """
        if connname is None and None not in self.links:
            self.links.connect(None, self.target())
        return self.links.get(connname)

    def target(self, conn_id: str | None = None) -> Target:
        """Return where and how *conn_id* connects (default: the hook's connection).

        :raises UsageError: names the field of the connection whose value is wrong.
        :raises AirflowNotFoundException: if no secrets backend knows *conn_id*.
        """
        conn_id = conn_id or self.conn_id
        return self._target(conn_id, BaseHook.get_connection(conn_id))

    async def atarget(self, conn_id: str | None = None) -> Target:
        """Return the same as :meth:`target`, asked for without blocking; for triggers."""
        conn_id = conn_id or self.conn_id
        return self._target(conn_id, await BaseHook.aget_connection(conn_id))

    def _target(self, conn_id: str, connection: Connection) -> Target:
        if connection.conn_type not in ("postgres", "postgresql", "dblink"):
            raise UsageError(
                f"the connection is of type {connection.conn_type!r}",
                conn_id,
                hint="make it one of type postgres or dblink",
            )
        extra = connection.extra_dejson
        login, password, port = connection.login, connection.password, connection.port
        token = bool(extra.get("iam", False))
        if token:
            login, password, port = self.get_iam_token(connection)
        params: dict[str, Any] = {
            **{k: v for k, v in extra.items() if k not in self.ignored_extra_options},
            "host": connection.host,
            "port": port,
            "user": login,
            "password": password,
            "dbname": (self.database if conn_id == self.conn_id else None) or connection.schema,
        }
        if self.options:
            params["options"] = self.options
        given = {name: value for name, value in self._own.items() if value is not None}
        return target_from_extra(conn_id, params, {**extra, **given})

    def get_conn(self) -> LinkConnection:
        """Return a new psycopg 3 connection, not in autocommit mode, under the credential rule.

        For :class:`~airflow.providers.common.sql.hooks.sql.DbApiHook` and its users, who close
        it: never a link's.

        :raises CredentialError: 2F003, see :meth:`connect`.
        :raises TransientError: 08001 where the server can't be reached or refuses.
        """
        cursor = self.connection.extra_dejson.get("cursor")
        self.conn = connection = connect(
            self.target(),
            application_name=_task_name(),
            row_factory=self._get_cursor(cursor) if cursor else None,
            autocommit=False,
            check=self._check,
        )
        if self.enable_log_db_messages:
            connection.add_notice_handler(self._notice_handler)
        return connection

    @property
    def sqlalchemy_url(self) -> URL:
        """The URL for SQLAlchemy, with every libpq option of the connection (TLS, several hosts)."""
        from sqlalchemy.engine import URL

        params = {k: str(v) for k, v in self.target().params.items() if v not in (None, "")}
        user, password = params.pop("user", None), params.pop("password", None)
        database = params.pop("dbname", None)
        hosts = params.get("host", "").count(",") + 1
        if "port" in params and "," not in params["port"]:  # libpq's rule: one port is all hosts'
            params["port"] = ",".join([params["port"]] * hosts)
        return URL.create(
            self.sqlalchemy_scheme,
            username=user,
            password=password,
            database=database,
            query={**params, **self.connection.extra_dejson.get("sqlalchemy_query", {})},
        )

    @staticmethod
    def _serialize_cell(cell: object, conn: Any = None) -> Any:
        """Leave values to psycopg, lists too (arrays); only mappings are JSON."""
        return Json(cell) if isinstance(cell, dict) else cell

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

    # -- dblink's vocabulary: connections

    def connect(self, connname: str | None, conn_id: str) -> str:
        """Open a link named *connname* to the Airflow connection *conn_id*.

        :param connname: any text; cut to 63 bytes with a warning. ``None``: the unnamed link, which
            is replaced after the new one is open.
        :returns: ``OK``.
        :raises UsageError: 42710 if a link of that name is open; or a field of the connection is wrong.
        :raises CredentialError: 2F003 unless the credential comes from the Airflow connection and
            was asked for by the server.
        :raises TransientError: 08001 where the server can't be reached or refuses.

        Model: ``dblink_connect``.
        """
        return self.links.connect(connname, self.target(_text("conn_id", conn_id)))

    def connect_u(self, connname: str | None, conn_id: str) -> str:
        """Open a link as :meth:`connect` does, where the worker's own identity may be used.

        Its OS user, ``.pgpass``, ``PGPASSWORD`` and service files then count.

        :returns: ``OK``.
        :raises UsageError: as :meth:`connect`.
        :raises TransientError: as :meth:`connect`.

        Model: ``dblink_connect_u``.
        """
        return self.links.connect(connname, self.target(_text("conn_id", conn_id)), own_identity=True)

    def disconnect(self, connname: str | None = None) -> str:
        """Close a link; an open remote transaction is lost.

        :returns: ``OK``.
        :raises UsageError: 08003 if no link of that name is open.

        Model: ``dblink_disconnect``.
        """
        return self.links.disconnect(connname)

    def get_connections(self) -> list[str]:
        """Return the names of the open named links, dead ones included.

        Model: ``dblink_get_connections``, which gives NULL where this gives an empty list.
        """
        return self.links.names()

    # -- dblink's vocabulary: statements

    def query(
        self,
        sql: Statement,
        params: Params | None = None,
        *,
        connname: str | None = None,
        fail_on_error: bool = True,
    ) -> list[Row]:
        """Run *sql* and return the rows of its last result, typed by psycopg.

        All rows are held in memory: :meth:`batches` is for many. Values are bound on this side,
        so *sql* may hold several statements; they are one transaction.

        :returns: tuples; for a command without rows one tuple with its tag. After an error with
            ``fail_on_error=False`` the rows of what came before it.
        :raises UsageError: 08003 if the link isn't open; for COPY, an empty statement, ``None``.
        :raises RemoteError: what the server says; with ``fail_on_error=False`` a warning in the log
            instead, unless the connection was lost.

        Model: ``dblink``.
        """
        return self.link(connname).query(_given("sql", sql), params, fail_on_error=fail_on_error)

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
        :raises RemoteError: as :meth:`query`; 2F003 if the last statement returned rows, although
            it has run.

        Model: ``dblink_exec``.
        """
        return self.link(connname).exec(_given("sql", sql), params, fail_on_error=fail_on_error)

    def error_message(self, connname: str | None = None) -> str:
        """Return the last message of the link, ``OK`` if there is none.

        :raises UsageError: 08003 if no link of that name is open.

        Model: ``dblink_error_message``.
        """
        return self.link(connname).error_message()

    # -- dblink's vocabulary: cursors

    def open(
        self,
        cursor: str,
        sql: Statement,
        params: Params | None = None,
        *,
        connname: str | None = None,
        fail_on_error: bool = True,
    ) -> str:
        """Open a cursor on a link; begins a transaction if none is open.

        The :meth:`close` of the last cursor opened in that transaction commits it. A transaction
        that you began (``exec("BEGIN")``) is left to you.

        :param cursor: folded to lower case unless ``"quoted"``.
        :returns: ``OK``; ``ERROR`` after an error with ``fail_on_error=False``: the transaction is
            then aborted, and waits for ``exec("ABORT")``.
        :raises UsageError: as :meth:`query`; 42601 if *cursor* isn't a name.
        :raises RemoteError: what the server says.

        Model: ``dblink_open``.
        """
        link = self.link(connname)
        return link.open(_text("cursor", cursor), _given("sql", sql), params, fail_on_error=fail_on_error)

    def fetch(
        self, cursor: str, howmany: int, *, connname: str | None = None, fail_on_error: bool = True
    ) -> list[Row]:
        """Return the next *howmany* rows of a cursor, fewer at its end.

        :param howmany: rows; 0 reads the current row again, a negative number goes back.
        :raises UsageError: 08003 if no link of that name is open; if *howmany* is no integer.
        :raises RemoteError: 34000 if there is no such cursor.

        Model: ``dblink_fetch``.
        """
        return self.link(connname).fetch(_text("cursor", cursor), howmany, fail_on_error=fail_on_error)

    def close(self, cursor: str, *, connname: str | None = None, fail_on_error: bool = True) -> str:
        """Close a cursor; the last one that :meth:`open` opened commits the transaction it began.

        :returns: ``OK``; ``ERROR`` after an error with ``fail_on_error=False``.
        :raises UsageError: 08003 if no link of that name is open.
        :raises RemoteError: 34000 if there is no such cursor; XX000 ``commit error: ...``.

        Model: ``dblink_close``.
        """
        return self.link(connname).close(_text("cursor", cursor), fail_on_error=fail_on_error)

    def batches(
        self,
        sql: Statement,
        params: Params | None = None,
        *,
        batch_rows: int = 10_000,
        connname: str | None = None,
    ) -> Iterator[list[Row]]:
        """Yield the rows of *sql* in lists, all from one snapshot; memory here is one batch.

        A server-side cursor holds the result. Its transaction, unless you opened one, stays open
        until the iterator is exhausted (then it is committed) or closed (rolled back).

        :param batch_rows: rows per list, at least 1; the last list may be shorter.
        :returns: nothing for an empty result.
        :raises UsageError: as :meth:`query`; if *batch_rows* is below 1.
        :raises TransientError: if the connection is lost. Batches already given stay valid, but to
            go on would be a new snapshot.

        Model: ``dblink_open``, ``dblink_fetch``, ``dblink_close``.
        """
        return self.link(connname).batches(_given("sql", sql), params, batch_rows)


def _task_name() -> str | None:
    """Return what ``pg_stat_activity`` shows for the running task, ``None`` outside of one."""
    from airflow.sdk import get_current_context

    try:
        ti = get_current_context()["ti"]
    except RuntimeError:
        return None
    return application_name(ti.dag_id, ti.task_id, ti.run_id, -1 if ti.map_index is None else ti.map_index)


def _given(argument: str, value: Any) -> Any:
    """Return *value*; dblink's functions are STRICT, and NULL would do nothing, silently."""
    if value is None:
        raise UsageError(f"{argument} must not be None")
    return value


def _text(argument: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{argument} must be text, got {type(value).__name__}")
    return value
