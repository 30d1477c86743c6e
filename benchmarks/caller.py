"""Runs jobs for :mod:`benchmarks.jobs_side`, in a process that shares nothing with the loop that waits.

Their ids are the lines of stdin, in the order in which they are to be run; what comes out is JSON: how
many sessions of the triggerer's there were before the first, and how many at most.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg

from airflow_dblink.core.jobs.job import SCHEMA
from airflow_dblink.core.jobs.trust import guarded_call

_CONNECTIONS = 8
_CONNECT_S = 30.0
_LOOK_S = 0.2
_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE application_name = 'airflow-dblink triggerer' AND datname = current_database()
"""


def main() -> None:
    """Run the jobs, so many a second; 0 for as fast as it goes."""
    per_second = float(sys.argv[1])
    job_ids = [UUID(line.strip()) for line in sys.stdin]
    barrier = threading.Barrier(_CONNECTIONS + 1, timeout=_CONNECT_S)
    with ThreadPoolExecutor(_CONNECTIONS) as threads, _connect() as connection:
        done = [threads.submit(_run, job_ids, number, per_second, barrier) for number in range(_CONNECTIONS)]
        sessions = [_sessions(connection)]  # all wait, and nothing has been run
        barrier.wait()
        while not all(future.done() for future in done):
            sessions.append(_sessions(connection))
            time.sleep(_LOOK_S)
        for future in done:
            future.result()
    print(json.dumps({"before": sessions[0], "most": max(sessions)}))


def _run(job_ids: list[UUID], first: int, per_second: float, barrier: threading.Barrier) -> None:
    with _connect() as connection:
        barrier.wait()
        started = time.monotonic()
        for number in range(first, len(job_ids), _CONNECTIONS):
            if per_second:
                time.sleep(max(0.0, started + number / per_second - time.monotonic()))
            connection.execute(guarded_call(SCHEMA, str(job_ids[number]), ()).encode())


def _sessions(connection: psycopg.Connection) -> int:
    row = connection.execute(_SESSIONS).fetchone()
    return int(row[0]) if row else 0


def _connect() -> psycopg.Connection:
    return psycopg.connect(os.environ["AIRFLOW_CONN_BENCH_DESTINATION"], autocommit=True)


if __name__ == "__main__":
    main()
