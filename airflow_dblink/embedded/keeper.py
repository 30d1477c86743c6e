"""Run Airflow's components for one caller, and end them with it: the script behind ``airflow.py``.

A caller that is killed runs no clean-up code, and Airflow's processes end neither with their parent nor with
one signal: each task process leads a process group of its own, and an operator's children may have their own
session. So the keeper becomes the parent of all descendants whose parent has died, and at the end kills until
it has no descendant left. It asks for its parent's pid instead of waiting for the end of a pipe, since each
forked child of the caller would keep the pipe's write end open.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil

_STOP_GRACE_S = 5
_POLL_S = 0.2
_WAIT_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h
_OPTIONS = {"scheduler": ["--skip-serve-logs"], "triggerer": ["--skip-serve-logs"]}  # they take fixed ports


def main(caller: int, home: Path, components: list[str]) -> None:
    """Run *components* until SIGTERM or the end of the process *caller*, then remove *home*.

    Components are commands of ``airflow``, or ``triggerer.1`` and so on if there are several. Their pids are
    in ``components/NAME.pid``. While the file ``components/NAME.down`` exists, that component may end; once
    the file is gone, the component is started again. If another component ends, its name is written to
    ``ended``, and nothing is started again.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        threading.Thread(target=_exit_with, args=[caller], daemon=True).start()
        (home / "components").mkdir()
        _wait_for_exit(home, _run(home, components, running))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_descendants(in_no_hurry=running.get("api-server"))
        shutil.rmtree(home, ignore_errors=True)


def _exit_with(caller: int) -> None:
    while os.getppid() == caller:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _run(home: Path, components: list[str], running: dict[str, subprocess.Popen[bytes]]) -> str:
    """Add the components to *running*, and return the name of the first one that ends."""
    # The api-server starts first, beside "db migrate": its imports take longer than that.
    running |= {components[0]: _start(home, components[0]), "db": _start(home, "db", "migrate")}
    down: set[str] = set()
    while True:
        for name in [name for name in down if not _may_be_down(home, name)]:
            down.remove(name)
            running[name] = _start(home, name)
        # Read before waitpid: once a component is reaped, the caller may already have it started again.
        may_end = {name for name in running if _may_be_down(home, name)}
        pid, status = os.waitpid(-1, os.WNOHANG)  # also for descendants, which must not stay zombies
        if pid == 0:
            time.sleep(_WAIT_S)
            continue
        ended = next((name for name, process in running.items() if process.pid == pid), None)
        if ended == "db" and status == 0:
            running |= {name: _start(home, name) for name in components[1:]}
        elif ended and (ended in may_end or _may_be_down(home, ended)):
            del running[ended]
            down.add(ended)
        elif ended:
            return ended


def _may_be_down(home: Path, name: str) -> bool:
    return (home / "components" / f"{name}.down").exists()


def _start(home: Path, name: str, *args: str) -> subprocess.Popen[bytes]:
    command = name.partition(".")[0]
    with (home / "components" / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", command, *args, *_OPTIONS.get(command, ())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    (home / "components" / f"{name}.pid").write_text(f"{process.pid}")
    return process


def _wait_for_exit(home: Path, ended: str) -> NoReturn:
    (home / "ended.new").write_text(ended)
    (home / "ended.new").rename(home / "ended")  # so that nobody sees the file without the name
    while True:
        signal.pause()


def _end_descendants(in_no_hurry: subprocess.Popen[bytes] | None) -> None:
    """End all descendants: SIGTERM with a grace period, then SIGKILL.

    SIGTERM goes to our group only. Each supervisor passes it on to its task process, whose ``on_kill``
    would run twice if we also sent it there.

    :param in_no_hurry: the api-server, which isn't waited for: it takes seconds to end, and saves nothing.
    """
    me = psutil.Process()
    os.killpg(0, signal.SIGTERM)
    descendants = me.children(recursive=True)
    if in_no_hurry:
        descendants = [process for process in descendants if process.pid != in_no_hurry.pid]
    psutil.wait_procs(descendants, timeout=_STOP_GRACE_S)
    while left := me.children(recursive=True):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
