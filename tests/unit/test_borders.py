"""What only a running interpreter shows of the borders; `make check` holds who imports whom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import airflow_dblink

PACKAGE = Path(airflow_dblink.__file__).parent
CORE = sorted((PACKAGE / "core").rglob("*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_a_fresh_interpreter_imports_all_of_core_without_airflow() -> None:
    modules = [_module(path) for path in CORE]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'airflow'))"
    )

    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert len(modules) > 10
    assert run.stdout.strip() == "[]"


def test_provider_info_imports_nothing_of_airflow_or_psycopg() -> None:
    code = (
        "import sys\nfrom airflow_dblink.provider_info import get_provider_info\nget_provider_info()\n"
        "print(sorted({'airflow', 'psycopg'} & {name.partition('.')[0] for name in sys.modules}))"
    )

    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert run.stdout.strip() == "[]"
