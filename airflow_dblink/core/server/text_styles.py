"""Loaders and dumpers for dates, intervals and bytes in all styles of the remote session.

As in dblink, nothing is set on the remote, so its role, its database or a ``SET`` decides about
``DateStyle`` and ``IntervalStyle``. psycopg reads every style of ``date``, ``time``,
``timetz`` and ``timestamp``, but ``timestamptz`` only as ISO and ``interval`` only as postgres.
This module reads the other styles, and leaves the usual ones to psycopg's own loaders, which are in C.

psycopg (as of 3.3) also misreads bytes in arrays under ``bytea_output=escape`` and
``standard_conforming_strings=off``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from psycopg import abc
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper, Loader, PyFormat
from psycopg.pq import Escaping, Format
from psycopg.types.string import BytesBinaryDumper

from airflow_dblink.core.errors import RemoteError

_HINT = "cast the column to text in the query, or set datestyle to ISO in session_settings"

_TIME = rb"(?P<h>\d+):(?P<mi>\d+):(?P<s>\d+)(?:\.(?P<us>\d+))?"
# The zone's abbreviation is last, except for BC; a numeric one has no space before it.
_ZONE = rb" ?(?P<zone>.*?)(?P<bc> BC)?"
_MONTH_DAY = rb"(?P<mo>\d+)[/](?P<d>\d+)[/]"
_DAY_MONTH = rb"(?P<d>\d+)[./](?P<mo>\d+)[./]"
_NUMBERS = rb"(?P<y>\d+) " + _TIME + _ZONE
_WORDS = _TIME + rb" (?P<y>\d+)" + _ZONE
_PARTS = ("y", "mo", "d", "h", "mi", "s", "us", "zone", "bc")
_DATE_FORMS = {  # by the style's first letter, and whether the day comes first
    ("G", True): re.compile(_DAY_MONTH + _NUMBERS),  # German: 02.06.2021 05:04:05 CEST
    ("G", False): re.compile(_DAY_MONTH + _NUMBERS),
    ("S", True): re.compile(_DAY_MONTH + _NUMBERS),  # SQL: 02/06/2021 05:04:05 CEST
    ("S", False): re.compile(_MONTH_DAY + _NUMBERS),
    ("P", True): re.compile(rb"\w+ (?P<d>\d+) (?P<mo>\w+) " + _WORDS),  # Postgres: Wed 02 Jun 05:04:05 2021
    ("P", False): re.compile(rb"\w+ (?P<mo>\w+) (?P<d>\d+) " + _WORDS),
}
# PostgreSQL prints English names, whatever lc_time is.
_MONTHS = {
    text: number
    for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
    for text in (name, b"%02d" % number)
}

_ABBREVIATION_CHARS = 10  # PostgreSQL prints no more of it
_NUMERIC = re.compile(r"(?P<sign>[+-])(?P<h>\d\d):?(?P<m>\d\d)?:?(?P<s>\d\d)?")
# SET TIME ZONE 3 gives <+03>-03. The sign is POSIX's, so minus is east of Greenwich.
_POSIX = re.compile(r"(?:<[^>]+>|[A-Za-z]{3,})(?P<sign>[+-]?)(?P<h>\d+)(?::(?P<m>\d+))?(?::(?P<s>\d+))?")
# Zones that the server's machine defines: the same names here may mean other zones.
_SERVERS_OWN = ("localtime", "posixrules")

_SECONDS = rb"(?P<s>-?\d+)(?:\.(?P<us>\d+))?"
_INTERVAL_FORMS = {
    # @ 1 year 2 mons -3 days 4 hours 5 mins 6.7 secs ago; "ago" turns every sign round
    "postgres_verbose": re.compile(
        rb"@(?: (?P<y>-?\d+) years?)?(?: (?P<mo>-?\d+) mons?)?(?: (?P<d>-?\d+) days?)?(?: 0)?"
        rb"(?: (?P<h>-?\d+) hours?)?(?: (?P<mi>-?\d+) mins?)?(?: " + _SECONDS + rb" secs?)?(?P<ago> ago)?"
    ),
    # P1Y2M-3DT4H5M-6.7S
    "iso_8601": re.compile(
        rb"P(?:(?P<y>-?\d+)Y)?(?:(?P<mo>-?\d+)M)?(?:(?P<d>-?\d+)D)?"
        rb"(?:T(?:(?P<h>-?\d+)H)?(?:(?P<mi>-?\d+)M)?(?:" + _SECONDS + rb"S)?)?(?P<ago>)"
    ),
}
# One sign for all (-1-2, -3 4:05:06, -4:05:06), or one for each of the three: +1-2 -3 +4:05:06.7
_SQL_STANDARD = re.compile(
    rb"(?:(?P<months>[+-]?)(?P<y>\d+)-(?P<mo>\d+))?(?: ?(?P<days>[+-]?)(?P<d>\d+)(?= |$))?"
    rb"(?: ?(?P<time>[+-]?)(?P<h>\d+):(?P<mi>\d+):(?P<s>\d+)(?:\.(?P<us>\d+))?)?"
)
_INFINITE_INTERVALS_SINCE = 170000

_BYTEA = psycopg.adapters.types["bytea"]
_BYTEA_ELEMENT = 0xFFFFFFFF  # no type has it: so psycopg's array loader asks for ours


def register(context: AdaptContext) -> None:
    """Make *context* (a connection) read all styles of ``timestamptz`` and ``interval``, and bytes in arrays.

    The style is looked up for each result, since the session may change it at any time.
    A value that Python can't hold raises :class:`psycopg.DataError`, as psycopg does in the usual styles.
    A ``timestamptz`` whose text is ambiguous raises :class:`RemoteError`.
    """
    context.adapters.register_loader("timestamptz", _TimestamptzLoader)
    context.adapters.register_loader("interval", _IntervalLoader)
    context.adapters.register_loader(_BYTEA_ELEMENT, _ByteaElementLoader)
    context.adapters.register_loader(_BYTEA.array_oid, _ByteaArrayLoader)
    for kind in (bytes, bytearray, memoryview):
        context.adapters.register_dumper(kind, _BytesDumper)
        context.adapters.register_dumper(kind, BytesBinaryDumper)  # the default of %s, as in psycopg


def _psycopgs(oid: int, context: AdaptContext | None) -> abc.Loader:
    """Return psycopg's own loader, in C if psycopg has one."""
    loader = psycopg.adapters.get_loader(oid, Format.TEXT)
    if loader is None:
        raise psycopg.InterfaceError(f"psycopg has no loader for oid {oid}")
    return loader(oid, context)


def _parameter(context: AdaptContext | None, name: str) -> str:
    connection = context.connection if context else None
    try:
        return (connection.info.parameter_status(name) if connection else None) or ""
    except psycopg.OperationalError:  # closed
        return ""


class _TimestamptzLoader(Loader):
    """``timestamptz`` as German, SQL and Postgres print it: wall time and the zone's abbreviation."""

    def __new__(cls, oid: int, context: AdaptContext | None = None) -> Any:
        """Return psycopg's loader if it reads the style: then this class costs nothing per value."""
        form = _DATE_FORMS.get(_date_form(context))
        return object.__new__(cls) if form else _psycopgs(oid, context)

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._form = _DATE_FORMS[_date_form(context)]
        self._zone_name = _parameter(context, "TimeZone")
        self._known = _known_zone(self._zone_name)
        self._fixed = None if self._known else _posix_offset(self._zone_name)
        # As psycopg does for ISO style: UTC if Python doesn't know the zone.
        self._result_zone = self.connection.info.timezone if self.connection else UTC

    def load(self, data: Buffer) -> datetime:
        text = bytes(data)
        found = self._form.fullmatch(text)
        if found is None:
            raise _not_a_timestamp(text, b"")
        y, mo, d, h, mi, s, us, zone, bc = found.group(*_PARTS)
        if bc or mo not in _MONTHS:
            raise _not_a_timestamp(text, y)
        try:
            micros = int((us or b"").ljust(6, b"0"))
            wall = datetime(int(y), _MONTHS[mo], int(d), int(h), int(mi), int(s), micros, UTC)
        except ValueError:
            raise _not_a_timestamp(text, y) from None
        offset = self._offset(wall, zone.decode("utf-8", "replace"))
        try:
            return (wall - offset).astimezone(self._result_zone)
        except OverflowError:  # within a day of year 1 or 9999; psycopg gives it a fixed zone, too
            return wall.replace(tzinfo=timezone(offset))

    def _offset(self, wall: datetime, printed: str) -> timedelta:
        """Return the offset of the time *wall* whose zone's abbreviation is *printed*.

        :raises RemoteError: if the text is ambiguous: a guess could be silently wrong.
        """
        if self._fixed is not None:
            return self._fixed
        offsets = _offsets(self._known, wall, printed) if self._known else set()
        if len(offsets) == 1:
            return offsets.pop()
        if offsets:  # Moscow on 2014-10-26: from MSK, UTC+4, to MSK, UTC+3
            problem = f"an hour that comes twice, and both times {printed!r}, in time zone"
        elif numeric := _NUMERIC.fullmatch(printed):
            return _timedelta(numeric, 1)
        else:
            problem = f"{printed!r}, which Python doesn't know in time zone"
        raise RemoteError(
            f"a timestamptz is printed with {problem} {self._zone_name!r}", sqlstate="22000", hint=_HINT
        )


def _date_form(context: AdaptContext | None) -> tuple[str, bool]:
    style = _parameter(context, "DateStyle")
    return style[:1], style.endswith("DMY")


def _known_zone(name: str) -> tzinfo | None:
    if name in _SERVERS_OWN:
        return None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # not a name; a directory; no such zone
        return None


def _posix_offset(name: str) -> timedelta | None:
    """Return the offset of a zone without summer time that is just an offset: ``<+03>-03``, ``FOO+3``."""
    found = _POSIX.fullmatch(name)
    return _timedelta(found, -1) if found else None


def _timedelta(found: re.Match[str], plus: int) -> timedelta:
    sign = -plus if found["sign"] == "-" else plus
    return sign * timedelta(hours=int(found["h"]), minutes=int(found["m"] or 0), seconds=int(found["s"] or 0))


def _offsets(zone: tzinfo, wall: datetime, printed: str) -> set[timedelta]:
    """Return the offsets that *zone* has at *wall* under the name *printed*: two at most, none if never."""
    offsets = set()
    for fold in (0, 1):
        local = wall.replace(tzinfo=zone, fold=fold)
        offset = local.utcoffset()
        if offset is not None and (local.tzname() or "")[:_ABBREVIATION_CHARS] == printed:
            offsets.add(offset)
    return offsets


def _not_a_timestamp(text: bytes, year: bytes) -> psycopg.DataError:
    shown = text.decode("utf-8", "replace")
    if shown == "-infinity" or shown.endswith("BC"):
        return psycopg.DataError(f"timestamp too small (before year 1): {shown!r}")
    if shown == "infinity" or len(year) > 4:
        return psycopg.DataError(f"timestamp too large (after year 10K): {shown!r}")
    return psycopg.DataError(f"can't parse timestamp {shown!r}")


class _IntervalLoader(Loader):
    """``interval`` in styles that psycopg doesn't read; as in psycopg a year is 365 days, a month 30."""

    def __new__(cls, oid: int, context: AdaptContext | None = None) -> Any:
        """Return psycopg's loader for its style, with a check for the values that it misreads."""
        style = _parameter(context, "IntervalStyle")
        if style in _INTERVAL_FORMS or style == "sql_standard":
            return object.__new__(cls)
        connection = context.connection if context and style else None
        if connection and connection.info.server_version >= _INFINITE_INTERVALS_SINCE:
            return _FiniteIntervalLoader(oid, context)
        return _psycopgs(oid, context)

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        style = _parameter(context, "IntervalStyle")
        self._form = _INTERVAL_FORMS.get(style, _SQL_STANDARD)
        self._parts = _sql_standard_parts if style == "sql_standard" else _signed_parts

    def load(self, data: Buffer) -> timedelta:
        text = bytes(data)
        found = self._form.fullmatch(text)
        if found is None:
            raise _not_an_interval(text)
        days, micros = self._parts(found)
        try:
            return timedelta(days=days, microseconds=micros)
        except OverflowError as error:
            raise _not_an_interval(text, error) from None


class _FiniteIntervalLoader(Loader):
    """psycopg's loader, which (as of 3.3) reads ``infinity`` as no time at all, silently."""

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._load = _psycopgs(oid, context).load

    def load(self, data: Buffer) -> timedelta:
        value: timedelta = self._load(data)
        if not value and bytes(data).endswith(b"infinity"):
            raise _not_an_interval(bytes(data))
        return value


def _signed_parts(found: re.Match[bytes]) -> tuple[int, int]:
    """Return days and microseconds, where each part has its own sign."""
    y, mo, d, h, mi = (int(found[part] or 0) for part in ("y", "mo", "d", "h", "mi"))
    seconds = _micros(found)
    if (found["s"] or b"").startswith(b"-"):
        seconds = -seconds
    ago = -1 if found["ago"] else 1
    return ago * (365 * y + 30 * mo + d), ago * ((60 * h + mi) * 60_000_000 + seconds)


def _sql_standard_parts(found: re.Match[bytes]) -> tuple[int, int]:
    """Return days and microseconds; a part without a sign has the sign of the part before it."""
    y, mo, d, h, mi = (int(found[part] or 0) for part in ("y", "mo", "d", "h", "mi"))
    months = -1 if found["months"] == b"-" else 1
    days = -1 if found["days"] == b"-" else 1
    time = {b"-": -1, b"+": 1}.get(found["time"], days)
    return months * (365 * y + 30 * mo) + days * d, time * ((60 * h + mi) * 60_000_000 + _micros(found))


def _micros(found: re.Match[bytes]) -> int:
    """Return the seconds as microseconds, without their sign; not as a float, which would round them."""
    return abs(int(found["s"] or 0)) * 1_000_000 + int((found["us"] or b"").ljust(6, b"0"))


def _not_an_interval(text: bytes, error: Exception | None = None) -> psycopg.DataError:
    shown = text.decode("utf-8", "replace")
    reason = f": {error}" if error else ""
    return psycopg.DataError(f"can't parse interval {shown!r}{reason}")


class _ByteaElementLoader(Loader):
    """``bytea`` in an array; psycopg's own loader would read on to the end of the array's text.

    This loader gets each element as bytes. It also reads hex, since the server doesn't report
    ``bytea_output``.
    """

    def load(self, data: Buffer) -> bytes:
        return Escaping().unescape_bytea(data)


def _array_loader() -> type[Loader]:
    """Return psycopg's loader of ``bytea[]`` with our own for its elements; made once, as psycopg's are."""
    loader = psycopg.adapters.get_loader(_BYTEA.array_oid, Format.TEXT)
    if loader is None:
        raise psycopg.InterfaceError("psycopg has no loader for bytea[]")
    return type("_ByteaArrayLoader", (loader,), {"base_oid": _BYTEA_ELEMENT})


_ByteaArrayLoader = _array_loader()


class _BytesDumper(Dumper):
    """Bytes for sessions in which a backslash escapes in plain strings, too: psycopg doubles it in arrays."""

    oid = _BYTEA.oid

    def __new__(cls, kind: type, context: AdaptContext | None = None) -> Any:
        """Return psycopg's dumper if it is right."""
        if _parameter(context, "standard_conforming_strings") == "off":
            return object.__new__(cls)
        return psycopg.adapters.get_dumper(kind, PyFormat.TEXT)(kind, context)

    def dump(self, obj: Buffer) -> Buffer:
        return b"\\x" + bytes(obj).hex().encode()
