"""Skips of tests for features that only later versions of PostgreSQL have."""

from __future__ import annotations

import pytest

from tests.databases import Database

#: Begins the reason of each such skip: the same test runs on the embedded, newer PostgreSQL, so CI allows it.
OTHER_VERSION = "needs PostgreSQL "


def needs_version(database: Database, major: int, why: str) -> None:
    """Skip the test on a server before *major*."""
    query = "SELECT pg_catalog.current_setting('server_version_num')::int / 10000"
    if database.rows(query)[0][0] < major:
        pytest.skip(f"{OTHER_VERSION}{major}: {why}")
