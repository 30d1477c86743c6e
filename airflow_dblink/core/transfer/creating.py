"""Creating the tables of a set that the destination lacks: all, with their foreign keys, or none."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side, in_transaction
from airflow_dblink.core.sets.choose import Pair
from airflow_dblink.core.sets.problems import for_each
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.catalog import find_relation, get_relation
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.like import make, rehearse
from airflow_dblink.core.transfer.plan import Spec, plan
from airflow_dblink.core.transfer.swappable import demand_swappable

log = logging.getLogger(__name__)

_SQL = statements("sets.sql")
_ACTION = "creating the set's tables"
_MATCHES = {"s": "SIMPLE", "f": "FULL"}
_ACTIONS = {"a": "NO ACTION", "r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}


def create_missing(
    source: Side,
    destination: Side,
    pairs: Sequence[Pair],
    source_settings: Mapping[str, str],
    destination_settings: Mapping[str, str],
) -> None:
    """Create the schemas and tables that the destination lacks, empty, in one transaction.

    They are like the source's: columns, defaults, identity, CHECKs, keys, indexes, comments, and the foreign
    keys among the set's tables.

    :param source_settings: run-time parameters, local to the transaction.
    :param destination_settings: the same for the destination.
    :raises UsageError: names all tables that can't be created, or that are there and can't be swapped.
    :raises RemoteError: what a server says, as of a type that the destination lacks; nothing is created then.
    """
    with (
        in_transaction(source, source_settings, _ACTION),
        in_transaction(destination, destination_settings, _ACTION),
    ):
        found = {pair: find_relation(destination, pair.destination) for pair in pairs}
        there = {pair: relation for pair, relation in found.items() if relation is not None}
        missing = [pair for pair in pairs if pair not in there]
        if not missing:
            return
        oids = [relation.oid for relation in there.values()]
        for_each(
            there.items(),
            lambda each: demand_swappable(destination, each[1], oids),
            lambda each: str(each[0]),
        )
        for schema in dict.fromkeys(pair.schema for pair in missing):
            if not destination.ask(_SQL["schema"], {"name": schema}):
                destination.run(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)), _ACTION)
        tables = {pair: get_relation(source, pair.source) for pair in pairs}
        for_each(missing, lambda pair: _create(source, destination, pair), str)
        names = {table.oid: pair.destination_identifier for pair, table in tables.items()}
        keys = [key for pair in missing for key in _keys(source, tables[pair], pair, names)]
        for key in keys:
            destination.run(key, "creating the set's foreign keys")
    log.info("%s: created %s tables with %s foreign keys", destination.conn_id, len(missing), len(keys))


def _create(source: Side, destination: Side, pair: Pair) -> None:
    spec = Spec(destination_table=pair.destination, source_table=pair.source, mode="create", like="all")
    work = plan(source, destination, spec)
    if work.create is None:
        raise UsageError("it was created meanwhile", destination.conn_id, "42P07")
    destination.run(work.create.statement, "creating the destination table")
    rehearse(destination, work.target, work.create.pieces)
    make(destination, work.create.pieces)


def _keys(
    source: Side, table: Relation, pair: Pair, names: Mapping[int, sql.Identifier]
) -> list[sql.Composed]:
    """Return the statements that make the table's foreign keys to tables of the set.

    Written from facts: the text of a definition is the source's server's, and would be run here.
    """
    made = []
    for row in source.ask(_SQL["foreign_keys"], {"oid": table.oid}):
        other = names.get(row["refers_to"])
        if other is None or row["is_special"]:
            log.warning("%s is created without foreign key %s", pair.destination, row["name"])
            continue
        made.append(_key(source, row, pair.destination_identifier, other))
    return made


def _key(source: Side, row: Mapping[str, Any], table: sql.Identifier, other: sql.Identifier) -> sql.Composed:
    facts = [(_MATCHES, row["match"]), (_ACTIONS, row["on_update"]), (_ACTIONS, row["on_delete"])]
    if not all(value in known for known, value in facts):
        raise UsageError(f"foreign key {row['name']} is of no kind that is known", source.conn_id)
    match, on_update, on_delete = (sql.SQL(known[value]) for known, value in facts)
    columns, others = (
        sql.SQL(", ").join(map(sql.Identifier, row[names])) for names in ("columns", "other_columns")
    )
    deferrable = sql.SQL("DEFERRABLE" if row["is_deferrable"] else "NOT DEFERRABLE")
    deferred = sql.SQL("DEFERRED" if row["is_deferred"] else "IMMEDIATE")
    return sql.SQL(
        "ALTER TABLE {} ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}) MATCH {} ON UPDATE {}"
        " ON DELETE {} {} INITIALLY {}"
    ).format(
        table,
        sql.Identifier(row["name"]),
        columns,
        other,
        others,
        match,
        on_update,
        on_delete,
        deferrable,
        deferred,
    )
