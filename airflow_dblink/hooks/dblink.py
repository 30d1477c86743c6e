"""DblinkHook: the only place where an Airflow connection becomes a link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, Connection
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import get_current_context
from airflow.sdk.log import mask_secret

from airflow_dblink.core.connection import LinkConnection, connect
from airflow_dblink.core.conninfo import (
    OWN_OPTIONS,
    Target,
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
from airflow_dblink.hooks.attach import AttachSide
from airflow_dblink.hooks.dbapi import DbApiSide
from airflow_dblink.hooks.task import report, task_name

# Of PostgresHook and what it is made from.
_PASSED_ON = {
    *("connection", "database", "options", "schema", "sqlalchemy_scheme"),
    *("enable_log_db_messages", "log_sql"),
    *("escape_column_names", "escape_word_format", "insert_statement_format", "replace_statement_format"),
}
# The others say where the hook's own connection leads.
_OF_EVERY_LINK = ("password_required", "session_settings", "job_schema")


class DblinkHook(AttachSide, JobVocabulary, DbApiSide):
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
        self._submissions: list[Submission] = []
        self._links: Links | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.links.close_all()
            for submission in self._submissions:
                submission.finish()
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
            self._links = Links(application_name=task_name(), check=self._check, observe=report)
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
        :raises AirflowNotFoundException: if no secrets backend gives *conn_id*, which Airflow also says
            while one that has it is away: a retry may help.
        """
        conn_id = self.conn_id if conn_id is None else conn_id
        with _what_to_do(conn_id):
            connection = BaseHook.get_connection(conn_id)
        return self._target(conn_id, connection)

    async def atarget(self, conn_id: str | None = None) -> Target:
        """Return the same as :meth:`target`, asked for without blocking; for triggers."""
        conn_id = self.conn_id if conn_id is None else conn_id
        with _what_to_do(conn_id):
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
        return target_from_extra(conn_id, params, extra, self._given_options(conn_id))

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
            application_name=task_name(),
            check=self._check,
            observe=report,
            event="DblinkGetConnect",
            direct=True,
        )

    @property
    def _sent_names(self) -> list[str]:
        """The names of the jobs that the running try of the task has sent, by whichever hook."""
        try:
            ti = get_current_context()["ti"]
        except RuntimeError:
            return []
        return _sent_names.setdefault((ti.dag_id, ti.task_id, ti.run_id, ti.map_index, ti.try_number), [])

    def submission(self, conn_id: str, name: str | None = None, *, cancels: bool = True) -> Submission:
        """Return what sends a job of the running task, once across its tries; outside of a task, once.

        :param name: tells jobs of one task apart; ``None`` for a task's only one.
        :param cancels: cancel a job that still goes on when its task had ended and is cleared.
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
            cancels=cancels,
        )

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


@contextmanager
def _what_to_do(conn_id: str) -> Iterator[None]:
    """Add to Airflow's error what helps, and leave its type: whether a retry helps can't be told from it."""
    try:
        yield
    except AirflowNotFoundException as error:
        variable = f"AIRFLOW_CONN_{conn_id.upper()}"
        raise AirflowNotFoundException(
            f"{error}: create it under Admin > Connections, or set {variable}; if it is there, look whether"
            " the secrets backend that has it answers"
        ) from None


# By try; a process runs one.
_sent_names: dict[tuple[object, ...], list[str]] = {}


class _NoStore:
    """What keeps nothing: outside of a task there is no next try."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return *default*."""
        return default

    def set(self, key: str, value: Any) -> None:
        """Do nothing."""
