"""The errors of the core: one root, real values, SQLSTATE, picklable.

PostgreSQL's texts may hold row values (``DETAIL: Key (id)=(5) already exists``). The
attributes keep them, as dblink does. ``str()``, which task logs show, leaves
the values out: ``Key (id)=(...) already exists``. See :mod:`airflow_dblink.core.masking`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import psycopg

from airflow_dblink.core.masking import without_credentials, without_statements, without_values

# Connection, rollback (serialization, deadlock), resources, operator intervention: the
# same statement may succeed later. 57014 (query_canceled) is someone's wish and is not here.
_TRANSIENT_PREFIXES = ("08", "40", "53", "57P")

#: The token of a syntax error, in the server's words.
AT_OR_NEAR = re.compile(r' at or near "(.*)"', re.DOTALL)


@dataclass(frozen=True)
class Place:
    """A place in a user's SQL; see :func:`airflow_dblink.core.sqltext.user_text.place_of`.

    :ivar lines: the line with its number, and a caret below; ``None`` if it can't be told.
    :ivar instead: what replaces a quote in the server's message that goes beyond the user's SQL; ``None`` if
        it doesn't.
    """

    lines: str | None
    instead: str | None = None

    def corrected(self, message: str) -> str:
        """Return the server's *message* without a quote of text that the user didn't write."""
        return message if self.instead is None else AT_OR_NEAR.sub(self.instead, message)


class DblinkError(Exception):
    """Base of every airflow_dblink error. All state goes through ``args``, so pickling works.

    :ivar message: the primary message, as PostgreSQL or dblink words it; at most 16 kB of a server's message,
        without credentials.
    :ivar connname: link or connection the error belongs to; ``None`` for the unnamed link.
    :ivar sqlstate: five characters, or ``None`` if the error isn't PostgreSQL's.
    :ivar detail: PostgreSQL's DETAIL; may hold row values, which ``str()`` leaves out.
    :ivar hint: what to do.
    :ivar context: PostgreSQL's CONTEXT, then our action, as dblink appends it.
    :ivar place: the line of the error in the user's SQL, and a caret below.
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
        place: str | None = None,
    ) -> None:
        super().__init__(message, connname, sqlstate, detail, hint, context, place)
        self.message = message
        self.connname = connname
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint
        self.context = context
        self.place = place

    def but(self, *, message: str | None = None, hint: str | None = None) -> Self:
        """Return the same error with another message or hint."""
        rest = (self.connname, self.sqlstate, self.detail, hint or self.hint, self.context, self.place)
        return type(self)(message or self.message, *rest)

    def renamed(self, names: Mapping[str, str]) -> Self:
        """Return the same error with other names: each key of *names* is replaced by its value."""
        texts = [self.message, self.detail, self.hint, self.context]
        for name, other in names.items():
            texts = [text and text.replace(name, other) for text in texts]
        message, detail, hint, context = texts
        return type(self)(message or "", self.connname, self.sqlstate, detail, hint, context, self.place)

    def __str__(self) -> str:
        parts = [without_credentials(without_values(self.message, self.sqlstate))]
        if self.connname is not None:
            parts.insert(0, f"connection {without_credentials(self.connname)!r}: ")
        if self.sqlstate:
            parts.append(f" [SQLSTATE {self.sqlstate}]")
        if self.place:
            parts.append(f"\n{self.place}")
        if self.detail:
            parts.append("\nDETAIL:  " + without_credentials(without_values(self.detail, self.sqlstate)))
        if self.context:
            parts.append("\nCONTEXT:  " + without_credentials(without_statements(self.context)))
        if self.hint:
            parts.append(f"\nHINT:  {without_credentials(self.hint)}")
        return "".join(parts)


class UsageError(DblinkError):
    """The caller's mistake, found before anything was sent or changed. A retry can't help."""


class CredentialError(UsageError):
    """The connection would use the worker's own identity (dblink's 2F003); see ``connect_u``."""


class InstallationError(UsageError):
    """The database isn't ready for jobs, and this role can't make it so. A DBA can."""


class RemoteError(DblinkError):
    """The server said no."""


class TransientError(RemoteError):
    """The connection was lost, or the server said "come back later"."""

    retryable: ClassVar[bool] = True


class ConnectError(TransientError, psycopg.OperationalError):
    """No connection could be opened: the server can't be reached, or refuses.

    It is also a psycopg error, so that code which catches psycopg's own error goes on working, and
    SQLAlchemy turns it into its own ``OperationalError`` when an engine connects. :class:`CredentialError`
    and :class:`UsageError` are not: code that catches psycopg's error expects a server that is away, not a
    connection that has to be corrected.
    """


class OutcomeUnknownError(DblinkError):
    """An earlier try may have committed, and the server can no longer tell. Never run blindly."""


class StoppedError(DblinkError):
    """The caller asked to stop (a kill); the statement was cancelled."""


class LoadLostError(RemoteError):
    """The rest of a load in parts can't be read any more: only the whole load can begin anew."""


class NoLoadError(UsageError):
    """The tables of a load in parts are gone: it has ended, or was cleaned up."""


class VerificationError(DblinkError):
    """The destination doesn't equal the source after the changes; everything was rolled back."""


class FloodError(psycopg.OperationalError):
    """The server sent more bytes than allowed."""


class StaleError(Exception):
    """A cached shape of a relation is out of date. Never leaves the builders."""


def from_psycopg(
    error: psycopg.Error,
    connname: str,
    action: str | None = None,
    *,
    unnamed: bool = False,
    place: Place | None = None,
) -> RemoteError:
    """Return our error for psycopg's, with dblink's context line.

    :param connname: link or connection of the error.
    :param unnamed: whether it is the unnamed link; then *connname* is its Airflow connection.
    :param action: the action in dblink's words: ``executing query``, ``opening cursor "c"``, ...
    :param place: its place in the user's SQL; see :func:`~airflow_dblink.core.sqltext.user_text.place_of`.
    :returns: :class:`TransientError` for a lost connection (any FATAL error) and for SQLSTATE classes
        08, 40, 53 and 57P, otherwise :class:`RemoteError`. An error without SQLSTATE gets 08006, as in
        dblink. An error of ours is returned as it is.

    Source: ``dblink_res_error`` of contrib/dblink.
    """
    if isinstance(error, ConnectError):
        return error
    diag = error.diag
    sqlstate = (diag.sqlstate or error.sqlstate or "08006")[:5]
    message = diag.message_primary or str(error).strip() or "could not obtain message string for remote error"
    if place is not None:
        message = place.corrected(message)
    context = diag.context
    if action:
        line = context_line(action, None if unnamed else connname)
        context = f"{context}\n{line}" if context else line
    fatal = diag.severity_nonlocalized in ("FATAL", "PANIC")
    hint = diag.message_hint
    if sqlstate == "25P02":
        hint = hint or 'an earlier statement failed: exec("ROLLBACK") ends the transaction'
    kind = TransientError if fatal else kind_of(sqlstate)
    lines = None if place is None else place.lines
    return kind(without_credentials(message), connname, sqlstate, diag.message_detail, hint, context, lines)


def kind_of(sqlstate: str | None) -> type[RemoteError]:
    """Return the class of an error that the server raised with that SQLSTATE."""
    return TransientError if sqlstate and sqlstate.startswith(_TRANSIENT_PREFIXES) else RemoteError


def context_line(action: str, connname: str | None) -> str:
    """Return the line that dblink appends to the CONTEXT of a remote error."""
    where = "unnamed dblink connection" if connname is None else f'dblink connection named "{connname}"'
    return f"while {action} on {where}"
