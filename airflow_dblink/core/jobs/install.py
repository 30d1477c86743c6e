"""The job schema of a database: checked before each send; created at the first use, or by a DBA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from psycopg import sql

from airflow_dblink.core.errors import InstallationError
from airflow_dblink.core.installed.trust import distrust
from airflow_dblink.core.jobs.job import standby
from airflow_dblink.core.jobs.trust import job_table, results_schema
from airflow_dblink.core.sql.named import statements

#: Version of the table and the procedure; a newer version serves older clients, too. 2: results have a
#: schema of their own.
VERSION = 2

_COMMENT = "airflow-dblink jobs, version {}"
_RESULTS_COMMENT = "airflow-dblink results of jobs in schema {}"
_VERSION = re.compile(r"airflow-dblink jobs, version (\d+)")


@dataclass(frozen=True)
class Installation:
    """The state of the job schema, and this role's rights on it.

    :ivar version: ``None`` if the schema isn't complete, or its comment has no version.
    :ivar distrusted: an object by which a role that isn't trusted could run code as this role; see
        :func:`~airflow_dblink.core.installed.trust.distrust`.
    :ivar role: the role that runs the jobs.
    :ivar server: facts that identify this database: a stored job is looked up only there.
    """

    schema: str
    has_schema: bool
    version: int | None
    may_send: bool
    may_keep_results: bool
    may_upgrade: bool
    may_create: bool
    distrusted: object
    role: str
    database: str
    server: Mapping[str, str]
    is_standby: bool

    @classmethod
    def read(cls, schema: str, row: Mapping[str, Any]) -> Self:
        """Return the installation of a row from the statement ``installation``."""
        said = _VERSION.fullmatch(row["comment"] or "")
        version = int(said[1]) if said and row["is_complete"] else None
        if version is not None and version >= VERSION and not row["has_results"]:
            version = None
        return cls(
            schema=schema,
            version=version,
            server={"system_identifier": row["system_identifier"], "database": row["database_oid"]},
            **{
                name: row[name]
                for name in (
                    *("has_schema", "may_send", "may_keep_results", "may_upgrade", "may_create"),
                    *("distrusted", "role", "database", "is_standby"),
                )
            },
        )

    @property
    def needs_install(self) -> bool:
        """Whether :func:`install_script` has to be run before jobs can be sent."""
        return self.version is None or self.version < VERSION

    def demand_usable(self, conn_id: str, *, keep_result: bool = False) -> None:
        """Raise unless this role can send jobs, or can first run :func:`install_script`.

        :raises InstallationError: the hint tells how to get the SQL for a DBA.
        :raises TransientError: if the server is a standby.
        """
        if self.is_standby:
            raise standby(conn_id)
        if self.distrusted is not None:
            raise distrust(self.distrusted, conn_id, job_table(self.schema))
        if self.needs_install:
            if self.has_schema and not self.may_upgrade:
                raise self._for_dba(
                    conn_id, "is not complete" if self.version is None else "is of an old version"
                )
            if not self.has_schema and not self.may_create:
                raise self._for_dba(conn_id, "is not there, and this role may not create it")
            return
        if not self.may_send:
            raise self._for_dba(conn_id, "is not granted to this role")
        if keep_result and not self.may_keep_results:
            raise self._for_dba(
                conn_id,
                "does not let this role keep results, as handing on rows needs"
                f" (USAGE and CREATE on schema {results_schema(self.schema)!r})",
                " --results",
            )

    def _for_dba(self, conn_id: str, what: str, option: str = "") -> InstallationError:
        return InstallationError(
            f"schema {self.schema!r} for jobs in database {self.database!r} {what} (role {self.role!r})",
            conn_id,
            hint=f"the SQL for a DBA to run there is printed by: airflow dblink sql {conn_id}{option}",
        )


def install_script(schema: str, roles: Sequence[str] = (), *, results: bool = False) -> str:
    """Return the SQL that installs or upgrades the schema, and grants to *roles*; it may be run again.

    :param roles: roles that send jobs and don't own the schema.
    :param results: let them keep results, too: CREATE on the schema for results.
    """
    named = statements("jobs_install.sql")
    names = ["grant", "grant_results"] if results else ["grant"]
    results_in, quote = results_schema(schema), "run"
    while f"${quote}$" in schema + results_in:  # both names stand in the procedure's body
        quote += "_"
    parts: dict[str, sql.Composable] = {
        "quote": sql.SQL(f"${quote}$"),
        "schema": sql.Identifier(schema),
        "schema_name": sql.Literal(schema),
        "job_name": sql.Literal(sql.Identifier(schema, "job").as_string()),
        "results": sql.Identifier(results_in),
        "results_name": sql.Literal(results_in),
        "comment": sql.Literal(_COMMENT.format(VERSION)),
        "results_comment": sql.Literal(_RESULTS_COMMENT.format(schema)),
        "version": sql.Literal(VERSION),
    }
    texts: list[sql.Composable] = [sql.SQL(named["install"]).format(**parts)]
    for role in roles:
        texts += [sql.SQL(named[name]).format(role=sql.Identifier(role), **parts) for name in names]
    texts = [sql.SQL("BEGIN"), *texts, sql.SQL("COMMIT")]
    return sql.SQL(";\n\n").join(texts).as_string() + ";\n"
