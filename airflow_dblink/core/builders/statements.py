"""INSERT, UPDATE and DELETE texts from rows, byte for byte those of dblink, one or many at once.

For one row the server returns the values as text, made by the types' output functions, and
the statement is built here. For many rows the server builds the statements: its
``format`` writes ``%L`` with the same output and quoting functions as dblink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from airflow_dblink.core.builders.lookup import (
    Render,
    literals,
    look_up,
    queried_keys,
    statements_of_keys,
    statements_of_query,
)
from airflow_dblink.core.builders.relation_cache import (
    Positions,
    Shape,
    confirm,
    read_primary_key,
    with_shape,
)
from airflow_dblink.core.builders.values import (
    Keys,
    KeySource,
    Text,
    Value,
    demand_length,
    demand_sequence,
    read_keys,
    to_texts,
)
from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link.messages import Wire


class PkeyField(NamedTuple):
    """A column of a primary key; *position* counts from 1 in the key's order."""

    position: int
    colname: str


def get_pkey(link: Wire, relname: str) -> list[PkeyField]:
    """Return the columns of the relation's primary key; no column if it has no key.

    :param relname: read as dblink reads it: folded to lower case unless in double quotes, found
        through ``search_path`` unless qualified; a number is a name.
    :raises UsageError: if *relname* is no text.
    :raises RemoteError: the server's errors: 42602 and 42601 if it isn't a name, 0A000 for
        another database, 3F000, 42P01, 42809 for an index or a composite type; 42501 without
        SELECT on the whole relation.

    Model: ``dblink_get_pkey``.
    """
    return [PkeyField(*column) for column in read_primary_key(link, relname)]


def build_sql_insert(
    link: Wire,
    relname: str,
    primary_key_attnums: Sequence[int],
    src_pk_att_vals: Sequence[Value],
    tgt_pk_att_vals: Sequence[Value],
) -> str:
    """Return the INSERT of the one row with the key *src_pk_att_vals*, its key replaced.

    :param relname: as for :func:`get_pkey`.
    :param primary_key_attnums: numbers of the key's columns, from 1, without dropped columns;
        they may be any columns, also without a primary key.
    :param src_pk_att_vals: their values in the row to read; ``None`` finds NULL.
    :param tgt_pk_att_vals: their values in the statement, verbatim.
    :raises UsageError: 22023 for missing or wrong numbers, 2202E for a wrong number of values;
        if values aren't in a list, or have no text.
    :raises RemoteError: as :func:`get_pkey`; 21000 if the key finds no row, or more than one;
        the server's errors in the lookup.

    Model: ``dblink_build_sql_insert``.
    """
    return _build(link, relname, primary_key_attnums, src_pk_att_vals, tgt_pk_att_vals, render_insert)


def build_sql_update(
    link: Wire,
    relname: str,
    primary_key_attnums: Sequence[int],
    src_pk_att_vals: Sequence[Value],
    tgt_pk_att_vals: Sequence[Value],
) -> str:
    """Return the UPDATE that gives the row with the key *tgt_pk_att_vals* the values of another.

    :param src_pk_att_vals: the key of the row to read; other parameters as :func:`build_sql_insert`.
    :param tgt_pk_att_vals: the key of the row to be updated; never read.
    :raises UsageError: as :func:`build_sql_insert`.
    :raises RemoteError: as :func:`build_sql_insert`.

    Model: ``dblink_build_sql_update``.
    """
    return _build(link, relname, primary_key_attnums, src_pk_att_vals, tgt_pk_att_vals, render_update)


def build_sql_delete(
    link: Wire, relname: str, primary_key_attnums: Sequence[int], tgt_pk_att_vals: Sequence[Value]
) -> str:
    """Return the DELETE of the row with the key *tgt_pk_att_vals*; no row is read.

    :raises UsageError: as :func:`build_sql_insert`.
    :raises RemoteError: as :func:`get_pkey`.

    Model: ``dblink_build_sql_delete``.
    """
    attnums = _attnums(link, primary_key_attnums)
    tgt = to_texts(link, "tgt_pk_att_vals", tgt_pk_att_vals)

    def work(shape: Shape) -> str:
        positions = shape.positions(link, attnums)
        demand_length(link, "target", len(positions), len(tgt))
        confirm(link, shape)
        return render_delete(shape, positions, literals(tgt))

    return with_shape(link, relname, work)


def build_sql_insert_many(
    link: Wire,
    relname: str,
    primary_key_attnums: Sequence[int],
    src: KeySource,
    tgt: Sequence[Sequence[Value]] | None = None,
) -> list[str]:
    """Return the result of :func:`build_sql_insert` for each key, in one round trip, from one snapshot.

    :param src: keys of the rows to read; or a query that returns the key's columns in the order
        of *primary_key_attnums*. Its values are read as the text that PostgreSQL shows. It may run
        more than once, so it should only read.
    :param tgt: the keys in the statements, one for each of *src*; ``None`` for the same keys.
    :returns: the statements in the order of the keys.
    :raises UsageError: as :func:`build_sql_insert`, for the first wrong key; if *tgt* has another
        length than *src*, or *src* is a query; if the query has a wrong number of columns.
    :raises RemoteError: as :func:`build_sql_insert`; for 21000 ``detail`` has the number of the key,
        from 1.

    Model: ``dblink_build_sql_insert``.
    """
    return _build_many(link, relname, primary_key_attnums, src, tgt, render_insert)


def build_sql_update_many(
    link: Wire,
    relname: str,
    primary_key_attnums: Sequence[int],
    src: KeySource,
    tgt: Sequence[Sequence[Value]] | None = None,
) -> list[str]:
    """Return the result of :func:`build_sql_update` for each key, in one round trip, from one snapshot.

    :param src: as for :func:`build_sql_insert_many`.
    :param tgt: as for :func:`build_sql_insert_many`.
    :raises UsageError: as :func:`build_sql_insert_many`.
    :raises RemoteError: as :func:`build_sql_insert_many`.

    Model: ``dblink_build_sql_update``.
    """
    return _build_many(link, relname, primary_key_attnums, src, tgt, render_update)


def build_sql_delete_many(
    link: Wire, relname: str, primary_key_attnums: Sequence[int], tgt: KeySource
) -> list[str]:
    """Return the result of :func:`build_sql_delete` for each key; no row of the relation is read.

    :param tgt: keys, or a query that returns them; see :func:`build_sql_insert_many`.
    :raises UsageError: as :func:`build_sql_insert_many`.
    :raises RemoteError: as :func:`get_pkey`; the server's errors in the query.

    Model: ``dblink_build_sql_delete``.
    """
    attnums = _attnums(link, primary_key_attnums)
    source = read_keys(link, "tgt", tgt, len(attnums))

    def work(shape: Shape) -> list[str]:
        positions = shape.positions(link, attnums)
        if isinstance(source, Keys):
            keys = source
            keys.demand_length(link, "target", len(positions))
            confirm(link, shape)
        else:
            keys = queried_keys(link, shape, source, len(positions))
        return [render_delete(shape, positions, literals(key)) for key in keys.rows]

    return with_shape(link, relname, work)


def _build(
    link: Wire,
    relname: str,
    primary_key_attnums: Sequence[int],
    src_pk_att_vals: Sequence[Value],
    tgt_pk_att_vals: Sequence[Value],
    render: Render,
) -> str:
    attnums = _attnums(link, primary_key_attnums)
    src = to_texts(link, "src_pk_att_vals", src_pk_att_vals)
    tgt = to_texts(link, "tgt_pk_att_vals", tgt_pk_att_vals)

    def work(shape: Shape) -> str:
        positions = shape.positions(link, attnums)
        demand_length(link, "source", len(positions), len(src))
        demand_length(link, "target", len(positions), len(tgt))
        (row,) = look_up(link, shape, positions, [src])
        return render(shape, positions, row, literals(tgt))

    return with_shape(link, relname, work)


def _build_many(
    link: Wire,
    relname: str,
    primary_key_attnums: Sequence[int],
    src: KeySource,
    tgt: Sequence[Sequence[Value]] | None,
    render: Render,
) -> list[str]:
    attnums = _attnums(link, primary_key_attnums)
    sources = read_keys(link, "src", src, len(attnums))
    if not isinstance(sources, Keys):
        if tgt is not None:
            raise UsageError("tgt must be None where src is a query", link.label)
        query = sources

        def work_query(shape: Shape) -> list[str]:
            return statements_of_query(link, shape, shape.positions(link, attnums), query, render)

        return with_shape(link, relname, work_query)
    targets = sources if tgt is None else Keys.of(link, "tgt", tgt, len(attnums))
    if sources.count != targets.count:
        raise UsageError(
            f"src and tgt must have the same count of keys, got {sources.count} and {targets.count}",
            link.label,
        )

    def work(shape: Shape) -> list[str]:
        positions = shape.positions(link, attnums)
        sources.demand_length(link, "source", len(positions))
        targets.demand_length(link, "target", len(positions))
        return statements_of_keys(link, shape, positions, sources, targets, render)

    return with_shape(link, relname, work)


def _attnums(link: Wire, attnums: Sequence[int]) -> Sequence[int]:
    demand_sequence(link, "primary_key_attnums", attnums)
    for attnum in attnums:
        if isinstance(attnum, bool) or not isinstance(attnum, int):
            raise UsageError(
                f"primary_key_attnums must be integers, got {type(attnum).__name__}",
                link.label,
                hint="numbers of columns in the table, from 1; get_pkey's positions are those in the key",
            )
    return attnums


# -- the texts


def render_insert(shape: Shape, positions: Positions, values: Sequence[str], key: Sequence[Text]) -> str:
    """Return the INSERT of a row of *values*, as literals, with its key replaced by *key*."""
    values = _with_key(positions, values, key)
    columns = ",".join([column.quoted for column in shape.columns])
    return "".join(("INSERT INTO ", shape.name, "(", columns, ") VALUES(", ",".join(values), ")"))


def render_update(shape: Shape, positions: Positions, values: Sequence[str], key: Sequence[Text]) -> str:
    """Return the UPDATE that gives the row with this *key* the *values*, as literals."""
    values = _with_key(positions, values, key)
    assignments = (f"{column.quoted} = {value}" for column, value in zip(shape.columns, values, strict=True))
    return "".join(
        ("UPDATE ", shape.name, " SET ", ", ".join(assignments), " WHERE ", shape.where(positions, key))
    )


def render_delete(shape: Shape, positions: Positions, key: Sequence[Text]) -> str:
    """Return the DELETE of the row with this *key*, as literals."""
    return "".join(("DELETE FROM ", shape.name, " WHERE ", shape.where(positions, key)))


def _with_key(positions: Positions, values: Sequence[str], key: Sequence[Text]) -> list[str]:
    """Return *values* with those of the *key* in their places; a column that comes twice gets its first."""
    changed = list(values)
    for position, literal in zip(reversed(positions), reversed(key), strict=True):
        changed[position] = literal or "NULL"
    return changed
