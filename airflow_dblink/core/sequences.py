"""Sequences of columns whose values came from elsewhere: the next value must not be one of them."""

from __future__ import annotations

import logging
from collections.abc import Collection

from psycopg import sql

from airflow_dblink.core.tables import Relation, Side

log = logging.getLogger(__name__)


def reset_sequences(destination: Side, relation: Relation, given: Collection[str]) -> None:
    """Move the sequences of serial and identity columns beyond the values that came.

    :param given: the columns that got values.
    :raises RemoteError: what the server says.
    """
    for row in destination.rows("sequences", {"oid": relation.oid}):
        if row["column_name"] not in given:
            continue
        if not row["may_set"]:
            log.warning("the role may not set the sequence of %s.%s", relation, row["column_name"])
            continue
        destination.run(
            sql.SQL(
                "SELECT pg_catalog.setval({sequence}::oid::regclass, least(loaded.highest, {highest})::int8)"
                "  FROM (SELECT pg_catalog.max({column}) AS highest FROM {table}) AS loaded"
                " WHERE loaded.highest >= {lowest} AND loaded.highest >"
                "       coalesce(pg_catalog.pg_sequence_last_value({sequence}::oid::regclass), {lowest} - 1)"
            ).format(
                sequence=row["oid"],
                column=sql.Identifier(row["column_name"]),
                table=relation.identifier,
                lowest=row["lowest"],
                highest=row["highest"],
            ),
            "setting the sequence",
        )
