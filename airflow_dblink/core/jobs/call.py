"""The call that runs a job, on a connection of its own."""

from __future__ import annotations

import logging
import time
from typing import Any
from uuid import UUID

import psycopg
from psycopg import pq, waiting
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many

from airflow_dblink.core.errors import InstallationError, TransientError, from_psycopg
from airflow_dblink.core.jobs.steps import CLAIM_S, LOOK_S, until_claimed, until_ended
from airflow_dblink.core.jobs.trust import distrust_of, guarded_call
from airflow_dblink.core.server.connection import LinkConnection, watched
from airflow_dblink.core.server.settings import set_config

log = logging.getLogger(__name__)


class Call:
    """A running ``CALL`` of the procedure, on a connection of its own.

    The server goes on with it when the connection is closed. It is never cancelled here, not even when the
    task is told to stop, since that may be just a restart.

    :param connection: in autocommit mode, idle; it must not be used for anything else afterwards.
    """

    def __init__(self, connection: LinkConnection, conn_id: str, schema: str, job_id: UUID) -> None:
        self._connection = connection
        self._conn_id = conn_id
        self._schema = schema
        self._notices: list[Any] = []
        self._ended = False
        connection.add_notice_handler(self._notices.append)
        try:
            message = guarded_call(schema, str(job_id), connection.target.trusted_owners)
            connection.pgconn.send_query(message.encode())
        except psycopg.Error as error:
            raise self._error(error) from None

    @property
    def claimed(self) -> bool:
        """Whether this call has begun the job. If not, another call may have begun it, or none."""
        return bool(self._notices)

    def wait_until_claimed(self) -> None:
        """Wait until the job is seen running, has ended, or was begun by another call.

        Don't leave before: a pooler may lose a call whose client leaves at once.

        :raises TransientError: if the connection is lost, or nothing is seen within 30 s: read the job's row.
        :raises InstallationError: if a part of the schema isn't trusted; the job has not begun then.
        """
        deadline = time.monotonic() + CLAIM_S
        try:
            self._ended = self._wait(until_claimed(self._connection.pgconn, self._notices, deadline))
        except psycopg.Error as error:
            raise self._error(error) from None
        if self._ended:
            failure = self._log_error()
            if failure is not None and not self.claimed:
                raise failure
        elif not self.claimed:
            raise TransientError(
                f"the job was sent, but did not begin within {CLAIM_S:.0f} s",
                self._conn_id,
                hint="does somebody hold a lock on the job table?",
            )

    def wait(self, seconds: float) -> bool:
        """Wait up to *seconds* for the end of the call; return whether it ended, or the connection broke."""
        if not self._ended:
            deadline = time.monotonic() + seconds
            try:
                self._ended = self._wait(until_ended(self._connection.pgconn, deadline))
            except psycopg.Error:
                return True
            if self._ended:
                self._log_error()
        return self._ended

    def leave(self) -> None:
        """Close the connection; the server goes on."""
        self._connection.close()

    def _wait(self, gen: PQGen[bool]) -> bool:
        # Not the connection's own wait, which, when interrupted, cancels the running statement.
        check = self._connection.check
        return waiting.wait(watched(gen, check) if check else gen, self._connection.pgconn.socket, LOOK_S)

    def _log_error(self) -> TransientError | InstallationError | None:
        """Log and return the call's own error, such as a failed commit; the job's error is in its row."""
        failure: TransientError | InstallationError | None = None
        try:
            results = self._connection.wait(fetch_many(self._connection.pgconn))
        except psycopg.Error as error:
            results, failure = [], self._error(error)
        for result in results:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                failure = self._error(error_from_result(result, encoding=self._connection.info.encoding))
        if failure is not None:
            log.warning("%s", failure)
        return failure

    def _error(self, error: psycopg.Error) -> TransientError | InstallationError:
        if (distrusted := distrust_of(error, self._conn_id, self._schema)) is not None:
            return distrusted
        ours = from_psycopg(error, self._conn_id, "calling the job")
        return TransientError(*ours.args)


def call(
    connection: LinkConnection, conn_id: str, schema: str, job_id: UUID, statement_timeout: str | None
) -> Call:
    """Call the procedure that runs a job, and return when the job is seen running.

    :param connection: becomes the call's own; closed if the call fails.
    :param statement_timeout: time limit of the job, in PostgreSQL's form.
    :raises TransientError: if the connection is lost, or nothing is seen within 30 s: read the job's row.
    :raises InstallationError: if a part of the schema isn't trusted; the job has not begun then.
    """
    try:
        if statement_timeout is not None:
            connection.execute(set_config([("statement_timeout", statement_timeout)], local=False))
        started = Call(connection, conn_id, schema, job_id)
        started.wait_until_claimed()
    except BaseException:
        connection.close()
        raise
    return started
