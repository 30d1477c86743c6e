# ruff: noqa: S608 - names that the tests themselves made
"""DblinkQueryOperator's ``execute`` on real servers: sets, names, types, and where rows go."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.remote_sets.remote import Remote
from airflow_dblink.core.streams import fan_in as gather
from airflow_dblink.embedded.server import Server
from tests.conftest import AddConnection
from tests.databases import Database, new_database
from tests.integration.sync.moments import GATE, closed_gate, waiting_at_gate
from tests.integration.tasks import context
from tests.pooler import pooler
from tests.queries import operator, rows, run, source
from tests.transfers import meanwhile

pytestmark = pytest.mark.usefixtures("source", "warehouse")

SERIES = "SELECT g AS id, 'name ' || g AS name FROM generate_series(1, 5) AS g"


@pytest.fixture
def third(pair: tuple[Server, Server], add_connection: AddConnection) -> Iterator[Database]:
    with new_database(pair[0], "third") as database:
        add_connection("third", database)
        yield database


# -- what it does


def test_a_join_over_three_databases(source: Database, warehouse: Database, third: Database) -> None:
    source.execute("CREATE TABLE customer AS SELECT g AS id, 'c' || g AS name FROM generate_series(1, 3) g")
    third.execute("CREATE TABLE price AS SELECT g AS item, g * 1.5 AS price FROM generate_series(1, 4) g")
    warehouse.execute(
        "CREATE TABLE orders (customer int, item int); INSERT INTO orders VALUES (1, 2), (3, 4), (3, 1);"
        "CREATE TABLE bill (name text, total numeric)"
    )

    result = run(
        "INSERT INTO bill SELECT c.name, sum(p.price) FROM orders o JOIN c ON c.id = o.customer"
        " JOIN p USING (item) GROUP BY c.name; DELETE FROM orders",
        {
            "c": Remote("source", "SELECT * FROM customer WHERE id > %(least)s", {"least": 0}),
            "p": {"conn_id": "third", "sql": "TABLE price", "indexes": ["item"]},
        },
    )

    assert result == {"sets": {"c": 3, "p": 4}, "command_tags": ["INSERT 0 2", "DELETE 3"]}
    assert sorted(warehouse.rows("TABLE bill")) == [("c1", 3), ("c3", 7.5)]
    assert warehouse.rows("SELECT FROM pg_class WHERE relnamespace = pg_my_temp_schema()") == []


def test_it_works_without_remotes(warehouse: Database) -> None:
    warehouse.execute("CREATE TABLE t (a int)")
    assert run("INSERT INTO t VALUES (%s)", parameters=[7]) == {"sets": {}, "command_tags": ["INSERT 0 1"]}
    assert rows("TABLE t") == [[7]]


@pytest.mark.parametrize("end", ["", ";", "; -- the end\n"])
def test_rows_go_to_xcom_a_function_or_a_file(tmp_path: Path, end: str) -> None:
    sets = {"c": source(SERIES + end)}
    script = f"CREATE TEMP TABLE more ON COMMIT DROP AS SELECT id + 1 AS id FROM c; SELECT * FROM more{end}"
    batches: list[Any] = []
    path = tmp_path / "rows.csv"
    common = {"sets": {"c": 5}, "command_tags": ["SELECT 5"], "rows": 5}

    assert run(script, sets, max_xcom_rows=5) == common | {"batches": 1, "data": [[n] for n in range(2, 7)]}
    assert run(script, sets, handler=batches.append, batch_rows=2) == common | {"batches": 3}
    assert run(script, sets, path=path.as_uri()) == common | {"path": path.as_uri()}

    assert batches == [[(2,), (3,)], [(4,), (5,)], [(6,)]]
    assert path.read_text().split() == ["id", "2", "3", "4", "5", "6"]
    assert rows(f"SELECT id FROM c WHERE id < %s{end}", sets, parameters=[2]) == [[1]]


@pytest.mark.parametrize(
    "last", ["VALUES (1)", "TABLE c", "WITH a AS (SELECT 1 AS delete) SELECT * FROM a", "(SELECT 1) LIMIT 1"]
)
def test_what_a_cursor_reads_may_be_last(last: str) -> None:
    assert rows(last, {"c": source("SELECT 1 AS a")}) == [[1]]


def test_more_rows_than_allowed_leave_home_unchanged(warehouse: Database) -> None:
    warehouse.execute("CREATE TABLE t (a int)")
    with pytest.raises(AirflowFailException, match="more than max_xcom_rows=4"):
        run("INSERT INTO t SELECT id FROM c; TABLE c", {"c": source(SERIES)}, max_xcom_rows=4)
    assert warehouse.rows("TABLE t") == []


def test_templates_and_sql_files_are_rendered_in_remotes(tmp_path: Path) -> None:
    (tmp_path / "set.sql").write_text("SELECT '{{ ds }}'::date AS day, %s AS word")
    with DAG("d", schedule=None, template_searchpath=[str(tmp_path)]):
        task = operator(
            "SELECT a.day::text, a.word, b.day::text FROM a, b",
            {
                "a": Remote("{{ place }}", "set.sql", ["{{ word }}"]),
                "b": {"conn_id": "{{ place }}", "sql": "set.sql", "parameters": ["x"]},
            },
            max_xcom_rows=1,
        )
    task.render_template_fields({"ds": "2026-11-22", "place": "source", "word": "{%"})  # type: ignore[typeddict-unknown-key]
    assert task.execute(context())["data"] == [["2026-11-22", "{%", "2026-11-22"]]


def test_airflow_shows_a_remote_by_its_fields() -> None:
    shown = source("SELECT 1", parameters=[1], indexes=["a"]).serialize()
    assert shown == {"conn_id": "source", "sql": "SELECT 1", "parameters": [1], "indexes": ["a"]}
    assert Remote.of("c", shown) == source("SELECT 1", parameters=[1], indexes=["a"])


# -- refused before anything is done


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"remotes": {"c": source("SELECT 1 AS a, 2 AS a")}}, ["'c'", "'source'", "more than one", "'a'"]),
        ({"remotes": {"c": source("SELECT 1, 2")}}, ["more than one", "?column?", "AS ..."]),
        ({"remotes": {"c": source("SELECT ctid FROM pg_class")}}, ["'ctid'", "AS ..."]),
        ({"remotes": {"c": source("SELECT FROM pg_class")}}, ["'c'", "'source'", "no columns"]),
        ({"remotes": {"c": source("SELECT 1; SELECT 2")}}, ["'c'", "one query, got 2"]),
        ({"remotes": {"c": source("SHOW work_mem")}}, ["'c'", "SHOW"]),
        ({"remotes": {"c": source("DELETE FROM t RETURNING *")}}, ["'c'", "DELETE"]),
        ({"remotes": {"c": source("SELECT '\0'")}}, ["'c'", "NUL"]),
        ({"remotes": {"c": source(" ")}}, ["'c'", "sql must be text"]),
        ({"remotes": {"c": source("SELECT %s AS a", parameters=[1, 2])}}, ["'c'", "parameters do not fit"]),
        ({"remotes": {"c": Remote("", "SELECT 1")}}, ["'c'", "conn_id must be text"]),
        ({"remotes": {"c": {"conn_id": "source"}}}, ["remote set 'c': sql is missing"]),
        ({"remotes": {"c": {"connid": "source", "sql": "x"}}}, ["remote set 'c': unknown 'connid'"]),
        ({"remotes": {"a b": source(SERIES)}}, ["remote set 'a b': 'a b' is not a table name"]),
        ({"remotes": {"c": {"conn_id": "source", "sql": "x", "index": []}}}, ["'c'", "'index'"]),
        ({"remotes": {"c": "SELECT 1"}}, ["'c'", "must be a Remote or a dict, got str"]),
        ({"remotes": ["c"]}, ["remotes must be a dict", "list"]),
        ({"remotes": {"c": source(SERIES, indexes=["nope"])}}, ["'c'", "'nope'", "it has: id, name"]),
        ({"remotes": {"c": source(SERIES, indexes="id")}}, ["'c'", "indexes must be a list"]),
        ({"remotes": {"c": source(SERIES, indexes=[[]])}}, ["'c'", "an index is"]),
        ({"remotes": {"c": source(SERIES), "C": source(SERIES)}}, ["'C'", "twice"]),
        ({"remotes": {"a.b": source(SERIES)}}, ["'a.b'", "not a table name"]),
        ({"remotes": {"": source(SERIES)}}, ["not a table name"]),
        ({"remotes": {5: source(SERIES)}}, ["5", "not a table name"]),
        ({"remotes": {"ä" * 32: source(SERIES)}}, ["longer than 63 bytes"]),
        ({"remotes": {"t": source(SERIES)}}, ["'warehouse'", "'t'", "hide the relation public.t"]),
        ({"remotes": {"T": source(SERIES)}}, ["hide the relation public.t"]),
        ({"remotes": {"pg_class": source(SERIES)}}, ["hide the relation pg_catalog.pg_class"]),
        ({"remotes": {"mood": source(SERIES)}}, ["hide the type public.mood"]),
        ({"remotes": {"text": source(SERIES)}}, ["hide the type pg_catalog.text"]),
        ({"sql": ""}, ["no statement"]),
        ({"sql": "INSERT INTO t VALUES (1); COMMIT"}, ["COMMIT", "the transaction is ours"]),
        ({"sql": "VACUUM"}, ["VACUUM", "DblinkExecOperator with transaction=False"]),
        ({"sql": "COPY t FROM STDIN"}, ["COPY"]),
        ({"sql": 5}, ["sql must be text"]),
        ({"sql": None}, ["sql has no value (None)"]),
        ({"sql": "None"}, ["sql has no value (None)"]),
        ({"parameters": [1]}, ["parameters do not fit"]),
        ({"session_settings": {"a b": 1}}, ["argument 'session_settings'"]),
        ({"session_settings": ["a"]}, ["argument 'session_settings' is 'list'"]),
        ({"password_required": "maybe"}, ["argument 'password_required' is 'maybe'"]),
        ({"max_xcom_rows": 5}, ["line 1", "INSERT", "end the script with SELECT"]),
        ({"sql": "TABLE c; SHOW work_mem", "max_xcom_rows": 5}, ["SHOW"]),
        ({"sql": "SELECT 1 INTO x", "max_xcom_rows": 5}, ["INTO"]),
        ({"sql": "WITH a AS (\nDELETE FROM t RETURNING 1) TABLE a", "max_xcom_rows": 5}, ["WITH"]),
        ({"sql": "SELECT 1", "max_xcom_rows": 5, "path": "file:///x"}, ["got path, max_xcom_rows"]),
        ({"sql": "SELECT 1", "max_xcom_rows": 5, "batch_rows": 0}, ["batch_rows"]),
        ({"sql": "SELECT 1", "path": "file:///x", "csv_options": {"format": "x"}}, ["csv_options"]),
        ({"sql": "SELECT 1", "path": "file:///x", "csv_options": "x"}, ["csv_options must be a mapping"]),
        ({"sql": "SELECT 1", "path": "file:///x", "header": "maybe"}, ["header must be true or false"]),
        ({"sql": "SELECT 1", "path": "None"}, ["path has no value (None)"]),
        ({"sql": "SELECT 1", "path": " "}, ["path has no value (empty text)"]),
        ({"sql": "SELECT 1", "path": 5}, ["path must be text, got int"]),
        (
            {"sql": "SELECT 1", "path": "file:///tmp"},
            ["path must be a file, got the directory 'file:///tmp'"],
        ),
        ({"sql": "SELECT 1", "path": "file:///new/"}, ["path must be a file"]),
        ({"sql": "SELECT 1", "path": "nothing://x/y"}, ["path is no URL"]),
        ({"sql": "SELECT 1", "handler": "print"}, ["handler must be a function, got str"]),
        *(
            ({"sql": "SELECT 1", name: value}, [f"{name} must be an integer of at least"])
            for name in ("max_xcom_rows", "batch_rows")
            for value in ("five", -1, True, 2.5, [1])
        ),
    ],
)
def test_a_mistake_is_named_and_nothing_is_done(
    warehouse: Database, arguments: dict[str, Any], words: list[str]
) -> None:
    warehouse.execute("CREATE TABLE t (a int); CREATE TYPE mood AS ENUM ('ok')")
    given = {"sql": "INSERT INTO t VALUES (1)", "remotes": {"c": source("SELECT 1 / 0 AS a")}, **arguments}
    with pytest.raises(AirflowFailException) as caught:
        run(**given)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert warehouse.rows("TABLE t") == []


def test_a_column_that_has_no_order_is_not_fetched_to_be_indexed() -> None:
    sets = {"c": source("SELECT 1 / 0 AS a, '{}'::json AS doc", indexes=[["a", "doc"]])}
    with pytest.raises(AirflowFailException, match=r"'c'.*no default operator class"):
        run("SELECT 1", sets)


def test_a_wrong_query_is_the_remotes_error(source: Database) -> None:
    with pytest.raises(RemoteError, match=r"(?s)'source'.*remote set 'c'.*nowhere.*42P01"):
        run("SELECT 1", {"c": Remote("source", "SELECT * FROM nowhere")})


def test_an_unknown_connection_is_named() -> None:
    with pytest.raises(AirflowNotFoundException, match=r"`nobody` isn't defined.*AIRFLOW_CONN_NOBODY"):
        run("SELECT 1", {"c": Remote("nobody", "SELECT 1 AS a")})


def test_a_role_that_may_make_no_temporary_tables_is_told(warehouse: Database) -> None:
    warehouse.admin(f'REVOKE TEMP ON DATABASE "{warehouse.name}" FROM PUBLIC, "{warehouse.server.role}"')
    with pytest.raises(AirflowFailException, match=r"'warehouse'.*no TEMP.*42501"):
        run("SELECT 1", {"c": source(SERIES)})
    assert rows("SELECT 1") == [[1]]


# -- names


HOSTILE = 'a "b" %s %(c)s; -- é\\'


def test_hostile_names_are_names() -> None:
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    remote = source(f'SELECT 1 AS {quoted}, -1 AS "Two"', indexes=[[HOSTILE, "Two"]])

    result = run(f'SELECT {quoted}, "Two" FROM {quoted}', {quoted: remote}, max_xcom_rows=1)

    assert result["data"] == [[1, -1]]
    assert result["sets"] == {quoted: 1}
    assert rows("SELECT * FROM Customers", {"CUSTOMERS": remote}) == [[1, -1]]


def test_a_set_may_have_the_name_of_a_table_that_is_out_of_sight(warehouse: Database) -> None:
    warehouse.execute("CREATE SCHEMA other; CREATE TABLE other.c (a int)")
    sets = {"c": source("SELECT 2 AS a")}
    assert rows("SELECT c.a, o.a FROM c LEFT JOIN other.c AS o ON true", sets) == [[2, None]]
    with pytest.raises(AirflowFailException, match=r"hide the relation other\.c"):
        run("SELECT 1", sets, session_settings={"search_path": "other"})


# -- types


TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'it''s ok');
CREATE DOMAIN code AS text CHECK (length(VALUE) = 2);
CREATE DOMAIN amount AS numeric(8, 2);
CREATE TYPE pair AS (a int, "B c" text);
"""

# An expression, and its type at home if home knows the type, and if not.
CASES = [
    ("'it''s ok'::mood", "mood", "text"),
    ("ARRAY['sad', NULL]::mood[]", "mood[]", "text"),
    ("'ab'::code", "text", None),
    ("ARRAY['ab', 'cd']::code[]", "code[]", "text"),
    ("1.5::amount", "numeric(8,2)", None),
    ("ROW(1, 'x,\"y')::pair", "pair", "text"),
    ("ARRAY[ROW(1, NULL)::pair]", "pair[]", "text"),
    ("'AbC'::citext", "citext", "text"),
    ("'a=>1'::hstore", "hstore", "text"),
    ("'x'::varchar(10)", "character varying(10)", None),
    ("'x'::char(3)", "character(3)", None),
    ("'x'::\"char\"", '"char"', None),
    ("1.25::numeric(10,4)", "numeric(10,4)", None),
    ("B'101'::bit(3)", "bit(3)", None),
    ("interval '1 day 2 h'", "interval", None),
    ("timestamptz '2026-11-22 10:00+02'", "timestamp with time zone", None),
    ("time(2) '10:00:00.12'", "time(2) without time zone", None),
    ("'infinity'::date", "date", None),
    ("'NaN'::float8", "double precision", None),
    ("'12.34'::money", "money", None),
    ("'\\x00ff'::bytea", "bytea", None),
    ("'{\"a\": [1]}'::jsonb", "jsonb", None),
    ("int4range(1, 5)", "int4range", None),
    ("ARRAY[[1,2],[3,NULL]]", "integer[]", None),
    ("'x'", "text", None),
    ("NULL", "text", None),
    ("NULL::name", "name", None),
    ("'{}'::aclitem[]", "aclitem[]", None),
    ("ROW(1, 'a')", "text", "text"),
    ("'pg_class'::regclass", "text", "text"),
    ("ARRAY['int4']::regtype[]", "text", "text"),
    ("pg_sleep(0)", "text", "text"),
]  # fmt: skip


def _with_types(database: Database) -> None:
    database.admin("CREATE EXTENSION citext; CREATE EXTENSION hstore")
    database.execute(TYPES)


@pytest.mark.parametrize("knows", [True, False], ids=["home knows them", "home does not"])
def test_types_are_kept_where_home_has_them(
    source: Database, warehouse: Database, knows: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _with_types(source)
    if knows:
        _with_types(warehouse)
    query = "SELECT " + ", ".join(f"{text} AS c{i}" for i, (text, _, _) in enumerate(CASES))
    names = [f"c{i}" for i in range(len(CASES))]
    texts = ", ".join(f"{name}::text" for name in names)
    expected = source.rows(f"SELECT {texts} FROM ({query}) AS q".replace("c31::text", "''"))
    caplog.set_level("WARNING")

    result = run(
        "CREATE TABLE seen AS SELECT a.attname, format_type(atttypid, atttypmod) FROM pg_attribute a"
        f" WHERE attrelid = 'c'::regclass AND attnum > 0; SELECT {texts} FROM c",
        {"c": Remote("source", query)},
        max_xcom_rows=1,
    )

    kept = [if_known if knows else otherwise or if_known for _, if_known, otherwise in CASES]
    assert dict(warehouse.rows("TABLE seen")) == dict(zip(names, kept, strict=True))
    assert result["data"] == [list(expected[0])]
    warned = {name for name in names if f"column {name!r} of remote set 'c' becomes text" in caplog.text}
    assert warned == {
        name
        for name, kind, (_, if_known, otherwise) in zip(names, kept, CASES, strict=True)
        if kind == "text" and (otherwise == "text" or if_known != "text")
    }


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("TYPE thing AS (a int, b int)", "TYPE thing AS (b int, a int)"),
        ("TYPE thing AS ENUM ('(1,2)')", "TYPE thing AS (a int, b int)"),
        ("TYPE thing AS (a int, b int)", "DOMAIN thing AS text"),
    ],
)
def test_another_type_of_the_same_name_is_not_taken_for_it(
    source: Database, warehouse: Database, there: str, here: str, caplog: pytest.LogCaptureFixture
) -> None:
    source.execute(f"CREATE {there}")
    warehouse.execute(f"CREATE {here}")
    caplog.set_level("WARNING")
    sets = {"c": Remote("source", "SELECT '(1,2)'::thing AS a")}
    assert rows("SELECT a, pg_typeof(a)::text FROM c", sets) == [["(1,2)", "text"]]
    assert "'a' of remote set 'c' becomes text: thing is another type here" in caplog.text


def test_empty_vectors_travel_as_text() -> None:
    sets = {"c": source("SELECT ''::int2vector AS a, ''::oidvector AS b, ARRAY[''::oidvector] AS c")}
    query = "SELECT a::text, b::text, c::text, pg_typeof(b)::text FROM c"
    assert rows(query, sets) == [["", "", '{""}', "oidvector"]]


def test_types_that_postgresql_does_not_read_become_text(source: Database) -> None:
    source.execute(
        "CREATE TABLE t (id int CHECK (id > 0), b int); INSERT INTO t VALUES (1, 1), (2, 2), (3, 3);"
        "CREATE STATISTICS s (ndistinct, dependencies, mcv) ON id, b FROM t; ANALYZE t"
    )
    tree = Remote("source", "SELECT conbin AS tree FROM pg_constraint WHERE conrelid = 't'::regclass")
    source.admin(
        "CREATE VIEW d AS SELECT stxdndistinct AS n, stxddependencies AS d, stxdmcv AS m"
        " FROM pg_statistic_ext_data; GRANT SELECT ON d TO PUBLIC"
    )
    sets = {"tree": tree, "data": Remote("source", "TABLE d")}
    query = "SELECT x.*, pg_typeof(tree)::text FROM tree, data,"
    query += " LATERAL (VALUES (pg_typeof(n)::text, pg_typeof(d)::text, pg_typeof(m)::text, n <> '')) AS x"
    assert rows(query, sets) == [["text", "text", "text", True, "text"]]


def test_a_domain_over_another_base_type_is_not_sent_in_binary(source: Database, warehouse: Database) -> None:
    source.execute("CREATE DOMAIN number AS int")
    warehouse.execute("CREATE DOMAIN number AS bigint")
    sets = {"c": Remote("source", "SELECT ARRAY[7]::number[] AS a")}
    assert rows("SELECT a[1] + 1, pg_typeof(a)::text FROM c", sets) == [[8, "number[]"]]


def test_a_value_that_homes_type_refuses_is_homes_error(source: Database, warehouse: Database) -> None:
    source.execute("CREATE TYPE mood AS ENUM ('sad', 'secret')")
    warehouse.execute("CREATE TYPE mood AS ENUM ('sad')")
    with pytest.raises(RemoteError, match=r"(?s)'warehouse'.*invalid input value.*COPY c, line 1") as caught:
        run("SELECT 1", {"c": Remote("source", "SELECT 'secret'::mood AS a")})
    assert "secret" not in str(caught.value)


def test_what_shapes_text_is_pinned_for_the_load_only(source: Database, warehouse: Database) -> None:
    source.execute("CREATE TYPE mood AS ENUM ('ok')")  # so it travels as text
    source.admin(f"ALTER DATABASE \"{source.name}\" SET datestyle = 'SQL, DMY'")
    warehouse.admin(f"ALTER DATABASE \"{warehouse.name}\" SET datestyle = 'SQL, MDY'")
    sets = {"c": Remote("source", "SELECT '2026-02-01'::date AS day, 'ok'::mood AS mood")}
    query = "SELECT day = '2026-02-01'::date, day::text, current_setting('datestyle') FROM c"
    run(f"CREATE TABLE seen AS {query}", sets)
    assert warehouse.rows("TABLE seen") == [(True, "02/01/2026", "SQL, MDY")]
    # Delivered, they are written as by all that delivers rows.
    assert rows(query, sets) == [[True, "2026-02-01", "ISO, MDY"]]
    german = {"DateStyle": "German"}
    assert rows(query, sets, session_settings=german) == [[True, "01.02.2026", "German, DMY"]]


# -- indexes, statistics, settings


ABOUT = """
SELECT reltuples::int, (SELECT array_agg(pg_get_indexdef(i.indexrelid, k, true) ORDER BY i.indexrelid, k)
                          FROM pg_index i, generate_series(1, indnatts) k WHERE indrelid = c.oid)
  FROM pg_class c WHERE oid = 'c'::regclass
"""


def test_indexes_and_statistics_are_there() -> None:
    sets = {"c": source(SERIES, indexes=["name", ["id", "name"]])}
    assert rows(ABOUT, sets) == [[5, ["name", "id", "name"]]]
    assert rows(ABOUT, {"c": source(SERIES)}, analyze=False)[0] in ([-1, None], [0, None])


SETTINGS = """SELECT name, setting FROM pg_settings
 WHERE name IN ('statement_timeout', 'work_mem', 'transaction_isolation', 'transaction_read_only')
 ORDER BY name"""


def test_settings_and_limits_reach_home_and_remote() -> None:
    found = rows(
        f"TABLE c; TABLE c UNION ALL ({SETTINGS})",
        {"c": source(SETTINGS)},
        execution_timeout=timedelta(minutes=1),
        session_settings={"work_mem": "7MB"},
    )
    limits = [
        ["statement_timeout", "62000"],
        ["transaction_isolation"],
        ["transaction_read_only"],
        ["work_mem", "7168"],
    ]
    limits[1:3] = [["transaction_isolation", "repeatable read"], ["transaction_read_only", "on"]]
    assert found[:4] == limits
    limits[1:3] = [["transaction_isolation", "read committed"], ["transaction_read_only", "off"]]
    assert found[4:] == limits


def test_a_remotes_function_that_writes_is_refused(source: Database) -> None:
    source.execute(
        "CREATE TABLE t (a int); CREATE FUNCTION f() RETURNS int LANGUAGE sql AS"
        " 'INSERT INTO t VALUES (1) RETURNING a'"
    )
    with pytest.raises(RemoteError, match="read-only transaction"):
        run("SELECT 1", {"c": Remote("source", "SELECT f() AS a")})
    assert source.rows("TABLE t") == []


# -- fetching


def test_remotes_work_at_the_same_time(source: Database, third: Database, warehouse: Database) -> None:
    """Each waits at its gate, which opens when all do."""
    databases = {"source": source, "third": third, "warehouse": warehouse}
    sets = {conn_id: Remote(conn_id, f"SELECT {GATE}::text AS x") for conn_id in databases}
    with ExitStack() as stack:
        gates = [stack.enter_context(closed_gate(database)) for database in databases.values()]

        def open_all() -> None:
            for gate in gates:
                gate()

        stack.enter_context(meanwhile(open_all, lambda: all(map(waiting_at_gate, databases.values()))))
        rows("SELECT 1", sets)


def test_sets_of_one_connection_share_a_session_and_a_snapshot(source: Database) -> None:
    """What is committed between the two reads is in neither."""
    source.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    query = (
        "SELECT pg_backend_pid() AS pid, pg_current_snapshot()::text AS seen, (SELECT count(*) FROM t) AS n"
    )
    sets = {name: Remote("source", query) for name in ("a", "b", "c")}
    union = "TABLE a UNION TABLE b UNION TABLE c"
    assert rows(f"SELECT count(*) FROM ({union}) AS q", sets) == [[1]]


def test_what_was_read_from_home_itself_is_not_locked(warehouse: Database) -> None:
    warehouse.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    sets = {"c": Remote("warehouse", "TABLE t")}
    run("TRUNCATE t; INSERT INTO t SELECT a + 1 FROM c", sets, statement_timeout=timedelta(seconds=5))
    assert warehouse.rows("TABLE t") == [(2,)]


def _small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make chunks and turns small; return a list of the sets that get a turn, in order."""
    for name, size in {"_CHUNK": 300, "_AHEAD": 2000, "_WORTHWHILE": 1000, "_TURN": 3000}.items():
        monkeypatch.setattr(gather, name, size)
    turns: list[str] = []
    copy = gather._Gathering._copy

    def counted(self: Any, arriving: Any, action: str) -> Any:
        turns.append(arriving.load.name)
        return copy(self, arriving, action)

    monkeypatch.setattr(gather._Gathering, "_copy", counted)
    return turns


# The last column of each row ends in the bytes of a trailer.
BIG = "SELECT g AS id, repeat('x', g % 50) AS filler, %s AS mood, -1 AS last FROM generate_series(1, 5000) g"


@pytest.mark.parametrize("form", ["text", "binary"])
def test_streams_are_loaded_by_turns(
    source: Database, warehouse: Database, third: Database, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    mood = "'ok'::text"
    if form == "text":
        mood = "'ok'::mood"
        for database in (source, warehouse, third):
            database.execute("CREATE TYPE mood AS ENUM ('ok')")
    turns = _small(monkeypatch)
    query = BIG.replace("%s", mood)
    sets = {
        "a": Remote("source", query),
        "b": Remote("third", query),
        "c": Remote("warehouse", query),
        "d": Remote("source", "SELECT 1 AS id WHERE false"),
        "e": Remote("source", query),
    }
    difference = (
        f"SELECT * FROM (TABLE {{0}} EXCEPT ALL ({query})) q UNION ALL (({query}) EXCEPT ALL TABLE {{0}})"
    )
    result = run(" UNION ALL ".join(f"({difference.format(name)})" for name in "abce"), sets, max_xcom_rows=9)
    assert result["data"] == []
    assert result["sets"] == {"a": 5000, "b": 5000, "c": 5000, "d": 0, "e": 5000}
    assert "d" not in turns  # there was nothing to load
    # The last set is alone, and is loaded by one COPY.
    assert sum(turns.count(name) > 3 for name in "abc") >= 2


def test_a_remote_that_is_alone_is_loaded_by_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = _small(monkeypatch)
    assert run("SELECT 1", {"c": source(BIG.replace("%s", "1"))})["sets"] == {"c": 5000}
    assert turns == ["c"]


def test_a_slow_remote_does_not_hold_up_the_others(
    source: Database, third: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one has sent some rows and then takes its time, the other, which begins only now, is loaded."""
    turns = _small(monkeypatch)
    taken: dict[str, gather.Load] = {}
    take = gather._Arriving.take

    def noted(self: Any) -> Any:
        taken[self.load.name] = self.load
        return take(self)

    monkeypatch.setattr(gather._Arriving, "take", noted)
    slow = f"SELECT g, repeat('x', 400) AS x FROM generate_series(1, 40) g UNION ALL SELECT 0, {GATE}::text"
    quick = f"{BIG.replace('%s', '1')}, (SELECT {GATE}) AS gate"
    sets = {"slow": Remote("source", slow), "quick": Remote("third", quick)}
    with (
        closed_gate(source) as end_slow,
        closed_gate(third) as begin_quick,
        meanwhile(begin_quick, lambda: "slow" in taken),
        meanwhile(end_slow, lambda: "quick" in taken and taken["quick"].rows == 5000),
    ):
        run("SELECT 1", sets, statement_timeout=timedelta(seconds=60))
    assert turns[-1] == "slow"
    assert "quick" in turns[:-1]


def test_empty_wide_and_many(third: Database) -> None:
    wide = "SELECT g AS id, repeat('x', 10000000 + g) AS filler FROM generate_series(1, 3) AS g"
    sets = {
        "empty": source("SELECT 1 AS a WHERE false"),
        "empty_text": source("SELECT ROW(1) AS a WHERE false"),
        "wide": source(wide),
        "wide_too": Remote("third", wide),
        **{f"s{n}": Remote(("source", "third")[n % 2], f"SELECT {n} AS a") for n in range(20)},
    }
    total = " UNION ALL ".join(f"TABLE s{n}" for n in range(20))
    result = run(
        f"SELECT (SELECT sum(a) FROM ({total}) q), (SELECT sum(length(filler)) FROM wide),"
        " (SELECT sum(length(filler)) FROM wide_too)",
        sets,
        max_xcom_rows=1,
    )
    assert result["data"] == [[190, 30_000_006, 30_000_006]]
    assert result["sets"] == {"empty": 0, "empty_text": 0, "wide": 3, "wide_too": 3} | {
        f"s{n}": 1 for n in range(20)
    }


@pytest.mark.parametrize("which", ["source", "warehouse"])
def test_through_a_transaction_pooler(
    which: str, source: Database, warehouse: Database, add_connection: AddConnection
) -> None:
    database = source if which == "source" else warehouse
    with pooler(database.server, "transaction") as port:
        extra = {"pooling_mode": "transaction"}
        add_connection(which, database, conn_type="dblink", host="127.0.0.1", port=port, extra=extra)
        sets = {"c": Remote("source", SERIES, indexes=["id"]), "d": Remote("source", SERIES)}
        assert rows("SELECT count(*) FROM c JOIN d USING (id, name)", sets) == [[5]]
        assert rows("SELECT to_regclass('c') IS NULL") == [[True]]


def test_csv_is_of_homes_session(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    run(
        "SELECT * FROM c ORDER BY id DESC",
        {"c": source(SERIES)},
        path=path.as_uri(),
        csv_options={"delimiter": ";"},
    )
    with path.open() as file:
        lines = list(csv.reader(file, delimiter=";"))
    assert lines[:2] == [["id", "name"], ["5", "name 5"]]


def test_remotes_are_read_without_a_server() -> None:
    with pytest.raises(UsageError, match="unknown 'x'; a remote set has conn_id, sql, parameters, indexes"):
        Remote.of("c", {"conn_id": "a", "sql": "SELECT 1", "x": 1})
