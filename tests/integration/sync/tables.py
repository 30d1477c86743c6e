"""The contents of tables, compared by PostgreSQL itself, and runs that must change nothing."""

# ruff: noqa: S608 - names that the tests themselves made
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowFailException
from psycopg.sql import SQL, Identifier

from airflow_dblink.core.errors import DblinkError
from airflow_dblink.embedded.server import Server, servers
from tests.databases import Database, Row, new_database
from tests.debian import postgres_bindir
from tests.syncs import sync

#: Settings for values as text, the same on both sides.
FORMS = (
    "-c timezone=UTC -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=1 -c bytea_output=hex"
    " -c lc_monetary=C -c xmloption=content"
)
#: A collation that ignores case; it needs a PostgreSQL with ICU.
CASELESS = "CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"


def contents(database: Database, table: str = "item") -> list[str]:
    """Return all rows as text, sorted by their bytes."""
    query = f'SELECT row_of::text FROM {table} AS row_of ORDER BY row_of::text COLLATE "C"'
    return [text for (text,) in database.admin(query)]


def versions(database: Database, table: str = "item") -> list[Row]:
    """Return place and transaction of each row's version, which change if the row is rewritten."""
    return sorted(database.admin(f"SELECT tableoid::regclass::text, ctid::text, xmin::text FROM {table}"))


def planned(result: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the numbers of rows that a sync found missing, changed and extra."""
    return result["missing"], result["changed"], result["extra"]


def done(result: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the numbers of rows that a sync inserted, updated and deleted."""
    return result["inserted"], result["updated"], result["deleted"]


def differences(source: Database, warehouse: Database, table: str, columns: Sequence[str]) -> tuple[int, int]:
    """Return the numbers of rows that only one side has, by EXCEPT ALL both ways in the destination.

    The source's rows are copied there as texts, without any code of ours.
    """
    texts = SQL("SELECT {} FROM {}").format(
        SQL(", ").join(SQL("{}::text COLLATE {}").format(Identifier(c), Identifier("C")) for c in columns),
        SQL(table),
    )
    names = SQL(", ").join(Identifier(f"c{i}") for i in range(len(columns)))
    with (
        psycopg.connect(source.conninfo, options=FORMS, client_encoding="utf8") as there,
        psycopg.connect(warehouse.conninfo, options=FORMS, client_encoding="utf8") as here,
    ):
        definitions = SQL(", ").join(
            SQL("{} text COLLATE {}").format(Identifier(f"c{i}"), Identifier("C"))
            for i in range(len(columns))
        )
        here.execute(SQL("CREATE TEMP TABLE copied ({})").format(definitions))
        with (
            there.cursor().copy(SQL("COPY ({}) TO STDOUT").format(texts)) as given,
            here.cursor().copy(SQL("COPY copied ({}) FROM STDIN").format(names)) as taken,
        ):
            for block in given:
                taken.write(block)
        count = SQL("SELECT count(*) FROM ({} EXCEPT ALL {}) AS alone")
        copied = SQL("SELECT {} FROM copied").format(names)
        found = [
            here.execute(count.format(*sides)).fetchone() for sides in ((copied, texts), (texts, copied))
        ]
        here.rollback()
    return tuple(row[0] for row in found if row)


def settled(
    source: Database, warehouse: Database, table: str = "item", *, alone: bool = False, **arguments: Any
) -> dict[str, Any]:
    """Sync twice; check that both sides are equal, and that the second run finds and rewrites no row.

    :param alone: compare the tables without their inheritance children.
    """
    result: dict[str, Any] = sync(table, **arguments)
    columns = [
        name
        for (name,) in warehouse.rows(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
            " AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
            table,
        )
    ]
    assert differences(source, warehouse, f"ONLY {table}" if alone else table, columns) == (0, 0)
    before = versions(warehouse, table)
    again = sync(table, **arguments)
    assert planned(again) == (0, 0, 0)
    assert versions(warehouse, table) == before
    return result


def refused(
    warehouse: Database,
    *words: str,
    table: str = "item",
    error: type[Exception] = AirflowFailException,
    **arguments: Any,
) -> str:
    """Sync, which must fail with all *words* in the message, and change nothing; return the message."""
    before = versions(warehouse, table), contents(warehouse, table)
    with pytest.raises(error) as caught:
        sync(table, **arguments)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert not warehouse.wait_until_left()
    assert (versions(warehouse, table), contents(warehouse, table)) == before
    return message


def refused_by_server(warehouse: Database, *words: str, **arguments: Any) -> str:
    """Sync as in :func:`refused`; a server or the verification must be the one that refuses."""
    return refused(warehouse, *words, error=DblinkError, **arguments)


@contextmanager
def system_server(name: str) -> Iterator[Server]:
    """Run a server of the system's PostgreSQL, which has ICU, and another version than the embedded one."""
    with servers(name, bindir=postgres_bindir()) as (server,):
        yield server


@contextmanager
def caseless_databases(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Database, Database]]:
    """Give ``source`` and ``warehouse`` on *server*, both with :data:`CASELESS`."""
    with new_database(server, "source") as source, new_database(server, "warehouse") as warehouse:
        for database in (source, warehouse):
            database.admin("GRANT ALL ON SCHEMA public TO PUBLIC")
            database.execute(CASELESS)
            monkeypatch.setenv(f"AIRFLOW_CONN_{database.conn_id.upper()}", database.uri)
        yield source, warehouse
