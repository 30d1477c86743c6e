"""The shape of a relation: its name, columns and types. It is cached per link, and checked at each use.

Reading the catalogs costs three times as much as reading a row by its key. So the shape is cached,
and each message that uses it also asks whether it is still up to date. If it isn't, or anything
fails, the catalogs are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from psycopg import pq, sql

from airflow_dblink.core.errors import DblinkError, RemoteError, StaleError, TransientError, UsageError
from airflow_dblink.core.link.messages import Message, Wire
from airflow_dblink.core.server.own_sql import message, rows_of
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sqltext.quote import quote_literal

T = TypeVar("T")
#: Positions of key columns among the relation's columns, from 0.
Positions: TypeAlias = tuple[int, ...]

STATEMENTS = statements("builders.sql")
ACTION = "reading the relation"
_TRIES = 3  # while somebody else alters the relation
_SHAPES_MAX = 1_000  # of one link

_KINDS = {"f": "foreign table", "m": "materialized view", "S": "sequence", "v": "view"}
_NOT_OPEN = ("c", "i", "I")  # composite type, index, partitioned index

# The cheapest statements that tell whether a shape is up to date; the state has the first columns
# of "relation" in builders.sql.
_STATE = sql.SQL(
    "pg_catalog.to_regclass({relname})::pg_catalog.oid, {visible},"
    " pg_catalog.has_table_privilege({oid}, 'SELECT'), pg_catalog.current_setting('quote_all_identifiers')"
)
_VISIBLE = sql.SQL("pg_catalog.pg_table_is_visible({oid})")
_STATE_COLUMNS = 4
_CHECK = sql.SQL("SELECT (NULL::{source}).*, {state}")  # reads and plans nothing
# Sequences and toast tables have no row type.
_CHECK_UNTYPED = sql.SQL("SELECT r.*, {state} FROM (SELECT) AS one LEFT JOIN {source} AS r ON false")
_LOOKUP = sql.SQL("SELECT *, {state} FROM {source} WHERE ")
_PREPARE = sql.SQL("PREPARE {name} AS SELECT FROM {source} WHERE {condition}")
_DEALLOCATE = sql.SQL("DEALLOCATE {name}")
_SELECT = sql.SQL("SELECT FROM {source}")


class Column(NamedTuple):
    """A column that wasn't dropped: its name, and the name as the server quotes it.

    ``equals_schema`` and ``base_type``, both quoted, are set for users' types only.
    """

    name: str
    quoted: str
    equals_schema: str
    base_type: str

    def equals(self, operand: str, value: str) -> str:
        """Return the condition ``operand = value``, where *operand* is this column.

        It names the operator's schema, so that a stranger's operator can't fit better.
        """
        if self.equals_schema:
            return f"CAST({operand} AS {self.base_type}) OPERATOR({self.equals_schema}.=) {value}"
        return f"{operand} OPERATOR(pg_catalog.=) {value}"


@dataclass(frozen=True)
class Shape:
    """A relation as one session sees it.

    :ivar name: the name in dblink's statements: quoted, and qualified unless visible.
    :ivar source: the qualified name, quoted.
    :ivar check: a statement whose row tells whether the shape is up to date; it reads no rows.
    :ivar key_types: the types that literals for key columns get, by the columns' positions;
        ``None`` if a set of keys can't be looked up by one statement.
    :ivar runs: whether we run the statements ourselves, so their operators need a schema; if not,
        they are dblink's texts for others.
    """

    name: str
    source: str
    check: str
    columns: tuple[Column, ...]
    _state: tuple[bytes | None, ...]
    _names: tuple[bytes | None, ...]
    _lookup: str
    runs: bool = False
    key_types: dict[tuple[int, ...], list[str] | None] = field(default_factory=dict, compare=False)

    def positions(self, link: Wire, attnums: Sequence[int]) -> tuple[int, ...]:
        """Return the positions, from 0, of the columns with these numbers, from 1.

        :raises UsageError: 22023 ``number of key attributes must be > 0``, ``invalid attribute number N``.
        """
        if not attnums:
            raise UsageError("number of key attributes must be > 0", link.label, "22023")
        for attnum in attnums:
            if not 0 < attnum <= len(self.columns):
                raise UsageError(
                    f"invalid attribute number {attnum}",
                    link.label,
                    "22023",
                    hint=f"columns are numbered from 1 to {len(self.columns)}, without dropped ones",
                )
        return tuple(attnum - 1 for attnum in attnums)

    def where(self, positions: Positions, literals: Sequence[str | None]) -> str:
        """Return the condition that these columns have these values, for a statement that is returned.

        ``None`` is NULL.
        """
        if self.runs:
            return self.condition(positions, literals)
        quoted = (self.columns[position].quoted for position in positions)
        return " AND ".join(
            name + " IS NULL" if literal is None else name + " = " + literal
            for name, literal in zip(quoted, literals, strict=True)
        )

    def condition(self, positions: Positions, values: Sequence[str | None]) -> str:
        """Return the condition of :meth:`where` for a statement that we run: operators have a schema."""
        columns = (self.columns[position] for position in positions)
        return " AND ".join(
            column.quoted + " IS NULL" if value is None else column.equals(column.quoted, value)
            for column, value in zip(columns, values, strict=True)
        )

    def lookup(self, positions: Positions, literals: Sequence[str | None]) -> str:
        """Return the statement that reads the row with this key, and tells if the shape is up to date."""
        return self._lookup + self.condition(positions, literals) + " LIMIT 2"

    def confirm_row(self, result: pq.abc.PGresult) -> None:
        """Compare the shape with the first row of a :meth:`lookup` or of :attr:`check`.

        :raises StaleError: if it is out of date.
        """
        count = len(self.columns)
        state = tuple([result.get_value(0, i) for i in range(count, result.nfields)])
        if state != self._state or tuple([result.fname(i) for i in range(count)]) != self._names:
            raise StaleError

    def row(self, link: Wire, result: pq.abc.PGresult) -> list[str]:
        """Return the first row of a :meth:`lookup` as literals."""
        encoding = link.connection.info.encoding
        values = [result.get_value(0, i) for i in range(len(self.columns))]
        return ["NULL" if value is None else quote_literal(value.decode(encoding)) for value in values]


_shapes: WeakKeyDictionary[Wire, dict[str, Shape]] = WeakKeyDictionary()


def with_shape(link: Wire, relname: str, work: Callable[[Shape], T]) -> T:
    """Call *work* with the relation's shape; if a cached shape is out of date, read it again and repeat.

    In a transaction the catalogs are always read first, since a failure would abort the transaction.

    :raises UsageError: if *relname* is no text, or has a NUL character in it.
    :raises RemoteError: the server's errors; 42501 without SELECT on the whole relation.
    :raises TransientError: 55006 if the relation changes again and again meanwhile.
    """
    _demand_name(link, relname)
    shapes = _shapes.setdefault(link, {})
    kept = shapes.get(relname) if link.is_idle else None
    failure: DblinkError | None = None
    if kept is not None:
        try:
            return work(kept)
        except TransientError:
            raise
        except DblinkError as error:
            failure = error
        except StaleError:
            pass
    for _ in range(_TRIES):
        shape = _read_shape(link, relname)
        if failure is not None and shape == kept:
            raise failure
        if len(shapes) >= _SHAPES_MAX:
            shapes.clear()
        shapes[relname] = shape
        try:
            return work(shape)
        except StaleError:
            continue
    raise TransientError(f"relation {relname!r} is being altered", link.label, "55006")


def read_primary_key(link: Wire, relname: str) -> list[tuple[int, str]]:
    """Return position and name of each column of the primary key, in the index's order.

    :raises UsageError: if *relname* is no text, or has a NUL character in it.
    :raises RemoteError: as :func:`with_shape`.
    """
    _demand_name(link, relname)
    _, names = _read(link, relname, "primary_key")
    return [(int(position), name) for position, name in names]


def confirm(link: Wire, shape: Shape, *more: str) -> list[pq.abc.PGresult]:
    """Send *more* statements after the *shape*'s check, and return their results.

    The last result may be an error.

    :raises StaleError: if the shape is out of date.
    :raises RemoteError: the server's errors in the check.
    """
    checked, *results = send(link, shape.check, *more)
    succeed(link, [checked])
    shape.confirm_row(checked)
    return results


def key_types(link: Wire, shape: Shape, positions: Positions) -> list[str] | None:
    """Return the types that literals for the key columns get; ``None`` if a cast would read them otherwise.

    :raises RemoteError: the server's errors.
    :raises StaleError: if the shape is out of date.
    """
    if positions not in shape.key_types:
        results = confirm(link, shape, *_probe(link, shape, positions))
        succeed(link, results)
        shape.key_types[positions] = _types(link, results)
    return shape.key_types[positions]


def confirm_types(
    link: Wire, shape: Shape, positions: Positions, types: list[str], *statements: str
) -> list[pq.abc.PGresult]:
    """Return the results of *statements*, which rely on the key columns' *types*; as :func:`confirm`."""
    probe = _probe(link, shape, positions)
    results = confirm(link, shape, *probe, *statements)
    asked = results[: len(probe)]
    succeed(link, asked)
    if _types(link, asked) != types:
        raise StaleError
    return results[len(probe) :]


def _probe(link: Wire, shape: Shape, positions: Positions) -> list[str]:
    """Return the statements that ask for the types; :func:`_types` reads their results."""
    name = f"airflow_dblink_{token_hex(6)}"
    known = {
        "name": sql.SQL(name),
        "source": sql.SQL(shape.source),
        "condition": sql.SQL(shape.condition(positions, [f"${j + 1}" for j in range(len(positions))])),
    }
    return [
        _PREPARE.format(**known).as_string(),
        *_asking(_bound("key_types", name)),
        _DEALLOCATE.format(**known).as_string(),
    ]


def _types(link: Wire, results: Sequence[pq.abc.PGresult]) -> list[str] | None:
    (result,) = rows_of(results[1:-1])
    found = [texts(link, result, row) for row in range(result.ntuples)]
    return [str(name) for name, _ in found] if all(castable == "t" for _, castable in found) else None


def send(link: Wire, *messages: str) -> list[pq.abc.PGresult]:
    """Send statements as one message and return their results; the last one may be an error.

    :raises UsageError: for a character that the session's encoding doesn't have.
    :raises RemoteError: XX000 while another query's results are unread.
    :raises TransientError: if the connection is lost.
    """
    link.begin(Message(link.encoded("; ".join(messages))))
    return link.finish(ACTION, timed=False)


def succeed(link: Wire, results: Sequence[pq.abc.PGresult]) -> None:
    """Raise the error in the last of *results*, if there is one.

    :raises RemoteError: the server's errors.
    """
    try:
        link.succeeded(results[-1], ACTION, fail_on_error=True)
    except RemoteError as error:
        if error.sqlstate != "42883":
            raise
        # A type without "=", such as json: in dblink's words, whose operator has no schema.
        raise error.but(message=error.message.replace(" pg_catalog.= ", " = ")) from None


def texts(link: Wire, result: pq.abc.PGresult, row: int) -> list[str | None]:
    """Return the values of one row as the types' output functions wrote them."""
    encoding = link.connection.info.encoding
    values = (result.get_value(row, i) for i in range(result.nfields))
    return [None if value is None else value.decode(encoding) for value in values]


def _demand_name(link: Wire, relname: object) -> None:
    if not isinstance(relname, str) or "\0" in relname:
        raise UsageError("relname must be a text without NUL characters", link.label)


def _read_shape(link: Wire, relname: str) -> Shape:
    facts, found = _read(link, relname, "columns")
    columns = tuple(Column(*facts) for facts in found)
    oid, visible, _, _, _, _, name, schema, has_row_type = facts
    source = f"{schema}.{name}"
    known: dict[str, sql.Composable] = {
        "relname": sql.SQL(quote_literal(f" {relname}")),
        "oid": sql.Literal(int(oid)),
        "source": sql.SQL(source),
    }
    # What is found without a schema is visible; each function costs some microseconds.
    known["visible"] = _VISIBLE.format(**known) if "." in relname else sql.SQL("true")
    known["state"] = _STATE.format(**known)
    check = _CHECK if has_row_type == "t" else _CHECK_UNTYPED
    encoding = link.connection.info.encoding
    return Shape(
        name=name if visible == "t" else source,
        source=source,
        check=check.format(**known).as_string(),
        columns=columns,
        _state=tuple(None if fact is None else fact.encode(encoding) for fact in facts[:_STATE_COLUMNS]),
        _names=tuple(column.name.encode(encoding) for column in columns),
        _lookup=_LOOKUP.format(**known).as_string(),
    )


def _asking(*questions: str) -> list[str]:
    return [statement.as_string() for statement in message(*map(sql.SQL, questions))]


def _bound(name: str, value: str) -> str:
    """Return a statement of ``builders.sql`` with *value*; psycopg's binding takes as long as the server."""
    return STATEMENTS[name].replace("%%", "%").replace("%(value)s", quote_literal(value))


def _read(link: Wire, relname: str, more: str) -> tuple[list[str], list[list[str]]]:
    """Return the facts of *relname*, and the rows of another statement of ``builders.sql`` about it."""
    for _ in range(_TRIES):
        questions = _asking(_bound("relation", relname), _bound(more, relname))
        results = send(link, _bound("privilege", relname), *questions)
        succeed(link, results)
        relation, rows = rows_of(results[1:])
        if relation.ntuples:  # else it was dropped just now
            facts = [text or "" for text in texts(link, relation, 0)]
            _demand_select(link, facts)
            return facts, [[text or "" for text in texts(link, rows, i)] for i in range(rows.ntuples)]
    raise TransientError(f"relation {relname!r} is being altered", link.label, "55006")


def _demand_select(link: Wire, facts: Sequence[str]) -> None:
    """Raise unless the relation can be opened, and the role may read all of it."""
    _, _, privilege, _, kind, relname, name, schema, _ = facts
    if kind in _NOT_OPEN:  # each version of PostgreSQL has its own words for it
        source = sql.SQL(f"{schema}.{name}")
        link.run(_SELECT.format(source=source), ACTION, timed=False)
    if privilege != "t":
        kind_name = _KINDS.get(kind, "table")
        raise RemoteError(
            f"permission denied for {kind_name} {relname}",
            link.label,
            "42501",
            hint="SELECT on the whole relation is needed; on single columns is not enough",
        )
