"""The event schema of a database: installed by a DBA or by a role that may, and checked before each claim."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import InstallationError
from airflow_dblink.core.events.table import CHANNEL, Events
from airflow_dblink.core.installed.trust import Installed, fragments
from airflow_dblink.core.sql.named import statements

#: Version of the table and its functions; a newer version serves older clients, too.
VERSION = 1

_COMMENT = "airflow-dblink events, version {}"
_VERSION = re.compile(r"airflow-dblink events, version (\d+)")


def install_script(
    schema: str, *, emit: Sequence[str] = (), claim: Sequence[str] = (), trusted_owners: Sequence[str] = ()
) -> str:
    """Return the SQL that installs or upgrades the event schema, and grants; it may be run again.

    :param emit: roles that emit events, and don't own the schema.
    :param claim: roles that read, claim and prune events.
    :param trusted_owners: roles that may own parts of a schema that is there already.
    """
    named = statements("events_install.sql")
    installed, quote = Events(schema=schema).installed, "body"
    while f"${quote}$" in schema:
        quote += "_"
    parts: dict[str, sql.Composable] = {
        **fragments(installed, tuple(trusted_owners)),
        "quote": sql.SQL(f"${quote}$"),
        "attach_again": sql.Literal(
            "name its key anew by {}, or end its events by {}".format(
                *(sql.Identifier(schema, name).as_string() for name in ("attach", "detach"))
            )
        ),
        "capture_name": sql.Literal(sql.Identifier(schema, "capture").as_string()),
        "channel": sql.Literal(CHANNEL),
        "comment": sql.Literal(_COMMENT.format(VERSION)),
        "version": sql.Literal(VERSION),
    }
    parts["demand_trusted"] = sql.SQL(named["demand_trusted"]).format(**parts)
    texts: list[sql.Composable] = [sql.SQL(named["install"]).format(**parts)]
    for name, roles in (("grant_emit", emit), ("grant_claim", claim)):
        texts += [sql.SQL(named[name]).format(role=sql.Identifier(role), **parts) for role in roles]
    texts = [sql.SQL("BEGIN"), *texts, sql.SQL("COMMIT")]
    return sql.SQL(";\n\n").join(texts).as_string() + ";\n"


def demand_installed(row: Mapping[str, Any], installed: Installed, conn_id: str) -> None:
    """Raise unless the event schema is there, and of a version that this client knows.

    :param row: of the statement ``installed``.
    :raises InstallationError: the hint has the command.
    """
    found = _VERSION.fullmatch(row["comment"] or "")
    if not row["has_schema"]:
        raise not_usable("is not there", installed, conn_id)
    if found is None:
        raise not_usable("is none of ours", installed, conn_id)
    if int(found[1]) < VERSION:
        raise not_usable("is of an old version", installed, conn_id)


def not_usable(why: str, installed: Installed, conn_id: str) -> InstallationError:
    """Return the error for an event schema that has to be installed first."""
    return InstallationError(
        f"schema {installed.schema!r} for events {why}",
        conn_id,
        hint=f"airflow dblink install-events {conn_id} (with --print: the SQL for a DBA); or choose another"
        " schema (event_schema), or name your own table (own_table)",
    )
