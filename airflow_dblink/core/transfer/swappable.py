"""Whether a table can be swapped for a new one: what that would lose or break is refused by name."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side, demand
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.entries import Relation

SWAP_TIMEOUT = timedelta(minutes=5)

_SQL = statements("swap.sql")
_PHRASES = {
    "changed": "a trigger of its constraint {} is not enabled as usual",
    "child": "{} inherits from it",
    "extension": "extension {} has it, or a part of it depends on that",
    "function": "the role may not use the function of its trigger {}",
    "invalid": "its index {} is invalid",
    "label": "it has a security label of {}",
    "outside": "{} depends on it",
    "parent": "it inherits from {}",
    "publication": "publication {} publishes it, and subscribers would not get the swap",
    "rule": "it has the rule {}",
    "subscription": "subscription {} writes to it",
    "trigger": "its trigger {} fires on INSERT, and would not for the load",
    "type": "it is a table of type {}",
}
_ELSE = "mode='replace' loads the table in its place, DblinkSyncOperator writes only what differs"


def demand_swap_arguments(mode: str, swap_timeout: object, old_snapshots_timeout: object) -> None:
    """Raise unless the arguments of a swap are times, and there is one.

    :raises UsageError: names the argument.
    """
    for name, value in (("swap_timeout", swap_timeout), ("old_snapshots_timeout", old_snapshots_timeout)):
        may_be_none = name == "old_snapshots_timeout"
        if value is None and may_be_none:
            continue
        if not isinstance(value, timedelta):
            wanted = "a timedelta or None" if may_be_none else "a timedelta"
            raise UsageError(f"{name} must be {wanted}, got {type(value).__name__}")
        if value < timedelta():
            raise UsageError(f"{name} must not be negative, got {value}")
        if mode != "swap" and (may_be_none or value != SWAP_TIMEOUT):
            raise UsageError(f"{name} is for mode='swap', not for {mode!r}", hint=f"leave {name} out")


def demand_swappable(destination: Side, relation: Relation, together: Collection[int] = ()) -> None:
    """Raise unless another table can take the place of *relation*.

    :param together: oids of the tables that are swapped with it, whose foreign keys follow.
    :raises UsageError: names everything that stands in the way, or the privilege that lacks.
    """
    facts = destination.ask(_SQL["owner"], {"oid": relation.oid})[0]
    kind = "temporary" if facts["is_temporary"] else "a partition" if facts["is_partition"] else None
    if relation.kind != "r" or kind:
        what = kind or relation.kind_name
        raise UsageError(
            f"{relation} is {what}, and mode='swap' takes ordinary tables alone",
            destination.conn_id,
            "42809",
            hint=_ELSE,
        )
    if not facts["may_act"]:
        raise UsageError(
            f"permission denied: only the owner of {relation} can swap it, {facts['owner']!r}",
            destination.conn_id,
            "42501",
            hint=f"connect as the owner, or make the connection's role a member of it; {_ELSE}",
        )
    create = f"no CREATE on schema {relation.schema_name}, for the new table"
    demand(facts["may_create"], destination, f"permission denied: {create}")
    if not facts["owner_may_create"]:
        raise UsageError(
            f"permission denied: the owner {facts['owner']!r} of {relation} has {create}",
            destination.conn_id,
            "42501",
            hint="grant it to the owner",
        )
    found = destination.ask(_SQL["obstacles"], {"oid": relation.oid, "together": [*together]})
    if found:
        reasons = [_PHRASES[row["kind"]].format(row["name"]) for row in found]
        raise UsageError(
            f"{relation} can't be swapped for a new table: {'; '.join(reasons)}",
            destination.conn_id,
            "2BP01",
            hint=_ELSE,
        )
