"""The results as GitHub markdown: on the screen, in README.md and, in full, in results.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import BenchmarkError, Check, Outcome, Table

_ROOT = Path(__file__).parents[1]
README = _ROOT / "README.md"
RESULTS = _ROOT / "benchmarks" / "results.md"
_BEGIN, _END = "<!-- bench -->", "<!-- /bench -->"


def machine(postgresql: str) -> str:
    """Say what it ran on, and how to read it."""
    return (
        f"Two PostgreSQL {postgresql} servers and the client on one machine with {os.cpu_count()} cores"
        f" ({platform.system()}, {platform.machine()}), over loopback;"
        f" Python {platform.python_version()}, Airflow {version('apache-airflow')},"
        f" psycopg {version('psycopg')}."
    )


def summary(outcomes: Sequence[Outcome], about: str, repeat: int) -> str:
    """Return the tables and, after them, the targets."""
    blocks = [f"{about} Medians of {repeat} interleaved rounds; differences below 20 % are noise."]
    blocks += [_table(table) for outcome in outcomes for table in outcome.tables]
    blocks.append(_checks([check for outcome in outcomes for check in outcome.checks]))
    return "\n\n".join(blocks)


def full(outcomes: Sequence[Outcome], text: str) -> str:
    """Return the summary and every single sample."""
    blocks = ["# Benchmark results", "Written by `make bench`.", text, "## All rounds", "Wall seconds."]
    for outcome in outcomes:
        for title, every in outcome.samples.items():
            rounds = max(len(series.samples) for series in every)
            rows = [
                [s.name, *(f"{sample.seconds:.3f}" for sample in s.samples)]
                + [""] * (rounds - len(s.samples))
                for s in every
            ]
            blocks.append(_table(Table(title, ["way", *(str(n + 1) for n in range(rounds))], rows)))
    return "\n\n".join(blocks) + "\n"


def check_markers(path: Path) -> None:
    """Look for the place in README, before minutes are spent.

    :raises BenchmarkError: if it isn't there, or not once.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(_BEGIN) != 1 or text.count(_END) != 1 or text.index(_BEGIN) > text.index(_END):
        raise BenchmarkError(
            f"{path.name} needs one {_BEGIN} and, after it, one {_END}: the table goes between them"
            " (--no-readme does without)"
        )


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the markers.

    :raises BenchmarkError: as :func:`check_markers`.
    """
    check_markers(path)
    old = path.read_text(encoding="utf-8")
    before, after = old[: old.index(_BEGIN)], old[old.index(_END) :]
    path.write_text(f"{before}{_BEGIN}\n{text}\n{after}", encoding="utf-8")


def _checks(checks: Iterable[Check]) -> str:
    rows = [
        [check.what, check.figure, check.target, "met" if check.met else "**missed**"] for check in checks
    ]
    return _table(Table("Targets", ["what", "figure", "target", ""], rows))


def _table(table: Table) -> str:
    lines = [f"**{table.title}**", ""]
    lines.append(_row(table.header))
    lines.append("|" + "|".join(["---", *["--:"] * (len(table.header) - 1)]) + "|")
    lines += [_row(row) for row in table.rows]
    if table.notes:
        lines += ["", " ".join(table.notes)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    # Inside of a table a bar ends the cell, also in code.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
