"""DblinkExecOperator: run a statement or script in a database, exactly once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
from airflow.sdk import BaseOperatorLink
from airflow.sdk.exceptions import AirflowTaskTimeout
from psycopg import pq

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.jobs.draft import demand_statement
from airflow_dblink.core.jobs.job import Job
from airflow_dblink.core.link.link import Link
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.server.settings import set_config
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sqltext.lexer import parts
from airflow_dblink.core.sqltext.rules import demand_no_client, demand_script
from airflow_dblink.core.sqltext.user_text import UserText
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.links.job import DblinkJobLink
from airflow_dblink.operators.common.job_base import JobWaitingOperator
from airflow_dblink.operators.common.known import check_known
from airflow_dblink.operators.common.once import ExactlyOnceOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

#: The result of an adopted statement: its own tag went to the worker that died.
ADOPTED = "COMMIT"


class DblinkExecOperator(ExactlyOnceOperator, JobWaitingOperator):
    """Run one statement or a script, exactly once across retries and killed workers.

    The script and its COMMIT travel as one message, so PostgreSQL finishes them even if the worker dies; the
    next try finds the transaction by its id and waits for its end instead of running the script again. Rows
    are discarded: use :class:`~airflow_dblink.operators.fetch.DblinkFetchOperator` for them.

    A user's kill or mark, and ``execution_timeout``, cancel the statement on the server. A worker
    that is only restarted leaves it running for the next try, if the task has one left.

    :param conn_id: Airflow connection of type ``postgres`` or ``dblink``. (templated)
    :param sql: one statement, several, or the path of a ``.sql`` file; without BEGIN, COMMIT and
        the like. (templated)
    :param parameters: values for ``%s`` or ``%(name)s`` in *sql*. (templated)
    :param transaction: ``False`` for statements that can't run in a transaction (VACUUM, CREATE INDEX
        CONCURRENTLY, procedures that commit): each is sent by itself, and a retry runs all of
        them again.
    :param orphan_timeout: time that a try waits for the transaction of a killed try, before it cancels that
        and runs the script again.
    :param client_min_messages: level from which the server's messages go to the task log. A NOTICE that is
        raised after the worker has died ends the statement, which is then run again: use ``error`` for long
        statements that raise many.
    :param deferrable: run the script as a remote job and wait in the triggerer, as
        :class:`~airflow_dblink.operators.jobs.DblinkJobOperator` does. It needs the job table in that
        database, and so is off by default; *orphan_timeout* and *client_min_messages* don't matter then.
    :param kwargs: arguments of the base operators; with *deferrable*, also ``poll_interval`` (seconds),
        ``grace_period``, ``cancel_on_kill`` and ``job_schema``.

    :returns: (XCom) the command tag of the last statement; ``COMMIT`` if an earlier try's transaction was
        found committed and its tags are lost. All tags are in XCom ``command_tags``.
    :raises AirflowFailException: for mistakes found before anything is sent (no retry helps), and if
        the server can't tell whether an earlier try has committed.
    :raises RemoteError: the server's errors; nothing is changed then (with *transaction*).
    :raises TransientError: the same, if a retry may help.
    :raises AirflowTaskTimeout: after ``execution_timeout``; it tells whether everything was rolled back.
    :raises DblinkTaskKilledError: after a kill.
    """

    template_fields: Sequence[str] = ("conn_id", "sql", "parameters", "session_settings")
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "sql": "postgresql",
        "parameters": "json",
        "session_settings": "json",
    }
    # Airflow uses the class's links for a mapped task, before deferrable is known.
    operator_extra_links: Collection[BaseOperatorLink] = (DblinkJobLink(),)
    ui_color = "#e0dcf3"

    def __init__(
        self,
        *,
        transaction: bool = True,
        client_min_messages: str = "notice",
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(deferrable=deferrable, **kwargs)
        self.transaction = transaction
        self.client_min_messages = client_min_messages
        self.operator_extra_links = (DblinkJobLink(),) if deferrable else ()  # else there is no job
        check_known(self)

    def _check_early(self) -> None:
        self._demand_values("conn_id", "sql")
        if self.deferrable:
            self._check_job()
        else:
            self._refuse_early()

    def execute(self, context: Context) -> str:
        """Run the statement; the last command tag becomes the XCom return value."""
        if self.deferrable:
            return self._as_job(context)
        with self._errors_for_airflow():
            self._check_early()
            return self._in_session(context)

    def _in_session(self, context: Context) -> str:
        with self._hook(self.conn_id) as hook:
            link = hook.link()
            script = self._bound(link)
            if not self.transaction:
                tags = self._each(link, script)
                context["ti"].xcom_push("command_tags", tags)
                self._tell_assets(context, {"command_tags": tags})
                return tags[-1]
            once = self._once(context, link.connection, self.conn_id)
            tags = self._exactly_once(context, hook, once, script)
            context["ti"].xcom_push("command_tags", tags)
            self._check()
            once.finish({"tags": tags})
            self._tell_assets(context, {"command_tags": tags})
            return tags[-1] if tags else ADOPTED

    def _as_job(self, context: Context) -> str:
        with self._errors_for_airflow():
            self._check_early()
        tag: str = self._send_and_wait(context, keep_result=False)
        return tag

    def _check_job(self) -> None:
        if not self.transaction:
            raise UsageError(
                "deferrable=True needs transaction=True: a job is one transaction",
                self.conn_id,
                hint="leave one of them out",
            )
        demand_statement(self.sql, self.conn_id)

    def _result(self, context: Context, hook: DblinkHook, job: Job) -> str:
        tag = job.command_tag
        context["ti"].xcom_push("command_tags", [tag] if tag else [])
        return tag or ADOPTED

    def _refuse_early(self) -> None:
        if self.transaction:
            demand_script(self.sql, self.conn_id)
            return
        statements = parts(self.sql)
        if not statements:
            raise UsageError("sql holds no statement", self.conn_id)
        for statement in statements:
            demand_no_client(statement, self.conn_id)  # now, before the statements in front of it are run

    def _exactly_once(self, context: Context, hook: DblinkHook, once: Once, script: UserText) -> list[str]:
        if (result := self._recall(context, hook, once)) is not None:
            tags: list[str] = result.get("tags") or []
            self.log.info("An earlier try has committed: nothing is run. %s", ", ".join(tags))
            return tags
        more = {"client_min_messages": self.client_min_messages}
        once.begin(self._settings(once.connection, self.conn_id, **more))
        self.log.info("Transaction %s on %s", once.xid, self.conn_id)
        try:
            tags = self._run_as_one(context, once, script)
        except AirflowTaskTimeout:
            raise AirflowTaskTimeout(self._timed_out(once)) from None
        except RemoteError as error:
            raise _explained(error) from None
        self.log.info("Committed: %s", ", ".join(tags))
        return tags

    def _timed_out(self, once: Once) -> str:
        """Cancel the running statement, within two seconds; return the text that tells the outcome."""
        pgconn = once.connection.pgconn
        with suppress(psycopg.Error):
            once.connection.cancel_running()
        ended = pgconn.transaction_status
        once.connection.close()  # which rolls back a transaction that has failed
        if ended == pq.TransactionStatus.INERROR:
            became = (
                f"the statement was cancelled, and transaction {once.xid} rolled back: nothing is changed"
            )
        elif ended == pq.TransactionStatus.IDLE:  # COMMIT was faster than the request
            became = f"transaction {once.xid} had committed by then; a retry takes that over"
        else:
            became = f"the server was asked to cancel transaction {once.xid}; a retry finds out how it ended"
        return f"execution_timeout ({self.execution_timeout}) is over: {became}"

    def _each(self, link: Link, script: UserText) -> list[str]:
        """Run the statements one by one, outside of a transaction."""
        self.log.warning("transaction=False: a retry runs every statement again (at least once).")
        if link.target.pooling_mode == "transaction":
            raise UsageError(
                "transaction=False needs a session of its own; a pooler in transaction mode gives none",
                self.conn_id,
                hint="use a connection that leads around the pooler",
            )
        more = {"client_min_messages": self.client_min_messages}
        settings = self._settings(link.connection, self.conn_id, **more)
        settings.pop("transaction_timeout", None)
        settings["standard_conforming_strings"] = "on"  # our lexer splits the script by this setting
        Side(link.connection, self.conn_id).run(set_config(settings.items(), local=False), "setting up")
        tags: list[str] = []
        for statement in parts(script.text):
            try:
                tags.append(link.command(script.part(statement.start, statement.end)))
            except AirflowTaskTimeout:  # the link cancels it
                raise AirflowTaskTimeout(
                    f"execution_timeout ({self.execution_timeout}) is over: the statement in line"
                    f" {statement.line} was cancelled; the statements before it are done (transaction=False)"
                ) from None
            self.log.info("%s", tags[-1])
        return tags


def _explained(error: RemoteError) -> RemoteError:
    """Add a hint to an error that transaction=False would avoid."""
    # SET TRANSACTION also raises 25001, and transaction=False would not help there.
    if error.hint or error.sqlstate not in ("2D000", "25001") or "SET TRANSACTION" in error.message:
        return error
    hint = "use transaction=False; it is then run at least once, not exactly once"
    return error.but(hint=hint)
