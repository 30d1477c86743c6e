"""What is said to the server about jobs, and in which order, apart from who waits for the answers.

Each procedure is a generator that yields what is to be done next, a :class:`Step` or a :class:`Pause`,
and is sent the rows: :class:`airflow_dblink.core.jobs.client.Jobs` drives it in a worker,
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

#: What a job's end is told on; the payload is its id.
CHANNEL = "airflow_dblink_job"
LISTEN = f"LISTEN {CHANNEL}".encode()
#: A job that nobody runs so long after it was sent is called again: its sender died in between.
CALL_AGAIN_AFTER_S = 10.0
#: Until a called job is seen running: it takes a millisecond, unless somebody has locked the job table.
CLAIM_S = 30.0
#: Between two looks at who waits for that, who may have to stop.
LOOK_S = 0.1

_CANCEL_GRACE_S = 1.5  # then the session is terminated; a kill has 5 s in all
_TERMINATE_GRACE_S = 1.5
_POLL_S = 0.05

# A role's default isolation level may be stricter: two who change one row would then be an error.
# Its search_path may lead to somebody's own "=": nothing of ours is looked up there.
_FIRST = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED{read_only};\n"
    "SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)"
)


@dataclass(frozen=True)
class Step:
    """One message, in a transaction of its own; the rows are those of its last statement.

    :ivar names: statements of ``jobs.sql``.
    :ivar is_guarded: fails before the first of them unless all of the schema is trusted; only what touches
        nothing in it does without.
    """

    names: tuple[str, ...]
    params: Mapping[str, Any]
    parts: Mapping[str, sql.Composable] = field(default_factory=dict)
    is_guarded: bool = True

    def message(
        self, schema: str, trusted_owners: Sequence[str] = (), *, read_only: bool = False
    ) -> sql.Composed:
        """Return the message's text, for a cursor that binds on the client's side.

        :param trusted_owners: of the connection; see :mod:`airflow_dblink.core.jobs.trust`.
        :param read_only: of its transaction.
        """
        named, owners = statements("jobs.sql"), tuple(trusted_owners)
        parts = {
            **_fragments(schema, owners),
            **{name: _without_placeholders(part) for name, part in self.parts.items()},
        }
        mode = sql.SQL(", READ ONLY" if read_only else "")
        # For pg_stat_activity, which cuts what is long.
        head = f"/* airflow_dblink jobs: {', '.join(self.names)} */ "
        texts: list[sql.Composable] = [sql.SQL(head) + sql.SQL(_FIRST).format(read_only=mode)]
        if self.is_guarded:
            texts.append(_without_placeholders(sql.SQL(guard(schema, owners))))
        texts += [sql.SQL(named[name]).format(**parts) for name in self.names]
        return sql.SQL(";\n").join(texts)


@lru_cache
def _fragments(schema: str, trusted_owners: tuple[str, ...]) -> Mapping[str, sql.Composable]:
    """Return what the statements of jobs.sql are made of; the triggerer looks often."""
    # What is no statement of jobs.sql is read for placeholders, too.
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
    """Return the jobs that are there, those found to be lost among them: one message for all."""
    rows = yield Step(("give_up_lost", "look"), {"ids": list(ids)})
    return {job.id: job for job in map(job_of, rows)}


def see(job_id: UUID) -> Steps[Job | None]:
    """Return the job as :func:`look` does, without changing anything; ``None`` if there is none."""
    rows = yield Step(("see",), {"id": job_id})
    if not rows:
        return None
    (row,) = rows
    if row.pop("is_lost"):
        row["state"] = "lost" if row["cancel_requested_at"] is None else "cancelled"
    return job_of(row)


def cancel(job_id: UUID) -> Steps[Job | None]:
    """Cancel a job and wait a few seconds for its end; returns it as it is then, ``None`` if there is none.

    One that was not begun never will be. A running one gets ``pg_cancel_backend`` and, after a
    grace, ``pg_terminate_backend``. One that has ended stays as it is.
    """
    params = {"id": job_id, "ids": [job_id]}
    rows = yield Step(("request_cancel", "cancel", "notify", "look"), params)
    rows = yield from _until_over(rows, params, _CANCEL_GRACE_S)
    if rows and not job_of(rows[0]).has_ended:
        rows = yield Step(("terminate", "look"), params)
        rows = yield from _until_over(rows, params, _TERMINATE_GRACE_S)
    return job_of(rows[0]) if rows else None


def _until_over(rows: Rows, params: Mapping[str, Any], seconds: float) -> Steps[Rows]:
    """Look at a job until it has ended, or there is none; or for so long."""
    waited = 0.0
    while rows and not job_of(rows[0]).has_ended and waited < seconds:
        yield Pause(_POLL_S)
        waited += _POLL_S
        rows = yield Step(("give_up_lost", "look"), params)
    return rows


def until_claimed(pgconn: abc.PGconn, claimed: list[Any], deadline: float) -> PQGen[bool]:
    """Send what libpq has, and read until the job has been claimed, the call has ended, or it is too late.

    For whoever waits for *pgconn*, sync or async, with a notice handler that appends to *claimed*.

    :param deadline: as ``time.monotonic`` counts.
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
    """Read until the call has ended, or it is too late.

    :returns: whether the call has ended.
    """
    while pgconn.is_busy():
        if time.monotonic() > deadline:
            return False
        if (yield Wait.R) & Ready.R:
            pgconn.consume_input()
    return True
