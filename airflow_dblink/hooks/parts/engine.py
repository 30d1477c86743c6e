"""The hook's side for users of SQLAlchemy: a URL, and engines that connect under the credential rule."""

from __future__ import annotations

import os
import socket
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import replace
from threading import Event, Timer
from typing import TYPE_CHECKING, Any

from airflow.providers.postgres.hooks.postgres import PostgresHook
from psycopg.conninfo import conninfo_to_dict

from airflow_dblink.core.errors import UsageError, context_line, kind_of
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.credentials import (
    demand_credential,
    demand_used_credential,
    demanding,
    is_certificate_unasked,
    not_asked_for,
)
from airflow_dblink.core.server.login import SETTING, settings_patience_s, settings_unanswered
from airflow_dblink.core.server.settings import set_config
from airflow_dblink.core.server.target import PSYCOPG_ARGUMENTS, SECRETS, Target
from airflow_dblink.hooks.parts.task import task_name

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Dialect, Engine

# SQLAlchemy's drivers that use libpq, and take its parameters. "" is the driver that SQLAlchemy chooses.
_OF_LIBPQ = ("", "psycopg", "psycopg_async", "psycopg2", "psycopg2cffi")
# Parameters of libpq without which a driver reaches the same server, and just as safely.
_DISPENSABLE = ("application_name", "fallback_application_name", "connect_timeout", "client_encoding")
_DISPENSABLE_VALUES = {
    "sslmode": ("disable", "allow", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "channel_binding": ("disable", "prefer"),
    "target_session_attrs": ("any",),
    "load_balance_hosts": ("disable", "random"),
}


class EngineSide(PostgresHook):
    """SQLAlchemy's URL and engines; :class:`DblinkHook` finds the connections."""

    #: Whether :attr:`sqlalchemy_url` is for an engine, which applies the credential rule when it connects.
    _rule_holds_later = False

    @abstractmethod
    def target(self, conn_id: str | None = None) -> Target:
        """Return the target of *conn_id*."""

    @property
    @abstractmethod
    def conn_id(self) -> str:
        """Airflow connection of the unnamed link."""

    @abstractmethod
    def _new_connection(self, target: Target, arguments: Mapping[str, Any] | None = None) -> LinkConnection:
        """Return a new connection to *target*; *arguments* are psycopg's own."""

    @property
    def sqlalchemy_url(self) -> URL:
        """The URL for SQLAlchemy, with every libpq option of the connection that its driver takes.

        Its query holds several hosts, and sockets. The URL leaves out ``sslpassword`` and
        ``oauth_client_secret``, so that its text in a log shows no secret: SQLAlchemy masks only the
        password. :meth:`get_uri` and the hook's engines have them.

        :raises CredentialError: 2F003 if the connection brings no credential; see :meth:`connect`.
        :raises UsageError: if the driver doesn't use libpq, and would ignore a parameter that matters.
        """
        from sqlalchemy.engine import URL

        target = self.target()
        if not self._rule_holds_later:
            demand_credential(target, own_identity=False)
        params = {k: str(v) for k, v in target.params.items() if v not in (None, "")}
        user, password = params.pop("user", None), params.pop("password", None)
        database = params.pop("dbname", None)
        more = self._sqlalchemy_query()
        host, port = params.pop("host", None), params.pop("port", None)
        where: dict[str, str] = {}
        if not _is_one_host(host) or "," in (port or ""):
            where = {"host": host} if host else {}
            if port:  # as in libpq, one port is meant for all hosts
                hosts = (host or "").count(",") + 1
                where["port"] = port if "," in port else ",".join([port] * hosts)
            host = port = None
        scheme = self.sqlalchemy_scheme
        if _driver_of(scheme) not in _OF_LIBPQ:
            self._leave_out(scheme, params, more)
            params = {}
        query = {k: v for k, v in {**where, **params, **more}.items() if k not in SECRETS}
        return URL.create(
            scheme,
            username=user,
            password=password,
            host=host,
            port=int(port) if port else None,
            database=database,
            query=query,
        )

    def _sqlalchemy_query(self) -> Mapping[str, Any]:
        more = self.connection.extra_dejson.get("sqlalchemy_query") or {}
        if not isinstance(more, Mapping):
            raise UsageError("field 'sqlalchemy_query' of the connection must be an object", self.conn_id)
        return more

    def _leave_out(self, scheme: str, params: Mapping[str, str], more: Mapping[str, Any]) -> None:
        """Log the libpq parameters that the driver of *scheme* won't get; raise if one of them matters."""
        says_tls = any(name.startswith("ssl") for name in more)
        matters = [
            name
            for name, value in params.items()
            if name not in _DISPENSABLE
            and not name.startswith(("keepalives", "tcp_"))
            and value not in _DISPENSABLE_VALUES.get(name, ())
            and not (says_tls and name.startswith("ssl"))
        ]
        if matters:
            raise UsageError(
                f"field {sorted(matters)[0]!r} of the connection is libpq's, which {scheme!r} doesn't use",
                self.conn_id,
                hint="set the driver's own parameter for it in the field 'sqlalchemy_query'"
                " (TLS: a name that begins with ssl), or use postgresql+psycopg",
            )
        if params:
            self.log.warning("%s gets none of these parameters: %s", scheme, ", ".join(sorted(params)))

    def get_uri(self) -> str:
        """Return :attr:`sqlalchemy_url` as text, with all secrets.

        :raises CredentialError, UsageError: as :attr:`sqlalchemy_url`.
        """
        url = self.sqlalchemy_url
        if _driver_of(url.drivername) in _OF_LIBPQ:
            url = url.update_query_dict(self._secrets(self.target()))
        return url.render_as_string(hide_password=False)

    def get_sqlalchemy_engine(self, engine_kwargs: dict[str, Any] | None = None) -> Engine:
        """Return an engine as PostgresHook does, with the connection's session settings.

        The credential rule is applied when the engine connects, to the final parameters: those of the
        connection, ``sqlalchemy_query``, ``connect_args`` and listeners to ``do_connect`` together. Only
        drivers that use libpq (psycopg, psycopg2) show whether the server asked for the credential. The rule
        isn't applied to connections that somebody else makes: a ``creator``, a ``pool``, or a listener to
        ``do_connect`` that returns a connection.

        With drivers that use libpq, ``connect_timeout`` also limits the wait for the session settings, as in
        :meth:`connect`.

        :param engine_kwargs: arguments of :func:`sqlalchemy.create_engine`.
        :raises UsageError: as :attr:`sqlalchemy_url`.
        """
        maker = copy(self)
        maker._rule_holds_later = True
        engine = super(EngineSide, maker).get_sqlalchemy_engine(engine_kwargs)
        dialect = engine.dialect
        drivers_own = dialect.connect
        password = engine.url.password

        def target_of(cparams: dict[str, Any]) -> Target:
            target = self.target()  # with a new token, if it has one
            if password is not None and cparams.get("password") == password:
                cparams["password"] = target.params.get("password")
            return target

        def connect_with_psycopg(*cargs: Any, **cparams: Any) -> Any:
            target = target_of(cparams)
            arguments = {name: cparams.pop(name) for name in PSYCOPG_ARGUMENTS.intersection(cparams)}
            return self._new_connection(_merged(target, cargs, cparams), arguments)

        def connect_with_another(*cargs: Any, **cparams: Any) -> Any:
            return self._connect_by(dialect, drivers_own, target_of(cparams), cargs, cparams)

        # Not a creator: SQLAlchemy would then leave out query, connect_args and listeners, silently.
        is_psycopg = dialect.driver == "psycopg" and not dialect.is_async
        dialect.connect = connect_with_psycopg if is_psycopg else connect_with_another  # type: ignore[method-assign]
        return engine

    def _connect_by(
        self, dialect: Dialect, connect: Any, target: Target, cargs: tuple[Any, ...], cparams: dict[str, Any]
    ) -> Any:
        """Return a connection of a driver that isn't psycopg, by its own *connect*, under the rule."""
        if dialect.driver in _OF_LIBPQ:
            name = task_name()
            cparams = {**self._secrets(target), **({"application_name": name} if name else {}), **cparams}
        merged = _merged(target, cargs, cparams)
        if target.session_settings and target.pooling_mode == "transaction":
            raise UsageError(
                "session_settings do not survive a pooler in transaction mode",
                self.conn_id,
                hint="use postgresql+psycopg with direct_host or direct_port in the connection",
            )
        free = demand_credential(merged, own_identity=False)
        if not free and dialect.driver in _OF_LIBPQ:
            merged = demanding(merged)
            if mode := merged.params.get("sslcertmode"):
                cparams["sslcertmode"] = mode
        connection = _connected(merged, connect, *cargs, **cparams)
        try:
            if not free:
                _check_used(merged, connection)
            if target.session_settings:
                _apply_settings(merged, connection, dialect.loaded_dbapi)
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _secrets(target: Target) -> dict[str, str]:
        return {name: str(target.params[name]) for name in SECRETS if target.params.get(name)}


def _is_one_host(host: str | None) -> bool:
    """Return whether *host* can stand in a URL's authority: no list, and no directory of sockets."""
    return host is None or not ("," in host or host.startswith(("/", "@")))


def _driver_of(scheme: str) -> str:
    return scheme.partition("+")[2]


def _merged(target: Target, cargs: tuple[Any, ...], cparams: Mapping[str, Any]) -> Target:
    """Return *target* with the parameters that SQLAlchemy would hand to the driver, instead of its own."""
    given = {**(conninfo_to_dict(cargs[0]) if cargs else {}), **cparams}
    secrets = {name: value for name, value in target.params.items() if name in SECRETS}
    return replace(target, params={**secrets, **given})


def _connected(target: Target, connect: Any, *cargs: Any, **cparams: Any) -> Any:
    """Return a driver's connection.

    :raises CredentialError: 2F003 if the server didn't ask for the client certificate.
    """
    try:
        return connect(*cargs, **cparams)
    except Exception as error:
        if is_certificate_unasked(target, str(error)):
            raise not_asked_for(target) from None
        raise


def _check_used(target: Target, connection: Any) -> None:
    """Raise unless the server asked for the credential, if the driver shows that."""
    theirs = getattr(connection, "driver_connection", connection)
    pgconn = getattr(theirs, "pgconn", None)
    if pgconn is None:
        pgconn = getattr(theirs, "info", None)  # psycopg2's
    if hasattr(pgconn, "used_password"):
        demand_used_credential(target, pgconn)


def _apply_settings(target: Target, connection: Any, dbapi: Any) -> None:
    """Apply ``session_settings`` by the driver *dbapi*, with the same time limit as for the login.

    :raises RemoteError: the server's errors.
    :raises OperationalError: the driver's error, which SQLAlchemy wraps, if the server doesn't answer.
    """
    statement = set_config(target.session_settings.items(), local=False).as_string(None)
    with _ended_after(settings_patience_s(target), connection) as is_over:
        try:
            cursor = connection.cursor()
            cursor.execute(statement)
            cursor.close()
            connection.commit()
        except dbapi.Error as error:
            if is_over.is_set():
                raise dbapi.OperationalError(str(settings_unanswered(target))) from None
            sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "08006"
            where = context_line(SETTING, target.conn_id)
            raise kind_of(sqlstate)(str(error).strip(), target.conn_id, sqlstate, context=where) from None


@contextmanager
def _ended_after(seconds: float, connection: Any) -> Iterator[Event]:
    """Shut *connection*'s socket if the block takes longer: psycopg2 waits for a silent server without end.

    Drivers that don't show their socket are left alone. They have limits of their own, or an event loop's.
    """
    is_over = Event()
    theirs = getattr(connection, "driver_connection", connection)
    if not hasattr(theirs, "fileno"):
        yield is_over
        return

    def end() -> None:
        is_over.set()
        with suppress(OSError):  # it has just ended by itself
            shared.shutdown(socket.SHUT_RDWR)

    with socket.socket(fileno=os.dup(theirs.fileno())) as shared:
        timer = Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield is_over
        finally:
            timer.cancel()
