"""xml arrives as it is stored: its output leaves out a declaration, or writes another one."""

# ruff: noqa: S608 - table and type names of these tests only
from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_dblink.embedded.server import servers
from tests.databases import Database, new_database
from tests.debian import postgres_bindir
from tests.integration.sync.tables import settled
from tests.transfers import transfer

VALUES = [
    "<a b='1'>x</a>",
    "two <b/> things",
    "",
    '<?xml version="1.0"?><a>ä</a>',
    '<?xml version="1.0" standalone="yes"?><a>ä</a>',
    '<?xml version="1.0" encoding="ISO-8859-1"?>\n<a>ä</a>',
    '<?xml version="1.1"?><a/>',
]
# An expression of each type that holds xml.
EXPRESSIONS = {
    "xml": "{}",
    "document": "{}",
    "xml[]": "ARRAY[{}, NULL]",
    "text": "{}::text",
}


@pytest.fixture(scope="module")
def with_libxml() -> Iterator[tuple[Database, Database]]:
    """Give two databases of the system's PostgreSQL: the embedded one has no libxml."""
    with (
        servers("system", bindir=postgres_bindir()) as (server,),
        new_database(server, "source") as source,
        new_database(server, "warehouse") as warehouse,
    ):
        for database in (source, warehouse):
            database.execute("CREATE DOMAIN document AS xml")
            database.admin(f'ALTER ROLE "{server.role}" SET xmloption = document')
        yield source, warehouse


@pytest.fixture
def here(
    with_libxml: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> tuple[Database, Database]:
    source, warehouse = with_libxml
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE", source.uri)
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", warehouse.uri)
    for database in with_libxml:
        database.execute("DROP TABLE IF EXISTS item")
    return with_libxml


def filled(source: Database, type_name: str) -> None:
    source.execute(f"CREATE TABLE item (id int PRIMARY KEY, a {type_name})")
    for number, value in enumerate(VALUES):
        literal = "xmlparse(content '" + value.replace("'", "''") + "')"
        expression = EXPRESSIONS[type_name].format(literal)
        source.execute(f"INSERT INTO item SELECT {number}, {expression}")


def stored(database: Database, type_name: str) -> list[tuple[object, ...]]:
    text = "a::text[]" if type_name.endswith("[]") else "a::text"
    return database.rows(f"SELECT id, {text} FROM item ORDER BY id")


@pytest.mark.parametrize("type_name", EXPRESSIONS)
@pytest.mark.parametrize("mode", ["append", "upsert", "create"])
def test_documents_and_content_arrive_as_stored_whatever_the_roles_xmloption(
    here: tuple[Database, Database], type_name: str, mode: str
) -> None:
    source, warehouse = here
    filled(source, type_name)
    if mode != "create":
        warehouse.execute(f"CREATE TABLE item (id int PRIMARY KEY, a {type_name})")
    result = transfer(mode=mode)
    assert stored(warehouse, type_name) == stored(source, type_name)
    assert result["format"] == ("binary" if type_name == "text" else "text")


def test_xml_arrives_in_a_text_column_as_stored(here: tuple[Database, Database]) -> None:
    source, warehouse = here
    filled(source, "xml")
    warehouse.execute("CREATE TABLE item (id int PRIMARY KEY, a text)")
    assert transfer()["format"] == "binary"
    assert stored(warehouse, "xml") == stored(source, "xml")


@pytest.mark.parametrize("type_name", EXPRESSIONS)
@pytest.mark.parametrize("mode", ["replace", "create"])
def test_the_checksum_is_that_of_what_is_stored(
    here: tuple[Database, Database], type_name: str, mode: str
) -> None:
    source, warehouse = here
    filled(source, type_name)
    if mode != "create":
        warehouse.execute(f"CREATE TABLE item (id int PRIMARY KEY, a {type_name})")
    assert transfer(mode=mode, verify="checksum")["verified"] == "checksum"


@pytest.mark.parametrize("method", ["difference", "reload"])
@pytest.mark.parametrize("type_name", ["xml", "xml[]"])
def test_a_sync_keeps_the_declarations_equal(
    here: tuple[Database, Database], method: str, type_name: str
) -> None:
    source, warehouse = here
    filled(source, type_name)
    warehouse.execute(f"CREATE TABLE item (id int PRIMARY KEY, a {type_name})")
    expression = EXPRESSIONS[type_name].format("xmlparse(content '<a>ä</a>')")
    warehouse.execute(f"INSERT INTO item SELECT 3, {expression}")
    result = settled(source, warehouse, method=method)
    assert (result["inserted"], result["updated"]) == (6, 1)
    assert stored(warehouse, type_name) == stored(source, type_name)
