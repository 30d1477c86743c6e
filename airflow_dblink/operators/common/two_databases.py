"""The base of operators that bring a table or query of one database into a table of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_dblink.core.sqltext.names import demand_columns
from airflow_dblink.operators.common.lineage import transfer_lineage
from airflow_dblink.operators.common.once import ExactlyOnceOperator
from airflow_dblink.operators.common.pace import PacedOperator

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage


class TwoDatabasesOperator(PacedOperator, ExactlyOnceOperator):
    """Base of the operators with a source and a destination; not one itself.

    :param source_conn_id: Airflow connection of the source. (templated)
    :param destination_conn_id: Airflow connection of the destination. (templated)
    :param destination_table: table to write, its name as in SQL. (templated)
    :param source_table: table or view to read; or (templated)
    :param source_sql: query to read, or the path of a ``.sql`` file. (templated)
    :param source_parameters: values for ``%s`` or ``%(name)s`` in *source_sql*. (templated)
    :param columns: columns to write, as a list; or as a mapping from source to destination names. (templated)
    :param key: columns that identify the destination's rows; by default the primary key. (templated)
    :param reset_sequences: move the destination's sequences beyond the written values.
    """

    def __init__(
        self,
        *,
        source_conn_id: str,
        destination_conn_id: str,
        destination_table: str,
        source_table: str | None = None,
        source_sql: str | None = None,
        source_parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        columns: Sequence[str] | Mapping[str, str] | None = None,
        key: Sequence[str] | None = None,
        reset_sequences: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source_conn_id = source_conn_id
        self.destination_conn_id = destination_conn_id
        self.destination_table = destination_table
        self.source_table = source_table
        self.source_sql = source_sql
        self.source_parameters = source_parameters
        self.columns = columns
        self.key = key
        self.reset_sequences = reset_sequences
        self._note_given(source_table=source_table, source_sql=source_sql)

    def _demand_arguments(self) -> None:
        """Raise unless the texts have values, *columns* and *key* name columns, and the limits are right.

        :raises UsageError: names the argument.
        """
        self._demand_values("source_conn_id", "destination_conn_id", "destination_table")
        demand_columns("columns", self.columns, or_mapping=True)
        demand_columns("key", self.key)
        self._demand_pace()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Return source and destination tables as datasets; ``None`` without the OpenLineage provider."""
        return transfer_lineage(
            self.source_conn_id,
            self.source_table,
            self.source_sql,
            self.destination_conn_id,
            self.destination_table,
            self._done,
        )
