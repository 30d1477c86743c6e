"""The results as GitHub markdown: on the screen, in README.md and, in full, in results.md."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import BenchmarkError, Check, Outcome, Table

_ROOT = Path(__file__).parents[1]
README = _ROOT / "README.md"
RESULTS = _ROOT / "benchmarks" / "results.md"
_BEGIN, _END = "<!-- bench -->", "<!-- /bench -->"
_TARGETS = "Targets"
_ALL_ROUNDS = "## All rounds"


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
    blocks = [_first_line(about, repeat)]
    blocks += [_table(table) for outcome in outcomes for table in outcome.tables]
    blocks.append(_checks([check for outcome in outcomes for check in outcome.checks]))
    return "\n\n".join(blocks)


def full(outcomes: Sequence[Outcome], text: str) -> str:
    """Return the summary and every single sample."""
    blocks = ["# Benchmark results", "Written by `make bench`.", text, _ALL_ROUNDS, "Wall seconds."]
    blocks += [_table(table) for outcome in outcomes for table in _samples(outcome)]
    return "\n\n".join(blocks) + "\n"


def merge(outcomes: Sequence[Outcome], about: str, repeat: int) -> None:
    """Put figures in the place of those that README.md and results.md have of the same tables and targets.

    What is new goes behind the others; all else stays as it is.

    :raises BenchmarkError: as :func:`check_others`.
    """
    check_others(about, repeat)
    readme, results = README.read_text(encoding="utf-8"), RESULTS.read_text(encoding="utf-8")
    shown = readme[readme.index(_BEGIN) + len(_BEGIN) : readme.index(_END)]
    figures, rounds = results.split(_ALL_ROUNDS)
    samples = [table for outcome in outcomes for table in _samples(outcome)]
    figures, rounds = _merged(figures, outcomes), _with_tables(rounds, samples)
    RESULTS.write_text(f"{figures}\n\n{_ALL_ROUNDS}\n\n{rounds}\n", encoding="utf-8")
    write_between_markers(README, _merged(shown, outcomes))


def check_others(about: str, repeat: int) -> None:
    """Look whether other figures can stand beside these, before minutes are spent.

    :raises BenchmarkError: if they come from another machine, other versions or fewer rounds.
    """
    check_markers(README)
    first = _first_line(about, repeat)
    for path in (README, RESULTS):
        if not path.is_file() or first not in path.read_text(encoding="utf-8"):
            raise BenchmarkError(f"the other figures in {path.name} don't go with these: {first}")


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


def _first_line(about: str, repeat: int) -> str:
    return f"{about} Medians of {repeat} interleaved rounds; differences below 20 % are noise."


def _samples(outcome: Outcome) -> Iterator[Table]:
    for title, every in outcome.samples.items():
        rounds = max(len(series.samples) for series in every)
        rows = [
            [s.name, *(f"{sample.seconds:.3f}" for sample in s.samples)] + [""] * (rounds - len(s.samples))
            for s in every
        ]
        yield Table(title, ["way", *(str(n + 1) for n in range(rounds))], rows)


def _merged(text: str, outcomes: Sequence[Outcome]) -> str:
    """Return *text*, which ends with the targets, with other tables and targets."""
    before, targets = text.strip("\n").split(f"**{_TARGETS}**")
    head, rows = targets.split("--:|\n")
    lines = {_what(line): line for line in rows.splitlines()}
    lines |= {_what(line): line for outcome in outcomes for line in map(_check_row, outcome.checks)}
    tables = _with_tables(before, [table for outcome in outcomes for table in outcome.tables])
    return f"{tables}\n\n**{_TARGETS}**{head}--:|\n" + "\n".join(lines.values())


def _with_tables(text: str, tables: Iterable[Table]) -> str:
    head, *rest = re.split(r"^(?=\*\*[^\n]+\*\*$)", text.strip("\n"), flags=re.MULTILINE)
    blocks = {block.split("**")[1]: block.strip("\n") for block in rest}
    blocks |= {table.title: _table(table) for table in tables}
    return "\n\n".join([head.strip("\n"), *blocks.values()])


def _what(line: str) -> str:
    return re.split(r"(?<!\\)\|", line)[1]


def _checks(checks: Iterable[Check]) -> str:
    table = _table(Table(_TARGETS, ["what", "figure", "target", ""], []))
    return "\n".join([table, *map(_check_row, checks)])


def _check_row(check: Check) -> str:
    return _row([check.what, check.figure, check.target, "met" if check.met else "**missed**"])


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
