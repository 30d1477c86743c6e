"""Rules for scripts and queries: statements that can't be run are refused before anything is sent."""

from __future__ import annotations

import re

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.sqltext.lexer import Part, parts

#: Verbs of the statements that can be read as a query.
QUERIES = ("SELECT", "VALUES", "TABLE")
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
        if part.is_copy_with_client:
            raise UsageError(
                f"sql contains COPY with the client (line {part.line})",
                conn_id,
                hint="use DblinkTransferOperator or DblinkFetchOperator",
            )
        if command := part.outside_transaction:
            raise UsageError(
                f"{command} (line {part.line}) cannot run inside a transaction",
                conn_id,
                hint=f"use {alternative}; it is then run at least once, not exactly once",
            )


def the_query(text: str, name: str = "source_sql", conn_id: str | None = None) -> Part:
    """Return the one query in *text*.

    :param name: the argument's name, for errors.
    :raises UsageError: unless it is exactly one statement, and a query.
    """
    found = parts(text)
    if len(found) != 1:
        raise UsageError(f"{name} must be one query, got {len(found)} statements", conn_id)
    if found[0].verb not in QUERIES:
        raise UsageError(
            f"{name} must be a query, got {found[0].verb or 'no keyword'}",
            conn_id,
            hint="SELECT, VALUES, TABLE, or WITH and one of these",
        )
    return found[0]


def demand_parameters(name: str, text: str, parameters_name: str, conn_id: str) -> None:
    """Raise if *text*, which the server can't parse, has placeholders although no parameters were given.

    :raises UsageError: names the missing argument.
    """
    if found := PLACEHOLDER.search(text):
        raise UsageError(
            f"{name} has a placeholder ({found[0]}), but {parameters_name} is missing",
            conn_id,
            hint=f"{parameters_name}: a list for %s, or a dict for %(name)s",
        )
