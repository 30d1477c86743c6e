"""What a stranger plants while a swap loads or waits is in no policy, trigger or index of the new table.

PostgreSQL writes ``feeling = 'sad'::mood`` without a schema as long as only its own operator fits. If that
text is read before he makes one that fits better, and run after it, the new table would call his function for
good.
"""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

from tests.databases import Database
from tests.security.planted import as_stranger
from tests.transfers import meanwhile, sleeping, transfer

TABLE = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE FUNCTION checked() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TABLE item (id int PRIMARY KEY, feeling mood);
CREATE INDEX sad ON item (id) WHERE feeling = 'sad';
CREATE STATISTICS sads ON (feeling = 'sad'), id FROM item;
ALTER TABLE item ENABLE ROW LEVEL SECURITY;
CREATE POLICY sad ON item USING (feeling = 'sad') WITH CHECK (feeling = 'sad');
CREATE TRIGGER sad BEFORE UPDATE ON item FOR EACH ROW WHEN (NEW.feeling = 'sad') EXECUTE FUNCTION checked();
"""
PLANT = """
CREATE FUNCTION public.same(mood, mood) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE OPERATOR public.= (LEFTARG = mood, RIGHTARG = mood, FUNCTION = public.same);
GRANT ALL ON FUNCTION public.same(mood, mood) TO PUBLIC;
"""
WAITS = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
USERS = """
SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend
 WHERE refclassid IN ('pg_operator'::regclass, 'pg_proc'::regclass)
   AND refobjid IN ('public.=(mood, mood)'::regoperator::oid, 'public.same(mood, mood)'::regprocedure::oid)
   AND classid <> 'pg_operator'::regclass
"""
PIECES = """
SELECT (SELECT count(*) FROM pg_policy WHERE polrelid = 'item'::regclass),
       (SELECT count(*) FROM pg_trigger WHERE tgrelid = 'item'::regclass),
       (SELECT count(*) FROM pg_index WHERE indrelid = 'item'::regclass),
       (SELECT count(*) FROM pg_statistic_ext WHERE stxrelid = 'item'::regclass)
"""


@pytest.mark.parametrize("when", ["load", "wait"])
def test_what_is_planted_meanwhile_is_not_used(source: Database, warehouse: Database, when: str) -> None:
    warehouse.execute(TABLE)
    warehouse.execute("INSERT INTO item VALUES (0, 'sad')")
    before = warehouse.rows("TABLE item")
    with psycopg.connect(source.conninfo) as gate, psycopg.connect(warehouse.conninfo) as reader:
        if when == "load":
            gate.execute("SELECT pg_advisory_xact_lock(7)")
        else:
            reader.execute("SELECT FROM item")

        def plant() -> None:
            with as_stranger(warehouse.admin_conninfo) as stranger:
                stranger.execute(PLANT.encode())
            gate.rollback()
            reader.rollback()

        with meanwhile(plant, lambda: source.admin(WAITS) if when == "load" else sleeping(warehouse)):
            transfer(
                "item",
                mode="swap",
                source_sql="SELECT 1 AS id, 'sad' AS feeling FROM pg_advisory_xact_lock_shared(7)",
                swap_timeout=timedelta(minutes=1),
            )
    assert warehouse.admin(USERS) == []
    assert warehouse.admin(PIECES) == [(1, 1, 2, 1)]
    assert warehouse.admin("SELECT id FROM item") != before
