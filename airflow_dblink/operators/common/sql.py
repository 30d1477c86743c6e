"""What operators share that run SQL of the user's in one database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow_dblink.core.link.link import Link
from airflow_dblink.operators.common.base import DblinkBaseOperator


class SqlOperator(DblinkBaseOperator):
    """Base of the operators that run SQL in one database; not one itself.

    :param conn_id: Airflow connection of the database. (templated)
    :param sql: one statement, several, or the path of a ``.sql`` file. (templated)
    :param parameters: values for ``%s`` or ``%(name)s`` in *sql*. (templated)
    """

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

    def _bound(self, link: Link) -> str:
        """Return *sql* with the values of *parameters* in it."""
        if self.parameters is None:
            return self.sql
        return link.compose(self.sql, self.parameters).as_string(link.connection)
