"""The closing line of a run about tests that were skipped because a program is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.debian import FOLDER_VARIABLE, NOT_HERE, closing_line

ROOT = Path(__file__).parents[2]
_NOWHERE = "/dev/null/nothing can be written here"
_NEEDS_PROGRAM = "tests/integration/test_transfer_tls.py"


def _run(**variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", _NEEDS_PROGRAM],
        cwd=ROOT,
        env={**environment, FOLDER_VARIABLE: _NOWHERE, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_closing_line_names_each_program_once() -> None:
    reasons = [
        f"x.py:1: Skipped: {NOT_HERE}{name} (why)" for name in ("pgbouncer", "postgresql", "pgbouncer")
    ]

    line = closing_line(["another reason", *reasons])

    assert line is not None
    assert line.startswith("not tested: 3 tests that need pgbouncer, postgresql,")
    assert "apt-get install pgbouncer postgresql" in line
    assert closing_line(["another reason"]) is None


def test_a_run_without_a_program_skips_its_tests_and_says_so_in_one_line() -> None:
    run = _run()

    assert run.returncode == 0, run.stdout
    told = [line for line in run.stdout.splitlines() if "postgresql" in line]
    assert len(told) == 1
    assert told[0].startswith("not tested: ")


def test_a_skipped_test_fails_ci() -> None:
    run = _run(CI="true")

    assert run.returncode == 1, run.stdout
    assert f"{NOT_HERE}postgresql ({_NOWHERE} can't be written" in run.stdout
