# ruff: noqa: S608 - quoted names that the tests themselves made
"""Random tables, keys and edits on both sides: PostgreSQL itself checks that a sync makes them equal.

The same examples in every run. For others, and more of them:
``SYNC_EXAMPLES=1000 python -m pytest tests/integration/sync/test_random.py``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_dblink.embedded.server import Server
from tests.databases import Database, new_database
from tests.differential.kinds import KINDS, Kind, Value
from tests.differential.tables import literal, names, quoted
from tests.integration.sync.tables import FORMS, settled, system_server

_EXAMPLES = int(os.environ.get("SYNC_EXAMPLES", "0"))
_IN_CI = 12  # per pair of servers

_KIT = """
CREATE SCHEMA kit;
GRANT ALL ON SCHEMA kit TO PUBLIC;
CREATE EXTENSION citext SCHEMA kit;
CREATE EXTENSION hstore SCHEMA kit
"""
_TYPES = """
CREATE TYPE kit.mood AS ENUM ('happy', 'so ''so''', 'back\\slash');
CREATE DOMAIN kit.feeling AS kit.mood;
CREATE DOMAIN kit.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN kit.label AS text NOT NULL;
CREATE DOMAIN kit.numbers AS int[];
CREATE TYPE kit.pair AS (a int, b text);
CREATE DOMAIN kit.good_pair AS kit.pair CHECK ((VALUE).a > 0);
CREATE TYPE kit.text_range AS RANGE (subtype = text)
"""
_ICU = "CREATE COLLATION kit.caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"

# What shapes values as text where nobody pins it: each database has its own idea.
_SETTINGS = (
    {
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "iso_8601",
        "extra_float_digits": "-5",
        "bytea_output": "escape",
        "xmloption": "document",
        "TimeZone": "Asia/Kolkata",
    },
    {
        "DateStyle": "German",
        "IntervalStyle": "postgres_verbose",
        "extra_float_digits": "0",
        "quote_all_identifiers": "on",
        "TimeZone": "America/New_York",
    },
)
# A session that holds ACCESS EXCLUSIVE on another table all the while.
_HELD = "CREATE TABLE held (id int PRIMARY KEY, v text UNIQUE)"
_PART = "the part, 1 or 2"
# Objects have other names on each side, xml is in some builds, and PostgreSQL can't read an empty vector that
# it has sent in binary.
_OTHERS = ("reg", "xml", "aclitem", "int2vector", "oidvector")
_VALUES = tuple(kind for kind in KINDS if not kind.type.startswith(_OTHERS))
_COLLATED = ("text", "varchar", "varchar(5)", "char(6)", "text[]", "name")


def _integers(low: int, high: int) -> Callable[[random.Random, int], str]:
    return lambda rng, i: str(rng.randint(low, high))


# Types of keys, and how their values come.
KEYS: dict[str, tuple[str, Callable[[random.Random, int], str]]] = {
    "dense int": ("int", lambda rng, i: str(i)),
    "negative int": ("int", lambda rng, i: str(i - 40)),
    "smallint": ("smallint", _integers(-32768, 32767)),
    "sparse bigint": ("bigint", _integers(-(2**63), 2**63 - 1)),
    "skewed bigint": ("bigint", lambda rng, i: str(i if i % 9 else rng.choice((10**18, -(2**63))) + i)),
    "text": ("text", lambda rng, i: rng.choice(["", "a", "A", "é", "Z", "_", "\\", "it's "]) + str(i // 3)),
    "citext": ("kit.citext", lambda rng, i: rng.choice("aAbB") + str(i // 2)),
    "char": ("char(6)", lambda rng, i: f"{rng.choice('aB')}{i}"),
    "uuid": ("uuid", lambda rng, i: f"{rng.getrandbits(128):032x}"),
    "timestamptz": ("timestamptz", lambda rng, i: f"2026-01-01 00:00:00.{rng.randint(0, 999999):06}+00"),
    "numeric": ("numeric", lambda rng, i: f"{i}.{'0' * rng.randint(1, 3)}"),
    "numeric(10,2)": ("numeric(10,2)", lambda rng, i: f"{rng.randint(-100, 100)}.5"),
    "mood": ("kit.mood", lambda rng, i: rng.choice(["happy", "so 'so'", "back\\slash"])),
    "feeling": ("kit.feeling", lambda rng, i: rng.choice(["happy", "so 'so'", "back\\slash"])),
    "pair": ("kit.pair", lambda rng, i: f'({i},"{rng.choice(["x", "y"])}")'),
    "bytea": ("bytea", lambda rng, i: f"\\x{rng.getrandbits(16):04x}"),
    "date": ("date", lambda rng, i: f"2026-0{rng.randint(1, 9)}-1{rng.randint(0, 9)}"),
    "float8": ("float8", lambda rng, i: str(rng.choice([i / 7, -i / 3, 1e300, float("inf")]))),
    "interval": ("interval", lambda rng, i: f"{i} days"),
    "inet": ("inet", lambda rng, i: f"10.0.{i % 250}.{rng.randint(0, 255)}"),
    "bool": ("bool", lambda rng, i: rng.choice("tf")),
    "domain": ("kit.positive", lambda rng, i: str(i + 1)),
}


@dataclass(frozen=True)
class Column:
    """One column; *key* is one of :data:`KEYS`, or *kind* its type.

    :ivar finer: a key to whose unique index texts are other ones which are the same to the column.
    """

    name: str
    kind: Kind
    key: str | None
    collations: tuple[str, str]
    finer: bool = False

    def definition(self, side: int, known: tuple[str, ...]) -> str:
        """Return its definition in CREATE TABLE, with a collation that the *side* knows."""
        kind = KEYS[self.key][0] if self.key else self.kind.type
        wanted = self.collations[side]
        if self.key and wanted == "kit.caseless" and not self.finer:
            wanted = '"C"'
        return f"{quoted(self.name)} {kind}" + f" COLLATE {wanted}" * (kind in _COLLATED and wanted in known)

    def same(self, left: str, right: str) -> str:
        """Return the condition that two aliases have the same key."""
        kind = KEYS[self.key or ""][0]
        end = {"kit.feeling": "::kit.mood", "text": ' COLLATE "C"', "char(6)": ' COLLATE "C"'}.get(kind, "")
        return " = ".join(f"{alias}.{quoted(self.name)}{end}" for alias in (left, right))

    def value(self, rng: random.Random, number: int) -> Value:
        """Return a value for row *number*."""
        if self.key:
            return KEYS[self.key][1](rng, number)
        if self.kind.type != "kit.label" and rng.random() < 0.2:
            return None
        if self.kind.free and rng.random() < 0.3:
            return "".join(rng.choice("aA bé\\'\"\t\n%{}") for _ in range(rng.randint(0, 6)))
        return rng.choice(self.kind.values)


@dataclass(frozen=True)
class Example:
    """A table, by what its rows and the edits are made, and how it is synced.

    :ivar heirs: whether the destination has an inheritance child with the same keys, outside of the part.
    """

    table: str
    columns: tuple[Column, ...]
    shuffled: tuple[int, ...]
    rows: int
    edits: float
    seed: int
    analyzed: bool
    heirs: bool
    arguments: dict[str, Any]


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """Draw an example."""
    taken = draw(st.lists(names, min_size=2, max_size=8, unique=True))
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=min(3, len(taken))))
    finer = draw(st.booleans())
    heirs = draw(st.booleans())
    collation = st.sampled_from(('"C"', '"POSIX"', '"und-x-icu"', '"de-x-icu"', "kit.caseless"))
    columns = tuple(
        Column(
            name,
            draw(st.sampled_from(_VALUES)),
            keys[i] if i < len(keys) else None,
            (draw(collation), draw(collation)),
            finer,
        )
        for i, name in enumerate(taken)
    )
    # A literal has no type of a composite's: dblink's statements can't find such a key; nor one of two rows.
    names_it = not ({"pair", "feeling"} & {*keys} or finer or heirs)
    arguments = {
        "method": draw(st.sampled_from(("auto", "difference", "reload"))),
        "apply": draw(st.sampled_from(("set", "set", "statements"))) if names_it else "set",
        "lock": draw(st.sampled_from(("apply", "compare"))),
        "key": taken[: len(keys)],
        "where": f"{quoted(_PART)} = 1" if heirs or draw(st.booleans()) else None,
        "session_settings": {"lock_timeout": "60s"},
    }
    return Example(
        table=draw(names.filter(lambda name: not name.startswith("pg_"))),
        columns=columns,
        shuffled=tuple(draw(st.permutations(range(len(columns))))),
        rows=draw(st.sampled_from((0, 1, 30, 150))),
        edits=draw(st.sampled_from((0.0, 0.03, 0.3, 1.0))),
        seed=draw(st.integers(0, 2**32)),
        analyzed=draw(st.booleans()),
        heirs=heirs,
        arguments=arguments,
    )


class Sides:
    """Two databases, and the tables that examples make in them."""

    def __init__(self, source: Database, warehouse: Database) -> None:
        self.source, self.warehouse = source, warehouse
        warehouse.execute("CREATE TYPE moves_the_oids AS ENUM ()")
        self._collations = []
        versions = []
        for database, settings_of_it in zip((source, warehouse), _SETTINGS, strict=True):
            for name, value in settings_of_it.items():
                database.admin(f"ALTER DATABASE {database.name} SET {name} = '{value}'")
            database.admin(_KIT)
            database.execute(f"{_TYPES}; {_HELD}")
            has_icu = database.rows("SELECT 1 FROM pg_collation WHERE collname = 'und-x-icu'")
            if has_icu:
                database.execute(_ICU)
            icu = ('"und-x-icu"', '"de-x-icu"', "kit.caseless") if has_icu else ()
            self._collations.append(('"C"', '"POSIX"', *icu))
            versions += database.rows("SELECT current_setting('server_version_num')::int")
        # Intervals without end came with 17.
        self.knows_infinity = min(version for (version,) in versions) >= 170000

    def check(self, example: Example) -> None:
        """Make the tables, sync, and compare.

        :raises AssertionError: if they aren't equal then, or not everything else is as it was.
        """
        table = quoted(example.table)
        try:
            self._make(example, table)
            expected, untouched = self._expected(example, table)
            arguments = {**example.arguments, "max_delete_fraction": None, "allow_empty_source": True}
            before = self._heirs()
            result = settled(self.source, self.warehouse, table, alone=example.heirs, **arguments)
            assert self._heirs() == before
            assert (result["inserted"], result["updated"], result["deleted"]) == expected
            assert (result["missing"], result["changed"], result["extra"]) == expected
            left = self.warehouse.rows(f"SELECT ctid::text, xmin::text FROM ONLY {table}")
            assert set(untouched) <= set(left)
        finally:
            for database in (self.source, self.warehouse):
                database.execute(f"DROP TABLE IF EXISTS heir; DROP TABLE IF EXISTS {table}")

    def _heirs(self) -> list[Any]:
        """Return the rows of the destination's inheritance child, with their places."""
        if not self.warehouse.rows("SELECT to_regclass('heir')")[0][0]:
            return []
        return self.warehouse.rows("SELECT ctid::text, xmin::text, row_of::text FROM heir AS row_of")

    def _make(self, example: Example, table: str) -> None:
        key = ", ".join(
            quoted(c.name) + ' COLLATE "C"' * (c.finer and KEYS[c.key][0] in _COLLATED)
            for c in example.columns
            if c.key
        )
        for side, database in enumerate((self.source, self.warehouse)):
            order = example.shuffled if side else range(len(example.columns))
            columns = [example.columns[i].definition(side, self._collations[side]) for i in order]
            columns.append(f"{quoted(_PART)} int DEFAULT 1")
            database.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
            database.execute(f"CREATE UNIQUE INDEX ON {table} ({key})")
        rng = random.Random(example.seed)  # noqa: S311
        rows = [self._row(example, rng, number) for number in range(example.rows)]
        for database in (self.source, self.warehouse):
            self._write(database, table, example, [r for r in rows if rng.random() >= example.edits / 3])
            edited = [self._row(example, rng, i) for i in range(example.rows) if rng.random() < example.edits]
            self._write(database, table, example, edited, replace=True)
            if example.analyzed:
                database.execute(f"ANALYZE {table}")
        if example.heirs:
            names = ", ".join(quoted(column.name) for column in example.columns)
            self.warehouse.execute(
                f"CREATE TABLE heir () INHERITS ({table});"
                f"INSERT INTO heir ({names}, {quoted(_PART)}) SELECT {names}, 2 FROM ONLY {table}"
            )

    def _row(self, example: Example, rng: random.Random, number: int) -> list[Value]:
        row = [column.value(rng, number) for column in example.columns]
        return [
            None
            if value == "infinity"
            and not self.knows_infinity
            and column.kind.type == "interval"
            and not column.key
            else value
            for column, value in zip(example.columns, row, strict=True)
        ]

    @staticmethod
    def _write(
        database: Database, table: str, example: Example, rows: list[list[Value]], *, replace: bool = False
    ) -> None:
        key = ", ".join(quoted(column.name) for column in example.columns if column.key)
        names = ", ".join(quoted(column.name) for column in example.columns)
        others = [quoted(column.name) for column in example.columns if not column.key]
        sets = ", ".join(f"{name} = EXCLUDED.{name}" for name in others)
        action = f"UPDATE SET {sets}" if replace and others else "NOTHING"
        statements = []
        for row in rows:
            values = ", ".join("NULL" if value is None else literal(value) for value in row)
            statements.append(
                f"INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT ({key}) DO {action}"
            )
        if statements:
            database.execute("; ".join(statements))

    def _expected(self, example: Example, table: str) -> tuple[tuple[int, int, int], list[Any]]:
        """Return how many rows are missing, changed and extra, and the versions of all others."""
        names = ", ".join(quoted(column.name) for column in example.columns)
        same = " AND ".join(c.same("g", "t") for c in example.columns if c.key)
        texts = [
            ", ".join(f'{alias}.{quoted(c.name)}::text COLLATE "C"' for c in example.columns)
            for alias in "gt"
        ]
        first = quoted(example.columns[0].name)
        equal = f"ROW({texts[0]}) IS NOT DISTINCT FROM ROW({texts[1]})"
        with (
            psycopg.connect(self.source.conninfo, options=FORMS) as there,
            psycopg.connect(self.warehouse.conninfo, options=FORMS) as here,
        ):
            here.execute(f"CREATE TEMP TABLE given (LIKE {table})".encode())
            with (
                there.cursor().copy(f"COPY {table} ({names}) TO STDOUT".encode()) as source,
                here.cursor().copy(f"COPY given ({names}) FROM STDIN".encode()) as copied,
            ):
                for block in source:
                    copied.write(block)
            counts = here.execute(
                f"""SELECT count(*) FILTER (WHERE t.{first} IS NULL),
                           count(*) FILTER (WHERE g.{first} IS NOT NULL AND t.{first} IS NOT NULL
                                              AND NOT {equal}),
                           count(*) FILTER (WHERE g.{first} IS NULL)
                      FROM given AS g FULL JOIN ONLY {table} AS t ON {same}""".encode()
            ).fetchall()
            untouched = here.execute(
                f"""SELECT t.ctid::text, t.xmin::text
                      FROM given AS g JOIN ONLY {table} AS t ON {same} AND {equal}""".encode()
            ).fetchall()
            here.rollback()
        return counts[0], untouched


@pytest.fixture(scope="module")
def system() -> Iterator[Server]:
    """Run a server of the system's PostgreSQL."""
    with system_server("system") as server:
        yield server


@pytest.mark.parametrize("where", ["same", "to system", "from system", "system"])
def test_random_tables_are_equal_afterwards(
    pair: tuple[Server, Server], system: Server, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    there = system if where in ("from system", "system") else pair[0]
    here = system if where in ("to system", "system") else pair[1]
    with (
        new_database(there, "source") as source,
        new_database(here, "warehouse") as warehouse,
        ExitStack() as stack,
    ):
        monkeypatch.setenv("AIRFLOW_CONN_SOURCE", source.uri)
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", warehouse.uri)
        sides = Sides(source, warehouse)
        holders = [stack.enter_context(psycopg.connect(each.conninfo)) for each in (source, warehouse)]
        for holder in holders:
            holder.execute("TRUNCATE held")

        @settings(
            max_examples=_EXAMPLES or _IN_CI,
            derandomize=not _EXAMPLES,
            database=None,
            deadline=None,
            phases=(Phase.generate,) if _EXAMPLES else (Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(example=examples())
        def check(example: Example) -> None:
            sides.check(example)

        check()
