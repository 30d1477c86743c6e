"""Ways to give a remote unusual settings."""

from __future__ import annotations

from psycopg import sql

from airflow_dblink.core.link.link import Link
from airflow_dblink.core.link.registry import Links
from tests.databases import Database

WAYS = ["role", "database", "session", "session_settings"]


def always(database: Database, way: str = "role", **settings: str) -> None:
    """Change the *settings* of all later sessions of the job role in *database*."""
    who = f"ROLE {database.server.role} IN DATABASE" if way == "role" else "DATABASE"
    for name, value in settings.items():
        database.admin(f"ALTER {who} {database.name} SET {name} = {value}")


def linked(links: Links, database: Database, **settings: str) -> Link:
    """Open the unnamed link to *database* and change the *settings* of its session."""
    links.connect(None, database.target)
    link = links.get(None)
    for name, value in settings.items():
        link.exec(sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    return link
