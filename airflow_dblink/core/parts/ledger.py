"""The ledger: a table beside the one that is loaded, which says what the parts are and which are done.

A part's row is marked as done in the transaction that has copied the part's rows. So the two can't disagree,
whatever is killed and when: neither a task's state nor a server's crash comes in between. A try claims its
part first. From then on an earlier try, wherever it hangs, can't commit (see :meth:`Ledger.commit`).

Row 0 is the head: the facts of the load. What is read from the ledger is checked as if anybody had written
it; there is no SQL in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Self

from psycopg import sql

from airflow_dblink.core.errors import NoLoadError, RemoteError, TransientError, UsageError, VerificationError
from airflow_dblink.core.parts.key import ANEW, LoadKey
from airflow_dblink.core.parts.ranges import Part, piece_of
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sql.named import statements
from airflow_dblink.core.tables.pieces import TableName

_SQL = statements("parts_ledger.sql")
_ACTION = "asking the ledger of the load"
_SNAPSHOT = re.compile(r"[0-9A-F]+-[0-9A-F]+-[0-9]+")
_SUPERSEDED = "55000"  # of the statement that marks a part as done
_ALREADY = "42P07"
_MOST_NAMED = 10
_LARGEST = 2**32  # of oids; and of seconds since 1970, which is in the year 2106


@dataclass(frozen=True)
class Head:
    """The facts of a load.

    :ivar snapshot: of all of its parts.
    :ivar taken_at: when it was taken, in seconds since 1970.
    :ivar parts: how many there are.
    :ivar shadow: oid of the table that is loaded.
    :ivar destination: oid of the table whose place it will take.
    :ivar planned_by: number of the try that has planned it.
    :ivar run: what tells that try's run from another one of the same name.
    :ivar definition: of the destination when it was planned, hashed; see :func:`.shadow.definition_of`.
    :ivar route: how rows travel, hashed; see :func:`.load.route_of`.
    :ivar columns: names of the destination's columns that rows are copied into.
    :ivar keeper: key of the session that keeps the snapshot, which all tables of a set share.
    :ivar units: of each part, which task copies it: with a set of tables a task may copy parts of several.
    :ivar rows: how many the source has; ``None`` if its parts are ranges of pages.
    :ivar files: of each table that is read by ranges of values, by its oid.
    """

    snapshot: str
    taken_at: int
    parts: int
    shadow: int
    destination: int
    planned_by: int
    run: str
    definition: str
    route: str
    columns: tuple[str, ...]
    units: tuple[int, ...]
    keeper: LoadKey
    rows: int | None
    files: Mapping[int, int]

    @property
    def taken(self) -> str:
        """When the snapshot was taken, as ISO text in UTC."""
        return datetime.fromtimestamp(self.taken_at, UTC).isoformat()

    @classmethod
    def of(cls, stored: Any) -> Self:
        """Return the facts that are stored as JSON.

        :raises UsageError: if they are none.
        """
        facts = stored if isinstance(stored, Mapping) else {}
        names = ("taken_at", "parts", "shadow", "destination", "planned_by")
        numbers: list[Any] = [facts.get(name) for name in names]
        snapshot = facts.get("snapshot")
        if not isinstance(snapshot, str) or not _SNAPSHOT.fullmatch(snapshot):
            raise UsageError("the ledger of the load doesn't tell its snapshot")
        if not all(type(number) is int and 0 <= number < _LARGEST for number in numbers):
            raise UsageError("the ledger of the load doesn't tell its facts")
        hashes: list[Any] = [facts.get(name) for name in ("definition", "route")]
        columns = facts.get("columns")
        if not all(isinstance(each, str) for each in hashes) or not isinstance(columns, list):
            raise UsageError("the ledger of the load doesn't tell how it was planned")
        units = facts.get("units")
        if not isinstance(units, list) or not all(type(unit) is int for unit in units):
            raise UsageError("the ledger of the load doesn't tell which task copies which part")
        rows, files = facts.get("rows"), facts.get("files", [])
        if type(rows) not in (int, type(None)) or not _are_pairs(files):
            raise UsageError("the ledger of the load doesn't tell what was read when it was planned")
        values: list[Any] = [snapshot, *numbers, str(facts.get("run", "")), *hashes]
        values += [tuple(map(str, columns)), tuple(units), LoadKey(str(facts.get("keeper")))]
        values += [rows, dict(files)]
        return cls(*values)


def _are_pairs(files: Any) -> bool:
    return isinstance(files, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)
        for pair in files
    )


@dataclass(frozen=True)
class Done:
    """What a part, or all of them, have brought.

    :ivar tries: how many tries it took.
    """

    rows: int
    bytes: int
    seconds: float
    parts: int = 1
    tries: int = 1

    @classmethod
    def sum(cls, done: Iterable[Done]) -> Self:
        """Return what all of them have brought together."""
        done = list(done)
        names = [field.name for field in fields(cls)]
        return cls(**{name: sum(getattr(each, name) for each in done) for name in names})


@dataclass(frozen=True)
class Claimed:
    """A part that is to be copied.

    :ivar tries: how many have claimed it, this one among them.
    """

    part: Part
    tries: int


@dataclass(frozen=True)
class Ledger:
    """The ledger of one load.

    :ivar schema_name: the destination's.
    """

    key: LoadKey
    schema_name: str

    @property
    def name(self) -> sql.Identifier:
        """The ledger's qualified name."""
        return sql.Identifier(self.schema_name, self.key.ledger)

    @property
    def shadow(self) -> sql.Identifier:
        """The qualified name of the table that is loaded."""
        return sql.Identifier(self.schema_name, self.key.shadow)

    @property
    def shadow_name(self) -> TableName:
        """The same, as :mod:`airflow_dblink.core.tables.pieces` takes it."""
        return TableName(self.schema_name, self.key.shadow)

    # -- making and removing it

    def found(self, destination: Side) -> dict[str, int]:
        """Return the oids of the load's tables that are there, by name.

        :raises UsageError: 42501 if one of them belongs to another role.
        """
        params = {"schema_name": self.schema_name, "names": [self.key.shadow, self.key.ledger]}
        rows = destination.ask(_SQL["tables"], params, _ACTION)
        for row in rows:
            if not row["is_ours"]:
                raise UsageError(
                    f"table {self.schema_name}.{row['name']} belongs to role {row['owner']!r}, and is no load"
                    " of this role's",
                    destination.conn_id,
                    "42501",
                    hint="use one role for all tasks of a load; drop the table if nobody needs it",
                )
        return {row["name"]: row["oid"] for row in rows}

    def create(self, destination: Side, head: Mapping[str, Any], parts: Sequence[Part]) -> None:
        """Create the ledger in the open transaction, with a row for each part.

        :param head: the facts but for the number of parts.
        :raises TransientError: 42P07 if another try has made it meanwhile.
        """
        create = sql.SQL(
            "CREATE TABLE {} (part pg_catalog.int4 PRIMARY KEY, facts pg_catalog.jsonb NOT NULL,"
            " try pg_catalog.int4 NOT NULL DEFAULT 0, tries pg_catalog.int4 NOT NULL DEFAULT 0,"
            " rows pg_catalog.int8, bytes pg_catalog.int8, seconds pg_catalog.float8,"
            " done pg_catalog.timestamptz)"
        ).format(self.name)
        try:
            destination.run(create, "creating the ledger of the load")
        except RemoteError as error:
            if error.sqlstate != _ALREADY:
                raise
            raise TransientError(
                "another try has planned this load meanwhile", destination.conn_id, _ALREADY
            ) from None
        facts: list[Any] = [{**head, "parts": len(parts)}]
        facts += [[piece.stored for piece in part] for part in parts]
        rows = sql.SQL(", ").join(
            sql.SQL("({}, {}::pg_catalog.jsonb)").format(number, json.dumps(each))
            for number, each in enumerate(facts)
        )
        insert = sql.SQL("INSERT INTO {} (part, facts) VALUES {}").format(self.name, rows)
        destination.run(insert, "writing the ledger of the load")

    def drop(self, destination: Side, try_number: int, run: str) -> None:
        """Drop the load's tables, in the open transaction; sessions that hold one of them are ended.

        A part that is still being copied holds its lock for as long as its worker lives, or hangs.

        :param try_number: who plans the load anew.
        :param run: its run.
        :raises UsageError: if a later try has planned it.
        """
        found = self.found(destination)
        if self.key.ledger in found:
            end_holders(destination, found[self.key.ledger], readers=True)
            lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(self.name)
            destination.run(lock, "locking the ledger of the load")
            self.demand_not_superseded(destination, try_number, run)
        for name, oid in found.items():
            end_holders(destination, oid, readers=True)
            drop = sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(self.schema_name, name))
            destination.run(drop, "removing an earlier load")

    # -- reading it

    def demand_not_superseded(self, destination: Side, try_number: int, run: str) -> None:
        """Raise if a later try of this run has planned the load.

        :raises UsageError: says which.
        """
        with suppress(NoLoadError):
            head = self.head(destination)
            if head.run == run and head.planned_by > try_number:
                raise UsageError(
                    f"try {head.planned_by} has planned load {self.key.text} meanwhile", destination.conn_id
                )

    def head(self, destination: Side) -> Head:
        """Return the facts of the load.

        :raises NoLoadError: if its tables are gone.
        """
        found = self.found(destination)
        if len(found) < len((self.key.shadow, self.key.ledger)):
            raise self._gone(destination)
        query = sql.SQL("SELECT facts FROM {} WHERE part OPERATOR(pg_catalog.=) 0").format(self.name)
        rows = destination.fetch(query, _ACTION)
        head = Head.of(rows[0]["facts"] if rows else None)
        if head.shadow != found[self.key.shadow]:
            raise self._gone(destination)
        return head

    def done(self, destination: Side) -> tuple[Done, list[int]]:
        """Return what the parts that are done have brought, and the numbers of those that are not."""
        query = sql.SQL(
            "SELECT part, tries, rows, bytes, seconds, done IS NOT NULL AS is_done FROM {}"
            " WHERE part OPERATOR(pg_catalog.>) 0 ORDER BY part"
        ).format(self.name)
        rows = destination.fetch(query, _ACTION)
        done = [row for row in rows if row["is_done"]]
        names = ("rows", "bytes", "seconds", "tries")
        total = Done.sum(Done(**{name: row[name] for name in names}) for row in done)
        return total, [row["part"] for row in rows if not row["is_done"]]

    def demand_done(self, destination: Side, head: Head, table: str) -> Done:
        """Return what all parts of the load with this *head* have brought.

        :param table: the source, for errors.
        :raises VerificationError: names the parts that are not copied.
        """
        done, left = self.done(destination)
        if left or done.parts != head.parts:
            units = list(dict.fromkeys(head.units[part - 1] for part in left if part <= len(head.units)))
            named = [*map(str, units[:_MOST_NAMED]), *(["..."] if len(units) > _MOST_NAMED else [])]
            missing = head.parts - done.parts
            raise VerificationError(
                f"{table}: of {head.parts} parts {missing} are not copied: {', '.join(named)}",
                destination.conn_id,
                hint="clear the tasks that copy them; the map index of the first one is 0",
            )
        return done

    # -- a part

    def claim(self, destination: Side, part: int, try_number: int) -> Claimed | Done:
        """Claim a part for this try; from now on no earlier try can commit it.

        :returns: what is to be copied; or what an earlier try has brought.
        :raises UsageError: if a later try has claimed it, or there is no such part.
        """
        claim = sql.SQL(
            "UPDATE {} SET try = {try_number}, tries = tries OPERATOR(pg_catalog.+) 1"
            " WHERE part OPERATOR(pg_catalog.=) {part} AND done IS NULL"
            " AND try OPERATOR(pg_catalog.<=) {try_number} RETURNING facts, tries"
        ).format(self.name, try_number=try_number, part=part)
        if claimed := destination.fetch(claim, "claiming the part"):
            facts = claimed[0]["facts"]
            if not isinstance(facts, list) or not facts:
                raise UsageError("the ledger of the load doesn't say what the part is", destination.conn_id)
            return Claimed(tuple(piece_of(each) for each in facts), claimed[0]["tries"])
        look = sql.SQL(
            "SELECT try, tries, rows, bytes, seconds, done IS NOT NULL AS is_done FROM {}"
            " WHERE part OPERATOR(pg_catalog.=) {}"
        ).format(self.name, part)
        rows = destination.fetch(look, _ACTION)
        if rows and rows[0]["is_done"]:
            row = rows[0]
            return Done(row["rows"], row["bytes"], row["seconds"], tries=row["tries"])
        why = f"try {rows[0]['try']} has claimed it" if rows else "the load has no such part"
        raise UsageError(f"part {part} can't be copied by try {try_number}: {why}", destination.conn_id)

    def commit(self, destination: Side, head: Head, part: int, try_number: int, done: Done) -> None:
        """Mark the part as done in the transaction that has copied it, and commit: one message.

        So the row isn't locked by a client that hangs before its COMMIT, and no later try waits for it. It is
        on disk then, whatever the role's default is: nobody copies the part again if a crash loses it.

        :param head: of the load that was copied from: it may have been planned anew meanwhile.
        :raises TransientError: if another try has claimed the part or finished it; all is rolled back.
        :raises RemoteError: what the server says.
        """
        values = {**asdict(done), "part": part, "try_number": try_number, "shadow": str(head.shadow)}
        literals = {name: sql.Literal(value) for name, value in values.items()}
        body = sql.SQL(
            "BEGIN IF pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off' THEN"
            " PERFORM pg_catalog.set_config('synchronous_commit', 'local', true); END IF;"
            " UPDATE {ledger} SET rows = {rows}, bytes = {bytes}, seconds = {seconds},"
            " done = pg_catalog.clock_timestamp()"
            " WHERE part OPERATOR(pg_catalog.=) {part} AND try OPERATOR(pg_catalog.=) {try_number}"
            " AND done IS NULL AND EXISTS (SELECT FROM {ledger} WHERE part OPERATOR(pg_catalog.=) 0"
            " AND (facts OPERATOR(pg_catalog.->>) 'shadow') OPERATOR(pg_catalog.=) {shadow});"
            " IF NOT FOUND THEN RAISE 'another try has claimed the part' USING ERRCODE = {superseded};"
            " END IF; END"
        ).format(
            **literals,
            ledger=self.name,
            superseded=_SUPERSEDED,
        )
        text = sql.Literal(body.as_string(destination.connection))
        statement = sql.SQL("DO {}; COMMIT").format(text)
        try:
            destination.run(statement, "committing the part")
        except RemoteError as error:
            if error.sqlstate != _SUPERSEDED:
                raise
            raise TransientError(error.message, destination.conn_id, _SUPERSEDED) from None

    def _gone(self, destination: Side) -> NoLoadError:
        return NoLoadError(
            f"load {self.key.text} has no tables in schema {self.schema_name!r}: it has ended, or was cleaned"
            " up, and there is nothing to load into",
            destination.conn_id,
            "42P01",
            hint=f"to load anew, {ANEW}",
        )


def end_holders(destination: Side, oid: int, *, readers: bool = False) -> int:
    """End the sessions of this role that write to the load's table; returns how many there were.

    They are tries that have been superseded: one that hangs would keep its lock for ever.

    :param readers: end also those that only read it.
    """
    return len(
        destination.ask(_SQL["end_holders"], {"oid": oid, "readers": readers}, "ending superseded tries")
    )
