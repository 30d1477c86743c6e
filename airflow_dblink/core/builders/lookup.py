"""Rows by their keys: one by one, each with dblink's own lookup, or a whole set in one statement.

The statement for a set must give the same rows as single lookups. A lookup compares a column with a
literal, and PostgreSQL chooses the literal's type. So we ask which type that is, and cast the keys,
which travel as ``text[]``, to it. Single lookups are used if the cast wouldn't read a value as the
literal is read, or if anything fails that a key may have caused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import TypeAlias, TypeVar

from psycopg import pq, sql

from airflow_dblink.core.builders.relation_cache import (
    Positions,
    Shape,
    confirm,
    confirm_types,
    key_types,
    send,
    succeed,
)
from airflow_dblink.core.builders.values import Keys, Text
from airflow_dblink.core.errors import DblinkError, RemoteError, StaleError, TransientError, UsageError
from airflow_dblink.core.link.messages import Wire
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sqltext.quote import quote_array, quote_literal

_Made = TypeVar("_Made")
#: Makes a statement from the literals of a row's values and those of the new key (``None``: NULL).
Render: TypeAlias = Callable[[Shape, Positions, Sequence[str], Sequence[Text]], str]

_LOOKUPS = 200  # in one message
_VALUE = "\0"  # where a value goes in a template: names can't hold it
_FORMAT_ARGUMENTS = 99  # 100 with the template itself
_STOPPED = ("55P03", "57014")  # lock_timeout; statement_timeout or a cancel: somebody's wish

_AT_ONCE, _LISTED, _QUERIED = (
    sql.SQL(statements("builders_lookup.sql")[name]) for name in ("at_once", "listed", "queried")
)
# The text is the output function's, not a cast's; a row of NULLs isn't NULL; no collation but the default.
_TEXT = sql.SQL(
    ", CASE WHEN q.{name} IS DISTINCT FROM NULL"
    """ THEN pg_catalog.format('%s', q.{name}) COLLATE pg_catalog."default" END AS {name}"""
)
_COUNT = sql.SQL(", (SELECT pg_catalog.count(*) FROM k)")
_COUNT_LIMIT = sql.SQL("(SELECT pg_catalog.count(*) OPERATOR(pg_catalog.+) 1 FROM k)")
_NO_ROWS = sql.SQL("SELECT * FROM (\n{query}\n) AS q WHERE false")
_NOTHING = sql.SQL("")


# -- one by one


def look_up(
    link: Wire,
    shape: Shape,
    positions: Positions,
    keys: Sequence[Sequence[Text]],
    *,
    number: int | None = None,
) -> list[list[str]]:
    """Return the values, as literals, of the row that each of *keys* finds.

    :param number: of the first key, if errors should name the key's number.
    :raises RemoteError: 21000 if a key finds no row, or more than one; the server's errors.
    :raises StaleError: if the *shape* is out of date.
    """
    # In a transaction one key at a time: a later key must not abort it if an earlier one fails.
    at_once = _LOOKUPS if link.is_idle else 1
    rows: list[list[str]] = []
    for first in range(0, len(keys), at_once):
        chunk = keys[first : first + at_once]
        results = send(link, *[shape.lookup(positions, literals(key)) for key in chunk])
        for result in results:
            succeed(link, [result])
            if result.ntuples == 0:
                confirm(link, shape)
            else:
                shape.confirm_row(result)
            if result.ntuples != 1:
                detail = None if number is None else f"Key {number + len(rows)}."
                raise _not_one(link, result.ntuples, detail)
            rows.append(shape.row(link, result))
    return rows


def literals(key: Sequence[Text]) -> list[Text]:
    """Return the values of *key* as literals, ``None`` for NULL."""
    return [None if text is None else quote_literal(text) for text in key]


def _not_one(link: Wire, found: int, detail: str | None) -> RemoteError:
    message = "source criteria matched more than one record" if found else "source row not found"
    return RemoteError(message, link.label, "21000", detail)


# -- at once


def statements_of_keys(
    link: Wire, shape: Shape, positions: Positions, src: Keys, tgt: Keys, render: Render
) -> list[str]:
    """Return the statement that *render* makes of each row that *src* finds, with the keys *tgt*.

    :raises RemoteError: as :func:`look_up`.
    :raises StaleError: if the *shape* is out of date.
    """
    if not src.count:
        confirm(link, shape)
        return []
    made = _unless_it_fails(link, lambda: _of_keys(link, shape, positions, src, tgt, render)) or []
    done = len(made)
    rows = look_up(link, shape, positions, [*src.rows][done:], number=done + 1)
    rest = zip(rows, [*tgt.rows][done:], strict=True)
    return made + [render(shape, positions, row, literals(key)) for row, key in rest]


def statements_of_query(
    link: Wire, shape: Shape, positions: Positions, query: sql.SQL, render: Render
) -> list[str]:
    """Return the statements for the keys that *query* returns; see :func:`statements_of_keys`.

    :raises UsageError: if the query has a wrong number of columns.
    :raises RemoteError: as :func:`look_up`.
    :raises StaleError: if the *shape* is out of date.
    """
    made = _unless_it_fails(link, lambda: _of_query(link, shape, positions, query, render))
    if made is not None:
        return made
    keys = queried_keys(link, shape, query, len(positions))
    return statements_of_keys(link, shape, positions, keys, keys, render)


def queried_keys(link: Wire, shape: Shape, query: sql.SQL, length: int) -> Keys:
    """Return the keys that *query* returns.

    :raises UsageError: if the query doesn't have *length* columns.
    :raises RemoteError: the server's errors.
    :raises StaleError: if the *shape* is out of date.
    """
    results = confirm(link, shape, _NO_ROWS.format(query=query).as_string(), query.as_string())
    _demand_columns(link, results, length)
    succeed(link, results)
    result, encoding = results[-1], link.connection.info.encoding
    columns = ([result.get_value(row, i) for row in range(result.ntuples)] for i in range(length))
    return Keys(
        [[None if value is None else value.decode(encoding) for value in column] for column in columns],
        result.ntuples,
    )


def _demand_columns(link: Wire, results: Sequence[pq.abc.PGresult], length: int) -> None:
    """Raise unless the query has *length* columns; the first of *results* is its description."""
    succeed(link, results[:1])
    found = results[0].nfields
    if found != length:
        raise UsageError(
            f"the query returns {found} columns, and the key has {length}",
            link.label,
            hint="a query for keys returns the key's columns in the order of primary_key_attnums",
        )


def _unless_it_fails(link: Wire, make: Callable[[], _Made]) -> _Made | None:
    """Return the result of *make*, or ``None`` if it fails: single lookups then find the wrong key.

    In a transaction a savepoint keeps them possible; it is released before this returns.
    """
    savepoint = None if link.is_idle else f"airflow_dblink_{token_hex(6)}"
    if savepoint:
        succeed(link, send(link, f"SAVEPOINT {savepoint}"))
    try:
        made = make()
    except (DblinkError, StaleError) as error:
        if isinstance(error, TransientError) or getattr(error, "sqlstate", None) in _STOPPED:
            raise
        if savepoint:
            succeed(link, send(link, f"ROLLBACK TO {savepoint}", f"RELEASE {savepoint}"))
        if not isinstance(error, RemoteError):
            raise
        return None
    if savepoint:
        succeed(link, send(link, f"RELEASE {savepoint}"))
    return made


def _of_keys(
    link: Wire, shape: Shape, positions: Positions, src: Keys, tgt: Keys, render: Render
) -> list[str] | None:
    """Return the statements of all keys before the first one that doesn't find exactly one row.

    ``None`` if the types don't allow one statement for the whole set.
    """
    types = key_types(link, shape, positions)
    if types is None:
        return None
    groups = _groups(src, tgt)
    statements = [_of_group(shape, positions, types, group, render) for group in groups]
    results = confirm_types(link, shape, positions, types, *statements)
    succeed(link, results)
    made = [""] * src.count
    done = src.count
    for group, result in zip(groups, results, strict=True):
        found = _collect(link, result, len(group.indexes))
        if len(found) < len(group.indexes):
            done = min(done, group.indexes[len(found)])
        for index, text in zip(group.indexes, found, strict=False):
            made[index] = text
    return made[:done]


def _of_query(
    link: Wire, shape: Shape, positions: Positions, query: sql.SQL, render: Render
) -> list[str] | None:
    """Return the statements, or ``None`` if single lookups must decide.

    They must if the types don't allow one statement for the whole set, or if a key is NULL or
    doesn't find exactly one row.
    """
    types = key_types(link, shape, positions)
    if types is None:
        return None
    text = _for_query(shape, positions, types, query, render)
    description = _NO_ROWS.format(query=query).as_string()
    results = confirm_types(link, shape, positions, types, description, text.as_string())
    _demand_columns(link, results, len(types))
    succeed(link, results)
    result = results[-1]
    if not result.ntuples:
        return None
    count = int(result.get_value(0, 2) or 0)
    made = _collect(link, result, count)
    return made if len(made) == count else None


def query_of_statements(
    link: Wire, shape: Shape, positions: Positions, query: sql.SQL, render: Render
) -> sql.Composed | None:
    """Return a query whose column ``statement`` has the statements of :func:`statements_of_query`.

    :returns: ``None`` if the types don't allow one statement for the whole set.
    :raises RemoteError: the server's errors.
    :raises StaleError: if the *shape* is out of date.
    """
    types = key_types(link, shape, positions)
    if types is None:
        return None
    made = _for_query(shape, positions, types, query, render)
    return sql.SQL("SELECT made.statement FROM ({}) AS made (n, statement, count)").format(made)


def _for_query(
    shape: Shape, positions: Positions, types: list[str], query: sql.SQL, render: Render
) -> sql.Composed:
    numbers = range(len(types))
    queried = _QUERIED.format(
        keys=_sql(f", u.s{j}::{name} AS x{j}, u.s{j} AS g{j}" for j, name in enumerate(types)),
        texts=sql.SQL("").join(_TEXT.format(name=sql.SQL(f"s{j}")) for j in numbers),
        query=query,
        names=sql.SQL(", ").join(sql.SQL(f"s{j}") for j in numbers),
    )
    every = [True for _ in numbers]
    return _statement(shape, positions, queried, (every, every), _COUNT_LIMIT, render, _COUNT)


def _collect(link: Wire, result: pq.abc.PGresult, count: int) -> list[str]:
    """Return the statements of *count* keys, as far as each key finds exactly one row."""
    numbers = [int(result.get_value(row, 0) or 0) for row in range(result.ntuples)]
    if numbers != list(range(1, count + 1)):
        wanted, found = next(pair for pair in enumerate([*numbers, None], 1) if pair[0] != pair[1])
        count = wanted - 2 if found == wanted - 1 else wanted - 1
    encoding = link.connection.info.encoding
    return [(result.get_value(row, 1) or b"").decode(encoding) for row in range(count)]


@dataclass(frozen=True)
class _Group:
    """Keys with NULL in the same places.

    :ivar indexes: positions of the keys, from 0.
    :ivar src: their values column by column, ``None`` for a column of NULLs.
    :ivar tgt: the same for the new keys; the same object if these equal the old ones.
    """

    indexes: Sequence[int]
    src: list[list[str] | None]
    tgt: list[list[str] | None]


def _groups(src: Keys, tgt: Keys) -> list[_Group]:
    if not src.has_nulls and not tgt.has_nulls:
        return [_group(src, tgt, range(src.count))]
    indexes: dict[tuple[bool, ...], list[int]] = {}
    for index, key in enumerate(zip(*src.columns, *tgt.columns, strict=True)):
        indexes.setdefault(tuple(text is None for text in key), []).append(index)
    return [_group(src, tgt, same) for same in indexes.values()]


def _group(src: Keys, tgt: Keys, indexes: Sequence[int]) -> _Group:
    columns = [_part(column, indexes) for column in src.columns]
    return _Group(indexes, columns, columns if tgt is src else [_part(c, indexes) for c in tgt.columns])


def _part(column: list[Text], indexes: Sequence[int]) -> list[str] | None:
    return [text for index in indexes if (text := column[index]) is not None] or None


def _of_group(shape: Shape, positions: Positions, types: list[str], group: _Group, render: Render) -> str:
    """Return the statement that makes the statements of one group."""
    arrays: dict[str, list[str]] = {}
    keys: list[str] = []
    for j, (column, type_name) in enumerate(zip(group.src, types, strict=True)):
        if column is not None:
            arrays[f"s{j}"] = column
            keys.append(f", u.s{j}::{type_name} AS x{j}")
    for j, column in enumerate(group.tgt):
        if column is not None:
            name = f"s{j}" if group.tgt is group.src else f"g{j}"
            arrays[name] = column
            keys.append(f", u.{name} AS g{j}")
    listed = _LISTED.format(
        keys=_sql(keys),
        count=sql.Literal(len(group.indexes)),
        arrays=_sql(f", pg_catalog.unnest({quote_array(a)}::pg_catalog._text)" for a in arrays.values()),
        names=_sql(f", {name}" for name in arrays),
    )
    src, tgt = ([column is not None for column in side] for side in (group.src, group.tgt))
    limit = sql.Literal(len(group.indexes) + 1)
    return _statement(shape, positions, listed, (src, tgt), limit, render).as_string()


def _statement(
    shape: Shape,
    positions: Positions,
    keys: sql.Composable,
    has: tuple[list[bool], list[bool]],
    limit: sql.Composable,
    render: Render,
    more: sql.Composable = _NOTHING,
) -> sql.Composed:
    """Return the statement that makes the statements of *keys*.

    :param keys: query for n (from 1), x0, x1, ... (what to look up), g0, g1, ... (what to write).
    :param has: which columns x and g aren't NULL; the same for all keys.
    :param more: further columns.
    """
    has_src, has_tgt = has
    condition = (
        shape.columns[position].equals(f"t.c{position}", f"k.x{j}")
        if has_src[j]
        else f"t.c{position} IS NULL"
        for j, position in enumerate(positions)
    )
    columns = range(len(shape.columns))
    new = [f"k.g{j}" if has_tgt[j] else None for j in range(len(positions))]
    values = [new[positions.index(i)] if i in positions else f"t.c{i}" for i in columns]
    template = render(shape, positions, [_VALUE for _ in columns], [value and _VALUE for value in new])
    return _AT_ONCE.format(
        keys=keys,
        statement=sql.SQL(_format(template, [value for value in [*values, *new] if value is not None])),
        more=more,
        source=sql.SQL(shape.source),
        columns=sql.SQL(", ").join(sql.SQL(f"c{i}") for i in columns),
        condition=sql.SQL(" AND ".join(condition)),
        limit=limit,
    )


def _format(template: str, values: Sequence[str]) -> str:
    """Return the expression that puts the literals of *values*, in their order, into *template*."""
    pieces = template.replace("%", "%%").split(_VALUE)
    calls = []
    for first in range(0, len(pieces), _FORMAT_ARGUMENTS):
        part = pieces[first : first + _FORMAT_ARGUMENTS]
        arguments = values[: len(pieces) - 1][first : first + _FORMAT_ARGUMENTS]
        part += [""] if len(arguments) == len(part) else []
        calls.append(f"pg_catalog.format({', '.join([quote_literal('%L'.join(part)), *arguments])})")
    return f"pg_catalog.concat({', '.join(calls)})"


def _sql(parts: Iterable[str]) -> sql.SQL:
    """Return all *parts*, which are SQL, as one text of SQL."""
    return sql.SQL("".join(parts))
