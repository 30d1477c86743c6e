"""Groups of keys, and the groups whose checksums differ between the two sides."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from psycopg import sql

from airflow_dblink.core.sync.work import Field, Part, Work, column

_HALF_BITS = 32  # of an int8
_INT8_MIN, _INT8_MAX = -(2**63), 2**63 - 1
_FEW = 0.2  # of the rows: below it an index finds them faster than a scan


@dataclass(frozen=True)
class Grouping:
    """The way in which rows are put into groups.

    :ivar number: the group's number, a bigint, from a row of a :class:`Part`; NULL if no key finds the row.
    :ivar field: the key column, if groups are ranges of it; ``None`` for buckets.
    :ivar shift: a range holds ``2**shift`` values.
    """

    number: sql.Composed
    field: Field | None = None
    shift: int = 0
    buckets: int = 0

    def row_hash(self, work: Work) -> sql.Composed:
        """Return a hash that distinguishes a row from all others in its group.

        PostgreSQL's own hash of an int8 folds its upper half into the lower one. Keys of one group have the
        same upper half, so this hash is enough for them, and cheaper than a hash of all their bytes.
        """
        if self.field is None or self.shift > _HALF_BITS:
            return work.row_hash
        key = sql.SQL("{}::bigint").format(column(self.field.name))
        name = self.field.name
        return work.checksum.of([key if field.name == name else field.canonical for field in work.fields])

    def select(self, part: Part, what: sql.Composable, groups: Sequence[int], *, few: bool) -> sql.Composed:
        """Return the SELECT of *what* from the rows of *groups*.

        :param few: whether an index, if there is one, is better than a scan.
        """
        if self.field is not None and few and self.field.name in part.indexed:
            return self._by_index(part, what, groups, column(self.field.name))
        wanted = sql.SQL("{} OPERATOR(pg_catalog.=) ANY ({}::bigint[])").format(
            self.number, sql.Literal(_array(groups))
        )
        return part.select(what, wanted)

    def _by_index(
        self, part: Part, what: sql.Composable, groups: Sequence[int], name: sql.Composable
    ) -> sql.Composed:
        ranges = [*self._ranges(groups)]
        between = sql.SQL(
            "{0} OPERATOR(pg_catalog.>=) wanted.low AND {0} OPERATOR(pg_catalog.<=) wanted.high"
        ).format(name)
        # OFFSET 0 keeps it a loop over the index, however many rows the planner expects.
        return sql.SQL(
            "SELECT found.* FROM ROWS FROM (pg_catalog.unnest({}::bigint[]), pg_catalog.unnest({}::bigint[]))"
            " AS wanted (low, high) CROSS JOIN LATERAL ({}) AS found"
        ).format(
            sql.Literal(_array([low for low, _ in ranges])),
            sql.Literal(_array([high for _, high in ranges])),
            part.select(what, between, " OFFSET 0"),
        )

    def _ranges(self, groups: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield the lowest and the highest value of each run of adjacent groups."""
        for _, near in groupby(enumerate(sorted(groups)), lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in near]
            low, high = numbers[0] << self.shift, ((numbers[-1] + 1) << self.shift) - 1
            yield max(low, _INT8_MIN), min(high, _INT8_MAX)

    def name(self, number: int) -> str:
        """Return the group's name for readers."""
        if self.field is None:
            return f"bucket {number} of {self.buckets}"
        low = number << self.shift
        return f"{self.field.name} from {low} to {low + (1 << self.shift) - 1}"


@dataclass
class Comparison:
    """The result of comparing checksums.

    :ivar differing: numbers of the groups that differ.
    :ivar differing_rows: rows in them, on the side that has more.
    :ivar size: bytes that came to the client.
    """

    grouping: Grouping
    differing: array[int] = field(default_factory=lambda: array("q"))
    differing_rows: int = 0
    source_rows: int = 0
    destination_rows: int = 0
    groups: int = 0
    size: int = 0

    @property
    def rows(self) -> int:
        """Rows of the side that has more."""
        return max(self.source_rows, self.destination_rows)

    @property
    def is_few(self) -> bool:
        """Whether an index finds the differing rows faster than a scan."""
        return self.differing_rows < self.rows * _FEW

    def select(self, part: Part, what: sql.Composable) -> sql.Composed:
        """Return the SELECT of *what* from the rows of *part* in the groups that differ."""
        return self.grouping.select(part, what, self.differing, few=self.is_few)


def _array(numbers: Sequence[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"
