"""Servers that lie: to get their own SQL into what our role runs elsewhere, or to break who reads them."""

from __future__ import annotations

import json

import psycopg
import pytest

from airflow_dblink.core.errors import InstallationError
from airflow_dblink.core.installed.trust import SQLSTATE
from airflow_dblink.core.jobs.trust import distrust_of
from tests.databases import Database
from tests.syncs import sync

_LIE = """
SET allow_system_table_mods = on;
CREATE FUNCTION pg_catalog.true_name(oid, int4) RETURNS text LANGUAGE internal STABLE AS 'format_type';
CREATE OR REPLACE FUNCTION pg_catalog.format_type(oid, int4) RETURNS text LANGUAGE sql STABLE AS
$$ SELECT CASE WHEN $1 = 'numeric'::regtype THEN 'numeric + (SELECT a FROM secret)'
               ELSE pg_catalog.true_name($1, $2) END $$
"""


def test_the_name_of_a_type_is_no_sql_for_the_source(source: Database, warehouse: Database) -> None:
    source.execute("CREATE TABLE secret (a int)")
    source.execute("INSERT INTO secret VALUES (12345)")
    source.execute("CREATE TABLE item (id int PRIMARY KEY, price numeric)")
    source.execute("INSERT INTO item VALUES (1, 2.50)")
    warehouse.execute("CREATE TABLE item (id int PRIMARY KEY, price numeric(8, 2))")
    warehouse.admin(_LIE)

    sync("item")

    assert warehouse.rows("SELECT price::text FROM item") == [("2.50",)]


FOUND = {"kind": "table", "name": "job", "me": "me", "role": "other", "place": 3}


@pytest.mark.parametrize(
    "detail",
    [
        "no JSON",
        "[" * 100_000,
        "[1]",
        "null",
        json.dumps({**FOUND, "place": [1]}),
        json.dumps({**FOUND, "role": "a\0b"}),
        json.dumps({**FOUND, "name": "n" * 10_000}),
        json.dumps({**FOUND, "kind": {"a": 1}}),
    ],
)
def test_a_finding_of_the_guard_that_is_none_is_said_to_be_unreadable(source: Database, detail: str) -> None:
    raising = f"BEGIN RAISE 'no' USING ERRCODE = '{SQLSTATE}', DETAIL = $said${detail}$said$; END"
    with pytest.raises(psycopg.Error) as raised:
        source.execute(psycopg.sql.SQL("DO {}").format(psycopg.sql.Literal(raising)).as_string())

    error = distrust_of(raised.value, "shop", "airflow_dblink")

    assert isinstance(error, InstallationError)
    assert "the server's answer doesn't tell who owns the schema" in str(error)
    assert len(str(error)) < 500
