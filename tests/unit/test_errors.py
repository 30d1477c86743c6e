"""Errors: picklable, told apart by SQLSTATE, and without row values or secrets in their text."""

from __future__ import annotations

import pickle

import psycopg
import pytest
from psycopg import errors as pg

from airflow_dblink.core import errors
from airflow_dblink.core.errors import DblinkError, RemoteError, TransientError, from_psycopg
from airflow_dblink.core.masking import without_credentials

CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DblinkError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_survives_pickling_with_all_it_knows(kind: type[DblinkError]) -> None:
    error = kind("m", "crm", "23505", "Key (id)=(5)", "do it", "while executing")

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes

    assert type(again) is kind
    assert vars(again) == vars(error)
    assert str(again) == str(error)
    assert again.retryable is error.retryable


def test_all_classes_are_tested() -> None:
    assert {kind.__name__ for kind in CLASSES} == {
        "DblinkError",
        "UsageError",
        "CredentialError",
        "InstallationError",
        "LoadLostError",
        "NoLoadError",
        "RemoteError",
        "TransientError",
        "ConnectError",
        "OutcomeUnknownError",
        "StoppedError",
        "VerificationError",
    }


def test_text_has_everything() -> None:
    error = RemoteError("no such table", "crm", "42P01", "It was dropped.", "create it", "while executing")

    assert str(error) == (
        "connection 'crm': no such table [SQLSTATE 42P01]\nDETAIL:  It was dropped."
        "\nCONTEXT:  while executing\nHINT:  create it"
    )


@pytest.mark.parametrize(
    ("detail", "sqlstate", "shown"),
    [
        ("Key (id)=(geheim) already exists.", "23505", "Key (id)=(...) already exists."),
        ("Key (a, b)=(1, ge)(heim) is gone.", "23503", "Key (a, b)=(...) is gone."),
        ("Key (lower(a))=(geheim) already exists.", "23505", "Key (...) already exists."),
        ("Failing row contains (1, ge\nheim, null).", "23514", "Failing row contains (...)."),
        ("Fehlgeschlagene Zeile enthält (geheim).", "23502", "Fehlgeschlagene Zeile enthält (...)."),
        ("Failing row contains (geheim).", "44000", "Failing row contains (...)."),
        ("Partition key of the failing row contains (a) = (geheim).", "23514", "contains (a) = (...)."),
        ('Token "geheim" is invalid.', "22P02", 'Token "..." is invalid.'),
    ],
)
def test_the_detail_in_the_text_has_no_values(detail: str, sqlstate: str, shown: str) -> None:
    error = RemoteError("failed", "crm", sqlstate, detail)

    assert "heim" not in str(error)
    assert shown in str(error)
    assert error.detail == detail


@pytest.mark.parametrize(
    ("message", "sqlstate"),
    [
        ('invalid input syntax for type integer: "geheim"', "22P02"),
        ('value "geheim" is out of range for type integer', "22003"),
        ('date/time field value out of range: "geheim"', "22008"),
        ('invalid input syntax for type integer: "a"geheim"b"', "22P02"),
    ],
)
def test_text_hides_the_value_that_did_not_fit(message: str, sqlstate: str) -> None:
    error = RemoteError(message, "crm", sqlstate, context='COPY t, line 3, column n: "geheim"')

    assert "heim" not in str(error)
    assert error.message == message


@pytest.mark.parametrize(
    "message",
    [
        """syntax error at or near "'geheim'\"""",
        """syntax error at or near "E'ge\\nheim'\"""",
        """unterminated quoted string at or near "'geheim" OR\n THEN 1\"""",
        """unterminated dollar-quoted string at or near "$a$geheim\"""",
        """trailing junk after numeric literal at or near "47heim\"""",
        """syntax error at or near ".5heim\"""",
        """Syntaxfehler bei »'geheim'«""",
        """erreur de syntaxe sur ou près de « 'geheim' »""",
        """syntax error at or near "geheim" of jsonpath input""",
        """syntax error in tsquery: "geheim oder\"""",
        """syntax error in hstore, near "geheim" at position 3""",
    ],
)
def test_a_syntax_error_hides_the_literal_that_it_is_at(message: str) -> None:
    error = RemoteError(message, "crm", "42601")

    assert "heim" not in str(error)
    assert '"..."' in str(error)
    assert error.message == message


@pytest.mark.parametrize("token", ["SELEC", '"my table"', ")", "$1", "THEN", "e", "n1"])
def test_a_syntax_error_shows_what_is_no_literal(token: str) -> None:
    assert f'at or near "{token}"' in str(RemoteError(f'syntax error at or near "{token}"', "crm", "42601"))


def test_text_hides_the_row_that_copy_could_not_read() -> None:
    context = 'COPY customer, line 7: "1\tgeheim\nnoch geheim"\nwhile executing query'

    text = str(RemoteError("extra data after last expected column", "crm", "22P04", context=context))

    assert "COPY customer, line 7" in text
    assert "geheim" not in text


def test_text_hides_the_json_that_could_not_be_read() -> None:
    error = RemoteError(
        "invalid input syntax for type json", "crm", "22P02", context="JSON data, line 1: geheim"
    )

    assert "geheim" not in str(error)


def test_text_keeps_the_names_that_are_no_values() -> None:
    assert '"nope"' in str(RemoteError('relation "nope" does not exist', "crm", "42P01"))


@pytest.mark.parametrize(
    "text",
    [
        "connection to host=h user=u password=geheim failed",
        "password='ge heim' host=h",
        r"password='ge\'heim' host=h",
        "PASSWORD = geheim",
        "sslpassword=geheim",
        "postgresql://user:geheim@host/db refused",
        "postgres://user:ge%40heim@host:5432/db refused",
    ],
)
def test_credentials_are_masked(text: str) -> None:
    assert "heim" not in without_credentials(text)


@pytest.mark.parametrize(
    ("error", "kind", "sqlstate"),
    [
        (pg.SerializationFailure("x"), TransientError, "40001"),
        (pg.DeadlockDetected("x"), TransientError, "40P01"),
        (pg.TooManyConnections("x"), TransientError, "53300"),
        (pg.AdminShutdown("x"), TransientError, "57P01"),
        (pg.ConnectionFailure("x"), TransientError, "08006"),
        (psycopg.OperationalError("server closed the connection"), TransientError, "08006"),
        (pg.QueryCanceled("x"), RemoteError, "57014"),
        (pg.UniqueViolation("x"), RemoteError, "23505"),
        (pg.UndefinedTable("x"), RemoteError, "42P01"),
    ],
)
def test_sqlstate_decides_the_class(error: psycopg.Error, kind: type[DblinkError], sqlstate: str) -> None:
    ours = from_psycopg(error, "crm")

    assert type(ours) is kind
    assert ours.sqlstate == sqlstate


def test_the_context_ends_as_dblink_ends_it() -> None:
    named = from_psycopg(pg.UndefinedTable("x"), "crm", "executing query")
    unnamed = from_psycopg(pg.UndefinedTable("x"), "crm_db", "executing command", unnamed=True)

    assert named.context == 'while executing query on dblink connection named "crm"'
    assert unnamed.context == "while executing command on unnamed dblink connection"


def test_an_error_without_text_gets_dblinks() -> None:
    error = from_psycopg(psycopg.OperationalError(), "crm")

    assert error.message == "could not obtain message string for remote error"


@pytest.mark.parametrize(
    ("message", "context"),
    [
        ("ungültige Eingabesyntax für Typ integer: »geheim«", "COPY t, Zeile 1, Spalte a: »geheim«"),
        ('неверный синтаксис для типа integer: "geheim"', 'COPY t, строка 1, столбец a: "geheim"'),
    ],
)
def test_servers_that_speak_other_languages_show_no_values_either(message: str, context: str) -> None:
    text = str(RemoteError(message, "c", "22P02", context=context))
    assert "geheim" not in text
    assert "COPY t" in text


@pytest.mark.parametrize(
    "context",
    [
        "SQL statement \"SELECT dblink_connect('host=h password=hunter2')\"",
        "SQL statement \"CREATE USER MAPPING FOR u SERVER s OPTIONS (user 'u', password 'hunter2')\"",
        "SQL statement \"ALTER ROLE u PASSWORD 'hunter2'\"",
    ],
)
def test_no_password_in_the_context(context: str) -> None:
    assert "hunter2" not in str(RemoteError("failed", "c", "XX000", context=context))
