"""What a server says is shown on the terminal of whoever asks: it must not move the cursor, or hide."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from airflow.cli.cli_parser import get_parser
from airflow.utils import yaml

from tests.conftest import AddConnection
from tests.databases import Database
from tests.integration.jobs.client import Client

EVIL = "gone\x1b[2K\x1b[1A\rstate: succeeded\x07\x9b31m\u202ereversed\u2028next\x7f"
SHOWN = r"gone\x1b[2K\x1b[1A\rstate: succeeded\x07\x9b31m\u202ereversed\u2028next\x7f"

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs ``airflow dblink`` and returns its whole output."""

    def run(*words: str) -> str:
        capsys.readouterr()
        args = get_parser().parse_args(["dblink", *words])
        try:
            args.func(args)
        except SystemExit as exit_:
            return str(exit_.code)
        return capsys.readouterr().out

    return run


def _raises(client: Client) -> str:
    quoted = EVIL.replace("'", "''")
    return str(client.run(f"DO $$ BEGIN RAISE EXCEPTION '{quoted}' USING HINT = '{quoted}'; END $$").id)


def _bare(text: str) -> list[str]:
    """Return the characters that a terminal may obey, except the ends of lines."""
    return [c for c in text if not c.isprintable() and c != "\n"]


@pytest.mark.parametrize("output", ["table", "plain", "yaml", "json"])
def test_what_a_server_says_is_shown_and_not_obeyed(client: Client, run: Run, output: str) -> None:
    job_id = _raises(client)

    shown = run("show-job", "source", job_id, "--statement", "-o", output)

    assert _bare(shown) == []
    if output == "plain":
        assert SHOWN in shown
    elif output != "table":  # these formats escape control characters themselves
        (row,) = json.loads(shown) if output == "json" else yaml.safe_load(shown)
        assert row["message"] == EVIL


def test_a_line_more_is_no_property_more(client: Client, run: Run) -> None:
    job_id = str(client.run("DO $$ BEGIN RAISE EXCEPTION E'gone\\nstate    succeeded'; END $$").id)

    shown = run("show-job", "source", job_id, "-o", "plain")

    assert r"gone\nstate    succeeded" in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("state ")] == ["failed"]


@pytest.mark.parametrize("output", ["table", "plain", "yaml", "json"])
def test_names_in_a_list(client: Client, source: Database, run: Run, output: str) -> None:
    client.run("SELECT 1")
    source.execute("UPDATE airflow_dblink.job SET dag_id = %s, task_id = %s", EVIL, EVIL)

    assert _bare(run("list-jobs", "source", "-o", output)) == []


def test_an_error(client: Client, source: Database, run: Run, add_connection: AddConnection) -> None:
    client.jobs.ready()
    source.admin("REVOKE ALL ON airflow_dblink.job FROM CURRENT_USER")
    source.execute(
        "CREATE FUNCTION evil() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{EVIL}' USING HINT = '{EVIL}'; END $$;"
        "CREATE TRIGGER evil BEFORE UPDATE ON airflow_dblink.job FOR EACH STATEMENT EXECUTE FUNCTION evil()"
    )

    said = run("cancel-job", "source", "0b6c9f2e-5f0e-4a43-8d0c-1f0a6f1e7a55")

    assert "gone" in said
    assert "HINT" in said
    assert _bare(said) == []


@pytest.mark.parametrize("drop", [(), ("--drop",)])
def test_sql_with_a_name_that_hides_something_is_not_printed(
    source: Database, run: Run, add_connection: AddConnection, drop: tuple[str, ...]
) -> None:
    conn_id = add_connection("evil", source, conn_type="dblink", extra={"job_schema": "a\x1b[8m"})

    said = run("sql", conn_id, *drop)

    assert "holds control characters" in said
    assert _bare(said) == []
