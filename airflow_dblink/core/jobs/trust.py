"""The roles that this role trusts with the job schema, and the guard that refuses all other owners.

The owner of the schema, its table, a function there or anything that the table uses can run code as each
role that touches it, and so can a role that may add a trigger to the table. So every statement about
jobs stands behind the guard of this module, in one message and one transaction with it.

Trusted roles are this role itself, superusers, the database's owner, members of this role, who can act as
it anyway, and the connection's ``trusted_owners``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeGuard

import psycopg
from psycopg import sql

from airflow_dblink.core.errors import InstallationError, RemoteError, TransientError, from_psycopg
from airflow_dblink.core.sql.named import statements

#: SQLSTATE of the guard's refusal; no other error of a server has it.
SQLSTATE = "ADJ01"

_NAME_BYTES = 63
_NAME = re.compile(r"[^\0]{0,300}", re.DOTALL)  # with its schema, and both quoted
_COMMENT = re.compile(r"[ ]*--.*")  # left out of the guard, which goes over the network each time


@lru_cache
def fragments(schema: str, trusted_owners: tuple[str, ...]) -> Mapping[str, sql.Composable]:
    """Return the names and parts for statements about the job schema."""
    named = {name: sql.SQL(_COMMENT.sub("", text)) for name, text in statements("jobs_trust.sql").items()}
    parts: dict[str, sql.Composable] = {
        "schema": sql.Identifier(schema),
        "schema_name": sql.Literal(schema),
        "job_name": sql.Literal(sql.Identifier(schema, "job").as_string()),
        "results": sql.Identifier(results_schema(schema)),
        "results_name": sql.Literal(results_schema(schema)),
        "trusted_owners": sql.Literal(list(trusted_owners)),
        "sqlstate": sql.Literal(SQLSTATE),
    }
    for name in ("is_trusted", "distrusted", "guard"):
        parts[name] = named[name].format(**parts)
    return parts


@lru_cache
def guard(schema: str, trusted_owners: tuple[str, ...]) -> str:
    """Return the guard: a statement that fails unless all owners in the schema are trusted.

    It must be the first in its transaction, with ``pg_catalog, pg_temp`` as search_path.
    """
    body = fragments(schema, trusted_owners)["guard"].as_string()
    return sql.SQL("DO {}").format(sql.Literal(body)).as_string()


def guarded_call(schema: str, job_id: str, trusted_owners: Sequence[str]) -> str:
    """Return the message that runs a job; it must be the only statement, since the procedure commits.

    It begins with the job's id, since ``pg_stat_activity.query`` is searched for it, and may be cut.
    """
    parts = {**fragments(schema, tuple(trusted_owners)), "job_id": sql.Literal(job_id)}
    body = sql.SQL(statements("jobs_trust.sql")["guarded_call"]).format(**parts).as_string()
    return f"/* CALL run({job_id}) */ " + sql.SQL("DO {}").format(sql.Literal(body)).as_string()


def distrust_of(error: psycopg.Error, conn_id: str, schema: str) -> InstallationError | None:
    """Return the guard's refusal as our error; ``None`` if *error* is another one."""
    if error.diag.sqlstate != SQLSTATE:
        return None
    try:
        finding = json.loads(error.diag.message_detail or "")
    except (ValueError, RecursionError):
        finding = None
    return distrust(finding, conn_id, schema)


def _is_finding(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Return whether *value* looks like a finding of ``distrusted``; a hostile server may send anything."""
    if not isinstance(value, dict) or not isinstance(value.get("place"), int):
        return False
    texts = [value.get(name) for name in ("kind", "name", "role", "me")]
    return all(text is None or (isinstance(text, str) and _NAME.fullmatch(text)) for text in texts)


def distrust(finding: object, conn_id: str, schema: str) -> InstallationError:
    """Return the error for a finding of the statement ``distrusted``."""
    if not _is_finding(finding):
        return InstallationError(
            f"the server's answer doesn't tell who owns the schema for jobs {schema!r}",
            conn_id,
            hint="is it PostgreSQL, and is it the server that the connection means?",
        )
    kind, name, role = finding.get("kind"), finding.get("name"), finding.get("role")
    could = f"could make role {finding.get('me')!r} run anything"
    where = f"in the schema for jobs {schema!r}"
    hint = (
        "a DBA should look at it, and remove it or give it another owner (ALTER ... OWNER TO); or use another"
        " schema (job_schema)"
    )
    if kind == "not a table":
        message = f"{name!r} {where} is no table: its owner {could}"
    elif kind == "condition":
        message = f"trigger {name!r} on the job table of {schema!r} has a WHEN condition that {could}"
        hint = "a DBA should drop it: who made it isn't known; a condition may call immutable functions only"
    elif kind == "child":
        message = f"table {name!r} inherits from the job table of {schema!r}, and its triggers {could}"
        hint = "a DBA should end that: ALTER TABLE ... NO INHERIT"
    elif kind in ("TRIGGER", "REFERENCES"):
        message = f"role {role!r} has the right {kind} on the job table of {schema!r}, and {could}"
        grantee = "PUBLIC" if role == "PUBLIC" else sql.Identifier(str(role)).as_string()
        table = sql.Identifier(schema, "job").as_string()
        hint = f"a DBA should run: REVOKE TRIGGER, REFERENCES ON {table} FROM {grantee}"
    else:
        what = {
            1: f"schema {name!r}",
            5: f"{kind} {name!r}, which the job table of {schema!r} uses,",
            8: f"{kind} {name!r}, which refers to the job table of {schema!r},",
        }.get(finding["place"], f"{kind} {name!r} {where}")
        message = f"{what} belongs to role {role!r}, who {could}"
        hint += "; to trust that role, with all of its members, name it in trusted_owners of the connection"
    return InstallationError(message, conn_id, hint=hint)


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
