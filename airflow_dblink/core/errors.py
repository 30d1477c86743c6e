"""The errors of the core: one root, real values, SQLSTATE, picklable.

What PostgreSQL says may hold row values (``DETAIL: Key (id)=(5) already exists``). The
attributes keep all of it, as dblink does; ``str()``, which ends up in task logs, leaves
the values out: ``Key (id)=(...) already exists``.
"""

from __future__ import annotations

import re
from typing import ClassVar

import psycopg

# Connection, rollback (serialization, deadlock), resources, operator intervention: the
# same statement may succeed later. 57014 (query_canceled) is someone's wish and is not here.
_TRANSIENT_PREFIXES = ("08", "40", "53", "57P")
# From the first quote to the last: PostgreSQL doesn't double the quotes inside of a value.
# A setting's name is no value: 'invalid value for parameter "work_mem": "much"'.
# Servers speak other languages, too, with quotes of their own.
_QUOTED = re.compile(r'(?<!parameter )["»«„“](?!: ").*["»«“”]', re.DOTALL)
# What stands in the last parentheses of a DETAIL, the columns' names in "Key (id)=(5)" left alone.
_IN_PARENTHESES = re.compile(r"((?:\([^()]*\) ?= ?)?)\(.*\)", re.DOTALL)
# The token that a syntax error is at, where it is a literal: a parameter's value, as it was bound.
_LITERAL = re.compile(
    r"""(["»«„“]\s?)(?:(?:[bBeEnNxX]|[uU]&)?'|\$(?:[^\W\d]\w*)?\$|\.?\d).*["»«“”]""", re.DOTALL
)
# They have syntaxes, and so syntax errors, of their own: what stands in quotes is a value.
_LANGUAGES = ("jsonpath", "tsquery", "hstore")
_CONTEXT_VALUE = re.compile(r"((?:COPY [^:]*|JSON data, line \d+[^:]*)):.*", re.DOTALL)
_CONTEXT_STATEMENT = re.compile(r'(SQL (?:statement|expression)) ".*?"(?=\n|$)', re.DOTALL)
_CREDENTIAL = re.compile(
    r"(?i)\b(password|passfile|sslpassword|oauth_client_secret)(?:\s*=\s*('(?:[^'\\]|\\.)*'|\S+)|\s+'(?:[^']|'')*')"
)
_URI_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s@]*@")


def _without_values(message: str, sqlstate: str | None) -> str:
    """Return the server's *message*, or DETAIL, without what may be a row's value.

    In class 22 (data exception) what stands in quotes is the value that didn't fit, except
    in 22P04, which quotes column names, and 22P05, which quotes encodings. In classes 23
    (constraint) and 44 (WITH CHECK OPTION) values stand in parentheses; so they do in a DETAIL
    that is a part of the message (dblink's "commit error: ..."). A syntax error (42601) may be at a
    literal, or in one.
    """
    primary, line, detail = message.partition("\nDETAIL:  ")
    if line:
        return primary + line + _IN_PARENTHESES.sub(r"\1(...)", detail)
    if sqlstate and sqlstate.startswith(("23", "44")):
        return _IN_PARENTHESES.sub(r"\1(...)", message)
    if sqlstate and sqlstate.startswith("22") and sqlstate not in ("22P04", "22P05"):
        return _QUOTED.sub('"..."', message)
    if sqlstate == "42601":
        a_value = any(language in message for language in _LANGUAGES)
        return (_QUOTED if a_value else _LITERAL).sub('"..."', message)
    return message


class DblinkError(Exception):
    """Base of every airflow_dblink error. All state goes through ``args``, so pickling works.

    :ivar message: the primary message, as PostgreSQL or dblink words it.
    :ivar connname: link or connection the error belongs to; ``None`` for the unnamed link.
    :ivar sqlstate: five characters, or ``None`` where the error isn't PostgreSQL's.
    :ivar detail: PostgreSQL's DETAIL; may hold row values, which ``str()`` leaves out.
    :ivar hint: what to do.
    :ivar context: PostgreSQL's CONTEXT, then what we did, as dblink appends it.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        connname: str | None = None,
        sqlstate: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
        context: str | None = None,
    ) -> None:
        super().__init__(message, connname, sqlstate, detail, hint, context)
        self.message = message
        self.connname = connname
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint
        self.context = context

    def __str__(self) -> str:
        parts = [_without_values(self.message, self.sqlstate)]
        if self.connname is not None:
            parts.insert(0, f"connection {self.connname!r}: ")
        if self.sqlstate:
            parts.append(f" [SQLSTATE {self.sqlstate}]")
        if self.detail:
            parts.append("\nDETAIL:  " + _without_values(self.detail, self.sqlstate))
        if self.context:
            context = _CONTEXT_STATEMENT.sub(r'\1 "..."', self.context)
            parts.append("\nCONTEXT:  " + _CONTEXT_VALUE.sub(r"\1", context))
        if self.hint:
            parts.append(f"\nHINT:  {self.hint}")
        return without_credentials("".join(parts))


class UsageError(DblinkError):
    """The caller's mistake, found before anything was sent or changed. A retry can't help."""


class CredentialError(UsageError):
    """The connection would use the worker's own identity (dblink's 2F003); see ``connect_u``."""


class RemoteError(DblinkError):
    """The server said no."""


class TransientError(RemoteError):
    """The connection was lost, or the server said "come back later"."""

    retryable: ClassVar[bool] = True


class OutcomeUnknownError(DblinkError):
    """An earlier try may have committed, and the server can no longer tell. Never run blindly."""


class StoppedError(DblinkError):
    """The caller asked to stop (a kill); the statement was cancelled."""


def from_psycopg(
    error: psycopg.Error, connname: str, action: str | None = None, *, unnamed: bool = False
) -> RemoteError:
    """Return our error for psycopg's, with dblink's context line.

    :param connname: link or connection where it happened.
    :param unnamed: it is the unnamed link, and *connname* its Airflow connection.
    :param action: as dblink says it: ``executing query``, ``opening cursor "c"``, ...
    :returns: :class:`TransientError` for a lost connection (any FATAL error) and for SQLSTATE classes
        08, 40, 53 and 57P, else :class:`RemoteError`. An error without SQLSTATE gets 08006, as dblink
        reports it.

    Source: ``dblink_res_error`` of contrib/dblink.
    """
    diag = error.diag
    sqlstate = diag.sqlstate or error.sqlstate or "08006"
    message = diag.message_primary or str(error).strip() or "could not obtain message string for remote error"
    context = diag.context
    if action:
        line = context_line(action, None if unnamed else connname)
        context = f"{context}\n{line}" if context else line
    fatal = diag.severity_nonlocalized in ("FATAL", "PANIC")
    hint = diag.message_hint
    if sqlstate == "25P02":
        hint = hint or 'an earlier statement failed: exec("ROLLBACK") ends the transaction'
    kind = TransientError if fatal else kind_of(sqlstate)
    return kind(without_credentials(message), connname, sqlstate, diag.message_detail, hint, context)


def kind_of(sqlstate: str | None) -> type[RemoteError]:
    """Return the class of an error that the server raised with that SQLSTATE."""
    return TransientError if sqlstate and sqlstate.startswith(_TRANSIENT_PREFIXES) else RemoteError


def context_line(action: str, connname: str | None) -> str:
    """Return the line that dblink appends to the CONTEXT of a remote error."""
    where = "unnamed dblink connection" if connname is None else f'dblink connection named "{connname}"'
    return f"while {action} on {where}"


def without_credentials(text: str) -> str:
    """Return *text* with the values of ``password=`` and the like, and passwords in URIs, masked."""
    return _URI_PASSWORD.sub(r"\1***@", _CREDENTIAL.sub(r"\1=***", text))
