"""Run Airflow's components for one caller, and end them with it: the script behind ``airflow.py``.

A caller that is killed runs no clean-up code, and Airflow's processes end neither with their parent nor with
one signal: each task process leads a process group of its own, and an operator's children may have their own
session. So the keeper becomes the parent of all descendants whose parent has died, and at the end kills until
it has no descendant left. It asks for its parent's pid instead of waiting for the end of a pipe, since each
forked child of the caller would keep the pipe's write end open.

The keeper imports once what takes every component and every task seconds to import, and forks the components.
"""

import atexit
import ctypes
import importlib
import os
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil

_STOP_GRACE_S = 5
_POLL_S = 0.2
_WAIT_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h
_IMPORTED_ONCE = (
    *("airflow.__main__", "airflow.sdk.execution_time.supervisor", "airflow.sdk.execution_time.task_runner"),
    *("airflow.jobs.scheduler_job_runner", "airflow.jobs.triggerer_job_runner"),
    "airflow.dag_processing.manager",
    *("airflow_dblink.operators.jobs", "airflow_dblink.operators.query", "airflow_dblink.operators.sync"),
    *("airflow_dblink.operators.transfer", "airflow_dblink.sensors.job"),
)
_told_to_exit = False
_OPTIONS = {"scheduler": ["--skip-serve-logs"], "triggerer": ["--skip-serve-logs"]}  # they take fixed ports


def main(caller: int, home: Path, components: list[str]) -> None:
    """Run *components* until SIGTERM or the end of the process *caller*, then remove *home*.

    Components are commands of ``airflow``, or ``triggerer.1`` and so on if there are several. Their pids are
    in ``components/NAME.pid``. While the file ``components/NAME.down`` exists, that component may end; once
    the file is gone, the component is started again. If another component ends, its name is written to
    ``ended``, and nothing is started again.
    """
    signal.signal(signal.SIGTERM, _exit)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    running: dict[str, int] = {}
    try:
        (home / "components").mkdir()
        _import_once()
        _wait_for_exit(caller, home, _run(caller, home, components, running))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_descendants(in_no_hurry=running.get("api-server"))
        shutil.rmtree(home, ignore_errors=True)


def _exit(*_: object) -> NoReturn:
    global _told_to_exit
    _told_to_exit = True
    sys.exit()


def _import_once() -> None:
    # An error is no concern of ours: the components fail with the same one, and log it.
    with suppress(Exception):
        for module in _IMPORTED_ONCE:
            importlib.import_module(module)


def _run(caller: int, home: Path, components: list[str], running: dict[str, int]) -> str:
    """Add the components to *running* with their pids, and return the name of the first one that ends."""
    # The api-server starts first, beside "db migrate": its imports take longer than that.
    running |= {components[0]: _start(home, components[0]), "db": _start(home, "db", "migrate")}
    down: set[str] = set()
    while True:
        _exit_without(caller)
        for name in [name for name in down if not _may_be_down(home, name)]:
            down.remove(name)
            running[name] = _start(home, name)
        # Read before waitpid: once a component is reaped, the caller may already have it started again.
        may_end = {name for name in running if _may_be_down(home, name)}
        pid, status = os.waitpid(-1, os.WNOHANG)  # also for descendants, which must not stay zombies
        if pid == 0:
            time.sleep(_WAIT_S)
            continue
        ended = next((name for name, its in running.items() if its == pid), None)
        if ended == "db" and status == 0:
            running |= {name: _start(home, name) for name in components[1:]}
        elif ended and (ended in may_end or _may_be_down(home, ended)):
            del running[ended]
            down.add(ended)
        elif ended:
            return ended


def _may_be_down(home: Path, name: str) -> bool:
    return (home / "components" / f"{name}.down").exists()


def _start(home: Path, name: str, *args: str) -> int:
    """Fork a process that runs a command of ``airflow`` with its output in a log; return its pid."""
    command = name.partition(".")[0]
    # Blocked until the child has Python's own handler: ours would end all other components, too.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    pid = os.fork()
    if pid == 0:
        _become(home / "components" / f"{name}.log", ["airflow", command, *args, *_OPTIONS.get(command, ())])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    (home / "components" / f"{name}.pid").write_text(f"{pid}")
    return pid


def _become(log: Path, arguments: list[str]) -> NoReturn:
    """Run Airflow's command line in this forked process, and end it without the keeper's clean-up."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        sys.argv = arguments
        importlib.import_module("airflow.__main__").main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)  # as Python does
    except BaseException:  # noqa: BLE001 - to the log, as Python does
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _exit_without(caller: int) -> None:
    # Not in a thread of its own: a process with threads must not fork.
    # Asked again after SIGTERM: a module that was being imported may have caught our exception.
    if _told_to_exit or os.getppid() != caller:
        sys.exit()


def _wait_for_exit(caller: int, home: Path, ended: str) -> NoReturn:
    (home / "ended.new").write_text(ended)
    (home / "ended.new").rename(home / "ended")  # so that nobody sees the file without the name
    while True:
        _exit_without(caller)
        time.sleep(_POLL_S)


def _end_descendants(in_no_hurry: int | None) -> None:
    """End all descendants: SIGTERM with a grace period, then SIGKILL.

    SIGTERM goes to our group only. Each supervisor passes it on to its task process, whose ``on_kill``
    would run twice if we also sent it there.

    :param in_no_hurry: the api-server, which isn't waited for: it takes seconds to end, and saves nothing.
    """
    me = psutil.Process()
    os.killpg(0, signal.SIGTERM)
    descendants = me.children(recursive=True)
    if in_no_hurry:
        descendants = [process for process in descendants if process.pid != in_no_hurry]
    psutil.wait_procs(descendants, timeout=_STOP_GRACE_S)
    while left := me.children(recursive=True):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
