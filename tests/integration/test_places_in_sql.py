"""A syntax error says its line and column in the SQL as its author wrote it: of all that take SQL."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from datetime import timedelta
from tempfile import gettempdir
from typing import Any, cast

import pytest
from airflow.sdk import BaseOperator, Context
from airflow.sdk.execution_time.context import set_current_context
from psycopg import sql

from airflow_dblink.core.errors import DblinkError
from airflow_dblink.core.link.registry import Links
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.fetch import DblinkFetchOperator
from airflow_dblink.operators.jobs import DblinkJobOperator, DblinkSendQueryOperator
from airflow_dblink.operators.query import DblinkQueryOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator
from tests.databases import Database
from tests.hostile_server import hostile_server
from tests.integration.tasks import context
from tests.syncs import sync_operator

FILE = f"file://{gettempdir()}/none.csv"
SECRET = "'); ein Geheimnis, zwei\nZeilen lang %s"
PATIENT = timedelta(minutes=1)
Make = Callable[..., BaseOperator]


def _made(kind: Any, argument: str, **more: Any) -> Make:
    def make(text: str, parameters: Any = None, **arguments: Any) -> BaseOperator:
        name = {"sql": "parameters", "source_sql": "source_parameters", "where": "where_parameters"}
        given = {} if parameters is None else {name[argument]: parameters}
        operator: BaseOperator = kind(**{"task_id": "task", **more, argument: text, **given, **arguments})
        return operator

    return make


def _query_remote(text: str, parameters: Any = None) -> BaseOperator:
    remote = {"conn_id": "source", "sql": text, "parameters": parameters}
    return DblinkQueryOperator(task_id="task", conn_id="warehouse", sql="SELECT 1", remotes={"towns": remote})


def _sync(**arguments: Any) -> BaseOperator:
    arguments.pop("task_id")
    return sync_operator(**arguments)


HOME: dict[str, Any] = {"conn_id": "warehouse"}
ACROSS: dict[str, Any] = {"source_conn_id": "source", "destination_conn_id": "warehouse"}
TABLE: dict[str, Any] = {**ACROSS, "source_table": "item", "destination_table": "item"}

#: Operators by their arguments, and the arguments' names in errors.
SCRIPTS: dict[str, tuple[Make, str]] = {
    "exec": (_made(DblinkExecOperator, "sql", **HOME), ""),
    "exec outside of a transaction": (_made(DblinkExecOperator, "sql", **HOME, transaction=False), ""),
    "exec as a job": (_made(DblinkExecOperator, "sql", **HOME, deferrable=True, grace_period=PATIENT), ""),
    "send": (_made(DblinkSendQueryOperator, "sql", **HOME), ""),
    "job": (_made(DblinkJobOperator, "sql", **HOME, deferrable=False), ""),
    "query": (_made(DblinkQueryOperator, "sql", **HOME), " of sql"),
}
QUERIES: dict[str, tuple[Make, str]] = {
    **SCRIPTS,
    "job with rows": (_made(DblinkJobOperator, "sql", **HOME, max_xcom_rows=1, deferrable=False), ""),
    "query with rows": (_made(DblinkQueryOperator, "sql", **HOME, max_xcom_rows=1), " of sql"),
    "fetch": (_made(DblinkFetchOperator, "sql", **HOME, max_xcom_rows=1), ""),
    "fetch to a file": (
        _made(DblinkFetchOperator, "sql", **HOME, path=f"file://{gettempdir()}/none.csv"),
        "",
    ),
    "remote set": (_query_remote, ""),
    "transfer": (
        _made(DblinkTransferOperator, "source_sql", **ACROSS, destination_table="item"),
        " of source_sql",
    ),
    "sync": (_made(_sync, "source_sql"), " of source_sql"),
}


@pytest.fixture(autouse=True)
def _tables(source: Database, warehouse: Database) -> None:
    for database in (source, warehouse):
        database.execute("CREATE TABLE item (id int PRIMARY KEY, name text)")
    source.execute("INSERT INTO item VALUES (1, 'one')")


def _said(operator: BaseOperator) -> str:
    """Execute the operator, which fails, as a task's only try; return the error's text in the task's log."""
    task = context()
    with set_current_context(cast("Context", task)), pytest.raises(Exception, match="SQLSTATE") as caught:
        operator.execute(task)
    return str(caught.value)


def _lines(said: str) -> tuple[str, str]:
    """Return the quoted line, with its number before it, and the character above the caret."""
    found = said.splitlines()
    at = next(i for i, line in enumerate(found) if line.startswith("LINE "))
    return found[at], found[at][found[at + 1].index("^") :]


def _cases(of: dict[str, tuple[Make, str]]) -> list[Any]:
    return [pytest.param(make, name, id=key) for key, (make, name) in of.items()]


@pytest.mark.parametrize(("make", "name"), _cases(QUERIES))
def test_line_column_and_caret(make: Make, name: str) -> None:
    said = _said(make("-- Items\nSELECT id,\n  name\nFROM item WERE id = 1 -- all\n"))

    assert 'syntax error at or near "id" [SQLSTATE 42601]' in said
    assert _lines(said) == (f"LINE 4{name}, column 16: FROM item WERE id = 1 -- all", "id = 1 -- all")


@pytest.mark.parametrize(("make", "name"), _cases(QUERIES))
@pytest.mark.parametrize(
    ("parameters", "placeholder"),
    [
        ([SECRET, [1, 2], None, 7.5], ["%s"] * 4),
        ({"a": SECRET, "b": [1, 2]}, ["%(a)s", "%(b)s", "%(a)s", "%(b)s"]),
    ],
    ids=["list", "dict"],
)
def test_parameters_stay_placeholders(make: Make, name: str, parameters: Any, placeholder: list[str]) -> None:
    a, b, c, d = placeholder
    line = f"SELECT '100 %%', {a}::text, {b}::int[], {c} FORM item WHERE {d} IS NULL"
    said = _said(make(f"/* Items, 100 %% of\nthem */ {line} -- 100 %%\n;", parameters))

    assert _lines(said)[0].startswith(
        f"LINE 2{name}, column {line.index('item') + 9}: them */ SELECT '100 %%', {a}"
    )
    assert _lines(said)[1].startswith("item WHERE")
    assert "Geheimnis" not in said
    assert "7.5" not in said


@pytest.mark.parametrize(("make", "name"), _cases(QUERIES))
def test_a_text_that_ends_too_early(make: Make, name: str) -> None:
    """What the server stumbles over there is ours, and isn't shown."""
    said = _said(make("SELECT id FROM item\nWHERE id ="))

    assert "syntax error at end of input [SQLSTATE 42601]" in said
    assert _lines(said) == (f"LINE 2{name}, column 11: WHERE id =", "")


@pytest.mark.parametrize(("make", "name"), _cases(QUERIES))
def test_a_parenthesis_that_is_not_closed(make: Make, name: str) -> None:
    """It is closed by one of ours, and the server stumbles over what follows that."""
    said = _said(make("SELECT id FROM item\nWHERE id IN (1"))

    assert "syntax error at end of input [SQLSTATE 42601]" in said
    assert _lines(said) == (f"LINE 2{name}, column 15: WHERE id IN (1", "")


@pytest.mark.parametrize(("make", "name"), _cases({key: SCRIPTS[key] for key in ("exec", "query")}))
def test_a_comment_that_does_not_end(make: Make, name: str) -> None:
    said = _said(make("SELECT id FROM item\n  /* all of them"))

    assert "unterminated /* comment" in said
    assert "COMMIT" not in said
    assert "STDOUT" not in said
    assert _lines(said) == (f"LINE 2{name}, column 3:   /* all of them", "/* all of them")


@pytest.mark.parametrize(("make", "name"), _cases(SCRIPTS))
def test_a_later_statement_of_a_script(make: Make, name: str) -> None:
    said = _said(make("CREATE TABLE made (a int);\n\nGRANT %s,,", [SECRET]))

    assert _lines(said) == (f"LINE 3{name}, column 7: GRANT %s,,", "%s,,")


@pytest.mark.parametrize("argument", ["pre_sql", "post_sql"])
def test_scripts_of_a_transfer(argument: str) -> None:
    said = _said(_made(DblinkTransferOperator, argument, **TABLE)("SELECT 1;\nDELETE item"))

    assert _lines(said) == (f"LINE 2 of {argument}, column 8: DELETE item", "item")


def test_the_condition_of_a_sync() -> None:
    said = _said(_made(_sync, "where")("id > %s\n  AND name LIK %s", [1, SECRET]))

    assert _lines(said) == ("LINE 2 of where, column 12:   AND name LIK %s", "LIK %s")
    assert "Geheimnis" not in said


def test_a_name_that_is_not_there_and_texts_that_may_be_a_rows() -> None:
    """A text that builders or dry runs make of rows can have any error except a syntax error."""
    said = _said(_made(DblinkExecOperator, "sql", **HOME)("INSERT INTO item VALUES (5, 'Geheimnis', nme)"))

    assert _lines(said) == ("LINE 1, column 42: INSERT INTO item VALUES (5, '...', nme)", "nme)")
    said = _said(_made(DblinkExecOperator, "sql", **HOME)("INSERT INTO item VALUES ('Geheimnis', 'x')"))
    assert _lines(said) == ("LINE 1, column 26: INSERT INTO item VALUES ('...', '...')", "'...', '...')")


def test_a_password_is_not_shown() -> None:
    said = _said(
        _made(DblinkExecOperator, "sql", **HOME)("ALTER ROLE x WITH PASSWORD\n'Geheimnis' VALD UNTIL 'now'")
    )
    assert "Geheimnis" not in said
    said = _said(_made(DblinkExecOperator, "sql", **HOME)("SELECT 'host=a password=Geheimnis' AS AS AS"))
    assert "Geheimnis" not in said
    assert "LINE 1, column " in said


def test_a_long_line_is_cut_around_the_error() -> None:
    many = ", ".join(f"{i} AS col_{i}" for i in range(200))
    said = _said(_made(DblinkExecOperator, "sql", **HOME)(f"SELECT {many} FORM item, {many}"))

    line, pointed = _lines(said)
    assert len(line) < 160
    assert pointed.startswith("FORM item, 0 AS col_0")
    assert line.endswith("...")


def test_a_line_longer_than_what_is_masked_in_one_go() -> None:
    many = "x, " * 10_000
    said = _said(
        _made(DblinkExecOperator, "sql", **HOME)(f"SELECT {many}'password=Geheimnis', y FORM item, {many}")
    )

    line, pointed = _lines(said)
    assert line.startswith(f"LINE 1, column {len(many) + 37}: ...")
    assert pointed.startswith("item, x, ")
    assert "Geheimnis" not in said


def test_texts_in_dollar_quotes_are_texts() -> None:
    run = _made(DblinkExecOperator, "sql", **HOME)
    insert = "INSERT INTO item VALUES (5, {}, nme)"
    for text in ("$$Geheimnis$$", "$a$Geheimnis$a$"):
        assert "Geheimnis" not in _said(run(f"ALTER ROLE x WITH PASSWORD {text} VALD UNTIL 'now'"))
        said = _said(run(insert.format(text)))
        assert "Geheimnis" not in said
        assert "nme)" in said
    said = _said(run("DO $$ BEGIN PERFORM 1 FORM x; END $$"))
    assert "FORM x" in said, "the body of a block is no value"


def test_a_backslash_may_be_an_escape() -> None:
    with DblinkHook(dblink_conn_id="source") as hook:
        hook.exec("SET standard_conforming_strings = off")
        error = _caught(lambda: hook.exec(r"INSERT INTO item VALUES (5, 'O\'Brien Geheimnis', nme)"))
    assert error.place is not None
    assert "Geheimnis" not in error.place
    assert "nme)" in error.place


@pytest.mark.parametrize("position", [b"abc", b"9" * 5000, b"-1", b"0", "\u0664".encode()])
def test_a_position_that_is_none(links: Links, position: bytes) -> None:
    def answer(client: socket.socket, query: bytes) -> None:
        fields = b"SERROR\0VERROR\0C42601\0Msyntax error\0P" + position + b"\0\0"
        client.sendall(
            b"E" + struct.pack(">i", len(fields) + 4) + fields + b"Z" + struct.pack(">i", 5) + b"I"
        )

    with hostile_server(answer) as server:
        links.connect("x", server.target())
        error = _caught(lambda: links.get("x").exec("SELECT 1"))
        links.close_all()
    assert (error.sqlstate, error.place) == ("42601", None)


def test_wide_characters_before_the_caret() -> None:
    said = _said(_made(DblinkExecOperator, "sql", **HOME)("SELECT '\u9577\u3044', '\u00e9' FORM item"))

    line, caret = said.splitlines()[1:3]
    assert line == "LINE 1, column 23: SELECT '\u9577\u3044', '\u00e9' FORM item"
    assert caret.index("^") == line.index("item") + 2  # each of the two takes two columns in a terminal


# -- the hook


def _caught(call: Callable[[], object]) -> DblinkError:
    with pytest.raises(DblinkError) as caught:
        call()
    return caught.value


def test_calls_of_a_hook() -> None:
    with DblinkHook(dblink_conn_id="source") as hook:
        wrong = "SELECT %s\nFORM item x y"
        calls: dict[str, Callable[[], object]] = {
            "query": lambda: hook.query(wrong, params=[SECRET]),
            "exec": lambda: hook.exec(wrong, params=[SECRET]),
            "open": lambda: hook.open("c", wrong, params=[SECRET]),
            "batches": lambda: list(hook.batches(wrong, params=[SECRET])),
        }
        for name, call in calls.items():
            error = _caught(call)
            assert error.place == f"LINE 2, column 6: FORM item x y\n{' ' * 23}^", name
            assert "syntax error" in hook.error_message(), name
            if name == "open":
                hook.exec("ROLLBACK")
                assert hook.error_message() == "OK"


def test_the_text_that_was_sent_and_none_that_could_not_be(links: Links, source: Database) -> None:
    links.connect("x", source.target)
    link = links.get("x")
    link.pending.send("SELECT 1 FORM item")
    assert _caught(lambda: link.query("SELECT 2\n\n\nFORM item")).place is None  # it wasn't sent
    assert _caught(link.pending.result).place == "LINE 1, column 15: SELECT 1 FORM item\n" + " " * 33 + "^"
    assert link.pending.result() == []

    composed = sql.SQL("SELECT {} FORM item").format(sql.Literal(SECRET))
    assert _caught(lambda: link.query(composed)).place is None  # nothing of it is known to be a user's text
    assert _caught(lambda: link.query("DO $$ BEGIN PERFORM 1 FORM x; END $$")).place is not None
    assert _caught(lambda: link.query("DO $$ BEGIN EXECUTE 'SELEC 1'; END $$")).place is None


def test_a_server_that_counts_bytes(source: Database, links: Links) -> None:
    name = f"{source.name}_ascii"
    source.admin(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    try:
        target = source.target
        links.connect("x", type(target)(target.conn_id, {**target.params, "dbname": name}))
        error = _caught(lambda: links.get("x").query("SELECT '\u00e4\u00f6\u00fc' FORM item x"))
        assert error.place == "LINE 1, column 19: SELECT '\u00e4\u00f6\u00fc' FORM item x\n" + " " * 37 + "^"
    finally:
        links.close_all()
        source.admin(f"DROP DATABASE {name}")
