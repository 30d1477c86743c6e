"""Code that a test runs in a process of its own, and the memory of that process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

MB = 1024 * 1024

_ROOT = Path(__file__).parents[1]


def last_line(code: str, *arguments: str) -> str:
    """Run *code* in a new Python process; return the last line that it prints.

    :param arguments: its ``sys.argv[1:]``.
    """
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


def peak() -> int:
    """Return the largest resident memory that this process has had, in bytes.

    It doesn't use getrusage(), whose peak begins with the parent's memory at the fork.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
