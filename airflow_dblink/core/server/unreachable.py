"""The error for a failed connect: dblink's 08001, with libpq's own words and a hint at the cause."""

from __future__ import annotations

import re

import psycopg

from airflow_dblink.core.errors import ConnectError, DblinkError
from airflow_dblink.core.masking import MAX_TEXT_CHARS, without_credentials
from airflow_dblink.core.server.credentials import is_certificate_unasked, not_asked_for
from airflow_dblink.core.server.target import Target

# The texts that psycopg puts before libpq's words and, if it has tried several hosts, around them.
_PSYCOPGS = re.compile(r"\A(?:connection failed: |connection is bad: )")
_SEVERAL = "\nMultiple connection attempts failed. All failures were:\n"
_ATTEMPT = re.compile(
    r"^- host: [^\n]{0,255}?, port: [^\n,]{0,32}, hostaddr: (?:None|'[^'\n]{0,64}'): ", re.MULTILINE
)
_MOST_CHARS = 4 * MAX_TEXT_CHARS  # a hostile server's text is as long as it likes

_ALL_FIELDS = "check host, port, database, login and password of the connection"
# A server that speaks another language gets the general hint.
_HINTS = (
    (
        re.compile(r"(?:password|SCRAM|LDAP|PAM|RADIUS) authentication failed"),
        "correct the password of the connection, or its login",
    ),
    (re.compile(r"no password supplied"), "put a password into the connection"),
    (re.compile(r'role "[^"\n]{0,255}" does not exist'), "correct the login of the connection"),
    (
        re.compile(r'database "[^"\n]{0,255}" does not exist'),
        "correct the database of the connection (field Schema)",
    ),
    (
        re.compile(r"could not translate host name|failed to resolve host"),
        "correct the host of the connection",
    ),
    (
        re.compile(r"Connection refused"),
        "correct host and port of the connection, or start the server",
    ),
    (
        re.compile(r"no pg_hba\.conf entry"),
        "the server's pg_hba.conf refuses this login, database, address or sslmode: change it there, or here",
    ),
    (
        re.compile(r"too many (?:clients|connections)|remaining connection slots"),
        "the server has no free session: try again later, or lower the tasks at one time (a pool in Airflow)",
    ),
    (re.compile(r"the database system is "), "try again: the server will be there soon, or was stopped"),
)


def not_established(target: Target, error: psycopg.Error) -> DblinkError:
    """Return dblink's 08001 with libpq's reason as its detail, and a hint at the field to correct."""
    reasons = [without_credentials(reason) for reason in _reasons(str(error))]
    detail = "\n".join(reasons)
    if is_certificate_unasked(target, detail):
        return not_asked_for(target)
    hints = {_hint(reason) for reason in reasons}
    hint = hints.pop() if len(hints) == 1 else _ALL_FIELDS
    return ConnectError("could not establish connection", target.conn_id, "08001", detail, hint)


def _reasons(text: str) -> list[str]:
    """Return libpq's words about each host that was tried."""
    last, found, attempts = text[:_MOST_CHARS].partition(_SEVERAL)
    reasons = _ATTEMPT.split(attempts)[1:] if found else [last]
    return [_PSYCOPGS.sub("", reason.strip("\n")) for reason in reasons or [last]]


def _hint(reason: str) -> str:
    return next((hint for words, hint in _HINTS if words.search(reason)), _ALL_FIELDS)
