"""What jobs need in the database: looked at before each send, made on first use, or by a DBA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.jobs.job import standby
from airflow_dblink.core.sqlfiles import statements

#: Of the table and the procedure; a newer one there serves older clients, too.
VERSION = 1

_COMMENT = "airflow-dblink jobs, version {}"
_VERSION = re.compile(r"airflow-dblink jobs, version (\d+)")


class InstallationError(UsageError):
    """The database isn't ready for jobs, and this role can't make it so. A DBA can."""


@dataclass(frozen=True)
class Installation:
    """What is there of the schema, and what this role may do with it.

    :ivar version: ``None`` where it isn't complete, or its comment doesn't say.
    :ivar distrusted_owner: a role that owns a part of it and is no one to trust with this role's rights.
    :ivar role: the role that jobs will run as.
    :ivar server: what tells this database from others: a stored job is looked for only there.
    """

    schema: str
    has_schema: bool
    version: int | None
    may_send: bool
    may_keep_results: bool
    may_upgrade: bool
    may_create: bool
    distrusted_owner: str | None
    role: str
    database: str
    server: Mapping[str, str]
    is_standby: bool

    @classmethod
    def read(cls, schema: str, row: Mapping[str, Any]) -> Self:
        """Return what a row of the statement ``installation`` says."""
        version = _VERSION.fullmatch(row["comment"] or "")
        return cls(
            schema=schema,
            version=int(version[1]) if version and row["is_complete"] else None,
            server={"system_identifier": row["system_identifier"], "database": row["database_oid"]},
            **{
                name: row[name]
                for name in (
                    *("has_schema", "may_send", "may_keep_results", "may_upgrade", "may_create"),
                    *("distrusted_owner", "role", "database", "is_standby"),
                )
            },
        )

    def is_ready(self, conn_id: str, *, keep_result: bool = False) -> bool:
        """Return whether jobs can be sent; false: :func:`install_script` is to be run first, and may be.

        :raises InstallationError: if neither; says what a DBA has to do.
        :raises TransientError: if the server is a standby.
        """
        if self.is_standby:
            raise standby(conn_id)
        if self.distrusted_owner is not None:
            raise InstallationError(
                f"schema {self.schema!r} or a part of it belongs to role {self.distrusted_owner!r}, who could"
                f" make role {self.role!r} run anything",
                conn_id,
                hint="a DBA should look at it and install it anew; or use another schema (job_schema)",
            )
        if self.version is None or self.version < VERSION:
            if self.has_schema and not self.may_upgrade:
                raise self._for_dba(
                    conn_id, "is not complete" if self.version is None else "is of an old version"
                )
            if not self.has_schema and not self.may_create:
                raise self._for_dba(conn_id, "is not there, and this role may not create it")
            return False
        if not self.may_send:
            raise self._for_dba(conn_id, "is not granted to this role")
        if keep_result and not self.may_keep_results:
            raise self._for_dba(
                conn_id,
                "does not let this role keep results, nor so hand rows on (GRANT CREATE)",
                " --results",
            )
        return True

    def _for_dba(self, conn_id: str, what: str, option: str = "") -> InstallationError:
        return InstallationError(
            f"schema {self.schema!r} for jobs in database {self.database!r} {what} (role {self.role!r})",
            conn_id,
            hint=f"what a DBA has to run there is printed by: airflow dblink sql {conn_id}{option}",
        )


def install_script(schema: str, roles: Sequence[str] = (), *, results: bool = False) -> str:
    """Return the SQL that installs or upgrades, and grants to *roles*; harmless to run again.

    :param roles: roles that send jobs and don't own the schema.
    :param results: let them keep results, too: CREATE on the schema.
    """
    named = statements("jobs_install.sql")
    names = ["grant", "grant_results"] if results else ["grant"]
    quote = "run"
    while f"${quote}$" in schema:  # which stands in the procedure's body
        quote += "_"
    parts: dict[str, sql.Composable] = {
        "quote": sql.SQL(f"${quote}$"),
        "schema": sql.Identifier(schema),
        "schema_name": sql.Literal(schema),
        "comment": sql.Literal(_COMMENT.format(VERSION)),
        "version": sql.Literal(VERSION),
    }
    texts: list[sql.Composable] = [sql.SQL(named["install"].decode()).format(**parts)]
    for role in roles:
        texts += [sql.SQL(named[name].decode()).format(role=sql.Identifier(role), **parts) for name in names]
    texts = [sql.SQL("BEGIN"), *texts, sql.SQL("COMMIT")]
    return sql.SQL(";\n\n").join(texts).as_string() + ";\n"
