"""The source of rows: a table or a query, and its columns."""

from __future__ import annotations

from psycopg import sql

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.core.server.bind import Params, bind
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sqltext.rules import demand_parameters, the_query
from airflow_dblink.core.sqltext.user_text import UserText
from airflow_dblink.core.tables.catalog import describe
from airflow_dblink.core.tables.entries import Relation, ResultColumn


def source_query(
    source: Side, table: Relation | None, source_sql: str | None, parameters: Params | None
) -> sql.Composed | sql.SQL:
    """Return the query that reads the rows: all columns of *table*, or *source_sql* with its *parameters*.

    :raises UsageError: if *source_sql* isn't one statement, or the parameters don't fit.
    """
    if table is not None:
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
        return sql.SQL("SELECT {} FROM {}").format(names, table.identifier)
    # Without the semicolon and later comments: COPY takes the query in parentheses.
    part = the_query(source_sql or "", conn_id=source.conn_id)
    query = UserText(source_sql or "", "source_sql").part(part.start, part.end)
    if parameters is not None:
        return bind(source.connection, source.conn_id, query, parameters, "source_parameters")
    return query


def describe_source(
    source: Side, query: sql.Composed | sql.SQL, source_sql: str | None, parameters: Params | None
) -> list[ResultColumn]:
    """Return the columns of *query*.

    :raises UsageError: if *source_sql* has placeholders, but no parameters were given.
    :raises RemoteError: the parser's errors.
    """
    try:
        return describe(source, query)
    except RemoteError:
        if source_sql is not None and parameters is None:
            demand_parameters("source_sql", source_sql, "source_parameters", source.conn_id)
        raise
