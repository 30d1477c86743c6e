"""Logins that cost little: the tests log in by the ten thousand."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode

import psycopg
from psycopg.sql import SQL, Identifier

from airflow_dblink.embedded.server import Server


def make_logins_cheap(server: Server) -> None:
    """Store the passwords of both roles hashed once, not 4,096 times, which is most of a login's work.

    The rounds slow down whoever guesses passwords, and these are random. Client and server do all else that
    scram demands. The server takes a finished verifier in every version; ``scram_iterations`` is new in 16.
    """
    roles = ((server.role, server.role_password), (server.superuser, server.superuser_password))
    with psycopg.connect(server.conninfo(dbname="postgres", superuser=True), autocommit=True) as admin:
        for role, password in roles:
            admin.execute(SQL("ALTER ROLE {} PASSWORD {}").format(Identifier(role), _verifier(password)))


def _verifier(password: str) -> str:
    """Return the verifier that PostgreSQL stores for an ASCII *password*: RFC 5803 with one iteration."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    keys = (stored, hmac.digest(salted, b"Server Key", "sha256"))
    return f"SCRAM-SHA-256$1:{b64encode(salt).decode()}$" + ":".join(b64encode(key).decode() for key in keys)
