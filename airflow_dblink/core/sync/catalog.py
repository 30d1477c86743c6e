"""What ``sync.sql`` asks of a server."""

from __future__ import annotations

from typing import Any

from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.catalog import Relation, Side

SQL = statements("sync.sql")


def rows_of(side: Side, name: str, relation: Relation) -> list[dict[str, Any]]:
    """Return the rows of a statement of ``sync.sql`` about *relation*.

    :raises RemoteError: what the server says.
    """
    return side.ask(SQL[name], "reading the catalogs", {"oid": relation.oid})
