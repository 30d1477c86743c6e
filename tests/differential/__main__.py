"""Compare with dblink on ever new random calls, until stopped or a difference is found."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
import traceback

from airflow_dblink.embedded.server import servers
from tests.differential.comparison import Comparison, comparison

_EXAMPLES = 50  # of each kind, per seed


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="how long; without end if not given"
    )
    parser.add_argument("--seed", type=int, help="repeat one seed instead")
    arguments = parser.parse_args()
    try:
        with servers("source") as (server,), comparison(server) as both:
            return _compare(both, arguments.minutes * 60, arguments.seed)
    except KeyboardInterrupt:
        return 0


def _compare(both: Comparison, seconds: float, only: int | None) -> int:
    deadline = time.monotonic() + seconds
    cases = 0
    while True:
        seed = secrets.randbelow(2**32) if only is None else only
        try:
            for in_transaction in (False, True):
                outcomes = both.run(examples=_EXAMPLES, in_transaction=in_transaction, random_seed=seed)
                cases += outcomes.total()
        except Exception:  # noqa: BLE001 - a difference, or another error that stopped the comparison
            traceback.print_exc()  # the falsifying example is a note of the exception
            sys.stdout.write(f"\nseed {seed}; repeat it with: python -m tests.differential --seed {seed}\n")
            return 1
        sys.stdout.write(f"seed {seed} done, {cases} calls compared\n")
        sys.stdout.flush()
        if only is not None or time.monotonic() > deadline:
            return 0


if __name__ == "__main__":
    sys.exit(main())
