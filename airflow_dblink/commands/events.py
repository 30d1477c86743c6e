"""Commands for the event table."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from datetime import timedelta

from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from sqlalchemy import select, tuple_
from sqlalchemy.exc import SQLAlchemyError

from airflow_dblink.commands.common import command, demand_consent, demand_visible, say, show, side_of
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.events import admin
from airflow_dblink.core.events.claims import release
from airflow_dblink.core.events.install import VERSION, install_script
from airflow_dblink.core.events.table import Events
from airflow_dblink.core.sqltext.names import demand_characters

Run = tuple[str, str]


@command
def install_events(args: Namespace) -> None:
    """Install the event table, or print the SQL.

    :raises RemoteError: the server's errors; nothing is changed then.
    """
    roles = {"emit": args.emit or [], "claim": args.claim or []}
    if args.print:
        for name in (args.schema, *roles["emit"], *roles["claim"]):
            demand_visible(name, "name")
        say(install_script(args.schema, **roles).rstrip("\n"))
        return
    with side_of(args.conn_id) as side:
        admin.install(side, args.schema, **roles)
    say(f"Version {VERSION} is there: schema {args.schema!r}.")


@command
def list_events(args: Namespace) -> None:
    """Count events by topic, and list the claims that aren't done, with the states of their runs.

    :raises UsageError: if the event table isn't there, or isn't trusted.
    :raises RemoteError: the server's errors.
    """
    events = Events(schema=args.schema)
    with side_of(args.conn_id) as side:
        topics = admin.topics(side, events)
        claims = admin.open_claims(side, events, most=args.limit)
    states = _states([run for claim in claims if (run := _run_of(claim["claimed_by"]))])
    rows: list[Mapping[str, object]] = [
        {
            "topic": row["topic"],
            "claim": None,
            "run": None,
            "unclaimed": row["unclaimed"],
            "claimed": row["claimed"],
            "done": row["done"],
            "since": row["oldest_unclaimed"],
        }
        for row in topics
    ]
    rows += [
        {
            "topic": row["topic"],
            "claim": row["claimed_by"],
            "run": states.get(_run_of(row["claimed_by"]), "unknown"),
            "unclaimed": None,
            "claimed": row["events"],
            "done": None,
            "since": row["claimed_at"],
        }
        for row in claims
    ]
    show(rows, args.output)


def _run_of(claimed_by: str) -> Run | None:
    """Return Dag and run of a claim, ``dag_id/run_id/task_id/map_index``; only a run's id may hold "/"."""
    dag_id, _, rest = claimed_by.partition("/")
    run_id, *task = rest.rsplit("/", 2)
    return (dag_id, run_id) if len(task) == 2 else None


def _states(runs: list[Run]) -> dict[Run | None, str]:
    """Return the states of these runs in Airflow's metadata database, as far as it can be read."""
    wanted = select(DagRun.dag_id, DagRun.run_id, DagRun.state).where(
        tuple_(DagRun.dag_id, DagRun.run_id).in_(runs)
    )
    try:
        with create_session() as session:
            return {(dag_id, run_id): str(state) for dag_id, run_id, state in session.execute(wanted)}
    except SQLAlchemyError:
        return {}


@command
def release_events(args: Namespace) -> None:
    """Give a claim's events back.

    :raises UsageError: if there is no such claim; if the event table isn't there, or isn't trusted.
    :raises RemoteError: the server's errors; nothing is changed then.
    :raises SystemExit: if the user doesn't want to.
    """
    demand_characters("CLAIMED_BY", args.claimed_by)
    demand_consent(
        f"This will let another run claim the events of {args.claimed_by!r} on {args.conn_id!r} that are not"
        " done. If that run is still at work, they are handled twice.",
        given=args.yes,
    )
    with side_of(args.conn_id) as side:
        number = release(side, Events(schema=args.schema), args.claimed_by, settings={})
    if not number:
        raise UsageError(
            f"no event that is not done is claimed by {args.claimed_by!r}",
            args.conn_id,
            hint=f"airflow dblink list-events {args.conn_id} shows the claims",
        )
    say(f"Given back: {number} {'event' if number == 1 else 'events'}.")


@command
def prune_events(args: Namespace) -> None:
    """Delete events that were done long ago.

    :raises UsageError: if the event table isn't there, or isn't trusted.
    :raises RemoteError: the server's errors.
    :raises SystemExit: if the user doesn't want to.
    """
    demand_consent(
        f"This will delete all events on {args.conn_id!r} that were done more than {args.older_than:g} days"
        " ago.",
        given=args.yes,
    )
    with side_of(args.conn_id) as side:
        number = admin.prune(side, Events(schema=args.schema), timedelta(days=args.older_than))
    say(f"Deleted {number} {'event' if number == 1 else 'events'}.")
