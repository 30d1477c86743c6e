"""One row that can't be deleted, or read, must not keep all others for ever."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_dblink.core.errors import RemoteError
from tests.databases import Database
from tests.integration.jobs.client import Client


def _left(source: Database) -> list[object]:
    return [job_id for (job_id,) in source.rows("SELECT id FROM airflow_dblink.job ORDER BY sent_at")]


def test_the_others_are_deleted_and_the_failed_ones_are_named(client: Client, source: Database) -> None:
    kept = [client.run("SELECT 1 AS a", keep_result=True) for _ in range(4)]
    used, last = kept[1], kept[3]
    for job in (used, last):
        source.execute(f"CREATE VIEW v{job.id.hex} AS TABLE airflow_dblink_results.{job.result_table}")

    with pytest.raises(RemoteError, match="2 jobs were deleted, but 2 could not be") as failed:
        client.jobs.prune(timedelta(0))

    assert str(used.id) in str(failed.value)
    assert str(last.id) in str(failed.value)
    assert "other objects depend on it" in str(failed.value)
    assert _left(source) == [used.id, last.id]
    source.execute(f"DROP VIEW v{used.id.hex}, v{last.id.hex}")
    assert client.jobs.prune(timedelta(0)) == 2


def test_a_row_that_nobody_can_read_is_deleted_like_others(client: Client, source: Database) -> None:
    client.run("SELECT 1")
    lost = client.insert("SELECT 1")
    source.execute(
        "UPDATE airflow_dblink.job SET state = 'running', pid = 0, started_at = '-infinity' WHERE id = %s",
        lost,
    )

    assert client.jobs.prune(timedelta(seconds=-60)) == 2


def test_a_row_that_does_not_go_is_come_across_once(client: Client, source: Database) -> None:
    stays = client.run("SELECT 1")
    client.run("SELECT 1")
    source.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER keep BEFORE DELETE ON airflow_dblink.job FOR EACH ROW EXECUTE FUNCTION keep()"
    )
    assert client.jobs.prune(timedelta(0)) == 0
    assert len(_left(source)) == 2
    source.execute("DROP TRIGGER keep ON airflow_dblink.job")
    assert client.jobs.prune(timedelta(0)) == 2
    assert stays.id not in _left(source)
