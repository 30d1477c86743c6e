"""What README says of GenericTransfer: how many values arrive as they were, of those that we move."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from airflow.providers.postgres.hooks.postgres import PostgresHook

from tests.databases import Database
from tests.integration.test_transfer_types import BUILT_IN

README = Path(__file__).parents[2] / "README.md"


def test_how_many_values_generic_transfer_keeps(
    source: Database, warehouse: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Read and write as GenericTransfer does, one value per table; PostgreSQL writes both as text."""
    caplog.set_level(logging.CRITICAL)
    read, write = PostgresHook(source.conn_id), PostgresHook(warehouse.conn_id)
    kept = 0
    for type_name, value in BUILT_IN:
        for side in (source, warehouse):
            side.execute("DROP TABLE IF EXISTS one_value")
            side.execute(f"CREATE TABLE one_value (v {type_name})")
        source.execute(f"INSERT INTO one_value SELECT ({value})::{type_name}")
        try:
            rows = read.get_records("SELECT v FROM one_value")
            write.insert_rows("one_value", rows)  # type: ignore[no-untyped-call] # Airflow's
        except Exception:  # noqa: BLE001, S112 - whatever keeps a value from arriving
            continue
        query = "SELECT v::text FROM one_value"
        kept += source.rows(query) == warehouse.rows(query)
    assert 0 < kept < len(BUILT_IN)
    if "(PostgreSQL) 18" in _version(warehouse):
        assert f"of {len(BUILT_IN)} cases of PostgreSQL's types {kept} arrive as they were" in " ".join(
            README.read_text(encoding="utf-8").split()
        )


def _version(database: Database) -> str:
    return str(database.rows("SELECT '(PostgreSQL) ' || current_setting('server_version')")[0][0])
