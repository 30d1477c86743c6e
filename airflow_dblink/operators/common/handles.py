"""The jobs that a handle may lead an operator to.

Whoever triggers the Dag can fill in a template (``dag_run.conf``, params). Such a handle may choose a job,
but neither the connection nor the schema: only the Dag's author chooses these, by ``conn_id`` and
``job_schema``, or by handing on the output of a task.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from airflow.sdk import BaseOperator, XComArg

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.jobs.job import JobHandle
from airflow_dblink.hooks.dblink import DblinkHook


def is_rendered(given: Any, value: Any) -> bool:
    """Return whether *value* comes from a template in the argument that the author has *given*."""
    if isinstance(given, XComArg):
        return False
    if isinstance(given, list | tuple) and isinstance(value, list | tuple) and len(given) == len(value):
        return any(is_rendered(a, b) for a, b in zip(given, value, strict=True))
    return bool(given != value)


class TakesHandle(BaseOperator):
    """Mixin of the operators and the sensor that take a job's handle.

    :param handle: return value of a sending task, or a job's id. (templated)
    :param conn_id: Airflow connection of the job's database. (templated)
    :param job_schema: schema of the job table.
    """

    def __init__(
        self, *, handle: Any, conn_id: str | None = None, job_schema: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.handle = self.given_handle = handle  # the latter stays as the author wrote it
        self.conn_id = conn_id
        self.job_schema = job_schema

    @abstractmethod
    def _hook(self, conn_id: str) -> DblinkHook:
        """Return a hook of the connection."""

    def _read_handle(self) -> JobHandle:
        return self._handle_of(self.handle, rendered=is_rendered(self.given_handle, self.handle))

    def _handle_of(self, value: Any, *, rendered: bool) -> JobHandle:
        """Return the handle in *value*, if it leads to the database and schema that the author allows.

        :param rendered: whether a template has made *value*: then *conn_id* is needed, and the schema must be
            *job_schema*, or the connection's.
        :raises UsageError: if it leads elsewhere; names both places.
        """
        if rendered and self.conn_id is None:
            raise UsageError(
                "handle comes from a template, which whoever runs the Dag may fill in: conn_id has to name"
                " its database",
                hint="give conn_id; or the output of the sending task itself: handle=send.output",
            )
        known = JobHandle.read(value, self.conn_id)
        is_id = isinstance(value, UUID) or (isinstance(value, str) and not value.lstrip().startswith("{"))
        if self.job_schema is None and not is_id and not rendered:
            return known
        says, expected = "job_schema", self.job_schema
        if expected is None:
            says, expected = "the connection's job_schema", self._hook(known.conn_id).target().job_schema
        if is_id:
            return replace(known, schema=expected)
        if known.schema != expected:
            raise UsageError(
                f"the handle names schema {known.schema!r}, but {says} is {expected!r}",
                known.conn_id,
                hint="let both name the same schema",
            )
        return known


def handles_of(given: Any, value: Any) -> list[tuple[Any, bool]]:
    """Return the handles in *value*, one or a list, each with whether a template has made it."""
    if not isinstance(value, list | tuple):
        is_one = value is None or isinstance(value, Mapping | str | UUID | JobHandle)
        if is_one:
            return [(value, is_rendered(given, value))]
        value = list(value)  # a lazy list, the output of mapped tasks
    if isinstance(given, list | tuple) and len(given) == len(value):
        return [(b, is_rendered(a, b)) for a, b in zip(given, value, strict=True)]
    return [(each, is_rendered(given, value)) for each in value]
