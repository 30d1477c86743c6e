"""The base of operators that run the user's SQL in one database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow_dblink.core.link.link import Link
from airflow_dblink.core.server.bind import bind
from airflow_dblink.core.sqltext.user_text import UserText
from airflow_dblink.operators.common.base import DblinkBaseOperator


class SqlOperator(DblinkBaseOperator):
    """Base of the operators that run SQL in one database; not one itself.

    :param conn_id: Airflow connection of the database. (templated)
    :param sql: one statement, several, or the path of a ``.sql`` file. (templated)
    :param parameters: values for ``%s`` or ``%(name)s`` in *sql*. (templated)
    """

    _sql_name: str | None = None  # name of *sql* in errors, if other arguments are SQL, too

    def __init__(
        self,
        *,
        conn_id: str,
        sql: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id
        self.sql = sql
        self.parameters = parameters

    def _bound(self, link: Link) -> UserText:
        """Return *sql* with the values of *parameters* in it."""
        written = UserText(self.sql, self._sql_name)
        if self.parameters is None:
            return written
        return bind(link.connection, link.label, written, self.parameters)
