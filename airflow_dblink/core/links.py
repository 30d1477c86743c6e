"""Named connections to remote databases, the way dblink keeps them per session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Self

from airflow_dblink.core.connection import Check, check_credential, connect, log_notices
from airflow_dblink.core.conninfo import Target
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link import Link, cut_name

log = logging.getLogger(__name__)


class Links:
    """The registry of one session's links: the unnamed one and named ones.

    :param check: asked about ten times a second while any link waits; raises to stop.
    """

    def __init__(self, *, application_name: str | None = None, check: Check | None = None) -> None:
        self.application_name = application_name
        self._check = check
        self._links: dict[str | None, Link] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_all()

    def connect(self, connname: str | None, target: Target, *, own_identity: bool = False) -> str:
        """Open a link to *target* under *connname* (``None``: the unnamed one, which is replaced).

        :returns: ``OK``.
        :raises UsageError: 42710 ``duplicate connection name``.
        :raises CredentialError: 2F003, see :func:`airflow_dblink.core.connection.connect`.
        :raises TransientError: 08001. An unnamed link that was open stays so.

        Model: ``dblink_connect`` and, with *own_identity*, ``dblink_connect_u``.
        """
        name = _cut(connname, warn=True)
        check_credential(target, own_identity=own_identity)  # dblink looks at it before the name
        if name is not None and name in self._links:
            raise UsageError(
                "duplicate connection name",
                name,
                "42710",
                hint=f"disconnect({name!r}) first, or use another name",
            )
        connection = connect(
            target, application_name=self.application_name, own_identity=own_identity, check=self._check
        )
        log_notices(connection, target.conn_id)
        if (replaced := self._links.pop(name, None)) is not None:
            replaced.disconnect()
        self._links[name] = Link(name, target, connection)
        return "OK"

    def get(self, connname: str | None) -> Link:
        """Return the link.

        :raises UsageError: 08003 if there is none of that name.
        """
        name = _cut(connname)
        if name in self._links:
            return self._links[name]
        names = ", ".join(map(repr, self.names())) or "none"
        message = "connection not available" if name is None else f'connection "{name}" not available'
        raise UsageError(message, None, "08003", hint=f"open named links: {names}; open one with connect()")

    def __contains__(self, connname: str | None) -> bool:
        return _cut(connname) in self._links

    def names(self) -> list[str]:
        """Return the names of the open named links, dead ones included, in the order of connecting."""
        return [name for name in self._links if name is not None]

    def disconnect(self, connname: str | None) -> str:
        """Close a link; an open remote transaction is lost.

        :returns: ``OK``.
        :raises UsageError: 08003 if there is none of that name.
        """
        link = self.get(connname)
        del self._links[link.name]
        link.disconnect()
        return "OK"

    def close_all(self) -> None:
        """Close every link."""
        self._end_all(Link.disconnect)

    def abort_all(self) -> None:
        """Cancel what runs on every link and close them, within some seconds; never raises."""
        self._end_all(Link.abort)

    def _end_all(self, end: Callable[[Link], None]) -> None:
        while self._links:
            end(self._links.popitem()[1])


def _cut(connname: str | None, *, warn: bool = False) -> str | None:
    if connname is None:
        return None
    cut = cut_name(connname)
    if warn and cut != connname:
        log.warning('identifier "%s" will be truncated to "%s"', connname, cut)
    return cut
