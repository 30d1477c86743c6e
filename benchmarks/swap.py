"""Swap: a table with a key and two indexes, loaded anew while a reader goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg

from benchmarks.child import Child, child
from benchmarks.lab import MIXED, Content, Lab
from benchmarks.measure import Check, Outcome, Sample, Table, interleaved, number

APPEND = "append, into the table with its indexes"
SWAP = "swap"

_TIME_TARGET = 0.35
_OUT_TARGET_MS = 50
_TABLE = MIXED.table
_INDEXES = f"CREATE INDEX ON {_TABLE} (k, id); CREATE INDEX ON {_TABLE} (s)"


def run(lab: Lab, rows: int, repeat: int, say: Callable[[str], None]) -> Outcome:
    """Load an empty table in both ways, then swap a full one beside a reader; all rows are checked."""
    say(f"Swap: {rows:,} rows, {MIXED.title}, a key and two indexes")
    lab.fill(MIXED, rows)
    lab.rows(lab.destination, _INDEXES)
    content = lab.content(lab.source, f"TABLE {_TABLE}")
    with child(lab) as airflow:
        ways = {
            name: lambda mode=mode, name=name: _load(lab, airflow, content, mode, name)
            for name, mode in ((APPEND, "append"), (SWAP, "swap"))
        }
        series = interleaved(ways, repeat, say)
        longest_ms = max(_beside_a_reader(lab, airflow) for _ in range(repeat))
    lab.expect(_TABLE, content, SWAP)
    lab.drop(_TABLE)
    ratio = series[SWAP].ratio_to(series[APPEND])
    table = Table(
        "Transfer into a table with a key and two indexes",
        ["way", "seconds", "relative"],
        [
            [APPEND, number(series[APPEND].seconds, 2), "1"],
            [SWAP, number(series[SWAP].seconds, 2), number(ratio, 2)],
        ],
        [
            f"{rows:,} rows. While a full table was swapped, a reader in a loop waited at most"
            f" {longest_ms:.0f} ms for one read."
        ],
    )
    checks = [
        Check("swap: time to append, key and two indexes", f"{ratio:.2f}", f"<= {_TIME_TARGET}",
              ratio <= _TIME_TARGET),
        Check("swap: longest read of a reader, ms", f"{longest_ms:.0f}", f"<= {_OUT_TARGET_MS}",
              longest_ms <= _OUT_TARGET_MS),
    ]  # fmt: skip
    return Outcome([table], checks, {"Swap, a key and two indexes": list(series.values())})


def _load(lab: Lab, airflow: Child, content: Content, mode: str, name: str) -> Sample:
    lab.reset(_TABLE)
    sample = airflow.sample("transfer", source_table=_TABLE, destination_table=_TABLE, mode=mode)
    lab.expect(_TABLE, content, name)
    return sample


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
            airflow.sample("transfer", source_table=_TABLE, destination_table=_TABLE, mode="swap")
        finally:
            over.set()
        return 1000 * reader.result()
