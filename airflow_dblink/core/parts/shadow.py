"""The shadow: the table that is loaded in parts, and then takes the destination's place.

:mod:`airflow_dblink.core.transfer.swap` has what a swap needs. Here several tasks do it. So each looks
what the one before has left, and the last whether somebody has altered the destination meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from psycopg import sql

from airflow_dblink.core.errors import LoadLostError, UsageError
from airflow_dblink.core.parts.key import ANEW
from airflow_dblink.core.parts.ledger import Head, Ledger
from airflow_dblink.core.server.side import Side, own_path
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.catalog import get_relation
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.pieces import Index, run_all, storage_statements
from airflow_dblink.core.transfer.plan import Spec
from airflow_dblink.core.transfer.swap import Pieces, Shadow, Together, create_like

_SQL = statements("parts_shadow.sql")
_DIGITS = 8


def create(side: Side, ledger: Ledger, old: Relation) -> Pieces:
    """Create the shadow in the open transaction, for the destination *old*; returns what it lacks.

    It belongs to the session's role until the swap, whoever owns the destination.

    :raises UsageError: if the destination is unlogged.
    """
    pieces = pieces_of(side, old.oid, ledger)
    if pieces.place.is_unlogged:
        raise UsageError(
            f"{old} is unlogged: a crash of its server would empty what was loaded, and nobody would notice",
            side.conn_id,
            "55000",
            hint="copy it as a whole with DblinkTransferOperator",
        )
    name = ledger.shadow_name
    made: list[str | sql.Composable] = [
        create_like(old, name, replace(pieces.place, is_own=True)),
        *storage_statements(side, old.oid, name),
    ]
    run_all(side, made, "creating the table that is loaded")
    return pieces


def shadow_of(side: Side, ledger: Ledger, head: Head, spec: Spec, together: Together) -> Shadow:
    """Return the shadow, with what it lacks, as the destination is now.

    :param spec: names the destination, and says how it is swapped.
    :param together: the tables that are swapped with it.
    :raises LoadLostError: if somebody has replaced or altered the destination since the load was planned.
    """
    old = get_relation(side, spec.destination_table)
    relation = get_relation(side, str(ledger.shadow_name))
    changed = "was replaced by another table" if old.oid != head.destination else None
    if changed is None and definition_of(side, old.oid) != head.definition:
        changed = "was altered"
    if changed is not None:
        raise LoadLostError(
            f"{old} {changed} since the load was planned",
            side.conn_id,
            "55000",
            hint=f"it is as it was left; {ANEW}",
        )
    pieces = pieces_of(side, old.oid, ledger)
    shadow = Shadow.of(side, spec, head.columns, old, ledger.shadow_name, pieces, together)
    return replace(shadow, built=frozenset(index_names(side, relation.oid)))


def pieces_of(side: Side, oid: int, ledger: Ledger) -> Pieces:
    """Return what the shadow lacks of a table; an index's name depends on its definition, not on others."""
    pieces = Pieces.of(side, oid, ledger.key.shadow)
    indexes = {_name(ledger.key.shadow, index): index for index in pieces.indexes.values()}
    return replace(pieces, indexes=indexes)


def _name(prefix: str, index: Index) -> str:
    facts = (index.name, index.is_unique, index.method, index.tablespace, index.constraint_definition)
    return f"{prefix}_{sha256(repr(facts).encode()).hexdigest()[:_DIGITS]}"


def index_names(side: Side, oid: int) -> list[str]:
    """Return the names of the indexes of a table."""
    return [row["name"] for row in side.ask(_SQL["index_names"], {"oid": oid})]


def definition_of(side: Side, oid: int) -> str:
    """Return a hash of what the shadow copies of a table's definition, for the open transaction's server.

    Two tables aren't compared: a constraint that is NOT VALID is valid in a copy.
    """
    with own_path(side):
        lines = [row["line"] for row in side.ask(_SQL["definition"], {"oid": oid})]
    return sha256(repr(lines).encode()).hexdigest()


def hide(side: Side, ledger: Ledger, old: Relation) -> None:
    """Keep all others from the load's tables, in the transaction that has made them.

    They are committed long before the swap gives them the privileges and the row security of *old*. What
    ALTER DEFAULT PRIVILEGES has given would show the rows meanwhile, or let a stranger add a trigger, which
    would run as this role.
    """
    found = ledger.found(side)
    params = {"oids": [*found.values()], "shadow": found[ledger.key.shadow], "old": old.oid}
    rows = side.ask(_SQL["hide"], params)
    run_all(side, [str(row["statement"]) for row in rows], "hiding the table that is loaded")


def drop_others(shadow: Shadow) -> None:
    """Drop the shadow's indexes that the destination no longer has."""
    drop = sql.SQL("DROP INDEX {}")
    gone = sorted(shadow.built - {*shadow.pieces.indexes})
    made = [drop.format(sql.Identifier(shadow.name.schema_name, name)) for name in gone]
    run_all(shadow.side, made, "dropping an index that the destination no longer has")


def give_to_owner(shadow: Shadow) -> None:
    """Give the shadow to the owner of the destination, without the row security that has hidden it."""
    place = shadow.pieces.place
    show = sql.SQL("ALTER TABLE {} DISABLE ROW LEVEL SECURITY")
    shadow.side.run(show.format(shadow.name.identifier), "giving the table to its owner")
    if not place.is_own:
        give = sql.SQL("ALTER TABLE {} OWNER TO {}")
        owner = sql.Identifier(place.owner)
        shadow.side.run(give.format(shadow.name.identifier, owner), "giving the table to its owner")
