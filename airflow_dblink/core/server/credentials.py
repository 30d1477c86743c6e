"""dblink's credential rule: nobody rides on the worker's own identity.

Source: ``dblink_connstr_check`` and ``dblink_security_check`` of contrib/dblink.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from psycopg import pq

from airflow_dblink.core.errors import CredentialError
from airflow_dblink.core.server.target import Target

_SSLCERTMODE_SINCE = 160000
# What libpq says of a server that asks for no certificate, or gets none.
_UNASKED = ("server did not request an SSL certificate", "server accepted connection without a valid SSL")


def check_credential(target: Target, *, own_identity: bool) -> bool:
    """Return whether the worker's own identity may serve; if not, *target* must bring a credential.

    Asked before connecting.

    :raises CredentialError: 2F003.
    """
    free = own_identity or not target.password_required
    if not free and not target.brings_credential:
        raise _no_credential(target)
    return free


def demanding(target: Target) -> Target:
    """Return *target*, with libpq told to insist on its client certificate where that is all that it brings.

    A server that asks for no certificate, or a file that isn't there, then ends the connecting.

    :raises CredentialError: 2F003 where this libpq can't insist.
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


def check_used_credential(target: Target, pgconn: Any) -> None:
    """Refuse a connection that came about without the credential of *target*, as :func:`demanding` gives it.

    :param pgconn: what tells of an open connection: psycopg's ``pgconn``, or psycopg2's ``info``.
    :raises CredentialError: 2F003.
    """
    if pgconn.used_password:
        used = bool(target.params.get("password"))  # else it was PGPASSWORD's or .pgpass's
    else:
        # Elsewhere libpq shows no certificate to a server that asks for none, and doesn't say so.
        insists = str(target.params.get("sslcertmode", "")).strip() == "require"
        certificate = insists and target.params.get("sslcert") and pgconn.ssl_in_use
        used = bool(certificate or (target.delegates and getattr(pgconn, "used_gssapi", False)))
    if not used:
        raise not_asked_for(target)


def is_certificate_unasked(target: Target, reason: str) -> bool:
    """Whether libpq, which was told to insist on the client certificate, ended the connecting for that.

    :param reason: its message.
    """
    return target.params.get("sslcertmode") == "require" and any(words in reason for words in _UNASKED)


def not_asked_for(target: Target) -> CredentialError:
    """Return the error for a server that let us in without asking for what *target* brings."""
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
