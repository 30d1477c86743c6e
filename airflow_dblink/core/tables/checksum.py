"""The checksum of a row, the same on both servers, that sees every byte of every value.

Types' own hashes follow ``=``: 1.5 and 1.50 have the same one, and so have 1 and 4294967296 as bigint. So a
value is hashed in its binary form (as COPY would send it), which is also cheaper, or as text if the type
is a user's. A sync combines rows' hashes by ``bit_xor`` with their count (``benchmarks/`` has the
speed, tests the misses); without keys that would miss rows that are equal in pairs, so a transfer adds them
up. A record's hash is a sum of its columns' hashes (times 31 each): a sum of these would miss values that
were swapped between rows, and xor misses the same change in two rows once in some 10**9 pairs. So each row's
hash is hashed once more.

Each run has a new seed for the hash. So the next run sees a difference that one run has missed (about one in
2**53, or one that somebody crafted).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from airflow_dblink.core.server.side import Side
from airflow_dblink.core.tables.entries import Type

# Types whose own hash covers all bytes of a value.
_DIRECT = frozenset({"bool", "int2", "int4", "oid", "date", "text", "varchar", "bytea", "uuid"})
_ENCODED = frozenset({"text", "varchar"})
# Padding is no part of the value (bpchar); the binary form has an encoding (xml), or is the text (json).
_TEXT = frozenset({"bpchar", "xml", "json", "name", "refcursor"})
# Types whose values may have one text but several binary forms (NaN has many bit patterns, a tsquery many
# trees): if rows travel as text, only their texts can become equal.
_ONE_AS_TEXT = frozenset(
    {"float4", "float8", "point", "line", "lseg", "box", "path", "polygon", "circle", "tsquery"}
)
# Of arrays: without the padding, which is no value; with the stored declaration, which the output leaves out.
_ARRAYS_OF_TEXT = frozenset({"bpchar", "xml"})
_PROBE = sql.SQL(
    "true, 1::int2, 70000::int4, -70000000000::int8, 4294967295::oid, 'abc'::text COLLATE pg_catalog.\"C\","
    " '\\x00ff'::bytea, NULL::text, date '2024-02-29', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid"
)
# Under a nondeterministic collation texts that are "=" have one hash, and a query may have no collation.
_BYTES = sql.SQL('{} COLLATE pg_catalog."C"')


@dataclass(frozen=True)
class Checksum:
    """How rows are hashed on both sides.

    :ivar seed: seed of the hash, 63 bits.
    :ivar native: use PostgreSQL's own hash; otherwise SHA-256, since the two servers hash differently.
    :ivar same_encoding: whether both databases store text in the same bytes.
    """

    seed: int
    native: bool
    same_encoding: bool

    def canonical(
        self, value: sql.Composable, kind: Type, source_kind: Type, copy_format: str
    ) -> sql.Composable:
        """Return *value* in a form that is the same on both sides exactly if the value is the same.

        :param kind: the destination's type.
        :param source_kind: the source's type, before a cast to the destination's.
        :param copy_format: of the rows that travel.
        """
        name = kind.base_name
        # If a type isn't built in, the text is compared.
        built_in = kind.built_in and source_kind.built_in
        if copy_format == "text" and (kind.element_name or name) in _ONE_AS_TEXT:
            built_in = False
        if built_in and kind.element_name in _ARRAYS_OF_TEXT:
            value = sql.SQL("{}::pg_catalog.text[]").format(value)
        if not built_in or kind.send is None or kind.is_catalog_reference or name in _TEXT:
            text = sql.SQL("{}::pg_catalog.text").format(value)
            return (
                _BYTES.format(text) if self.same_encoding else sql.SQL("pg_catalog.textsend({})").format(text)
            )
        if name in _DIRECT and (self.same_encoding or name not in _ENCODED):
            return _BYTES.format(value) if name in _ENCODED else value
        return sql.SQL("pg_catalog.{}({})").format(sql.Identifier(kind.send), value)

    def of(self, values: Sequence[sql.Composable], *, salt: int = 0) -> sql.Composed:
        """Return the hash, a bigint, of a row of canonical *values*."""
        seed = _int8(self.seed + salt)
        if self.native:
            row = sql.SQL(", ").join(values)
            # As float8, whose hash covers all 64 bits; int8's hash folds them to 32 first.
            return sql.SQL(
                "pg_catalog.hashfloat8extended("
                "pg_catalog.hash_record_extended(ROW({}), {})::double precision, {})"
            ).format(row, seed, seed)
        row = sql.SQL(", ").join([seed, *values])
        return sql.SQL(
            "('x' OPERATOR(pg_catalog.||) pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256("
            "pg_catalog.convert_to(ROW({})::pg_catalog.text, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint"
        ).format(row)


def agree(source: Side, destination: Side, seed: int | None = None) -> Checksum:
    """Return a checksum that both servers compute alike; PostgreSQL's own hash may differ between versions.

    :raises RemoteError: a server's errors.
    """
    seed = secrets.randbits(62) if seed is None else seed
    probe = sql.SQL("SELECT {} AS hash").format(Checksum(seed, native=True, same_encoding=True).of([_PROBE]))
    sides, action = (source, destination), "comparing hash functions"
    hashes = [side.ask(probe, action=action)[0]["hash"] for side in sides]
    encodings = {side.connection.info.parameter_status("server_encoding") for side in sides}
    return Checksum(seed, hashes[0] == hashes[1], len(encodings) == 1)


def _int8(number: int) -> sql.Composed:
    return sql.SQL("{}::bigint").format(sql.Literal(number))
