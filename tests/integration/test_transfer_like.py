"""``mode="create"`` with ``like="all"``: the new table is what the source's is, or nothing is loaded."""

# ruff: noqa: S608 - names that the tests themselves made
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.tables import like
from tests.databases import Database
from tests.descriptions import describe
from tests.integration.sync.tables import contents
from tests.transfers import transfer
from tests.versions import needs_version

TABLE = """
CREATE FUNCTION twice(int) RETURNS int IMMUTABLE RETURN $1 * 2;
CREATE TABLE item (
    id int GENERATED ALWAYS AS IDENTITY (START 5 INCREMENT 5 MAXVALUE 9000 CACHE 3 CYCLE) PRIMARY KEY,
    num serial,
    small smallint DEFAULT 7,
    name text COLLATE "C" NOT NULL DEFAULT 'it''s, ("x" \\ y]' CONSTRAINT named CHECK (name <> ') , -- "'),
    price numeric(10, 2) DEFAULT (1.5 + 2),
    day date DEFAULT CURRENT_DATE,
    at timestamptz DEFAULT now(),
    uid uuid DEFAULT gen_random_uuid(),
    tags text[] DEFAULT ARRAY['a', 'b,c'],
    span int4range,
    CHECK (twice(small) < 100 AND price > 0) NO INHERIT,
    CONSTRAINT of_name UNIQUE (name, num) INCLUDE (price) WITH (fillfactor = 80)
        DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT apart EXCLUDE USING gist (span WITH &&) WITH (fillfactor = 85) WHERE (span IS NOT NULL)
);
ALTER TABLE item ADD CONSTRAINT late CHECK (small > 0) NOT VALID;
CREATE UNIQUE INDEX lower_name ON item (lower(name) DESC NULLS LAST) WHERE (price > 0);
CREATE INDEX item_expression ON item (twice(small), name text_pattern_ops) WITH (fillfactor = 60);
ALTER INDEX item_expression ALTER COLUMN 1 SET STATISTICS 444;
CREATE INDEX "Odd ""name"" %s {}" ON item USING hash (name);
COMMENT ON TABLE item IS 'the table''s; \\ comment';
COMMENT ON COLUMN item.name IS 'a column';
COMMENT ON CONSTRAINT named ON item IS 'a check';
COMMENT ON CONSTRAINT of_name ON item IS 'a key';
COMMENT ON INDEX lower_name IS 'an index';
"""
ROWS = (
    "INSERT INTO item (name, span) SELECT 'name ' || i, int4range(i, i + 1) FROM generate_series(1, 9) AS i"
)
FUNCTION = "CREATE FUNCTION twice(int) RETURNS int IMMUTABLE RETURN $1 * 2"
ALL: dict[str, Any] = {"mode": "create", "like": "all"}


@pytest.fixture
def table(source: Database, warehouse: Database) -> tuple[Database, Database]:
    """Give both databases, the source with a table that has all sorts of pieces."""
    source.execute(f"{TABLE}; {ROWS}")
    warehouse.execute(FUNCTION)
    return source, warehouse


def described(database: Database, relname: str = "item") -> dict[str, list[dict[str, object]]]:
    """Return what the catalogs say, without how far the sequences are."""
    found = describe(database, relname)
    for sequence in found["sequences"]:
        del sequence["last"]
    return found


def test_the_table_is_what_the_sources_is(table: tuple[Database, Database]) -> None:
    source, warehouse = table
    result = transfer(**ALL, verify="checksum")
    assert (result["rows"], result["verified"]) == (9, "checksum")
    assert described(warehouse) == described(source)
    assert contents(warehouse) == contents(source)
    warehouse.execute("INSERT INTO item (name) VALUES ('next')")
    assert warehouse.rows("SELECT id, num, small FROM item WHERE name = 'next'") == [(50, 10, 7)]


def test_several_tables_of_a_schema_may_be_like_it(table: tuple[Database, Database]) -> None:
    _, warehouse = table
    for name in ("item_1", "item_2", '"Item\'s 3"'):
        transfer(**ALL, source_table="item", destination_table=name)
    names = warehouse.rows(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'item_2'::regclass ORDER BY 1"
    )
    odd = '"item_2_Odd ""name"" %s {}"'
    assert {name for (name,) in names} == {
        *("item_2_pkey", "item_2_expression", "item_2_lower_name", "item_2_of_name", "item_2_apart"),
        odd,
    }
    default = "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'item_2'::regclass"
    assert ("nextval('item_2_num_seq'::regclass)",) in warehouse.rows(default)
    for name in ("item_1", "item_2", '"Item\'s 3"'):
        warehouse.execute(f"INSERT INTO {name} (name) VALUES ('next')")
        assert warehouse.rows(f"SELECT num FROM {name} WHERE name = 'next'") == [(10,)]


def test_without_it_only_columns_and_the_key_are_made(table: tuple[Database, Database]) -> None:
    _, warehouse = table
    transfer(mode="create")
    found = describe(warehouse, "item")
    assert [row["definition"] for row in found["indexes"]] == [
        "CREATE UNIQUE INDEX item_pkey ON public.item USING btree (id)"
    ]
    assert not any(row["def"] or row["attidentity"] for row in found["columns"])


def test_what_is_left_out_is_said(table: tuple[Database, Database], caplog: pytest.LogCaptureFixture) -> None:
    source, warehouse = table
    source.execute(
        """ALTER TABLE item ADD parent int CONSTRAINT to_self REFERENCES item,
            ADD twofold int GENERATED ALWAYS AS (twice(small)) STORED;
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
        CREATE TRIGGER fires BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION f();
        ALTER TABLE item ENABLE ROW LEVEL SECURITY"""
    )
    transfer(**ALL)
    said = (
        "item is made without what public.item has, too: foreign key to_self, trigger fires, expression of"
        " the generated column twofold, row security"
    )
    assert said in caplog.text
    assert warehouse.rows("SELECT DISTINCT twofold FROM item") == [(14,)]


# -- refused before a row moves


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER TABLE item ALTER small SET DEFAULT unknown()", ["the default of column small", "unknown()"]),
        ("ALTER TABLE item ALTER num SET DEFAULT nextval('other')", ["the default of column num", "other"]),
        (
            "ALTER TABLE item ADD CONSTRAINT odd CHECK (small < unknown()) NOT VALID",
            ["constraint odd", "unknown()"],
        ),
        ("CREATE INDEX by_it ON item (unknown(small))", ["index by_it", "unknown(smallint)"]),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_named(
    table: tuple[Database, Database], change: str, words: list[str]
) -> None:
    source, warehouse = table
    source.execute(
        "CREATE SEQUENCE other; CREATE FUNCTION unknown() RETURNS int IMMUTABLE RETURN 1;"
        "CREATE FUNCTION unknown(smallint) RETURNS int IMMUTABLE RETURN $1"
    )
    source.execute(change)
    with pytest.raises(AirflowFailException) as caught:
        transfer(**ALL, source_table="item", destination_table="made")
    for word in ["'warehouse'", "can't be made here", "like='columns'", *words]:
        assert word in str(caught.value)
    assert warehouse.rows("SELECT to_regclass('made'), to_regclass('made_num_seq')") == [(None, None)]
    transfer(mode="create", source_table="item", destination_table="made")


@pytest.mark.parametrize(
    "change",
    [
        "ADD CHECK (query_to_xml('DROP TABLE note', true, true, '') IS NOT NULL) NOT VALID",
        'ADD CHECK ("pg_catalog"."pg_sleep"(small) IS NULL) NOT VALID',
        "ALTER name SET DEFAULT pg_read_file('PG_VERSION')",
        "ALTER name SET DEFAULT table_to_xml('pg_class', true, true, '')::text",
        "ADD CHECK (harmless(small) > 0)",
        "ADD CHECK (harmless(1) > 0)",
        "ADD CHECK (small OPERATOR(public.<%>) 1 > 0)",
        "ADD CHECK (touchy(small) > 0) NOT VALID",
    ],
)
def test_expressions_of_the_source_do_nothing_here(table: tuple[Database, Database], change: str) -> None:
    source, warehouse = table
    touchy = "CREATE FUNCTION touchy(int) RETURNS int VOLATILE RETURN 1"  # a superuser's own
    source.execute(f"{_harmless('RETURN 1')}; {touchy}")
    warehouse.admin(touchy)
    source.admin(f"SET check_function_bodies = off; ALTER TABLE item {change}")
    with _stranger(warehouse) as owner:
        runs = "LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'ran as %', current_user; END$$"
        warehouse.admin(f"SET SESSION AUTHORIZATION {owner}; {_harmless(runs)}")
        with pytest.raises(
            AirflowFailException, match=r"(?s)in the name of this role.*42501.*like='columns'"
        ):
            transfer(**ALL)
    assert warehouse.rows("SELECT to_regclass('item')") == [(None,)]


def _harmless(body: str) -> str:
    function = f"RETURNS int IMMUTABLE {body}"
    operator = "CREATE OPERATOR <%> (LEFTARG = int, RIGHTARG = int, FUNCTION = harmless)"
    return (
        f"CREATE FUNCTION harmless(int) {function}; CREATE FUNCTION harmless(int, int) {function}; {operator}"
    )


@contextmanager
def _stranger(database: Database) -> Iterator[str]:
    """Give a role that may create in public, and drop it with all that it has made."""
    ((role,),) = database.admin("SELECT 'stranger_' || md5(random()::text)")
    database.admin(f"CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}")
    try:
        yield role
    finally:
        database.admin(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_a_function_that_a_stranger_makes_during_the_load_is_not_called(
    table: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, warehouse = table
    trusted = "CREATE FUNCTION thrice(bigint) RETURNS bigint IMMUTABLE RETURN 3 * $1"
    source.execute(f"{trusted}; ALTER TABLE item ADD CHECK (thrice(small) IS NOT NULL) NOT VALID")
    warehouse.admin(trusted)
    with _stranger(warehouse) as owner:
        fits_better = "CREATE FUNCTION thrice(smallint) RETURNS bigint IMMUTABLE RETURN 1 / 0"

        def make(*args: Any) -> None:
            warehouse.admin(f"SET SESSION AUTHORIZATION {owner}; {fits_better}")
            like.make(*args)

        monkeypatch.setattr("airflow_dblink.core.transfer.run.make", make)
        with pytest.raises(AirflowFailException, match=r"use function public\.thrice, which could do"):
            transfer(**ALL)
    assert warehouse.rows("SELECT to_regclass('item')") == [(None,)]


@pytest.mark.parametrize(
    "text",
    [
        "1); DROP TABLE x; SELECT (1",
        "1; DROP TABLE x",
        "1), OWNER TO stranger, ALTER c SET DEFAULT (1",
        "1, 2",
        "(1",
        "1)",
        "'open",
        "'open''",
        "E'open\\'",
        '"open',
        "1 -- rest",
        "1 /* rest",
        "/* a */ 1",
        "$$x$$",
        'U&"query\\005fto_xml"(1)',
        "TREAT(1 AS pg_sleep)",
        "treat(small AS pg_terminate_backend)",
    ],
)
def test_a_text_that_is_no_expression_is_refused(text: str) -> None:
    assert not like._is_contained(text)


@pytest.mark.parametrize(
    "text", ['"treat" > 0', "1", "f(1, 2) + (3)", "ARRAY[1, 2]", "'a;, (' || \"x(\"", r"E'it''s \\ y'::text"]
)
def test_an_expression_is_none_of_these(text: str) -> None:
    assert like._is_contained(text)


def test_a_name_that_is_taken_is_named(table: tuple[Database, Database]) -> None:
    _, warehouse = table
    warehouse.execute("CREATE TABLE lower_name (a int)")
    with pytest.raises(AirflowFailException, match=r"index lower_name can't be made here: .*already exists"):
        transfer(**ALL)


def test_keys_without_overlaps(source: Database, warehouse: Database) -> None:
    needs_version(source, 18, "WITHOUT OVERLAPS")
    source.execute(
        "CREATE TABLE item (id int4range, span int4range, PRIMARY KEY (id, span WITHOUT OVERLAPS))"
    )
    source.execute("INSERT INTO item VALUES ('[1,2)', '[1,5)'), ('[1,2)', '[5,9)')")
    transfer(**ALL)
    assert described(warehouse) == described(source)
