"""OpenLineage datasets of a transfer or a sync: names of tables, never their rows, never credentials."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from airflow_dblink.hooks.dblink import DblinkHook

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

_NAME = re.compile(r'"((?:[^"]|"")*)"|([^".\s]+)')


def transfer_lineage(
    source_conn_id: str,
    source_table: str | None,
    source_sql: str | None,
    destination_conn_id: str,
    destination_table: str,
) -> OperatorLineage[Any, Any] | None:
    """Return the input and output datasets of a move, ``None`` without the OpenLineage provider.

    A query's tables are found by OpenLineage's own SQL parser.

    :param source_table: table name as in SQL; without it, the tables in *source_sql* are the inputs.
    :param destination_table: table name as in SQL.
    """
    try:
        from airflow.providers.common.compat.openlineage.facet import Dataset
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    output = _Place(destination_conn_id)
    source = _Place(source_conn_id)
    if source_table:
        inputs = [Dataset(*source.dataset(source_table))]
    else:
        inputs = [Dataset(*name) for name in source.tables_of(source_sql or "")]
    return OperatorLineage(inputs=inputs, outputs=[Dataset(*output.dataset(destination_table))])


class _Place:
    """A database in OpenLineage's naming: namespace ``postgres://host:port``, name ``db.schema.table``."""

    def __init__(self, conn_id: str) -> None:
        hook = DblinkHook(dblink_conn_id=conn_id)
        self._info: Any = hook.get_openlineage_database_info(hook.connection)
        self.namespace = f"{self._info.scheme}://{self._info.authority}"

    def dataset(self, relname: str) -> tuple[str, str]:
        """Return namespace and name of a table whose name is written as in SQL."""
        names = [
            quoted.replace('""', '"') if quoted else bare.lower() for quoted, bare in _NAME.findall(relname)
        ]
        return self.namespace, ".".join(
            [self._info.database, *(["public", *names] if len(names) < 2 else names)]
        )

    def tables_of(self, sql: str) -> list[tuple[str, str]]:
        from airflow.providers.openlineage.sqlparser import SQLParser

        metadata = SQLParser(dialect="postgres", default_schema="public").parse(sql)
        tables = metadata.in_tables if metadata else []
        names = [f"{self._info.database}.{table.schema or 'public'}.{table.name}" for table in tables]
        return [(self.namespace, name) for name in names]
