"""The place of the tests' temporary files: memory, if there is room."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")
_ENOUGH = 12 * 1024**3  # the write-ahead logs of eight servers, and the largest tables


def use_memory() -> None:
    """Let this process and its children make temporary files in memory, unless ``TMPDIR`` is set."""
    if "TMPDIR" not in os.environ and _is_usable(_MEMORY):
        os.environ["TMPDIR"] = str(_MEMORY)
        tempfile.tempdir = None  # read again


def _is_usable(directory: Path) -> bool:
    """Return whether *directory* has room for much data, and programs in it can be run."""
    if not directory.is_mount() or not os.access(directory, os.W_OK | os.X_OK):
        return False
    programs_run = not os.statvfs(directory).f_flag & os.ST_NOEXEC
    return programs_run and shutil.disk_usage(directory).free >= _ENOUGH
