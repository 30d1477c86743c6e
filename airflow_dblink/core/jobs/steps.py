"""The messages to a server about its jobs and their order, written once for workers and triggerers.

Each procedure is a generator: it yields its next :class:`Step` or :class:`Pause`, and is sent the rows of the
step. :class:`airflow_dblink.core.jobs.client.Jobs` drives it in a worker,
:mod:`airflow_dblink.core.jobs.watch` in a triggerer's event loop.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID

from psycopg import sql
from psycopg.abc import PQGen
from psycopg.generators import send
from psycopg.pq import abc
from psycopg.waiting import Ready, Wait

from airflow_dblink.core.jobs.job import Job, job_of
from airflow_dblink.core.jobs.trust import fragments, guard
from airflow_dblink.core.sql.named import statements

T = TypeVar("T")
Rows = list[dict[str, Any]]

#: The channel that notifies of a job's end; the payload is the job's id.
CHANNEL = "airflow_dblink_job"
LISTEN = f"LISTEN {CHANNEL}".encode()
#: A job that no session runs this long after it was sent is called again: its sender died before the call.
CALL_AGAIN_AFTER_S = 10.0
#: Longest wait until a called job is seen running. It takes a millisecond unless the job table is locked.
CLAIM_S = 30.0
#: Between two checks, during that wait, whether the waiting task has to stop.
LOOK_S = 0.1

_CANCEL_GRACE_S = 1.5  # then the session is terminated; a kill has 5 s in all
_TERMINATE_GRACE_S = 1.5
_POLL_S = 0.05

# A role's default isolation level may be stricter; then two sessions that change one row would get an error.
# Its search_path may lead to another role's "="; our statements find their operators in pg_catalog.
_FIRST = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED{read_only};\n"
    "SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)"
)


@dataclass(frozen=True)
class Step:
    """One message, in a transaction of its own; it returns the rows of its last statement.

    :ivar names: names of the statements, from ``jobs.sql``.
    :ivar is_guarded: whether the guard comes first, which fails unless the whole schema is trusted; only
        steps that touch nothing in the schema go without it.
    """

    names: tuple[str, ...]
    params: Mapping[str, Any]
    parts: Mapping[str, sql.Composable] = field(default_factory=dict)
    is_guarded: bool = True

    def message(
        self, schema: str, trusted_owners: Sequence[str] = (), *, read_only: bool = False
    ) -> sql.Composed:
        """Return the message's text, for a cursor that binds on the client's side.

        :param trusted_owners: the connection's; see :mod:`airflow_dblink.core.installed.trust`.
        :param read_only: whether its transaction is READ ONLY.
        """
        named, owners = statements("jobs.sql"), tuple(trusted_owners)
        parts = {
            **_fragments(schema, owners),
            **{name: _without_placeholders(part) for name, part in self.parts.items()},
        }
        mode = sql.SQL(", READ ONLY" if read_only else "")
        # At the beginning, since pg_stat_activity cuts off the end of a long query.
        head = f"/* airflow_dblink jobs: {', '.join(self.names)} */ "
        texts: list[sql.Composable] = [sql.SQL(head) + sql.SQL(_FIRST).format(read_only=mode)]
        if self.is_guarded:
            texts.append(_without_placeholders(sql.SQL(guard(schema, owners))))
        texts += [sql.SQL(named[name]).format(**parts) for name in self.names]
        return sql.SQL(";\n").join(texts)


@lru_cache
def _fragments(schema: str, trusted_owners: tuple[str, ...]) -> Mapping[str, sql.Composable]:
    """Return the parts to insert into the statements of jobs.sql; cached, since the triggerer asks often."""
    # The cursor looks for placeholders in these parts, too.
    parts: dict[str, sql.Composable] = {
        name: _without_placeholders(part) for name, part in fragments(schema, trusted_owners).items()
    }
    for name in ("result_place", "columns", "its_session"):
        parts[name] = sql.SQL(statements("jobs.sql")[name]).format(**parts)
    return parts


def _without_placeholders(part: sql.Composable) -> sql.SQL:
    return sql.SQL(part.as_string().replace("%", "%%"))


@dataclass(frozen=True)
class Pause:
    """Do nothing for *seconds*."""

    seconds: float


Steps = Generator[Step | Pause, Rows, T]


def look(ids: Sequence[UUID]) -> Steps[dict[UUID, Job]]:
    """Return the jobs that exist, in one message; jobs whose session is gone are first given up as lost."""
    rows = yield Step(("give_up_lost", "look"), {"ids": list(ids)})
    return {job.id: job for job in map(job_of, rows)}


def see(job_id: UUID) -> Steps[Job | None]:
    """Return the job as :func:`look` does, but change nothing; ``None`` if there is none."""
    rows = yield Step(("see",), {"id": job_id})
    if rows and rows[0]["is_lost"]:  # it may have ended between its row was read and its session was
        rows = yield Step(("see",), {"id": job_id})
    if not rows:
        return None
    (row,) = rows
    if row.pop("is_lost"):
        row["state"] = "lost" if row["cancel_requested_at"] is None else "cancelled"
    return job_of(row)


def cancel(job_id: UUID) -> Steps[Job | None]:
    """Cancel a job, wait up to three seconds for its end, and return its state then; ``None`` if it is gone.

    A job that has not begun never will. A running job's session gets ``pg_cancel_backend`` and, after half
    of the time, ``pg_terminate_backend``. A job that has ended stays as it is.
    """
    params = {"id": job_id, "ids": [job_id]}
    rows = yield Step(("request_cancel", "cancel", "notify", "look"), params)
    rows = yield from _until_over(rows, params, _CANCEL_GRACE_S)
    if rows and not job_of(rows[0]).has_ended:
        rows = yield Step(("terminate", "look"), params)
        rows = yield from _until_over(rows, params, _TERMINATE_GRACE_S)
    return job_of(rows[0]) if rows else None


def _until_over(rows: Rows, params: Mapping[str, Any], seconds: float) -> Steps[Rows]:
    """Read a job's row until the job has ended or is gone, for *seconds* at most."""
    waited = 0.0
    while rows and not job_of(rows[0]).has_ended and waited < seconds:
        yield Pause(_POLL_S)
        waited += _POLL_S
        rows = yield Step(("give_up_lost", "look"), params)
    return rows


def until_claimed(pgconn: abc.PGconn, claimed: list[Any], deadline: float) -> PQGen[bool]:
    """Send the call, and read until the job has been claimed, the call has ended, or *deadline* has passed.

    A notice handler of *pgconn* has to append to *claimed*. The caller waits for *pgconn*, sync or async.

    :param deadline: in the time of ``time.monotonic``.
    :returns: whether the call has ended.
    """
    yield from send(pgconn)
    while pgconn.is_busy():
        if claimed or time.monotonic() > deadline:
            return False
        if (yield Wait.R) & Ready.R:
            pgconn.consume_input()
    return True


def until_ended(pgconn: abc.PGconn, deadline: float) -> PQGen[bool]:
    """Read until the call has ended, or *deadline* has passed.

    :param deadline: in the time of ``time.monotonic``.
    :returns: whether the call has ended.
    """
    while pgconn.is_busy():
        if time.monotonic() > deadline:
            return False
        if (yield Wait.R) & Ready.R:
            pgconn.consume_input()
    return True
