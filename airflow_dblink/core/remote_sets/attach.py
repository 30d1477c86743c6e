"""Results of remote queries as temporary tables of another session: the most common use of dblink.

:func:`prepare` asks all servers, and refuses sets that can't work before anything is changed.
:func:`attach` makes the tables and fills them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from airflow_dblink.core.errors import DblinkError, RemoteError, StoppedError, UsageError
from airflow_dblink.core.link.link import Link
from airflow_dblink.core.remote_sets.remote import Remote, query_text
from airflow_dblink.core.server.bind import bind
from airflow_dblink.core.server.settings import TEXT_FORMS, set_config
from airflow_dblink.core.server.side import Side, begin
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sqltext.user_text import UserText
from airflow_dblink.core.streams.fan_in import Load, Report, gather, leave_copy
from airflow_dblink.core.tables.catalog import describe, types, types_by_name
from airflow_dblink.core.tables.entries import ResultColumn, Type

log = logging.getLogger(__name__)

_SQL = statements("remote_sets.sql")
_TEMPORARY = re.compile(r"pg_temp_\d+\.(.*)", re.DOTALL)
_SYSTEM_COLUMNS = {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}
_PSEUDO, _UNKNOWN = "P", "X"  # pg_type.typcategory
# Types whose input functions refuse their own output: "cannot accept a value of type ...".
_NO_INPUT = (
    *("pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list"),
    *("pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"),
)
# Limits that are switched off: a session waits within a transaction, for its turn or for the first row.
_PATIENCE = {"idle_in_transaction_session_timeout": "0"}
_TRY = "airflow_dblink_try"
_WITHIN_TRANSACTION = (
    "SAVEPOINT airflow_dblink_attach",
    "RELEASE airflow_dblink_attach",
    "ROLLBACK TO airflow_dblink_attach; RELEASE airflow_dblink_attach",
)


@dataclass(frozen=True)
class Set:
    """A remote set that fits the types of both servers.

    :ivar name: name of the temporary table, unquoted.
    :ivar columns: names and types, in the order of the data.
    """

    name: str
    source: Side
    query: UserText
    columns: tuple[tuple[str, str], ...]
    binary: bool
    indexes: tuple[tuple[str, ...], ...]

    def create(self, *, drop: bool) -> sql.Composed:
        """Return the statement that makes the table; *drop*: until the end of the transaction."""
        lines = [sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in self.columns]
        end = sql.SQL(" ON COMMIT DROP" if drop else "")
        statement = sql.SQL("CREATE TEMP TABLE {} ({}){}")
        return statement.format(sql.Identifier(self.name), sql.SQL(", ").join(lines), end)

    @property
    def table(self) -> sql.Identifier:
        """The table's qualified name."""
        return sql.Identifier("pg_temp", self.name)

    def create_indexes(self) -> Iterator[sql.Composed]:
        """Yield the statements that make the indexes."""
        for index in self.indexes:
            columns = sql.SQL(", ").join(map(sql.Identifier, index))
            yield sql.SQL("CREATE INDEX ON {} ({})").format(self.table, columns)

    def load(self) -> Load:
        """Return the two COPY statements."""
        form = sql.Identifier("binary" if self.binary else "text")
        copy_out = sql.SQL("COPY ({}\n) TO STDOUT (FORMAT {})").format(self.query, form)
        copy_in = sql.SQL("COPY {} FROM STDIN (FORMAT {})").format(self.table, form)
        connection = self.source.connection
        there, here = (copy.as_string(connection).encode() for copy in (copy_out, copy_in))
        return Load(self.name, there, here, self.binary)


def prepare(
    home: Side,
    remotes: Mapping[str, Remote],
    sources: Mapping[str, Side],
    settings: Mapping[str, Mapping[str, str]],
) -> list[Set]:
    """Begin the transaction of each source, and return the sets. Changes nothing.

    :param remotes: by the name of the table; see :func:`remotes_by_table`.
    :param sources: a connection for each ``conn_id``, not in a transaction.
    :param settings: run-time parameters by ``conn_id``, local to the source's transaction.
    :raises UsageError: names the set and column, or the connection, that can't work.
    :raises RemoteError: a server's errors.
    """
    _demand_no_hiding(home, list(remotes))
    for conn_id, source in sources.items():
        # One snapshot for all sets of a connection; read only, since home's rollback can't undo writes.
        local = {**_PATIENCE, **settings.get(conn_id, {})}
        begin(source, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", local)
    return [_set(home, sources[remote.conn_id], name, remote) for name, remote in remotes.items()]


def _demand_no_hiding(home: Side, names: list[str]) -> None:
    """Raise if a name already means something in the session: an INSERT into such a set would be lost."""
    if not names:
        return
    for row in home.ask(_SQL["names"], {"names": names}):
        hidden = row["relation"] or row["type"]
        if mine := _TEMPORARY.match(row["relation"] or ""):
            raise UsageError(
                f"remote set {row['name']!r}: this session already has a temporary table {row['name']!r}",
                home.conn_id,
                "42P07",
                hint=f"drop it: DROP TABLE pg_temp.{mine[1]}; or give the set another name",
            )
        if hidden:
            kind = "relation" if row["relation"] else "type"
            raise UsageError(
                f"remote set {row['name']!r} would hide the {kind} {hidden}",
                home.conn_id,
                "42P07",
                hint="give the set another name",
            )
    if not home.ask(_SQL["may_stage"])[0]["may_stage"]:
        raise UsageError(
            "permission denied: no TEMP on the database, for remote sets",
            home.conn_id,
            "42501",
            hint="grant it to the connection's role",
        )


def _set(home: Side, source: Side, name: str, remote: Remote) -> Set:
    query = query_text(name, remote.sql)
    with _about(name):
        if remote.parameters is not None:
            query = bind(source.connection, source.conn_id, query, remote.parameters)
        offered = describe(source, query)
        _demand_columns_possible(source, offered)
        indexes = remote.index_columns(name)
        _demand_indexable(source, offered, indexes)
        columns, binary = _columns(home, source, name, offered)
    return Set(name, source, query, tuple(columns), binary, tuple(map(tuple, indexes)))


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Add the name of the set to errors."""
    try:
        yield
    except (UsageError, RemoteError) as error:
        raise error.but(message=f"remote set {name!r}: {error.message}") from None


def _demand_columns_possible(source: Side, offered: Sequence[ResultColumn]) -> None:
    names = [column.name for column in offered]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"more than one column has the name {', '.join(map(repr, twice))}",
            source.conn_id,
            "42701",
            hint="give them names of their own: AS ...",
        )
    if system := sorted(_SYSTEM_COLUMNS & set(names)):
        raise UsageError(
            f"no table can have a column {system[0]!r}: PostgreSQL has one of that name in each",
            source.conn_id,
            "42701",
            hint="give it another name: AS ...",
        )


def _demand_indexable(
    source: Side, offered: Sequence[ResultColumn], indexes: Sequence[Sequence[str]]
) -> None:
    names = [column.name for column in offered]
    if unknown := [name for index in indexes for name in index if name not in names]:
        raise UsageError(
            f"there is no column {unknown[0]!r} to index",
            source.conn_id,
            "42703",
            hint=f"it has: {', '.join(names)}",
        )


# -- types


def _columns(
    home: Side, source: Side, name: str, offered: Sequence[ResultColumn]
) -> tuple[list[tuple[str, str]], bool]:
    """Return names and types of the table's columns, and whether the data can be binary."""
    there = types(source, [column.type for column in offered])
    asked = [column.type_name for column in offered]
    known = types_by_name(home, asked)
    here = types(home, [oid for oid in known if oid is not None])
    columns, binary = [], True
    for column, oid in zip(offered, known, strict=True):
        given, wanted = there[column.type], None if oid is None else here[oid]
        type_name = column.type_name
        if why := _why_text(given, wanted):
            log.warning("%s: column %r of remote set %r becomes text: %s is %s",
                        home.conn_id, column.name, name, type_name, why)  # fmt: skip
            type_name = "pg_catalog.text"
        binary = binary and not why and _is_binary(given, wanted)
        columns.append((column.name, type_name))
    return columns, binary


def _why_text(given: Type, wanted: Type | None) -> str | None:
    """Return the reason why values of that type can't be kept as they are, or ``None``."""
    if given.category in (_PSEUDO, _UNKNOWN):
        return "no type for a column"
    if given.built_in and given.base_name in _NO_INPUT:
        return "a type that PostgreSQL writes and doesn't read"
    if given.is_catalog_reference:
        return "a name for something in its own database"
    if wanted is None:
        return "unknown here"
    same = (given.category, given.element_name, given.attributes) == (
        wanted.category,
        wanted.element_name,
        wanted.attributes,
    )
    return None if same else "another type here"


def _is_binary(given: Type, wanted: Type | None) -> bool:
    """Return whether the binary form is the same on both servers, as for built-in types."""
    return (
        wanted is not None
        and given.built_in
        and wanted.built_in
        and given.base_type == wanted.base_type
        and given.goes_in_binary
    )


# -- doing it


def attach(
    home: Side,
    sets: Sequence[Set],
    report: Report,
    *,
    analyze: bool = True,
    drop: bool = True,
    settings: Collection[str] = (),
) -> dict[str, int]:
    """Make the tables and fill them, after :func:`prepare`; the sources' transactions end.

    :param home: in a transaction.
    :param report: called with the name of a set, its rows and its bytes so far, often.
    :param analyze: ANALYZE each table.
    :param drop: drop the tables at the end of the transaction; otherwise they live as long as the session.
    :param settings: names of run-time parameters that the caller has set, the same on all servers.
    :returns: number of rows by the name of the table.
    :raises UsageError: if a column can't be indexed.
    :raises RemoteError: a server's error, with the name of its connection; see
        :func:`airflow_dblink.core.streams.fan_in.gather`.
    """
    if not sets:
        return {}
    for each in sets:
        with _about(each.name):
            _try_indexes(home, each)
            home.run(each.create(drop=drop), "creating the temporary table")
    loads = {each.name: each.load() for each in sets}
    by_source: dict[str, tuple[Side, list[Load]]] = {}
    for each in sets:
        by_source.setdefault(each.source.conn_id, (each.source, []))[1].append(loads[each.name])
    with _pinned(home, settings):
        gather(home, list(by_source.values()), report)
    for each in sets:
        for statement in each.create_indexes():
            home.run(statement, "creating an index")
        if analyze:
            home.run(sql.SQL("ANALYZE {}").format(each.table), "analyzing the temporary table")
    return {name: load.rows for name, load in loads.items()}


def _try_indexes(home: Side, each: Set) -> None:
    """Make the indexes on an empty table, so that a type without an order is found before the load."""
    if not each.indexes:
        return
    home.run(f"SAVEPOINT {_TRY}", "trying the indexes")
    home.run(each.create(drop=True), "creating the temporary table")
    try:
        for statement in each.create_indexes():
            home.run(statement, "trying the indexes")
    except RemoteError as error:
        if error.sqlstate != "42704":  # no operator class
            raise
        raise UsageError(error.message, error.connname, error.sqlstate, hint=error.hint) from None
    home.run(f"ROLLBACK TO {_TRY}; RELEASE {_TRY}", "trying the indexes")


@contextmanager
def _pinned(home: Side, settings: Collection[str]) -> Iterator[None]:
    """Set the parameters that shape values as text, and reset them afterwards, for the user's statements."""
    kept = {name.lower() for name in settings}
    pinned = {name: value for name, value in {**TEXT_FORMS, **_PATIENCE}.items() if name not in kept}
    before = {row["name"]: row["setting"] for row in home.ask(_SQL["settings"], {"names": [*pinned]})}
    home.run(set_config(pinned.items(), local=True), "setting up the load")
    yield  # after an error home is rolled back
    home.run(set_config(before.items(), local=True), "ending the load")


# -- on a link


def attach_to_link(
    link: Link, remotes: Mapping[str, Remote], sources: Mapping[str, Side], *, analyze: bool
) -> dict[str, int]:
    """Make and fill the tables on *link*, all or none: for its transaction, or for as long as it is open.

    :param sources: a connection for each ``conn_id``, not in a transaction.
    :raises UsageError: as :func:`prepare`; behind a transaction pooler if no transaction is open.
    :raises RemoteError: a server's errors. The link, and its transaction, are then as before.
    """
    alone = link.is_idle
    if alone and link.target.leads_through_pooler():
        raise UsageError(
            "a temporary table does not survive a pooler in transaction mode",
            link.label,
            hint='begin a transaction: exec("BEGIN"); or use a connection that leads around the pooler',
        )
    opening, end, undo = ("BEGIN", "COMMIT", "ROLLBACK") if alone else _WITHIN_TRANSACTION
    link.run(sql.SQL(opening), "attaching remote sets", timed=False)
    home = Side(link.connection, link.label)
    try:
        sets = prepare(home, remotes, sources, {})
        counts = attach(home, sets, lambda *_: None, analyze=analyze, drop=not alone)
        home.run(end, "attaching remote sets")
    except BaseException as error:
        if isinstance(error, DblinkError) and not isinstance(error, StoppedError):
            _undo(link, undo)
        else:  # a kill or a time-out: no statement must go on after this
            link.abort()
        raise
    return counts


def _undo(link: Link, statement: str) -> None:
    try:
        leave_copy(link.connection)
        link.connection.execute(statement.encode())
    except psycopg.Error as error:  # the link is lost, and the server rolls back; or there is nothing to undo
        log.debug("%s: %s", link.label, type(error).__name__)
