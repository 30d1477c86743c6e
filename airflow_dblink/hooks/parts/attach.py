"""The hook's function that dblink lacks: results of other databases as temporary tables of a link."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow_dblink.core.link.link import Link
from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.remote_sets.attach import attach_to_link
from airflow_dblink.core.remote_sets.remote import Remote, remotes_by_table
from airflow_dblink.core.server.connection import Check
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.server.target import Target
from airflow_dblink.hooks.parts.task import report, task_name


class AttachSide(ABC):
    """Remote sets on a link; :class:`DblinkHook` finds the connections."""

    _check: Check | None

    @abstractmethod
    def link(self, connname: str | None = None) -> Link:
        """Return the link."""

    @abstractmethod
    def target(self, conn_id: str | None = None) -> Target:
        """Return the target of *conn_id*."""

    def attach(
        self,
        remotes: Mapping[str, Remote | Mapping[str, Any]],
        *,
        connname: str | None = None,
        analyze: bool = True,
    ) -> dict[str, int]:
        """Copy the results of remote queries into temporary tables of a link, to join them with its tables.

        The remotes are read at the same time, each in one read-only transaction, and so from one snapshot;
        the servers have no common snapshot. The end of your transaction drops the tables; if you began none,
        they last as long as the link is open.

        :param remotes: remote sets by the name of the table, which is read as in SQL: it becomes lower case
            unless in double quotes. Values are :class:`~airflow_dblink.core.remote_sets.remote.Remote`, or
            dicts with its fields.
        :param analyze: ANALYZE each table, so that the planner knows its size.
        :returns: number of rows by name.
        :raises UsageError: before a row moves, if a set can't work: names the set, column or connection.
            08003 if no link of that name is open.
        :raises RemoteError: a server's error, with the name of its connection. The link, and its
            transaction, are then as before.
        :raises TransientError: the same, if a connection is lost.
        """
        found = remotes_by_table(remotes)
        link = self.link(connname)
        with self.remote_sides(remote.conn_id for remote in found.values()) as sources:
            counts = attach_to_link(link, found, sources, analyze=analyze)
        return dict(zip(remotes, counts.values(), strict=True))

    @contextmanager
    def remote_sides(self, conn_ids: Iterable[str]) -> Iterator[dict[str, Side]]:
        """Open a connection to each of *conn_ids*; at the end all are closed, or aborted together.

        :raises CredentialError, UsageError, TransientError: as :meth:`connect`.
        """
        links = Links(application_name=task_name(), check=self._check, observe=report)
        sides: dict[str, Side] = {}
        try:
            for conn_id in dict.fromkeys(conn_ids):
                links.connect(str(len(sides)), self.target(conn_id))
                sides[conn_id] = Side(links.get(str(len(sides))).connection, conn_id)
            yield sides
        except BaseException:
            links.abort_all()
            raise
        links.close_all()
