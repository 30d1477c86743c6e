"""The table that a transfer creates, and the warnings about properties that it leaves out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.entries import Relation, ResultColumn
from airflow_dblink.core.tables.like import Like, Piece, read_pieces
from airflow_dblink.core.tables.mapping import Pair
from airflow_dblink.core.tables.pieces import TableName

log = logging.getLogger(__name__)

_SQL = statements("catalog.sql")


@dataclass(frozen=True)
class NewTable:
    """A table that is created, and filled before its keys and indexes are built.

    :ivar statement: the CREATE TABLE.
    :ivar pieces: what is made after the load.
    """

    statement: sql.Composed
    pieces: tuple[Piece, ...]


def new_table(
    source: Side,
    destination: Side,
    target: TableName,
    table: Relation | None,
    pairs: Sequence[Pair],
    offered: Sequence[ResultColumn],
    like: Like,
    *,
    keys_follow: bool = False,
) -> NewTable:
    """Return a table with the source's columns, types, collations, NOT NULL and primary key.

    A domain becomes its base type, and a collation that the destination lacks becomes its default; the log
    says so.

    :param like: ``all``: also with the other pieces of *table*.
    :param keys_follow: see :func:`.like.read_pieces`.
    :raises RemoteError: a server's errors.
    """
    not_null = {column.name for column in table.columns if column.not_null} if table else set()
    collations = _collations(source, destination, pairs, offered)
    lines = [
        sql.SQL("{} {}{}{}").format(
            sql.Identifier(pair.destination),
            sql.SQL(pair.type_name),
            collation,
            sql.SQL(" NOT NULL" if pair.source in not_null else ""),
        )
        for pair, collation in zip(pairs, collations, strict=True)
    ]
    statement = sql.SQL("CREATE TABLE {} ({})").format(target.identifier, sql.SQL(", ").join(lines))
    if table is None:
        return NewTable(statement, ())
    if like == "all":
        return NewTable(statement, read_pieces(source, table, target, keys_follow=keys_follow))
    return NewTable(statement, _primary_key(target, table, pairs))


def _primary_key(target: TableName, table: Relation, pairs: Sequence[Pair]) -> tuple[Piece, ...]:
    names = {pair.source: pair.destination for pair in pairs}
    key = table.primary_key
    if not key or not all(name in names for name in key):
        return ()
    columns = sql.SQL(", ").join(sql.Identifier(names[name]) for name in key)
    add = sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(target.identifier, columns)
    return (Piece("the primary key", (add,)),)


def _collations(
    source: Side, destination: Side, pairs: Sequence[Pair], offered: Sequence[ResultColumn]
) -> list[sql.SQL]:
    """Return the COLLATE clause of each column; warn of domains and collations that get lost."""
    by_name = {column.name: column for column in offered}
    shown = [by_name[pair.source] for pair in pairs]
    params = {"tables": [column.table for column in shown], "numbers": [column.number for column in shown]}
    declared = source.ask(_SQL["declared"], params)
    known = destination.ask(_SQL["known_collations"], {"names": [row["collation"] for row in declared]})
    clauses = []
    for pair, row, found in zip(pairs, declared, known, strict=True):
        if row["domain"]:
            log.warning(
                "%s: column %r is created as %s, not as domain %s",
                *(destination.conn_id, pair.destination, pair.type_name, row["domain"]),
            )
        if row["collation"] and not found["known"]:
            log.warning(
                "%s has no collation %s: column %r is created with the database's own",
                *(destination.conn_id, row["collation"], pair.destination),
            )
        keeps = row["collation"] and found["known"]
        clauses.append(sql.SQL(f" COLLATE {row['collation']}" if keeps else ""))
    return clauses
