"""What a new table takes from the source's, beyond columns: defaults, identity, indexes, CHECKs, comments.

The source's expressions become this database's, and are run here as the role that loads. So each must stay
within its parentheses, and call nothing that changes something or belongs to a stranger.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import Any, Literal, get_args

from psycopg import sql

from airflow_dblink.core.errors import RemoteError, UsageError
from airflow_dblink.core.server.side import Side, own_path
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.sqltext.lexer import tokens
from airflow_dblink.core.tables.catalog import get_relation
from airflow_dblink.core.tables.entries import Relation
from airflow_dblink.core.tables.pieces import Index, TableName, build_indexes, read_indexes, run_all

Like = Literal["columns", "all"]

log = logging.getLogger(__name__)

_SQL = statements("new_table.sql")
_NAME_BYTES = 63
_IDENTITY = {"a": "ALWAYS", "d": "BY DEFAULT"}
_INTEGERS = {name: sql.SQL(name) for name in ("smallint", "integer", "bigint")}
_CONSTRAINTS = ("EXCLUDE ", "PRIMARY KEY ", "UNIQUE ")
_DEFERRALS = ("", " DEFERRABLE", " DEFERRABLE INITIALLY DEFERRED")
_NO_TEXT = ";"
_CHECKING = "checking what the new table will have"


@dataclass(frozen=True)
class Piece:
    """Something of a table that is made after the load.

    :ivar what: its name, for errors.
    :ivar texts: what the source's server wrote of the statements.
    """

    what: str
    made_by: tuple[sql.Composable, ...]
    texts: tuple[str, ...] = ()


def demand_like(like: str, mode: str, source_table: str | None, columns: object) -> None:
    """Raise unless *like* is known; ``all`` needs a source table, all of it, and a table that is created.

    :raises UsageError: says what to do.
    """
    if like not in get_args(Like):
        raise UsageError(f"like must be columns or all, got {like!r}")
    if like == "columns":
        return
    if mode != "create":
        raise UsageError(f"like='all' is for mode='create', not for {mode!r}", hint="leave like out")
    if source_table is None:
        raise UsageError(
            "like='all' makes a table like the source's, and a query has no defaults, indexes or comments",
            hint="give source_table in place of source_sql, or leave like out",
        )
    if columns is not None:
        raise UsageError(
            "like='all' makes a table with all columns: its indexes and CHECKs may name any of them",
            hint="leave columns out, or like",
        )


def read_pieces(
    source: Side, table: Relation, target: TableName, *, keys_follow: bool = False
) -> tuple[Piece, ...]:
    """Return what *table* of the source has beyond columns and NOT NULL, to be made on *target*.

    If the two tables have one name, so have indexes and sequences; else the new table's name becomes their
    beginning. What isn't made is in the log.

    :param keys_follow: somebody else makes the foreign keys, and tells of those that aren't made.
    :raises UsageError: if an expression isn't one.
    :raises RemoteError: a server's errors.
    """
    with own_path(source):  # definitions then name all schemas
        pieces = _values(source, table, target)
        for index in read_indexes(source, table.oid):
            if index.is_valid:
                pieces.append(_index(index, _renamed(index.name, table, target), target))
        pieces += _checks(source, table, target)
        pieces.append(Piece("comments", tuple(_comments(source, table, target))))
        left_out = [
            str(row["name"])
            for row in source.ask(_SQL["left_out"], {"oid": table.oid, "keys": not keys_follow})
        ]
    for piece in pieces:
        for text in piece.texts:
            _demand_contained(source, piece.what, text)
    if left_out:
        names = (target.schema_name, target.name, table, ", ".join(left_out))
        log.warning("%s.%s is made without what %s has, too: %s", *names)
    return tuple(pieces)


def _values(source: Side, table: Relation, target: TableName) -> list[Piece]:
    """Return sequences, identity and defaults: where a row's own values come from."""
    pieces: list[Piece] = []
    names: dict[str, str] = {}
    for row in source.ask(_SQL["sequences"], {"oid": table.oid}):
        column, options = sql.Identifier(row["column_name"]), _options(row)
        if row["type"] not in _INTEGERS or row["identity"] not in ("", *_IDENTITY):
            raise _undescribed(source, f"the sequence of column {row['column_name']}")
        if row["identity"]:
            kind = sql.SQL(_IDENTITY[row["identity"]])
            identity = sql.SQL("ALTER TABLE {} ALTER COLUMN {} ADD GENERATED {} AS IDENTITY ({})")
            made = identity.format(target.identifier, column, kind, options)
            pieces.append(Piece(f"the identity of column {row['column_name']}", (made,)))
            continue
        name = TableName(target.schema_name, _renamed(row["name"], table, target))
        names[row["mention"]] = sql.SQL("{}::regclass").format(sql.Literal(str(name))).as_string()
        sequence = sql.SQL("CREATE SEQUENCE {} AS {} {} OWNED BY {}.{}").format(
            name.identifier, _INTEGERS[row["type"]], options, target.identifier, column
        )
        pieces.append(Piece(f"sequence {row['name']}", (sequence,)))
    default = sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT ({})")
    for row in source.ask(_SQL["defaults"], {"oid": table.oid}):
        text = _with_names(row["expression"], names)
        made = default.format(target.identifier, sql.Identifier(row["name"]), sql.SQL(text))
        pieces.append(Piece(f"the default of column {row['name']}", (made,), (text,)))
    return pieces


def _options(row: Mapping[str, Any]) -> sql.Composed:
    numbers = [sql.Literal(int(row[name])) for name in ("step", "lowest", "highest", "start", "cache")]
    cycle = sql.SQL("CYCLE" if row["cycles"] else "NO CYCLE")
    options = sql.SQL("INCREMENT BY {} MINVALUE {} MAXVALUE {} START WITH {} CACHE {} {}")
    return options.format(*numbers, cycle)


def _index(index: Index, name: str, target: TableName) -> Piece:
    deferral = index.deferral if index.deferral in _DEFERRALS else ""
    made = build_indexes([(replace(index, tablespace="", deferral=deferral), name)], target)
    texts: tuple[str, ...] = (index.method,)
    if (definition := index.constraint_definition) is not None:
        texts = (definition if definition.startswith(_CONSTRAINTS) else _NO_TEXT,)
    return Piece(f"index {index.name}", tuple(made), texts)


def _checks(source: Side, table: Relation, target: TableName) -> Iterable[Piece]:
    for row in source.ask(_SQL["checks"], {"oid": table.oid}):
        name = sql.Identifier(row["name"])
        more = "" if row["is_enforced"] else " NOT ENFORCED"
        more = " NOT VALID" if row["is_enforced"] and not row["is_validated"] else more
        more = (" NO INHERIT" if row["no_inherit"] else "") + more
        add = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({}){}")
        made = [add.format(target.identifier, name, sql.SQL(row["expression"]), sql.SQL(more))]
        if row["comment"] is not None:
            comment = sql.SQL("COMMENT ON CONSTRAINT {} ON {} IS {}")
            made.append(comment.format(name, target.identifier, sql.Literal(row["comment"])))
        yield Piece(f"constraint {row['name']}", tuple(made), (row["expression"],))


def _comments(source: Side, table: Relation, target: TableName) -> Iterable[sql.Composed]:
    for row in source.ask(_SQL["comments"], {"oid": table.oid}):
        comment = sql.Literal(row["comment"])
        if row["name"] is None:
            yield sql.SQL("COMMENT ON TABLE {} IS {}").format(target.identifier, comment)
        else:
            column = sql.SQL("COMMENT ON COLUMN {}.{} IS {}")
            yield column.format(target.identifier, sql.Identifier(row["name"]), comment)


def _with_names(expression: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        expression = expression.replace(old, new)
    return expression


def _renamed(name: str, table: Relation, target: TableName) -> str:
    """Return the name for *target* of what belongs to *table*: a schema may have several tables like it."""
    if table.name == target.name:
        return name
    rest = name.removeprefix(table.name) if name.startswith(table.name) else f"_{name}"
    room = max(_NAME_BYTES - len(rest.encode()), 0)  # what tells the names apart stays
    head = target.name.encode()[:room].decode(errors="ignore")
    return f"{head}{rest}".encode()[:_NAME_BYTES].decode(errors="ignore")


def _demand_contained(source: Side, what: str, text: str) -> None:
    """Raise unless *text* stays within the place of a statement where it is put.

    :raises UsageError: for more than one statement, for a comma or parenthesis that would end the place, and
        for comments and quotes that PostgreSQL doesn't write.
    """
    if not _is_contained(text):
        raise _undescribed(source, what)


def _undescribed(source: Side, what: str) -> UsageError:
    return UsageError(
        f"{what} isn't described as PostgreSQL does it",
        source.conn_id,
        hint="look who answers there; like='columns' takes no definitions",
    )


def _is_contained(text: str) -> bool:
    depth = last = 0
    for kind, start, end in tokens(f"{text};"):  # whatever is left open takes the semicolon in
        if text[last:start].strip():  # a comment
            return False
        if kind == "end":
            return start == len(text) and depth == 0
        word = text[start:end]
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(word, 0)
        # TREAT(x AS f) would call f, which no list of names before a parenthesis has.
        is_odd = kind == "dollar" or (kind == "quoted" and word[0] != '"')
        is_odd = is_odd or (kind == "word" and word.lower() == "treat")
        if is_odd or depth < 0 or (depth == 0 and word == ","):
            return False
        last = end
    return False


def _called(pieces: Iterable[Piece]) -> set[str]:
    """Return the names that stand before a parenthesis."""
    names: set[str] = set()
    for text in (text for piece in pieces for text in piece.texts):
        found = [(kind, text[start:end]) for kind, start, end in tokens(text)]
        for (kind, word), (_, after) in pairwise(found):
            if after == "(" and kind in ("word", "quoted"):
                names.add(_name(kind, word))
    return names


def _mentioned(piece: Piece) -> list[tuple[str, str]]:
    """Return (schema, name) of the functions, operators and types outside of pg_catalog in a piece."""
    pairs: set[tuple[str, str]] = set()
    for text in piece.texts:
        found = [(kind, text[start:end]) for kind, start, end in tokens(text)]
        for i, ((kind, word), (_, dot)) in enumerate(pairwise(found)):
            if dot != "." or kind not in ("word", "quoted"):
                continue
            after = found[i + 2 :]
            if after and after[0][0] in ("word", "quoted"):
                pairs.add((_name(kind, word), _name(*after[0])))
            else:
                characters = takewhile(lambda each: each[1] != ")", after)
                pairs.add((_name(kind, word), "".join(each for _, each in characters)))
    return sorted(pairs)


def _name(kind: str, word: str) -> str:
    return word.lower() if kind == "word" else word[1:-1].replace('""', '"')


def _demand_no_stranger(destination: Side, piece: Piece) -> None:
    """Raise if a name in *piece* means, or could mean, something that a stranger owns.

    This comes before a piece is made: even on an empty table PostgreSQL runs an immutable function whose
    arguments are constants. All functions of a name count, since another one may fit the arguments better.

    :raises UsageError: names them.
    """
    if not (pairs := _mentioned(piece)):
        return
    schemas, names = ([pair[i] for pair in pairs] for i in (0, 1))
    found = destination.ask(_SQL["strange_names"], {"schemas": schemas, "names": names}, _CHECKING)
    if found:
        raise _refused(destination, "use", [str(row["name"]) for row in found])


def make(destination: Side, pieces: Sequence[Piece]) -> None:
    """Make *pieces* on the new table.

    :raises UsageError: if by now a stranger's function has a name that a piece calls.
    :raises RemoteError: the server's errors.
    """
    for piece in pieces:
        _demand_no_stranger(destination, piece)
        with own_path(destination):
            run_all(destination, piece.made_by, f"making {piece.what}")


def rehearse(destination: Side, target: sql.Identifier, pieces: Sequence[Piece]) -> None:
    """Make *pieces* on the empty new table, look which functions, operators and types they use, and undo it.

    :raises UsageError: names what can't be made, or must not be called by it.
    :raises RemoteError: the server's other errors.
    """
    calls = destination.ask(_SQL["calls"], {"names": sorted(_called(pieces))}, _CHECKING)
    if calls:
        raise _refused(destination, "call", [f"{row['name']}()" for row in calls])
    for piece in pieces:
        _demand_no_stranger(destination, piece)
    destination.run("SAVEPOINT airflow_dblink_rehearsal", _CHECKING)
    with own_path(destination):
        for piece in pieces:
            try:
                run_all(destination, piece.made_by, _CHECKING)
            except RemoteError as error:
                if error.retryable:
                    raise
                destination.run("ROLLBACK TO airflow_dblink_rehearsal", _CHECKING)  # others may be looked at
                raise UsageError(
                    f"{piece.what} can't be made here: {error.message}",
                    destination.conn_id,
                    error.sqlstate,
                    hint="make what is missing first, or leave all of it out: like='columns'",
                ) from None
        relation = get_relation(destination, target.as_string(destination.connection))
        strangers = destination.ask(_SQL["strangers"], {"oid": relation.oid}, _CHECKING)
    if strangers:
        raise _refused(destination, "use", [str(row["name"]) for row in strangers])
    destination.run("ROLLBACK TO airflow_dblink_rehearsal", _CHECKING)
    destination.run("RELEASE airflow_dblink_rehearsal", _CHECKING)


def _refused(destination: Side, verb: str, names: Sequence[str]) -> UsageError:
    return UsageError(
        f"defaults, CHECKs or indexes of the source's table {verb} {', '.join(names)}, which could do"
        " anything here in the name of this role",
        destination.conn_id,
        "42501",
        hint="leave them out with like='columns', and make by hand what you trust",
    )
