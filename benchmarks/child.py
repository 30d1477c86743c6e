"""A process of its own in which Airflow's operators run, so that their memory and CPU can be told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from benchmarks.lab import Lab
from benchmarks.measure import BenchmarkError, Sample

_TAIL_BYTES = 3_000


class Child:
    """A running :mod:`benchmarks.airflow_side`, or another module that ends in ``serve``."""

    def __init__(self, process: subprocess.Popen[str], answers: IO[str], log: IO[bytes]) -> None:
        self._process = process
        self._answers = answers
        self._log = log
        self._answer()  # it has imported everything

    def ask(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Have *job* done and return what it says.

        :raises BenchmarkError: if it fails, with the end of its log.
        """
        if self._process.stdin is None:
            raise BenchmarkError("the process with Airflow has no stdin")
        print(json.dumps({"job": job, "arguments": arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def sample(self, job: str, **arguments: Any) -> Sample:
        """Have *job* done and return what it cost."""
        return Sample(**self.ask(job, **arguments)["sample"])

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "it has ended"}
        if error := answer.get("error"):
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            tail = self._log.read().decode(errors="replace")
            raise BenchmarkError(f"the process with Airflow failed: {error}\nIts log ends:\n{tail}")
        return answer


@contextmanager
def child(lab: Lab, module: str = "benchmarks.airflow_side") -> Iterator[Child]:
    """Start a process with Airflow; it knows the connections bench_source and bench_destination."""
    with tempfile.TemporaryDirectory(prefix="bench_airflow_") as home, tempfile.TemporaryFile() as log:
        mine, theirs = os.pipe()
        with (
            os.fdopen(mine) as answers,
            subprocess.Popen(
                [sys.executable, "-m", module, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(home) | lab.environment(),
                pass_fds=[theirs],
                text=True,
            ) as process,
        ):
            os.close(theirs)
            try:
                yield Child(process, answers, log)
            finally:
                process.kill()


def _environment(home: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PG"))},
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
