"""From a target to an open connection, under dblink's credential rule."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Self, TypeVar

import psycopg
from psycopg import BaseConnection, pq, sql
from psycopg import waiting as psycopg_waiting
from psycopg.abc import PQGen, PQGenConn
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo
from psycopg.errors import error_from_result
from psycopg.generators import execute, fetch
from psycopg.rows import TupleRow

from airflow_dblink.core.errors import (
    ConnectError,
    DblinkError,
    TransientError,
    UsageError,
    context_line,
    from_psycopg,
)
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server import text_styles as styles
from airflow_dblink.core.server.allowance import Allowance, FloodError
from airflow_dblink.core.server.credentials import (
    check_credential,
    check_used_credential,
    demanding,
    is_certificate_unasked,
    not_asked_for,
)
from airflow_dblink.core.server.prepared import let_prepare
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.server.wait_events import Observe, WaitEvent, waiting

log = logging.getLogger(__name__)

RV = TypeVar("RV")
Check = Callable[[], None]

_CANCEL_S = 2.0  # of each of two; Airflow's supervisor follows SIGTERM with SIGKILL after 5 s
_CANCEL_AGAIN_S = 0.1
_LOOK_S = 0.1
#: What is done with ``session_settings``, in the context of an error.
SETTING = "applying session_settings"
COPY = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)

# What :func:`connect` is to ask and to count meanwhile: psycopg has no argument for them.
_meanwhile: ContextVar[tuple[Check | None, Allowance | None]] = ContextVar("_meanwhile", default=(None, None))


class LinkConnection(psycopg.Connection[TupleRow]):
    """A psycopg connection that asks, whenever it waits, whether it should stop.

    psycopg looks up ten times a second while it waits for the server; *check* is called then
    and may raise. The statement goes on running on the server until :meth:`abort`.
    """

    check: Check | None = None
    observe: Observe | None = None
    allowance: Allowance | None = None
    #: Whether statements may be prepared is still to be found out, after so many queries.
    undecided = False
    queries = 0
    #: Abort when a time-out or a kill ends a wait for what the server works on; set where nobody else will.
    abort_when_stopped = False
    #: Of the target; see :mod:`airflow_dblink.core.jobs.trust`.
    trusted_owners: Sequence[str] = ()

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **kwargs: Any) -> PQGenConn[Self]:
        """Log in at one host, asking meanwhile what :func:`connect` was given."""
        check, allowance = _meanwhile.get()
        gen = super()._connect_gen(conninfo, **kwargs)  # before psycopg 3.3.6 it takes the timeout
        if allowance is not None:
            gen = allowance.counted(gen)
        return gen if check is None else watched(gen, check)

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Consume *gen* as psycopg does, asking *check* in between."""
        try:
            # Passed on as they come: psycopg 3.3 got another argument on the way.
            counted = self._counted(gen)
            return super().wait(watched(counted, self.check) if self.check else counted, *args, **kwargs)
        except psycopg.Error:
            raise
        except BaseException as error:
            if self.abort_when_stopped and self._is_working:
                # A value that can't be adapted, a row factory that raises: it came out of *gen*.
                is_callers = isinstance(error, Exception) and getattr(gen, "gi_frame", None) is None
                self._after_mistake() if is_callers else self.abort()
            raise

    def _counted(self, gen: PQGen[RV]) -> PQGen[RV]:
        return gen if self.allowance is None else self._within(self.allowance, gen)

    def _within(self, allowance: Allowance, gen: PQGen[RV]) -> PQGen[RV]:
        try:
            return (yield from allowance.counted(gen, self.pgconn.socket))
        except FloodError:
            self.close()  # what floods us is not to be read any more
            raise

    @property
    def _is_working(self) -> bool:
        return self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE

    def _after_mistake(self) -> None:
        """End what the caller no longer reads; the connection goes on, as psycopg's own does."""
        if self.pgconn.pipeline_status != pq.PipelineStatus.OFF:
            return  # psycopg ends the pipeline, and reads what is under way
        ended = False
        with suppress(psycopg.Error):
            ended = self.cancel_running()
        if not ended:
            self.close()

    def abort(self) -> None:
        """Cancel what runs on the server and close, within some seconds; never raises.

        An open transaction is rolled back by the server.
        """
        try:
            if self._is_working:
                self.cancel_running()
        except psycopg.Error as error:
            log.warning("Cancelling the statement failed: %s", without_credentials(str(error).strip()))
        finally:
            self.close()

    def cancel_running(self) -> bool:
        """Cancel what runs and drop what is left of its results, within two seconds.

        A server that has not begun to read a statement forgets the request to cancel it: it is
        repeated until the statement has ended.

        :returns: whether the connection waits for another statement now; not after a COPY.
        :raises psycopg.Error: if the server can't be asked, or the connection is lost.
        """
        deadline = time.monotonic() + _CANCEL_S
        while (left_s := deadline - time.monotonic()) > 0:
            self.cancel_safe(timeout=left_s)
            try:
                # The statement that a COPY belongs to has begun, so a request reaches it from now on.
                rest = self._counted(_drop_results(self.pgconn))
                if super().wait(watched(rest, _after(_CANCEL_AGAIN_S))):
                    return True
                self.cancel_safe(timeout=max(deadline - time.monotonic(), _CANCEL_AGAIN_S))
                return False
            except TimeoutError:
                pass
        return False


def _drop_results(pgconn: pq.abc.PGconn) -> PQGen[bool]:
    """Read all results that are left; returns false at a COPY, whose data would have to be read."""
    while (result := (yield from fetch(pgconn))) is not None:
        if result.status in COPY:
            return False
    return True


def _after(seconds: float) -> Check:
    """Return a check that raises TimeoutError when *seconds* are over."""
    deadline = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() >= deadline:
            raise TimeoutError

    return check


def time_limit(conn_id: str, seconds: float) -> Check:
    """Return a check that raises once so many *seconds* are over, connecting included.

    For who asks a server in somebody else's time: a page, a kill.

    :raises TransientError: the check does, 08006.
    """
    after = _after(seconds)

    def check() -> None:
        try:
            after()
        except TimeoutError:
            raise TransientError(f"no answer within {seconds:.0f} s", conn_id, "08006") from None

    return check


def watched(gen: Generator[Any, Any, RV], check: Check) -> Generator[Any, Any, RV]:
    """Do what *gen* does, calling *check* whenever it waits."""
    try:
        waits_for = next(gen)
        while True:
            ready = yield waits_for
            check()
            waits_for = gen.send(ready)
    except StopIteration as done:
        result: RV = done.value
        return result


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

    Unless *own_identity* (or ``password_required=false`` in the connection), the credential
    must come from the Airflow connection and must have been used, so that nobody rides on
    the worker's own identity: its OS user, ``.pgpass``, ``PGPASSWORD``, service files.

    :param application_name: what ``pg_stat_activity`` shows, at most 63 bytes.
    :param own_identity: ``dblink_connect_u``: the worker's own identity is fine.
    :param check: asked about ten times a second while waiting, for the login too; raises to stop.
    :param observe: told of every wait.
    :param event: what connecting counts as.
    :param arguments: psycopg's own, such as ``row_factory``; *autocommit* apart.
    :param direct: around the pooler, where the target has an address for that.
    :param most_bytes: that the server may send in all; ``None``: as many as it likes.
    :param keeps_encoding: the session's is the connection's ``client_encoding``, if it has one; else UTF8.
    :param prepares: statements that are repeated, where no pooler that shares sessions is in between;
        ``prepare_threshold``, of the connection or of *arguments*, and ``cursor_factory`` come before it.
    :raises CredentialError: 2F003, under dblink's rule.
    :raises UsageError: for a parameter that libpq doesn't know, or session settings through a
        transaction pooler without a direct address.
    :raises ConnectError: 08001 where the server can't be reached or refuses, or doesn't answer within
        the connection's ``connect_timeout`` (default 130 s): for the login at each host, and counted anew
        for the session settings. A :class:`~airflow_dblink.core.errors.TransientError`, and psycopg's
        ``OperationalError``.

    Source: ``dblink_connstr_check`` and ``dblink_security_check`` of contrib/dblink.
    """
    free = check_credential(target, own_identity=own_identity)
    target = target if free else demanding(target)
    direct = direct or _needs_direct(target)
    # Prepared statements break behind transaction poolers.
    given = {**{k: v for k, v in target.psycopg.items() if k == "prepare_threshold"}, **(arguments or {})}
    allowance = None if most_bytes is None else Allowance(most_bytes)
    before = _meanwhile.set((check, allowance))
    try:
        with waiting(event, target.conn_id, observe):
            connection = LinkConnection.connect(
                target.conninfo(
                    application_name=application_name, direct=direct, keeps_encoding=keeps_encoding
                ),
                **{"prepare_threshold": None, **given, "autocommit": True},
            )
    except psycopg.Error as error:
        raise _not_established(target, error.with_traceback(None)) from None
    except BaseException as error:  # noqa: BLE001 - raised again, without the frames that hold the password
        raise error.with_traceback(None)  # noqa: B904
    finally:
        _meanwhile.reset(before)
    try:
        if not free:
            check_used_credential(target, connection.pgconn)
        connection.check, connection.allowance = check, allowance
        if target.session_settings:
            connection.wait(_apply_settings(target, connection))
        if not autocommit:
            connection.autocommit = False
    except BaseException:
        connection.close()
        raise
    styles.register(connection)
    if prepares and not {"prepare_threshold", "cursor_factory"}.intersection(given):
        let_prepare(target, connection, direct=direct)
    connection.observe = observe
    connection.trusted_owners = target.trusted_owners
    return connection


async def aconnect(
    target: Target, *, application_name: str | None = None, direct: bool = False
) -> psycopg.AsyncConnection[TupleRow]:
    """Return an open connection to *target* as :func:`connect` does, for an event loop.

    :raises CredentialError, UsageError, ConnectError: as :func:`connect`.
    """
    free = check_credential(target, own_identity=False)
    target = target if free else demanding(target)
    direct = direct or _needs_direct(target)
    try:
        connection = await psycopg.AsyncConnection.connect(
            target.conninfo(application_name=application_name, direct=direct),
            autocommit=True,
            prepare_threshold=None,
        )
    except psycopg.Error as error:
        raise _not_established(target, error.with_traceback(None)) from None
    except BaseException as error:  # noqa: BLE001 - raised again, without the frames that hold the password
        raise error.with_traceback(None)  # noqa: B904
    try:
        if not free:
            check_used_credential(target, connection.pgconn)
        if target.session_settings:
            # Not the connection's own wait: cancelled, it would wait for the server once more.
            settings = _apply_settings(target, connection)
            await psycopg_waiting.wait_async(settings, connection.pgconn.socket, _LOOK_S)
    except BaseException:
        await connection.close()
        raise
    return connection


def set_config(settings: Iterable[tuple[str, str]], *, local: bool) -> sql.Composed:
    """Return the statement that sets run-time parameters, *local* to the transaction or for the session."""
    calls = [
        sql.SQL("pg_catalog.set_config({}, {}, {})").format(name, value, local) for name, value in settings
    ]
    return sql.SQL("SELECT ") + sql.SQL(", ").join(calls)


def leads_through_pooler(target: Target) -> bool:
    """Whether sessions of *target* are a pooler's in transaction mode, and keep nothing."""
    return target.pooling_mode == "transaction" and not _needs_direct(target)


def _needs_direct(target: Target) -> bool:
    if target.pooling_mode != "transaction" or not target.session_settings:
        return False
    if not target.has_direct_address:
        raise UsageError(
            "session_settings do not survive a pooler in transaction mode",
            target.conn_id,
            hint="set direct_host or direct_port in the connection, or the settings on the operator",
        )
    return True


def _not_established(target: Target, error: psycopg.Error) -> DblinkError:
    """Return dblink's 08001, which has libpq's reason as its detail."""
    reason = without_credentials(" ".join(str(error).split()))
    if is_certificate_unasked(target, reason):
        return not_asked_for(target)
    return ConnectError(
        "could not establish connection",
        target.conn_id,
        "08001",
        reason,
        hint="check host, port, database, login and password of the connection",
    )


def _apply_settings(target: Target, connection: BaseConnection[Any]) -> PQGen[None]:
    """Apply ``session_settings``, with the same patience as for the login.

    :raises RemoteError: what the server says.
    :raises ConnectError: 08001 if it says nothing within ``connect_timeout`` seconds.
    """
    pgconn = connection.pgconn
    statement = set_config(target.session_settings.items(), local=False)
    try:
        pgconn.send_query(statement.as_bytes(connection))
        results = yield from watched(execute(pgconn), _after(settings_patience_s(target)))
        if results[-1].status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(results[-1], encoding=connection.info.encoding)
    except psycopg.Error as error:
        raise from_psycopg(error, target.conn_id, SETTING) from None
    except TimeoutError:
        raise settings_unanswered(target) from None


def settings_patience_s(target: Target) -> int:
    """Return how long an answer to ``session_settings`` is awaited: ``connect_timeout``, as for the login."""
    value = target.params.get("connect_timeout")
    given = {} if value is None or value == "" else {"connect_timeout": str(value)}
    return timeout_from_conninfo(conninfo_to_dict(**given))


def settings_unanswered(target: Target) -> ConnectError:
    """Return the error for a server that gives none in that time."""
    return ConnectError(
        f"the server let us in, but did not answer within {settings_patience_s(target)} s",
        target.conn_id,
        "08001",
        hint="is it, or the pooler before it, out of sessions? connect_timeout in Extra is the limit",
        context=context_line(SETTING, target.conn_id),
    )
