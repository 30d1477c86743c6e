"""DblinkHook: the only place where an Airflow connection becomes a link."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import get_current_context
from airflow.sdk.log import mask_secret

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.jobs.send import KEY, Submission
from airflow_dblink.core.link.link import Link
from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.target import (
    OWN_OPTIONS,
    PSYCOPG_ARGUMENTS,
    SECRETS,
    Target,
    is_conninfo,
    target_from_conninfo,
)
from airflow_dblink.hooks.parts.attach import AttachSide
from airflow_dblink.hooks.parts.dbapi import DbApiSide
from airflow_dblink.hooks.parts.events import EventSide
from airflow_dblink.hooks.parts.functions import given_text
from airflow_dblink.hooks.parts.job_functions import JobVocabulary
from airflow_dblink.hooks.parts.target import TargetSide
from airflow_dblink.hooks.parts.task import report, task_key, task_name


class DblinkHook(TargetSide, AttachSide, EventSide, JobVocabulary, DbApiSide):
    """dblink's vocabulary over Airflow connections of type ``postgres`` or ``dblink``.

    A context manager: leaving it closes all links; leaving it by an exception also cancels their running
    statements. The unnamed link opens by itself, to *dblink_conn_id*, when it is first used.

    Functions about a link itself take ``connname`` first; all others take it last, by keyword.
    ``connname=None`` is the unnamed link. Each wait of a link is reported to Airflow's stats as the timer
    ``DblinkConnect``, ``DblinkGetConnect`` or ``DblinkGetResult``, tagged with ``conn_id``, and to the log at
    debug.

    :param dblink_conn_id: Airflow connection of the unnamed link.
    :param password_required: dblink's credential rule: the credential must come from the Airflow
        connection. ``None``: the connection's setting, else true.
    :param direct_host: address of *dblink_conn_id* that doesn't lead through the pooler.
    :param direct_port: port of that address.
    :param pooling_mode: mode of the pooler before *dblink_conn_id*: ``none``, ``session`` or ``transaction``.
    :param session_settings: run-time parameters for every session of every link, by name.
    :param job_schema: schema of the table of remote jobs, in every database. ``None``: the connection's
        setting, else ``airflow_dblink``.
    :param trusted_owners: roles that may own parts of the job schema in *dblink_conn_id*'s database although
        others may act as them, such as groups.
    :param check: called about ten times a second while a link waits; raises to stop.
    :param kwargs: arguments of :class:`~airflow.providers.postgres.hooks.postgres.PostgresHook`.
    """

    conn_name_attr = "dblink_conn_id"
    default_conn_name = "dblink_default"
    conn_type = "dblink"
    hook_name = "PostgreSQL dblink"
    ignored_extra_options = PostgresHook.ignored_extra_options | OWN_OPTIONS | PSYCOPG_ARGUMENTS

    def __init__(
        self,
        *args: Any,
        password_required: bool | None = None,
        direct_host: str | None = None,
        direct_port: int | None = None,
        pooling_mode: str | None = None,
        session_settings: Mapping[str, Any] | None = None,
        job_schema: str | None = None,
        trusted_owners: Sequence[str] | None = None,
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
            "job_schema": job_schema,
            "trusted_owners": trusted_owners,
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
    def links(self) -> Links:
        """The links of this hook."""
        if self._links is None:
            self._links = Links(application_name=task_name(), check=self._check, observe=report)
        return self._links

    def link(self, connname: str | None = None) -> Link:
        """Return the link; the unnamed link is opened by the first call for it.

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
        """Give the link or, if no link has that name, a connection for this one call."""
        if connname is None or given_text("connname", connname) in self.links:
            yield self.link(connname)
            return
        with self.links.one_shot(self._place(connname)) as link:
            yield link

    def _place(self, conn_id: str) -> Target:
        """Return the target of an Airflow connection's id, a libpq connection string or a URI.

        :raises UsageError: 08001 if it is none of them.
        """
        # A secrets backend must not see a connection string, which may hold a password.
        if conn_id and not is_conninfo(conn_id):
            try:
                return self.target(conn_id)
            except AirflowNotFoundException:
                pass
        try:
            target = target_from_conninfo(conn_id, self._given_options(conn_id))
        except UsageError as error:
            hint = "give host=... dbname=..., or a URI (percent-encode the password's special characters)"
            if not is_conninfo(conn_id):
                hint = f"there is no Airflow connection {conn_id!r} either; {self.links.open_names(conn_id)}"
            raise UsageError(error.message, None, error.sqlstate, error.detail, hint) from None
        for secret in ("password", *SECRETS):
            if value := target.params.get(secret):
                mask_secret(value)
        return target

    def _about(self, name: str | None) -> str:
        """Say whether *name*, which no link has, is an Airflow connection's id."""
        if not name or is_conninfo(name):
            return "open one with connect()"
        try:
            self.get_connection(name)
        except AirflowNotFoundException:
            return f"there is no Airflow connection {name!r} either"
        return f"{name!r} is an Airflow connection: open a link to it with connect()"

    def open_direct(self, conn_id: str) -> LinkConnection:
        """Return a new connection to *conn_id*, in autocommit mode, around a pooler if possible.

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
        """The names of the jobs that the running try of the task has sent, by any hook."""
        try:
            ti = get_current_context()["ti"]
        except RuntimeError:
            return []
        return _sent_names.setdefault((ti.dag_id, ti.task_id, ti.run_id, ti.map_index, ti.try_number), [])

    def submission(self, conn_id: str, name: str | None = None, *, cancels: bool = True) -> Submission:
        """Return the submission of one job of the running task, which sends it once across the task's tries.

        Outside of a task it sends the job at each call.

        :param name: distinguishes the jobs of one task; ``None`` for a task's only job.
        :param cancels: whether a cleared task cancels its running job; otherwise the job is taken over.
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
            task={**task_key(ti), "try_number": ti.try_number},
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
        :param conn_id: an Airflow connection's id or, as in dblink, a libpq connection string or URI. An id
            keeps passwords out of code.
        :returns: ``OK``.
        :raises UsageError: 42710 if a link of that name is open; if a field of the connection is wrong.
        :raises CredentialError: 2F003 unless the credential comes from the Airflow connection and the server
            asked for it.
        :raises TransientError: 08001 if the server can't be reached, or refuses.

        Model: ``dblink_connect``.
        """
        return self._open_link(connname, conn_id, own_identity=False)

    def connect_u(self, connname: str | None, conn_id: str) -> str:
        """Open a link as :meth:`connect` does, but allow the worker's own identity.

        That is its OS user, ``.pgpass``, ``PGPASSWORD`` and service files.

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
            self.links.demand_new_name(connname)  # of two mistakes dblink reports this one
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

        Model: ``dblink_get_connections``, which returns NULL instead of an empty list.
        """
        return self.links.names()


# Keyed by try; each process runs one try.
_sent_names: dict[tuple[object, ...], list[str]] = {}


class _NoStore:
    """A store that keeps nothing: outside of a task there is no next try."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return *default*."""
        return default

    def set(self, key: str, value: Any) -> None:
        """Do nothing."""
