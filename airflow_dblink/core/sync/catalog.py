"""What ``sync.sql`` asks of a server."""

from __future__ import annotations

from typing import Any

from psycopg import sql

from airflow_dblink.core.sqlfiles import statements
from airflow_dblink.core.tables import Relation, Side
from airflow_dblink.core.wire import bind

SQL = statements("sync.sql")


def rows_of(side: Side, name: str, relation: Relation) -> list[dict[str, Any]]:
    """Return the rows of a statement of ``sync.sql`` about *relation*.

    :raises RemoteError: what the server says.
    """
    statement = bind(side.connection, side.conn_id, SQL[name].decode(), {"oid": relation.oid})
    return side.fetch(sql.SQL(statement), "reading the catalogs")
