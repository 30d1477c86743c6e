"""The roles that this role trusts with a table of ours, and the guard that refuses all other owners.

The owner of the schema, its table, a function there or anything that the table uses can run code as each
role that touches it, and so can a role that may add a trigger to the table. So every statement about
such a table stands behind the guard of this module, in one message and one transaction with it.

Trusted roles are this role itself, superusers, the database's owner, members of this role, who can act as
it anyway, and the connection's ``trusted_owners``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeGuard

import psycopg
from psycopg import sql

from airflow_dblink.core.errors import InstallationError
from airflow_dblink.core.sql.named import statements

#: SQLSTATE of the guard's refusal; no other error of a server has it.
SQLSTATE = "ADJ01"

_NAME = re.compile(r"[^\0]{0,300}", re.DOTALL)  # with its schema, and both quoted
_COMMENT = re.compile(r"[ ]*--.*")  # left out of the guard, which goes over the network each time


@dataclass(frozen=True)
class Installed:
    """A table of ours in a schema of its own, which is installed on a server.

    :ivar purpose: what the schema is for, as errors say it.
    :ivar schema: the schema.
    :ivar table: the table's name in it.
    :ivar argument: the argument by which a user chooses another schema.
    :ivar beside: schemas of ours that belong to it.
    """

    purpose: str
    schema: str
    table: str
    argument: str
    beside: tuple[str, ...] = ()

    @property
    def identifier(self) -> sql.Identifier:
        """The table's name with its schema."""
        return sql.Identifier(self.schema, self.table)


@lru_cache
def fragments(installed: Installed, trusted_owners: tuple[str, ...]) -> Mapping[str, sql.Composable]:
    """Return the names and parts for statements about the table."""
    named = {name: sql.SQL(_COMMENT.sub("", text)) for name, text in statements("trust.sql").items()}
    parts: dict[str, sql.Composable] = {
        "schema": sql.Identifier(installed.schema),
        "schema_name": sql.Literal(installed.schema),
        "schema_names": sql.Literal([installed.schema, *installed.beside]),
        "purpose": sql.Literal(installed.purpose),
        "relname": sql.Literal(installed.table),
        "table": installed.identifier,
        "table_name": sql.Literal(installed.identifier.as_string()),
        "trusted_owners": sql.Literal(list(trusted_owners)),
        "sqlstate": sql.Literal(SQLSTATE),
    }
    for name in ("is_trusted", "distrusted", "guard"):
        parts[name] = named[name].format(**parts)
    return parts


@lru_cache
def guard(installed: Installed, trusted_owners: tuple[str, ...]) -> str:
    """Return the guard: a statement that fails unless all owners in the schema are trusted.

    It must be the first in its transaction, with ``pg_catalog, pg_temp`` as search_path.
    """
    body = fragments(installed, trusted_owners)["guard"].as_string()
    return sql.SQL("DO {}").format(sql.Literal(body)).as_string()


def distrust_of(error: psycopg.Error, conn_id: str, installed: Installed) -> InstallationError | None:
    """Return the guard's refusal as our error; ``None`` if *error* is another one."""
    if error.diag.sqlstate != SQLSTATE:
        return None
    try:
        finding = json.loads(error.diag.message_detail or "")
    except (ValueError, RecursionError):
        finding = None
    return distrust(finding, conn_id, installed)


def _is_finding(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Return whether *value* looks like a finding of ``distrusted``; a hostile server may send anything."""
    if not isinstance(value, dict) or not isinstance(value.get("place"), int):
        return False
    texts = [value.get(name) for name in ("kind", "name", "role", "me")]
    return all(text is None or (isinstance(text, str) and _NAME.fullmatch(text)) for text in texts)


def distrust(finding: object, conn_id: str, installed: Installed) -> InstallationError:
    """Return the error for a finding of the statement ``distrusted``."""
    schema, table = installed.schema, f"the {installed.table} table of {installed.schema!r}"
    if not _is_finding(finding):
        return InstallationError(
            f"the server's answer doesn't tell who owns the schema for {installed.purpose} {schema!r}",
            conn_id,
            hint="is it PostgreSQL, and is it the server that the connection means?",
        )
    kind, name, role = finding.get("kind"), finding.get("name"), finding.get("role")
    could = f"could make role {finding.get('me')!r} run anything"
    where = f"in the schema for {installed.purpose} {schema!r}"
    hint = (
        "a DBA should look at it, and remove it or give it another owner (ALTER ... OWNER TO); or use another"
        f" schema ({installed.argument})"
    )
    if kind == "not a table":
        message = f"{name!r} {where} is no table: its owner {could}"
    elif kind == "condition":
        message = f"trigger {name!r} on {table} has a WHEN condition that {could}"
        hint = "a DBA should drop it: who made it isn't known; a condition may call immutable functions only"
    elif kind == "child":
        message = f"table {name!r} inherits from {table}, and its triggers {could}"
        hint = "a DBA should end that: ALTER TABLE ... NO INHERIT"
    elif kind in ("TRIGGER", "REFERENCES"):
        message = f"role {role!r} has the right {kind} on {table}, and {could}"
        grantee = "PUBLIC" if role == "PUBLIC" else sql.Identifier(str(role)).as_string()
        on = installed.identifier.as_string()
        hint = f"a DBA should run: REVOKE TRIGGER, REFERENCES ON {on} FROM {grantee}"
    else:
        what = {
            1: f"schema {name!r}",
            5: f"{kind} {name!r}, which {table} uses,",
            8: f"{kind} {name!r}, which refers to {table},",
        }.get(finding["place"], f"{kind} {name!r} {where}")
        message = f"{what} belongs to role {role!r}, who {could}"
        hint += "; to trust that role, with all of its members, name it in trusted_owners of the connection"
    return InstallationError(message, conn_id, hint=hint)
