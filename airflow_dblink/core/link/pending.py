"""The asynchronous query of a link: sent, polled, read result by result, cancelled."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext

import psycopg
from psycopg import pq
from psycopg.generators import fetch

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.link.messages import Row, Wire, tag
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.bind import Params, Statement
from airflow_dblink.core.server.connection import COPY

log = logging.getLogger(__name__)

_CANCEL_S = 30.0  # dblink's
# Rows that libpq hands out at once: memory stays constant, however large a result is.
_CHUNK_ROWS = 256
_Status = pq.ExecStatus
_PARTS = (_Status.SINGLE_TUPLE, _Status.TUPLES_CHUNK)


class Pending:
    """The query that a link has sent and not yet read to its end; at most one."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._reader = 0  # number of the last call that reads; older iterators have lost their result
        self._unread = False  # the end of a query has not been read yet
        self._midway = False  # a result has been read in part

    def send(self, statement: Statement, params: Params | None = None) -> int:
        """Send *statement* without waiting for its end.

        :returns: 1; 0, with a warning in the log, while another query's results are unread (they
            stay) or if the connection is lost.
        :raises UsageError: for COPY and an empty statement, before anything is sent; while batches of
            this link are being read.
        """
        wire = self._wire
        if wire.batch_cursors:  # they couldn't end their transaction while a query runs
            raise UsageError(
                "batches() of this link are still being read",
                wire.label,
                hint="read them to their end, or close() the iterator; or use another link",
            )
        message = wire.message(statement, params)
        try:
            wire.begin(message)
            if psycopg.capabilities.has_stream_chunked():
                wire.pgconn.set_chunked_rows_mode(_CHUNK_ROWS)
            else:
                wire.pgconn.set_single_row_mode()
            self._unread, self._midway = True, False
            wire.flush()
        except RemoteError as error:
            log.warning("%s", error)
            return 0
        return 1

    def is_busy(self) -> int:
        """Return 1 if :meth:`result` would wait for its first rows, 0 if not."""
        pgconn = self._wire.pgconn
        try:
            pgconn.consume_input()
            return int(pgconn.is_busy())
        except psycopg.OperationalError:  # the connection is lost, and result() raises
            return 0

    def result(self, *, fail_on_error: bool = True) -> list[Row]:
        """Return the rows of the next result, an empty list when there is none.

        :raises RemoteError: the server's errors.
        :raises TransientError: if the connection is lost, also when *fail_on_error* is false.
        """
        rows: list[Row] = []
        for part in self._parts():
            if part.status == _Status.COMMAND_OK:
                return [(tag(part),)]
            if not self._wire.succeeded(part, "executing query", fail_on_error=fail_on_error):
                return []
            rows += self._wire.rows(part)
        return rows

    def batches(self, batch_rows: int, *, fail_on_error: bool = True) -> Iterator[list[Row]]:
        """Yield the rows of the next result in lists of *batch_rows*, the last one shorter.

        :raises UsageError: if *batch_rows* is below 1; if another call has read on, or the link was
            closed meanwhile.
        :raises RemoteError: as :meth:`result`. The lists before the error are complete; some rows that
            the server sent after them may be missing.
        """
        if isinstance(batch_rows, bool) or not isinstance(batch_rows, int) or batch_rows < 1:
            raise UsageError(
                f"batch_rows must be an integer of at least 1, got {batch_rows!r}", self._wire.label
            )
        return self._batches(batch_rows, fail_on_error)

    def _batches(self, batch_rows: int, fail_on_error: bool) -> Iterator[list[Row]]:
        rows: list[Row] = []
        for part in self._parts():
            if part.status == _Status.COMMAND_OK:
                rows.append((tag(part),))
            elif self._wire.succeeded(part, "executing query", fail_on_error=fail_on_error):
                rows += self._wire.rows(part)
            while len(rows) >= batch_rows:
                yield rows[:batch_rows]
                del rows[:batch_rows]
        if rows:
            yield rows

    def cancel(self) -> str:
        """Ask the server to cancel the running query, within 30 s.

        :returns: ``OK`` if the server got the request, otherwise the reason as text: ``connection not
            open``, ``cancel request timed out``, or libpq's message.
        """
        if not self._wire.is_open:
            return "connection not open"
        try:
            self._wire.connection.cancel_safe(timeout=_CANCEL_S)
        except psycopg.errors.CancellationTimeout:
            return "cancel request timed out"
        except psycopg.Error as error:
            return without_credentials(str(error).removeprefix("cancellation failed: ").strip())
        return "OK"

    # -- results, part by part

    def _parts(self) -> Iterator[pq.abc.PGresult]:
        """Yield the parts of the next result; the last one may be an error. No part if all are read."""
        self._reader = reader = self._reader + 1
        while self._midway:  # the rest of a result that an earlier call left: it may hold an error
            left = self._next()
            if left is not None and left.status not in (*_PARTS, _Status.TUPLES_OK):
                yield left
                return
        while (part := self._next()) is not None:
            if part.status in COPY:
                raise self._wire.refused_copy(part.status)
            yield part
            if part.status not in _PARTS:
                return
            if reader != self._reader:
                raise UsageError(
                    "get_result was called again before this result was read to its end", self._wire.label
                )

    def _next(self) -> pq.abc.PGresult | None:
        wire = self._wire
        wire.demand_not_closed()
        if not (wire.is_open or self._unread):
            raise wire.no_connection()
        try:
            if wire.is_open:
                with nullcontext() if self._midway else wire.timed():
                    part: pq.abc.PGresult | None = wire.connection.wait(fetch(wire.pgconn))
            else:  # results from before the loss of the connection are still there; this can't block
                part = wire.pgconn.get_result()
        except psycopg.Error as error:
            self._unread = False
            raise wire.lost(error, "executing query") from None
        if part is None or (part.status == _Status.FATAL_ERROR and not wire.is_open):
            self._unread = False
        self._midway = part is not None and part.status in _PARTS
        return part
