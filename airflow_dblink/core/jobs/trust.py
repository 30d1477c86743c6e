"""The job table as a table of ours: see :mod:`airflow_dblink.core.installed.trust`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256

import psycopg
from psycopg import sql

from airflow_dblink.core.errors import InstallationError, RemoteError, TransientError, from_psycopg
from airflow_dblink.core.installed import trust
from airflow_dblink.core.installed.trust import Installed
from airflow_dblink.core.sql.named import statements

_NAME_BYTES = 63


@lru_cache
def job_table(schema: str) -> Installed:
    """Return the job table in *schema*."""
    return Installed("jobs", schema, "job", "job_schema", (results_schema(schema),))


@lru_cache
def fragments(schema: str, trusted_owners: tuple[str, ...]) -> Mapping[str, sql.Composable]:
    """Return the names and parts for statements about the job schema."""
    return {
        **trust.fragments(job_table(schema), trusted_owners),
        "results": sql.Identifier(results_schema(schema)),
        "results_name": sql.Literal(results_schema(schema)),
    }


def guard(schema: str, trusted_owners: tuple[str, ...]) -> str:
    """Return the guard of the job schema; see :func:`airflow_dblink.core.installed.trust.guard`."""
    return trust.guard(job_table(schema), trusted_owners)


def guarded_call(schema: str, job_id: str, trusted_owners: Sequence[str]) -> str:
    """Return the message that runs a job; it must be the only statement, since the procedure commits.

    It begins with the job's id, since ``pg_stat_activity.query`` is searched for it, and may be cut.
    """
    parts = {**fragments(schema, tuple(trusted_owners)), "job_id": sql.Literal(job_id)}
    body = sql.SQL(statements("jobs_call.sql")["guarded_call"]).format(**parts).as_string()
    return f"/* CALL run({job_id}) */ " + sql.SQL("DO {}").format(sql.Literal(body)).as_string()


def distrust_of(error: psycopg.Error, conn_id: str, schema: str) -> InstallationError | None:
    """Return the guard's refusal as our error; ``None`` if *error* is another one."""
    return trust.distrust_of(error, conn_id, job_table(schema))


def results_schema(schema: str) -> str:
    """Return the name of the schema for kept results, beside the job schema.

    It is a schema of its own, since roles that keep results need CREATE there.
    """
    name = f"{schema}_results"
    if len(name.encode()) <= _NAME_BYTES:
        return name
    digest = sha256(schema.encode()).hexdigest()[:8]
    kept = schema.encode()[: _NAME_BYTES - len(f"_{digest}_results")].decode(errors="ignore")
    return f"{kept}_{digest}_results"


def asking_failed(error: psycopg.Error, conn_id: str, schema: str) -> InstallationError | RemoteError:
    """Return the error for a question about jobs that the server didn't answer.

    A time limit of the role, a lock and somebody's cancel are transient: whoever waits for a job asks again.
    """
    if (distrusted := distrust_of(error, conn_id, schema)) is not None:
        return distrusted
    ours = from_psycopg(error, conn_id, "asking for jobs")
    return TransientError(*ours.args) if ours.sqlstate in ("57014", "55P03") else ours
