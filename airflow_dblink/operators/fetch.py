"""DblinkFetchOperator: the rows of a query in batches, to a function, a file, or (few of them) XCom."""

from __future__ import annotations

import gzip
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import IO, TYPE_CHECKING, Any, ClassVar, cast

from airflow.sdk import ObjectStoragePath

from airflow_dblink.core.connection import set_config
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link import Link
from airflow_dblink.core.tables import Side
from airflow_dblink.core.unload import csv_batches
from airflow_dblink.core.wire import Row
from airflow_dblink.operators.base import DblinkBaseOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

Handler = Callable[[list[Row]], object]
_PLAIN = (str, int, float, bool, type(None))


class DblinkFetchOperator(DblinkBaseOperator):
    """Fetch the rows of a query in batches: constant memory, one snapshot.

    Exactly one of *handler*, *path* and *max_xcom_rows* says where the rows go.

    :param conn_id: Airflow connection of type ``postgres`` or ``dblink``. (templated)
    :param sql: the query, or the path of a ``.sql`` file. (templated)
    :param parameters: values for ``%s`` or ``%(name)s`` in *sql*. (templated)
    :param batch_rows: rows per batch, at least 1.
    :param handler: called with each batch, a list of tuples typed by psycopg. A retry calls it again
        from the first batch.
    :param path: URL of a file on Airflow's object storage (``file:///...``, ``s3://...``), written as CSV
        by PostgreSQL itself; compressed if it ends in ``.gz``. The file appears when it is complete,
        and replaces what was there. (templated)
    :param path_conn_id: Airflow connection of the object storage. (templated)
    :param header: whether the file begins with the column names.
    :param csv_options: of PostgreSQL's COPY: ``delimiter``, ``null``, ``quote``, ``escape``.
    :param max_xcom_rows: push the rows as a list of lists, at most so many. Values that JSON lacks
        become text.

    :returns: (XCom) ``{"rows": ..., "batches": ...}``, with ``path`` for a file and ``data`` for XCom.
    :raises AirflowFailException: for mistakes found before anything is sent, and for more rows than
        *max_xcom_rows*.
    :raises RemoteError: what the server says; the file is then not there, or the old one.
    :raises TransientError: the same, where a retry may help.
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

    def __init__(
        self,
        *,
        conn_id: str,
        sql: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        batch_rows: int = 10_000,
        handler: Handler | None = None,
        path: str | None = None,
        path_conn_id: str | None = None,
        header: bool = True,
        csv_options: Mapping[str, str] | None = None,
        max_xcom_rows: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id
        self.sql = sql
        self.parameters = parameters
        self.batch_rows = batch_rows
        self.handler = handler
        self.path = path
        self.path_conn_id = path_conn_id
        self.header = header
        self.csv_options = csv_options
        self.max_xcom_rows = max_xcom_rows

    def execute(self, context: Context) -> dict[str, Any]:
        """Fetch the rows; their count becomes the XCom return value."""
        with self._errors_for_airflow():
            self._check_arguments()
            with self._hook(self.conn_id) as hook:
                link = hook.link()
                side = Side(link.connection, self.conn_id)
                # What a query deletes would be gone, and its rows lost to a retry.
                side.run("BEGIN READ ONLY", "beginning the transaction")
                # All rows are read: the planner should not favour the first, as it does for cursors.
                settings = self._settings(link.connection, self.conn_id, cursor_tuple_fraction="1")
                side.run(set_config(settings.items(), local=True), "setting up the transaction")
                result = self._to_file(link, self.path) if self.path else self._to_handler(link)
                side.run("COMMIT", "ending the transaction")
            self.log.info("Fetched %s rows in %s batches", result["rows"], result["batches"])
            return result

    def _check_arguments(self) -> None:
        given = [
            name
            for name in ("handler", "path", "max_xcom_rows")
            if getattr(self, name) is not None and getattr(self, name) != ""
        ]
        if len(given) != 1:
            raise UsageError(
                f"give exactly one of handler, path and max_xcom_rows, got {', '.join(given) or 'none'}",
                self.conn_id,
                hint="rows without a bound do not belong into XCom: use path or handler",
            )
        unknown = set(self.csv_options or {}) - {"delimiter", "null", "quote", "escape"}
        if unknown:
            raise UsageError(f"csv_options has no {', '.join(sorted(unknown))}", self.conn_id)

    def _to_handler(self, link: Link) -> dict[str, Any]:
        kept: list[list[Any]] = []
        rows = batches = 0
        for batch in link.batches(self.sql, self.parameters, self.batch_rows):
            self._check()
            rows, batches = rows + len(batch), batches + 1
            if self.handler is not None:
                self.handler(batch)
                continue
            if rows > (self.max_xcom_rows or 0):
                raise UsageError(
                    f"the query gives more than max_xcom_rows={self.max_xcom_rows} rows",
                    self.conn_id,
                    hint="limit the query, or use path or handler",
                )
            kept.extend([_jsonable(value) for value in row] for row in batch)
        result: dict[str, Any] = {"rows": rows, "batches": batches}
        return result if self.handler is not None else {**result, "data": kept}

    def _to_file(self, link: Link, path: str) -> dict[str, Any]:
        target = ObjectStoragePath(path, conn_id=self.path_conn_id)
        partial = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = batches = 0
        try:
            with ExitStack() as stack:
                file = stack.enter_context(partial.open("wb"))  # type: ignore[no-untyped-call] # Airflow's
                if path.endswith(".gz"):
                    # Without name and time in its header, the same rows are the same bytes.
                    binary = cast("IO[bytes]", file)
                    file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=binary, mtime=0))
                batch_source = csv_batches(
                    link,
                    self.sql,
                    self.parameters,
                    batch_rows=self.batch_rows,
                    header=self.header,
                    **(self.csv_options or {}),
                )
                for data, count in batch_source:
                    self._check()
                    file.write(data)
                    rows, batches = rows + count, batches + (count > 0)
                self._check()
            partial.fs.mv(partial.path, target.path)
        except BaseException:
            with suppress(FileNotFoundError):
                partial.unlink()
            raise
        return {"rows": rows, "batches": batches, "path": path}


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, bytes):
        return rf"\x{value.hex()}"  # as PostgreSQL writes it
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    return str(value)
