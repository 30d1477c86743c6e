"""Loads of a set of tables under random deaths: ``make torture``, or ``python -m tests.torture --kills 300``.

Tasks are killed by SIGKILL at random moments, the keeper is ended, and both servers crash, while pgbench
writes to the source. After each copy the tables equal the snapshot, and nothing of the load is left. The seed
is printed: ``--seed`` dies at the same moments again, as far as the machine lets it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from airflow_dblink.embedded.server import Server, servers
from airflow_dblink.operators.common.load_plan import DblinkPartsPlanOperator
from airflow_dblink.operators.common.load_tasks import (
    DblinkPartsIndexOperator,
    DblinkPartsLoadOperator,
    DblinkPartsSwapOperator,
    DblinkPartsVerifyOperator,
)
from tests.databases import Database, new_database
from tests.integration.sync.moments import FileStore
from tests.integration.tasks import context

TABLES = ("customer", "item", "note")
SCHEMA = """
CREATE TABLE customer (id int PRIMARY KEY, n int NOT NULL);
CREATE TABLE item (id int PRIMARY KEY, customer int NOT NULL REFERENCES customer, n int NOT NULL, pad text);
CREATE INDEX item_n ON item (n);
CREATE TABLE note (id int PRIMARY KEY, item int REFERENCES item DEFERRABLE INITIALLY DEFERRED)
"""
FILL = """
INSERT INTO customer SELECT i, 0 FROM generate_series(1, 100) AS i;
INSERT INTO item SELECT i, 1 + i % 100, 0, repeat('x', 200) FROM generate_series(1, 8000) AS i;
INSERT INTO note SELECT i, i FROM generate_series(1, 1000) AS i
"""
# Each transaction adds one to two tables: in a snapshot their sums are equal.
WRITES = """
\\set key random(1, 8000)
BEGIN;
UPDATE item SET n = n + 1 WHERE id = :key;
UPDATE customer SET n = n + 1 WHERE id = 1 + :key % 100;
COMMIT;
"""
LEFT = "SELECT relname FROM pg_class WHERE relname LIKE 'dblink_load%%'"
KEEPER = (
    "SELECT pid, split_part(application_name, ' ', 3) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE 'dblink_keeper%%'"
)
LOST = ("is gone", "since the load was planned", "planned anew", "has no tables in schema")
AT_ONCE = 2
_PATIENCE_S = 900


def main() -> int:
    """Run the command line and return its exit code: 0 if every copy was exact."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with servers("source", "warehouse") as pair:
        deaths, copies, wrong = torture(
            pair, options.kills, options.seed, say=lambda text: print(text, flush=True)
        )
    print(f"{sum(deaths.values())} deaths ({deaths}), {copies} copies, {len(wrong)} wrong", flush=True)
    for line in wrong:
        print(line, flush=True)
    return 1 if wrong else 0


def torture(
    pair: tuple[Server, ...], kills: int, seed: int, *, say: Callable[[str], None]
) -> tuple[dict[str, int], int, list[str]]:
    """Copy until so many have died; returns how many of what, how many copies, and what was wrong."""
    dice = random.Random(seed)  # noqa: S311 - the same again, not a secret
    deaths: dict[str, int] = {}
    wrong: list[str] = []
    copies = 0
    with new_database(pair[0], "source") as source, new_database(pair[1], "warehouse") as warehouse:
        os.environ |= {"AIRFLOW_CONN_SOURCE": source.uri, "AIRFLOW_CONN_WAREHOUSE": warehouse.uri}
        for database in (source, warehouse):
            database.execute(SCHEMA)
        source.execute(FILL)
        while sum(deaths.values()) < kills:
            with tempfile.TemporaryDirectory() as folder, _writing(source, Path(folder)):
                copy = Copy(source, warehouse, Path(folder), dice, deaths)
                found = copy.run()
            copies += 1
            wrong += [f"copy {copies}: {each}" for each in found]
            say(f"copy {copies}: {copy.anew} times anew, {sum(deaths.values())} deaths, {len(found)} wrong")
    return deaths, copies, wrong


@contextmanager
def _writing(source: Database, folder: Path) -> Iterator[None]:
    """Let pgbench write to the source; it begins again after a crash of the server."""
    script = folder / "writes.sql"
    script.write_text(WRITES)
    loop = 'while :; do "$@" || sleep 0.2; done'
    program: list[str | Path] = [
        source.server.bindir / "pgbench",
        "-n",
        "-c",
        "2",
        "-T",
        "3600",
        "-f",
        script,
    ]
    with subprocess.Popen(
        ["bash", "-c", loop, "loop", *program, source.conninfo],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    source.wait_until_left(60)  # of pgbench


@dataclass
class _Child:
    """A try of a task, in a process of its own."""

    pid: int
    dies_at: float
    result: Path


@dataclass
class Copy:
    """One load of the set, until it is swapped in.

    :ivar anew: how often it was planned anew.
    """

    source: Database
    warehouse: Database
    folder: Path
    dice: random.Random
    deaths: dict[str, int]
    anew: int = 0
    tries: dict[str, int] = field(default_factory=dict)
    max_tries: int = 0
    wanted: dict[str, list[Any]] = field(default_factory=dict)

    def run(self) -> list[str]:
        """Do all tasks; returns what was wrong in the end."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            parts = self._until_done({"plan": (DblinkPartsPlanOperator, self._plan_arguments())})
            if parts is None or not self._note_wanted():
                self._clear()
                continue
            loads = {
                f"load_{i}": (DblinkPartsLoadOperator, {"part": part}) for i, part in enumerate(parts["plan"])
            }
            rest: list[tuple[str, Any]] = [
                ("verify", DblinkPartsVerifyOperator),
                ("index", DblinkPartsIndexOperator),
                ("swap", DblinkPartsSwapOperator),
            ]
            done = self._until_done(loads)
            for name, kind in rest:
                done = done and self._until_done({name: (kind, {"parts": parts["plan"]})})
            if done:
                return self._wrong()
            self._clear()
        return ["it never came to an end"]

    def _plan_arguments(self) -> dict[str, Any]:
        return {"tables": ["public.*"], "part_bytes": 300_000, "idle": timedelta(minutes=5)}

    def _clear(self) -> None:
        """Clear the plan with all that comes after it."""
        self.anew += 1
        self.max_tries = max(self.tries.values(), default=0)
        self.tries = {"plan": self.max_tries}

    def _note_wanted(self) -> bool:
        """Read the rows of the snapshot; returns false if it is lost already."""
        with suppress(psycopg.Error, IndexError):
            snapshot = self.source.admin(KEEPER)[0][1]
            with psycopg.connect(self.source.admin_conninfo) as reader:
                reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
                self.wanted = {table: reader.execute(_all(table)).fetchall() for table in TABLES}
            return True
        return False

    def _until_done(self, tasks: dict[str, tuple[Any, dict[str, Any]]]) -> dict[str, Any] | None:
        """Try the tasks until all have succeeded; returns their results, ``None`` if the load is lost."""
        results: dict[str, Any] = {}
        running: dict[str, _Child] = {}
        waiting = [*tasks]
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                name = waiting.pop(0)
                running[name] = self._begin(name, *tasks[name])
            self._let_something_happen()
            for name, child in [*running.items()]:
                said = self._look(child)
                if said is None:
                    continue
                del running[name]
                if "result" in said:
                    results[name] = said["result"]
                elif any(word in said["error"] for word in LOST):
                    for other in running.values():
                        os.kill(other.pid, signal.SIGKILL)
                        os.waitpid(other.pid, 0)
                    return None
                else:
                    waiting.append(name)
            time.sleep(0.005)
        return results

    def _begin(self, name: str, kind: Any, arguments: dict[str, Any]) -> _Child:
        self.tries[name] = number = self.tries.get(name, self.max_tries) + 1
        result = self.folder / f"{name}.{number}"
        lives_s = self.dice.choice([self.dice.uniform(0.05, 1.2), _PATIENCE_S])
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os._exit(self._child(name, kind, arguments, number, result))
        return _Child(pid, time.monotonic() + lives_s, result)

    def _child(self, name: str, kind: Any, arguments: dict[str, Any], number: int, result: Path) -> int:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        load_id = {} if name == "plan" else {"load_id": "plan"}
        said: dict[str, Any]
        try:
            task = kind(
                task_id=name.partition("_")[0],
                source_conn_id="source",
                destination_conn_id="warehouse",
                **load_id,
                **arguments,
            )
            store = FileStore(self.folder / f"{name}.state")
            ti = {"task_id": name, "try_number": number, "max_tries": self.max_tries}
            said = {"result": task.execute(context(store, **ti))}
        except BaseException as error:  # noqa: BLE001 - the parent hears of it
            said = {"error": f"{type(error).__name__}: {error}"}
        fresh = result.with_suffix(".new")
        fresh.write_text(json.dumps(said))
        fresh.replace(result)
        return 0

    def _look(self, child: _Child) -> dict[str, Any] | None:
        """Return what a try that has ended says, ``None`` while it lives; kill it when its time has come."""
        if time.monotonic() > child.dies_at:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            self._count("task killed")
        elif os.waitpid(child.pid, os.WNOHANG) == (0, 0):
            return None
        # A try whose result is there had ended before it was killed.
        said: dict[str, Any] = {"error": "killed"}
        if child.result.exists():
            said = json.loads(child.result.read_text())
        return said

    def _let_something_happen(self) -> None:
        number = self.dice.random()
        if number < 0.0003:
            with suppress(psycopg.Error):
                for pid, _ in self.source.admin(KEEPER):
                    self.source.admin("SELECT pg_terminate_backend(%s, 60000)", pid)
                    self._count("keeper ended")
        elif number < 0.0005:
            self._crash(self.source.server, "source crashed")
        elif number < 0.0008:
            self._crash(self.warehouse.server, "destination crashed")

    def _crash(self, server: Server, what: str) -> None:
        server.crash()
        server.start()
        self._count(what)

    def _count(self, what: str) -> None:
        self.deaths[what] = self.deaths.get(what, 0) + 1

    def _wrong(self) -> list[str]:
        """Return in what the destination differs from the snapshot, and what is left of the load."""
        wrong = []
        with psycopg.connect(self.warehouse.admin_conninfo) as warehouse:
            for table in TABLES:
                found = warehouse.execute(_all(table)).fetchall()
                if found != self.wanted[table]:
                    wrong.append(
                        f"{table}: {len(found)} rows, and not the {len(self.wanted[table])} of the snapshot"
                    )
            sums = warehouse.execute(
                "SELECT (SELECT sum(n) FROM item), (SELECT sum(n) FROM customer)"
            ).fetchone()
            if sums is None or sums[0] != sums[1]:
                wrong.append(f"the tables are of different snapshots: {sums}")
        wrong += [f"{name} is left" for (name,) in self.warehouse.rows(LEFT)]
        deadline = time.monotonic() + 60
        while (kept := self.source.admin(KEEPER)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return wrong + [f"keeper {pid} is left" for pid, _ in kept]


def _all(table: str) -> sql.Composed:
    return sql.SQL("SELECT * FROM {} ORDER BY id").format(sql.Identifier(table))


if __name__ == "__main__":
    sys.exit(main())
