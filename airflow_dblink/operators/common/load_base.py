"""What the tasks of a load in parts share: between which databases, which tables, which load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import LoadLostError, UsageError, VerificationError
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.load import Load, LoadSpec, set_key
from airflow_dblink.core.server.bind import Params
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sqltext.names import demand_columns
from airflow_dblink.core.sqltext.rules import demand_one_source, the_query
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.common.pace import PacedOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


@dataclass(frozen=True)
class Item:
    """A part of one table of a set.

    :ivar source: the table, as in SQL.
    :ivar destination: its counterpart.
    :ivar part: number of the part, among those of this table.
    """

    source: str
    destination: str
    part: int


def units_of(parts: Any) -> list[list[Item]]:
    """Return what each task of a set copies, from what the plan has returned.

    :raises UsageError: if it is something else.
    """
    try:
        return [[Item(str(source), str(table), int(part)) for source, table, part in unit] for unit in parts]
    except (TypeError, ValueError):
        raise UsageError("parts must be what the task that plans the set has returned") from None


@dataclass(frozen=True)
class Both:
    """Both sides of a load, and the hook that has opened the source."""

    source: Side
    destination: Side
    source_hook: DblinkHook


class LoadBaseOperator(DblinkBaseOperator):
    """Base of the tasks of a load in parts; not one itself.

    :param load_id: task_id of the task that plans the load: it tells the loads of one Dag apart. By default
        its own.
    :param source_conn_id: Airflow connection that is read. (templated)
    :param destination_conn_id: Airflow connection that is written. (templated)
    :param destination_table: table whose place the loaded one takes, as in SQL; none for a set. (templated)
    :param source_table: table that is read, as in SQL; none for a set. (templated)
    :param source_sql: in its place, a query, or the path of a ``.sql`` file. (templated)
    :param source_parameters: values for ``%s`` or ``%(name)s`` in *source_sql*. (templated)
    :param columns: which columns, as a list; or as a mapping from source to destination names. (templated)
    """

    template_fields: Sequence[str] = (
        "source_conn_id",
        "destination_conn_id",
        "destination_table",
        "source_table",
        "source_sql",
        "source_parameters",
        "columns",
        "session_settings",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "source_sql": "postgresql",
        **dict.fromkeys(("source_parameters", "columns", "session_settings"), "json"),
    }
    ui_color = "#f5e3cf"

    def __init__(
        self,
        *,
        source_conn_id: str,
        destination_conn_id: str,
        destination_table: str | None = None,
        source_table: str | None = None,
        source_sql: str | None = None,
        source_parameters: Params | None = None,
        columns: Sequence[str] | Mapping[str, str] | None = None,
        load_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.load_id = load_id
        self.source_conn_id = source_conn_id
        self.destination_conn_id = destination_conn_id
        self.destination_table = destination_table
        self.source_table = source_table
        self.source_sql = source_sql
        self.source_parameters = source_parameters
        self._note_given(source_sql=source_sql)
        self.columns = columns

    @property
    def is_set(self) -> bool:
        """Whether the load is one of a set of tables."""
        return self.destination_table is None and self.source_table is None and self.source_sql is None

    def _check_early(self) -> None:
        self._demand_values("source_conn_id", "destination_conn_id")
        if not self.is_set:
            self._spec()
        elif self.columns is not None:
            raise UsageError("columns is for one table, not for a set", hint="leave columns out")

    def _spec(self) -> LoadSpec:
        self._demand_values("destination_table")
        if self.source_sql is None:
            self._demand_values("source_table")
        demand_one_source(self.source_table, self.source_sql, self.source_parameters)
        if self.source_sql is not None:
            the_query(self.source_sql, conn_id=self.source_conn_id)
        demand_columns("columns", self.columns, or_mapping=True)
        return LoadSpec(
            str(self.destination_table),
            self.source_table,
            self.columns,
            self.source_sql,
            self.source_parameters,
        )

    def _load(self, context: Context, destination: Side, parts: Any) -> Load:
        """Return the load.

        :param parts: of a set, what its plan has returned, or the items of one part.
        """
        if not self.is_set:
            return self._load_of(context, destination, [self._spec()])
        pairs = dict.fromkeys((item.source, item.destination) for unit in units_of(parts) for item in unit)
        specs = [LoadSpec(destination_table, source_table) for source_table, destination_table in pairs]
        return self._load_of(context, destination, specs)

    def _load_of(self, context: Context, destination: Side, specs: Sequence[LoadSpec]) -> Load:
        settings = self._settings(destination.connection, destination.conn_id)
        return Load.of(destination, specs, settings, self._names(context))

    def _set_key(
        self, context: Context, destination: Side, tables: Any, exclude: Any, schemas: Any
    ) -> LoadKey:
        """Return the key of the snapshot that all tables of a set share."""
        named = {"tables": tables, "exclude": exclude, "schemas": schemas}
        return set_key(destination, {**self._names(context), **named})

    def _names(self, context: Context) -> dict[str, Any]:
        ti = context["ti"]
        return {"dag_id": ti.dag_id, "run_id": ti.run_id, "load_id": self.load_id or ti.task_id}

    @contextmanager
    def _sides(self) -> Iterator[Both]:
        """Give both sides."""
        with (
            self._no_retry_in_vain(),
            self._hook(self.source_conn_id) as source,
            self._hook(self.destination_conn_id) as destination,
        ):
            yield Both(
                Side(source.link().connection, self.source_conn_id),
                Side(destination.link().connection, self.destination_conn_id),
                source,
            )

    @contextmanager
    def _destination(self) -> Iterator[tuple[DblinkHook, Side]]:
        """Give the destination alone, for what needs no source any more."""
        with self._no_retry_in_vain(), self._hook(self.destination_conn_id) as hook:
            yield hook, Side(hook.link().connection, self.destination_conn_id)

    @contextmanager
    def _no_retry_in_vain(self) -> Iterator[None]:
        """Fail for good on a mistake, or on a load that is lost."""
        with self._errors_for_airflow():
            self._check_early()
            try:
                yield
            except (LoadLostError, VerificationError) as error:
                raise AirflowFailException(str(error)) from None


class PacedLoadBaseOperator(PacedOperator, LoadBaseOperator):
    """Base of the tasks that begin a load and copy its parts; not one itself."""

    template_fields: Sequence[str] = (
        *LoadBaseOperator.template_fields,
        "max_mb_per_s",
        "pause_while",
        "pause_while_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **LoadBaseOperator.template_fields_renderers,
        "pause_while": "postgresql",
    }

    def _check_early(self) -> None:
        super()._check_early()
        self._demand_pace()
