"""Rows as JSON values, without a change of value: for XCom.

Integers, finite floats, booleans, texts and NULL become JSON's own values. An array becomes a list of its
elements, each by its type. All other values become PostgreSQL's own text, which it reads back as the same
value: numeric, json and jsonb (JSON readers change their digits, double keys and null), dates and times,
intervals, bytea, ranges, composites, ``NaN`` and the infinities, and arrays whose first index isn't 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import psycopg
from psycopg import BaseConnection
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Loader
from psycopg.pq import Format
from psycopg.types.array import register_array

_OTHERS = 0  # psycopg uses this oid's loader for oids without a loader
_INTEGERS = ("int2", "int4", "int8", "oid")
_FLOATS = ("float4", "float8")


class _FloatLoader(Loader):
    """A number, or PostgreSQL's text if JSON has no such number: ``NaN``, ``Infinity``, ``-Infinity``."""

    def load(self, data: Buffer) -> float | str:
        text = bytes(data).decode()
        value = float(text)
        return value if math.isfinite(value) else text


class _BoundsLoader(Loader):
    """The text of an array with bounds, such as ``[0:1]={a,b}``; the elements of other arrays."""

    array: type[Loader]
    text: type[Loader]

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._array: Callable[[Buffer], Any] = self.array(oid, context).load
        self._text: Callable[[Buffer], Any] = self.text(oid, context).load

    def load(self, data: Buffer) -> Any:
        return self._text(data) if bytes(data[:1]) == b"[" else self._array(data)


@dataclass(frozen=True)
class JsonValues:
    """A context for psycopg that reads the values of *connection* as JSON values."""

    connection: BaseConnection[Any]

    @property
    def adapters(self) -> AdaptersMap:
        """The loaders; the same for all connections."""
        return _adapters()


@cache
def _adapters() -> AdaptersMap:
    psycopgs = psycopg.adapters
    adapters = AdaptersMap(types=psycopgs.types)
    text = _loader(psycopgs, _OTHERS)
    adapters.register_loader(_OTHERS, text)
    for name in ("bool", *_INTEGERS):
        adapters.register_loader(name, _loader(psycopgs, psycopgs.types[name].oid))
    for name in _FLOATS:
        adapters.register_loader(name, _FloatLoader)
    for info in psycopgs.types:
        if info.array_oid and info.oid:
            register_array(info, _Only(adapters))
            array = _loader(adapters, info.array_oid)
            bounds = type("_BoundsLoader", (_BoundsLoader,), {"array": array, "text": text})
            adapters.register_loader(info.array_oid, bounds)
    return adapters


@dataclass(frozen=True)
class _Only:
    """A context with nothing but *adapters*, in which psycopg can register a loader."""

    adapters: AdaptersMap
    connection: BaseConnection[Any] | None = None


def _loader(adapters: AdaptersMap, oid: int) -> type[Any]:
    loader = adapters.get_loader(oid, Format.TEXT)
    if loader is None:
        raise psycopg.InterfaceError(f"psycopg has no loader for oid {oid}")
    return loader
