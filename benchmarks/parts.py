"""A table loaded in parts by two workers; and what others do for the same: psql, pg_dump and pg_restore."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

from airflow_dblink.embedded.server import Server
from benchmarks.child import Child
from benchmarks.lab import Lab, Shape
from benchmarks.measure import BenchmarkError, Sample
from benchmarks.transfer import by_psql

_JOBS = 2


def in_parts(workers: tuple[Child, ...], table: str) -> Sample:
    """Run the tasks of a load as Airflow would, on several workers; Airflow's own time doesn't count."""
    first = workers[0]
    started = time.perf_counter()

    def do(worker: Child, task: str, **arguments: Any) -> Any:
        return worker.ask("load_task", task=task, table=table, **arguments)["returned"]

    parts: list[int] = do(first, "plan")
    left: SimpleQueue[int] = SimpleQueue()
    for part in parts:
        left.put(part)

    def work(worker: Child) -> None:
        while True:
            try:
                part = left.get_nowait()
            except Empty:
                return
            do(worker, "load", part=part)

    with ThreadPoolExecutor(len(workers)) as threads:
        for _ in threads.map(work, workers):
            pass
    do(first, "verify", parts=parts)
    do(first, "index")
    do(first, "swap")
    return Sample(time.perf_counter() - started)


def by_psql_and_indexes(lab: Lab, shape: Shape, indexes: str) -> Sample:
    """Copy into a bare table, then build key and indexes, one after the other."""
    table = shape.table
    lab.rows(lab.destination, f"DROP TABLE {table}")
    lab.rows(lab.destination, f"CREATE TABLE {table} ({shape.definition})")
    started = time.perf_counter()
    by_psql(lab, table, table)
    for statement in (f"ALTER TABLE {table} ADD PRIMARY KEY (id)", *indexes.split(";"), f"ANALYZE {table}"):
        lab.rows(lab.destination, statement)
    return Sample(time.perf_counter() - started)


def by_dump(lab: Lab, table: str) -> Sample:
    """Dump with two jobs, without compression, and restore with two jobs: table, rows, key and indexes."""
    lab.rows(lab.destination, f"DROP TABLE {table}")
    with tempfile.TemporaryDirectory(prefix="bench_dump_") as folder:
        path = f"{folder}/dump"
        common = ("--format=directory", f"--jobs={_JOBS}")
        started = time.perf_counter()
        _run(lab.source, "pg_dump", *common, "--compress=0", f"--table={table}", f"--file={path}")
        _run(lab.destination, "pg_restore", *common, f"--dbname={lab.destination.dbname}", path)
        lab.rows(lab.destination, f"ANALYZE {table}")
        return Sample(time.perf_counter() - started)


def _run(server: Server, tool: str, *arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    where = {"PGHOST": server.host, "PGPORT": str(server.port), "PGDATABASE": server.dbname}
    who = {"PGUSER": server.role, "PGPASSWORD": server.role_password}
    done = subprocess.run(
        [server.tool(tool), *arguments],
        env={**environment, **where, **who},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"{tool} failed: {done.stderr[-1000:]}")
