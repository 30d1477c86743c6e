"""OpenLineage datasets of our operators: names of tables, never their rows, never credentials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.sqltext.names import split_identifier
from airflow_dblink.hooks.dblink import DblinkHook

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

_Name = tuple[str, str]


def transfer_lineage(
    source_conn_id: str,
    source_table: str | None,
    source_sql: str | None,
    destination_conn_id: str,
    destination_table: str,
    facts: Mapping[str, Any],
) -> OperatorLineage[Any, Any] | None:
    """Return the input and output datasets of a move, ``None`` without the OpenLineage provider.

    A query's tables are found by OpenLineage's own SQL parser.

    :param source_table: table name as in SQL; without it, the tables in *source_sql* are the inputs.
    :param destination_table: table name as in SQL.
    :param facts: numbers of the result: the output's statistics.
    """
    if not _is_wanted():
        return None
    source = _Place(source_conn_id)
    inputs = [source.dataset(source_table)] if source_table else source.tables_of(source_sql or "")[0]
    return _lineage(inputs, [_Place(destination_conn_id).dataset(destination_table)], facts)


def sql_lineage(
    conn_id: str, sql: str, remotes: Mapping[str, _Name], facts: Mapping[str, Any]
) -> OperatorLineage[Any, Any] | None:
    """Return the tables that *sql* reads and writes, ``None`` without the OpenLineage provider.

    :param remotes: connection and query of remote sets, by their names: these are no tables of *conn_id*.
    :param facts: numbers of the result: the output's statistics, if there is one output.
    """
    if not _is_wanted():
        return None
    inputs, outputs = _Place(conn_id).tables_of(sql, without=remotes)
    for there, query in remotes.values():
        inputs += _Place(there).tables_of(query)[0]
    return _lineage(inputs, outputs, facts)


def _is_wanted() -> bool:
    """Return whether the OpenLineage provider is installed."""
    try:
        import airflow.providers.openlineage.extractors  # noqa: F401
    except ImportError:
        return False
    return True


def _lineage(
    inputs: Iterable[_Name], outputs: Iterable[_Name], facts: Mapping[str, Any]
) -> OperatorLineage[Any, Any]:
    from airflow.providers.common.compat.openlineage.facet import (
        InputDataset,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
    )
    from airflow.providers.openlineage.extractors import OperatorLineage

    read = [InputDataset(namespace=place, name=name) for place, name in dict.fromkeys(inputs)]
    written = [OutputDataset(namespace=place, name=name) for place, name in dict.fromkeys(outputs)]
    rows = facts.get("changed", facts.get("rows"))
    if "inserted" in facts:
        rows = sum(facts.get(name, 0) for name in ("inserted", "updated", "deleted"))
    if len(written) == 1 and rows is not None:
        statistics = OutputStatisticsOutputDatasetFacet(rowCount=rows, size=facts.get("bytes"))
        written = [
            OutputDataset(
                namespace=written[0].namespace,
                name=written[0].name,
                outputFacets={"outputStatistics": statistics},
            )
        ]
    return OperatorLineage(inputs=read, outputs=written)


class _Place:
    """A database in OpenLineage's naming: namespace ``postgres://host:port``, name ``db.schema.table``."""

    def __init__(self, conn_id: str) -> None:
        hook = DblinkHook(dblink_conn_id=conn_id)
        self._info: Any = hook.get_openlineage_database_info(hook.connection)
        self.namespace = f"{self._info.scheme}://{self._info.authority}"

    def dataset(self, relname: str) -> _Name:
        """Return namespace and name of a table whose name is written as in SQL."""
        try:
            parts = split_identifier("table", relname)
        except UsageError:
            parts = (relname,)
        return self._named(parts[0] if len(parts) > 1 else None, parts[-1])

    def _named(self, schema: str | None, table: str) -> _Name:
        return self.namespace, f"{self._info.database}.{schema or 'public'}.{table}"

    def tables_of(self, sql: str, without: Iterable[str] = ()) -> tuple[list[_Name], list[_Name]]:
        """Return the tables that *sql* reads and writes."""
        from airflow.providers.openlineage.sqlparser import SQLParser

        parser = SQLParser(dialect="postgres", default_schema="public")
        found = parser.parse(parser.split_sql_string(sql))
        if found is None:
            return [], []
        left_out = {*without}
        return (
            [self._named(t.schema, t.name) for t in found.in_tables if t.name not in left_out],
            [self._named(t.schema, t.name) for t in found.out_tables if t.name not in left_out],
        )
