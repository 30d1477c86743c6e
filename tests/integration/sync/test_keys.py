# ruff: noqa: S608 - names that the tests themselves made
"""Keys: columns that identify rows, and columns that can't."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from airflow.sdk.exceptions import AirflowFailException

from tests.databases import Database
from tests.integration.sync.tables import (
    caseless_databases,
    contents,
    refused,
    refused_by_server,
    settled,
    system_server,
)
from tests.syncs import sync

METHODS = pytest.mark.parametrize("method", ["difference", "reload"])
ITEM = "CREATE TABLE item (id int, code text, v text, UNIQUE (id, code))"
FILL = "INSERT INTO item SELECT i, 'c' || i, 'v' FROM generate_series(1, 50) AS i"


@METHODS
@pytest.mark.parametrize("where", ["source", "warehouse"])
@pytest.mark.parametrize("null", ["(NULL, 'x', 'v')", "(7, NULL, 'v')"])
def test_null_in_a_key_is_refused(
    source: Database, warehouse: Database, method: str, where: str, null: str
) -> None:
    for database in (source, warehouse):
        database.execute(f"{ITEM}; {FILL}")
    (source if where == "source" else warehouse).execute(f"INSERT INTO item VALUES {null}")
    words = ("NULL", "id, code", where, "public.item")
    refused(warehouse, *words, key=["id", "code"], method=method)
    result = sync(key=["id", "code"], method=method, where="id IS NOT NULL AND code IS NOT NULL")
    assert (result["missing"], result["changed"], result["extra"]) == (0, 0, 0)


@METHODS
def test_a_key_that_a_query_gives_twice_is_refused(
    source: Database, warehouse: Database, method: str
) -> None:
    warehouse.execute("CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item VALUES (1, 'a')")
    for query in ("VALUES (1, 'a'), (1, 'a')", "VALUES (1, 'a'), (2, 'b'), (2, 'c')"):
        named = f"SELECT * FROM ({query}) AS t (id, v)"
        refused(warehouse, "same key", "id", "source", source_sql=named, method=method)


@METHODS
def test_a_key_that_is_twice_only_by_the_destinations_equality_is_refused(
    source: Database, warehouse: Database, method: str
) -> None:
    for database in (source, warehouse):
        database.admin("CREATE EXTENSION citext")
    source.execute(
        "CREATE TABLE item (k text PRIMARY KEY, v int); INSERT INTO item VALUES ('a', 1), ('A', 2)"
    )
    warehouse.execute("CREATE TABLE item (k citext PRIMARY KEY, v int); INSERT INTO item VALUES ('b', 1)")
    refused(warehouse, "same key", "source", method=method, max_delete_fraction=None)
    source.execute("DELETE FROM item WHERE v = 2")
    assert settled(source, warehouse, method=method, max_delete_fraction=None)["inserted"] == 1
    source.execute("UPDATE item SET k = 'A'")
    assert settled(source, warehouse, method=method)["updated"] == 1
    # One of the two is already there, and equal: only the other is new, and its place is taken.
    source.execute("INSERT INTO item VALUES ('a', 2)")
    with pytest.raises(Exception, match=r"same key|item_pkey"):
        sync(method=method)
    assert contents(warehouse) == ["(A,1)"]


@METHODS
def test_the_operators_of_key_types_need_not_be_in_the_search_path(
    source: Database, warehouse: Database, method: str
) -> None:
    for database, name in ((source, "Ann"), (warehouse, "ANN")):
        database.admin(
            "CREATE SCHEMA extensions; GRANT USAGE ON SCHEMA extensions TO PUBLIC;"
            " CREATE EXTENSION citext SCHEMA extensions; CREATE EXTENSION ltree SCHEMA extensions"
        )
        database.execute(
            "CREATE TABLE item (k extensions.citext, path extensions.ltree, alias extensions.citext UNIQUE,"
            " v int, PRIMARY KEY (k, path));"
            f"INSERT INTO item VALUES ('{name}', 'a.b', 'a', 1), ('Bob', 'a', 'b', 1), ('Cy', 'a', 'c', 1)"
        )
    source.execute("UPDATE item SET v = 2 WHERE k OPERATOR(extensions.=) 'bob'")

    result = settled(source, warehouse, method=method)

    assert (result["inserted"], result["updated"], result["deleted"]) == (0, 2, 0)
    swapped = "CASE alias::text WHEN 'b-' THEN 'C' WHEN 'c-' THEN 'B' ELSE 'a' END"
    for values in ("alias::text || '-'", swapped):
        source.execute(f"UPDATE item SET alias = {values}")
    settled(source, warehouse, method=method, on_conflict="replace")
    assert [row.split(",")[2] for row in contents(warehouse)] == ["a", "C", "B"]


def test_a_key_outside_of_where_is_found_by_the_types_own_operator(
    source: Database, warehouse: Database
) -> None:
    for database, name, region in ((source, "ann", "x"), (warehouse, "ANN", "y")):
        database.admin(
            "CREATE SCHEMA extensions; GRANT USAGE ON SCHEMA extensions TO PUBLIC;"
            " CREATE EXTENSION citext SCHEMA extensions"
        )
        database.execute("CREATE TABLE item (k extensions.citext PRIMARY KEY, region text)")
        database.execute(f"INSERT INTO item VALUES ('{name}', '{region}'), ('bob', 'x')")
    refused(warehouse, "of a row of public.item outside of where", where="region = 'x'")


@METHODS
def test_what_is_one_key_to_the_source_may_be_two_here(
    source: Database, warehouse: Database, method: str
) -> None:
    source.admin("CREATE EXTENSION citext")
    source.execute(
        "CREATE TABLE item (id int PRIMARY KEY, k citext, v int);"
        "INSERT INTO item SELECT i, 'k' || i, 1 FROM generate_series(1, 100) AS i;"
        "INSERT INTO item VALUES (200, 'a', 1), (201, 'A', 2)"
    )
    warehouse.execute("CREATE TABLE item (k text PRIMARY KEY, v int)")
    warehouse.execute("INSERT INTO item SELECT 'k' || i, 1 FROM generate_series(1, 100) AS i")
    assert settled(source, warehouse, method=method, columns=["k", "v"])["inserted"] == 2


@METHODS
@pytest.mark.parametrize("apply", ["set", "statements"])
def test_a_number_that_is_equal_in_another_scale_is_written_as_it_is(
    source: Database, warehouse: Database, method: str, apply: str
) -> None:
    for database, scale in ((source, "0"), (warehouse, "00")):
        database.execute("CREATE TABLE item (k numeric PRIMARY KEY, v int)")
        database.execute(
            f"INSERT INTO item SELECT (i || '.{scale}')::numeric, i FROM generate_series(1, 99) AS i"
        )
    result = settled(source, warehouse, method=method, apply=apply)
    assert (result["inserted"], result["updated"], result["deleted"]) == (0, 99, 0)


def test_keys_that_do_not_serve_are_refused(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute(f"{ITEM}; {FILL}; UPDATE item SET v = v || id")
        database.execute(
            "CREATE UNIQUE INDEX ON item (v) WHERE id > 7; CREATE UNIQUE INDEX ON item (lower(code))"
        )
    refused(warehouse, "primary key", "public.item", "warehouse")
    for key in (["id"], ["v"], ["code"], ["id", "code", "v"]):
        refused(warehouse, "unique", ", ".join(key), "warehouse", key=key)
    refused(warehouse, "'nope'", "key", "warehouse", key=["nope"])
    refused(warehouse, "key", key=[])
    refused(warehouse, "id", "no value", key=["id", "code"], columns=["code", "v"])


@METHODS
def test_keys_of_different_integer_types(source: Database, warehouse: Database, method: str) -> None:
    for given, wanted in (("bigint", "int"), ("smallint", "bigint"), ("int", "numeric"), ("int", "text")):
        source.execute(f"CREATE TABLE item (id {given} PRIMARY KEY, v text)")
        warehouse.execute(f"CREATE TABLE item (id {wanted} PRIMARY KEY, v text)")
        for database, low in ((source, -20), (warehouse, -10)):
            database.execute(f"INSERT INTO item SELECT i, 'v' FROM generate_series({low}, 300) AS i")
        source.execute("UPDATE item SET v = 'w' WHERE id = 7; DELETE FROM item WHERE id = 8")
        result = settled(source, warehouse, method=method)
        assert (result["inserted"], result["updated"], result["deleted"]) == (10, 1, 1)
        if wanted == "int":
            source.execute("INSERT INTO item VALUES (3000000000, 'x')")
            refused_by_server(warehouse, "22003", "out of range", method=method)
        for database in (source, warehouse):
            database.execute("DROP TABLE item")


@METHODS
@pytest.mark.parametrize("analyzed", [True, False])
def test_extreme_skewed_and_negative_integers(
    source: Database, warehouse: Database, method: str, analyzed: bool
) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id bigint PRIMARY KEY, v text)")
        database.execute("INSERT INTO item SELECT i, 'v' FROM generate_series(-500, 3000) AS i")
        database.execute(
            "INSERT INTO item VALUES (-9223372036854775808), (9223372036854775807), (1000000000000000000)"
        )
        if analyzed:
            database.execute("ANALYZE item")
    source.execute(
        "UPDATE item SET v = 'w' WHERE id IN (-9223372036854775808, 9223372036854775807, -1, 0, 3000)"
    )
    source.execute("INSERT INTO item VALUES (-9223372036854775807), (9223372036854775806), (-501)")
    warehouse.execute("INSERT INTO item VALUES (-1000000000000000000), (999999999999999999)")
    result = settled(source, warehouse, method=method)
    assert (result["inserted"], result["updated"], result["deleted"]) == (3, 5, 2)


@METHODS
@pytest.mark.parametrize("key", ["tenant, id", "id, tenant"])
def test_keys_of_two_columns(source: Database, warehouse: Database, method: str, key: str) -> None:
    for database in (source, warehouse):
        database.execute(f"CREATE TABLE item (tenant int, id int, v text, PRIMARY KEY ({key}))")
        database.execute(
            "INSERT INTO item SELECT t, i, 'v' FROM generate_series(1, 4) t, generate_series(1, t * 200) i"
        )
        database.execute("ANALYZE item")
    source.execute("UPDATE item SET v = 'w' WHERE id = 7; DELETE FROM item WHERE tenant = 1 AND id < 4")
    source.execute("INSERT INTO item VALUES (5, 1), (-5, 1)")
    result = settled(source, warehouse, method=method)
    assert (result["inserted"], result["updated"], result["deleted"]) == (2, 4, 3)


# -- collations that only ICU has


@pytest.fixture
def icu(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Database, Database]]:
    with system_server("system") as server, caseless_databases(server, monkeypatch) as databases:
        yield databases


def test_texts_that_a_collation_calls_equal(icu: tuple[Database, Database]) -> None:
    """As values they differ, as keys they are the same row, and two of them are one too many."""
    source, warehouse = icu
    for apply in ("set", "statements"):
        for method in ("difference", "reload"):
            for database in icu:
                database.execute(
                    "DROP TABLE IF EXISTS item; CREATE TABLE item (id int PRIMARY KEY,"
                    " v text COLLATE caseless, c varchar(5) COLLATE caseless, a text COLLATE caseless);"
                    "INSERT INTO item SELECT i, 'v' || i, 'c', 'a' FROM generate_series(1, 99) AS i"
                )
            warehouse.execute(
                "UPDATE item SET v = upper(v) WHERE id = 7; UPDATE item SET c = 'C' WHERE id = 8"
            )
            assert settled(source, warehouse, method=method, apply=apply)["updated"] == 2
            for database, collation in ((source, '"C"'), (warehouse, "caseless")):
                database.execute("DROP TABLE item")
                database.execute(f"CREATE TABLE item (k text COLLATE {collation} PRIMARY KEY, v text)")
                database.execute("INSERT INTO item SELECT 'k' || i, 'v' FROM generate_series(1, 99) AS i")
            source.execute(
                "UPDATE item SET k = upper(k) WHERE k = 'k7'; UPDATE item SET v = 'w' WHERE k = 'k8'"
            )
            result = settled(source, warehouse, method=method, apply=apply)
            assert (result["inserted"], result["updated"], result["deleted"]) == (0, 2, 0)
            source.execute("INSERT INTO item VALUES ('K9', 'v'), ('xx', 'v'), ('XX', 'v')")
            refused(warehouse, "same key", "source", method=method, apply=apply)


@METHODS
def test_a_query_whose_texts_have_no_collation(source: Database, warehouse: Database, method: str) -> None:
    """Of two collations joined PostgreSQL chooses none, and then neither hashes nor compares."""
    source.execute('CREATE TABLE given (a text COLLATE "C", b text COLLATE "POSIX")')
    source.execute("INSERT INTO given SELECT 'a', i FROM generate_series(1, 99) AS i")
    warehouse.execute("CREATE TABLE item (k text PRIMARY KEY, v text)")
    warehouse.execute("INSERT INTO item SELECT 'a' || i, 'a' || i FROM generate_series(3, 100) AS i")
    query = "SELECT a || b AS k, a || b AS v FROM given"
    result = sync(source_sql=query, method=method)
    assert (result["inserted"], result["updated"], result["deleted"]) == (2, 0, 1)
    assert sync(source_sql=query, method=method)["missing"] == 0


def test_a_composite_key_and_dblinks_statements(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute(
            "CREATE TYPE place AS (x int, y int); CREATE TABLE item (id place PRIMARY KEY, s text)"
        )
    source.execute("INSERT INTO item VALUES ((1, 2), 'a')")
    with pytest.raises(AirflowFailException, match="can't find a row by id: it is of a composite type"):
        sync(apply="statements")
    assert sync()["inserted"] == 1


MOODS = """
CREATE SCHEMA "My moods";
CREATE TYPE "My moods"."Mood" AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN mood AS "My moods"."Mood";
CREATE DOMAIN good_mood AS mood CHECK (VALUE::"My moods"."Mood" <> 'sad');
CREATE TABLE item (m {}, id int, s text, PRIMARY KEY (m, id))
"""


@METHODS
@pytest.mark.parametrize("kind", ["mood", "good_mood"])
def test_a_domain_over_an_enum_is_a_key(
    source: Database, warehouse: Database, method: str, kind: str
) -> None:
    for database in (source, warehouse):
        database.execute(MOODS.format(kind))
        database.execute(
            "INSERT INTO item SELECT m::mood, i, 'v' FROM unnest('{ok,happy}'::text[]) AS m,"
            " generate_series(1, 50) AS i"
        )
    source.execute("UPDATE item SET s = 'w' WHERE id = 7; INSERT INTO item VALUES ('happy', 51)")
    warehouse.execute("INSERT INTO item VALUES ('ok', 52)")
    result = settled(source, warehouse, method=method)
    assert (result["inserted"], result["updated"], result["deleted"]) == (1, 2, 1)
    source.execute("DELETE FROM item WHERE id = 1")
    refused(warehouse, f"can't find a row by m: it is of a domain over an enum, {kind}", apply="statements")
