"""Rules for scripts and queries: statements that can't be run are refused before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Sequence

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.sqltext.lexer import Part, parts

# Verbs of the statements that can be read as a query.
_QUERIES = ("SELECT", "VALUES", "TABLE")
#: A placeholder for a parameter's value; in SQL without parameters ``a %s`` may be a modulo.
PLACEHOLDER = re.compile(r"%s\b|%\(\w+\)s")


def demand_script(script: str, conn_id: str, *, alternative: str = "transaction=False") -> None:
    """Raise unless *script* can be part of an exactly-once transaction.

    :param alternative: the argument or operator that the error recommends for such statements.
    :raises UsageError: for an empty script, NUL, transaction control, COPY with the client, and
        commands that PostgreSQL runs only outside of a transaction block.
    """
    found = parts(script)
    if not found:
        raise UsageError("sql holds no statement", conn_id)
    if "\0" in script:
        raise UsageError("sql holds a NUL character, which PostgreSQL can't take", conn_id)
    for part in found:
        if command := part.transaction_control:
            raise UsageError(
                f"sql contains {command} (line {part.line}), but the transaction is ours",
                conn_id,
                hint=f"leave it out: the whole script is one transaction; or {alternative}",
            )
        demand_no_client(part, conn_id)
        if command := part.outside_transaction:
            raise UsageError(
                f"{command} (line {part.line}) cannot run inside a transaction",
                conn_id,
                hint=f"use {alternative}; it is then run at least once, not exactly once",
            )


def demand_no_client(part: Part, conn_id: str) -> None:
    """Raise if the statement is a COPY whose data would come from the client, or go to it.

    :raises UsageError: says its line.
    """
    if part.is_copy_with_client:
        raise client_copy(conn_id, f" (line {part.line})")


def client_copy(conn_id: str, where: str = "") -> UsageError:
    """Return the error for COPY with the client."""
    return UsageError(
        f"COPY with the client is not possible here{where}",
        conn_id,
        hint="use DblinkTransferOperator or DblinkFetchOperator",
    )


def demand_one_source(source_table: str | None, source_sql: str | None, parameters: object) -> None:
    """Raise unless either a table or a query is given; *parameters* may only come with a query.

    :raises UsageError: names the arguments.
    """
    if source_table is not None and source_sql is not None:
        raise UsageError("source_table and source_sql are both given", hint="leave one of them out")
    if source_table is None and source_sql is None:
        raise UsageError(
            "neither source_table nor source_sql is given",
            hint="give either source_table or source_sql: the rows to read",
        )
    if parameters is not None and source_sql is None:
        raise UsageError(
            "source_parameters belong to source_sql, and source_table is given",
            hint="leave source_parameters out, or give source_sql",
        )


def the_query(text: str, name: str = "source_sql", conn_id: str | None = None) -> Part:
    """Return the one query in *text*.

    :param name: the argument's name, for errors.
    :raises UsageError: unless it is exactly one statement, and a query.
    """
    found = parts(text)
    if other := no_query(found):
        a = "a" if len(found) == 1 else "one"
        hint = "SELECT, VALUES, TABLE, or WITH and one of these" if len(found) == 1 else None
        raise UsageError(f"{name} must be {a} query, got {other}", conn_id, hint=hint)
    return found[0]


def no_query(found: Sequence[Part]) -> str | None:
    """Return what the statements *found* are instead of one query, ``None`` if they are one."""
    if len(found) != 1:
        return f"{len(found)} statements"
    return None if found[0].verb in _QUERIES else found[0].verb or "no keyword"


def demand_parameters(name: str, text: str, parameters_name: str, conn_id: str | None) -> None:
    """Raise if *text*, which the server can't parse, has placeholders although no parameters were given.

    :raises UsageError: names the missing argument.
    """
    if found := PLACEHOLDER.search(text):
        raise UsageError(
            f"{name} has a placeholder ({found[0]}), but {parameters_name} is missing",
            conn_id,
            hint=f"{parameters_name}: a list for %s, or a dict for %(name)s",
        )
