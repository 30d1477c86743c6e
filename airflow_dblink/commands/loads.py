"""Commands for what loads in parts have left."""

from __future__ import annotations

from argparse import Namespace
from datetime import timedelta

from airflow_dblink.commands.common import command, demand_consent, say, show, side_of
from airflow_dblink.core.parts.left import KeeperLeft, LoadLeft, keepers_left, loads_left, prune


@command
def list_loads(args: Namespace) -> None:
    """List what loads in parts have in a database: tables of the destination, keepers of the source.

    :raises RemoteError: the server's errors.
    """
    with side_of(args.conn_id) as side:
        rows = [_load_row(load) for load in loads_left(side)]
        rows += [_keeper_row(keeper) for keeper in keepers_left(side)]
    show(rows, args.output)


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


@command
def prune_loads(args: Namespace) -> None:
    """Drop the tables of loads that began long ago, and end old keepers that no part uses.

    :raises RemoteError: the server's errors.
    :raises SystemExit: if the user doesn't want to.
    """
    demand_consent(
        f"This will drop the tables of all loads in parts on {args.conn_id!r} that began more than"
        f" {args.older_than:g} days ago, and end the snapshots on it that are as old and that no part uses.",
        given=args.yes,
    )
    with side_of(args.conn_id) as side:
        pruned, ended = prune(side, timedelta(days=args.older_than))
    say(f"Loads removed: {pruned}. Snapshots ended: {ended}.")
