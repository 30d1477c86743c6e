"""A stranger's domain has the name of a type on another server: its CHECK would run as our role."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airflow_dblink.core.remote_sets.remote import Remote
from tests.databases import Database
from tests.queries import run as query
from tests.security.planted import as_stranger
from tests.transfers import transfer

_DOMAIN = """
CREATE TABLE stolen (by_role text);
GRANT INSERT ON stolen TO PUBLIC;
CREATE FUNCTION steal(text) RETURNS boolean LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO public.stolen VALUES (current_user); RETURN true; END $$;
CREATE DOMAIN mood AS text CHECK (public.steal(VALUE));
CREATE TYPE pair AS (a mood, b int)
"""


def attach() -> None:
    query("SELECT * FROM there", {"there": Remote("source", "SELECT * FROM item")}, max_xcom_rows=10)


def create() -> None:
    transfer("item", destination_table="made", mode="create")


@pytest.mark.parametrize("way", [attach, create])
@pytest.mark.parametrize("column", ["feeling", "feelings", "pair"])
def test_its_check_does_not_run(
    source: Database, warehouse: Database, way: Callable[[], None], column: str
) -> None:
    source.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    source.execute("CREATE TYPE pair AS (a mood, b int)")
    values = {
        "feeling": "'sad'::mood AS feeling",
        "feelings": "'{sad,happy}'::mood[] AS feelings",
        "pair": "'(sad,1)'::pair AS pair",
    }
    source.execute(f"CREATE TABLE item AS SELECT 1 AS id, {values[column]}")
    warehouse.admin("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with as_stranger(warehouse.admin_conninfo) as stranger:
        stranger.execute(_DOMAIN)

    way()

    assert warehouse.admin("SELECT * FROM stolen") == []
