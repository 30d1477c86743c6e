"""A destination whose catalogs lie, to get its own SQL into what our role runs on the source."""

from __future__ import annotations

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
