"""Sequences of loaded columns: their next values must not be among the loaded ones."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from psycopg import sql

from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.entries import Relation

log = logging.getLogger(__name__)

_SQL = {name: sql.SQL(text) for name, text in statements("sequences.sql").items()}


def reset_sequences(destination: Side, relation: Relation, given: Collection[str]) -> None:
    """Move the sequences of loaded columns beyond the loaded values.

    The sequences belong to the column (serial, identity) or are its default. They keep their steps and
    bounds, and never move back; values beyond the bounds don't count. A sequence that cycles is moved to the
    longest run of free values.

    :param given: the columns that got values.
    :raises RemoteError: the server's errors.
    """
    for row in destination.ask(statements("sequences.sql")["sequences"], {"oid": relation.oid}):
        if row["column_name"] not in given:
            continue
        if not row["may_set"]:
            log.warning("the role may not set the sequence of %s.%s", relation, row["column_name"])
            continue
        _move(destination, relation, row)


def _move(destination: Side, relation: Relation, row: Mapping[str, Any]) -> None:
    oid, step = sql.Literal(row["oid"]), row["step"]
    sign = 1 if step > 0 else -1
    first, last = (row["lowest"], row["highest"]) if step > 0 else (-row["highest"], -row["lowest"])
    sequence = sql.Identifier(row["schema_name"], row["name"])
    position = _SQL["position"].format(sequence=sequence)
    if not row["may_read"]:
        position = _SQL["position_unread"].format(oid=oid, start=sql.Literal(row["start"]))
    names = {"column": sql.Identifier(row["column_name"]), "table": relation.identifier}
    numbers = {
        "oid": oid,
        "step": sql.Literal(str(step)),
        "sign": sql.Literal(str(sign)),
        "position": position,
    }
    if row["cycles"]:
        limits = {"first": first, "last": last, "lowest": row["lowest"], "highest": row["highest"]}
        limits |= {"length": row["highest"] - row["lowest"] + 1, "stride": abs(step)}
        literals = {name: sql.Literal(str(number)) for name, number in limits.items()}
        destination.fetch(_SQL["move_cycling"].format(**names, **numbers, **literals), "setting the sequence")
        return
    extreme = sql.SQL("max" if step > 0 else "min")
    bounds = {name: sql.Literal(str(row[name])) for name in ("lowest", "highest")}
    farthest = _SQL["farthest"].format(extreme=extreme, **names, **bounds)
    value = destination.fetch(farthest, "looking for the highest value")[0]["value"]
    if value is None:
        return
    bound = row["highest"] if step > 0 else row["lowest"]
    move = _SQL["move"].format(farthest=sql.Literal(value), bound=sql.Literal(str(bound)), **numbers)
    destination.ask(move, action="setting the sequence")  # a question: it reads the sequence, not the table
