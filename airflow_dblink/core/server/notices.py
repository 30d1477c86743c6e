"""The servers' notices and warnings: written to the log, up to a limit."""

from __future__ import annotations

import logging

import psycopg

from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.connection import LinkConnection

log = logging.getLogger(__name__)

#: Limits for one task, or hook, over all its links.
MAX_NOTICES = 1_000
MAX_CHARS = 1024 * 1024


class Notices:
    """The messages of all servers of one task."""

    def __init__(self) -> None:
        self._notices = self._chars = self._left_out = 0

    def log_those_of(self, connection: LinkConnection, conn_id: str) -> None:
        """Write messages on *connection* to the log: warnings as warnings, the others as info."""

        def to_log(diag: psycopg.errors.Diagnostic) -> None:
            if self._notices >= MAX_NOTICES or self._chars >= MAX_CHARS:
                if not self._left_out:
                    log.warning("%s: further messages of the servers are left out", conn_id)
                self._left_out += 1
                return
            message = without_credentials(diag.message_primary or "")
            self._notices += 1
            self._chars += len(message)
            level = logging.WARNING if diag.severity_nonlocalized == "WARNING" else logging.INFO
            log.log(level, "%s: %s:  %s", conn_id, (diag.severity or "")[:63], message)

        connection.add_notice_handler(to_log)

    def say_left_out(self) -> None:
        """Log how many messages were left out, if any, and begin to count anew."""
        if self._left_out:
            log.warning("%s messages of the servers were left out", f"{self._left_out:,}")
        self._notices = self._chars = self._left_out = 0
