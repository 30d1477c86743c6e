"""A question whose answer opens a gate: a query, and what its first row must be.

The worker asks it with :func:`ask`; the triggerer asks many together: see
:mod:`airflow_dblink.core.gates.gates`. Both send the same statements, in a read-only transaction, and judge
the answer in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any

import psycopg
from psycopg import BaseConnection, pq, sql
from psycopg.adapt import Transformer
from psycopg.postgres import types

from airflow_dblink.core.errors import DblinkError, RemoteError, TransientError, UsageError, from_psycopg
from airflow_dblink.core.server.side import Side, begin
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sqltext.names import demand_characters
from airflow_dblink.core.sqltext.rules import the_query
from airflow_dblink.core.sqltext.user_text import UserText, place_of
from airflow_dblink.core.streams.to_json import JsonValues
from airflow_dblink.core.tables.catalog import read

_SQL = statements("gates.sql")

BEGIN = "BEGIN READ ONLY"
ACTION = "asking the sensor's question"
#: Largest size of a first value, in bytes of its text.
MOST_BYTES = 65_536
# A question waits no longer for a lock: others are asked in the same session.
_LOCK_S = 1.0
# query_canceled is statement_timeout's, too.
_PASSING = ("55P03", "57014")
_NUMERIC = types["numeric"].oid
_BYTEA = types["bytea"].oid
_JSON = (types["json"].oid, types["jsonb"].oid)

Equals = str | int | float | bool


@dataclass(frozen=True)
class Question:
    """A query, and the answer that is waited for.

    :ivar query: one query, without placeholders.
    :ivar failure: another query; if its first value is true, waiting is over.
    :ivar min_rows: wait for at least so many rows.
    :ivar equals: wait for this first value; a text is compared with PostgreSQL's text of the value.
    :ivar fail_on_empty: no row is a failure, too.
    :ivar timeout_s: seconds that each query may take.
    :ivar settings: run-time parameters, local to the question's transaction.
    """

    query: str
    failure: str | None = None
    min_rows: int | None = None
    equals: Equals | None = None
    fail_on_empty: bool = False
    timeout_s: float = 5.0
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> Hashable:
        """What makes two questions equal: Python takes 1, 1.0 and True for one value."""
        return self, type(self.equals)

    def demand_sendable(self, conn_id: str | None = None) -> None:
        """Raise unless the texts are one query each, and hold characters that a server takes.

        :raises UsageError: names the argument.
        """
        texts = {"sql": self.query} | ({} if self.failure is None else {"failure_sql": self.failure})
        for name, text in texts.items():
            one_query(text, name, conn_id)
        texts["session_settings"] = "".join(name + value for name, value in self.settings)
        for name, text in texts.items():
            demand_characters(name, text)

    @cached_property
    def statements(self) -> list[sql.Composed]:
        """The statements that ask: of :attr:`failure`, if it is given, and of :attr:`query`."""
        return self.statements_of(one_query(self.query, "sql"))

    def statements_of(self, query: UserText) -> list[sql.Composed]:
        """Return :attr:`statements`.

        :param query: the query as its user wrote it, so that errors show its lines without values.
        """
        found = []
        if self.failure is not None:
            found.append(_first_value(one_query(self.failure, "failure_sql")))
        if self.min_rows is None:
            return [*found, _first_value(query)]
        return [*found, sql.SQL(_SQL["rows"]).format(query=query, most=sql.Literal(self.min_rows))]

    @property
    def limits(self) -> dict[str, str]:
        """The run-time parameters of the transaction."""
        lock_s = min(_LOCK_S, self.timeout_s)
        return {
            **dict(self.settings),
            "statement_timeout": f"{self.timeout_s * 1000:.0f}ms",
            "lock_timeout": f"{lock_s * 1000:.0f}ms",
        }

    def has_failed(self, answer: Answer) -> bool:
        """Return whether *answer* says that waiting is in vain."""
        return answer.has_failed or (self.fail_on_empty and not answer.rows)

    def is_answered(self, answer: Answer) -> bool:
        """Return whether *answer* is the one that is waited for."""
        if self.min_rows is not None:
            return answer.rows >= self.min_rows
        if self.equals is None:
            return answer.is_true
        if isinstance(self.equals, str):
            return answer.text == self.equals
        is_same_kind = isinstance(answer.value, bool) == isinstance(self.equals, bool)
        return is_same_kind and answer.value == self.equals


def one_query(text: str, name: str, conn_id: str | None = None) -> UserText:
    """Return the one query in *text*, without its semicolon.

    :param name: the argument's name, for errors.
    :raises UsageError: unless it is exactly one statement, and a query.
    """
    part = the_query(text, name, conn_id)
    return UserText(text, name).part(part.start, part.end)


def _first_value(query: UserText) -> sql.Composed:
    return sql.SQL(_SQL["first_value"]).format(query=query, most=sql.Literal(MOST_BYTES))


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    :ivar rows: the number of rows, as far as it was asked for.
    :ivar value: the first value as a JSON value; see :mod:`airflow_dblink.core.streams.to_json`.
    :ivar typed: the first value by its type, as psycopg gives it. Never shown.
    :ivar text: PostgreSQL's text of it; ``None`` for NULL.
    :ivar oid: its type.
    :ivar is_too_long: whether it is longer than :data:`MOST_BYTES`; it isn't read then.
    :ivar has_failed: whether the failure query's first value is true.
    """

    rows: int = 0
    value: Any = None
    text: str | None = field(default=None, repr=False)
    oid: int = 0
    is_too_long: bool = False
    has_failed: bool = False
    typed: Any = field(default=None, repr=False)

    @property
    def is_true(self) -> bool:
        """Whether the value is neither NULL, false, a number 0 nor empty, as Python sees it."""
        if self.is_too_long:
            return True
        if self.text is None:
            return False
        try:
            if self.oid == _NUMERIC:
                return bool(Decimal(self.text))
            if self.oid in _JSON:
                return bool(json.loads(self.text))
        except (InvalidOperation, ValueError, RecursionError):
            return True
        return self.text != "\\x" if self.oid == _BYTEA else bool(self.value)


def read_answer(
    connection: BaseConnection[Any], conn_id: str, question: Question, results: Sequence[pq.abc.PGresult]
) -> Answer:
    """Return the answer in the *results* of :attr:`Question.statements`.

    :raises UsageError: if Python can't read the value.
    """
    try:
        return _answer(connection, question, results)
    except (psycopg.Error, ValueError):  # their texts may hold the value
        raise _unreadable(conn_id) from None


def _unreadable(conn_id: str) -> UsageError:
    return UsageError(
        "Python can't read the first value: it is out of a type's range, or in another encoding",
        conn_id,
        hint="SELECT a condition, or the value in another form",
    )


def _answer(
    connection: BaseConnection[Any], question: Question, results: Sequence[pq.abc.PGresult]
) -> Answer:
    if question.failure is not None and _first(connection, results[0]).is_true:
        return Answer(has_failed=True)
    if question.min_rows is not None:
        return Answer(rows=int(results[-1].get_value(0, 0) or b"0"))
    return _first(connection, results[-1])


def _first(connection: BaseConnection[Any], result: pq.abc.PGresult) -> Answer:
    if result.ntuples == 0:
        return Answer()
    is_there, raw = result.get_value(0, 0) == b"t", result.get_value(0, 1)
    if not is_there or raw is None:
        return Answer(rows=1, is_too_long=is_there)
    transformer = Transformer(JsonValues(connection))
    transformer.set_pgresult(result)
    return Answer(
        rows=1,
        value=transformer.load_row(0, tuple)[1],
        text=raw.decode(connection.info.encoding),
        oid=result.ftype(1),
    )


def ask(side: Side, question: Question, query: UserText, *, typed: bool = False) -> Answer:
    """Ask in a read-only transaction, and return the answer.

    :param query: :attr:`Question.query` as its user wrote it.
    :param typed: whether :attr:`Answer.typed` is needed.
    :raises UsageError: if a query gives no column, or with *equals* more than one; if the value is
        unreadable.
    :raises RemoteError: the server's errors, with their place in the user's text.
    """
    begin(side, BEGIN, question.limits, ACTION)
    if question.failure is not None:
        _demand_columns(side, question, one_query(question.failure, "failure_sql"), "failure_sql")
    _demand_columns(side, question, query, "sql")
    results = [_run(side, statement) for statement in question.statements_of(query)]
    answer = read_answer(side.connection, side.conn_id, question, results)
    if typed and answer.is_too_long:
        raise UsageError(
            f"the first value has more than {MOST_BYTES} bytes, and success and failure would need it",
            side.conn_id,
            hint="SELECT less of it, or write the condition into sql",
        )
    if typed and answer.text is not None:
        transformer = Transformer(side.connection)
        transformer.set_pgresult(results[-1])
        try:
            answer = replace(answer, typed=transformer.load_row(0, tuple)[1])
        except (psycopg.Error, ValueError):
            raise _unreadable(side.conn_id) from None
    side.run("ROLLBACK", ACTION)
    return answer


def _demand_columns(side: Side, question: Question, query: UserText, name: str) -> None:
    columns = read(side, query, ACTION).nfields
    if columns == 0 and (question.min_rows is None or name != "sql"):
        raise UsageError(f"{name} gives no column", side.conn_id, hint="SELECT a condition")
    if columns > 1 and question.equals is not None and name == "sql":
        raise UsageError(
            f"equals is compared with one value, and sql gives {columns} columns",
            side.conn_id,
            hint="SELECT one column, or write the condition into sql",
        )


def _run(side: Side, statement: sql.Composed) -> pq.abc.PGresult:
    try:
        cursor = side.connection.execute(statement)
    except psycopg.Error as error:
        place = place_of(error, statement, side.connection)
        raise from_psycopg(error, side.conn_id, ACTION, place=place) from None
    result: pq.abc.PGresult = cursor.pgresult  # type: ignore[assignment]  # there is one after a statement
    return result


def may_pass(error: DblinkError) -> bool:
    """Return whether waiting may help: a server that is away, a lock, a query that takes too long."""
    return isinstance(error, TransientError) or (
        isinstance(error, RemoteError) and error.sqlstate in _PASSING
    )


def serialized(question: Question) -> dict[str, Any]:
    """Return *question* as JSON values."""
    return {**asdict(question), "settings": [list(pair) for pair in question.settings]}


def deserialized(values: Mapping[str, Any]) -> Question:
    """Return the question of :func:`serialized`."""
    return Question(**{**values, "settings": tuple((name, value) for name, value in values["settings"])})
