"""Commands for remote jobs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from datetime import timedelta
from shlex import quote

from psycopg import sql as pg

from airflow_dblink.commands.common import command, demand_consent, demand_visible, say, show
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.jobs.client import Jobs
from airflow_dblink.core.jobs.install import VERSION, install_script
from airflow_dblink.core.jobs.job import SCHEMA, Job, parse_job_id
from airflow_dblink.core.jobs.trust import results_schema
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.hooks.dblink import DblinkHook

_LISTED = ("id", "state", "dag_id", "task_id", "run_id", "map_index", "sent_at", "ended_at", "row_count")
_LISTED_FOR_PEOPLE = ("id", "state", "task", "sent_at", "row_count")  # few: an id must fit on its line

_DROP = """\
-- Removes the schemas of remote jobs, for good: the table of all jobs, in which tasks look up the state
-- of their jobs, and all results that were kept, with the views that read them.
-- A job that still runs is rolled back, and a task that waits for a job fails.
DROP SCHEMA IF EXISTS {}, {} CASCADE;
"""


@contextmanager
def _jobs(conn_id: str) -> Iterator[Jobs]:
    """Connect for one command.

    :raises AirflowNotFoundException: if there is no such connection.
    :raises UsageError: if a field of the connection is wrong.
    :raises RemoteError: if the server can't be reached, or refuses.
    """
    hook = DblinkHook(dblink_conn_id=conn_id)
    schema = hook.target(conn_id).job_schema
    with closing(hook.open_direct(conn_id)) as connection:
        yield Jobs(connection, conn_id, schema)


@contextmanager
def _installed_jobs(conn_id: str) -> Iterator[Jobs]:
    """Connect as :func:`_jobs` does, to a database in which jobs can be sent.

    :raises UsageError: if they can't; the hint says how to change that.
    """
    with _jobs(conn_id) as jobs:
        found = jobs.installation()
        found.demand_usable(conn_id)
        if found.needs_install:
            what = "is not installed" if found.version is None else "is of an old version"
            raise UsageError(
                f"schema {jobs.schema!r} for jobs {what} in database {found.database!r}",
                conn_id,
                hint=f"airflow dblink install {conn_id}",
            )
        yield jobs


# -- the commands


@command
def sql(args: Namespace) -> None:
    """Print the SQL that installs the objects of remote jobs, or removes them; connect to no server.

    :raises UsageError: if options don't go together, or a field of the connection is wrong.
    :raises AirflowNotFoundException: if there is no such connection.
    """
    target = None if args.conn_id is None else DblinkHook(dblink_conn_id=args.conn_id).target(args.conn_id)
    schema = args.schema or (target.job_schema if target else SCHEMA)
    demand_visible(schema, "schema")
    if args.drop:
        if args.role or args.results:
            raise UsageError("--drop goes with neither --role nor --results")
        both = pg.Identifier(schema), pg.Identifier(results_schema(schema))
        say(pg.SQL(_DROP).format(*both).as_string().rstrip("\n"))
        return
    roles = args.role or []
    if target is not None and not roles:
        if not target.params.get("user"):
            raise UsageError("the connection has no login to grant to", args.conn_id, hint="give --role")
        roles = [target.params["user"]]
    for role in roles:
        demand_visible(role, "role")
    _demand_role_for_results(roles, results=args.results)
    say(install_script(schema, roles, results=args.results).rstrip("\n"))


def _demand_role_for_results(roles: Sequence[str], *, results: bool) -> None:
    """Raise if ``--results`` would do nothing.

    :raises UsageError: if there is no role to grant the right to.
    """
    if results and not roles:
        raise UsageError("--results needs a role to grant it to", hint="give --role")


@command
def install(args: Namespace) -> None:
    """Install the job schema, or upgrade it; if it is up to date, nothing changes.

    :raises UsageError: if the connection's role can't; the hint tells how to get the SQL for a DBA.
    :raises RemoteError: the server's errors.
    """
    roles = args.role or []
    _demand_role_for_results(roles, results=args.results)
    with _jobs(args.conn_id) as jobs:
        found = jobs.installation()
        found.demand_usable(args.conn_id)
        is_newer = found.version is not None and found.version > VERSION  # it serves us all the same
        if found.needs_install or (found.may_upgrade and not is_newer):
            jobs.install(roles, results=args.results)
            found = jobs.installation()
            found.demand_usable(args.conn_id)
        elif roles:
            why = "is newer than this airflow-dblink" if is_newer else "is not this role's to grant"
            by_whom = "of a newer airflow-dblink" if is_newer else "for a DBA to run"
            options = " ".join(f"--role {quote(role)}" for role in roles)
            options += " --results" if args.results else ""
            raise UsageError(
                f"schema {found.schema!r} {why} (role {found.role!r})",
                args.conn_id,
                hint=f"the SQL {by_whom} is printed by: airflow dblink sql {args.conn_id} {options}",
            )
    say(f"Version {found.version} is there: schema {found.schema!r} in database {found.database!r}.")


@command
def list_jobs(args: Namespace) -> None:
    """List the newest jobs.

    :raises UsageError: if the schema isn't there.
    :raises RemoteError: the server's errors.
    """
    with _installed_jobs(args.conn_id) as jobs:
        found = jobs.newest(states=args.state, dag_id=args.dag_id, most=args.limit)
    names = _LISTED if args.output in ("json", "yaml") else _LISTED_FOR_PEOPLE
    show([{name: getattr(job, name) for name in names} for job in found], args.output)


@command
def show_job(args: Namespace) -> None:
    """Show one job: a row for each of its columns or, as JSON and YAML, all in one.

    :raises UsageError: if there is no such job, or the schema isn't there.
    :raises RemoteError: the server's errors.
    """
    job_id = parse_job_id(args.job_id)
    with _installed_jobs(args.conn_id) as jobs:
        job = jobs.get(job_id)
        row = {field.name: getattr(job, field.name) for field in fields(Job)}
        for name in ("message", "detail", "hint", "context"):
            row[name] = row[name] and without_credentials(row[name])
        if args.statement:
            row["statement"] = jobs.statement(job_id)
    if args.output in ("json", "yaml"):
        show([row], args.output)
    else:
        show([{"property": name, "value": value} for name, value in row.items()], args.output)


@command
def cancel_job(args: Namespace) -> None:
    """Cancel one job.

    :raises UsageError: if there is no such job, or the schema isn't there.
    :raises RemoteError: the server's errors.
    :raises SystemExit: if it still runs after a few seconds.
    """
    job_id = parse_job_id(args.job_id)
    with _installed_jobs(args.conn_id) as jobs:
        job = jobs.cancel(job_id)
    if not job.has_ended:
        raise SystemExit(
            f"Job {job_id} was told to stop, but still is {job.state} (pid {job.pid})."
            f"\nHINT:  look again: airflow dblink show-job {args.conn_id} {job_id};"
            " pg_stat_activity says what it waits for"
        )
    say(f"Job {job_id}: {job.state}.")


@command
def prune_jobs(args: Namespace) -> None:
    """Delete jobs that ended long ago.

    :raises UsageError: if the schema isn't there.
    :raises RemoteError: the server's errors.
    :raises SystemExit: if the user doesn't want to.
    """
    demand_consent(
        f"This will delete all jobs on {args.conn_id!r} that ended more than {args.older_than:g} days ago,"
        " and the results they kept.",
        given=args.yes,
    )
    with _installed_jobs(args.conn_id) as jobs:
        deleted = jobs.prune(timedelta(days=args.older_than))
    say(f"Deleted {deleted} {'job' if deleted == 1 else 'jobs'}.")
