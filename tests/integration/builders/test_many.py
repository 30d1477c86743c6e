"""Many keys at once are the calls one by one."""

# ruff: noqa: S608 - names and queries that the tests themselves made

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from airflow_dblink.core.builders import statements
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link.link import Link
from airflow_dblink.embedded.server import servers
from tests.databases import Database, new_database
from tests.debian import postgres_bindir
from tests.integration.builders.sides import Key, Sides, count_messages

# -- many


def test_many_keys_with_and_without_nulls_in_order(admin: Sides) -> None:
    keys: list[list[int | None]] = [[1, None], [None, 2], [None, None], [1, None]]
    targets = [[None, "b"], ["x", None], [None, None], ["p", "q"]]
    for function in ("insert", "update"):
        expected = [
            admin.theirs(function, "nulls", [1, 2], [None if v is None else str(v) for v in key], target)[1]
            for key, target in zip(keys, targets, strict=True)
        ]
        assert admin.many(function, "nulls", [1, 2], keys, targets) == ("value", expected)
    query = "SELECT a, b FROM nulls WHERE c <> 'dup' ORDER BY c DESC"
    texts = [["NULL", "2"], ["1", "NULL"], ["NULL", "NULL"]]
    expected = [
        admin.theirs("insert", "nulls", [1, 2], *[[None if v == "NULL" else v for v in key]] * 2)[1]
        for key in texts
    ]
    assert admin.many("insert", "nulls", [1, 2], query) == ("value", expected)


@pytest.mark.parametrize("function", ["insert", "update"])
@pytest.mark.parametrize(
    ("keys", "sqlstate", "detail"),
    [
        ([["1"], ["77"], ["78"]], "21000", "Key 2."),
        ([["1"], ["77"], ["x"]], "21000", "Key 2."),
        ([["1"], ["x"], ["77"]], "22P02", None),
        ([["1"], [None], ["77"]], "21000", "Key 2."),
        ([["77"], [None]], "21000", "Key 1."),
        ([["1"]] * 500 + [["77"]], "21000", "Key 501."),
        ([["1"]] * 500 + [["77"], ["x"]], "21000", "Key 501."),
    ],
)
def test_the_first_wrong_key_is_told(
    admin: Sides, function: str, keys: list[Key], sqlstate: str, detail: str | None
) -> None:
    outcome = admin.ours(f"{function}_many", "foo", [1], keys)
    assert (outcome[0], outcome[2]) == (sqlstate, detail)
    rows = ", ".join(f"({'NULL' if key[0] is None else repr(key[0])})" for key in keys)
    outcome = admin.ours(f"{function}_many", "foo", [1], f"VALUES {rows}")
    assert (outcome[0], outcome[2]) == (sqlstate, detail)


@pytest.mark.parametrize("keys", [[["3", "3"]], [["1", None], ["3", "3"], ["3", "3"]], [["4", None]]])
def test_the_first_key_of_many_rows_is_told(admin: Sides, keys: list[Key]) -> None:
    outcome = admin.ours("insert_many", "nulls", [1, 2], keys)
    assert outcome == ("21000", "source criteria matched more than one record", f"Key {min(len(keys), 2)}.")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        "SELECT 1, 'b', 3",
        "SELECT 1, 'b' WHERE false",
        "TABLE foo",
        "SELECT f1, f2 FROM foo;",
        "WITH x AS (SELECT f1, f2 FROM foo) TABLE x",
        "SELECT 1, nope",
        "SELECT 1, 2; SELECT 3, 4",
        "",
        "DELETE FROM foo RETURNING f1, f2",
        "SELECT 1 / 0, 'b'",
        "SELECT 'x', 'b'",
        "SELECT f1, f1 AS f1 FROM foo",
    ],
)
def test_queries_for_keys(admin: Sides, query: str) -> None:
    try:
        rows = admin.session.execute(f"SELECT * FROM ({query.rstrip(';')}) AS q".encode()).fetchall()
        wrong = any(len(row) != 2 for row in rows)
    except psycopg.Error:
        wrong = True
    for function in ("insert", "update", "delete"):
        outcome = admin.many(function, "foo", [1, 2], query)
        if wrong:
            assert outcome[0] != "value"
            continue
        expected = [
            admin.theirs(function, "foo", [1, 2], *[list(map(str, row))] * (1 if function == "delete" else 2))
            for row in rows
        ]
        failed = [other for other in expected if other[0] != "value"]
        assert outcome == (failed[0] if failed else ("value", [text for _, text in expected]))
    assert admin.session.execute("SELECT count(*) FROM foo").fetchone() == (8,)


def test_another_count_of_columns_is_a_usage_error(admin: Sides) -> None:
    for query in ("SELECT 1", "SELECT 1, 'b', 3"):
        with pytest.raises(UsageError, match=r"the query returns . columns?, and the key has 2"):
            statements.build_sql_insert_many(admin.link, "foo", [1, 2], query)
        with pytest.raises(UsageError, match=r"the query returns . columns?, and the key has 2"):
            statements.build_sql_delete_many(admin.link, "foo", [1, 2], sql.SQL(query))
    with pytest.raises(UsageError, match="tgt must be None"):
        statements.build_sql_insert_many(admin.link, "foo", [1, 2], query, [["1", "2"]])


def test_a_querys_values_are_what_the_output_functions_write(admin: Sides) -> None:
    admin.execute('CREATE TEMP TABLE odd (k text COLLATE "C" PRIMARY KEY, v int)')
    admin.execute("INSERT INTO odd VALUES ('t', 1), ('1.2.3.4', 2), ('(,)', 3), ('ab    ', 4)")
    query = "SELECT true UNION ALL SELECT false WHERE false"
    assert admin.many("delete", "odd", [1], query) == ("value", ["DELETE FROM odd WHERE k = 't'"])
    for value, number in (("true", 1), ("inet '1.2.3.4'", 2), ("ROW(NULL, NULL)", 3), ("'ab'::char(6)", 4)):
        outcome = admin.many("insert", "odd", [1], f"SELECT {value}")
        assert outcome[0] == "value"
        assert outcome[1][0].endswith(f",'{number}')")
    outcome = admin.many("insert", "odd", [1], 'SELECT k COLLATE "POSIX" FROM odd ORDER BY v')
    assert len(outcome[1]) == 4


def test_nondeterministic_collations() -> None:
    options = "provider = icu, locale = 'und-u-ks-level2', deterministic = false"
    # The embedded PostgreSQL is built without ICU.
    with servers("icu", bindir=postgres_bindir()) as (server,), new_database(server, "icu") as database:
        database.admin("CREATE EXTENSION dblink")
        database.admin(f"CREATE COLLATION nocase ({options})")
        database.admin("CREATE TABLE nocase (k text COLLATE nocase PRIMARY KEY)")
        database.admin("INSERT INTO nocase VALUES ('AbC')")
        admin = Sides(database.admin_conninfo)
        try:
            assert admin.check("nocase", [1], ["aBc"])[0] == "value"
        finally:
            admin.close()


def test_no_keys(admin: Sides) -> None:
    for function in ("insert", "update", "delete"):
        assert admin.many(function, "foo", [1], []) == ("value", [])
        assert admin.many(function, "foo", [9], [])[0] == "22023"
        assert admin.many(function, "nope", [1], [])[0] == "42P01"


@pytest.mark.parametrize("analyzed", [False, True])
def test_many_keys_never_read_the_table_once_per_key(
    database: Database, admin: Sides, monkeypatch: pytest.MonkeyPatch, analyzed: bool
) -> None:
    admin.link.exec(
        "CREATE TEMP TABLE big AS"
        " SELECT i AS id, i AS plain, 'x' || i AS t FROM generate_series(1, 200000) AS i;"
        "CREATE UNIQUE INDEX ON big (id)" + ("; ANALYZE big" if analyzed else "")
    )
    sent: list[str] = []
    encoded = Link.encoded

    def spy(link: Link, text: str) -> bytes:
        sent.append(text)
        return encoded(link, text)

    monkeypatch.setattr(Link, "encoded", spy)
    keys = [[i] for i in range(1, 20001, 2)]
    for attnum in (1, 2):
        made = statements.build_sql_insert_many(admin.link, "big", [attnum], keys)
        assert len(made) == 10000
        assert made[-1] == "INSERT INTO big(id,plain,t) VALUES('19999','19999','x19999')"
        query = "SELECT id FROM big WHERE id % 2 = 1 AND id < 20000 ORDER BY id"
        assert statements.build_sql_insert_many(admin.link, "big", [attnum], query) == made
        for message in list(sent):
            statement = message[message.find("WITH k AS MATERIALIZED") :]
            if statement.startswith("WITH"):
                plan = "\n".join(row[0] for row in admin.link.query("EXPLAIN " + statement))
                assert "Hash" in plan or "Merge" in plan or "Index Scan" in plan, plan
        assert any("WITH k AS MATERIALIZED" in message for message in sent)
        sent.clear()


def test_one_message_in_the_steady_state(admin: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = count_messages(monkeypatch)
    link = admin.link
    calls: list[Callable[[], object]] = [
        lambda: statements.build_sql_insert(link, "foo", [1], ["1"], ["1"]),
        lambda: statements.build_sql_update(link, "foo", [1], ["1"], ["1"]),
        lambda: statements.build_sql_delete(link, "foo", [1], ["1"]),
        lambda: statements.build_sql_insert_many(link, "foo", [1], [["1"], ["2"]]),
        lambda: statements.build_sql_update_many(link, "foo", [1], "SELECT f1 FROM foo"),
        lambda: statements.build_sql_delete_many(link, "foo", [1], "SELECT f1 FROM foo"),
        lambda: statements.build_sql_delete_many(link, "foo", [1], [["1"]]),
        lambda: statements.get_pkey(link, "foo"),
    ]
    for call in calls:
        call()
        sent.clear()
        call()
        assert len(sent) == 1
    assert link.query("SELECT count(*) FROM pg_prepared_statements") == [(0,)]
