"""The base of operators that run the user's SQL in one database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_dblink.core.link.link import Link
from airflow_dblink.core.server.bind import bind
from airflow_dblink.core.sqltext.user_text import UserText
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.common.lineage import sql_lineage

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage


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

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Return the tables that *sql* reads and writes; ``None`` without the OpenLineage provider."""
        return sql_lineage(self.conn_id, self.sql, self._remote_queries(), self._done)

    def _remote_queries(self) -> Mapping[str, tuple[str, str]]:
        """Return connection and query of the remote sets in *sql*, by their names."""
        return {}

    def _bound(self, link: Link) -> UserText:
        """Return *sql* with the values of *parameters* in it."""
        written = UserText(self.sql, self._sql_name)
        if self.parameters is None:
            return written
        return bind(link.connection, link.label, written, self.parameters)
