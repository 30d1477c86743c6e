"""``python -m benchmarks``: run the benchmarks and write the table where README shows it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from benchmarks import (
    batches,
    builders,
    jobs,
    memory,
    once_exec,
    query,
    report,
    small_statements,
    sync,
    transfer,
)
from benchmarks.lab import Lab, laboratory
from benchmarks.measure import BenchmarkError, Outcome


def main() -> int:
    """Run; 1 if something failed or rows differ, never for a missed target."""
    options = _options()
    writes_readme = not options.no_readme and options.only is None
    try:
        if writes_readme:
            report.check_markers(report.README)
        with laboratory() as lab:
            about = report.machine(lab.version)
            if options.merge:
                report.check_others(about, options.repeat)
            outcomes = [run(lab) for run in _benchmarks(options)]
        text = report.summary(outcomes, about, options.repeat)
        print(f"\n{text}")
        if options.merge:
            report.merge(outcomes, about, options.repeat)
        elif options.only is None:  # a part would replace the whole
            report.RESULTS.write_text(report.full(outcomes, text), encoding="utf-8")
        if writes_readme:
            report.write_between_markers(report.README, text)
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    return 0


def _benchmarks(options: argparse.Namespace) -> Sequence[Callable[[Lab], Outcome]]:
    rows, repeat = options.rows, options.repeat
    every: dict[str, Callable[[Lab], Outcome]] = {
        "transfer": lambda lab: transfer.run(lab, rows, repeat, _say),
        "sync": lambda lab: sync.run(lab, rows, repeat, large=not options.no_large, say=_say),
        "query": lambda lab: query.run(lab, rows, repeat, _say),
        "memory": lambda lab: memory.run(lab, rows, large=not options.no_large, say=_say),
        "batches": lambda lab: batches.run(lab, rows, repeat, _say),
        "builders": lambda lab: builders.run(lab, repeat, _say),
        "small": lambda lab: small_statements.run(lab, repeat, _say),
        "exec": lambda lab: once_exec.run(lab, repeat, _say),
        "jobs": lambda lab: jobs.run(lab, repeat, _say),
    }
    return [every[options.only]] if options.only else list(every.values())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", type=_positive, default=1_000_000, help="rows of a transfer (1000000)")
    parser.add_argument("--repeat", type=_positive, default=5, help="rounds, after a discarded one (5)")
    parser.add_argument(
        "--only",
        choices=["transfer", "sync", "query", "batches", "builders", "small", "exec", "jobs", "memory"],
        help="run one benchmark; neither README nor results.md is written then",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="with --only: put its figures among the others in README and results.md, which stay",
    )
    parser.add_argument(
        "--no-large", action="store_true", help="leave out the transfer of ten times the rows"
    )
    parser.add_argument("--no-readme", action="store_true", help="leave README as it is")
    options = parser.parse_args()
    if options.merge and (options.only is None or options.no_readme):
        parser.error("--merge goes with --only, and not with --no-readme")
    return options


def _positive(text: str) -> int:
    number = int(text.replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
