"""A ``path`` from ``dag_run.conf`` leads out of its folder; and others on the machine read the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.operators.fetch import DblinkFetchOperator
from airflow_dblink.operators.jobs import DblinkGetResultOperator, DblinkJobOperator
from airflow_dblink.operators.query import DblinkQueryOperator
from airflow_dblink.operators.sync import DblinkSyncOperator
from tests.databases import Database
from tests.integration.tasks import context
from tests.syncs import sync_operator

FETCHES = (DblinkFetchOperator, DblinkQueryOperator)
KINDS = (*FETCHES, DblinkJobOperator, DblinkGetResultOperator, DblinkSyncOperator)
HANDLE = {"conn_id": "source", "job_id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "schema": "s"}


def operator(kind: Callable[..., Any], path: str, **arguments: Any) -> Any:
    """Return an operator that writes to *path*."""
    if kind is DblinkSyncOperator:
        return sync_operator(statements_path=path, **arguments)
    if kind is DblinkGetResultOperator:
        return kind(task_id="t", handle=HANDLE, path=path, **arguments)
    return kind(task_id="t", conn_id="source", sql="SELECT 1 AS a", path=path, **arguments)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("kind", KINDS)
def test_a_path_out_of_base_path_is_refused_before_anything_is_sent(
    kind: Callable[..., Any], tmp_path: Path
) -> None:
    base, outside = tmp_path / "out", tmp_path / "outside"
    base.mkdir()
    outside.mkdir()
    (base / "link").symlink_to(outside)
    for path in (
        f"{base.as_uri()}/../outside/x.csv",
        f"{base.as_uri()}/link/x.csv",
        f"{base.as_uri()}side/x.csv",
        str(outside / "x.csv"),
        "x.csv",
        f"{tmp_path.as_uri()}/x.csv",
        "s3://bucket/x.csv",
        f"simplecache::{base.as_uri()}/x.csv",
    ):
        with pytest.raises(AirflowFailException, match=r"path leads out of base_path|is no URL"):
            operator(kind, path, base_path=base.as_uri()).execute(context())
    assert [*outside.iterdir()] == []


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("kind", FETCHES)
def test_a_path_within_base_path_is_written(kind: Callable[..., Any], tmp_path: Path) -> None:
    for number, base in enumerate((tmp_path.as_uri(), str(tmp_path), f"{tmp_path}/")):
        path = tmp_path / "new" / "x" / ".." / f"{number}.csv"
        operator(kind, f"file://{path}", base_path=base).execute(context())
        assert path.resolve().read_text() == "a\n1\n"


def test_the_statements_of_a_sync_are_written_within_base_path(
    source: Database, warehouse: Database, tmp_path: Path
) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY)")
    source.execute("INSERT INTO item VALUES (1)")
    path = tmp_path / "new" / "made.sql"
    task = operator(
        DblinkSyncOperator, path.as_uri(), base_path=tmp_path.as_uri(), file_mode="0640", plan_only=True
    )
    task.execute(context())

    assert path.read_text() == 'INSERT INTO "public"."item"(id) VALUES(\'1\');\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_base_path_is_no_template() -> None:
    for kind in KINDS:
        assert "base_path" not in kind.template_fields


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("kind", FETCHES)
@pytest.mark.parametrize(("given", "mode"), [({}, 0o600), ({"file_mode": "0644"}, 0o644)])
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_a_file_is_read_by_its_owner_alone(
    kind: Callable[..., Any], given: dict[str, str], mode: int, name: str, tmp_path: Path
) -> None:
    before = os.umask(0o077 if given else 0)
    try:
        operator(kind, (tmp_path / name).as_uri(), **given).execute(context())
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


@pytest.mark.usefixtures("source")
def test_the_file_is_closed_to_others_while_it_is_written(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watched(DblinkFetchOperator):
        def _check(self) -> None:
            seen.extend(stat.S_IMODE(part.stat().st_mode) for part in tmp_path.glob(".*.part"))

    operator(Watched, (tmp_path / "x.csv").as_uri()).execute(context())
    assert set(seen) == {0o600}


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("mode", ["rw", "9", 600, "00600x"])
def test_a_mode_that_is_none_is_refused(mode: Any, tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException, match="file_mode must be octal"):
        operator(DblinkFetchOperator, (tmp_path / "x").as_uri(), file_mode=mode).execute(context())


@pytest.mark.usefixtures("source")
def test_a_nul_in_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException, match="path holds a NUL"):
        operator(DblinkFetchOperator, f"{tmp_path.as_uri()}/a\0b").execute(context())


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(("base", "why"), [(5, "must be text"), ("", "has no value"), ("/a\0", "holds a")])
def test_a_base_path_that_is_none_is_refused(base: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException, match=f"base_path {why}"):
        operator(DblinkFetchOperator, (tmp_path / "x").as_uri(), base_path=base).execute(context())
