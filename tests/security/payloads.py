"""Texts that try to break out of their place in a statement, and traces that show whether one did."""

from __future__ import annotations

from tests.databases import Database

# A sequence counts even in a transaction that is rolled back, and DROP shows where it isn't.
_RUN = "SELECT nextval('trace')"
_DROP = "DROP TABLE canary"

#: Each is used behind a right value, and alone.
PAYLOADS = (
    f"; {_RUN}; --",
    f'"; {_RUN}; --',
    f"'; {_RUN}; --",
    f'""; {_RUN}; --',
    f"''; {_RUN}; --",
    f"\\'; {_RUN}; --",
    f'\\"; {_RUN}; --',
    f"$$; {_RUN}; --",
    f"$1; {_RUN}; --",
    f"$airflow_dblink$; {_RUN}; --",
    f"); {_RUN}; --",
    f'"); {_RUN}; --',
    f"'); {_RUN}; --",
    f"*/; {_RUN}; --",
    f"\n; {_RUN}; --",
    f"'; COMMIT; {_DROP}; --",
    f'"; COMMIT; {_DROP}; --',
    f'", ({_RUN}) AS "x',
    f"' || ({_RUN})::text || '",
    f"(({_RUN}))",
    "%s %(x)s %% {} {0} {table}",
    "\u02bc; SELECT nextval(\u02bctrace\u02bc); --",
    f"\ufeff'; {_RUN}; --",
    f"' ; {_RUN}\\; \\! --",
    f'x" AS t, ({_RUN}) AS "y',
)


def lay_traces(database: Database) -> None:
    """Make the objects that a running payload would change."""
    database.execute("CREATE SEQUENCE trace; CREATE TABLE canary ()")


def traces(database: Database) -> str | None:
    """Return the trace of a payload that has run in *database*; ``None`` if there is none."""
    (counted, canary), *_ = database.rows(
        "SELECT (SELECT is_called FROM trace), pg_catalog.to_regclass('canary') IS NOT NULL"
    )
    return "its function was called" if counted else None if canary else "its table is gone"
