"""Notifications arrive as PostgreSQL's own dblink has them."""

from __future__ import annotations

import pytest

from tests.oracle import CONNECT, ONE, TAG, Call, Dblinks, Ours, same

SCENARIOS: dict[str, list[Call]] = {
    "notifications of one's own": [
        CONNECT,
        ("exec", "LISTEN regression"),
        ("exec", "LISTEN foobar"),
        ("exec", "NOTIFY regression"),
        ("exec", "NOTIFY foobar"),
        ("get_notify",),
        ("get_notify",),
    ],
    "notifications with and without a payload, in order": [
        CONNECT,
        ("exec", "LISTEN a"),
        ("notify", "NOTIFY a"),
        ("notify", "NOTIFY a, ''"),
        ("notify", "NOTIFY a, 'Grüße'"),
        ("notify", "SELECT pg_notify('a', g::text) FROM generate_series(1, 3) g"),
        ("notify", "NOTIFY b, 'unheard'"),
        ("query", "SELECT 1", ONE),
        ("get_notify",),
        ("get_notify",),
    ],
    "channels fold unless quoted": [
        CONNECT,
        ("exec", "LISTEN Plain"),
        ("exec", 'LISTEN "Quoted"'),
        ("exec", "NOTIFY PLAIN, '1'"),
        ("exec", "NOTIFY quoted, '2'"),
        ("exec", "NOTIFY \"Quoted\", '3'"),
        ("query", "SELECT pg_notify('Plain', '4')::text", "a text"),
        ("get_notify",),
        ("exec", "UNLISTEN *"),
        ("exec", "NOTIFY plain"),
        ("get_notify",),
    ],
    "in a transaction nothing is delivered": [
        CONNECT,
        ("exec", "LISTEN a"),
        ("exec", "BEGIN"),
        ("exec", "NOTIFY a, 'own'"),
        ("notify", "NOTIFY a, 'foreign'"),
        ("query", "SELECT 1", ONE),
        ("get_notify",),
        ("exec", "COMMIT"),
        ("query", "SELECT 1", ONE),
        ("get_notify",),
    ],
    "a transaction that is rolled back neither listens nor notifies": [
        CONNECT,
        ("exec", "LISTEN a"),
        ("exec", "BEGIN"),
        ("exec", "NOTIFY a"),
        ("exec", "LISTEN b"),
        ("exec", "ROLLBACK"),
        ("exec", "NOTIFY b"),
        ("query", "SELECT 1", ONE),
        ("get_notify",),
    ],
    "during another query": [
        CONNECT,
        ("exec", "LISTEN a"),
        ("send", "SELECT 1 FROM pg_sleep(5)"),
        ("working",),
        ("notify", "NOTIFY a, 'meanwhile'"),
        ("result", ONE),
        ("result", ONE),
        ("get_notify",),
    ],
    "with unread results": [
        CONNECT,
        ("exec", "LISTEN a"),
        ("send", "NOTIFY a, '1'; SELECT 1"),
        ("ready",),
        ("result", TAG),
        ("result", ONE),
        ("get_notify",),
        ("result", ONE),
        ("get_notify",),
    ],
    "two links listen": [
        ("connect", "a"),
        ("connect", "b"),
        ("exec", "LISTEN c", "a"),
        ("exec", "LISTEN c", "b"),
        ("exec", "NOTIFY c, 'from a'", "a"),
        ("query", "SELECT 1", ONE, "b"),
        ("get_notify", "a"),
        ("get_notify", "b"),
        ("disconnect", "a"),
        ("exec", "NOTIFY c, 'from b'", "b"),
        ("get_notify", "b"),
    ],
    "the unnamed link listens, too": [
        ("connect", None),
        ("exec", "LISTEN a", None),
        ("exec", "NOTIFY a", None),
        ("get_notify", None),
        ("get_notify", None),
    ],
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_the_same_as_dblink(scenario: list[Call], ours: Ours, dblinks: Dblinks) -> None:
    same(scenario, ours, dblinks)
