"""End the servers of one run: called by that run itself, or by a small process that outlives it.

A Python process that is killed runs no clean-up code. So ``server.py`` starts this file as a script: it
sees its parent disappear, ends the servers and removes their directory. It imports only the standard
library, so that it starts in a few milliseconds, and works even if the package is gone at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Not every process that names the directory: somebody may be reading the log.
_PROGRAM = re.compile(r"postgres: |(.*/)?(postgres|initdb) -")
_POLL_S = 0.1
_GRACE_S = 6.0  # PostgreSQL's own limit for an immediate shutdown is 5 s


def start(directory: Path) -> subprocess.Popen[bytes]:
    """Start the process that calls :func:`clean_up` on *directory* once this process is gone.

    That process asks for its parent's pid instead of waiting for the end of a pipe, since each forked child
    would keep the pipe's write end open. It has its own session, so Ctrl-C does not reach it, and holds no
    file of ours open.

    :raises OSError: if Python cannot be started.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(directory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def processes(token: str) -> list[int]:
    """Return the pids of initdb, postmasters and backends that carry *token*.

    The postmaster has the token in ``-D``; its children have it in their title, through ``cluster_name``.
    Everybody may read command lines; a working directory is closed even to root in a container.
    """
    return [pid for pid, command in _commands() if _PROGRAM.match(command) and token in command]


def _commands() -> Iterator[tuple[int, str]]:
    """Yield pid and command line of every process; a zombie's is empty."""
    if not Path("/proc/self/cmdline").exists():
        listing = subprocess.run(
            ["/bin/ps", "-A", "-ww", "-o", "pid=,command="], capture_output=True, text=True, check=False
        )
        for line in listing.stdout.splitlines():
            pid, _, command = line.strip().partition(" ")
            yield int(pid), command.strip()
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            yield int(entry.name), command.replace("\0", " ")


def end(token: str, signum: signal.Signals, *, timeout_s: float) -> bool:
    """Send *signum* to every process with *token* until none is left.

    :returns: whether none is left after *timeout_s* seconds.
    """
    deadline = time.monotonic() + timeout_s
    told: set[int] = set()
    while pids := processes(token):
        if time.monotonic() > deadline:
            return False
        for pid in set(pids) - told:
            told.add(pid)
            try:
                os.kill(pid, signum)
            except OSError:  # it has ended, or it is another user's process that only looks like ours
                continue
        time.sleep(0.02)
    return True


def clean_up(directory: Path) -> None:
    """End every server below *directory*, then remove it.

    SIGQUIT comes first, since PostgreSQL then frees its shared memory.
    """
    token = f"{directory.name}/"
    deadline = time.monotonic() + 4 * _GRACE_S
    while time.monotonic() < deadline:
        if not end(token, signal.SIGQUIT, timeout_s=_GRACE_S):
            end(token, signal.SIGKILL, timeout_s=_GRACE_S)
        shutil.rmtree(directory, ignore_errors=True)
        # Both again if a program that was just starting has written a file meanwhile.
        if not directory.exists() and not processes(token):
            return
        time.sleep(_POLL_S)


def main(parent: int, directory: Path) -> None:
    """Wait until the process *parent*, which started this one, is gone; then clean up."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a service manager tells all at once
        signal.signal(signum, signal.SIG_IGN)
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    clean_up(directory)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
