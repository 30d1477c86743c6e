"""Remotes with other texts, encodings, search_path and limits than usual: the values must stay right.

Nothing is set on the remote to prevent that, as in dblink, whose extension is the measure in places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus

from airflow_dblink.core.errors import DblinkError, RemoteError, UsageError
from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.server.target import Target
from airflow_dblink.embedded.server import Server
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database
from tests.odd import WAYS, always, linked

# -- texts

_TEXTS = [
    "plain",
    "O'Reilly",
    "''",
    "\\",
    "\\'",
    "'\\",
    "a\\nb",
    "C:\\dir\\'; DROP TABLE t; --",
    'double "quotes" \\"',
    "%s %% :name $1 $$",
    "\t\r\n\x7f",
    "Größe … 日本 😀",
]


@pytest.mark.parametrize(("conforming", "way"), [("on", "role"), ("off", "role"), ("off", "session")])
def test_parameters_survive_quotes_and_backslashes_whatever_a_backslash_means(
    source: Database, links: Links, way: str, conforming: str
) -> None:
    source.execute("CREATE TABLE t (a text)")
    if way == "role":
        always(source, standard_conforming_strings=conforming)
    link = linked(links, source, **({"standard_conforming_strings": conforming} if way == "session" else {}))
    assert link.query("SHOW standard_conforming_strings") == [(conforming,)]
    for text in _TEXTS:
        values = [text, text.encode(), [text, None, text], [text.encode()]]
        query = "SELECT %s::text, %s::bytea, %s::text[], %s::bytea[]"
        assert link.query(query, values) == [tuple(values)]
        assert link.query("SELECT %(a)s::text", {"a": text}) == [(text,)]
        assert list(link.batches(query, values, 5)) == [[tuple(values)]]
        assert link.query(sql.SQL("SELECT {}").format(text)) == [(text,)]
        name = sql.Identifier(text[:20])
        assert link.query(sql.SQL("SELECT x.{} FROM (SELECT 1 AS {}) AS x").format(name, name)) == [(1,)]
        assert link.exec("INSERT INTO t VALUES (%s)", [text]) == "INSERT 0 1"
        link.open("c", "SELECT a FROM t WHERE a = %s", [text])
        assert link.fetch("c", 9) == [(text,)]
        link.close("c")
    assert link.query("SELECT a FROM t") == [(text,) for text in _TEXTS]
    with DblinkHook(dblink_conn_id="source") as hook:
        assert hook.get_records("SELECT %s::text[]", [_TEXTS]) == [(_TEXTS,)]


def test_a_backslash_in_a_statement_means_what_the_session_says(source: Database, links: Links) -> None:
    link = linked(links, source)
    statement = r"SELECT 'a\'';b'"  # on: a\';b. off: a', and a second statement with an open quote
    assert link.query(statement) == [("a\\';b",)]
    assert list(link.batches(statement, None, 5)) == [[("a\\';b",)]]
    always(source, standard_conforming_strings="off")
    link = linked(links, source)
    statement = r"SELECT 'a\';b', 1"
    assert link.query(statement) == [("a';b", 1)]
    assert list(link.batches(statement, None, 5)) == [[("a';b", 1)]]
    link.open("c", statement)
    assert link.fetch("c", 5) == [("a';b", 1)]
    link.close("c")


@pytest.mark.parametrize(("output", "way"), [("hex", "role"), *(("escape", way) for way in WAYS)])
def test_all_bytes_arrive_whatever_bytea_output_is(
    source: Database, add_connection: AddConnection, way: str, output: str
) -> None:
    if way in ("role", "database"):
        always(source, way, bytea_output=output)
    extra = {"session_settings": {"bytea_output": output}} if way == "session_settings" else {}
    conn_id = add_connection("odd", source, extra=extra)
    data = bytes(range(256))
    query = "SELECT %s::bytea, ARRAY[%s::bytea, NULL, '', 'abc', 'd'], ARRAY[['a'::bytea, 'b']], ''::bytea"
    truth = [(data, [data, None, b"", b"abc", b"d"], [[b"a", b"b"]], b"")]
    with DblinkHook(dblink_conn_id=conn_id) as hook:
        if way == "session":
            hook.exec(f"SET bytea_output = {output}")
        assert hook.query("SHOW bytea_output") == [(output,)]
        assert hook.query(query, [data, data]) == truth
        assert list(hook.batches(query, [data, data])) == [truth]
        assert hook.query("SELECT octet_length(%s), md5(%s)", [data, data]) == [
            (256, "e2c865db4162bed963bfaa9ef6ac18f0")
        ]
        assert hook.get_records(query, [data, data]) == truth


# -- search_path


def test_a_table_is_where_the_roles_search_path_finds_it(
    source: Database, warehouse: Database, links: Links
) -> None:
    source.execute("CREATE SCHEMA elsewhere")
    source.execute(
        "CREATE TABLE t AS SELECT 'public' AS a; CREATE TABLE elsewhere.t AS SELECT 'elsewhere' AS a"
    )
    always(source, search_path="elsewhere, public")
    link = linked(links, source)
    assert link.query("SELECT a FROM t") == [("elsewhere",)]
    assert list(link.batches("SELECT a FROM t", None, 5)) == [[("elsewhere",)]]
    with DblinkHook(dblink_conn_id="source") as hook:
        assert hook.get_records("SELECT a FROM t") == [("elsewhere",)]
    warehouse.admin("CREATE EXTENSION dblink")
    call = "SELECT a FROM dblink(%s, 'SELECT a FROM t') AS t(a text)"
    assert warehouse.admin(call, source.conninfo) == [("elsewhere",)]


@pytest.mark.parametrize("path", ["''", "evil, pg_catalog"])
def test_our_own_statements_do_not_depend_on_the_search_path(
    source: Database, links: Links, path: str
) -> None:
    source.execute("CREATE SCHEMA evil")
    for function in ("set_config(text, text, boolean)", "current_setting(text, boolean)"):
        source.execute(f"CREATE FUNCTION evil.{function} RETURNS text LANGUAGE sql AS $$ SELECT 'evil' $$")
    source.execute("CREATE VIEW evil.pg_cursors AS SELECT 'evil'::text AS name")
    always(source, search_path=path)
    target = Target("source", source.params, session_settings={"work_mem": "1234kB"})
    links.connect("x", target)
    link = links.get("x")
    assert link.query("SHOW work_mem") == [("1234kB",)]
    link.open("c", "SELECT 1")
    link.open("d", "SELECT 2")
    assert link.fetch("c", 5) == [(1,)]
    link.close("c")
    assert link.fetch("d", 5) == [(2,)]
    link.close("d")
    assert link.connection.pgconn.transaction_status == TransactionStatus.IDLE
    assert list(link.batches("SELECT 3", None, 5)) == [[(3,)]]


# -- encodings


@pytest.fixture(scope="module")
def latin1(pair: tuple[Server, Server]) -> Iterator[Database]:
    """Give a new database on the first server whose encoding is LATIN1."""
    server, database = pair[0], Database("latin1", pair[0], "latin1_remote")
    with psycopg.connect(server.conninfo(dbname="postgres", superuser=True), autocommit=True) as admin:
        name, owner = sql.Identifier(database.name), sql.Identifier(server.role)
        admin.execute(
            sql.SQL(
                "CREATE DATABASE {} OWNER {} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
            ).format(name, owner)
        )
        try:
            yield database
        finally:
            left = database.wait_until_left()
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
    assert not left


LATIN = "".join(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x100)]))  # all that it has


def test_a_latin1_database_takes_and_gives_its_characters(
    latin1: Database, add_connection: AddConnection
) -> None:
    conn_id = add_connection("latin1", latin1)
    with DblinkHook(dblink_conn_id=conn_id) as hook:
        assert hook.query("SHOW server_encoding") == [("LATIN1",)]
        hook.exec('CREATE TABLE "Größe" ("ß" text)')
        hook.exec('INSERT INTO "Größe" VALUES (%s)', [LATIN])
        query = 'SELECT "ß", octet_length("ß"), ARRAY["ß"] FROM "Größe"'
        truth = [(LATIN, len(LATIN), [LATIN])]
        assert hook.query(query) == truth
        assert list(hook.batches(query)) == [truth]
        assert hook.get_records(query) == truth
        hook.open('"Ü"', query)
        assert hook.fetch('"Ü"', 5) == truth
        hook.close('"Ü"')
        with pytest.raises(RemoteError, match='relation "größe" does not exist'):
            hook.query("SELECT * FROM größe")
        assert "größe" in hook.error_message()


def test_a_character_that_a_latin1_database_has_not_is_a_clear_error(
    latin1: Database, add_connection: AddConnection
) -> None:
    conn_id = add_connection("latin1", latin1)
    with DblinkHook(dblink_conn_id=conn_id) as hook:
        for text in ["5 €", "Ω", "日本", "😀", "…"]:
            calls: list[Callable[[], object]] = [
                partial(hook.query, "SELECT %s::text", [text]),
                partial(hook.exec, sql.SQL("CREATE TABLE {} ()").format(sql.Identifier(text))),
                partial(next, hook.batches("SELECT %s::text", [text])),
            ]
            for call in calls:
                with pytest.raises(RemoteError) as caught:
                    call()
                assert caught.value.sqlstate == "22P05"
                assert 'has no equivalent in encoding "LATIN1"' in str(caught.value)
                assert hook.query("SELECT %s::text", [LATIN]) == [(LATIN,)]


def test_links_speak_utf8_whatever_the_role_says(source: Database, links: Links) -> None:
    always(source, client_encoding="LATIN1")
    link = linked(links, source)
    assert link.query("SHOW client_encoding") == [("UTF8",)]
    assert link.query("SELECT %s::text", ["5 €"]) == [("5 €",)]


def test_a_session_that_sets_client_encoding_gets_right_texts_or_clear_errors(
    source: Database, links: Links
) -> None:
    link = linked(links, source, client_encoding="LATIN1")
    assert link.query("SELECT %s::text", [LATIN]) == [(LATIN,)]
    assert link.query(f"SELECT $${LATIN}$$, octet_length('ä') AS \"ß\"") == [(LATIN, 2)]
    assert list(link.batches("SELECT %s::text", [LATIN], 5)) == [[(LATIN,)]]
    with pytest.raises(RemoteError, match='relation "größe" does not exist'):
        link.query("SELECT * FROM größe")
    with pytest.raises(RemoteError) as caught:  # what the server has
        link.query("SELECT chr(8364)")
    assert caught.value.sqlstate == "22P05"
    for call in (  # what we have
        lambda: link.query("SELECT %s::text", ["5 €"]),
        lambda: link.query("SELECT '5 €'"),
        lambda: list(link.batches("SELECT %s", ["5 €"], 5)),
        lambda: list(link.batches("SELECT '€'", None, 5)),
        lambda: link.open('"€"', "SELECT 1"),
    ):
        with pytest.raises(UsageError):
            call()
        assert link.connection.pgconn.transaction_status == TransactionStatus.IDLE
        assert link.query("SELECT 'ä'") == [("ä",)]
    assert link.query("SET client_encoding = 'UTF8'; SELECT chr(8364)") == [("€",)]
    assert link.query("SELECT %s::text", ["5 €"]) == [("5 €",)]


# -- limits


def test_the_roles_statement_timeout_is_an_error_and_the_link_stays_usable(
    source: Database, links: Links
) -> None:
    always(source, statement_timeout="'1s'")
    link = linked(links, source)
    sleep = "SELECT pg_sleep(60)"
    for call in (
        lambda: link.query(sleep),
        lambda: link.exec("DO $$ BEGIN PERFORM pg_sleep(60); END $$"),
        lambda: list(link.batches(sleep, None, 5)),
    ):
        with pytest.raises(DblinkError, match="canceling statement due to statement timeout") as caught:
            call()
        assert caught.value.sqlstate == "57014"
        assert link.connection.pgconn.transaction_status == TransactionStatus.IDLE
        # One message, so that the role's limit can't strike a server that stands still.
        assert link.query("SET LOCAL statement_timeout = 0; SELECT 1") == [(1,)]
    with (
        DblinkHook(dblink_conn_id="source") as hook,
        pytest.raises(psycopg.errors.QueryCanceled),
    ):
        hook.get_records(sleep)
