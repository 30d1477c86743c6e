"""A real streaming standby of a test server; asynchronous, which is PostgreSQL's default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg

from airflow_dblink.embedded.server import Server, ServerError, _server_files


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """Run a standby that follows *primary*, with the same roles and passwords.

    Its files lie beside the primary's, so the clean-up of the primary ends and removes it, too.
    """
    standby = _server_files(
        primary.data.parent.with_name(f"standby_{uuid4().hex[:8]}"), primary.bindir, primary.account
    )
    standby.superuser_password = primary.superuser_password
    standby.role_password = primary.role_password
    copying = standby._spawn(
        "pg_basebackup",
        f"--pgdata={standby.data}",
        f"--dbname={primary.conninfo(dbname='postgres', superuser=True)}",
        *("--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--no-password"),
    )
    if copying.wait() != 0:
        raise ServerError(f"pg_basebackup failed:\n{standby.log.read_text()}")
    try:
        standby.start()
        yield standby
    finally:
        standby.stop(mode="immediate")


def promote(standby: Server) -> None:
    """Make *standby* a primary, and return once it takes changes."""
    with psycopg.connect(standby.conninfo(superuser=True), autocommit=True) as admin:
        promoted = admin.execute("SELECT pg_promote(), pg_is_in_recovery()").fetchone()
    assert promoted == (True, False)
