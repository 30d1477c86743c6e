"""The lexer: where statements begin, whatever quotes, comments and function bodies hold."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_dblink.core.sqltext.lexer import parts


def texts(script: str) -> list[str]:
    return [part.text for part in parts(script)]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", []),
        (" ;; \n; -- nothing\n /* ; */", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1; SELECT 2;", ["SELECT 1", "SELECT 2"]),
        ("SELECT 1 -- ; COMMIT", ["SELECT 1"]),
        ("SELECT 1 -- ; COMMIT\n; SELECT 2", ["SELECT 1", "SELECT 2"]),
        ("/* a /* b; */ c; */ SELECT 1", ["SELECT 1"]),
        ("SELECT 1 /* never ends; /* */ ; COMMIT", ["SELECT 1"]),
        ("SELECT 'it''s; '; SELECT 2", ["SELECT 'it''s; '", "SELECT 2"]),
        (r"SELECT '\'; SELECT 2", [r"SELECT '\'", "SELECT 2"]),
        (r"SELECT E'\'; x'; SELECT 2", [r"SELECT E'\'; x'", "SELECT 2"]),
        (r"SELECT e'a\\'; SELECT 2", [r"SELECT e'a\\'", "SELECT 2"]),
        ("SELECT B'01;', X'1F;', N'x;'; SELECT 2", ["SELECT B'01;', X'1F;', N'x;'", "SELECT 2"]),
        ('SELECT "a;""b"; SELECT 2', ['SELECT "a;""b"', "SELECT 2"]),
        ("""SELECT U&"d;", U&'x;'; SELECT 2""", ["""SELECT U&"d;", U&'x;'""", "SELECT 2"]),
        ("SELECT $$;$$; SELECT 2", ["SELECT $$;$$", "SELECT 2"]),
        ("SELECT $a$;$$;$b$;$a$; SELECT 2", ["SELECT $a$;$$;$b$;$a$", "SELECT 2"]),
        ("SELECT a$b$; SELECT 2", ["SELECT a$b$", "SELECT 2"]),  # a name, no dollar quote
        ("SELECT $1; SELECT 2", ["SELECT $1", "SELECT 2"]),
        ("SELECT 'never; ends", ["SELECT 'never; ends"]),
        ("SELECT 'ends in a backslash\\'; COMMIT", ["SELECT 'ends in a backslash\\'", "COMMIT"]),
    ],
)
def test_statements_are_found(script: str, expected: list[str]) -> None:
    assert texts(script) == expected


ATOMIC = """CREATE OR REPLACE FUNCTION f(n int) RETURNS int
BEGIN ATOMIC
  SELECT CASE WHEN n > 0 THEN 1 ELSE 2 END;
  SELECT CASE n WHEN 1 THEN CASE WHEN true THEN 3 END END;
END"""


def test_a_body_with_begin_atomic_is_one_statement() -> None:
    assert texts(f"{ATOMIC}; SELECT 2") == [ATOMIC, "SELECT 2"]
    assert [part.transaction_control for part in parts(f"{ATOMIC}; COMMIT")] == [None, "COMMIT"]


def test_case_outside_of_a_body_hides_nothing() -> None:
    assert texts("SELECT CASE WHEN a THEN b; COMMIT") == ["SELECT CASE WHEN a THEN b", "COMMIT"]


def test_columns_called_begin_and_atomic_hide_nothing() -> None:
    assert texts("CREATE TABLE function_t (begin int); COMMIT")[1] == "COMMIT"
    assert texts("SELECT 1 AS begin atomic; COMMIT")[1] == "COMMIT"
    script = "CREATE TABLE t (begin atomic); COMMIT"
    assert [part.transaction_control for part in parts(script)] == [None, "COMMIT"]


@pytest.mark.parametrize(
    ("statement", "command"),
    [
        ("begin", "BEGIN"),
        ("START /* x */ TRANSACTION", "START TRANSACTION"),
        ("commit and chain", "COMMIT"),
        ("END", "END"),
        ("rollback", "ROLLBACK"),
        ("ROLLBACK WORK", "ROLLBACK"),
        ("abort", "ABORT"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
        ("COMMIT PREPARED 'x'", "COMMIT"),
        ("ROLLBACK TO s", None),
        ("ROLLBACK TO SAVEPOINT s", None),
        ("ROLLBACK WORK TO SAVEPOINT s", None),
        ("SAVEPOINT s", None),
        ("RELEASE s", None),
        ("PREPARE p AS SELECT 1", None),
        ("SELECT 'COMMIT'", None),
    ],
)
def test_transaction_control(statement: str, command: str | None) -> None:
    assert [part.transaction_control for part in parts(statement)] == [command]


@pytest.mark.parametrize(
    ("statement", "with_client"),
    [
        ("COPY t FROM STDIN", True),
        ("copy (select 1) to stdout", True),
        ("COPY t (a, b) FROM /* x */ stdin (FORMAT csv)", True),
        ("COPY t FROM '/tmp/STDIN'", False),
        ("COPY t TO PROGRAM 'cat'", False),
        ("COPY \"STDIN\" FROM '/tmp/x'", False),
        ("SELECT 'COPY t FROM STDIN'", False),
    ],
)
def test_copy_with_the_client(statement: str, with_client: bool) -> None:
    assert [part.is_copy_with_client for part in parts(statement)] == [with_client]


@pytest.mark.parametrize(
    "statement",
    [
        "VACUUM FULL t",
        "create unique index concurrently i on t (a)",
        "REINDEX TABLE CONCURRENTLY t",
        "REINDEX (VERBOSE) INDEX CONCURRENTLY i",
        "REINDEX DATABASE d",
        "DROP INDEX CONCURRENTLY i",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY v",
        "ALTER SYSTEM SET work_mem = '1MB'",
        "CREATE DATABASE d",
    ],
)
def test_what_postgresql_refuses_in_a_transaction(statement: str) -> None:
    (part,) = parts(statement)
    refused = part.outside_transaction
    # REFRESH ... CONCURRENTLY does run in a transaction; the others don't.
    assert (refused is None) == statement.startswith("REFRESH")


def test_the_line_is_where_the_statement_begins() -> None:
    assert [part.line for part in parts("-- c\nSELECT\n1;\n\n/* x\n */ SELECT 2")] == [2, 6]


FREE = st.text(st.characters(codec="utf-8"), max_size=60)


@given(FREE)
def test_text_in_a_string_never_makes_a_statement(text: str) -> None:
    quoted = text.replace("'", "''")
    assert len(parts(f"SELECT '{quoted}'; SELECT 2")) == 2


@given(FREE)
def test_text_in_an_escape_string_never_makes_a_statement(text: str) -> None:
    quoted = text.replace("\\", "\\\\").replace("'", "''")
    assert len(parts(f"SELECT E'{quoted}'; SELECT 2")) == 2


@given(FREE)
def test_text_in_a_name_never_makes_a_statement(text: str) -> None:
    quoted = text.replace('"', '""')
    assert len(parts(f'SELECT "{quoted}"; SELECT 2')) == 2


@given(FREE)
def test_text_in_dollar_quotes_never_makes_a_statement(text: str) -> None:
    assert len(parts(f"SELECT $zZ${text.replace('$zZ$', '')}$zZ$; SELECT 2")) == 2


@given(FREE)
def test_text_in_a_comment_never_makes_a_statement(text: str) -> None:
    body = text.replace("/*", "").replace("*/", "").replace("*", "").replace("/", "")
    assert len(parts(f"SELECT 1 /* {body} */; SELECT 2")) == 2


@given(FREE)
def test_text_in_a_line_comment_never_makes_a_statement(text: str) -> None:
    body = text.replace("\r", "").replace("\n", "")
    assert len(parts(f"SELECT 1 -- {body}\n; SELECT 2")) == 2


@given(st.text(st.sampled_from("'\"$/*-;\\eEuU&a1 \n")))
def test_any_text_is_read_to_its_end(script: str) -> None:
    for part in parts(script):
        assert script[part.start : part.end] == part.text
        assert part.text.strip()


@pytest.mark.parametrize(
    "unit",
    ["SELECT 1;\n", "/* ", "' ", "$a$ ", "$a ", '"', "CASE ", "--\n", "e'\\", "a$", "/*/"],
)
def test_time_is_linear_in_the_size_of_the_script(unit: str) -> None:
    script = unit * (5_000_000 // len(unit) // 5)  # 1 MB

    def seconds(text: str) -> float:
        started = time.process_time()
        parts(text)
        return time.process_time() - started

    assert seconds(script) < 6


def test_five_megabytes_are_read_in_seconds() -> None:
    script = "INSERT INTO t VALUES (1, 'x;y', $$;$$); -- c\n" * (5_000_000 // 45)

    started = time.process_time()
    found = parts(script)

    assert len(found) == 5_000_000 // 45
    assert time.process_time() - started < 30


def test_semicolons_in_parentheses_end_nothing() -> None:
    rule = "CREATE RULE r AS ON INSERT TO a DO ALSO (INSERT INTO b VALUES (1); INSERT INTO c VALUES (2))"
    assert [part.text for part in parts(f"{rule}; SELECT 1")] == [rule, "SELECT 1"]


@pytest.mark.parametrize("gap", ["\n", " \n ", "\r\n\n"])
def test_an_escape_string_goes_on_after_a_line_break(gap: str) -> None:
    assert len(parts(rf"SELECT E'a'{gap}'b\'; COMMIT; --'")) == 1
    assert len(parts(rf"SELECT 'a'{gap}'b\'; COMMIT; --'")) == 2
    assert len(parts(r"SELECT E'a' 'b\'; COMMIT; --'")) == 2


def test_a_backslash_escapes_where_strings_do_not_conform() -> None:
    assert len(parts(r"SELECT 'a\'; COMMIT; --'", backslashes=True)) == 1
    assert len(parts(r"SELECT 'a\'; COMMIT; --'")) == 2
