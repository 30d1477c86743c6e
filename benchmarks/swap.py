"""Loads of a table with a key and two indexes: by swap, in parts, and as others do it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg

from benchmarks.child import Child, child
from benchmarks.lab import MIXED, Content, Lab
from benchmarks.measure import Check, Outcome, Sample, Table, Way, interleaved, number
from benchmarks.parts import by_dump, by_psql_and_indexes, in_parts

APPEND = "append, into the table with its indexes"
SWAP = "swap, one worker"
PARTS = "parts, two workers"
PSQL = "psql | psql into a bare table, then key and indexes"
DUMP = "pg_dump -j2, pg_restore -j2"

_TIME_TARGET, _PARTS_TARGET = 0.35, 0.25
_PSQL_TARGET, _DUMP_TARGET = 1.0, 0.65
_OUT, _OUT_TARGET_MS = "swap: longest read of a reader, ms", 50
_TABLE = MIXED.table
_INDEXES = f"CREATE INDEX ON {_TABLE} (k, id); CREATE INDEX ON {_TABLE} (s)"


def run(lab: Lab, rows: int, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Load an empty table in each way, then swap a full one beside a reader; all rows are checked."""
    say(f"Loads: {rows:,} rows, {MIXED.title}, a key and two indexes")
    lab.fill(MIXED, rows)
    for server in (lab.source, lab.destination):
        for index in _INDEXES.split(";"):
            lab.rows(server, index)
    content = lab.content(lab.source, f"TABLE {_TABLE}")
    with child(lab) as airflow, child(lab) as second:
        ways: dict[str, Way] = {
            APPEND: lambda: _transfer(airflow, "append"),
            SWAP: lambda: _transfer(airflow, "swap"),
            PARTS: lambda: in_parts((airflow, second), _TABLE),
            PSQL: lambda: by_psql_and_indexes(lab, MIXED, _INDEXES),
            DUMP: lambda: by_dump(lab, _TABLE),
        }
        checked = {name: _checked(lab, content, name, way) for name, way in ways.items()}
        series = interleaved(checked, repeat, say)
        longest_ms = max(_beside_a_reader(lab, airflow) for _ in range(repeat))
    lab.expect(_TABLE, content, SWAP)
    lab.drop(_TABLE)
    to_append = {name: each.ratio_to(series[APPEND]) for name, each in series.items()}
    table = Table(
        "A load of a table with a key and two indexes",
        ["way", "seconds", "relative"],
        [[name, number(each.seconds, 2), number(to_append[name], 2)] for name, each in series.items()],
        [
            f"{rows:,} rows. Parts: the time of the tasks alone, on two workers that are there already."
            f" While a full table was swapped, a reader waited at most {longest_ms:.0f} ms for one read."
        ],
    )
    figures = [
        (f"{SWAP}: time to append", to_append[SWAP], _TIME_TARGET),
        (f"{PARTS}: time to append", to_append[PARTS], _PARTS_TARGET),
        (f"{PARTS}: time to psql | psql and indexes", series[PARTS].ratio_to(series[PSQL]), _PSQL_TARGET),
        (f"{PARTS}: time to pg_dump and pg_restore", series[PARTS].ratio_to(series[DUMP]), _DUMP_TARGET),
    ]
    checks = [Check(what, f"{ratio:.2f}", f"<= {target}", ratio <= target) for what, ratio, target in figures]
    out = f"<= {_OUT_TARGET_MS}"
    checks.append(Check(_OUT, f"{longest_ms:.0f}", out, longest_ms <= _OUT_TARGET_MS))
    return Outcome([table], checks, {"Loads, a key and two indexes": list(series.values())})


def _checked(lab: Lab, content: Content, name: str, way: Way) -> Way:
    """Wrap *way* in what is not measured: an empty table before, a look at the rows after."""

    def run_and_look() -> Sample:
        lab.reset(_TABLE)
        sample = way()
        lab.expect(_TABLE, content, name)
        return sample

    return run_and_look


def _transfer(airflow: Child, mode: str) -> Sample:
    return airflow.sample("transfer", source_table=_TABLE, destination_table=_TABLE, mode=mode)


def _beside_a_reader(lab: Lab, airflow: Child) -> float:
    """Swap the table while somebody reads it in a loop; return how long the longest read took, in ms."""
    over = threading.Event()

    def read() -> float:
        longest = 0.0
        with psycopg.connect(lab.destination.conninfo(), autocommit=True) as connection:
            while not over.is_set():
                started = time.perf_counter()
                connection.execute(f"SELECT k FROM {_TABLE} WHERE id = 1".encode())  # noqa: S608 - a constant
                longest = max(longest, time.perf_counter() - started)
        return longest

    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(read)
        try:
            _transfer(airflow, "swap")
        finally:
            over.set()
        return 1000 * reader.result()
