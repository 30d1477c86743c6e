"""A load with *verify*: what the destination made of the rows is found before it is committed."""

# ruff: noqa: S608 - names that the tests themselves made
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import VerificationError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.tables.checksum import Checksum, agree
from airflow_dblink.embedded.server import servers
from tests.databases import Database, new_database
from tests.debian import postgres_bindir
from tests.integration.sync.tables import contents
from tests.transfers import meanwhile, transfer

ITEM = "CREATE TABLE item (id int, name text)"
THREE = "INSERT INTO item VALUES (1, 'a secret'), (2, 'b'), (3, NULL)"
BEFORE = [(0, "before")]
WHOLE = ("replace", "create")


@pytest.fixture
def both(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases with a table item; the source's has three rows, the destination's one."""
    source.execute(f"{ITEM}; {THREE}")
    warehouse.execute(f"{ITEM}; INSERT INTO item VALUES (0, 'before')")
    return source, warehouse


@pytest.fixture(params=["native", "sha256"])
def hashed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let servers hash by themselves, or as those do that hash differently."""

    def disagreed(source: Side, destination: Side) -> Checksum:
        return replace(agree(source, destination), native=False)

    if request.param == "sha256":
        monkeypatch.setattr("airflow_dblink.core.transfer.verify.agree", disagreed)


def trigger(database: Database, body: str, when: str = "BEFORE INSERT ON item FOR EACH ROW") -> None:
    database.execute(
        f"""CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
        CREATE TRIGGER changed {when} EXECUTE FUNCTION changed()"""
    )


def refused(**arguments: Any) -> str:
    """Return what the error says; it names no value of a row."""
    with pytest.raises(VerificationError) as caught:
        transfer(**arguments)
    assert caught.value.connname == "warehouse"
    assert "secret" not in str(caught.value)
    return str(caught.value)


# -- rows that are dropped or added


@pytest.mark.parametrize("verify", ["count", "checksum"])
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_a_trigger_that_drops_rows_is_found(both: tuple[Database, Database], mode: str, verify: str) -> None:
    _, warehouse = both
    verify = "count" if mode == "append" else verify
    trigger(warehouse, "RETURN CASE WHEN NEW.id <> 2 THEN NEW END;")
    said = refused(mode=mode, verify=verify)
    assert "'source' sent 3 rows, and item kept 2 of them; nothing is committed" in said
    assert "HINT" in said
    assert warehouse.rows("TABLE item") == BEFORE
    assert transfer(mode=mode)["verified"] is None


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("DELETE FROM item WHERE id = 2; RETURN NULL;", 2),
        ("INSERT INTO item VALUES (4, 'd'); RETURN NULL;", 4),
    ],
)
def test_rows_that_come_and_go_after_the_load_are_found(
    both: tuple[Database, Database], body: str, found: int
) -> None:
    _, warehouse = both
    when = "AFTER INSERT ON item FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0)"
    trigger(warehouse, body, when)
    assert f"'source' sent 3 rows, and after the load item has {found};" in refused(
        mode="replace", verify="count"
    )
    assert warehouse.rows("TABLE item") == BEFORE


@pytest.mark.parametrize("mode", ["append", "replace", "create"])
def test_a_load_that_is_right_says_what_was_verified(both: tuple[Database, Database], mode: str) -> None:
    _, warehouse = both
    table = "other" if mode == "create" else "item"
    result = transfer(source_table="item", destination_table=table, mode=mode, verify="count")
    assert (result["rows"], result["changed"], result["verified"]) == (3, 3, "count")
    assert len(warehouse.rows(f"TABLE {table}")) == (4 if mode == "append" else 3)


def test_post_sql_may_change_what_was_verified(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    transfer(mode="replace", verify="checksum", post_sql="DELETE FROM item WHERE id > 1")
    assert warehouse.rows("TABLE item") == [(1, "a secret")]


# -- values that are changed


def test_a_trigger_that_changes_a_value_is_found(both: tuple[Database, Database], hashed: None) -> None:
    _, warehouse = both
    trigger(warehouse, "NEW.name := NEW.name || ' '; RETURN NEW;")
    said = refused(mode="replace", verify="checksum")
    assert "the checksum of the 3 rows of item is not that of 'source': columns that differ: 'name';" in said
    assert warehouse.rows("TABLE item") == BEFORE
    transfer(mode="replace", verify="count")
    assert transfer(mode="replace", verify="checksum", columns=["id"])["verified"] == "checksum"


def test_values_that_change_their_rows_are_found(both: tuple[Database, Database], hashed: None) -> None:
    _, warehouse = both
    body = "UPDATE item SET id = 3 - id WHERE id IN (1, 2); RETURN NULL;"
    trigger(warehouse, body, "AFTER INSERT ON item FOR EACH STATEMENT")
    assert "each column has the same values, but some stand in other rows" in refused(
        mode="replace", verify="checksum"
    )


def test_rows_that_are_equal_in_pairs_do_not_cancel_out(
    source: Database, warehouse: Database, hashed: None
) -> None:
    """The exclusive or of two equal hashes is nothing, whatever they are of."""
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (a int)")
    source.execute("INSERT INTO item VALUES (1), (1), (2), (2)")
    assert transfer(mode="replace", verify="checksum")["rows"] == 4
    trigger(warehouse, "NEW.a := NEW.a + 1; RETURN NEW;")
    assert "columns that differ: 'a'" in refused(mode="replace", verify="checksum")


def test_blanks_that_a_type_cuts_are_found(source: Database, warehouse: Database) -> None:
    source.execute("CREATE TABLE item (a varchar(5)); INSERT INTO item VALUES ('ab   ')")
    warehouse.execute("CREATE TABLE item (a varchar(2))")
    assert "columns that differ: 'a'" in refused(mode="replace", verify="checksum")


def test_a_query_that_gives_other_values_each_time_is_refused(both: tuple[Database, Database]) -> None:
    query = "SELECT id, random()::text AS name FROM item"
    said = refused(source_sql=query, mode="replace", verify="checksum")
    assert "'name'" in said
    assert "random()" in said


# -- what must not be taken for a difference


ALIKE = """CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TYPE moment AS (at timestamptz, share float8);
CREATE DOMAIN price AS numeric(10, 3);
CREATE TABLE item (
    id int PRIMARY KEY, big bigint, share float8, exact numeric, text text, short varchar(9), padded char(7),
    pads char(3)[], bytes bytea, day date, at timestamptz, local timestamp, span interval, uid uuid, doc json,
    docs jsonb, flags bool[], net inet, span4 int4range, mood mood, moment moment, price price,
    "odd ""name" text, kind regtype)"""
VALUES = """INSERT INTO item
SELECT i, i * 4294967296, CASE i WHEN 1 THEN '-0' WHEN 2 THEN 'NaN' ELSE (0.1 * i)::float8 END,
       (1.50 * i)::numeric(9, 2), 'ä' || i, 'a ', 'b', '{a,NULL}', '\\x00ff', date '2026-01-01' + i,
       now(), now(), '1 mon 2 days', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
       '{"a":  1}', '{"a": 1.50}', '{t,NULL}', '10.0.0.1/24', '[1,5)',
       'glad', ROW('2026-01-01 00:00+00', 0.1 * i)::moment, 1.5, '', 'text'
  FROM generate_series(1, 20) AS i;
INSERT INTO item (id) VALUES (99)"""


@pytest.mark.parametrize("mode", WHOLE)
@pytest.mark.parametrize("how", ["binary", "text"])
def test_values_of_all_sorts_are_the_same_whatever_the_session_says(
    source: Database, warehouse: Database, hashed: None, mode: str, how: str
) -> None:
    source.execute(f"{ALIKE}; {VALUES}")
    warehouse.execute(ALIKE)
    if mode == "create":
        warehouse.execute("DROP TABLE item")
    warehouse.admin(f"ALTER DATABASE {warehouse.name} SET timezone = 'Asia/Tokyo'")
    warehouse.admin(f"ALTER DATABASE {warehouse.name} SET datestyle = 'German'")
    users = {"mood", "moment", "price", "kind"} if how == "binary" else set()
    names = "SELECT attname FROM pg_attribute WHERE attrelid = 'item'::regclass AND attnum > 0"
    columns = [name for (name,) in source.rows(names) if name not in users]
    zone = "SELECT current_setting('timezone') INTO zone"
    result = transfer(mode=mode, verify="checksum", columns=columns, post_sql=zone)
    assert (result["rows"], result["format"], result["verified"]) == (21, how, "checksum")
    assert warehouse.rows("TABLE zone") == [("Asia/Tokyo",)]


@pytest.mark.parametrize(
    ("here", "there", "value"),
    [
        ("numeric(5,1)", "numeric", "2.25"),
        ("numeric(5,1)[]", "numeric[]", "{2.25,NULL}"),
        ("timestamp(0)", "timestamp(3)", "2026-01-01 00:00:00.500"),
        ("bigint", "int", "5"),
        ("text", "int", "5"),
        ("numeric(6,2)", "int", "5"),
        ("timestamp", "date", "2026-01-01"),
        ("char(9)", "text", "ab  "),
        ("text", "char(9)", "ab"),
        ("text", "mood", "glad"),
        ("mood", "text", "glad"),
        ("price", "numeric", "1.23456"),
        ("oid", "int", "5"),
    ],
)
def test_a_type_that_differs_is_compared_as_it_is_stored(
    source: Database, warehouse: Database, here: str, there: str, value: str
) -> None:
    for database, kind in ((warehouse, here), (source, there)):
        database.execute("CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN price AS numeric(10, 3)")
        database.execute(f"CREATE TABLE item (id int, a {kind})")
    source.execute(f"INSERT INTO item VALUES (1, '{value}'), (2, NULL)")
    assert transfer(mode="replace", verify="checksum")["rows"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"source_table": "shown"},
        {"source_table": "parent"},
        {"source_sql": "SELECT id, name FROM item WHERE id < %s -- all", "source_parameters": [9]},
        {"source_sql": "SELECT id, name FROM item UNION ALL SELECT id, name FROM item", "rows": 6},
        {"source_table": "item", "columns": {"id": "number", "name": "text"}, "destination_table": "renamed"},
        {"source_table": "item", "destination_table": "parted"},
        {"source_table": "item", "destination_table": "computed"},
        {"source_sql": "SELECT id, name FROM item WHERE false", "allow_empty_source": True, "rows": 0},
    ],
)
def test_any_source_and_destination(both: tuple[Database, Database], arguments: dict[str, Any]) -> None:
    source, warehouse = both
    source.execute(
        "CREATE VIEW shown AS SELECT * FROM item;"
        "CREATE TABLE parent (LIKE item); CREATE TABLE child () INHERITS (parent);"
        "INSERT INTO parent VALUES (1, 'x'); INSERT INTO child SELECT * FROM item WHERE id < 3"
    )
    warehouse.execute(
        "CREATE TABLE renamed (number int, text text);"
        "CREATE TABLE parted (LIKE item) PARTITION BY LIST (id);"
        "CREATE TABLE part PARTITION OF parted DEFAULT;"
        "CREATE TABLE computed (LIKE item, twice int GENERATED ALWAYS AS (id * 2) STORED)"
    )
    rows = arguments.pop("rows", 3)
    assert transfer(mode="replace", verify="checksum", **arguments)["rows"] == rows


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Give a database on the system's PostgreSQL; connection ``older``."""
    with (
        servers("system", bindir=postgres_bindir()) as (server,),
        new_database(server, "older") as database,
    ):
        monkeypatch.setenv("AIRFLOW_CONN_OLDER", database.uri)
        yield database


def test_two_versions_of_postgresql_agree(source: Database, older: Database, warehouse: Database) -> None:
    source.execute(f"{ALIKE}; {VALUES}")
    older.execute(ALIKE)
    warehouse.execute(ALIKE)
    there = {"destination_conn_id": "older", "mode": "replace"}
    assert transfer(**there, verify="checksum")["rows"] == 21
    assert transfer(source_conn_id="older", mode="replace", verify="checksum")["rows"] == 21
    warehouse.execute("DROP TABLE item")
    again = transfer(source_conn_id="older", mode="create", like="all", verify="checksum")
    assert (again["rows"], again["verified"]) == (21, "checksum")
    assert contents(warehouse) == contents(source)


# -- one snapshot


def test_others_may_write_to_the_source_meanwhile(both: tuple[Database, Database]) -> None:
    source, warehouse = both
    expected = source.rows("TABLE item")
    trigger(
        warehouse,
        "PERFORM pg_advisory_xact_lock(1); RETURN NULL;",
        "BEFORE INSERT ON item FOR EACH STATEMENT",
    )
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    with psycopg.connect(warehouse.conninfo) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(1)")

        def write() -> None:
            source.execute("UPDATE item SET name = 'other'; INSERT INTO item VALUES (4, 'd')")
            holder.commit()

        with meanwhile(write, lambda: warehouse.admin(waits)):
            assert transfer(mode="replace", verify="checksum")["rows"] == 3
    assert warehouse.rows("TABLE item") == expected


def test_a_source_that_is_reloaded_meanwhile_is_not_taken_for_an_empty_one(
    both: tuple[Database, Database],
) -> None:
    """TRUNCATE heeds no snapshot: one that was taken before its commit sees neither old nor new rows."""
    source, warehouse = both
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(source.conninfo) as writer:
        writer.execute("TRUNCATE item; INSERT INTO item VALUES (7, 'new')")
        with meanwhile(writer.commit, lambda: source.admin(waits)):
            result = transfer(source_table="item", destination_table="made", mode="create", verify="checksum")
    assert result["rows"] == 1
    assert contents(warehouse, "made") == contents(source)


# -- refused before a row moves


@pytest.mark.parametrize(
    ("verify", "grant"), [("count", ""), ("checksum", "GRANT SELECT (id) ON item TO {}")]
)
def test_the_role_must_be_allowed_to_look(both: tuple[Database, Database], verify: str, grant: str) -> None:
    _, warehouse = both
    role = f'"{warehouse.server.role}"'
    warehouse.admin(f"DROP TABLE item; {ITEM}; GRANT TRUNCATE, INSERT ON item TO {role}")
    warehouse.admin(grant.format(role) or "SELECT 1")
    with pytest.raises(AirflowFailException, match=r"verify needs SELECT on public\.item"):
        transfer(mode="replace", verify=verify)
    assert transfer(verify="count")["verified"] == "count"


def test_a_view_tells_nothing(both: tuple[Database, Database]) -> None:
    _, warehouse = both
    warehouse.execute("CREATE VIEW shown AS TABLE item")
    trigger(warehouse, "RETURN NULL;", "INSTEAD OF INSERT ON shown FOR EACH ROW")
    with pytest.raises(AirflowFailException, match=r"public\.shown is a view.*how many rows its trigger"):
        transfer(source_table="item", destination_table="shown", verify="count")


def test_a_template_may_give_it(both: tuple[Database, Database]) -> None:
    assert transfer(verify="None")["verified"] is None
    with pytest.raises(AirflowFailException, match="verify must be count, checksum or None, got 'sum'"):
        transfer(verify="sum")
