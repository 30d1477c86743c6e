"""The place that an operator hands its rows to: a function, a CSV file, or (few of them) XCom."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link.link import Link
from airflow_dblink.core.link.messages import Row
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.bind import Params, Statement
from airflow_dblink.core.streams.to_csv import csv_chunks
from airflow_dblink.core.streams.to_json import JsonValues
from airflow_dblink.operators.common.arguments import flag, whole_number
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.common.files import OWN, FileWritingOperator, demand_file, demand_mode, new_file

Handler = Callable[[list[Row]], object]
#: Default limit for the rows in XCom, in bytes of their JSON.
MAX_XCOM_BYTES = 10_000_000


@dataclass(frozen=True)
class RowSink:
    """The place for rows: exactly one of *handler*, *path* and *max_xcom_rows* must be given.

    The fields are the arguments of :class:`RowDestination`.

    :ivar conn_id: for errors; ``None`` if it isn't known yet.
    :ivar check: called for each batch; raises to stop.
    """

    conn_id: str | None
    check: Callable[[], None]
    batch_rows: int = 10_000
    handler: Handler | None = None
    path: str | None = None
    path_conn_id: str | None = None
    base_path: str | None = None
    file_mode: str = OWN
    header: bool = True
    csv_options: Mapping[str, str] = field(default_factory=dict)
    max_xcom_rows: int | None = None
    max_xcom_bytes: int = MAX_XCOM_BYTES

    @property
    def given(self) -> list[str]:
        """Names of the places that are given."""
        return [name for name in ("handler", "path", "max_xcom_rows") if getattr(self, name) is not None]

    def demand_file(self) -> None:
        """Raise unless the path, if one is given, can be a file's; this looks at the object storage.

        :raises UsageError: names the argument.
        """
        if self.path is not None:
            demand_file("path", self.path, self.path_conn_id, self.base_path)

    def demand_place(self) -> None:
        """Raise unless exactly one place is given, and all CSV options exist.

        :raises UsageError: names the argument.
        """
        if len(self.given) != 1:
            raise UsageError(
                f"give exactly one of handler, path and max_xcom_rows, got {', '.join(self.given) or 'none'}",
                self.conn_id,
                hint="any number of rows can go to path or handler; XCom is for a few",
            )
        if unknown := set(self.csv_options) - {"delimiter", "null", "quote", "escape"}:
            raise UsageError(f"csv_options has no {', '.join(sorted(map(str, unknown)))}", self.conn_id)
        if self.path is not None:
            demand_mode(self.file_mode)

    def deliver(
        self, link: Link, statement: Statement, params: Params | None = None, *, expected: int | None = None
    ) -> dict[str, Any]:
        """Read the rows of *statement* and hand them on.

        :param expected: number of rows that there must be; otherwise no file appears.
        :returns: ``rows``; a file adds ``path``, a handler ``batches``, XCom ``batches`` and ``data``.
        :raises UsageError: for more rows than *max_xcom_rows*, or more bytes than *max_xcom_bytes*; if there
            are not as many rows as *expected*.
        :raises RemoteError: the server's errors; the file is then missing, or still the old one.
        """
        if self.path is not None:
            return self._to_file(link, statement, params, self.path, expected)
        result = self._to_handler(link, statement, params)
        self._demand(result["rows"], expected)
        return result

    def told(self, result: Mapping[str, Any]) -> str:
        """Return the result of :meth:`deliver` for the log: the number of rows, and their place."""
        rows = f"{result['rows']:,} rows"
        if self.path is not None:
            return f"{rows} to {without_credentials(self.path)}"
        if self.handler is not None:
            name = getattr(self.handler, "__qualname__", type(self.handler).__name__)
            return f"{rows} in {result['batches']:,} batches to handler {name}"
        return f"{rows} to XCom"

    def _demand(self, rows: int, expected: int | None) -> None:
        if expected is not None and rows != expected:
            raise UsageError(
                f"the result holds {rows} rows, but the job wrote {expected}",
                self.conn_id,
                hint="somebody has changed it since: send the job anew",
            )

    def _to_handler(self, link: Link, statement: Statement, params: Params | None) -> dict[str, Any]:
        kept: list[Any] = []
        rows = batches = size = 0
        batch_rows, values = self.batch_rows, None
        if self.max_xcom_rows is not None:
            # One row more than allowed is enough to refuse the rows.
            batch_rows, values = min(batch_rows, self.max_xcom_rows + 1), JsonValues(link.connection)
        for batch in link.batches(statement, params, batch_rows, values):
            self.check()
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
            for row in map(list, batch):
                size += len(json.dumps(row))  # row by row, since a few rows may already be large
                if size > self.max_xcom_bytes:
                    raise UsageError(
                        f"the rows take more than max_xcom_bytes={self.max_xcom_bytes} bytes as JSON",
                        self.conn_id,
                        hint="use path or handler; or raise max_xcom_bytes, if XCom's storage takes so much",
                    )
                kept.append(row)
        result: dict[str, Any] = {"rows": rows, "batches": batches}
        return result if self.handler is not None else {**result, "data": kept}

    def _to_file(
        self, link: Link, statement: Statement, params: Params | None, path: str, expected: int | None
    ) -> dict[str, Any]:
        rows = 0
        with new_file(path, self.path_conn_id, demand_mode(self.file_mode)) as file:
            for data, count in csv_chunks(link, statement, params, header=self.header, **self.csv_options):
                self.check()
                file.write(data)
                rows += count
            self.check()
            self._demand(rows, expected)
        return {"rows": rows, "path": path}


class RowDestination(FileWritingOperator, DblinkBaseOperator):
    """Base of the operators that hand on rows; not one itself.

    At most one of *handler*, *path* and *max_xcom_rows* takes the rows.

    :param batch_rows: rows per batch, at least 1.
    :param handler: called with each batch, a list of tuples typed by psycopg.
    :param path: URL of a CSV file on Airflow's object storage. (templated)
    :param path_conn_id: Airflow connection of the object storage. (templated)
    :param header: whether the file begins with the column names.
    :param csv_options: options of PostgreSQL's COPY: ``delimiter``, ``null``, ``quote``, ``escape``.
    :param max_xcom_rows: push the rows as a list of lists, if there are at most this many.
    :param max_xcom_bytes: limit for the rows in XCom, as JSON; if they take more, the task fails.
    """

    def __init__(
        self,
        *,
        batch_rows: int = 10_000,
        handler: Handler | None = None,
        path: str | None = None,
        path_conn_id: str | None = None,
        header: bool = True,
        csv_options: Mapping[str, str] | None = None,
        max_xcom_rows: int | None = None,
        max_xcom_bytes: int = MAX_XCOM_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch_rows = batch_rows
        self.handler = handler
        self.path = path
        self.path_conn_id = path_conn_id
        self.header = header
        self.csv_options = csv_options
        self.max_xcom_rows = max_xcom_rows
        self.max_xcom_bytes = max_xcom_bytes
        self._note_given(path=path)

    def _row_sink(self, conn_id: str | None) -> RowSink:
        """Return the place for the rows.

        :param conn_id: for errors; ``None`` if it isn't known yet.
        :raises UsageError: for an argument of the wrong type.
        """
        given: dict[str, Any] = {
            "batch_rows": self.batch_rows,
            "handler": self.handler,
            "path": self.path,
            "path_conn_id": self.path_conn_id,
            "base_path": self.base_path,
            "file_mode": self.file_mode,
            "header": self.header,
            "csv_options": self.csv_options,
            "max_xcom_rows": self.max_xcom_rows,
            "max_xcom_bytes": self.max_xcom_bytes,
        }
        given = {name: value for name, value in given.items() if value is not None}
        for name, least in (("batch_rows", 1), ("max_xcom_rows", 0), ("max_xcom_bytes", 1)):
            if name in given:
                given[name] = whole_number(name, given[name], least=least)
        if "header" in given:
            given["header"] = flag("header", given["header"])
        if not callable(given.get("handler", print)):
            raise UsageError(f"handler must be a function, got {type(given['handler']).__name__}", conn_id)
        options = given.get("csv_options", {})
        if not isinstance(options, Mapping) or not all(isinstance(each, str) for each in options.values()):
            raise UsageError("csv_options must be a mapping of names and texts", conn_id)
        return RowSink(conn_id, self._check, **given)
