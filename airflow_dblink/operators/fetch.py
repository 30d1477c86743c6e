"""DblinkFetchOperator: the rows of a query in batches, to a function, a file, or (few of them) XCom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_dblink.core.server.settings import HANDED_ON
from airflow_dblink.core.server.side import Side, begin
from airflow_dblink.operators.common.known import check_known
from airflow_dblink.operators.common.rows import RowDestination
from airflow_dblink.operators.common.sql import SqlOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class DblinkFetchOperator(SqlOperator, RowDestination):
    """Fetch the rows of a query in batches: constant memory, one snapshot.

    Values are written in the same forms whatever the database's settings are (ISO dates, all digits of
    floats, ...), unless *session_settings* change them.

    Exactly one of *handler*, *path* and *max_xcom_rows* takes the rows.

    :param conn_id: Airflow connection of type ``postgres`` or ``dblink``. (templated)
    :param sql: the query, or the path of a ``.sql`` file. (templated)
    :param parameters: values for ``%s`` or ``%(name)s`` in *sql*. (templated)
    :param batch_rows: rows per batch, at least 1.
    :param handler: called with each batch, a list of tuples typed by psycopg. A retry calls it again
        from the first batch.
    :param path: URL of a file on Airflow's object storage (``file:///...``, ``s3://...``), written as CSV
        by PostgreSQL itself; compressed if it ends in ``.gz``. The file appears when it is complete,
        and replaces an older one. (templated)
    :param path_conn_id: Airflow connection of the object storage. (templated)
    :param header: whether the file begins with the column names.
    :param csv_options: options of PostgreSQL's COPY: ``delimiter``, ``null``, ``quote``, ``escape``.
    :param max_xcom_rows: push the rows as a list of lists, if there are at most this many. Values that JSON
        lacks are PostgreSQL's own text; see :mod:`airflow_dblink.core.streams.to_json`.
    :param max_xcom_bytes: limit for the rows in XCom, as JSON; if they take more, the task fails.
    :param kwargs: arguments of the base operators; also ``base_path``, a folder that *path* must be in, and
        ``file_mode``, the permissions of a file on the worker's disk (``0600``).

    :returns: (XCom) ``rows``; a file adds ``path``, a handler ``batches``, XCom ``batches`` and ``data``.
    :raises AirflowFailException: for mistakes found before anything is sent, for more rows than
        *max_xcom_rows*, and for more bytes than *max_xcom_bytes*.
    :raises RemoteError: the server's errors; the file is then missing, or still the old one.
    :raises TransientError: the same, if a retry may help.
    :raises DblinkTaskKilledError: after a kill; the query was cancelled.
    """

    template_fields: Sequence[str] = (
        "conn_id",
        "sql",
        "parameters",
        "path",
        "path_conn_id",
        "session_settings",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "sql": "postgresql",
        "parameters": "json",
        "session_settings": "json",
    }
    ui_color = "#e3f0d8"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_known(self)

    def _check_early(self) -> None:
        self._demand_values("conn_id", "sql")
        self._row_sink(self.conn_id).demand_place()

    def execute(self, context: Context) -> dict[str, Any]:
        """Fetch the rows; their count becomes the XCom return value."""
        with self._errors_for_airflow():
            self._check_early()
            sink = self._row_sink(self.conn_id)
            sink.demand_file()
            with self._hook(self.conn_id) as hook:
                link = hook.link()
                side = Side(link.connection, self.conn_id)
                # Otherwise a query could delete the rows that it returns, and a retry would not find them.
                begin(side, "BEGIN READ ONLY", self._settings(link.connection, self.conn_id, **HANDED_ON))
                result = sink.deliver(link, self.sql, self.parameters)
                side.run("COMMIT", "ending the transaction")
            self.log.info("Fetched %s", sink.told(result))
            self._tell_assets(context, result)
            return result
