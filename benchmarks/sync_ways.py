"""The ways in which a table is made what another is: the sync operator, and full copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.child import Child
from benchmarks.lab import Lab
from benchmarks.measure import BenchmarkError, Sample, Way
from benchmarks.sync_tables import Tables
from benchmarks.transfer import PSQL, by_psql

OPERATOR = "DblinkSyncOperator"
TRANSFER = "DblinkTransferOperator, replace"
_COPY = "bench_sync_copy"


@dataclass
class Said:
    """What the operators returned beside their time, by the way's name.

    :ivar sizes: bytes to the client.
    :ivar methods: which one it took.
    :ivar groups: the share of the groups of keys that differ.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    groups: dict[str, float] = field(default_factory=dict)


def by_sync(airflow: Child, tables: Tables, name: str, said: Said, **arguments: Any) -> Way:
    """Return the way that syncs; unmeasured, the difference is put back before, and looked for after."""

    def run_and_look() -> Sample:
        result, sample = _run(airflow, "sync", tables, f"{OPERATOR}, {name}", arguments)
        said.sizes[name], said.methods[name] = result["bytes"], result["method"]
        said.groups[name] = result["groups_differing"] / max(1, result["groups"])
        found, wanted = (result["inserted"], result["updated"], result["deleted"]), tables.counts
        by_rows = result["method"] != "replace"  # which writes all of them
        if by_rows and found != (wanted.inserted, wanted.updated, wanted.deleted):
            raise BenchmarkError(f"{OPERATOR}, {name}: inserted, updated, deleted {found}, not {wanted}")
        return sample

    return run_and_look


def by_transfer(airflow: Child, tables: Tables) -> Way:
    """Return the way that empties the table and copies all rows, without any comparing."""
    return lambda: _run(airflow, "transfer", tables, TRANSFER, {"mode": "replace"})[1]


def _run(
    airflow: Child, job: str, tables: Tables, name: str, arguments: dict[str, Any]
) -> tuple[dict[str, Any], Sample]:
    tables.restore()
    table = tables.difference.table
    answer = airflow.ask(job, source_table=table, destination_table=table, **arguments)
    tables.expect(name)
    return answer["returned"], Sample(**answer["sample"])


@contextmanager
def full_copy(lab: Lab, tables: Tables) -> Iterator[Way]:
    """Give the way that copies the source's table by psql into an empty one with its key."""
    definition = tables.difference.shape.definition
    lab.rows(lab.destination, f"CREATE TABLE {_COPY} ({definition}, PRIMARY KEY (id))")

    def copy() -> Sample:
        lab.reset(_COPY)
        sample = by_psql(lab, tables.difference.table, _COPY)
        lab.expect(_COPY, tables.content, PSQL)
        lab.reset(_COPY)
        return sample

    try:
        yield copy
    finally:
        lab.drop(_COPY)
