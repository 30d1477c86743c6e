"""Fixtures of the integration tests: commands of ``airflow dblink``, through Airflow's own parser."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from airflow.cli.cli_parser import get_parser

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs ``airflow dblink`` and returns its output."""

    def run(*words: str) -> str:
        capsys.readouterr()
        args = get_parser().parse_args(["dblink", *words])
        args.func(args)
        return capsys.readouterr().out

    return run


@pytest.fixture
def fails(run: Run) -> Run:
    """Return a function that runs ``airflow dblink``, which must fail, and returns its error."""

    def fails(*words: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            run(*words)
        assert isinstance(exit_.value.code, str)  # for stderr; the exit code is 1 then
        return exit_.value.code

    return fails
