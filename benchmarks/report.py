"""What a run found: kept in results.json, and shown in docs/benchmarks.md and in README's short table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import BenchmarkError, Check, Outcome, Table

_BEGIN, _END = "<!-- bench -->", "<!-- /bench -->"
_PAGE = """# Benchmarks

`make bench` writes this page and the short table in [README](../README.md). Nothing here is edited by hand.
The time of every single round is in [results.json](../benchmarks/results.json)."""


@dataclass(frozen=True)
class Files:
    """Where the results are kept and shown, below *root*: the checkout, or a copy of it."""

    root: Path

    @property
    def results(self) -> Path:
        """The stored results, with every round."""
        return self.root / "benchmarks" / "results.json"

    @property
    def page(self) -> Path:
        """The page with all figures and targets."""
        return self.root / "docs" / "benchmarks.md"

    @property
    def readme(self) -> Path:
        """README, where the short table stands between two markers."""
        return self.root / "README.md"


CHECKOUT = Files(Path(__file__).parents[1])


@dataclass(frozen=True)
class Results:
    """All that is shown.

    :ivar about: the machine and the versions.
    :ivar repeat: rounds that the medians are of.
    :ivar short: README's table; ``None`` as long as no transfer was measured.
    :ivar rounds: wall seconds by title, way and round.
    """

    about: str
    repeat: int
    short: Table | None
    tables: Sequence[Table]
    checks: Sequence[Check]
    rounds: Mapping[str, Mapping[str, Sequence[float]]]


def machine(postgresql: str) -> str:
    """Say what it ran on, and how to read it."""
    return (
        f"Two PostgreSQL {postgresql} servers and the client on one machine with {os.cpu_count()} cores"
        f" ({platform.system()}, {platform.machine()}), over loopback;"
        f" Python {platform.python_version()}, Airflow {version('apache-airflow')},"
        f" psycopg {version('psycopg')}."
    )


def collected(outcomes: Sequence[Outcome], about: str, repeat: int) -> Results:
    """Return the results of one run of the benchmarks."""
    return Results(
        about,
        repeat,
        next((outcome.short for outcome in outcomes if outcome.short), None),
        [table for outcome in outcomes for table in outcome.tables],
        [check for outcome in outcomes for check in outcome.checks],
        {
            title: {series.name: [round(sample.seconds, 3) for sample in series.samples] for series in every}
            for outcome in outcomes
            for title, every in outcome.samples.items()
        },
    )


def merged(old: Results, new: Results) -> Results:
    """Return *old* with the tables, targets and rounds of *new* in place of its own of the same names.

    New names go behind the others.

    :raises BenchmarkError: as :func:`check_same_setup`.
    """
    check_same_setup(old, new.about, new.repeat)
    return Results(
        old.about,
        old.repeat,
        new.short or old.short,
        list(({table.title: table for table in [*old.tables, *new.tables]}).values()),
        list(({check.what: check for check in [*old.checks, *new.checks]}).values()),
        {**old.rounds, **new.rounds},
    )


def check_same_setup(old: Results, about: str, repeat: int) -> None:
    """Raise unless stored figures may stand beside new ones; called before minutes are spent.

    :raises BenchmarkError: if they come from another machine, other versions or another number of rounds.
    """
    if (old.about, old.repeat) != (about, repeat):
        raise BenchmarkError(
            f"the stored figures come from another setup: {_first_line(old.about, old.repeat)}"
            f" This run: {_first_line(about, repeat)}"
        )


# -- the stored results


def load(files: Files) -> Results:
    """Read the stored results.

    :raises BenchmarkError: if there are none.
    """
    try:
        kept = json.loads(files.results.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchmarkError(f"{files.results.name} is missing: run all benchmarks once") from None
    short = kept["short"]
    return Results(
        kept["about"],
        kept["repeat"],
        short and Table(**short),
        [Table(**table) for table in kept["tables"]],
        [Check(**check) for check in kept["checks"]],
        kept["rounds"],
    )


def store(results: Results, files: Files) -> None:
    """Store *results*, and write the page and README's table from them.

    :raises BenchmarkError: as :func:`check_markers`; nothing is written then.
    """
    check_markers(files)
    files.results.write_text(
        json.dumps(asdict(results), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    write(results, files)


# -- the page and README


def write(results: Results, files: Files) -> None:
    """Write the page and README's table.

    :raises BenchmarkError: as :func:`check_markers`; nothing is written then.
    """
    check_markers(files)
    files.page.write_text(f"{_PAGE}\n\n{shown(results)}\n", encoding="utf-8")
    if results.short:
        old = files.readme.read_text(encoding="utf-8")
        before, after = old[: old.index(_BEGIN)], old[old.index(_END) :]
        files.readme.write_text(
            f"{before}{_BEGIN}\n{_rows(results.short)}\n{after}",
            encoding="utf-8",
        )


def shown(results: Results) -> str:
    """Return the tables and, after them, the targets, as GitHub markdown."""
    blocks = [_first_line(results.about, results.repeat), *map(_section, results.tables)]
    return "\n\n".join([*blocks, _section(_targets(results.checks))])


def check_markers(files: Files) -> None:
    """Raise unless README has a place for its table; called before minutes are spent.

    :raises BenchmarkError: if a marker is missing, stands twice, or they stand in the wrong order.
    """
    readme = files.readme
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if text.count(_BEGIN) != 1 or text.count(_END) != 1 or text.index(_BEGIN) > text.index(_END):
        raise BenchmarkError(
            f"{readme.name} needs one {_BEGIN} and, after it, one {_END}: the short table goes between them"
        )


def _first_line(about: str, repeat: int) -> str:
    return f"{about} Medians of {repeat} interleaved rounds; differences below 20 % are noise."


def _targets(checks: Iterable[Check]) -> Table:
    rows = [
        [check.what, check.figure, check.target, "met" if check.met else "**missed**"] for check in checks
    ]
    return Table("Targets", ["what", "figure", "target", ""], rows)


def _section(table: Table) -> str:
    lines = [f"## {table.title}", "", _rows(table)]
    if table.notes:
        lines += ["", " ".join(table.notes)]
    return "\n".join(lines)


def _rows(table: Table) -> str:
    divider = "|" + "|".join(["---", *["--:"] * (len(table.header) - 1)]) + "|"
    return "\n".join([_row(table.header), divider, *map(_row, table.rows)])


def _row(cells: Sequence[str]) -> str:
    # Inside of a table a bar ends the cell, also in code.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
