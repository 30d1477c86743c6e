"""What is read from a source: a table's columns or a query, and what the server says of them."""

from __future__ import annotations

from psycopg import sql

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.server.bind import Params, bind
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sqltext.rules import demand_parameters, the_query
from airflow_dblink.core.sqltext.user_text import UserText
from airflow_dblink.core.tables.catalog import describe
from airflow_dblink.core.tables.entries import Relation, ResultColumn


def demand_one_source(source_table: str | None, source_sql: str | None, parameters: Params | None) -> None:
    """Raise unless just one of a table and a query is given, and parameters with a query only.

    :raises UsageError: says what is given.
    """
    if source_table is not None and source_sql is not None:
        raise UsageError("source_table and source_sql are both given", hint="leave one of them out")
    if source_table is None and source_sql is None:
        raise UsageError(
            "neither source_table nor source_sql is given",
            hint="give either source_table or source_sql: what is to be read",
        )
    if parameters is not None and source_sql is None:
        raise UsageError(
            "source_parameters belong to source_sql, and source_table is given",
            hint="leave source_parameters out, or give source_sql",
        )


def source_query(
    source: Side, table: Relation | None, source_sql: str | None, parameters: Params | None
) -> sql.Composed | sql.SQL:
    """Return what is read: all columns of *table*, or *source_sql* with its *parameters* in it.

    :raises UsageError: if *source_sql* isn't one statement, or the parameters don't fit.
    """
    if table is not None:
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
        return sql.SQL("SELECT {} FROM {}").format(names, table.identifier)
    # Neither the semicolon nor a comment behind it: COPY puts it in parentheses.
    part = the_query(source_sql or "", conn_id=source.conn_id)
    query = UserText(source_sql or "", "source_sql").part(part.start, part.end)
    if parameters is not None:
        return bind(source.connection, source.conn_id, query, parameters, "source_parameters")
    return query


def describe_source(
    source: Side, query: sql.Composed | sql.SQL, source_sql: str | None, parameters: Params | None
) -> list[ResultColumn]:
    """Return the columns of what is read.

    :raises UsageError: if it has placeholders, and no parameters were given.
    :raises RemoteError: what the server's parser says.
    """
    try:
        return describe(source, query)
    except RemoteError:
        if source_sql is not None and parameters is None:
            demand_parameters("source_sql", source_sql, "source_parameters", source.conn_id)
        raise
