"""``airflow dblink``: what Airflow's parser is told, and what needs no server."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from typing import get_args

import pytest
from airflow.cli.cli_config import GroupCommand
from airflow.cli.cli_parser import get_parser

from airflow_dblink.cli import STATES, get_commands
from airflow_dblink.commands import events, jobs, loads
from airflow_dblink.core.jobs.install import install_script
from airflow_dblink.core.jobs.job import State
from airflow_dblink.provider_info import get_provider_info
from tests.conftest import AddConnection

NAMES = [
    *("cancel-job", "install", "install-events", "list-events", "list-jobs", "list-loads", "prune-events"),
    *("prune-jobs", "prune-loads", "release-events", "show-job", "sql"),
]


def _parse(*words: str) -> Namespace:
    return get_parser().parse_args(["dblink", *words])


def _run(*words: str) -> None:
    args = _parse(*words)
    args.func(args)


# -- the definition


def test_the_provider_names_it() -> None:
    assert get_provider_info()["cli"] == [f"{get_commands.__module__}.{get_commands.__name__}"]


def test_the_definition_imports_neither_psycopg_nor_what_the_commands_do() -> None:
    code = (
        "import sys\nfrom airflow_dblink.cli import get_commands\nget_commands()\n"
        "print(*(name for name in sys.modules if name.partition('.')[0] in ('airflow_dblink', 'psycopg')))"
    )

    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    loaded = set(run.stdout.splitlines()[-1].split())
    assert "airflow_dblink.cli" in loaded
    assert loaded <= {"airflow_dblink", "airflow_dblink.cli", "airflow_dblink.provider_info"}


def test_each_command_has_a_function_and_a_help_text() -> None:
    (group,) = get_commands()

    assert isinstance(group, GroupCommand)
    assert sorted(command.name for command in group.subcommands) == NAMES
    for command in group.subcommands:
        assert command.help
        assert command.func.__name__ == command.name.replace("-", "_")
        name = command.func.__name__
        assert [module for module in (events, jobs, loads) if callable(getattr(module, name, None))]


@pytest.mark.parametrize("name", NAMES)
def test_help_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        _parse(name, "--help")

    assert exit_.value.code == 0
    assert "CONN_ID" in capsys.readouterr().out


def test_the_states_are_the_cores() -> None:
    assert get_args(State) == STATES


def test_options_may_be_given_more_than_once() -> None:
    assert _parse("list-jobs", "c", "--state", "lost", "--state", "failed").state == ["lost", "failed"]
    assert _parse("sql", "--role", "a", "--role", "b").role == ["a", "b"]


def test_defaults() -> None:
    listing = _parse("list-jobs", "c")
    assert (listing.state, listing.dag_id, listing.limit, listing.output) == (None, None, 100, "table")
    pruning = _parse("prune-jobs", "c")
    assert (pruning.older_than, pruning.yes) == (30, False)
    pruning = _parse("prune-loads", "c")
    assert (pruning.older_than, pruning.yes) == (7, False)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("list-jobs", "CONN_ID"),
        ("show-job c", "JOB_ID"),
        ("list-jobs c --state gone", "invalid choice: 'gone'"),
        ("list-jobs c --limit 0", "invalid positive int value: '0'"),
        ("list-jobs c -o xml", "invalid choice: 'xml'"),
        ("prune-jobs c --older-than nan", "number of days from 0 to 36500, got 'nan'"),
        ("prune-jobs c --older-than=-1", "number of days from 0 to 36500, got '-1'"),
        ("prune-jobs c --older-than 1e9", "number of days from 0 to 36500, got '1e9'"),
        ("prune-jobs c --older-than week", "number of days from 0 to 36500, got 'week'"),
        ("sql --schema=", "a name has 1 to 63 bytes, got ''"),
        (f"sql --role {'ö' * 32}", "a name has 1 to 63 bytes"),
    ],
)
def test_what_the_parser_refuses(words: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        _parse(*words.split(" "))

    assert exit_.value.code == 2
    assert reason in " ".join(capsys.readouterr().err.split())


# -- sql, which needs no server


def test_sql_without_a_connection(capsys: pytest.CaptureFixture[str]) -> None:
    _run("sql")

    assert capsys.readouterr().out == install_script("airflow_dblink")


def test_sql_for_roles_and_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    _run("sql", "--role", "etl", "--role", 'Q"', "--results", "--schema", "my jobs")

    assert capsys.readouterr().out == install_script("my jobs", ["etl", 'Q"'], results=True)


@pytest.mark.parametrize(
    ("words", "schema", "roles"),
    [
        ([], "jobs", ["etl"]),
        (["--role", "other"], "jobs", ["other"]),
        (["--schema", "elsewhere"], "elsewhere", ["etl"]),
    ],
)
def test_sql_for_a_connection_takes_what_is_not_given_from_it(
    words: list[str],
    schema: str,
    roles: list[str],
    add_connection: AddConnection,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Nothing listens there.
    add_connection("c", host="127.0.0.1", port=1, login="etl", extra={"job_schema": "jobs"})

    _run("sql", "c", *words)

    assert capsys.readouterr().out == install_script(schema, roles)


def test_sql_that_drops_says_what_is_lost(
    add_connection: AddConnection, capsys: pytest.CaptureFixture[str]
) -> None:
    add_connection("c", extra={"job_schema": 'a"b'})

    _run("sql", "c", "--drop")

    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == 'DROP SCHEMA IF EXISTS "a""b", "a""b_results" CASCADE;'
    assert all(line.startswith("-- ") for line in lines[:-1])
    assert "all results" in " ".join(lines[:-1])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--results", "--results needs a role to grant it to\nHINT:  give --role"),
        ("--drop --role etl", "--drop goes with neither --role nor --results"),
        ("c", "connection 'c': the connection has no login to grant to\nHINT:  give --role"),
        ("web", "connection 'web': the connection is of type 'http'\nHINT: "),
        ("nowhere", "There is no Airflow connection 'nowhere', or it can't be read.\nHINT: "),
    ],
)
def test_what_sql_refuses(
    words: str, reason: str, add_connection: AddConnection, capsys: pytest.CaptureFixture[str]
) -> None:
    add_connection("c", host="127.0.0.1")
    add_connection("web", conn_type="http")

    with pytest.raises(SystemExit) as exit_:
        _run("sql", *words.split())

    assert str(exit_.value.code).startswith(reason)
    assert capsys.readouterr().out == ""
