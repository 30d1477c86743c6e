"""What a transfer will do: read from both catalogs, and refused where it can't work."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Literal, Self, get_args

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.bind import Params
from airflow_dblink.core.server.side import Side, demand
from airflow_dblink.core.sqltext.names import demand_columns
from airflow_dblink.core.sqltext.rules import demand_one_source, demand_script, the_query
from airflow_dblink.core.tables.catalog import (
    children_of,
    find_relation,
    get_relation,
    is_same_database,
    split_name,
)
from airflow_dblink.core.tables.entries import Relation, ResultColumn
from airflow_dblink.core.tables.like import Like, demand_like
from airflow_dblink.core.tables.mapping import Pair, match
from airflow_dblink.core.tables.new_table import NewTable, new_table
from airflow_dblink.core.tables.pieces import TableName
from airflow_dblink.core.tables.route import route
from airflow_dblink.core.tables.row_key import UpsertKey
from airflow_dblink.core.tables.source import describe_source, source_query
from airflow_dblink.core.transfer.rebuild import demand_rebuild, demand_rebuildable, planned_rows
from airflow_dblink.core.transfer.swappable import SWAP_TIMEOUT, demand_swap_arguments, demand_swappable
from airflow_dblink.core.transfer.verify import Load, Verify, demand_readable, demand_verify

Mode = Literal["append", "replace", "upsert", "create", "swap"]
Columns = Sequence[str] | Mapping[str, str]

log = logging.getLogger(__name__)

_WRITABLE = ("r", "p", "f", "v")  # tables, partitioned tables, foreign tables, views with triggers
STAGE = sql.Identifier("pg_temp", "airflow_dblink_stage")


@dataclass(frozen=True)
class Spec:
    """What to move; see :class:`~airflow_dblink.operators.transfer.DblinkTransferOperator`.

    :ivar one_snapshot: whether all statements on the source, also the caller's own, see one snapshot.
    """

    destination_table: str
    source_table: str | None = None
    source_sql: str | None = None
    source_parameters: Params | None = None
    mode: Mode = "append"
    columns: Columns | None = None
    key: Sequence[str] | None = None
    pre_sql: str | None = None
    post_sql: str | None = None
    analyze: bool = False
    reset_sequences: bool = True
    lock: bool = False
    allow_empty_source: bool = False
    verify: Verify | None = None
    rebuild_indexes: bool | None = None
    like: Like = "columns"
    swap_timeout: timedelta = SWAP_TIMEOUT
    old_snapshots_timeout: timedelta | None = None
    one_snapshot: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return a spec made of *values*, which are named like its fields; other names are ignored.

        :raises KeyError: if one is missing.
        """
        names = [field.name for field in fields(cls) if field.name != "one_snapshot"]
        return cls(**{name: values[name] for name in names})

    def check(self, source_id: str | None = None) -> None:
        """Refuse arguments that contradict each other, and SQL that its argument can't take.

        :param source_id: of the source, for errors.
        :raises UsageError: names the argument.
        """
        demand_one_source(self.source_table, self.source_sql, self.source_parameters)
        if self.mode not in get_args(Mode):
            raise UsageError(f"mode must be append, replace, upsert, create or swap, got {self.mode!r}")
        if self.key is not None and self.mode != "upsert":
            raise UsageError(
                f"key is for mode='upsert', not for {self.mode!r}", hint="leave key out, or set mode='upsert'"
            )
        if self.lock and self.mode == "create":
            raise UsageError("lock is for a table that exists, not for mode='create'")
        demand_columns("columns", self.columns, or_mapping=True)
        demand_columns("key", self.key)
        demand_verify(self.verify, self.mode)
        demand_rebuild(self.rebuild_indexes, self.mode, lock=self.lock)
        demand_like(self.like, self.mode, self.source_table, self.columns)
        demand_swap_arguments(self.mode, self.swap_timeout, self.old_snapshots_timeout)
        if self.source_sql is not None:
            the_query(self.source_sql, conn_id=source_id)
        for name, script in (("pre_sql", self.pre_sql), ("post_sql", self.post_sql)):
            if script is not None:
                _demand_script(name, script)


@dataclass(frozen=True)
class Plan:
    """A transfer that both catalogs agree to.

    :ivar format: COPY format, ``binary`` or ``text``.
    :ivar read: the text after FROM for what is read, without an alias.
    :ivar target: the destination's qualified name.
    :ivar relation: the destination; ``None`` where it is created.
    :ivar estimated_rows: of the source table; ``None`` for a query, or where policies hide rows.
    :ivar planned_rows: what the source's planner expects; 0 where that decides nothing.
    """

    spec: Spec
    format: str
    pairs: tuple[Pair, ...]
    copy_out: sql.Composed | sql.SQL
    read: sql.Composable
    target: sql.Identifier
    relation: Relation | None
    key: UpsertKey
    create: NewTable | None
    estimated_rows: int | None
    planned_rows: int
    same_database: bool

    @property
    def refuses_empty_source(self) -> bool:
        """Whether an empty source must not empty the destination."""
        return self.spec.mode in ("replace", "swap") and not self.spec.allow_empty_source

    @property
    def load(self) -> Load:
        """What is to be verified after the load."""
        is_all = self.spec.mode != "append"
        return Load(self.read, self.target, self.spec.destination_table, self.pairs, self.format, is_all)

    @property
    def destination_columns(self) -> sql.Composed | sql.SQL:
        """The destination's columns, in the order of the data."""
        return sql.SQL(", ").join(sql.Identifier(pair.destination) for pair in self.pairs)

    @property
    def copy_in(self) -> sql.Composed | sql.SQL:
        """The destination's COPY."""
        into = STAGE if self.spec.mode == "upsert" else self.target
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT {}{})")
        more = sql.SQL(", FREEZE" if self.spec.mode == "swap" else "")
        return statement.format(into, self.destination_columns, sql.Identifier(self.format), more)


def plan(source: Side, destination: Side, spec: Spec, *, keys_follow: bool = False) -> Plan:
    """Check *spec* against both databases and return how it will be done. Changes nothing.

    :param keys_follow: of a table that is created, somebody else makes the foreign keys.
    :raises UsageError: names the connection, table, column or argument that can't work.
    :raises RemoteError: what a server says of the query or a name.
    """
    spec.check(source.conn_id)
    table = get_relation(source, spec.source_table) if spec.source_table else None
    query = source_query(source, table, spec.source_sql, spec.source_parameters)
    offered = describe_source(source, query, spec.source_sql, spec.source_parameters)
    relation = _destination(destination, spec)
    pairs = match(offered, relation, spec.columns, source.conn_id, destination.conn_id)
    key = _key(destination, spec, relation, pairs)
    _demand_privileges(source, destination, spec, table, relation, pairs, key)
    if relation is not None:
        demand_readable(destination, spec.verify, spec.mode, relation, pairs)
        demand_rebuildable(destination, relation, spec.rebuild_indexes)
    pairs, copy_format = route(source, destination, pairs)
    same_database = is_same_database(source, destination)
    if same_database and spec.mode == "replace" and table and relation and table.oid == relation.oid:
        raise UsageError(f"{relation} would be emptied before it is read", destination.conn_id)
    if relation is not None:
        target = TableName.of(relation)
    else:
        target = TableName(*split_name(destination, spec.destination_table))
    create = None
    if relation is None:
        create = new_table(
            source, destination, target, table, pairs, offered, spec.like, keys_follow=keys_follow
        )
    read = table.identifier if table else sql.SQL("({}\n)").format(query)
    depends = spec.mode == "replace" and spec.rebuild_indexes is None
    return Plan(
        spec=spec,
        format=copy_format,
        pairs=pairs,
        copy_out=_copy_out(query, table, pairs, offered, copy_format),
        read=read,
        target=target.identifier,
        relation=relation,
        key=key,
        create=create,
        estimated_rows=table.rows or None if table and not table.row_security else None,
        planned_rows=planned_rows(source, table, query) if depends else 0,
        same_database=same_database,
    )


def _demand_script(name: str, script: str) -> None:
    try:
        demand_script(script, name)
    except UsageError as error:
        hint = "it runs inside the transfer's transaction; run it in a task of its own"
        raise UsageError(f"{name}: {error.message}", hint=hint) from None


def _destination(destination: Side, spec: Spec) -> Relation | None:
    if spec.mode != "create":
        relation = get_relation(destination, spec.destination_table)
        if spec.mode == "swap":
            demand_swappable(destination, relation)
            return relation
        if relation.kind not in _WRITABLE or (spec.lock and relation.kind == "f"):
            what = "a table that can be locked" if spec.lock else "a table"
            is_a = f"it is {relation.kind_name}: name a table"
            raise UsageError(f"{relation} is not {what}", destination.conn_id, "42809", hint=is_a)
        if relation.kind == "v":
            _refuse_view(destination, spec, relation)
        _demand_no_rules(destination, spec, relation)
        if spec.mode == "replace" and relation.has_inheritance:
            _refuse_children(destination, relation)
        return relation
    if (existing := find_relation(destination, spec.destination_table)) is not None:
        raise UsageError(
            f"{existing} already exists", destination.conn_id, "42P07", hint="use append, replace or upsert"
        )
    return None


def _refuse_view(destination: Side, spec: Spec, view: Relation) -> None:
    """Refuse a view unless rows are appended to it, and its trigger takes them."""
    table = "name the table behind it"
    if spec.mode == "replace":
        why = "mode='replace' can't empty it"
        hint = f"{table}; or mode='append' with a DELETE in pre_sql"
    elif spec.mode == "upsert":
        why, hint = "mode='upsert' needs a unique index, which no view has", table
    elif not view.has_instead_of_insert:
        why = "COPY writes to one only through a trigger INSTEAD OF INSERT ... FOR EACH ROW"
        hint = f"{table}, or give the view such a trigger"
    else:
        return
    raise UsageError(f"{view} is a view, and {why}", destination.conn_id, "42809", hint=hint)


def _demand_no_rules(destination: Side, spec: Spec, relation: Relation) -> None:
    """Refuse a table whose rules COPY would pass over, or ON CONFLICT can't go with."""
    rules = [*relation.insert_rules, *(relation.update_rules if spec.mode == "upsert" else [])]
    if rules and relation.kind != "v":  # a view is written by its triggers
        why = "ON CONFLICT doesn't go with" if spec.mode == "upsert" else "COPY doesn't go by"
        raise UsageError(
            f"{relation} has rules for what is written to it, which {why}: {', '.join(rules)}",
            destination.conn_id,
            "0A000",
            hint="use a trigger in their place, or ALTER TABLE ... DISABLE RULE if rows should be stored as"
            " they come",
        )


def _refuse_children(destination: Side, relation: Relation) -> None:
    raise UsageError(
        f"{relation} has inheritance children, and TRUNCATE would empty them, too:"
        f" {', '.join(children_of(destination, relation))}",
        destination.conn_id,
        "0A000",
        hint=f"to replace its own rows alone: mode='append' with pre_sql='TRUNCATE ONLY {relation}'",
    )


def _demand_privileges(
    source: Side,
    destination: Side,
    spec: Spec,
    table: Relation | None,
    relation: Relation | None,
    pairs: Sequence[Pair],
    key: UpsertKey,
) -> None:
    wanted = {pair.source for pair in pairs}
    if table is not None:
        hidden = [c.name for c in table.columns if c.name in wanted and not c.may_select]
        demand(not hidden, source, f"permission denied: no SELECT on {table} ({', '.join(hidden)})")
        if table.row_security:
            log.warning("%s: row-level security limits which rows of %s are read", source.conn_id, table)
    if relation is None:
        return
    given = {pair.destination for pair in pairs}
    closed = [c.name for c in relation.columns if c.name in given and not c.may_insert]
    demand(not closed, destination, f"permission denied: no INSERT on {relation} ({', '.join(closed)})")
    if spec.lock or spec.mode == "swap":
        who = "lock" if spec.lock else "mode='swap'"
        message = f"permission denied: {who} needs UPDATE or DELETE on {relation}"
        demand(relation.may_lock, destination, message)
    if spec.mode == "replace":
        demand(relation.may_truncate, destination, f"permission denied: no TRUNCATE on {relation}")
    if spec.mode == "upsert":
        values = given - {*key.columns} | {*key.loose}
        always = [c.name for c in relation.columns if c.name in values and c.always_identity]
        if always:
            raise UsageError(
                f"{relation} gives column {', '.join(map(repr, always))} its values (GENERATED ALWAYS),"
                " and can't update it",
                destination.conn_id,
                "428C9",
                hint="leave it out of columns, or make it the key",
            )
        unread = [c.name for c in relation.columns if c.name in given and not c.may_select]
        demand(not unread, destination, f"permission denied: no SELECT on {relation} ({', '.join(unread)})")
        fixed = [c.name for c in relation.columns if c.name in values and not c.may_update]
        demand(not fixed, destination, f"permission denied: no UPDATE on {relation} ({', '.join(fixed)})")
        demand(relation.may_stage, destination, "permission denied: no TEMP on the database, for staging")


def _key(destination: Side, spec: Spec, relation: Relation | None, pairs: Sequence[Pair]) -> UpsertKey:
    if spec.mode != "upsert" or relation is None:
        return UpsertKey()
    return UpsertKey.of(destination, relation, spec.key, pairs)


def _copy_out(
    query: sql.Composed | sql.SQL,
    table: Relation | None,
    pairs: Sequence[Pair],
    offered: Sequence[ResultColumn],
    copy_format: str,
) -> sql.Composed | sql.SQL:
    options = sql.SQL("TO STDOUT (FORMAT {})").format(sql.Identifier(copy_format))
    names = sql.SQL(", ").join(sql.Identifier(pair.source) for pair in pairs)
    plain = not any(pair.cast for pair in pairs)
    if table is not None and plain and table.kind == "r" and not table.has_children:
        generated = {column.name for column in table.columns if column.generated}
        if not generated & {pair.source for pair in pairs}:  # COPY takes no generated columns
            return sql.SQL("COPY {} ({}) {}").format(table.identifier, names, options)
    if plain and [pair.source for pair in pairs] == [column.name for column in offered]:
        return sql.SQL("COPY ({}\n) {}").format(query, options)
    values = sql.SQL(", ").join(
        sql.SQL("{}::{}").format(sql.Identifier(pair.source), sql.SQL(pair.cast))
        if pair.cast
        else sql.Identifier(pair.source)
        for pair in pairs
    )
    if table is not None:  # not from the query: it reads all columns, and the role may not
        return sql.SQL("COPY (SELECT {} FROM {} AS source) {}").format(values, table.identifier, options)
    return sql.SQL("COPY (SELECT {} FROM ({}\n) AS source) {}").format(values, query, options)
