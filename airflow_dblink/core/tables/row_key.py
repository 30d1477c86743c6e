"""The key of a table: the columns that identify its rows, and their use with ON CONFLICT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.tables.catalog import types
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.mapping import Pair

_TEXTS = ("text", "varchar")


def key_columns(
    destination: Side,
    relation: Relation,
    wanted: Sequence[str] | None,
    pairs: Sequence[Pair],
    *,
    for_on_conflict: bool = False,
) -> tuple[str, ...]:
    """Return the columns that identify rows: *wanted*, or those of the primary key.

    :param for_on_conflict: whether ON CONFLICT must be able to use the key.
    :raises UsageError: if there is no primary key, a column doesn't exist or gets no value, or no unique
        index is on exactly these columns.
    """
    conn_id = destination.conn_id
    key = tuple(wanted) if wanted else relation.primary_key
    if not key:
        raise UsageError(
            f"{relation} has no primary key", conn_id, hint="name the columns of a unique key: key=[...]"
        )
    known = [column.name for column in relation.columns]
    if unknown := [name for name in key if name not in known]:
        raise UsageError(
            f"{relation} has no column {', '.join(map(repr, unknown))}, named in key",
            conn_id,
            "42703",
            hint=f"it has: {', '.join(known)}",
        )
    if not any(
        set(key) == set(i.columns) and (i.is_immediate or not for_on_conflict)
        for i in relation.unique_indexes
    ):
        deferrable = "not deferrable, " if for_on_conflict else ""
        raise UsageError(
            f"{relation} has no unique index on key ({', '.join(key)})",
            conn_id,
            "42P10",
            hint=f"create one, or name another key; it must be whole: not partial, {deferrable}not on"
            " expressions",
        )
    given = {pair.destination for pair in pairs}
    if missing := [name for name in key if name not in given]:
        raise UsageError(f"key column {', '.join(missing)} of {relation} gets no value", conn_id)
    return key


@dataclass(frozen=True)
class UpsertKey:
    """The key of an upsert: the columns that identify rows.

    :ivar columns: in the order in which they were named.
    :ivar loose: columns whose equal values may be written differently (1.0 and 1.00, -0
        and 0, citext): an existing row gets the source's form.
    :ivar takes_null: whether NULL conflicts with NULL.
    """

    columns: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    takes_null: bool = False

    @classmethod
    def of(
        cls, destination: Side, relation: Relation, wanted: Sequence[str] | None, pairs: Sequence[Pair]
    ) -> UpsertKey:
        """Return the key: *wanted*, or the primary key.

        :raises UsageError: as :func:`~airflow_dblink.core.tables.row_key.key_columns`.
        """
        columns = key_columns(destination, relation, wanted, pairs, for_on_conflict=True)
        indexes = [
            index
            for index in relation.unique_indexes
            if set(index.columns) == set(columns) and index.is_immediate
        ]
        is_exact = all(index.is_deterministic and index.is_plain for index in indexes)
        oids = {pair.destination: pair.destination_type or 0 for pair in pairs}
        kinds = types(destination, [oids[name] for name in columns])
        loose = [
            name
            for name in columns
            if not ((kind := kinds[oids[name]]).is_exact or (kind.base_name in _TEXTS and is_exact))
        ]
        return cls(columns, tuple(loose), any(index.nulls_are_equal for index in indexes))
