"""The checksum of a row, the same on both servers, that sees every byte of every value.

Types' own hashes follow ``=``: 1.5 and 1.50 have the same one, and so have 1 and 4294967296 as bigint. So a
value is hashed in its binary form (as COPY would send it), which is also cheaper, or as text if the type
is a user's. Rows' hashes are combined by ``bit_xor`` with their count: a sum would
miss values that were swapped between rows (``benchmarks/`` has the speed, tests the misses). A record's
hash is a sum of its columns' hashes (times 31 each), so the same change in two rows changes both by the
same number, and xor misses that once in some 10**9 pairs: each row's hash is hashed once more.

Each run has a new seed for the hash. So the next run sees a difference that one run has missed (about one in
2**53, or one that somebody crafted).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from airflow_dblink.core.tables.entries import Type

# Types whose own hash covers all bytes of a value.
_DIRECT = frozenset({"bool", "int2", "int4", "oid", "date", "text", "varchar", "bytea", "uuid"})
_ENCODED = frozenset({"text", "varchar"})
# Padding is no part of the value (bpchar); the binary form has an encoding (xml), or is the text (json).
_TEXT = frozenset({"bpchar", "xml", "json", "name", "refcursor"})
# Under a nondeterministic collation texts that are "=" have one hash, and a query may have no collation.
_BYTES = sql.SQL('{} COLLATE pg_catalog."C"')


@dataclass(frozen=True)
class Checksum:
    """How rows are hashed on both sides of one sync.

    :ivar seed: seed of the hash, 63 bits.
    :ivar native: use PostgreSQL's own hash; otherwise SHA-256, since the two servers hash differently.
    :ivar same_encoding: whether both databases store text in the same bytes.
    """

    seed: int
    native: bool
    same_encoding: bool

    def canonical(self, value: sql.Composable, kind: Type, *, built_in: bool) -> sql.Composable:
        """Return *value* in a form that is the same on both sides exactly if the value is the same.

        :param kind: the destination's type.
        :param built_in: whether the value has that type on both sides; otherwise its text is compared.
        """
        name = kind.base_name
        if built_in and kind.element_name == "bpchar":
            value = sql.SQL("{}::pg_catalog.text[]").format(value)  # without the padding, which is no value
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


def _int8(number: int) -> sql.Composed:
    return sql.SQL("{}::bigint").format(sql.Literal(number))
