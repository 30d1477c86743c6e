"""Random calls of dblink's builders and get_pkey on a shape, right and wrong ones."""

# ruff: noqa: S608 - quoted names that the tests themselves made

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.differential.kinds import ANY_VALUE, Value, awkward_texts
from tests.differential.tables import Shape, names, quoted

DATABASE = "@database@"  # stands for its name in a relname
BUILDERS = ("insert", "update", "delete")
_SPELLINGS = ("{}",) * 12 + (" {} ", "+{}", "{}0", "{}.0", "{} ", "'{}'", "\t{}\n", "0{}", "{}\\", "{}::text")
_BLANKS = st.sampled_from(["", "", " ", "\t", "\n", "\r", "\f", "\v", "  ", "\u00a0"])

# Made once by the superuser, see sides.KIT; a role sees them like any other relation, or doesn't.
_FIXED_RELATIONS = (
    "kit.ages",
    "KIT . Ages",
    "kit.children",
    "kit.policied",
    "kit.forbidden",
    "kit.partly",
    "kit.forbidden_view",
    "kit.borrowed",
    "kit.failing",
    "kit.raising",
    "kit.numbered",
    "kit.ages_pkey",
    "kit.parted",
    "kit.parted_pkey",
    "kit.good_pair",
    "kit.pair",
    "kit.mood",
    "kit.distant",
    "kit.wide",
    "kit.periods",
    'kit."odd \'name"',
    "hidden.known",
    "hidden.unknown",
    "pg_am",
    "pg_namespace",
    "pg_catalog.pg_authid",
    "pg_toast.pg_toast_1255",
    "pg_class_oid_index",
    "information_schema.sql_features",
    "pg_temp.t",
    "pg_temp.pg_am",
    "no_such",
    "kit.no_such",
    "no_such.t",
    "1259",
)
# The error of reading these depends on the plan, which is another one for a set of keys.
RAISING = ("kit.distant", "kit.failing", "kit.policied", "kit.raising")
_MALFORMED: tuple[str, ...] = (
    "",
    ".",
    "..",
    "a.",
    ".a",
    '"a',
    'a"',
    '""',
    '"".t',
    '"a"b',
    "a b",
    "a,b",
    "a . . b",
    " ",
    '"a" b',
    "a;",
)
_MALFORMED += ("a.b.c.d", "a.b.c.d.e", "x.y.z", '"a.b', "a.b.", "-", "'a'", "a\\", "\u00a0")


@dataclass(frozen=True)
class Cell:
    """The value of a row of the relation, in the column with the attribute number.

    :ivar spelling: the way in which the value is written.
    """

    row: int
    spelling: str = "{}"

    def __str__(self) -> str:
        return self.spelling.format(f"<row {self.row}>")


def _shown(argument: Argument) -> str:
    return str(argument) if isinstance(argument, Cell) else repr(argument)


Argument = str | Cell | None
Arguments = tuple[Argument, ...]


@dataclass(frozen=True)
class Call:
    r"""One call.

    :ivar function: get_pkey, insert, update, delete; or one of the last three followed by ``_many``.
    :ivar keys: (source, target) per row; one pair unless the function is set-based.
    :ivar form: the form of the keys: ``rows``; ``typed``, rows with integers for texts that are integers;
        ``values``, a query of texts; or ``select``, a query that reads the columns of the shape's relation.
    """

    function: str
    relname: str
    attnums: tuple[int, ...] = ()
    keys: tuple[tuple[Arguments, Arguments], ...] = ()
    form: str = "rows"

    def __str__(self) -> str:
        keys = [tuple(list(map(_shown, part)) for part in key) for key in self.keys]
        return f"{self.function}({self.relname!r}, {list(self.attnums)}, {keys}, {self.form})"

    @property
    def is_many(self) -> bool:
        """Whether it is set-based."""
        return self.function.endswith("_many")

    @property
    def builder(self) -> str:
        """The extension's function."""
        return self.function.removesuffix("_many")


@dataclass(frozen=True)
class Change:
    """A statement between two calls.

    :ivar of_session: whether it changes the session that calls, not the relation.
    """

    statement: str
    of_session: bool = False


@st.composite
def calls(draw: st.DrawFn, shape: Shape) -> Call:
    """Return a call that is right about two times in three."""
    relname = draw(relnames(shape))
    function = draw(st.sampled_from(("get_pkey", *BUILDERS * 4, *_MANY * 2)))
    if function == "get_pkey":
        return Call(function, relname)
    attnums = tuple(draw(_attnums(shape)))
    some = st.integers(0, 3) if function in _MANY else st.just(1)
    keys = tuple((draw(_arguments(attnums, 6)), draw(_arguments(attnums, 2))) for _ in range(draw(some)))
    forms = ["values", "select", "rows", "rows", "typed"]
    form = draw(st.sampled_from(forms if function in _MANY else forms[3:]))
    return Call(function, relname, attnums, keys, form)


_MANY = tuple(f"{function}_many" for function in BUILDERS)


@st.composite
def relnames(draw: st.DrawFn, shape: Shape) -> str:
    """Return a way to write the relation's name, or a mistake, or the name of another relation."""
    way = draw(st.integers(0, 29))
    if way < 24:
        schema = shape.schema if draw(st.integers(0, 9)) else shape.other
        if schema in shape.path and draw(st.booleans()):
            return draw(_parts([shape.name]))
        return draw(_parts([schema, shape.name]))
    if way == 24:
        database = draw(st.sampled_from([DATABASE, DATABASE, DATABASE, "postgres"]))
        extra = draw(st.sampled_from([[], [], [], ["x"]]))
        return draw(_parts([*extra, database, shape.schema, shape.name]))
    if way == 25:
        return draw(_parts(draw(st.lists(names, min_size=1, max_size=4))))
    if way == 26:
        return draw(st.sampled_from(_MALFORMED) | awkward_texts)
    return draw(st.sampled_from(_FIXED_RELATIONS))


@st.composite
def _parts(draw: st.DrawFn, parts: list[str]) -> str:
    return ".".join([draw(_part(part)) for part in parts])


@st.composite
def _part(draw: st.DrawFn, name: str) -> str:
    way = draw(st.integers(0, 31))
    if way < 26:
        written = quoted(name) if way < 16 or not name.isidentifier() or name != name.lower() else name
    else:
        ways = (
            name,
            name.upper(),
            name.lower(),
            quoted(name.swapcase()),
            quoted(name) + "x",
            quoted(name + "x" * 60),
        )
        written = ways[way - 26]
    if draw(st.integers(0, 5)):
        return written
    return draw(_BLANKS) + written + draw(_BLANKS)


@st.composite
def _attnums(draw: st.DrawFn, shape: Shape) -> Sequence[int]:
    count = len(shape.live)
    way = draw(st.integers(0, 15))
    if way < 14 and count:
        at_most = 3 if way < 12 else count
        right = draw(st.lists(st.integers(1, count), min_size=1, max_size=at_most, unique=way != 11))
        if way < 6 and shape.key and not any(shape.columns[i].dropped for i in shape.key):
            return [shape.live.index(shape.columns[i]) + 1 for i in shape.key]
        return right
    wrong = st.sampled_from(
        [0, -1, -7, count + 1, len(shape.columns), len(shape.columns) + 1, 32767, -32768, 1]
    )
    return draw(st.lists(wrong | st.integers(1, 8), max_size=4))


@st.composite
def _arguments(draw: st.DrawFn, attnums: tuple[int, ...], right: int) -> Arguments:
    count = len(attnums)
    if draw(st.integers(0, 29)) == 0:
        count = draw(st.integers(0, count + 2))
    row = draw(st.integers(0, 3))
    if draw(st.integers(0, right)):
        return tuple(Cell(row) for _ in range(count))
    spelled = st.builds(Cell, st.just(row), st.sampled_from(_SPELLINGS))
    value: st.SearchStrategy[Argument] = spelled | spelled | st.none() | ANY_VALUE | awkward_texts
    return tuple(draw(st.lists(value, min_size=count, max_size=count)))


def resolved(
    arguments: Arguments, attnums: tuple[int, ...], rows: Sequence[Sequence[Value]]
) -> tuple[Value, ...]:
    """Return *arguments* with cells replaced by their values in *rows*, the texts of the live columns."""
    return tuple(
        _of_cell(argument, attnums[i] if i < len(attnums) else 0, rows)
        if isinstance(argument, Cell)
        else argument
        for i, argument in enumerate(arguments)
    )


def _of_cell(cell: Cell, attnum: int, rows: Sequence[Sequence[Value]]) -> Value:
    row = rows[cell.row % len(rows)] if rows else ()
    if not 0 < attnum <= len(row):
        return cell.spelling.format("1")
    value = row[attnum - 1]
    return None if value is None else cell.spelling.format(value)


def changes(shape: Shape, *, in_transaction: bool) -> st.SearchStrategy[Change]:
    """Return the changes that may happen between calls."""
    relation = shape.relation
    of_relation = [
        f"INSERT INTO {relation} SELECT * FROM {relation}",
        f"DELETE FROM {relation}",
        f"DROP TABLE {relation} CASCADE",
        f"ALTER TABLE {relation} RENAME TO renamed",
        f"ALTER TABLE {relation} ADD COLUMN new_column text DEFAULT 'new'",
        f"ALTER TABLE {relation} SET SCHEMA {quoted(shape.other)}",
        f"DROP TABLE {quoted(shape.other)}.{quoted(shape.name)}",
        f"REVOKE ALL ON {relation} FROM CURRENT_USER",
        f"ALTER SCHEMA {quoted(shape.other)} RENAME TO renamed",
    ]
    of_relation += [f"ALTER TABLE {relation} DROP COLUMN {quoted(c.name)} CASCADE" for c in shape.live[:2]]
    for column in shape.live[:1]:
        name = quoted(column.name)
        of_relation += [
            f"UPDATE {relation} SET {name} = NULL",
            f"ALTER TABLE {relation} RENAME {name} TO new_name",
            f"ALTER TABLE {relation} ALTER {name} TYPE text",
            f"ALTER TABLE {relation} DROP COLUMN {name} CASCADE, ADD COLUMN {name} int DEFAULT 1",
        ]
    of_session = [
        "SET quote_all_identifiers = on",
        "SET quote_all_identifiers = off",
        "SET search_path = ''",
        f"SET search_path = {quoted(shape.schema)}",
        f"SET search_path = {quoted(shape.other)}, {quoted(shape.schema)}",
        "SET DateStyle = 'German'",
        "CREATE TEMP TABLE pg_am (a int PRIMARY KEY)",
    ]
    if in_transaction:
        of_session += ["SET CONSTRAINTS ALL DEFERRED", "SET TRANSACTION READ ONLY"]
    return st.builds(Change, st.sampled_from(of_relation)) | st.builds(
        Change, st.sampled_from(of_session), st.just(True)
    )
