"""Checks of the roles' privileges, and of the destination table's properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side, demand
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sync.spec import Spec
from airflow_dblink.core.sync.work import Work
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.mapping import Pair

_SQL = statements("sync.sql")


def demand_privileges(
    source: Side,
    destination: Side,
    spec: Spec,
    table: Relation | None,
    target: Relation,
    pairs: Sequence[Pair],
    key: Sequence[str],
) -> None:
    """Raise if a role lacks a privilege, or the destination table can't be synced, before a row is read.

    :raises UsageError: 42501 with the privilege, table and columns; or names another obstacle.
    """
    wanted = {pair.source for pair in pairs}
    if table is not None:
        hidden = [c.name for c in table.columns if c.name in wanted and not c.may_select]
        demand(not hidden, source, f"permission denied: no SELECT on {table} ({', '.join(hidden)})")
    given = {pair.destination for pair in pairs}
    facts = destination.ask(_SQL["table_facts"], {"oid": target.oid})[0]
    columns = [c for c in target.columns if c.name in given]
    # dblink's UPDATE sets the key, too.
    written = [c for c in columns if c.name not in key or spec.apply == "statements"]
    for operation, on, names in (
        ("SELECT", True, [c.name for c in columns if not c.may_select]),
        ("INSERT", spec.insert, [c.name for c in columns if not c.may_insert]),
        (
            "UPDATE",
            spec.update,
            [c.name for c in written if not c.may_update],
        ),
    ):
        message = f"permission denied: no {operation} on {target} ({', '.join(names)})"
        demand(not (on and names), destination, message)
    if spec.delete and not spec.is_incremental:
        demand(bool(facts["may_delete"]), destination, f"permission denied: no DELETE on {target}")
    message = f"permission denied: {target} can't be locked without UPDATE, DELETE or TRUNCATE on it"
    demand(target.may_lock, destination, message)
    demand(target.may_stage, destination, "permission denied: no TEMP on the database, for staging")
    _demand_table(destination, spec, target, facts, [c.name for c in columns if c.always_identity], key)


def _demand_table(
    destination: Side,
    spec: Spec,
    target: Relation,
    facts: Mapping[str, Any],
    always: Sequence[str],
    key: Sequence[str],
) -> None:
    """Raise if the table, or its server, doesn't allow the changes."""
    if facts["is_standby"]:
        raise UsageError(
            "the destination's server is a standby, and a sync has to write there: even a dry run creates"
            " temporary tables",
            destination.conn_id,
            "25006",
            hint="let the connection lead to the primary (target_session_attrs=read-write with all hosts)",
        )
    if fixed := [name for name in always if name not in key and spec.update]:
        raise UsageError(
            f"{target} gives column {', '.join(map(repr, fixed))} its values (GENERATED ALWAYS),"
            " and can't update it",
            destination.conn_id,
            "428C9",
            hint="leave it out of columns, or make it the key",
        )
    if facts["has_rules"]:
        raise UsageError(
            f"{target} has rules, which rewrite a sync's statements", destination.conn_id, "0A000"
        )
    if (
        spec.triggers == "disable"
        and not facts["owns"]
        and destination.ask(_SQL["triggers"], {"oid": target.oid})
    ):
        raise UsageError(
            f"permission denied: only the owner of {target} (and its partitions) may disable its triggers",
            destination.conn_id,
            "42501",
            hint="let them fire: triggers='fire'; or connect as the owner",
        )
    if spec.apply == "statements":
        _demand_statements_possible(destination, spec, target, always)
    if spec.on_conflict == "replace":
        _demand_replaceable(destination, spec, target)


def _demand_statements_possible(
    destination: Side, spec: Spec, target: Relation, always: Sequence[str]
) -> None:
    hint = "use apply='set'"
    if always and (spec.insert or spec.update):
        raise UsageError(
            f"dblink's statements can't write {target}: {', '.join(always)} is GENERATED ALWAYS",
            destination.conn_id,
            hint=hint,
        )
    if references := destination.ask(_SQL["own_references"], {"oid": target.oid}):
        raise UsageError(
            f"{target} refers to itself ({references[0]['name']}), so its rows can't be changed one by one",
            destination.conn_id,
            hint=f"{hint}, or make the constraint DEFERRABLE",
        )
    if spec.on_conflict == "replace":
        raise UsageError("on_conflict='replace' is for apply='set'", destination.conn_id)


def _demand_replaceable(destination: Side, spec: Spec, target: Relation) -> None:
    if spec.is_incremental:
        raise UsageError(
            "on_conflict='replace' doesn't go together with watermark_column: the new rows don't tell"
            " whether the source still has the row that would make way",
            destination.conn_id,
            hint="use on_conflict='error'",
        )
    if target.has_inheritance:
        raise UsageError(
            f"on_conflict='replace' inserts rows of {target} anew, and would move those of its inheritance"
            " children into it",
            destination.conn_id,
            "0A000",
            hint="use on_conflict='error'",
        )
    if followers := [
        r for r in destination.ask(_SQL["cascading_references"], {"oid": target.oid}) if r["on_delete"]
    ]:
        names = ", ".join(f"{row['name']} of {row['table_name']}" for row in followers)
        raise UsageError(
            f"on_conflict='replace' deletes rows of {target} and inserts them anew, and {names} would follow",
            destination.conn_id,
            hint="use on_conflict='error'",
        )


def demand_places(work: Work) -> None:
    """Raise if several rows may have the same key, and the role can't read the rows' places.

    :raises UsageError: 42501.
    """
    demand(
        work.sees_places or work.key_is_sure,
        work.destination.side,
        f"permission denied: no SELECT on {work.target} as a whole. SELECT on its columns does not suffice:"
        " several rows may have the same key, since the table has inheritance children, or its unique index"
        " has an = of its own",
    )


def demand_key_type(work: Work) -> None:
    """Raise if the sync runs dblink's statements, and they can't name the key.

    :raises UsageError: with ``apply='statements'``.
    """
    if work.spec.apply == "statements":
        demand_nameable(work)


def demand_nameable(work: Work) -> None:
    """Raise if dblink's statements can't name the key: they only say ``key = 'value'``.

    They can't name a composite, whose literal would have no type, or a regclass, which would be read as an
    oid. And PostgreSQL doesn't find an ``=`` outside of ``search_path``, or finds another type's.

    :raises UsageError: names the column; the hint says what to do.
    """
    side = work.destination.side
    found = side.fetch(sql.SQL("SELECT pg_catalog.current_schemas(true) AS names"), "reading search_path")
    for field in work.key:
        kind, hint = field.kind, "use apply='set'"
        if kind.attributes and kind.element is None:
            why = "it is of a composite type"
        elif kind.enum_name is not None and kind.type != kind.base_type:
            why = f"it is of a domain over an enum, {kind.name}, to which PostgreSQL finds no ="
        elif kind.is_catalog_reference and kind.element is None:
            why = f"it is of type {kind.base_name}"
        elif kind.equals_schema is not None and kind.equals_schema not in found[0]["names"]:
            why = f"the = of its type {kind.base_name} is in schema {kind.equals_schema}, not in search_path"
            path = ", ".join(
                [*(name for name in found[0]["names"] if not name.startswith("pg_")), kind.equals_schema]
            )
            hint = f'session_settings={{"search_path": "{path}"}}, or {hint}'
        else:
            continue
        raise UsageError(
            f"dblink's statements can't find a row by {field.name}: {why}", side.conn_id, hint=hint
        )
