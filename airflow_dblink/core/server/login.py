"""From a target to an open connection, under dblink's credential rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import BaseConnection, pq
from psycopg import waiting as psycopg_waiting
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.rows import TupleRow

from airflow_dblink.core.errors import ConnectError, context_line, from_psycopg
from airflow_dblink.core.server import text_styles as styles
from airflow_dblink.core.server.connection import (
    Allowance,
    Check,
    LinkConnection,
    meanwhile,
    patience,
    watched,
)
from airflow_dblink.core.server.credentials import (
    demand_credential,
    demand_used_credential,
    demanding,
)
from airflow_dblink.core.server.prepared import let_prepare
from airflow_dblink.core.server.settings import set_config
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.server.unreachable import not_established
from airflow_dblink.core.server.wait_events import Observe, WaitEvent, waiting

_LOOK_S = 0.1


def connect(
    target: Target,
    *,
    application_name: str | None = None,
    own_identity: bool = False,
    check: Check | None = None,
    observe: Observe | None = None,
    event: WaitEvent = "DblinkConnect",
    arguments: Mapping[str, Any] | None = None,
    autocommit: bool = True,
    direct: bool = False,
    most_bytes: int | None = None,
    keeps_encoding: bool = False,
    prepares: bool = False,
) -> LinkConnection:
    """Return an open connection to *target*.

    Unless *own_identity* is true (or ``password_required=false`` in the connection), the credential
    must come from the Airflow connection and must have been used. So nobody can use
    the worker's own identity: its OS user, ``.pgpass``, ``PGPASSWORD``, service files.

    :param application_name: name for ``pg_stat_activity``, at most 63 bytes.
    :param own_identity: as ``dblink_connect_u``: the worker's own identity may be used.
    :param check: called about ten times a second while waiting, also for the login; raises to stop.
    :param observe: called after every wait.
    :param event: the wait event of connecting.
    :param arguments: psycopg's own arguments, such as ``row_factory``; without *autocommit*.
    :param direct: go around the pooler, if the target has an address for that.
    :param most_bytes: limit for the bytes that the server may send; ``None``: no limit.
    :param keeps_encoding: use the connection's ``client_encoding``, if it has one; otherwise UTF8.
    :param prepares: prepare repeated statements, unless a pooler that shares sessions is in between;
        ``prepare_threshold``, of the connection or of *arguments*, and ``cursor_factory`` override it.
    :raises CredentialError: 2F003, under dblink's rule.
    :raises UsageError: for a parameter that libpq doesn't know, or session settings through a
        transaction pooler without a direct address.
    :raises ConnectError: 08001 if the server can't be reached, refuses, or doesn't answer within
        the connection's ``connect_timeout`` (default 130 s), which limits the login at each host, and again
        the session settings. It is a :class:`~airflow_dblink.core.errors.TransientError`, and psycopg's
        ``OperationalError``.

    Source: ``dblink_connstr_check`` and ``dblink_security_check`` of contrib/dblink.
    """
    free = demand_credential(target, own_identity=own_identity)
    target = target if free else demanding(target)
    direct = direct or target.needs_direct_address()
    given = {**{k: v for k, v in target.psycopg.items() if k == "prepare_threshold"}, **(arguments or {})}
    allowance = None if most_bytes is None else Allowance(most_bytes)
    how = {"application_name": application_name, "direct": direct, "keeps_encoding": keeps_encoding}
    with waiting(event, target.conn_id, observe):
        connection = _logged_in(target, how, given, check, allowance)
    _make_ready(target, connection, free=free, autocommit=autocommit)
    if prepares and not {"prepare_threshold", "cursor_factory"}.intersection(given):
        let_prepare(target, connection, direct=direct)
    connection.observe = observe
    return connection


def _logged_in(
    target: Target,
    how: Mapping[str, Any],
    arguments: Mapping[str, Any],
    check: Check | None,
    allowance: Allowance | None,
) -> LinkConnection:
    """Return a connection that is logged in; *how* is for :meth:`Target.conninfo`, *arguments* psycopg's."""
    before = meanwhile.set((check, allowance))
    try:
        # Prepared statements break behind transaction poolers.
        arguments = {"prepare_threshold": None, **arguments, "autocommit": True}
        connection = LinkConnection.connect(target.conninfo(**how), **arguments)
    except psycopg.Error as error:
        raise not_established(target, error.with_traceback(None)) from None
    except BaseException as error:  # noqa: BLE001 - raised again, without the frames that hold the password
        raise error.with_traceback(None)  # noqa: B904
    finally:
        meanwhile.reset(before)
    connection.check, connection.allowance = check, allowance
    return connection


def _make_ready(target: Target, connection: LinkConnection, *, free: bool, autocommit: bool) -> None:
    """Check the credential that was used, and set the session up for *target*; close it if that fails."""
    try:
        if not free:
            demand_used_credential(target, connection.pgconn)
        if target.session_settings:
            connection.wait(_apply_settings(target, connection))
        if not autocommit:
            connection.autocommit = False
    except BaseException:
        connection.close()
        raise
    styles.register(connection)
    connection.target = target


async def aconnect(
    target: Target, *, application_name: str | None = None, direct: bool = False
) -> psycopg.AsyncConnection[TupleRow]:
    """Return an open connection to *target* as :func:`connect` does, for an event loop.

    :raises CredentialError, UsageError, ConnectError: as :func:`connect`.
    """
    free = demand_credential(target, own_identity=False)
    target = target if free else demanding(target)
    direct = direct or target.needs_direct_address()
    try:
        connection = await psycopg.AsyncConnection.connect(
            target.conninfo(application_name=application_name, direct=direct),
            autocommit=True,
            prepare_threshold=None,
        )
    except psycopg.Error as error:
        raise not_established(target, error.with_traceback(None)) from None
    except BaseException as error:  # noqa: BLE001 - raised again, without the frames that hold the password
        raise error.with_traceback(None)  # noqa: B904
    try:
        if not free:
            demand_used_credential(target, connection.pgconn)
        if target.session_settings:
            # Not the connection's own wait, which, when cancelled, would wait for the server once more.
            settings = _apply_settings(target, connection)
            await psycopg_waiting.wait_async(settings, connection.pgconn.socket, _LOOK_S)
    except BaseException:
        await connection.close()
        raise
    return connection


def _apply_settings(target: Target, connection: BaseConnection[Any]) -> PQGen[None]:
    """Apply ``session_settings``, with the same time limit as for the login.

    :raises RemoteError: the server's errors.
    :raises ConnectError: 08001 if the server doesn't answer within ``connect_timeout`` seconds.
    """
    pgconn = connection.pgconn
    statement = set_config(target.session_settings.items(), local=False)
    try:
        pgconn.send_query(statement.as_bytes(connection))
        results = yield from watched(execute(pgconn), patience(settings_patience_s(target)))
        if results[-1].status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(results[-1], encoding=connection.info.encoding)
    except psycopg.Error as error:
        raise from_psycopg(error, target.conn_id, SETTING) from None
    except TimeoutError:
        raise settings_unanswered(target) from None


def settings_patience_s(target: Target) -> int:
    """Return the time limit for ``session_settings``, in seconds: ``connect_timeout``, as for the login."""
    value = target.params.get("connect_timeout")
    given = {} if value is None or value == "" else {"connect_timeout": str(value)}
    return timeout_from_conninfo(conninfo_to_dict(**given))


def settings_unanswered(target: Target) -> ConnectError:
    """Return the error for a server that doesn't answer to ``session_settings`` in time."""
    return ConnectError(
        f"the server let us in, but did not answer within {settings_patience_s(target)} s",
        target.conn_id,
        "08001",
        hint="is it, or the pooler before it, out of sessions? connect_timeout in Extra is the limit",
        context=context_line(SETTING, target.conn_id),
    )


#: The action of an error's context while ``session_settings`` are applied.
SETTING = "applying session_settings"
