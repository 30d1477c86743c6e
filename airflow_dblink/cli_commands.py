"""The code of the commands of ``airflow dblink``; :mod:`airflow_dblink.cli` lists them.

A command that fails writes the reason as one line to stderr, with a hint if there is one, and exits with 1.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import wraps
from shlex import quote

from airflow.cli.simple_table import AirflowConsole
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from psycopg import sql as pg

from airflow_dblink.core.errors import DblinkError, UsageError
from airflow_dblink.core.jobs.client import Jobs
from airflow_dblink.core.jobs.install import VERSION, install_script
from airflow_dblink.core.jobs.job import SCHEMA, Job, parse_job_id
from airflow_dblink.core.jobs.trust import results_schema
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.parts.left import KeeperLeft, LoadLeft, keepers_left, loads_left, prune
from airflow_dblink.core.server.side import Side
from airflow_dblink.hooks.dblink import DblinkHook

Command = Callable[[Namespace], None]

_LISTED = ("id", "state", "dag_id", "task_id", "run_id", "map_index", "sent_at", "ended_at", "row_count")
_LISTED_FOR_PEOPLE = ("id", "state", "task", "sent_at", "row_count")  # few: an id must fit on its line
_CONTEXT = "_AIRFLOW_PROCESS_CONTEXT"

_DROP = """\
-- Removes the schemas of remote jobs, for good: the table of all jobs, in which tasks look up the state
-- of their jobs, and all results that were kept, with the views that read them.
-- A job that still runs is rolled back, and a task that waits for a job fails.
DROP SCHEMA IF EXISTS {}, {} CASCADE;
"""


def _command(function: Command) -> Command:
    """Make *function* a command of Airflow: quiet, and without a traceback for users' mistakes."""

    @suppress_logs_and_warning
    @providers_configuration_loaded
    @wraps(function)
    def run(args: Namespace) -> None:
        try:
            with _metadata_database():
                function(args)
        except AirflowNotFoundException:
            raise SystemExit(
                f"There is no Airflow connection {args.conn_id!r}, or it can't be read."
                "\nHINT:  airflow connections list shows those of the metadata database"
            ) from None
        except DblinkError as error:
            raise SystemExit(_explained(error)) from None

    return run


@contextmanager
def _metadata_database() -> Iterator[None]:
    """Let Airflow look for connections in its metadata database, too.

    By default only its servers do that; ``airflow connections test`` uses the same trick.
    """
    before = os.environ.get(_CONTEXT)
    os.environ[_CONTEXT] = "server"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CONTEXT]
        else:
            os.environ[_CONTEXT] = before


def _explained(error: DblinkError) -> str:
    """Return the error as one line, and its hint as another, without the error's context."""
    kind = type(error)
    line = str(kind(error.message, error.connname, error.sqlstate, error.detail))
    line = _visible(" ".join(line.replace("\nDETAIL:  ", ": ").split()))
    return f"{line}\nHINT:  {_visible(without_credentials(error.hint))}" if error.hint else line


def _say(text: str) -> None:
    print(text)  # noqa: T201 - the command's purpose


def _visible(text: str, *, keep: str = "") -> str:
    r"""Return *text* with control and invisible characters as escapes: ``\x1b``, ``\u202e``, ``\n``.

    Names and messages come from servers and connections, and could rewrite the user's terminal.

    :param keep: characters that aren't escaped.
    """
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _demand_visible(name: str, what: str) -> None:
    """Raise if a name would look different in the printed SQL, which a DBA reads before running it.

    :raises UsageError: if the name holds control characters.
    """
    if not name.isprintable():
        raise UsageError(f"{what} {name!r} holds control characters", hint="use another name")


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
def _side(conn_id: str) -> Iterator[Side]:
    """Connect for one command that needs no job table; see :func:`_jobs`."""
    with closing(DblinkHook(dblink_conn_id=conn_id).open_direct(conn_id)) as connection:
        yield Side(connection, conn_id)


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


def _show(rows: Sequence[Mapping[str, object]], output: str) -> None:
    """Print rows in the form that ``--output`` asks for."""
    escapes_itself = output in ("json", "yaml")
    nothing = None if escapes_itself else ""
    keep = "\n" if output == "table" else ""  # a table shows where a cell of several lines ends

    def text(value: object) -> str | None:
        if value is None:
            return nothing
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat(timespec="milliseconds")
        return str(value) if escapes_itself else _visible(str(value), keep=keep)

    # A server's text is no markup: "[/]" would fail, and "[b]" would vanish.
    console = AirflowConsole(markup=False, emoji=False)
    console.print_as([{name: text(value) for name, value in row.items()} for row in rows], output=output)


# -- the commands


@_command
def sql(args: Namespace) -> None:
    """Print the SQL that installs the objects of remote jobs, or removes them; connect to no server.

    :raises UsageError: if options don't go together, or a field of the connection is wrong.
    :raises AirflowNotFoundException: if there is no such connection.
    """
    target = None if args.conn_id is None else DblinkHook(dblink_conn_id=args.conn_id).target(args.conn_id)
    schema = args.schema or (target.job_schema if target else SCHEMA)
    _demand_visible(schema, "schema")
    if args.drop:
        if args.role or args.results:
            raise UsageError("--drop goes with neither --role nor --results")
        both = pg.Identifier(schema), pg.Identifier(results_schema(schema))
        _say(pg.SQL(_DROP).format(*both).as_string().rstrip("\n"))
        return
    roles = args.role or []
    if target is not None and not roles:
        if not target.params.get("user"):
            raise UsageError("the connection has no login to grant to", args.conn_id, hint="give --role")
        roles = [target.params["user"]]
    for role in roles:
        _demand_visible(role, "role")
    _demand_role_for_results(roles, results=args.results)
    _say(install_script(schema, roles, results=args.results).rstrip("\n"))


def _demand_role_for_results(roles: Sequence[str], *, results: bool) -> None:
    """Raise if ``--results`` would do nothing.

    :raises UsageError: if there is no role to grant the right to.
    """
    if results and not roles:
        raise UsageError("--results needs a role to grant it to", hint="give --role")


@_command
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
    _say(f"Version {found.version} is there: schema {found.schema!r} in database {found.database!r}.")


@_command
def list_jobs(args: Namespace) -> None:
    """List the newest jobs.

    :raises UsageError: if the schema isn't there.
    :raises RemoteError: the server's errors.
    """
    with _installed_jobs(args.conn_id) as jobs:
        found = jobs.newest(states=args.state, dag_id=args.dag_id, most=args.limit)
    names = _LISTED if args.output in ("json", "yaml") else _LISTED_FOR_PEOPLE
    _show([{name: getattr(job, name) for name in names} for job in found], args.output)


@_command
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
        _show([row], args.output)
    else:
        _show([{"property": name, "value": value} for name, value in row.items()], args.output)


@_command
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
    _say(f"Job {job_id}: {job.state}.")


@_command
def prune_jobs(args: Namespace) -> None:
    """Delete jobs that ended long ago.

    :raises UsageError: if the schema isn't there.
    :raises RemoteError: the server's errors.
    :raises SystemExit: if the user doesn't want to.
    """
    _demand_consent(
        f"This will delete all jobs on {args.conn_id!r} that ended more than {args.older_than:g} days ago,"
        " and the results they kept.",
        given=args.yes,
    )
    with _installed_jobs(args.conn_id) as jobs:
        deleted = jobs.prune(timedelta(days=args.older_than))
    _say(f"Deleted {deleted} {'job' if deleted == 1 else 'jobs'}.")


@_command
def list_loads(args: Namespace) -> None:
    """List what loads in parts have in a database: tables of the destination, keepers of the source.

    :raises RemoteError: the server's errors.
    """
    with _side(args.conn_id) as side:
        rows = [_load_row(load) for load in loads_left(side)]
        rows += [_keeper_row(keeper) for keeper in keepers_left(side)]
    _show(rows, args.output)


def _load_row(load: LoadLeft) -> dict[str, object]:
    return {
        "load": load.key.text,
        "what": f"tables in {load.schema_name}",
        "table": load.table,
        "role": load.owner,
        "parts": _parts(load),
        "MB": None if load.bytes is None else f"{load.bytes / 1e6:.1f}",
        "snapshot": load.taken_at,
        "used_by": f"{load.sessions} sessions" if load.sessions else None,
    }


def _parts(load: LoadLeft) -> str | None:
    if load.is_lost:
        return "a table is gone"
    return load.problem if load.head is None else f"{load.done} of {load.head.parts}"


def _keeper_row(left: KeeperLeft) -> dict[str, object]:
    return {
        "load": left.key.text,
        "what": f"keeper, pid {left.keeper.pid}",
        **dict.fromkeys(("table", "role", "parts", "MB")),
        "snapshot": left.taken_at,
        "used_by": "a part" if left.is_used else None,
    }


@_command
def prune_loads(args: Namespace) -> None:
    """Drop the tables of loads that began long ago, and end old keepers that no part uses.

    :raises RemoteError: the server's errors.
    :raises SystemExit: if the user doesn't want to.
    """
    _demand_consent(
        f"This will drop the tables of all loads in parts on {args.conn_id!r} that began more than"
        f" {args.older_than:g} days ago, and end the snapshots on it that are as old and that no part uses.",
        given=args.yes,
    )
    with _side(args.conn_id) as side:
        pruned, ended = prune(side, timedelta(days=args.older_than))
    _say(f"Loads removed: {pruned}. Snapshots ended: {ended}.")


def _demand_consent(what: str, *, given: bool) -> None:
    """Ask the user whether to go on, unless they have consented by an option (*given*).

    :raises SystemExit: unless the answer is yes.
    """
    try:
        if given or input(f"{what} Proceed? (y/n)").upper() == "Y":
            return
    except EOFError:
        raise SystemExit("\nNobody is there to answer.\nHINT:  --yes") from None
    raise SystemExit("Cancelled")
