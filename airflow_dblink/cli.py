"""The commands of ``airflow dblink`` and their arguments, for Airflow's parser.

Every ``airflow`` command imports this module, so it imports only what the parser
needs. The code of the commands is in :mod:`airflow_dblink.commands`, imported when one is called.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Any

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_VERBOSE,
    ARG_YES,
    ActionCommand,
    Arg,
    CLICommand,
    GroupCommand,
    lazy_load_command,
    positive_int,
)

#: The same as in the core, which is not imported here.
STATES = ("sent", "running", "succeeded", "failed", "cancelled", "lost")

_NAME_BYTES = 63  # PostgreSQL would cut a longer name, and grant to another role
_MOST_DAYS = 36_500.0


def _name(text: str) -> str:
    """Return *text* if it can be a role's or schema's name.

    :raises ArgumentTypeError: if it can't.
    """
    if 0 < len(text.encode()) <= _NAME_BYTES:
        return text
    raise ArgumentTypeError(f"a name has 1 to {_NAME_BYTES} bytes, got {text!r}")


def _days(text: str) -> float:
    """Return *text* as a number of days.

    :raises ArgumentTypeError: if it is no number, or out of range.
    """
    try:
        days = float(text)
    except ValueError:
        days = -1
    if not 0 <= days <= _MOST_DAYS:  # also refuses NaN
        raise ArgumentTypeError(f"must be a number of days from 0 to {_MOST_DAYS:.0f}, got {text!r}")
    return days


def _argument(*flags: str, **options: Any) -> Arg:
    """Return an argument with these *options* of ``argparse``."""
    return Arg(flags, **options)  # type: ignore[no-untyped-call] # Airflow's


_CONN_ID = _argument("conn_id", metavar="CONN_ID", type=str, help="Airflow connection of the database")
_CONN_ID_OPTIONAL = _argument(
    "conn_id",
    metavar="CONN_ID",
    type=str,
    nargs="?",
    help="Airflow connection that sends jobs: its login is the role, its job_schema the schema",
)
_JOB_ID = _argument("job_id", metavar="JOB_ID", type=str, help="Id of the job, a UUID")
_ROLE = _argument(
    "--role",
    metavar="ROLE",
    type=_name,
    action="append",
    help="Role that gets the right to send jobs; may be given more than once",
)
_RESULTS = _argument(
    "--results",
    action="store_true",
    help="Let the roles keep the results of jobs, too: CREATE on the schema for results",
)
_SCHEMA = _argument(
    "--schema",
    metavar="NAME",
    type=_name,
    help="Schema of the job table (default: the connection's job_schema, or airflow_dblink)",
)
_DROP = _argument("--drop", action="store_true", help="Print the SQL that removes all of it instead")
_STATE = _argument(
    "--state",
    metavar="STATE",
    type=str,
    choices=STATES,
    action="append",
    help=f"Only jobs in that state ({', '.join(STATES)}); may be given more than once",
)
_DAG_ID = _argument(
    "-d", "--dag-id", metavar="DAG_ID", type=str, help="Only jobs that a task of this Dag sent"
)
_LIMIT = _argument(
    "--limit",
    metavar="N",
    type=positive_int(allow_zero=False),  # type: ignore[no-untyped-call] # Airflow's
    default=100,
    help="Largest number of jobs; the newest are listed (default: 100)",
)
_STATEMENT = _argument(
    "--statement",
    action="store_true",
    help="Show the statement, too, as the user wrote it: without its parameters' values",
)
_OLDER_THAN = _argument(
    "--older-than",
    metavar="DAYS",
    type=_days,
    default=30.0,
    help="Jobs that ended more than this number of days ago; it may have a fraction (default: 30)",
)
_EMIT = _argument(
    "--emit",
    metavar="ROLE",
    type=_name,
    action="append",
    help="Role that gets the right to emit events; may be given more than once",
)
_CLAIM = _argument(
    "--claim",
    metavar="ROLE",
    type=_name,
    action="append",
    help="Role that gets the right to read, claim and prune events; may be given more than once",
)
_EVENT_SCHEMA = _argument(
    "--schema",
    metavar="NAME",
    type=_name,
    default="airflow_dblink_events",
    help="Schema of the event table (default: airflow_dblink_events)",
)
_PRINT = _argument(
    "--print", action="store_true", help="Print the SQL instead, for a DBA; connect to no server"
)
_CLAIMED_BY = _argument(
    "claimed_by",
    metavar="CLAIMED_BY",
    type=str,
    help="The claim, as list-events shows it: dag_id/run_id/task_id/map_index",
)
_CLAIM_LIMIT = _argument(
    "--limit",
    metavar="N",
    type=positive_int(allow_zero=False),  # type: ignore[no-untyped-call] # Airflow's
    default=100,
    help="Largest number of claims; the oldest are listed (default: 100)",
)
_EVENTS_OLDER_THAN = _argument(
    "--older-than",
    metavar="DAYS",
    type=_days,
    default=30.0,
    help="Events that were done more than this number of days ago; it may have a fraction (default: 30)",
)
_LOADS_OLDER_THAN = _argument(
    "--older-than",
    metavar="DAYS",
    type=_days,
    default=7.0,
    help="Loads that began more than this number of days ago; it may have a fraction (default: 7)",
)


def _command(module: str, name: str, text: str, *args: Arg, more: str | None = None) -> ActionCommand:
    """Return a command; its function has the command's name.

    :param module: module of the function, in :mod:`airflow_dblink.commands`.
    :param more: shown by the command's own help, after *text*.
    """
    return ActionCommand(
        name=name,
        help=text,
        description=f"{text}. {more}" if more else f"{text}.",
        func=lazy_load_command(f"airflow_dblink.commands.{module}.{name.replace('-', '_')}"),
        args=(*args, ARG_VERBOSE),
    )


def get_commands() -> list[CLICommand]:
    """Return the group ``dblink``; named in the provider's metadata."""
    return [
        GroupCommand(
            name="dblink",
            help="Manage remote jobs, events, and loads in parts, in PostgreSQL databases",
            description="Install the schemas for remote jobs and for events in a PostgreSQL database, manage"
            " both, and remove what loads in parts have left.",
            subcommands=(
                _command(
                    "jobs",
                    "sql",
                    "Print the SQL that installs the schema for remote jobs, for a DBA to run",
                    *(_CONN_ID_OPTIONAL, _ROLE, _RESULTS, _SCHEMA, _DROP),
                    more="The SQL may be run again, and then upgrades. The command connects to no server.",
                ),
                _command(
                    "jobs",
                    "install",
                    "Install the schema for remote jobs in a database, or upgrade it",
                    *(_CONN_ID, _ROLE, _RESULTS),
                    more="If the connection's role may not do this, a DBA can: see airflow dblink sql.",
                ),
                _command(
                    "jobs",
                    "list-jobs",
                    "List the newest remote jobs of a database",
                    *(_CONN_ID, _STATE, _DAG_ID, _LIMIT, ARG_OUTPUT),
                    more="Only the role that sent a job, and superusers, see it.",
                ),
                _command(
                    "jobs",
                    "show-job",
                    "Show everything that is known about a remote job",
                    *(_CONN_ID, _JOB_ID, _STATEMENT, ARG_OUTPUT),
                ),
                _command(
                    "jobs",
                    "cancel-job",
                    "Cancel a remote job and wait a few seconds for its end",
                    *(_CONN_ID, _JOB_ID),
                    more="A job that has ended stays as it is.",
                ),
                _command(
                    "jobs",
                    "prune-jobs",
                    "Delete remote jobs that ended long ago, and the results they kept",
                    *(_CONN_ID, _OLDER_THAN, ARG_YES),
                ),
                _command(
                    "loads",
                    "list-loads",
                    "List the tables and snapshots of loads in parts",
                    *(_CONN_ID, ARG_OUTPUT),
                    more="Tables are in the destination's database, the sessions that keep a snapshot in the"
                    " source's.",
                ),
                _command(
                    "loads",
                    "prune-loads",
                    "Drop the tables of loads in parts that began long ago, and end unused snapshots",
                    *(_CONN_ID, _LOADS_OLDER_THAN, ARG_YES),
                    more="A load whose tables a session has locked stays.",
                ),
                _command(
                    "events",
                    "install-events",
                    "Install the event table in a database, or upgrade it",
                    *(_CONN_ID, _EMIT, _CLAIM, _EVENT_SCHEMA, _PRINT),
                    more="It may be run again, and keeps all events.",
                ),
                _command(
                    "events",
                    "list-events",
                    "Count a database's events by topic, and list the claims that are not done",
                    *(_CONN_ID, _EVENT_SCHEMA, _CLAIM_LIMIT, ARG_OUTPUT),
                    more="A claim's run is looked up in Airflow: events of a failed run wait for somebody to"
                    " clear the run, or to release them.",
                ),
                _command(
                    "events",
                    "release-events",
                    "Give a claim's events back, so that another run can claim them",
                    *(_CONN_ID, _CLAIMED_BY, _EVENT_SCHEMA, ARG_YES),
                    more="Events that are done stay so.",
                ),
                _command(
                    "events",
                    "prune-events",
                    "Delete events that were done long ago",
                    *(_CONN_ID, _EVENTS_OLDER_THAN, _EVENT_SCHEMA, ARG_YES),
                ),
            ),
        )
    ]
