"""``make demo`` and ``make ui``: the flagship Dag on a real Airflow and two real PostgreSQL servers.

Everything lives in temporary directories and ends with this process, also on Ctrl-C. Each run has new
passwords, which exist only in the environment of its processes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from airflow_dblink.embedded.airflow import Airflow
from airflow_dblink.embedded.programs import ServerError
from airflow_dblink.embedded.server import Server, servers

DAGS_FOLDER = Path(__file__).parents[2] / "dags_examples"
DAG_ID = "dblink_flagship"
PGBENCH = "AIRFLOW_DBLINK_PGBENCH"

_DEFAULT_SCALE = 10  # a million accounts, 130 MB
_RUN_TIMEOUT_S = 3600.0
_TAIL_LINES = 25
_MB = 1e6
_SHOWN = ("running", "success", "failed", "up_for_retry", "upstream_failed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 when all tasks succeeded, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m airflow_dblink.embedded.demo", description=__doc__)
    parser.add_argument("--ui", action="store_true", help="start Airflow's web interface and wait for Ctrl-C")
    parser.add_argument(
        "--scale",
        type=int,
        choices=range(1, 1_001),
        metavar="N",
        default=_DEFAULT_SCALE,
        help="times 100,000 accounts (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if not (DAGS_FOLDER / f"{DAG_ID}.py").is_file():
        parser.error(f"no {DAGS_FOLDER}: the demo runs only from a checkout of airflow-dblink")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _installation(ui=options.ui) as airflow:
            return _wait_in_ui(airflow) if options.ui else _run(airflow, options.scale)
    except KeyboardInterrupt:
        print("\nStopped; nothing is left behind.")
        return 0 if options.ui else 130
    except (ServerError, RuntimeError, TimeoutError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1


def connections(source: Server, warehouse: Server) -> dict[str, str]:
    """Return the Airflow connections that ``dags_examples`` use, by id."""
    return {
        "source_db": source.airflow_uri(),
        "warehouse_db": warehouse.airflow_uri(),
        "archive_db": warehouse.airflow_uri(dbname="postgres"),  # that server's other database
    }


def environment(source: Server, files: Path) -> dict[str, str]:
    """Return the environment variables that ``dags_examples`` need in Airflow's processes.

    :param files: directory for the files that the Dags export.
    """
    return {PGBENCH: os.environ.get(PGBENCH) or source.tool("pgbench"), "TMPDIR": str(files)}


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _installation(*, ui: bool) -> Iterator[Airflow]:
    """Run the servers and Airflow with ``dags_examples``."""
    _say("Starting two PostgreSQL servers and Airflow ...")
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="airflow-dblink-files-") as files,
        servers("source", "warehouse") as (source, warehouse),
    ):
        env = environment(source, Path(files))
        if not ui:  # the Dag's own schedule would start a run beside ours
            env["AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE"] = "False"
        conns = connections(source, warehouse)
        with Airflow(DAGS_FOLDER, conns, env=env, triggerers=int(ui), ui=ui) as airflow:
            _say(f"Ready after {time.monotonic() - started:.0f} s.")
            yield airflow


def _wait_in_ui(airflow: Airflow) -> int:
    """Print address and login, and wait until the user or Airflow ends."""
    _say(f"\n  {airflow.url}\n  login: {airflow.username}   password: {airflow.password}\n")
    _say(f"Today's run of {DAG_ID} begins by itself. Trigger another one: the form has its parameters.")
    _say("Ctrl-C ends everything.")
    while True:
        time.sleep(5)
        try:
            httpx.get(f"{airflow.url}/api/v2/monitor/health", trust_env=False, timeout=60)
        except httpx.TransportError as error:
            raise RuntimeError(f"Airflow no longer answers: {error}") from None


def _run(airflow: Airflow, scale: int) -> int:
    """Run the Dag, show its progress, and print the table or the reason of its failure."""
    started = time.monotonic()
    run_id = airflow.trigger(DAG_ID, {"scale": scale, "transactions": 1_000 * scale})
    _say(f"{DAG_ID} runs: scale {scale}, that is {100_000 * scale:,} accounts.\n")
    progress = _Progress()
    state = airflow.wait(DAG_ID, run_id, timeout_s=_RUN_TIMEOUT_S, on_progress=progress)
    if state != "success":
        _say_why(airflow, run_id)
        return 1
    _say("\n" + "\n".join(table(_moves(airflow, run_id))))
    counts = airflow.xcom(DAG_ID, run_id, "both_sides_agree")
    _say(
        f"\nBoth sides agree: {counts['accounts']:,} accounts and {counts['history']:,} history rows"
        f" compared. {time.monotonic() - started:.0f} s, Airflow's own time between the tasks included."
    )
    return 0


class _Progress:
    """Prints a line whenever a task has changed its state."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._seen: dict[str, str] = {}

    def __call__(self, states: Mapping[str, str]) -> None:
        for task_id, state in states.items():
            if self._seen.get(task_id) != state and state in _SHOWN:
                _say(f"{time.monotonic() - self._started:6.1f} s  {task_id:<20} {state}")
        self._seen = dict(states)


def _moves(airflow: Airflow, run_id: str) -> list[dict[str, Any]]:
    """Return name, time and result of each task, in the order in which they began."""
    found = []
    for ti in sorted(airflow.task_instances(DAG_ID, run_id), key=lambda ti: str(ti["start_date"])):
        move: dict[str, Any] = {"task": ti["task_id"], "task_s": ti["duration"] or 0.0}
        with suppress(httpx.HTTPStatusError):  # not every task returns something
            result = airflow.xcom(DAG_ID, run_id, ti["task_id"])
            if isinstance(result, dict) and "rows" in result:
                move |= {name: result[name] for name in ("rows", "bytes", "seconds") if name in result}
        found.append(move)
    return found


def table(moves: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the closing table.

    :param moves: per task ``task`` and ``task_s``, and ``rows``, ``bytes``, ``seconds`` if it moved rows.
    """
    lines = [f"{'task':<20} {'rows':>12} {'MB':>9} {'s':>8} {'MB/s':>8} {'whole task, s':>14}"]
    lines.append("-" * len(lines[0]))
    for move in moves:
        rows = f"{move['rows']:,}" if "rows" in move else ""
        size = seconds = speed = ""
        if "bytes" in move:
            size, seconds = f"{move['bytes'] / _MB:.1f}", f"{move['seconds']:.2f}"
            speed = f"{move['bytes'] / _MB / max(move['seconds'], 0.001):.1f}"
        lines.append(
            f"{move['task']:<20} {rows:>12} {size:>9} {seconds:>8} {speed:>8} {move['task_s']:>14.1f}"
        )
    return lines


def _say_why(airflow: Airflow, run_id: str) -> None:
    """Print the end of the log of each failed task; tasks that did not run because of it have none."""
    for ti in airflow.task_instances(DAG_ID, run_id):
        if ti["state"] == "failed":
            log = airflow.log(DAG_ID, run_id, ti["task_id"], ti["try_number"]).splitlines()
            tail = "\n".join(log[-_TAIL_LINES:])
            print(f"\nTask {ti['task_id']} failed; its log ends:\n{tail}", file=sys.stderr)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
