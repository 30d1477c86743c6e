"""DblinkNewRowsOperator: bring the rows that are new since the last run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import Asset

from airflow_dblink.core.server.side import Side, in_transaction
from airflow_dblink.core.sqltext.names import demand_characters
from airflow_dblink.core.transfer.new_rows import Seen, look, new_rows
from airflow_dblink.core.transfer.plan import Spec
from airflow_dblink.operators.common.known import check_known
from airflow_dblink.operators.common.moving import MovingOperator
from airflow_dblink.operators.common.sync.watermark import watermark_key, watermark_store
from airflow_dblink.operators.common.two_databases import TwoDatabasesOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class DblinkNewRowsOperator(TwoDatabasesOperator, MovingOperator):
    """Bring the rows of a table that were committed since the last run; none is missed, and none comes twice.

    Which rows are new is decided by the transaction that wrote them, not by a time or a sequence: a
    transaction that commits late is found by the next run. So a column of type ``xid8`` is needed::

        ALTER TABLE orders ADD COLUMN xid xid8 DEFAULT pg_current_xact_id();
        CREATE INDEX ON orders (xid);

    The last snapshot is kept in the state of an asset of the task. It is void after a promotion or a restore
    of the source; the task then fails, and says so. The source is only read, but must be no standby. Updated
    rows are new if a trigger sets the column; deleted rows aren't seen. The rows are merged by *key*
    (``INSERT ... ON CONFLICT``). Two runs must not overlap, or the older one could write older values: give
    the Dag ``max_active_runs=1``.

    :param source_conn_id: Airflow connection of the source. (templated)
    :param source_table: table to read, its name as in SQL. (templated)
    :param destination_conn_id: Airflow connection of the destination. (templated)
    :param destination_table: table to write, its name as in SQL. (templated)
    :param xid_column: name of the column. It is copied if the destination has a column of that name.
        (templated)
    :param columns: columns to write, as a list; or as a mapping from source to destination names. (templated)
    :param key: columns that identify the destination's rows; by default the primary key. (templated)
    :param max_mb_per_s: largest number of MB (10^6 bytes of COPY data) per second. ``None``: no limit.
        (templated)
    :param pause_while: a query, or the path of a ``.sql`` file: while it returns true, rows wait. It runs
        by itself, in a session of its own. (templated)
    :param pause_while_conn_id: Airflow connection on which *pause_while* runs; by default the destination's.
        (templated)
    :param watermark_asset: the inlet or outlet whose state has the snapshot; by default the task's only one.
    :param kwargs: arguments of the base operators: ``reset_sequences``, ``orphan_timeout``, ...

    :returns: (XCom) the fields of :class:`~airflow_dblink.operators.transfer.DblinkTransferOperator`, and
        ``seen``: the snapshot, and the server that it belongs to.
    :raises AirflowFailException: for mistakes in the arguments; if the column isn't there; if the source is a
        standby, or was promoted or restored since the last run.
    :raises RemoteError: what a server says; nothing is changed then.
    """

    template_fields: Sequence[str] = (
        *("source_conn_id", "source_table", "destination_conn_id", "destination_table"),
        *("xid_column", "columns", "key", "session_settings"),
        *("max_mb_per_s", "pause_while", "pause_while_conn_id"),
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "pause_while": "postgresql",
        "columns": "json",
        "key": "json",
        "session_settings": "json",
    }
    ui_color = "#f5e3cf"
    _before: Seen | None = None

    def __init__(
        self,
        *,
        source_table: str,
        xid_column: str = "xid",
        watermark_asset: Asset | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(source_table=source_table, mode="upsert", **kwargs)
        self.xid_column = xid_column
        self.watermark_asset = watermark_asset
        check_known(self)

    def _check_early(self) -> None:
        self._demand_arguments()
        self._demand_values("source_table", "xid_column")
        demand_characters("xid_column", self.xid_column)
        self._spec("SELECT 1").check(self.source_conn_id)

    def _spec(self, source_sql: str) -> Spec:
        return Spec(
            destination_table=self.destination_table,
            source_sql=source_sql,
            mode="upsert",
            columns=self.columns,
            key=self.key,
            reset_sequences=self.reset_sequences,
            one_snapshot=True,
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Bring the new rows, and keep the snapshot; the counts become the XCom return value."""
        with self._errors_for_airflow():
            self._check_early()
            key = self._watermark_key
            store = watermark_store(context, self.watermark_asset, [*self.inlets, *self.outlets], key)
            kept = store.get(key)
            self._before = None if kept is None else Seen.of(kept)
            with self._pace(self.destination_conn_id) as pace:
                where = self.source_conn_id, self.destination_conn_id
                result = self._move(context, *where, self._spec(self._query()), pace)
            seen = Seen.of(result.get("seen"))
            if self._before is None or seen.xmax >= self._before.xmax:
                store.set(key, seen.as_dict())
                self.log.info("Rows up to snapshot %s are read (asset state %s).", seen.snapshot, key)
            self._tell_assets(context, result)
            return result

    @property
    def _watermark_key(self) -> str:
        work = (
            *(self.destination_conn_id, self.destination_table, self.source_conn_id, self.source_table),
            *(self.columns, self.key, self.xid_column),
        )
        return f"{watermark_key(work, ())}_snapshot"

    def _query(self) -> str:
        """Return the query for the new rows; the names are looked up under the task's settings."""
        with self._hook(self.source_conn_id) as there, self._hook(self.destination_conn_id) as here:
            source = Side(there.link().connection, self.source_conn_id)
            destination = Side(here.link().connection, self.destination_conn_id)
            with (
                in_transaction(source, self._settings(source.connection, source.conn_id), "reading"),
                in_transaction(
                    destination, self._settings(destination.connection, destination.conn_id), "reading"
                ),
            ):
                look(source, self._before)
                return new_rows(
                    source,
                    destination,
                    source_table=self.source_table or "",
                    destination_table=self.destination_table,
                    xid_column=self.xid_column,
                    columns=self.columns,
                    before=self._before,
                )

    def _facts(self, source: Side) -> Mapping[str, Any]:
        """Return the snapshot of the source's transaction, which reads the rows."""
        return {"seen": look(source, self._before).as_dict()}
