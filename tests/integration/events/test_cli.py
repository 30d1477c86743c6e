"""``airflow dblink`` for events, against a server."""

from __future__ import annotations

import io
import json

import pytest

from tests.databases import Database
from tests.integration.conftest import Run
from tests.integration.events.conftest import claim_as, emit

_NOT_DONE = "UPDATE airflow_dblink_events.event SET done_at = now() - interval '1 day' WHERE id <= %s"


def test_from_install_to_prune(source: Database, run: Run) -> None:
    assert "Version 1 is there: schema 'airflow_dblink_events'" in run("install-events", "source")
    emit(source, 3)
    claim_as("shop/manual/a/claim/-1", source.target, most=2)

    rows = json.loads(run("list-events", "source", "--output", "json"))

    (topic, claim) = rows
    assert (topic["topic"], topic["unclaimed"], topic["claimed"], topic["done"]) == ("orders", "1", "2", "0")
    assert (claim["claim"], claim["claimed"], claim["run"]) == ("shop/manual/a/claim/-1", "2", "unknown")
    assert run("release-events", "source", "shop/manual/a/claim/-1", "--yes") == "Given back: 2 events.\n"
    claim_as("another", source.target)
    source.execute(_NOT_DONE, 2)
    assert run("prune-events", "source", "--older-than", "0.5", "--yes") == "Deleted 2 events.\n"
    assert run("prune-events", "source", "--older-than", "0.5", "--yes") == "Deleted 0 events.\n"
    assert source.rows("SELECT id FROM airflow_dblink_events.event") == [(3,)]


def test_the_printed_sql_installs_and_grants(source: Database, run: Run) -> None:
    role = source.server.role
    script = run(
        "install-events", "source", "--print", "--schema", "my events", "--emit", role, "--claim", role
    )

    source.execute(script)

    assert source.rows("""SELECT "my events".emit('t')""") == [(1,)]
    assert "Version 1" in run("install-events", "source", "--schema", "my events")


def test_what_is_missing_is_said_with_the_command(source: Database, fails: Run) -> None:
    said = fails("list-events", "source")

    assert "schema 'airflow_dblink_events' for events is not there" in said
    assert "HINT:  airflow dblink install-events source" in said
    assert "control characters" in fails("install-events", "source", "--print", "--schema", "a\x1b")


def test_odd_schemas_and_claims_that_are_none(source: Database, run: Run, fails: Run) -> None:
    for schema in ("50%", "a%(most)sb"):
        run("install-events", "source", "--schema", schema)
        assert json.loads(run("list-events", "source", "--schema", schema, "--output", "json")) == []
        assert run("prune-events", "source", "--schema", schema, "--yes") == "Deleted 0 events.\n"
        said = fails("release-events", "source", "d/r/t/-1", "--schema", schema, "--yes")
        assert "no event that is not done is claimed by 'd/r/t/-1'" in said
    assert "surrogate" in fails("release-events", "source", "\udcff", "--yes")


@pytest.mark.usefixtures("shop")
def test_nobody_is_asked_in_vain(fails: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "HINT:  --yes" in fails("prune-events", "source")
    assert "HINT:  --yes" in fails("release-events", "source", "d/r/t/-1")
