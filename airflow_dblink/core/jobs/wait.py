"""Waiting for the end of a job in a worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from uuid import UUID

import psycopg

from airflow_dblink.core.errors import TransientError, from_psycopg
from airflow_dblink.core.jobs.call import call
from airflow_dblink.core.jobs.client import Jobs
from airflow_dblink.core.jobs.job import Job, standby
from airflow_dblink.core.jobs.steps import CALL_AGAIN_AFTER_S, LISTEN
from airflow_dblink.core.listen.back_off import back_off
from airflow_dblink.core.server.connection import Check, LinkConnection

log = logging.getLogger(__name__)


_CHECK_S = 0.1


def wait_for_end(
    open_connection: Callable[[], LinkConnection],
    conn_id: str,
    schema: str,
    job_id: UUID,
    *,
    listens: bool,
    poll_s: float,
    check: Check | None = None,
) -> Job:
    """Wait until a job has ended, and return it.

    If a session can listen, the server notifies of the job's end; every *poll_s* seconds the job's row is
    read anyway. A server that can't be reached is asked again and again, until *check* raises.

    :param open_connection: opens a connection for this wait alone, around a pooler if *listens*.
    :param listens: whether a session there hears notifications.
    :param check: called about ten times a second; raises to stop.
    :raises UsageError: if there is no such job.
    :raises RemoteError: the server's errors, unless it is only away for now.
    """
    pauses = back_off()
    while True:
        try:
            with closing(open_connection()) as connection:
                jobs = Jobs(connection, conn_id, schema)
                if listens:  # before the first read, or an end in between would not be heard
                    connection.execute(LISTEN)
                while not (job := jobs.get(job_id)).has_ended:
                    pauses = back_off()
                    if job.state == "sent" and job.age_s > CALL_AGAIN_AFTER_S:
                        log.warning(
                            "Job %s was sent %.0f s ago, and nobody runs it: calling it.", job_id, job.age_s
                        )
                        call(open_connection(), conn_id, schema, job_id, job.statement_timeout).leave()
                    _until_told(connection, job_id, poll_s if listens else 0.0)
                    if not listens:
                        _sleep(poll_s, check)
                return job
        except psycopg.errors.ReadOnlySqlTransaction:  # LISTEN is refused by standbys alone
            log.warning("%s", standby(conn_id))
        except psycopg.Error as error:
            failure = from_psycopg(error, conn_id, "waiting for a job")
            if not isinstance(failure, TransientError):
                raise failure from None
            log.warning("%s", failure)
        except TransientError as error:
            log.warning("%s", error)
        _sleep(next(pauses), check)


def _until_told(connection: LinkConnection, job_id: UUID, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        for note in connection.notifies(timeout=left, stop_after=1):
            if note.payload == str(job_id):
                return


def _sleep(seconds: float, check: Check | None) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if check:
            check()
        time.sleep(min(left, _CHECK_S))
