"""A remote job as a value: its handle, its state, its end."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Literal, Self
from uuid import UUID

from airflow_dblink.core.errors import (
    RemoteError,
    TransientError,
    UsageError,
    context_line,
    kind_of,
)
from airflow_dblink.core.server.target import Target

#: ``sent``: the row is there, but no session runs the job yet. ``running``: a session has claimed it.
#: ``succeeded``, ``failed``: it ended by itself; ``cancelled``: by a request. ``lost``: its session ended
#: without a word (a crash, ``pg_terminate_backend``); nothing was committed, and can't be any more.
State = Literal["sent", "running", "succeeded", "failed", "cancelled", "lost"]
ENDED: frozenset[str] = frozenset(("succeeded", "failed", "cancelled", "lost"))

#: Name of the schema on the remote, unless the connection says another.
SCHEMA = Target.job_schema


@dataclass(frozen=True)
class JobHandle:
    """The place of a job, small enough for XCom.

    :ivar conn_id: Airflow connection of the database in which it runs.
    :ivar job_id: its id, a UUID as text.
    :ivar schema: schema of the job table there.
    """

    conn_id: str
    job_id: str
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        if not self.conn_id or not isinstance(self.conn_id, str):
            raise UsageError(f"a job's handle needs the id of an Airflow connection, got {self.conn_id!r}")
        for name in ("conn_id", "job_id", "schema"):  # PostgreSQL would read a name only up to there
            if "\0" in str(getattr(self, name)):
                raise UsageError(f"{name} of a job's handle holds a NUL character")
        object.__setattr__(self, "job_id", str(parse_job_id(self.job_id)))

    @property
    def uuid(self) -> UUID:
        """The job's id."""
        return UUID(self.job_id)

    def as_dict(self) -> dict[str, str]:
        """Return the handle as a mapping for JSON, which :meth:`read` accepts."""
        return asdict(self)

    @classmethod
    def read(cls, value: object, conn_id: str | None = None) -> Self:
        """Return the handle in *value*.

        :param value: a handle, its mapping, that mapping as text (from a template), or the id alone.
        :param conn_id: Airflow connection for an id alone; a handle must name the same one.
        :raises UsageError: if *value* is none of these, or names another connection.
        """
        known = cls._read(value, conn_id)
        if conn_id is not None and known.conn_id != conn_id:
            raise UsageError(
                f"the handle is of connection {known.conn_id!r}, but conn_id is {conn_id!r}",
                hint="give the same conn_id as the task that has sent the job, or none",
            )
        return known

    @classmethod
    def _read(cls, value: object, conn_id: str | None) -> Self:
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = _parsed(value)
        if isinstance(value, Mapping):
            names = {field.name for field in fields(cls)}
            if not {"conn_id", "job_id"} <= set(value):
                given = ", ".join(map(str, value)) or "nothing"
                raise UsageError(f"a job's handle has conn_id, job_id and schema, got {given}")
            return cls(**{name: str(value[name]) for name in names & set(value)})
        if isinstance(value, str | UUID):
            if conn_id is None:
                raise UsageError(
                    f"job {value!s} of which database?", hint="give its conn_id too, or the handle"
                )
            return cls(conn_id, str(value))
        raise UsageError(
            "a job's handle must be the return value of DblinkSendQueryOperator, or a job id;"
            f" got {type(value).__name__}",
            hint="if the sending task was skipped or failed, there is none",
        )


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)  # Jinja renders a dict in this form
    except (ValueError, SyntaxError):
        raise UsageError("a job's handle as text must be JSON") from None


def parse_job_id(value: object) -> UUID:
    """Return the id as UUID.

    :raises UsageError: if it isn't one.
    """
    try:
        return value if isinstance(value, UUID) else UUID(str(value))
    except ValueError:
        raise UsageError(f"{value!r} is not a job id (a UUID)") from None


@dataclass(frozen=True)
class Job:
    """A row of the job table, without its statement.

    :ivar age_s: seconds since it was sent, by the server's clock.
    :ivar row_count: rows that its last statement changed or returned, as in the command tag.
    :ivar result_table: table with its rows; ``None`` if it keeps none, or they were dropped.
    :ivar result_schema: schema of that table; ``None`` if it is missing, or its owner isn't trusted.
    """

    id: UUID
    state: State
    owner: str
    dag_id: str | None
    task_id: str | None
    run_id: str | None
    map_index: int | None
    try_number: int | None
    replaces: UUID | None
    is_query: bool
    keep_result: bool
    command: str | None
    statement_timeout: str | None
    sent_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    cancel_requested_at: datetime | None
    pid: int | None
    row_count: int | None
    result_table: str | None
    result_schema: str | None
    sqlstate: str | None
    message: str | None
    detail: str | None
    hint: str | None
    context: str | None
    age_s: float

    @property
    def task(self) -> str | None:
        """The task that sent it, as ``dag.task`` or ``dag.task[map_index]``."""
        if self.dag_id is None:
            return None
        index = f"[{self.map_index}]" if self.map_index is not None and self.map_index >= 0 else ""
        return f"{self.dag_id}.{self.task_id}{index}"

    @property
    def has_ended(self) -> bool:
        """Whether its state is final."""
        return self.state in ENDED

    @property
    def command_tag(self) -> str | None:
        """The tag of its last statement, such as ``UPDATE 3``; ``None`` if that has no row count."""
        return f"{self.command} {self.row_count}" if self.command and self.row_count is not None else None

    def error(self, conn_id: str) -> RemoteError | None:
        """Return the error of a job; ``None`` if it has succeeded, or hasn't ended yet.

        The error of a failed job has PostgreSQL's own SQLSTATE, message, detail, hint and context.
        """
        line = context_line(f"running job {self.id}", conn_id)
        if self.state == "failed":
            context = f"{self.context}\n{line}" if self.context else line
            return kind_of(self.sqlstate)(
                self.message or "", conn_id, self.sqlstate, self.detail, self.hint, context
            )
        if self.state == "cancelled":
            message = "canceling statement due to user request"
            return RemoteError(message, conn_id, "57014", "The job was cancelled.", None, line)
        if self.state == "lost":
            return TransientError(
                "the session of the job ended before it could commit: nothing was changed",
                conn_id,
                "08006",
                hint="the server's log says why (a crash, a restart, pg_terminate_backend; RAISE INFO"
                " and VERBOSE have no one to tell, and end the session)",
                context=line,
            )
        return None


def job_of(row: Mapping[str, Any]) -> Job:
    """Return the job of a row from the statement ``look``."""
    return Job(**row)


def standby(conn_id: str) -> TransientError:
    """Return the error for a standby, which takes no jobs until it is promoted."""
    return TransientError(
        "this server is a standby: jobs need a primary",
        conn_id,
        "25006",
        hint="with several hosts in the connection, set target_session_attrs to read-write",
    )


def missing(handle_or_id: object, conn_id: str, schema: str) -> UsageError:
    """Return the error for a job whose row isn't there."""
    return UsageError(
        f"there is no job {handle_or_id} in schema {schema!r}, or this role may not see it",
        conn_id,
        hint="it may have been pruned; the role must be the one that sent it",
    )
