"""DblinkHook: the only place where an Airflow connection becomes a link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, Connection
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import get_current_context
from airflow.sdk.log import mask_secret
from airflow.sdk.observability.stats import normalize_name_for_stats, timing
from psycopg.types.json import Json

from airflow_dblink.core.connection import LinkConnection, check_credential, connect
from airflow_dblink.core.conninfo import (
    OWN_OPTIONS,
    Target,
    application_name,
    is_conninfo,
    is_libpq_option,
    target_from_conninfo,
    target_from_extra,
)
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.jobs.send import KEY, Submission
from airflow_dblink.core.jobs.vocabulary import JobVocabulary
from airflow_dblink.core.link import Link
from airflow_dblink.core.links import Links
from airflow_dblink.core.vocabulary import given_text
from airflow_dblink.core.waits import WaitEvent

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine


# Of PostgresHook and what it is made from.
_PASSED_ON = {
    *("connection", "database", "options", "schema", "sqlalchemy_scheme"),
    *("enable_log_db_messages", "log_sql"),
    *("escape_column_names", "escape_word_format", "insert_statement_format", "replace_statement_format"),
}
# The others say where the hook's own connection leads.
_OF_EVERY_LINK = ("password_required", "session_settings", "job_schema")


class DblinkHook(JobVocabulary, PostgresHook):
    """dblink's vocabulary over Airflow connections of type ``postgres`` or ``dblink``.

    A context manager: leaving it closes all links, and cancels what still runs when it is left
    by an exception. The unnamed link opens by itself, to *dblink_conn_id*, when first used.

    Functions of one link take ``connname`` first; all others take it last, by keyword.
    ``connname=None`` is the unnamed link. What a link waits for is reported to Airflow's stats as
    the timers ``DblinkConnect``, ``DblinkGetConnect`` and ``DblinkGetResult``, tagged with
    ``conn_id``, and to the log at debug.

    :param dblink_conn_id: Airflow connection of the unnamed link.
    :param password_required: dblink's credential rule: the credential must come from the Airflow
        connection. ``None``: what the connection says, else true.
    :param direct_host: of *dblink_conn_id*: address that doesn't lead through the pooler.
    :param direct_port: port of that address.
    :param pooling_mode: of *dblink_conn_id*: ``none``, ``session`` or ``transaction``, the pooler's mode.
    :param session_settings: run-time parameters for every session of every link, by name.
    :param job_schema: schema of the table of remote jobs, in every database: ``airflow_dblink``.
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
        job_schema: str | None = None,
        check: Callable[[], None] | None = None,
        **kwargs: Any,
    ) -> None:
        # The base would drop them. Airflow's own SQL operators pass on what the connection's Extra has.
        known = _PASSED_ON | self.ignored_extra_options | {self.conn_name_attr}
        if unknown := sorted(name for name in kwargs if name not in known and not is_libpq_option(name)):
            raise TypeError(
                f"DblinkHook takes no {', '.join(unknown)}; the connection is dblink_conn_id, and run-time"
                " parameters such as statement_timeout are session_settings"
            )
        database = kwargs.pop("schema", None)  # DbApiHook's word
        super().__init__(*args, **kwargs)
        self.database = self.database or database
        self._own = {
            "password_required": password_required,
            "direct_host": direct_host,
            "direct_port": direct_port,
            "pooling_mode": pooling_mode,
            "session_settings": session_settings,
            "job_schema": job_schema,
        }
        self._check = check
        self._sent_names = []
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
    def schema(self) -> str | None:
        """The database, where it isn't the connection's: stock operators set it by this name."""
        return self.database

    @schema.setter
    def schema(self, database: str | None) -> None:
        self.database = database

    @property
    def links(self) -> Links:
        """The links of this hook."""
        if self._links is None:
            self._links = Links(application_name=_task_name(), check=self._check, observe=_report)
        return self._links

    def link(self, connname: str | None = None) -> Link:
        """Return the link; the unnamed one is opened when first asked for.

        :raises UsageError: 08003 if no link of that name is open.
        """
        if connname is None and None not in self.links:
            self.links.connect(None, self.target())
        if connname is not None:
            given_text("connname", connname)
        if connname not in self.links:
            raise self.links.not_available(connname, self._about(connname))
        return self.links.get(connname)

    @contextmanager
    def _reach(self, connname: str | None) -> Iterator[Link]:
        """Give the link or, where no link has that name, a connection for this one call."""
        if connname is None or given_text("connname", connname) in self.links:
            yield self.link(connname)
            return
        with self.links.one_shot(self._place(connname)) as link:
            yield link

    def _place(self, conn_id: str) -> Target:
        """Return what an Airflow connection's id, a libpq connection string or a URI leads to.

        :raises UsageError: 08001 if it is none of them.
        """
        # A string with a password is not for the connection store to see.
        if conn_id and not is_conninfo(conn_id):
            try:
                return self.target(conn_id)
            except AirflowNotFoundException:
                pass
        try:
            target = target_from_conninfo(conn_id, self._given_options(conn_id))
        except UsageError as error:
            hint = "give host=... dbname=..., or a URI (percent-encode what is special in the password)"
            if not is_conninfo(conn_id):
                hint = f"there is no Airflow connection {conn_id!r} either; {self.links.open_names()}"
            raise UsageError(error.message, None, error.sqlstate, error.detail, hint) from None
        for secret in ("password", "sslpassword", "oauth_client_secret"):
            if value := target.params.get(secret):
                mask_secret(value)
        return target

    def _about(self, name: str | None) -> str:
        """Say whether *name*, which no link has, is an Airflow connection's id."""
        if not name or is_conninfo(name):
            return "open one with connect()"
        try:
            BaseHook.get_connection(name)
        except AirflowNotFoundException:
            return f"there is no Airflow connection {name!r} either"
        return f"{name!r} is an Airflow connection: open a link to it with connect()"

    def target(self, conn_id: str | None = None) -> Target:
        """Return where and how *conn_id* connects (default: the hook's connection).

        :raises UsageError: names the field of the connection whose value is wrong.
        :raises AirflowNotFoundException: if no secrets backend knows *conn_id*.
        """
        conn_id = self.conn_id if conn_id is None else conn_id
        return self._target(conn_id, BaseHook.get_connection(conn_id))

    async def atarget(self, conn_id: str | None = None) -> Target:
        """Return the same as :meth:`target`, asked for without blocking; for triggers."""
        conn_id = self.conn_id if conn_id is None else conn_id
        connection = await BaseHook.aget_connection(conn_id)
        if connection.extra_dejson.get("iam", False):  # asks a cloud for a token, and blocks
            return await asyncio.to_thread(self._target, conn_id, connection)
        return self._target(conn_id, connection)

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
        if self.options and conn_id == self.conn_id:
            params["options"] = self.options
        return target_from_extra(conn_id, params, {**extra, **self._given_options(conn_id)})

    def _given_options(self, conn_id: str) -> dict[str, Any]:
        """Our own options as the constructor got them, which come before a connection's.

        An address is only the hook's own connection's.
        """
        return {
            name: value
            for name, value in self._own.items()
            if value is not None and (conn_id == self.conn_id or name in _OF_EVERY_LINK)
        }

    def open_direct(self, conn_id: str) -> LinkConnection:
        """Return a new connection to *conn_id*, in autocommit mode, around a pooler where that can be.

        For jobs; the caller closes it.

        :raises CredentialError, UsageError, TransientError: as :meth:`connect`.
        """
        return connect(
            self.target(conn_id),
            application_name=_task_name(),
            check=self._check,
            observe=_report,
            event="DblinkGetConnect",
            direct=True,
        )

    def submission(self, conn_id: str, name: str | None = None) -> Submission:
        """Return what sends a job of the running task, once across its tries; outside of a task, once.

        :param name: tells jobs of one task apart; ``None`` for a task's only one.
        """
        schema = self.target(conn_id).job_schema
        try:
            context = get_current_context()
        except RuntimeError:
            return Submission(conn_id, schema, lambda: self.open_direct(conn_id), _NoStore())
        ti = context["ti"]
        return Submission(
            conn_id,
            schema,
            lambda: self.open_direct(conn_id),
            context["task_state_store"],
            task={
                "dag_id": ti.dag_id,
                "task_id": ti.task_id,
                "run_id": ti.run_id,
                "map_index": -1 if ti.map_index is None else ti.map_index,
                "try_number": ti.try_number,
            },
            key=KEY if name is None else f"{KEY}_{name}",
            # Clearing a finished task raises max_tries: retries within one life don't.
            life=ti.max_tries,
        )

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
            application_name=_task_name(),
            row_factory=row_factory,
            autocommit=False,
            check=self._check,
            observe=_report,
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

    # -- dblink's vocabulary: connections

    def connect(self, connname: str | None, conn_id: str) -> str:
        """Open a link named *connname* to the Airflow connection *conn_id*.

        :param connname: any text; cut to 63 bytes with a warning. ``None``: the unnamed link, which
            is replaced after the new one is open.
        :param conn_id: an Airflow connection's id or, as dblink has it, a libpq connection string
            or URI. The former keeps passwords out of code.
        :returns: ``OK``.
        :raises UsageError: 42710 if a link of that name is open; or a field of the connection is wrong.
        :raises CredentialError: 2F003 unless the credential comes from the Airflow connection and
            was asked for by the server.
        :raises TransientError: 08001 where the server can't be reached or refuses.

        Model: ``dblink_connect``.
        """
        return self._open_link(connname, conn_id, own_identity=False)

    def connect_u(self, connname: str | None, conn_id: str) -> str:
        """Open a link as :meth:`connect` does, where the worker's own identity may be used.

        Its OS user, ``.pgpass``, ``PGPASSWORD`` and service files then count.

        :returns: ``OK``.
        :raises UsageError: as :meth:`connect`.
        :raises TransientError: as :meth:`connect`.

        Model: ``dblink_connect_u``.
        """
        return self._open_link(connname, conn_id, own_identity=True)

    def _open_link(self, connname: str | None, conn_id: str, *, own_identity: bool) -> str:
        if connname is not None:
            given_text("connname", connname)
        try:
            target = self._place(given_text("conn_id", conn_id))
        except UsageError:
            self.links.refuse_duplicate(connname)  # of the two mistakes dblink tells this one
            raise
        return self.links.connect(connname, target, own_identity=own_identity)

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


class _NoStore:
    """What keeps nothing: outside of a task there is no next try."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return *default*."""
        return default

    def set(self, key: str, value: Any) -> None:
        """Do nothing."""


def _task_name() -> str | None:
    """Return what ``pg_stat_activity`` shows for the running task, ``None`` outside of one."""
    try:
        ti = get_current_context()["ti"]
    except RuntimeError:
        return None
    return application_name(ti.dag_id, ti.task_id, ti.run_id, -1 if ti.map_index is None else ti.map_index)


def _report(event: WaitEvent, conn_id: str, seconds: float) -> None:
    """Tell Airflow's stats of a wait."""
    tag = normalize_name_for_stats(conn_id, log_warning=False)  # "host:5432/db" would break StatsD's lines
    timing(event, timedelta(seconds=seconds), tags={"conn_id": tag})
