"""The named statements: every file loads, names are unique, and nothing stands outside of a name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from airflow_dblink.core.sql import named
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sqltext.lexer import parts

FILES = sorted(file.name for file in files("airflow_dblink.core.sql").iterdir() if file.name.endswith(".sql"))


def test_there_are_files() -> None:
    assert {"catalog.sql", "once.sql"} <= set(FILES)


# What a DBA runs by hand stays in one piece, and so do the body of a block and the beginning of its message.
SCRIPTS = {
    *(("jobs_install.sql", statement) for statement in statements("jobs_install.sql")),
    *(("events_install.sql", statement) for statement in statements("events_install.sql")),
    ("trust.sql", "guard"),
    ("jobs_call.sql", "guarded_call"),
    ("parts_keeper.sql", "begin"),
    ("parts_keeper.sql", "keep"),
    ("swap.sql", "have_all"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_statement_of_every_file_loads(name: str) -> None:
    found = statements(name)

    assert found
    for statement, text in found.items():
        assert len(parts(text)) == 1 or (name, statement) in SCRIPTS, statement


@pytest.fixture
def one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the only file that :func:`statements` finds."""
    monkeypatch.setattr(named, "files", lambda _: tmp_path)
    monkeypatch.setattr(named, "statements", statements.__wrapped__)
    return tmp_path / "x.sql"


def test_a_name_that_comes_twice_is_refused(one_file: Path) -> None:
    one_file.write_text("-- name: a\nSELECT 1;\n\n-- name: a\nSELECT 2;\n")

    with pytest.raises(ValueError, match="'a' is named twice"):
        named.statements("x.sql")


def test_text_before_the_first_name_is_refused(one_file: Path) -> None:
    one_file.write_text("SELECT 0;\n-- name: a\nSELECT 1;\n")

    with pytest.raises(ValueError, match="text before the first"):
        named.statements("x.sql")


def test_a_statement_is_kept_with_its_reasons_and_without_its_semicolon(one_file: Path) -> None:
    one_file.write_text("-- name: a\n-- why\nSELECT 1;\n\n-- name: b\nSELECT 2\n")

    assert named.statements("x.sql") == {"a": "-- why\nSELECT 1", "b": "SELECT 2"}
