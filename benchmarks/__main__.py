"""``python -m benchmarks``: run the benchmarks; store and show what they found."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from benchmarks import (
    batches,
    builders,
    gates,
    jobs,
    memory,
    once_exec,
    query,
    report,
    small_statements,
    swap,
    sync,
    transfer,
)
from benchmarks.lab import Lab, laboratory
from benchmarks.measure import BenchmarkError, Outcome

_ROWS = 1_000_000


def main(files: report.Files = report.CHECKOUT) -> int:
    """Run; 1 if something failed or rows differ, never for a missed target."""
    options = _options()
    try:
        if options.write:
            report.write(report.load(files), files)
            return 0
        keeps = (options.only is None or options.merge) and not _is_trial(options)
        if keeps:
            report.check_markers(files)
        with laboratory() as lab:
            about = report.machine(lab.version)
            if options.merge:
                report.check_same_setup(report.load(files), about, options.repeat)
            results = report.collected([run(lab) for run in _benchmarks(options)], about, options.repeat)
        print(f"\n{report.shown(results)}")
        if options.merge:
            results = report.merged(report.load(files), results)
        if keeps:
            report.store(results, files)
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    return 0


def _benchmarks(options: argparse.Namespace) -> Sequence[Callable[[Lab], Outcome]]:
    rows, repeat = options.rows, options.repeat
    every: dict[str, Callable[[Lab], Outcome]] = {
        "transfer": lambda lab: transfer.run(lab, rows, repeat, _say),
        "swap": lambda lab: swap.run(lab, rows, repeat, _say),
        "sync": lambda lab: sync.run(lab, rows, repeat, large=not options.no_large, say=_say),
        "query": lambda lab: query.run(lab, rows, repeat, _say),
        "memory": lambda lab: memory.run(lab, rows, large=not options.no_large, say=_say),
        "batches": lambda lab: batches.run(lab, rows, repeat, _say),
        "builders": lambda lab: builders.run(lab, repeat, _say),
        "small": lambda lab: small_statements.run(lab, repeat, _say),
        "exec": lambda lab: once_exec.run(lab, repeat, _say),
        "jobs": lambda lab: jobs.run(lab, repeat, _say),
        "gates": lambda lab: gates.run(lab, repeat, _say),
    }
    return [every[options.only]] if options.only else list(every.values())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rows",
        type=_positive,
        default=_ROWS,
        help=f"of the tables ({_ROWS}); others: a trial",
    )
    parser.add_argument("--repeat", type=_positive, default=5, help="rounds, after a discarded one (5)")
    parser.add_argument(
        "--only",
        choices=[
            "transfer",
            "swap",
            "sync",
            "query",
            "batches",
            "builders",
            "small",
            "exec",
            "jobs",
            "gates",
            "memory",
        ],
        help="run one benchmark, and keep nothing of it",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="with --only: keep its figures, in place of the stored ones; the other figures stay",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="run nothing: write docs/benchmarks.md and README's table from the stored results",
    )
    parser.add_argument(
        "--no-large",
        action="store_true",
        help="leave out the runs with ten times the rows: a trial",
    )
    options = parser.parse_args()
    if options.merge and options.only is None:
        parser.error("--merge goes with --only")
    if options.merge and _is_trial(options):
        parser.error("--merge keeps figures, and --rows and --no-large are for trials")
    return options


def _is_trial(options: argparse.Namespace) -> bool:
    """Return whether the tables have other sizes than those of the stored figures: nothing is kept then."""
    return bool(options.rows != _ROWS or options.no_large)


def _positive(text: str) -> int:
    number = int(text.replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
