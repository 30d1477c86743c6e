"""The exactly-once transaction: a retry can ask the server for the outcome of an earlier try.

PostgreSQL gives a transaction its id before the work. That id is stored first
(:meth:`Once.begin`), then the work is done and committed. A later try reads the stored id
and asks the server for the outcome (:meth:`Once.recall`). Nothing is installed on the server.

:mod:`airflow_dblink.core.once.tickets` describes the stored JSON, whose key is :data:`KEY`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq, sql
from psycopg.errors import InvalidParameterValue, error_from_result
from psycopg.generators import fetch, send

from airflow_dblink.core.errors import (
    OutcomeUnknownError,
    RemoteError,
    TransientError,
    UsageError,
    from_psycopg,
)
from airflow_dblink.core.once.beginning import begun
from airflow_dblink.core.once.tickets import Stored, is_flushed, read
from airflow_dblink.core.once.tries import Store, Tries
from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.own_sql import ask
from airflow_dblink.core.server.settings import Settings
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sqltext.rules import demand_script
from airflow_dblink.core.sqltext.user_text import UserText, place_of

log = logging.getLogger(__name__)

KEY = "airflow_dblink_once"

_SQL = statements("once.sql")
_SERVER = ("system_identifier", "database", "timeline")
_NOT_REACHED = "not reached"
_POLL_S = 0.5
_CLIENT_GRACE_S = 2.0  # an idle transaction need not be an orphan: it may be between two messages
_CANCEL_GRACE_S = 5.0
_KILL_GRACE_S = 1.0  # a kill has 5 s in all


@dataclass(frozen=True)
class Ending:
    """The statement that ends the transaction, sent last: it decides who commits, and how.

    :ivar statement: one statement; by default a plain COMMIT.
    :ivar tag: its command tag if it succeeds; COMMIT of a failed transaction returns another one, ROLLBACK.
    """

    statement: str = "COMMIT"
    tag: str = "COMMIT"


@dataclass
class Once:
    """One exactly-once transaction on *connection*.

    :ivar connection: open, in autocommit mode, not in a transaction.
    :ivar conn_id: for errors and logs.
    :ivar store: survives the process; refuses a superseded try, which makes it the fence.
    :ivar life: grows when the user clears the task. Work that an earlier life finished is done anew; the
        outcome of unfinished work is asked for.
    :ivar orphan_timeout_s: seconds for which an earlier try's transaction may go on.
    :ivar task: the task's name, a mapping for JSON; another task's ticket is not taken over.
    :ivar application_name: the transaction's application_name; by default the connection's. A running
        transaction of an earlier try is ended or taken over only if its session has the same one.
    :ivar awaited: the ticket of the transaction whose outcome :meth:`recall` asks or waits for.
    :ivar own_ids: the transaction ids that :meth:`begin` has used; the first one is its transaction's.
    :ivar ending: the statement that commits.
    """

    connection: LinkConnection
    conn_id: str
    store: Store
    life: int = 0
    orphan_timeout_s: float = 3600.0
    task: Mapping[str, Any] | None = None
    application_name: str | None = None
    awaited: Mapping[str, Any] | None = None
    own_ids: Sequence[int] = ()
    ending: Ending = Ending()
    _ticket: dict[str, Any] | None = None

    @property
    def xid(self) -> str:
        """The transaction id, after :meth:`begin`."""
        if self._ticket is None:
            raise UsageError("the transaction has not begun", self.conn_id)
        return str(self._ticket["xid"])

    # -- the later try

    def recall(self) -> dict[str, Any] | None:
        """Return the result that an earlier try committed, or ``None`` if the work is still to be done.

        Waits while an earlier try's transaction still runs; after ``orphan_timeout_s`` that transaction is
        cancelled. If it only waits for its dead client, it is ended after two seconds.

        :returns: the stored result, ``{}`` if none was stored; ``None`` to go on.
        :raises OutcomeUnknownError: if the server can't tell the outcome (another server answers, the id is
            too old or may have been handed out again), or if the stored state is, or may be, another task's.
        :raises TransientError: if that transaction still runs, and this task can't end it.
        :raises RemoteError: the server's errors.
        """
        left = self._tries.left(KEY)
        if left is None or (left.ended and left.is_cleared):  # the user has seen the end and wants it anew
            return None
        stored = read(left)
        try:
            has_committed = self._has_committed(stored)
        except OutcomeUnknownError:
            self._tries.leave(KEY, {"task": stored.task, "ticket": stored.ticket}, ended="unknown")
            raise
        except psycopg.Error as error:
            raise from_psycopg(error, self.conn_id, "asking for the outcome of an earlier try") from None
        self.awaited = None
        return dict(stored.result) if has_committed else None

    def _has_committed(self, stored: Stored) -> bool:
        if why := stored.why_not_of(self.task):
            raise self._unknown(stored.xid, why)
        outcome: str = "committed"
        if stored.ticket is not None and stored.ended != "returned":
            self.awaited = stored.ticket
            outcome = self._outcome(stored.ticket)
            log.info("Transaction %s of an earlier try on %s: %s.", stored.xid, self.conn_id, outcome)
        if outcome == "committed" and self.task is not None and stored.task is None:
            raise self._unknown(
                stored.xid, "its stored state, by an earlier version, doesn't say whose it is"
            )
        return outcome == "committed"

    def _outcome(self, ticket: Mapping[str, Any]) -> str:
        self._has_crashed_since(ticket)  # another server isn't waited for
        outcome = self._wait_for_end(ticket)
        # Asked anew: the server may have crashed meanwhile, and a pooler hides that.
        has_crashed = self._has_crashed_since(ticket)
        if outcome is None:
            raise self._unknown(ticket["xid"], "the server no longer knows the transaction")
        if outcome == _NOT_REACHED:
            # The crash lost the transaction together with its id; the id of a commit can't get lost.
            if not has_crashed:
                raise self._unknown(ticket["xid"], "the server has not reached the transaction's id")
            return "aborted"
        # If the id wasn't in the log on disk at the crash, the server may have handed it out again. Then
        # "aborted" still holds for our transaction, but "committed" may be said of the other one.
        if outcome == "committed" and has_crashed and not is_flushed(ticket):
            raise self._unknown(ticket["xid"], "the server crashed or its statistics were reset since")
        return outcome

    def _has_crashed_since(self, ticket: Mapping[str, Any]) -> bool:
        """Return whether the server has crashed, or its statistics were reset, since the ticket was stored.

        :raises OutcomeUnknownError: if the server, database or timeline isn't the ticket's.
        """
        now = self._one("server")
        if any(now[fact] != ticket[fact] for fact in _SERVER):
            raise self._unknown(ticket["xid"], "another server, database or timeline answers now")
        return bool(now["crash_epoch"] != ticket["crash_epoch"])

    def _wait_for_end(self, ticket: Mapping[str, Any]) -> str | None:
        started = time.monotonic()
        deadline = started + self.orphan_timeout_s
        waits_since: float | None = None
        cancelled_at: float | None = None
        said = is_others = False
        while (outcome := self._status(ticket)) == "in progress":
            now = time.monotonic()
            orphan = self._one("orphan", {**ticket, "application_name": self._name})
            waits_for_client = bool(orphan and orphan["waits_for_client"])
            is_others = is_others or bool(orphan and not orphan["is_ours"])
            waits_since = (waits_since or now) if waits_for_client else None
            if not said:
                log.info("Transaction %s of an earlier try still runs: waiting for its end.", ticket["xid"])
                said = True
            if (waits_since and now - waits_since >= _CLIENT_GRACE_S) or (
                cancelled_at and now - cancelled_at >= _CANCEL_GRACE_S
            ):
                self._end("terminate_orphan", ticket)
            elif now >= deadline and cancelled_at is None:
                log.warning("orphan_timeout is over: cancelling transaction %s.", ticket["xid"])
                self._end("cancel_orphan", ticket)
                cancelled_at = now
            if now >= deadline + 6 * _CANCEL_GRACE_S:
                raise TransientError(
                    f"transaction {ticket['xid']} of an earlier try still runs, and this task can't end it",
                    self.conn_id,
                    hint=f"end it on the server: SELECT pg_terminate_backend({ticket['pid']})",
                )
            self._sleep()
        if is_others and outcome == "committed":
            why = f"its session's application_name was not {self._name!r}, as this task's is"
            raise self._unknown(ticket["xid"], why)
        return outcome

    def end_awaited(self) -> None:
        """End the transaction that :meth:`recall` was waiting for: cancel, then terminate.

        It needs another connection than the waiting one.
        """
        if (ticket := self.awaited) is None:
            return
        self._end("cancel_orphan", ticket)
        deadline = time.monotonic() + _KILL_GRACE_S
        while self._status(ticket) == "in progress":
            if time.monotonic() >= deadline:
                self._end("terminate_orphan", ticket)
                return
            time.sleep(0.05)

    def _end(self, how: str, ticket: Mapping[str, Any]) -> None:
        """Cancel or terminate an earlier try's transaction if its application_name is this task's."""
        self._one(how, {**ticket, "application_name": self._name})

    @property
    def _name(self) -> str:
        if self.application_name is not None:
            return self.application_name
        return self.connection.info.parameter_status("application_name") or ""

    def _sleep(self) -> None:
        until = time.monotonic() + _POLL_S
        while time.monotonic() < until:
            if self.connection.check:
                self.connection.check()
            time.sleep(0.1)

    def _status(self, ticket: Mapping[str, Any]) -> str | None:
        try:
            outcome = self._one("outcome", ticket)["outcome"]
        except InvalidParameterValue:  # "in the future"
            return _NOT_REACHED
        return None if outcome is None else str(outcome)

    def _one(self, name: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        rows = ask(self.connection, _SQL[name], params)
        return rows[0] if rows else {}

    def _unknown(self, xid: str, why: str) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"an earlier try may have committed transaction {xid}, but {why}",
            self.conn_id,
            hint="look whether its effect is there: if so, mark the task as success; if not, clear it",
        )

    # -- this try

    def begin(self, settings: Settings | None = None, *, read_committed: bool = False) -> None:
        """Begin the transaction and store its ticket: one round trip to the server.

        The transaction's id is on the server's disk by then, so that no crash lets the server hand it out
        again; if that isn't possible, the ticket says so. Before PostgreSQL 17 this needs a second session
        for a moment.

        :param settings: run-time parameters, local to the transaction.
        :param read_committed: use READ COMMITTED, whatever the session's default isolation level is.
        :raises Exception: the store's error for a superseded try; nothing was done then.
        :raises RemoteError: the server's errors.
        """
        local = {
            # With 0, PostgreSQL finishes and commits a statement whose client is gone.
            "client_connection_check_interval": "0",
            **(settings or {}),
            "application_name": self._name,
            # Our lexer reads scripts by this setting, whatever *settings* say.
            "standard_conforming_strings": "on",
        }
        begin = "BEGIN ISOLATION LEVEL READ COMMITTED" if read_committed else "BEGIN"
        try:
            started = begun(self.connection, begin, local)
        except psycopg.Error as error:
            raise from_psycopg(error, self.conn_id, "beginning the transaction") from None
        self._ticket, self.own_ids = started.ticket, started.ids
        self._note({})

    def keep(self, result: Mapping[str, Any]) -> None:
        """Store the result that a retry should return if it finds the transaction committed.

        :raises Exception: the store's error for a superseded try.
        """
        self._note({"result": dict(result)})

    def commit(self, result: Mapping[str, Any] | None) -> None:
        """Store the result that a retry should return, then commit.

        :param result: ``None`` if :meth:`keep` has stored it.
        :raises Exception: the store's error for a superseded try; nothing is committed then.
        :raises RemoteError: if the commit fails (a deferred constraint); everything is rolled back.
        :raises TransientError: if the connection is lost in the commit; a later try asks for the outcome.
        """
        if result is not None:
            self.keep(result)
        try:
            tag = self.connection.execute(self.ending.statement.encode()).statusmessage
        except psycopg.Error as error:
            raise from_psycopg(error, self.conn_id, "committing") from None
        if tag != self.ending.tag:
            raise RemoteError("the transaction was rolled back instead of committed", self.conn_id, "25P02")

    def run(self, script: str | UserText) -> list[str]:
        """Run *script* and commit, as one message that the server finishes even if this process dies.

        The script is the DAG author's own SQL, with its parameters bound as literals; it is sent unchanged.
        Its rows are discarded.

        :returns: the command tags, one per statement.
        :raises UsageError: if :func:`demand_script` refuses the script, before anything is sent; or if the
            script ended its own transaction.
        :raises RemoteError: the server's errors; everything is rolled back.
        """
        script = UserText(script) if isinstance(script, str) else script
        demand_script(script.text, self.conn_id)
        # The ending stands on a line of its own, or a comment at the script's end would swallow it. An
        # unclosed quote or comment swallows it all the same; the server then refuses the whole message.
        tags = self.execute(script + sql.SQL(f"\n; {self.ending.statement}"))
        if not tags or tags.pop() != self.ending.tag:
            raise UsageError("the script ended its own transaction", self.conn_id)
        return tags

    def execute(self, script: str | sql.Composable) -> list[str]:
        """Run the statements of *script* as one message, and leave the transaction open.

        Their rows are discarded.

        :returns: the command tags, one per statement.
        :raises RemoteError: the server's errors.
        """
        script = UserText(script) if isinstance(script, str) else script
        pgconn = self.connection.pgconn
        tags: list[str] = []
        failure: psycopg.Error | None = None
        try:
            pgconn.send_query(script.as_string(self.connection).encode())
            pgconn.set_single_row_mode()  # one row at a time: a big SELECT must not fill our memory
            self.connection.wait(send(pgconn))
            while (result := self.connection.wait(fetch(pgconn))) is not None:
                if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
                    tags.append((result.command_status or b"").decode())
                elif result.status == pq.ExecStatus.FATAL_ERROR:
                    failure = error_from_result(result, encoding="utf-8")
        except psycopg.Error as error:
            failure = failure or error
        if failure is not None:
            place = place_of(failure, script, self.connection)
            raise from_psycopg(failure, self.conn_id, "executing command", place=place) from None
        return tags

    def finish(self, result: Mapping[str, Any]) -> None:
        """Note that the task is about to succeed; this is its last action.

        A task that is cleared after this call does its work anew; one that is cleared before it asks for the
        outcome first.
        """
        self._note({"result": dict(result)}, ended="returned")

    @property
    def _tries(self) -> Tries:
        return Tries(self.store, self.life)

    def _note(self, facts: Mapping[str, Any], ended: str | None = None) -> None:
        task = self.task and dict(self.task)
        self._tries.leave(KEY, {"task": task, "ticket": self._ticket, **facts}, ended=ended)
