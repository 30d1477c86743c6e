"""Named connections to remote databases, the way dblink keeps them per session."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Self

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link.link import Link, cut_name
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.connection import Check
from airflow_dblink.core.server.credentials import demand_credential
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.notices import Notices
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.server.wait_events import Observe

log = logging.getLogger(__name__)


class Links:
    """The registry of one session's links: the unnamed one and named ones.

    :param application_name: name of the sessions in ``pg_stat_activity``.
    :param check: called about ten times a second while any link waits; raises to stop.
    :param observe: called after every wait, with dblink's wait event.
    """

    def __init__(
        self,
        *,
        application_name: str | None = None,
        check: Check | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.application_name = application_name
        self._check = check
        self._observe = observe
        self._links: dict[str | None, Link] = {}
        self._notices = Notices()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_all()

    def connect(self, connname: str | None, target: Target, *, own_identity: bool = False) -> str:
        """Open a link to *target* under *connname* (``None``: the unnamed one, which is replaced).

        :returns: ``OK``.
        :raises UsageError: 42710 ``duplicate connection name``.
        :raises CredentialError: 2F003, see :func:`airflow_dblink.core.server.login.connect`.
        :raises TransientError: 08001 if there is no connection; an unnamed link that was open stays open.

        Model: ``dblink_connect`` and, with *own_identity*, ``dblink_connect_u``.
        """
        if connname is not None and without_credentials(connname) != connname:
            raise UsageError(
                "the name of the link holds a password",
                hint="the name comes first, then the Airflow connection's id or the connection string",
            )
        name = _cut(connname, warn=True)
        demand_credential(target, own_identity=own_identity)  # dblink checks it before the name
        self.demand_new_name(connname)
        connection = connect(
            target,
            application_name=self.application_name,
            own_identity=own_identity,
            check=self._check,
            observe=self._observe,
        )
        self._notices.log_those_of(connection, target.conn_id)
        if (replaced := self._links.pop(name, None)) is not None:
            replaced.disconnect()
        self._links[name] = Link(name, target, connection)
        return "OK"

    def demand_new_name(self, connname: str | None) -> None:
        """Raise if there is a link of that name.

        :raises UsageError: 42710 ``duplicate connection name``.
        """
        name = _cut(connname)
        if name is not None and name in self._links:
            hint = f"disconnect({name!r}) first, or use another name"
            raise UsageError("duplicate connection name", name, "42710", hint=hint)

    @contextmanager
    def one_shot(self, target: Target) -> Iterator[Link]:
        """Open a link for one call; a transaction that the call leaves open is rolled back.

        :raises CredentialError: as :meth:`connect`.
        :raises TransientError: as :meth:`connect`.

        Model: ``dblink`` and ``dblink_exec`` with a connection string.
        """
        connection = connect(
            target,
            application_name=self.application_name,
            check=self._check,
            observe=self._observe,
            event="DblinkGetConnect",
        )
        self._notices.log_those_of(connection, target.conn_id)
        link = Link(None, target, connection)
        try:
            yield link
        finally:
            link.abort()

    def get(self, connname: str | None) -> Link:
        """Return the link.

        :raises UsageError: 08003 if there is none of that name.
        """
        name = _cut(connname)
        if name not in self._links:
            raise self.not_available(connname)
        return self._links[name]

    def not_available(self, connname: str | None, hint: str = "open one with connect()") -> UsageError:
        """Return the error for a name that no link has."""
        name = _cut(connname)
        message = "connection not available"
        if name is not None:  # the user may have meant a connection string
            message = f'connection "{without_credentials(name)}" not available'
        return UsageError(message, None, "08003", hint=f"{self.open_names(name)}; {hint}")

    def open_names(self, wanted: str | None = None) -> str:
        """Return a text for errors with the names of the open links, and the one most like *wanted*."""
        names = (repr(without_credentials(name)) for name in self.names())
        like = get_close_matches(wanted or "", self.names(), n=1)
        meant = f" (did you mean {without_credentials(like[0])!r}?)" if like else ""
        return f"open named links: {', '.join(names) or 'none'}{meant}"

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
        while self._links:
            self._links.popitem()[1].disconnect()
        self._notices.say_left_out()

    def abort_all(self) -> None:
        """Cancel running statements on all links and close them, within a few seconds; never raises."""
        links = list(self._links.values())
        self._links.clear()
        if links:  # all at the same time: SIGKILL may follow in 5 s
            with ThreadPoolExecutor(len(links), thread_name_prefix="abort") as threads:
                list(threads.map(Link.abort, links))
        self._notices.say_left_out()


def _cut(connname: str | None, *, warn: bool = False) -> str | None:
    if connname is None:
        return None
    cut = cut_name(connname)
    if warn and cut != connname:
        log.warning('identifier "%s" will be truncated to "%s"', connname, cut)
    return cut
