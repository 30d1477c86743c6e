"""Differences between psycopg's versions, from the oldest one that is allowed."""

from __future__ import annotations

import psycopg
import pytest

from airflow_dblink.core.server.connection import LinkConnection


def test_psycopg_before_3_3_6_hands_the_time_limit_to_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    def login(cls: object, conninfo: str = "", *, timeout: float = 0.0) -> object:
        return iter([timeout])

    monkeypatch.setattr(psycopg.Connection, "_connect_gen", classmethod(login))

    waits: list[object] = list(LinkConnection._connect_gen("", timeout=7.0))
    assert waits == [7.0]
