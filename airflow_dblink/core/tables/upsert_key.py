"""The key of an upsert: which rows PostgreSQL's ON CONFLICT takes for the same, and what it then leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airflow_dblink.core.tables.catalog import Relation, Side, types, unique_indexes
from airflow_dblink.core.tables.mapping import Pair, key_columns

_TEXTS = ("text", "varchar")


@dataclass(frozen=True)
class UpsertKey:
    """The columns that tell rows apart.

    :ivar columns: in the order in which they were named.
    :ivar loose: those of which two values that are the same may be written differently (1.0 and 1.00, -0
        and 0, citext): the row that is there gets the source's form.
    :ivar takes_null: whether NULL is in conflict with NULL.
    """

    columns: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    takes_null: bool = False

    @classmethod
    def of(
        cls, destination: Side, relation: Relation, wanted: Sequence[str] | None, pairs: Sequence[Pair]
    ) -> UpsertKey:
        """Return the key: *wanted*, else the primary key.

        :raises UsageError: as :func:`~airflow_dblink.core.tables.mapping.key_columns`.
        """
        columns = key_columns(destination, relation, wanted, pairs, for_on_conflict=True)
        indexes = [
            index
            for index in unique_indexes(destination, relation)
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
