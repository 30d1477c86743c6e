"""Creating the tables of a set that the destination lacks: all, with their foreign keys, or none."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.server.side import Side, in_transaction
from airflow_dblink.core.sets.choose import Pair
from airflow_dblink.core.sets.problems import for_each
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.catalog import find_relation, get_relation
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.like import make, rehearse
from airflow_dblink.core.tables.pieces import run_all
from airflow_dblink.core.transfer.in_use import Patience
from airflow_dblink.core.transfer.plan import Spec, plan
from airflow_dblink.core.transfer.swappable import SWAP_TIMEOUT, demand_swappable

log = logging.getLogger(__name__)

_SQL = statements("sets.sql")
_ACTION = "creating the set's tables"
_NO_KEY = ("42830", "42804")  # no unique constraint there; types that can't be compared
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
    :raises RemoteError: what a server says; nothing is created then.
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
        for_each(missing, lambda pair: _create(source, destination, pair, tables[pair]), str)
        names = {table.oid: pair.destination_identifier for pair, table in tables.items()}
        keys = [key for pair in missing for key in _keys(source, tables[pair], pair, names)]
        _warn_of_keys(
            source, [(pair, tables[pair]) for pair in there], {tables[pair].oid for pair in missing}
        )
        _make_keys(destination, keys, [*there.values()])
    log.info("%s: created %s tables with %s foreign keys", destination.conn_id, len(missing), len(keys))


def _make_keys(destination: Side, keys: Sequence[sql.Composed], there: Sequence[Relation]) -> None:
    """Make the foreign keys in one attempt: writers of tables that were there before wait for it."""
    if not keys:
        return
    patience = Patience.of(destination)

    def attempt() -> None:
        try:
            run_all(destination, [*keys, *patience.end], "creating the set's foreign keys")
        except RemoteError as error:
            if error.sqlstate not in _NO_KEY:
                raise
            raise UsageError(
                f"the foreign keys of the set's tables can't be made: {error.message}",
                destination.conn_id,
                error.sqlstate,
            ) from None

    timeout_s = SWAP_TIMEOUT.total_seconds()
    patience.until_had([attempt], patience.writers_ms, timeout_s, there, writers=True)


def _warn_of_keys(source: Side, there: Sequence[tuple[Pair, Relation]], created: Collection[int]) -> None:
    for pair, table in there:
        for row in source.ask(_SQL["foreign_keys"], {"oid": table.oid}):
            if row["refers_to"] in created:
                log.warning("%s is there, and is not given foreign key %s", pair.destination, row["name"])


def _create(source: Side, destination: Side, pair: Pair, table: Relation) -> None:
    spec = Spec(destination_table=pair.destination, source_table=pair.source, mode="create", like="all")
    work = plan(source, destination, spec, keys_follow=True)
    assert work.create is not None  # noqa: S101 - of this mode; if it is there by now, plan() has raised
    foreign = source.ask(_SQL["foreign_sequences"], {"oid": table.oid})
    if foreign and pair.renames_schema:
        named = ", ".join(f"{row['column_name']}: {row['sequence']}" for row in foreign)
        raise UsageError(
            f"defaults use sequences of other tables, which belong to another schema here: {named}",
            source.conn_id,
            hint="create this table by hand",
        )
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
        " ON DELETE {} {} INITIALLY {}{}"
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
        sql.SQL("" if row["is_valid"] else " NOT VALID"),
    )
