# ruff: noqa: S608 - names that the tests themselves made
"""What a checksum must see: every byte of every value, in whatever rows and columns it lies."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

import pytest
from psycopg import sql

from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sync.compare import groups
from airflow_dblink.core.tables.checksum import Checksum, agree
from airflow_dblink.embedded.server import Server
from tests.databases import Database, new_database
from tests.integration.sync.tables import contents, differences, settled
from tests.syncs import sync

METHODS = ("difference", "reload")
# Type, and two values that an operator, or a hash, may find equal.
ALIKE = [
    ("bigint", "1", "4294967296"),
    ("bigint", "-1", "-4294967297"),
    ("bigint", "0", "-1"),
    ("numeric", "1.5", "1.50"),
    ("numeric", "0", "0.000"),
    ("numeric", "'NaN'", "'Infinity'"),
    ("float8", "'-0'", "'0'"),
    ("real", "'-0'", "'0'"),
    ("float8", "'NaN'", "NULL"),
    ("jsonb", "'1.5'", "'1.50'"),
    ("jsonb", "'null'", "NULL"),
    ("""json""", """'{"a":1}'""", """'{"a": 1}'"""),
    ("text", "NULL", "''"),
    ("text", "NULL", "'NULL'"),
    ("text", "''", "' '"),
    ("text", "E'\\u00e4'", "E'a\\u0308'"),
    ("varchar", "'a'", "'a '"),
    ("bytea", "''", "'\\x00'"),
    ("date", "'infinity'", "'-infinity'"),
    ("timestamptz", "'2026-01-01 00:00+00'", "'2026-01-01 00:00:00.000001+00'"),
    ("timetz", "'10:00+00'", "'12:00+02'"),
    ("interval", "'1 mon'", "'30 days'"),
    ("interval", "'1 day'", "'24:00'"),
    ("inet", "'10.0.0.1/24'", "'10.0.0.1/25'"),
    ("bit varying", "B'0'", "B'00'"),
    ("int[]", "'{1,2}'", "'[0:1]={1,2}'"),
    ("int[]", "'{}'", "NULL"),
    ("text[]", "'{NULL}'", "'{\"NULL\"}'"),
    ("numeric[]", "'{1.0}'", "'{1.00}'"),
    ("numrange", "'[1.0,2)'", "'[1.00,2)'"),
    ("bool", "false", "NULL"),
    ("money", "'1'", "'1.01'"),
    ("point", "'(0,-0)'", "'(0,0)'"),
    ('"char"', "'a'", "'b'"),
    ("name", "'a'", "'b'"),
    ("refcursor", "'a'", "'b'"),
    ("tsvector", "'a:1'", "'a:1A'"),
    ("oid", "1", "4294967295"),
    ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12'"),
]


def disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the two servers hash differently, as far as a sync can tell."""

    def disagreed(source: Side, destination: Side, seed: int | None = None) -> Checksum:
        return replace(agree(source, destination, seed), native=False)

    monkeypatch.setattr("airflow_dblink.core.sync.prepare.agree", disagreed)


@pytest.fixture(params=["native", "sha256"])
def hashed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let servers hash by themselves, or as those do that hash differently."""
    if request.param == "sha256":
        disagree(monkeypatch)
    return str(request.param)


def test_it_sees_what_is_equal_only_to_an_operator(
    source: Database, warehouse: Database, hashed: str
) -> None:
    """Row i differs in column i alone."""
    columns = [f"c{i}" for i in range(len(ALIKE))]
    definitions = ", ".join(f"{name} {case[0]}" for name, case in zip(columns, ALIKE, strict=True))
    values = ", ".join(f"({one})::{type_name}" for type_name, one, _ in ALIKE)
    for database in (source, warehouse):
        database.execute(f"CREATE TABLE item (id int PRIMARY KEY, {definitions})")
        database.execute(f"INSERT INTO item SELECT i, {values} FROM generate_series(0, {len(ALIKE)}) AS i")
    for i, (_, _, other) in enumerate(ALIKE):
        warehouse.execute(f"UPDATE item SET c{i} = {other} WHERE id = {i}")
    result = settled(source, warehouse, method="difference", sample_keys=100)
    assert [int(key) for (key,) in result["first_keys"]["changed"]] == list(range(len(ALIKE)))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE item SET a = 5 - a WHERE id IN (2, 3)",  # swapped between two rows
        "UPDATE item SET a = b, b = a",
        "UPDATE item SET a = NULL, b = a WHERE id = 1",
        "UPDATE item SET s = s || left(t, 1), t = substr(t, 2)",  # moved to the column beside it
        "UPDATE item SET s = t, t = s",
        "UPDATE item SET s = NULL, t = s WHERE id = 4",
        "UPDATE item SET id = 5 - id",  # rows trade places
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_it_sees_values_that_moved_between_rows_and_columns(
    source: Database, warehouse: Database, change: str, method: str
) -> None:
    for database in (source, warehouse):
        database.execute(
            """CREATE TABLE item (id int PRIMARY KEY DEFERRABLE, a int, b int, s text, t text);
            INSERT INTO item SELECT i, i, 9 - i, 's' || i, 'tt' || i FROM generate_series(1, 4) AS i"""
        )
    warehouse.execute(change)
    settled(source, warehouse, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_it_sees_rows_that_are_equal_in_pairs(source: Database, warehouse: Database, method: str) -> None:
    """Xor of two equal values is nothing; keys make each row another."""
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, a int, b text)")
        database.execute("INSERT INTO item SELECT i, 7, 'same' FROM generate_series(1, 8) AS i")
    warehouse.execute("UPDATE item SET a = 8 WHERE id <= 4; DELETE FROM item WHERE id IN (5, 6)")
    result = settled(source, warehouse, method=method, max_delete_fraction=None)
    assert (result["inserted"], result["updated"], result["deleted"]) == (2, 4, 0)


@pytest.mark.parametrize("apart", [0, 16, 26, 27, 28, 40, 54])
def test_it_sees_keys_whose_own_hashes_are_equal(
    source: Database, warehouse: Database, hashed: str, apart: int
) -> None:
    """Whatever range of keys a group is: of the keys' halves PostgreSQL hashes the exclusive or."""
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id bigint PRIMARY KEY, a int)")
        rows = f"SELECT 5 + i * (1::bigint << {apart}), 7 FROM generate_series(-200, 200) AS i"
        database.execute(
            f"INSERT INTO item {rows}; INSERT INTO item VALUES (3, 7), (-4, 7) ON CONFLICT DO NOTHING"
        )
    warehouse.execute("UPDATE item SET id = 3::bigint << 32 WHERE id = 3")
    warehouse.execute("UPDATE item SET id = -4294967299 WHERE id = -4")
    result = settled(source, warehouse, method="difference", max_delete_fraction=None)
    assert (result["inserted"], result["updated"], result["deleted"]) == (2, 0, 2)


@pytest.mark.parametrize("key", ["int", "text"])
def test_no_rows_are_sorted_to_be_compared(
    source: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """However many there are: hashed groups fit into memory, and sorted rows go to the disk."""
    sorted_rows: list[int] = []

    def explain(blocks: groups._Blocks) -> None:
        query = sql.SQL("EXPLAIN (FORMAT JSON) {}").format(blocks._query)
        plans = [blocks._side.fetch(query, "explaining")[0]["QUERY PLAN"][0]["Plan"]]
        for plan in plans:
            plans += plan.get("Plans", [])
            sorted_rows.extend([plan["Plan Rows"]] if plan["Node Type"] == "Sort" else [])
        start(blocks)

    start = groups._Blocks.start
    monkeypatch.setattr(groups._Blocks, "start", explain)
    for database in (source, warehouse):
        database.execute(f"CREATE TABLE item (id {key} PRIMARY KEY, a text)")
        database.execute("INSERT INTO item SELECT i, 'a' FROM generate_series(1, 1000) AS i; ANALYZE item")
        many = "UPDATE pg_class SET reltuples = 1e9 WHERE oid = 'item'::regclass"
        database.admin(many)
    settled(source, warehouse, method="difference")
    assert len(sorted_rows) >= 2
    assert max(sorted_rows) < 1_000


def _deltas(database: Database, key: str, values: str, old: str, new: str, rows: int) -> list[int]:
    """Return for each key by how much a row's hash differs with the *old* and the *new* value."""
    checksum = Checksum(12345, True, True)
    hashes = [checksum.of([sql.SQL(key), sql.SQL(values).format(value)]).as_string() for value in (old, new)]
    found = database.rows(
        f"SELECT {hashes[0]} # {hashes[1]} FROM generate_series(0::int8, {rows - 1}) AS i ORDER BY i"
    )
    return [delta % 2**64 for (delta,) in found]


@pytest.mark.parametrize("key", ["i", "pg_catalog.int8send(i)"])
def test_the_same_change_in_two_rows_does_not_cancel_out(source: Database, key: str) -> None:
    """Hashes of records are sums: the same number is added in both, and xor may see it twice as the same."""
    deltas = _deltas(source, key, "{}::text", "open", "done", 100_000)
    assert len(set(deltas)) == len(deltas)


def _cancelling(deltas: list[int]) -> list[int]:
    """Return which of the numbers, make 0 together by xor, found by elimination."""
    basis: dict[int, tuple[int, int]] = {}
    for index, delta in enumerate(deltas):
        used = 1 << index
        while delta and (top := delta.bit_length()) in basis:
            delta, used = delta ^ basis[top][0], used ^ basis[top][1]
        if not delta:
            return [i for i in range(len(deltas)) if used >> i & 1]
        basis[delta.bit_length()] = (delta, used)
    raise AssertionError("none")


def test_a_collision_made_for_one_seed_is_seen_by_the_next_run(
    source: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the seed known beforehand 65 rows of a group suffice; each run has its own."""
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id bigint PRIMARY KEY, v text)")
        # 100 neighbours in one range, and others so far apart that ranges are wide.
        database.execute("INSERT INTO item SELECT i, 'open' FROM generate_series(0, 99) AS i")
        database.execute("INSERT INTO item SELECT i * 1000, 'open' FROM generate_series(1, 400) AS i")
        database.execute("ANALYZE item")
    changed = _cancelling(_deltas(source, "i", '{}::text COLLATE "C"', "open", "done", 100))
    warehouse.execute("UPDATE item SET v = 'done' WHERE id = ANY (%s)", changed)
    assert len(changed) > 2
    with monkeypatch.context() as patch:
        patch.setattr(secrets, "randbits", lambda bits: 12345)
        unseen = sync(method="difference")
    assert (unseen["groups_differing"], unseen["changed"], unseen["updated"]) == (0, 0, 0)
    assert contents(source) != contents(warehouse)
    assert settled(source, warehouse, method="difference")["updated"] == len(changed)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("apply", ["set", "statements"])
def test_servers_that_hash_differently_get_the_same_result(
    source: Database, warehouse: Database, monkeypatch: pytest.MonkeyPatch, method: str, apply: str
) -> None:
    disagree(monkeypatch)
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (k text, n numeric, v text, PRIMARY KEY (k, n))")
        database.execute("INSERT INTO item SELECT 'k' || i, i / 10.0, 'v' FROM generate_series(1, 500) AS i")
    warehouse.execute("DELETE FROM item WHERE n < 1; UPDATE item SET v = NULL WHERE n = 20")
    warehouse.execute("INSERT INTO item VALUES ('k1', 77, '')")
    result = settled(source, warehouse, method=method, apply=apply)
    assert (result["inserted"], result["updated"], result["deleted"]) == (9, 1, 1)


# -- encodings


@pytest.fixture(params=["source", "warehouse"])
def latin(
    request: pytest.FixtureRequest, pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Database, Database]]:
    """Give two databases, one of them in LATIN1."""
    made = {}
    with new_database(pair[0], "source") as source, new_database(pair[1], "warehouse") as warehouse:
        for database in (source, warehouse):
            made[database.conn_id] = database
        other = made[request.param]
        admin = Database(other.conn_id, other.server, "postgres")
        admin.admin(f'DROP DATABASE "{other.name}"')
        admin.admin(
            f"""CREATE DATABASE "{other.name}" OWNER "{other.server.role}" ENCODING 'LATIN1'"""
            " TEMPLATE template0 LOCALE 'C'"
        )
        monkeypatch.setenv("PGCLIENTENCODING", "UTF8")  # of the tests' own sessions
        monkeypatch.setenv("AIRFLOW_CONN_SOURCE", source.uri)
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", warehouse.uri)
        yield source, warehouse


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("apply", ["set", "statements"])
def test_equal_texts_are_equal_in_databases_of_two_encodings(
    latin: tuple[Database, Database], method: str, apply: str
) -> None:
    source, warehouse = latin
    for database in latin:
        database.execute("CREATE TYPE mood AS ENUM ('gut', 'schön')")
        database.execute(
            """CREATE TABLE item (k text, m mood, t text, v varchar(9), c char(5), a text[], ma mood[],
                                  j jsonb, js json, n name, x int, PRIMARY KEY (k, m))"""
        )
        database.execute(
            """INSERT INTO item SELECT 'é' || i, 'schön', 'ä' || i, 'ö', 'ü', ARRAY['ß', NULL], '{schön,gut}',
               '{"é": "à"}', '{"é": "à"}', 'ñ', i FROM generate_series(1, 200) AS i"""
        )
    equal = sync(method=method, apply=apply)
    assert (equal["missing"], equal["changed"], equal["extra"]) == (0, 0, 0)
    warehouse.execute("UPDATE item SET t = 'ö' || x WHERE x = 7; UPDATE item SET a = '{ss}' WHERE x = 8")
    warehouse.execute("DELETE FROM item WHERE x = 9; UPDATE item SET k = 'è' WHERE x = 10")
    result = settled(source, warehouse, method=method, apply=apply)
    assert (result["inserted"], result["updated"], result["deleted"]) == (2, 2, 1)


def test_a_character_that_the_other_encoding_lacks_is_refused(latin: tuple[Database, Database]) -> None:
    source, warehouse = latin
    unicode = next(database for database in latin if database.rows("SHOW server_encoding") == [("UTF8",)])
    for database in latin:
        database.execute("CREATE TABLE item (id int PRIMARY KEY, t text); INSERT INTO item VALUES (1, 'ä')")
    unicode.execute("INSERT INTO item VALUES (2, '€')")
    if unicode is warehouse:  # what the source can't have is only in the way
        assert settled(source, warehouse, max_delete_fraction=None)["deleted"] == 1
        return
    before = contents(warehouse)
    with pytest.raises(Exception, match="22P05"):
        sync()
    assert contents(warehouse) == before
    assert differences(source, warehouse, "item", ["id"]) == (1, 0)
