"""Much of everything, and statements that are odd or can't be jobs."""

from __future__ import annotations

import time

import pytest

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.jobs.job import Job
from tests.databases import Database
from tests.integration.jobs.client import EFFECT, GATE, SLEEP, Client, effects, gated, held, until
from tests.stores import MemoryStore

FLOOD = """
DO $$
BEGIN
    FOR i IN 1..20000 LOOP
        RAISE {} 'number %, and it is a long one: {}', i;
    END LOOP;
END $$
"""
WARNINGS = FLOOD.format("WARNING", 100 * "x")


def _rows(client: Client, job: Job) -> list[tuple[object, ...]]:
    return client.kept(job)


# -- messages


def test_a_flood_of_warnings_with_nobody_there(client: Client, source: Database) -> None:
    with held(source):
        job_id = client.send(f"{GATE}; {WARNINGS}; {EFFECT}")

    assert client.wait(job_id).state == "succeeded"
    assert effects(source) == 1


def test_a_flood_of_warnings_with_the_client_waiting(client: Client, source: Database) -> None:
    sent = client.submit(f"{WARNINGS}; {EFFECT}")
    assert sent.call is not None

    assert sent.call.wait(30)

    sent.call.leave()
    assert client.jobs.get(sent.job_id).state == "succeeded"
    assert effects(source) == 1


def test_a_flood_of_warnings_with_a_client_that_does_not_read(client: Client, source: Database) -> None:
    sent = client.submit(f"{WARNINGS}; {EFFECT}")
    assert sent.call is not None

    assert client.wait(sent.job_id).state == "succeeded"

    sent.call.leave()
    assert effects(source) == 1


def test_messages_of_level_info_cannot_be_held_back_and_cost_the_job(
    client: Client, source: Database
) -> None:
    """PostgreSQL sends them whatever client_min_messages is, and ends a session whose client is gone."""
    with held(source):
        job_id = client.send(f"{EFFECT}; {GATE}; {FLOOD.format('INFO', '')}")

    job = client.wait(job_id)

    assert job.state == "lost"
    error = job.error("source")
    assert error is not None
    assert "RAISE INFO" in str(error.hint)
    assert effects(source) == 0


# -- rows


def _peak_kb(source: Database, pid: int | None) -> int:
    """Return the private memory at its peak, of a backend on this machine."""
    with open(f"/proc/{pid}/status") as status:
        facts = dict(line.split(":", 1) for line in status)
    return int(facts["VmHWM"].split()[0]) - int(facts["RssShmem"].split()[0])


def test_a_million_rows_that_nobody_keeps_cost_no_memory(client: Client, source: Database) -> None:
    query = "SELECT repeat('x', 200), i FROM generate_series(1, {}) AS i"
    connection = client.open()

    def peak_of(rows: int) -> int:
        job_id = client.insert(query.format(rows))
        connection.execute(client.call_text(job_id).encode())
        job = client.jobs.get(job_id)
        assert (job.state, job.command_tag) == ("succeeded", f"SELECT {rows}")
        return _peak_kb(source, job.pid)

    small = peak_of(1000)
    assert peak_of(1_000_000) - small < 20_000  # of more than 200 MB


def test_a_kept_result_has_all_rows_in_their_order(client: Client) -> None:
    job = client.run(
        "SELECT i, repeat('x', 50) AS x FROM generate_series(1, 200000) AS i ORDER BY i DESC",
        keep_result=True,
    )

    assert job.command_tag == "SELECT 200000"
    assert job.result_table is not None
    client.jobs.connection.execute("SET synchronize_seqscans = off")
    assert [row[0] for row in _rows(client, job)] == list(range(200_000, 0, -1))


def test_a_kept_result_survives_the_job_and_is_dropped_once(client: Client, source: Database) -> None:
    job = client.run("VALUES (1), (2)", keep_result=True)
    assert _rows(client, job) == [(1,), (2,)]

    client.jobs.drop_result(job)
    client.jobs.drop_result(job)

    assert client.jobs.get(job.id).result_table is None
    assert source.rows("SELECT count(*) FROM pg_tables WHERE schemaname = 'airflow_dblink'") == [(1,)]


@pytest.mark.parametrize(
    "query",
    [
        "WITH gone AS (DELETE FROM t RETURNING a) SELECT a FROM gone",
        "TABLE t",
        "SELECT a FROM t; -- and no more",
        "SELECT a FROM t -- and no more",
        "/* first */ SELECT a FROM t ;;",
        "(SELECT a FROM t WHERE a = 1) UNION ALL (SELECT a FROM t WHERE a = 2)",
        "SELECT a FROM t ORDER BY a LIMIT 2",
    ],
)
def test_queries_whose_rows_are_kept(client: Client, query: str) -> None:
    client.jobs.connection.execute("CREATE TABLE t AS VALUES (1), (2)")
    client.jobs.connection.execute("ALTER TABLE t RENAME column1 TO a")

    job = client.run(query, keep_result=True)

    assert (job.state, job.row_count) == ("succeeded", 2), job.message
    assert sorted(_rows(client, job)) == [(1,), (2,)]


# -- refused before anything is sent


def _refused(
    client: Client, kind: type[Exception], match: str, sql: str, *args: object, **options: bool
) -> None:
    client.jobs.ready()
    store = MemoryStore()
    with pytest.raises(kind, match=match):
        client.send(sql, *args, store=store, **options)
    assert store.history == []
    assert client.jobs.newest() == []


@pytest.mark.parametrize(
    ("sql", "match"),
    [
        ("", "no statement"),
        (" ; -- nothing", "no statement"),
        ("VACUUM effect", "VACUUM .* cannot run inside a transaction"),
        ("SELECT 1; CREATE INDEX CONCURRENTLY i ON effect (a)", "CONCURRENTLY"),
        ("BEGIN; SELECT 1; COMMIT", "BEGIN"),
        ("SELECT 1; ROLLBACK", "ROLLBACK"),
        ("COPY effect FROM STDIN", "COPY with the client"),
        ("COPY effect TO STDOUT", "COPY with the client"),
        ("SELECT 'a\0b'", "NUL"),
        ("SELECT '\ud800'", "U\\+D800"),
    ],
)
def test_statements_that_cannot_be_jobs(client: Client, sql: str, match: str) -> None:
    _refused(client, UsageError, match, sql)


@pytest.mark.parametrize("params", [["a\0b"], ["\ud800"], [], ["a", "b"], {"a": "b"}, "a", [object()]])
def test_parameters_that_do_not_fit(client: Client, params: object) -> None:
    _refused(client, UsageError, "param", "SELECT %s", params)


@pytest.mark.parametrize(
    ("sql", "match"),
    [
        ("SELECT 1 AS a, 2 AS a", "more than one column named 'a'"),
        ("SELECT 1, 2", "column named '.column.'"),
        ("SHOW work_mem", "got SHOW"),
        ("INSERT INTO effect VALUES (1) RETURNING a", "got INSERT"),
        ("SELECT 1 AS a; SELECT 2 AS b", "got 2 statements"),
        ("SELECT 1 AS a INTO x", "only the rows of one query"),
        (EFFECT, "got INSERT"),
    ],
)
def test_what_is_no_query_whose_rows_can_be_kept(client: Client, sql: str, match: str) -> None:
    _refused(client, UsageError, match, sql, keep_result=True)


@pytest.mark.parametrize(("sql", "sqlstate"), [("SELECT nope AS a", "42703"), ("SELECT FROM FROM", "42601")])
def test_a_query_that_the_server_cannot_read_is_not_sent_for_its_rows(
    client: Client, sql: str, sqlstate: str
) -> None:
    _refused(client, RemoteError, sqlstate, sql, keep_result=True)


# -- failed by the server


@pytest.mark.parametrize(
    ("sql", "sqlstate", "message"),
    [
        ("DO $$BEGIN EXECUTE 'SELCT 1'; END$$", "42601", 'syntax error at or near "SELCT"'),
        ("SELECT 1; DO $$BEGIN EXECUTE 'SELCT 1'; END$$", "42601", 'syntax error at or near "SELCT"'),
        ("DO $$BEGIN EXECUTE 'VACUUM effect'; END$$", "25001", "VACUUM cannot run inside a transaction"),
        ("SELECT vacuums()", "25001", "VACUUM cannot run inside a transaction"),
        ("SELECT 1 AS a INTO made", "0A000", "EXECUTE of SELECT ... INTO is not implemented"),
        ("COPY effect FROM '/nonexistent'", "42501", "COPY from a file"),
    ],
)
def test_what_the_server_says_is_kept(client: Client, sql: str, sqlstate: str, message: str) -> None:
    client.jobs.connection.execute(
        "CREATE FUNCTION vacuums() RETURNS void LANGUAGE plpgsql AS 'BEGIN VACUUM effect; END'"
    )

    job = client.run(sql)

    assert job.state == "failed"
    assert job.sqlstate == sqlstate
    assert message in (job.message or "")


# -- texts


@pytest.mark.parametrize("end", ["", ";", " ; ;", " -- done", "; -- done", " /* done */", "\n\n--"])
@pytest.mark.parametrize("sql", [EFFECT, "SELECT * FROM effect", "SELECT 1; " + EFFECT])
def test_ends_of_statements(client: Client, sql: str, end: str) -> None:
    assert client.run(sql + end).state == "succeeded"


@pytest.mark.parametrize(
    "value",
    [
        "100%",
        "%s %(a)s %%",
        'it\'s \\ "q" $$ $run$ :x ?',
        "Ünïcode ☃ 𝄞",
        "; COMMIT; --",
        "{schema} {0}",
        "\x01\x7f\r\n",
    ],
)
def test_odd_values(client: Client, value: str) -> None:
    literal = value.replace("'", "''")

    written = client.run(f"SELECT '{literal}'::text AS a", keep_result=True)
    bound = client.run("SELECT %s::text AS a", [value], keep_result=True)
    named = client.run("SELECT %(v)s::text AS a", {"v": value}, keep_result=True)

    assert [_rows(client, job) for job in (written, bound, named)] == 3 * [[(value,)]]
    assert client.jobs.statement(written.id) == f"SELECT '{literal}'::text AS a"


def test_five_megabytes_of_statement(client: Client) -> None:
    text = 5_000_000 * "x"

    done = client.run(f"SELECT length('{text}') AS a", keep_result=True)
    failed = client.run("SELECT length(%s) / 0", [text])

    assert _rows(client, done) == [(5_000_000,)]
    assert failed.sqlstate == "22012"
    assert "xxxx" not in str(failed)
    assert client.column(failed.id, "bound_statement") is None


def test_many_at_once(client: Client, source: Database) -> None:
    with held(source) as sql:
        job_ids = [client.send(sql) for _ in range(40)]
        until(lambda: gated(source) == 40)

    assert {client.wait(job_id).state for job_id in job_ids} == {"succeeded"}
    assert effects(source) == 40


def test_short_jobs_are_short(client: Client) -> None:
    client.jobs.ready()
    began = time.monotonic()
    for _ in range(20):
        client.wait(client.send("SELECT 1"), poll_s=60)

    assert time.monotonic() - began < 60  # which a single end costs that is not told


def test_a_client_that_leaves_does_not_cancel(client: Client, source: Database) -> None:
    with held(source) as sql:
        sent = client.submit(sql)
        assert sent.call is not None
        assert not sent.call.wait(0.2)
        sent.call.leave()

    assert client.wait(sent.job_id).state == "succeeded"
    assert effects(source) == 1
    assert client.jobs.cancel(client.send(SLEEP)).state == "cancelled"
