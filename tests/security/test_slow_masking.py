"""A server's error, made so that masking it takes long, holds up the process that masks it (and the GIL)."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
import pytest

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.core.masking import MAX_TEXT_CHARS, without_credentials
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.server.unreachable import not_established
from airflow_dblink.hooks.dblink import DblinkHook

# Repeated texts: beginnings of a searched pattern that never end as the pattern does.
BEGINNINGS = (
    "://:",
    "://u:",
    "password ",
    "password=",
    "password='",
    "password 'a''",
    "password" + " " * 40,
    r"password='\'",
    '"',
    "„",
    "„1",
    '"$a',
    "«E'",
    "(",
    "()",
    "(a)=",
    "(a) = (",
    "COPY ",
    "JSON data, line 1 ",
    'SQL statement "',
    'SQL statement "\n',
    "\nDETAIL:  (",
    "jsonpath„",
    "\n",
    " ",
    "x",
)
SQLSTATES = ("P0001", "22P02", "23505", "42601", "44000")


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of *work*, the least of three."""

    def once() -> float:
        began = time.thread_time()
        work()
        return time.thread_time() - began

    return min(once() for _ in range(3))


def shown(text: str, sqlstate: str) -> str:
    return str(RemoteError(text, "c", sqlstate, text, text, text))


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_time_of_an_errors_text_grows_with_its_length_at_most(beginning: str) -> None:
    def work(chars: int) -> float:
        text = beginning * (chars // len(beginning))
        return seconds(lambda: [shown(text, state) for state in SQLSTATES])

    for few, many in ((1_600, 16_000), (10_000, 100_000), (100_000, 1_000_000)):
        # Ten times the length: ten times the time, a hundred times if it were quadratic.
        assert work(many) < 40 * max(work(few), 0.0005), (few, many)


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_text_of_an_error_is_bounded(beginning: str) -> None:
    for sqlstate in SQLSTATES:
        assert len(shown(beginning * 100_000, sqlstate)) < 5 * MAX_TEXT_CHARS
    assert len(without_credentials(beginning * 100_000)) < 2 * MAX_TEXT_CHARS


@pytest.mark.parametrize("filler", ["x", "x ", "://:"])
def test_a_text_that_is_cut_says_so_once(filler: str) -> None:
    text = filler * (100_000 // len(filler))

    message = str(RemoteError(without_credentials(text), "c", "P0001"))

    assert message.count(f"... ({100_000 - MAX_TEXT_CHARS} more characters left out)") == 1


@pytest.mark.parametrize("before", [MAX_TEXT_CHARS - n for n in (3, 12, 20, 30, 40)])
@pytest.mark.parametrize(
    "secret",
    [
        "postgresql://user:geheim@host/db",
        "postgresql://user:gehe@geheim@host/db",
        "password=geheim",
        "password='ge heim geheim'",
        "PASSWORD 'ge heim geheim'",
    ],
)
def test_a_secret_at_the_cut_is_not_shown(before: int, secret: str) -> None:
    text = "x" * (before - 1) + " " + secret + " " + "x" * 1000
    assert "heim" not in without_credentials(text)


@pytest.mark.parametrize(
    ("message", "sqlstate"),
    [
        ('invalid input syntax for type integer: "{}"', "22P02"),
        ("syntax error at or near \"'{}'\"", "42601"),
        ("Key (id)=({}) already exists.", "23505"),
        ("Failing row contains ({}).", "23514"),
        ("commit failed\nDETAIL:  Key (id)=({}) already exists.", "XX000"),
    ],
)
def test_a_value_that_is_cut_is_not_shown(message: str, sqlstate: str) -> None:
    text = message.format("geheim " * 10_000)
    for kept in (text, without_credentials(text)):
        assert "geheim" not in str(RemoteError(kept, "c", sqlstate, kept))


def test_a_statement_that_is_cut_is_not_shown() -> None:
    context = "PL/pgSQL function f() line 1\nSQL statement \"SELECT '{}'\"\nPL/pgSQL function g()"
    text = str(RemoteError("failed", "c", "XX000", context=context.format("geheim " * 10_000)))

    assert "geheim" not in text
    assert "function f()" in text


@pytest.mark.usefixtures("source")
def test_a_server_that_raises_a_long_message() -> None:
    """As it was found: ``repeat('://:', 20000)`` took 7 to 15 s."""
    with DblinkHook("source") as hook, pytest.raises(RemoteError) as raised:
        hook.link().command("DO $$BEGIN RAISE EXCEPTION '%', repeat('://:', 20000); END$$")

    assert raised.value.message.endswith(f"... ({80_000 - MAX_TEXT_CHARS} more characters left out)")
    assert len(str(raised.value)) < 2 * MAX_TEXT_CHARS


SEVERAL = "\nMultiple connection attempts failed. All failures were:\n- host: "
OF_A_CONNECT = ("- host: , port: ", ", port: ", 'role "', 'database "', "hostaddr: ")


@pytest.mark.parametrize("beginning", [*OF_A_CONNECT, *BEGINNINGS])
@pytest.mark.parametrize("before", ["", SEVERAL])
def test_the_time_of_a_failed_connects_text_grows_with_its_length_at_most(
    before: str, beginning: str
) -> None:
    def work(chars: int) -> float:
        error = psycopg.OperationalError(before + beginning * (chars // len(beginning)))
        return seconds(lambda: not_established(Target("c", {}), error))

    for few, many in ((1_600, 16_000), (10_000, 100_000), (100_000, 1_000_000)):
        assert work(many) < 40 * max(work(few), 0.0005), (few, many)
