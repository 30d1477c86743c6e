"""dblink's credential rule: nobody may use the worker's own identity.

Source: ``dblink_connstr_check`` and ``dblink_security_check`` of contrib/dblink.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from psycopg import pq

from airflow_dblink.core.errors import CredentialError
from airflow_dblink.core.server.target import Target

_SSLCERTMODE_SINCE = 160000
# libpq's messages about a server that asks for no certificate, or gets none.
_UNASKED = ("server did not request an SSL certificate", "server accepted connection without a valid SSL")


def demand_credential(target: Target, *, own_identity: bool) -> bool:
    """Return whether the worker's own identity may be used; if not, *target* must bring a credential.

    Called before connecting.

    :raises CredentialError: 2F003.
    """
    free = own_identity or not target.password_required
    if not free and not target.brings_credential:
        raise _no_credential(target)
    return free


def demanding(target: Target) -> Target:
    """Return *target*; if a client certificate is its only credential, with ``sslcertmode=require``.

    Then connecting fails if the server asks for no certificate, or the file isn't there.

    :raises CredentialError: 2F003 if this libpq has no ``sslcertmode``.
    """
    if not target.params.get("sslcert") or target.params.get("password") or target.delegates:
        return target
    if pq.version() < _SSLCERTMODE_SINCE:
        raise CredentialError(
            "password or GSSAPI delegated credentials required",
            target.conn_id,
            "2F003",
            f"This libpq ({pq.version_pretty(pq.version())}) can't tell whether the server asks for sslcert.",
            "use a libpq of version 16 or later (psycopg[binary] brings one), or a password",
        )
    return replace(target, params={**target.params, "sslcertmode": "require"})


def demand_used_credential(target: Target, pgconn: Any) -> None:
    """Raise if the server let us in without the credential of *target*, a result of :func:`demanding`.

    :param pgconn: the facts about an open connection: psycopg's ``pgconn``, or psycopg2's ``info``.
    :raises CredentialError: 2F003.
    """
    if pgconn.used_password:
        used = bool(target.params.get("password"))  # otherwise it was that of PGPASSWORD or .pgpass
    else:
        # In other modes libpq shows no certificate to a server that asks for none, and doesn't say so.
        insists = str(target.params.get("sslcertmode", "")).strip() == "require"
        certificate = insists and target.params.get("sslcert") and pgconn.ssl_in_use
        used = bool(certificate or (target.delegates and getattr(pgconn, "used_gssapi", False)))
    if not used:
        raise not_asked_for(target)


def is_certificate_unasked(target: Target, reason: str) -> bool:
    """Whether connecting failed because the server didn't ask for the client certificate.

    :param reason: libpq's message.
    """
    return target.params.get("sslcertmode") == "require" and any(words in reason for words in _UNASKED)


def not_asked_for(target: Target) -> CredentialError:
    """Return the error for a server that let us in without asking for the credential of *target*."""
    hint = "the server let the worker in without asking: make it ask (pg_hba.conf), or allow it: connect_u"
    if target.params.get("sslcert"):
        hint = "sslcertmode=require in Extra, if the client certificate is meant; else " + hint
    return CredentialError(
        "password or GSSAPI delegated credentials required",
        target.conn_id,
        "2F003",
        "The server let the worker in without the connection's credential.",
        f"{hint} or password_required=False",
    )


def _no_credential(target: Target) -> CredentialError:
    return CredentialError(
        "password or GSSAPI delegated credentials required",
        target.conn_id,
        "2F003",
        "Neither the worker's identity nor its .pgpass, PGPASSWORD or service file counts.",
        "put a password (or token, or client certificate) into the Airflow connection; or, to use the "
        "worker's own identity on purpose, connect_u or password_required=False",
    )
