"""One example: a shape is made, both sides make the same calls on it, and the outcomes are compared."""

# ruff: noqa: S608 - quoted names that the tests themselves made

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from psycopg import pq

from airflow_dblink.core.link.registry import Links
from airflow_dblink.embedded.server import Server
from tests.databases import Database, new_database
from tests.differential.calls import DATABASE, RAISING, Call, Change, calls, changes, resolved
from tests.differential.kinds import Value
from tests.differential.kit import make_kit
from tests.differential.sides import (
    Extension,
    Key,
    Ours,
    Outcome,
    as_integers,
    raw_rows,
    transaction,
    unharmed,
)
from tests.differential.tables import SETTINGS, Shape, literal, quoted, shapes

Rows = Sequence[Sequence[Value]]
# A row that a constraint, a type's input or a build without XML refuses is left out.
_REFUSED = (psycopg.IntegrityError, psycopg.DataError, psycopg.NotSupportedError)
_PHASES = (Phase.generate, Phase.shrink)
_FIRST, _AGAIN = 12, 8  # calls of an example


@dataclass(frozen=True)
class Example:
    """A shape, and the calls and changes on it."""

    shape: Shape
    steps: tuple[Call | Change, ...]
    in_transaction: bool

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show hypothesis the calls and changes as a kind of script."""
        shape = self.shape
        script = [*shape.creation(), *shape.insertions(), *shape.completion()]
        script.append(f"SET search_path = {shape.search_path}")
        script += [f"SET {name} = {value}" for name, value in shape.settings if value != SETTINGS[name][0]]
        script += ["BEGIN"] * self.in_transaction
        script += [step.statement if isinstance(step, Change) else str(step) for step in self.steps]
        printer.text("\n  " + ";\n  ".join(script))


@dataclass(frozen=True)
class Asked:
    """A call with all its arguments, and the extension's outcome.

    :ivar tolerated: SQLSTATEs that are also right for a set of keys. In a user's transaction the first error
        aborts it, so nobody can find out which of the failing keys comes first.
    """

    call: Call
    relname: str
    keys: tuple[Key, ...]
    query: str | None
    outcome: Outcome
    tolerated: tuple[str, ...] = ()


class Comparison:
    """Both sides, in one database."""

    def __init__(self, database: Database, session: psycopg.Connection[Any], links: Links) -> None:
        links.connect("ours", database.target)
        self.extension = Extension(session)
        self.ours = Ours(links.get("ours"))
        self.database = database
        self.version: int = session.info.server_version
        self._outcomes: Counter[str] = Counter()

    def run(self, *, examples: int, in_transaction: bool, random_seed: int | None = None) -> Counter[str]:
        """Compare both sides on random examples, *examples* in number, always the same ones without a seed.

        :returns: the number of cases with each outcome, by SQLSTATE or ``value``.
        """
        self._outcomes = Counter()

        @settings(
            max_examples=examples,
            derandomize=random_seed is None,
            database=None,
            deadline=None,
            phases=_PHASES,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(example=_examples(version=self.version, in_transaction=in_transaction))
        def compare(example: Example) -> None:
            self.compare(example)

        (compare if random_seed is None else seed(random_seed)(compare))()
        return self._outcomes

    def compare(self, example: Example) -> None:
        """Make the shape, call, and drop it.

        :raises AssertionError: for the first call whose outcomes differ.
        """
        with self._made(example.shape):
            rows = self._rows(example.shape)
            if example.in_transaction:
                self._in_transactions(example, rows)
            else:
                self._in_autocommit(example, rows)
            assert self._settings(self.ours) == self._settings(self.extension)

    def _in_autocommit(self, example: Example, rows: Rows) -> None:
        """Do each step on both sides before the next one."""
        for step in example.steps:
            if isinstance(step, Call):
                self._check(self._asked(example, step, rows))
            elif not step.of_session:
                _changed(self.extension, step)
            else:
                assert _changed(self.extension, step) == _changed(self.ours, step)

    def _in_transactions(self, example: Example, rows: Rows) -> None:
        """Do all steps on one side, undo them, and do them on the other side: each sees its own changes."""
        seen: list[Any] = []
        with transaction(self.extension.connection):
            for step in example.steps:
                seen.append(
                    self._asked(example, step, rows)
                    if isinstance(step, Call)
                    else _changed(self.extension, step)
                )
        with transaction(self.ours.connection):
            for step, wanted in zip(example.steps, seen, strict=True):
                if isinstance(step, Call):
                    self._check(wanted)
                else:
                    assert _changed(self.ours, step) == wanted

    @contextmanager
    def _made(self, shape: Shape) -> Iterator[None]:
        connection = self.extension.connection
        with connection.transaction():
            for statement in shape.creation():
                connection.execute(statement.encode())
            for statement in shape.insertions():
                try:
                    with connection.transaction():
                        connection.execute(statement.encode())
                except _REFUSED:
                    pass
            for statement in shape.completion():
                connection.execute(statement.encode())
        wanted = [("search_path", shape.search_path), *shape.settings]
        try:
            for side in (self.extension, self.ours):
                for name, value in wanted:
                    side.connection.execute("SELECT set_config(%s, %s, false)", (name, value))
            yield
        finally:
            for side in (self.extension, self.ours):
                side.connection.rollback()  # one left open by mistake would keep the shape from being dropped
                side.connection.execute("RESET ALL")
                side.connection.execute("DISCARD TEMP")
            connection.execute(shape.removal().encode())

    def _rows(self, shape: Shape) -> Rows:
        return raw_rows(self.extension.connection, f"SELECT * FROM {shape.relation}")

    @staticmethod
    def _settings(side: Extension | Ours) -> list[Any]:
        query = "SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY(%s) ORDER BY name"
        return side.connection.execute(query, ([*SETTINGS, "search_path", "client_encoding"],)).fetchall()

    def _asked(self, example: Example, call: Call, rows: Rows) -> Asked:
        """Ask the extension, row by row."""
        relname = call.relname.replace(DATABASE, self.database.name)
        if call.function == "get_pkey":
            with unharmed(self.extension.connection):
                return Asked(call, relname, (), None, self.extension.get_pkey(relname))
        keys = tuple(
            (resolved(src, call.attnums, rows), resolved(tgt, call.attnums, rows)) for src, tgt in call.keys
        )
        query = _query(call, keys, example.shape)
        if query is not None:
            with unharmed(self.extension.connection):
                keys = self.extension.keys(query)
        outcomes: list[Outcome] = []
        for key in keys:
            with unharmed(self.extension.connection):
                outcomes.append(self.extension.build(call.builder, relname, call.attnums, key))
        # Wrong lengths among many keys are found before anything is read; otherwise the first failure counts.
        failures = [outcome for outcome in outcomes if outcome[0] != "value"]
        failures.sort(key=lambda outcome: outcome[0] != "2202E")
        values = ("value", [row for outcome in outcomes for row in outcome[1]])
        tolerated = tuple(f[0] for f in failures) if example.in_transaction else ()
        return Asked(call, relname, keys, query, failures[0] if failures else values, tolerated)

    def _check(self, asked: Asked) -> None:
        call, relname, expected = asked.call, asked.relname, asked.outcome
        keys: Any = as_integers(asked.keys) if call.form == "typed" else asked.keys
        with unharmed(self.ours.connection):
            if call.function == "get_pkey":
                outcome = self.ours.get_pkey(relname)
            elif call.is_many:
                outcome = self.ours.build_many(call.function, relname, call.attnums, keys, asked.query)
            else:
                outcome = self.ours.build(call.function, relname, call.attnums, keys[0])
        if call.is_many:
            if not asked.keys and outcome[0] != "value":
                return  # refused although there is nothing to do
            if expected[0] != "value":  # the message may be about all rows
                outcome, expected = outcome[:1], expected[:1]
            if outcome[0] in asked.tolerated or (relname in RAISING and outcome[0] != "value"):
                outcome = expected
        if outcome != expected:
            raise AssertionError(
                f"{call.function}({relname!r}, {list(call.attnums)}, {asked.query or keys})\n"
                f"  dblink: {expected}\n"
                f"  ours:   {outcome}"
            )
        self._outcomes[expected[0]] += 1


def _changed(side: Extension | Ours, change: Change) -> str | None:
    """Run the user's statement; return the SQLSTATE if it fails."""
    statement = change.statement
    in_transaction = side.connection.info.transaction_status == pq.TransactionStatus.INTRANS
    if in_transaction:
        side.connection.execute("SAVEPOINT change")
    try:
        side.connection.execute(statement.encode())
    except psycopg.Error as error:
        if in_transaction:
            side.connection.execute("ROLLBACK TO change")
        return error.diag.sqlstate
    return None


def _query(call: Call, keys: tuple[Key, ...], shape: Shape) -> str | None:
    """Return the query that gives the keys, if the call is with one."""
    live = shape.live
    if call.form == "select" and call.attnums and all(0 < attnum <= len(live) for attnum in call.attnums):
        columns = ", ".join(quoted(live[attnum - 1].name) for attnum in call.attnums)
        return f"SELECT {columns} FROM {shape.relation}"
    if call.form == "values" and keys and {len(part) for key in keys for part in key} == {len(call.attnums)}:
        rows = [", ".join("NULL" if v is None else literal(v) for v in key[0]) for key in keys]
        return f"VALUES ({'), ('.join(rows)})"
    return None


@contextmanager
def comparison(server: Server) -> Iterator[Comparison]:
    """Give both sides, in a new database."""
    with (
        new_database(server, "differential") as database,
        psycopg.connect(database.conninfo, autocommit=True, prepare_threshold=None) as session,
        Links() as links,
    ):
        make_kit(database, session.info.server_version)
        yield Comparison(database, session, links)


@st.composite
def _examples(draw: st.DrawFn, *, version: int, in_transaction: bool) -> Example:
    shape = draw(shapes(version=version))
    happens = st.lists(changes(shape, in_transaction=in_transaction), max_size=3)
    first = draw(_lists(calls(shape), _FIRST))
    # Mostly the same calls again: a link's cached shape of a relation must not outlive the relation.
    again = draw(_lists(st.sampled_from(first) | calls(shape), _AGAIN))
    before = draw(happens) if in_transaction else []
    return Example(shape, (*before, *first, *draw(happens), *again), in_transaction)


def _lists(elements: st.SearchStrategy[Call], size: int) -> st.SearchStrategy[list[Call]]:
    """Return lists that nearly always have *size* elements, but shrink to few."""
    sizes = st.sampled_from((1, 2, 4, *(size,) * 30))
    return sizes.flatmap(lambda count: st.lists(elements, min_size=count, max_size=count))
